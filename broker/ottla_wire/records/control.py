"""Control records: the markers that end transactions, and what Raft writes into the metadata log.

The key of a control record is its version and its type, both i16. A marker's value is its version, i16, and the epoch
of the coordinator that wrote it, i32.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from ottla_wire.errors import InvalidRecord
from ottla_wire.records.batch import RecordBatch, RecordBatchBuilder
from ottla_wire.records.kernel import Record

_KEY = struct.Struct(">hh")
_MARKER = struct.Struct(">hi")


class ControlType(IntEnum):
    """The type in a control record's key."""

    ABORT = 0
    COMMIT = 1
    LEADER_CHANGE = 2
    SNAPSHOT_HEADER = 3
    SNAPSHOT_FOOTER = 4
    KRAFT_VERSION = 5
    KRAFT_VOTERS = 6


def control_batch(
    records: list[tuple[ControlType, bytes]],
    *,
    timestamp_ms: int,
    base_offset: int = 0,
    producer_id: int = -1,
    producer_epoch: int = -1,
    leader_epoch: int = -1,
    transactional: bool = False,
    key_version: int = 0,
) -> bytes:
    """A batch of control records, each a type and its encoded value. Control batches are never compressed."""
    builder = RecordBatchBuilder((1 << 31) - 1)
    for kind, value in records:
        builder.append(timestamp_ms, _KEY.pack(key_version, kind), value, None)
    return builder.build(
        base_offset=base_offset,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        leader_epoch=leader_epoch,
        transactional=transactional,
        control=True,
    )


def end_transaction_marker(
    *,
    commit: bool,
    producer_id: int,
    producer_epoch: int,
    coordinator_epoch: int,
    timestamp_ms: int,
    base_offset: int = 0,
    leader_epoch: int = -1,
) -> bytes:
    """The batch that ends a producer's transaction in a partition."""
    return control_batch(
        [(ControlType.COMMIT if commit else ControlType.ABORT, _MARKER.pack(0, coordinator_epoch))],
        timestamp_ms=timestamp_ms,
        base_offset=base_offset,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        leader_epoch=leader_epoch,
        transactional=True,
    )


def record_type(record: Record) -> ControlType | None:
    """The type of a control record; None for one that is newer than this program.

    Raises:
        InvalidRecord: the key is not that of a control record.
    """
    if record.key is None or len(record.key) < _KEY.size:
        raise InvalidRecord(f"the key of the control record at offset {record.offset} is shorter than 4 bytes")
    version, kind = _KEY.unpack_from(record.key)
    if version < 0:
        raise InvalidRecord(f"the control record at offset {record.offset} has key version {version}")
    try:
        return ControlType(kind)
    except ValueError:
        return None


def control_type(batch: RecordBatch) -> ControlType | None:
    """The type of a control batch's first record; None if the batch is empty or its type is unknown."""
    if not batch.is_control:
        raise ValueError(f"{batch!r} is not a control batch")
    records = batch.records()
    return record_type(records[0]) if records else None


def coordinator_epoch(batch: RecordBatch) -> int:
    """The coordinator epoch in the marker that a batch holds.

    Raises:
        InvalidRecord: the batch holds no marker, or a malformed one.
    """
    record = batch.records()[0] if batch.count else None
    if record is None or record_type(record) not in (ControlType.COMMIT, ControlType.ABORT):
        raise InvalidRecord(f"{batch!r} does not end a transaction")
    if record.value is None or len(record.value) < _MARKER.size:
        raise InvalidRecord(f"the marker at offset {record.offset} is shorter than {_MARKER.size} bytes")
    version, epoch = _MARKER.unpack_from(record.value)
    if version < 0:
        raise InvalidRecord(f"the marker at offset {record.offset} has version {version}")
    return int(epoch)
