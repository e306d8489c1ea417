"""Control batches: markers, types, and what is malformed about them."""

from __future__ import annotations

from typing import Any

import pytest

from ottla_wire.errors import InvalidRecord
from ottla_wire.records import (
    ControlType,
    RecordBatch,
    RecordBatchBuilder,
    build_batch,
    control_batch,
    control_type,
    coordinator_epoch,
    end_transaction_marker,
)


def marker(**changes: Any) -> RecordBatch:
    fields: dict[str, Any] = {
        "commit": True,
        "producer_id": 7,
        "producer_epoch": 2,
        "coordinator_epoch": 5,
        "timestamp_ms": 100,
    }
    return RecordBatch(end_transaction_marker(**(fields | changes)))


def malformed(key: bytes | None, value: bytes | None = b"\0\0\0\0\0\5") -> RecordBatch:
    builder = RecordBatchBuilder(1000)
    builder.append(1, key, value, None)
    return RecordBatch(builder.build(control=True))


@pytest.mark.parametrize(("commit", "kind"), [(True, ControlType.COMMIT), (False, ControlType.ABORT)])
def test_a_marker_says_what_became_of_the_transaction_and_who_says_so(commit: bool, kind: ControlType) -> None:
    batch = marker(commit=commit, base_offset=9, leader_epoch=4)
    batch.verify()
    assert control_type(batch) is kind
    assert coordinator_epoch(batch) == 5
    assert (batch.is_control, batch.is_transactional, batch.count, batch.base_sequence) == (True, True, 1, -1)
    assert (batch.producer_id, batch.producer_epoch, batch.base_offset, batch.leader_epoch) == (7, 2, 9, 4)


def test_other_control_records_are_not_transactional() -> None:
    batch = RecordBatch(
        control_batch([(ControlType.SNAPSHOT_HEADER, b"a"), (ControlType.KRAFT_VERSION, b"b")], timestamp_ms=1)
    )
    assert (batch.is_control, batch.is_transactional, batch.count) == (True, False, 2)
    assert control_type(batch) is ControlType.SNAPSHOT_HEADER
    with pytest.raises(InvalidRecord, match="does not end a transaction"):
        coordinator_epoch(batch)


def test_a_type_from_the_future_is_none() -> None:
    assert control_type(malformed(b"\0\0\0\x63")) is None
    assert control_type(malformed(b"\0\5\0\1later")) is ControlType.COMMIT


@pytest.mark.parametrize("key", [None, b"", b"\0\0\0", b"\xff\xff\0\1"])
def test_a_malformed_key_is_refused(key: bytes | None) -> None:
    with pytest.raises(InvalidRecord):
        control_type(malformed(key))


@pytest.mark.parametrize("value", [None, b"", b"\0\0\0\0\0", b"\xff\xff\0\0\0\1"])
def test_a_malformed_marker_is_refused(value: bytes | None) -> None:
    with pytest.raises(InvalidRecord):
        coordinator_epoch(malformed(b"\0\0\0\1", value))


def test_an_emptied_control_batch_has_no_type() -> None:
    assert control_type(RecordBatch(RecordBatchBuilder(1000).build(control=True, last_offset_delta=0))) is None


def test_the_type_of_an_ordinary_batch_is_not_asked() -> None:
    with pytest.raises(ValueError, match="not a control batch"):
        control_type(RecordBatch(build_batch([(1, b"k", b"v", ())])))
