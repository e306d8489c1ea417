"""Apache Kafka's own tools read our files, and we read Apache Kafka's: names and bytes are the same."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from log_batches import NOW, append, batch, end_transaction, open_log, read_all

from ottla_broker.log.config import LogConfig
from ottla_broker.log.files import OsFiles
from ottla_broker.log.partition_log import PartitionLog
from ottla_broker.log.partition_metadata import read_topic_id
from ottla_wire.records import Compression
from support import apache_kafka

pytestmark = [pytest.mark.slow, pytest.mark.peer("java", "apache-4.3"), pytest.mark.timeout(300)]

VERSION = apache_kafka.VERSIONS["4.3"]
TOPIC = "orders"


# ---- ours, read by Kafka


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> PartitionLog:
    """A closed log of several segments: codecs, epochs, idempotence, transactions committed, aborted and open."""
    folder = tmp_path_factory.mktemp("ours") / f"{TOPIC}-0"
    log = open_log(OsFiles(), config=LogConfig(segment_bytes=20_000, index_interval_bytes=400), folder=folder)
    rng = random.Random(3)
    sequences = {5: 0, 9: 0}
    for index in range(300):
        epoch = index // 100
        count = rng.randint(1, 9)
        if index % 7 == 3:
            records = batch(count, value=rng.randbytes(50), producer=(5, 0, sequences[5]), transactional=True)
            sequences[5] += count
        elif index % 21 == 5 and index > 20:
            end_transaction(log, 5, 0, commit=index % 2 == 0, leader_epoch=epoch)
            continue
        else:
            records = batch(
                count,
                value=rng.randbytes(30),
                timestamp_ms=NOW + index * 10 + rng.randint(0, 500),
                compression=rng.choice(list(Compression)),
                producer=(9, 2, sequences[9]),
            )
            sequences[9] += count
        append(log, records, leader_epoch=epoch)
    log.close()
    return log


def dump(files: list[Path], *options: str) -> str:
    assert files
    command = apache_kafka.java_command(
        VERSION, "org.apache.kafka.tools.DumpLogSegments", *options, "--files", ",".join(map(str, files))
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def named(log: PartitionLog, suffix: str) -> list[Path]:
    return sorted(log.folder.glob(f"*{suffix}"))


def test_kafka_reads_every_batch_of_our_segments(ours: PartitionLog) -> None:
    again = open_log(OsFiles(), folder=ours.folder, clean_shutdown=True, recovery_point=ours.flushed_offset)
    expected = [
        (b.base_offset, b.last_offset, b.count, b.leader_epoch, b.max_timestamp_ms, b.producer_id, b.base_sequence)
        for b in read_all(again)
    ]
    again.abandon()
    number = r"(-?\d+)"
    line = re.compile(
        f"baseOffset: {number} lastOffset: {number} count: {number} baseSequence: {number} lastSequence: {number} "
        f"producerId: {number} .*partitionLeaderEpoch: {number} .*CreateTime: {number} .*isvalid: true"
    )
    found = []
    for path in named(ours, ".log"):
        output = dump([path], "--deep-iteration")
        assert "Found" not in output
        for match in line.finditer(output):
            base, last, count, sequence, _, producer, epoch, time = map(int, match.groups())
            found.append((base, last, count, epoch, time, producer, sequence))
    assert found == expected


def test_kafka_finds_nothing_wrong_with_our_indexes(ours: PartitionLog) -> None:
    indexes = named(ours, ".index") + named(ours, ".timeindex")
    assert len(indexes) == 2 * ours.segment_count > 4
    output = dump(indexes, "--index-sanity-check")
    assert output.count("passed sanity check") == len(indexes)
    verified = dump(indexes, "--verify-index-only")
    assert set(verified.splitlines()) == {f"Dumping {path}" for path in indexes}


def test_kafka_reads_our_snapshots(ours: PartitionLog) -> None:
    output = dump(named(ours, ".snapshot"))
    last = output[output.rindex("Dumping") :]
    for state in ours.producers:
        known = state.batches[-1]
        assert (
            f"producerId: {state.producer_id} producerEpoch: {state.epoch} coordinatorEpoch: {state.coordinator_epoch} "
        ) in last
        assert f"lastSequence: {known.last_sequence} lastOffset: {known.last_offset} " in last
        if state.current_txn_first_offset >= 0:
            assert f"currentTxnFirstOffset: OptionalLong[{state.current_txn_first_offset}]" in last


def test_kafka_reads_our_transaction_indexes(ours: PartitionLog) -> None:
    output = dump(named(ours, ".txnindex"))
    number = r"(\d+)"
    line = f"producerId: {number} firstOffset: {number} lastOffset: {number} lastStableOffset: {number}"
    found = [tuple(map(int, match.groups())) for match in re.finditer(line, output)]
    assert found == [tuple(entry) for entry in ours.aborted_transactions(0, 10**9)]
    assert len(found) > 3


# ---- Kafka's, read by us


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a partition that a transactional and an idempotent producer wrote through a real broker."""
    copy = tmp_path_factory.mktemp("theirs") / f"{TOPIC}-0"
    config = {"log.index.interval.bytes": "2000", "transaction.state.log.num.partitions": "1"}
    with apache_kafka.ApacheKafka(VERSION, config=config) as kafka:
        server = ["--bootstrap-server", kafka.bootstrap_servers]
        create = ["--create", "--topic", TOPIC, "--partitions", "1", "--config", "segment.bytes=1048576"]
        kafka.run_tool("org.apache.kafka.tools.TopicCommand", *server, *create)
        common = ["--topic", TOPIC, "--record-size", "100", "--throughput", "-1"]
        properties = ["--producer-props", f"bootstrap.servers={kafka.bootstrap_servers}", "batch.size=3000"]
        performance = "org.apache.kafka.tools.ProducerPerformance"
        transactional = ["--num-records", "20000", "--transactional-id", "tx", "--transaction-duration-ms", "20"]
        kafka.run_tool(performance, *common, *transactional, *properties, "compression.type=lz4")
        kafka.run_tool(performance, *common, "--num-records", "20000", *properties)
        assert kafka._folder is not None
        shutil.copytree(kafka._folder / "data" / f"{TOPIC}-0", copy)
    return copy


