"""Record batches and logs for the tests of the partition log."""

from __future__ import annotations

import random
from pathlib import Path

from log_simulated_files import SimulatedFiles

from ottla_broker.log.config import LogConfig
from ottla_broker.log.files import Files
from ottla_broker.log.partition_log import PartitionLog
from ottla_broker.log.producer_state import AppendOrigin
from ottla_wire.records import Compression, RecordBatch, RecordBatchBuilder, end_transaction_marker, iter_batches
from ottla_wire.schema import Uuid

NOW = 1_700_000_000_000
FOLDER = Path("/data/orders-0")
TOPIC_ID = Uuid.random(random.Random(7))


def batch(
    count: int = 1,
    *,
    value: bytes = b"value",
    key: bytes | None = b"key",
    timestamp_ms: int = NOW,
    step_ms: int = 0,
    producer: tuple[int, int, int] | None = None,
    transactional: bool = False,
    compression: Compression = Compression.NONE,
) -> bytearray:
    """A produce request's batch; `producer` is (id, epoch, first sequence)."""
    builder = RecordBatchBuilder(1 << 24, compression=compression)
    for index in range(count):
        assert builder.append(timestamp_ms + index * step_ms, key, value, None)
    producer_id, epoch, sequence = producer or (-1, -1, -1)
    return bytearray(
        builder.build(
            producer_id=producer_id, producer_epoch=epoch, base_sequence=sequence, transactional=transactional
        )
    )


def open_log(files: Files, *, config: LogConfig | None = None, folder: Path = FOLDER, **state: object) -> PartitionLog:
    """A log in a file system; `state` as `PartitionLog.open` takes it."""
    settings: dict[str, object] = {"now_ms": NOW, **state}
    return PartitionLog.open(files, folder, "orders", 0, TOPIC_ID, config or LogConfig(), **settings)  # type: ignore[arg-type]


def append(log: PartitionLog, records: bytes | bytearray, *, leader_epoch: int = 0, now_ms: int = NOW, **how: object):
    return log.append(records, leader_epoch=leader_epoch, now_ms=now_ms, **how)  # type: ignore[arg-type]


def end_transaction(
    log: PartitionLog,
    producer_id: int,
    epoch: int,
    *,
    commit: bool,
    coordinator_epoch: int = 0,
    leader_epoch: int = 0,
    transaction_version: int = 0,
):
    marker = end_transaction_marker(
        commit=commit,
        producer_id=producer_id,
        producer_epoch=epoch,
        coordinator_epoch=coordinator_epoch,
        timestamp_ms=NOW,
    )
    return log.append(
        bytearray(marker),
        leader_epoch=leader_epoch,
        now_ms=NOW,
        origin=AppendOrigin.COORDINATOR,
        transaction_version=transaction_version,
    )


def read_all(log: PartitionLog, *, max_bytes: int = 1 << 20) -> list[RecordBatch]:
    """Every batch of a log, read the way a consumer does; each one is checked."""
    found: list[RecordBatch] = []
    offset = log.log_start_offset
    while offset < log.log_end_offset:
        piece = log.read(offset, max_bytes, at_least_one=True)
        if not piece.records:
            break
        batches = list(iter_batches(piece.records, strict=True))
        for stored in batches:
            stored.verify()
        found += batches
        assert piece.next_offset > offset
        offset = piece.next_offset
    return found


SMALL = LogConfig(segment_bytes=2000, index_interval_bytes=300, retention_ms=-1)


def filled(batches: int = 40, *, seed: int = 1, config: LogConfig = SMALL, files: Files | None = None) -> PartitionLog:
    """A log of several segments."""
    rng = random.Random(seed)
    log = open_log(files or SimulatedFiles(), config=config)
    for _ in range(batches):
        append(log, batch(rng.randint(1, 5), value=rng.randbytes(rng.choice([1, 60, 300]))))
    log.high_watermark_moved(log.log_end_offset)
    return log
