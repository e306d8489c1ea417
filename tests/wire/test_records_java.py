"""Our record batches and those of Kafka's Java client: golden files that it wrote, and, where Java is, both ways."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support import apache_kafka
from support.record_twins import TWINS, dump, twin

HERE = Path(__file__).parent
GOLDEN = sorted((HERE / "golden" / "records").glob("*.bin"), key=lambda path: path.name)
PROGRAM = HERE / "java" / "RecordBatches.java"


@pytest.fixture(params=TWINS)
def records(request: pytest.FixtureRequest) -> ModuleType:
    return twin(request.param)


@pytest.fixture(scope="session")
def java() -> Callable[..., str]:
    """Runs the harness; the jars are those of `OTTLA_KAFKA_JARS`, or those that the other tests' Apache Kafka has."""
    named = os.environ.get("OTTLA_KAFKA_JARS")
    version = apache_kafka.VERSIONS["4.3"]
    jars = Path(named) if named else apache_kafka.libs(version)
    if shutil.which("java") is None or not list(jars.glob("kafka-clients-*.jar")):
        message = f"needs java, and the jars of kafka-clients {version} in {jars} (or in OTTLA_KAFKA_JARS)"
        if "java" in os.environ.get("OTTLA_REQUIRE", ""):
            pytest.fail(message)
        pytest.skip(message)

    def run(*arguments: str | Path) -> str:
        command = ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{jars}/*", str(PROGRAM), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


def test_the_golden_files_are_there() -> None:
    assert len(GOLDEN) == 18


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_what_java_wrote_is_read_as_java_reads_it(records: ModuleType, path: Path) -> None:
    assert dump(records, path.read_bytes()) == path.with_suffix(".txt").read_text()


def rebuilt(records: ModuleType, batch: Any) -> bytes:
    """A batch built from what was read in another."""
    builder = records.RecordBatchBuilder(1 << 30, delete_horizon_ms=batch.delete_horizon_ms)
    appended_by_log = batch.timestamp_type is records.TimestampType.LOG_APPEND_TIME
    for record in batch.records():
        timestamp_ms = batch.base_timestamp_ms if appended_by_log else record.timestamp_ms
        offset_delta = record.offset - batch.base_offset
        builder.append(timestamp_ms, record.key, record.value, record.headers, offset_delta=offset_delta)
    built = bytearray(
        builder.build(
            base_offset=batch.base_offset,
            producer_id=batch.producer_id,
            producer_epoch=batch.producer_epoch,
            base_sequence=batch.base_sequence,
            transactional=batch.is_transactional,
            control=batch.is_control,
            leader_epoch=batch.leader_epoch,
            last_offset_delta=batch.last_offset_delta,
        )
    )
    if appended_by_log or batch.count == 0:
        # The log's clock in one case; in the other the greatest timestamp of what compaction has removed.
        next(records.iter_batches(built)).set_max_timestamp(batch.max_timestamp_ms, batch.timestamp_type)
    return bytes(built)


UNCOMPRESSED = [path for path in GOLDEN if not path.stem.startswith(("mixed-", "large-")) or path.stem == "mixed-none"]


@pytest.mark.parametrize("path", UNCOMPRESSED, ids=lambda path: path.stem)
def test_what_java_wrote_is_written_byte_by_byte(records: ModuleType, path: Path) -> None:
    (batch,) = records.iter_batches(path.read_bytes())
    assert rebuilt(records, batch).hex() == path.read_bytes().hex()


@pytest.mark.parametrize("kind", ["commit", "abort"])
def test_markers_are_java_s(records: ModuleType, kind: str) -> None:
    built = records.end_transaction_marker(
        commit=kind == "commit",
        producer_id=4711,
        producer_epoch=3,
        coordinator_epoch=21,
        timestamp_ms=1_700_000_000_000,
        base_offset=55,
        leader_epoch=4,
    )
    assert built == (HERE / "golden" / "records" / f"marker-{kind}.bin").read_bytes()


def test_a_leader_change_is_java_s(records: ModuleType) -> None:
    golden = (HERE / "golden" / "records" / "leader-change.bin").read_bytes()
    (batch,) = records.iter_batches(golden)
    assert records.control_type(batch) is records.ControlType.LEADER_CHANGE
    value = batch.records()[0].value
    assert golden == records.control_batch(
        [(records.ControlType.LEADER_CHANGE, value)], timestamp_ms=1_700_000_000_000, leader_epoch=1
    )


def our_batches(records: ModuleType) -> dict[str, bytes]:
    batches = {}
    for codec in records.Compression:
        for level in {"GZIP": [None, 1, 9, -1], "LZ4": [None, 1, 9, 17], "ZSTD": [None, -131072, 1, 22]}.get(
            codec.name, [None]
        ):
            for kind, count in (("small", 3), ("large", 3000)):
                builder = records.RecordBatchBuilder(1 << 20, compression=codec, level=level)
                for i in range(count):
                    headers = [("größe", None), ("a", b""), ("b", b"\x00\xff")] if i % 3 == 0 else None
                    builder.append(
                        1_700_000_000_000 - i, None if i % 4 == 0 else b"k%d" % i, b"v%d" % (i * i) * (i % 9), headers
                    )
                built = builder.build(base_offset=3, producer_id=5, producer_epoch=1, base_sequence=2**31 - 2)
                batches[f"{codec.name}-{level}-{kind}"] = built
    batches["abort"] = records.end_transaction_marker(
        commit=False, producer_id=2**40, producer_epoch=1, coordinator_epoch=2, timestamp_ms=4
    )
    return batches


@pytest.mark.slow
@pytest.mark.peer("java", "kafka-jars")
def test_java_reads_what_we_wrote(records: ModuleType, java: Callable[..., str], tmp_path: Path) -> None:
    expected = ""
    for name, batch in sorted(our_batches(records).items()):
        (tmp_path / name).write_bytes(batch)
        expected += f"file {name}\n" + dump(records, batch)
    assert java("read", *sorted(tmp_path.iterdir())) == expected


@pytest.mark.slow
@pytest.mark.peer("java", "kafka-jars")
def test_java_still_writes_the_golden_files(java: Callable[..., str], tmp_path: Path) -> None:
    java("write", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.bin")} == {
        path.name: path.read_bytes() for path in GOLDEN
    }


@pytest.mark.slow
@pytest.mark.peer("java", "kafka-jars")
def test_keys_go_to_the_partitions_that_java_chooses(records: ModuleType, java: Callable[..., str]) -> None:
    keys = [bytes((i * 37 + j) % 256 for j in range(length)) for length in range(40) for i in range(8)]
    answers = java("murmur2", *(key.hex() or "" for key in keys)).splitlines()
    assert answers == [f"{records.murmur2(key)} {records.partition_for_key(key, 12)}" for key in keys]