def open_theirs(folder: Path, **how: object) -> PartitionLog:
    files = OsFiles()
    topic_id = read_topic_id(files, folder)
    assert topic_id is not None
    config = LogConfig(segment_bytes=1_048_576, index_interval_bytes=2000)
    return PartitionLog.open(files, folder, TOPIC, 0, topic_id, config, now_ms=0, **how)  # type: ignore[arg-type]


def test_we_recover_a_folder_of_a_broker_that_did_not_stop(theirs: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(theirs, tmp_path / "copy"))
    log = open_theirs(folder)
    stored = read_all(log)
    assert sum(batch.count for batch in stored if not batch.is_control) == 40_000
    assert sum(batch.is_control for batch in stored) > 3
    assert len(log.producers) == 2
    assert log.producers.open_transactions == {}
    log.close()


def test_what_we_rebuild_is_what_kafka_wrote(theirs: Path, tmp_path: Path) -> None:
    """Offset and time indexes of sealed segments, and the snapshots between them, byte for byte."""
    folder = Path(shutil.copytree(theirs, tmp_path / "copy"))
    sealed = sorted(folder.glob("*.log"))[:-1]
    assert len(sealed) >= 2
    derived = [path.with_suffix(suffix) for path in sealed for suffix in (".index", ".timeindex")]
    derived += [path.with_suffix(".snapshot") for path in sealed[1:]]
    expected = {path.name: path.read_bytes() for path in derived}
    for path in derived:
        path.unlink()
    log = open_theirs(folder)
    log.abandon()
    for path in derived:
        assert path.read_bytes() == expected[path.name], path.name
