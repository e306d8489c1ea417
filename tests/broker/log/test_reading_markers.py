"""A marker is read the same whether it has the bytes that everybody writes or others that say as much."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_batches import NOW

from ottla_broker.log.producer_state import EndMarker
from ottla_broker.log.validation import read_marker
from ottla_wire.errors import InvalidRecord
from ottla_wire.records import ControlType, RecordBatchBuilder, end_transaction_marker


def control(*records: tuple[bytes, bytes | None], headers: list[tuple[str, bytes]] | None = None) -> bytes:
    builder = RecordBatchBuilder(1 << 20)
    for key, value in records:
        builder.append(NOW, key, value, headers)
    return builder.build(producer_id=9, producer_epoch=0, transactional=True, control=True)


@given(st.booleans(), st.integers(-(2**31), 2**31 - 1))
def test_kind_and_epoch_come_back(commit: bool, epoch: int) -> None:
    marker = end_transaction_marker(
        commit=commit, producer_id=9, producer_epoch=0, coordinator_epoch=epoch, timestamp_ms=NOW
    )
    assert read_marker(marker) == EndMarker(is_abort=not commit, coordinator_epoch=epoch)


@given(
    st.integers(0, 3),
    st.integers(0, 7),
    st.integers(0, 3),
    st.integers(0, 100),
    st.binary(max_size=3),
    st.booleans(),
)
def test_newer_versions_and_more_content_are_understood_too(
    key_version: int, kind: int, version: int, epoch: int, more: bytes, has_header: bool
) -> None:
    headers = [("h", b"v")] if has_header else None
    written = control(
        (struct.pack(">hh", key_version, kind), struct.pack(">hi", version, epoch) + more), headers=headers
    )
    expected = None
    if kind in (ControlType.ABORT, ControlType.COMMIT):
        expected = EndMarker(is_abort=kind == ControlType.ABORT, coordinator_epoch=epoch)
    assert read_marker(written) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"\x00\x00\x00\x01", b"\x00\x00"),
        (b"\x00\x00\x00\x01", None),
        (b"\x00\x01", b"\x00\x00\x00\x00\x00\x00"),
        (b"\xff\xff\x00\x01", b"\x00\x00\x00\x00\x00\x00"),
        (b"\x00\x00\x00\x01", b"\xff\xff\x00\x00\x00\x00"),
    ],
)
def test_what_is_cut_off_or_of_a_negative_version_is_refused(key: bytes, value: bytes | None) -> None:
    with pytest.raises(InvalidRecord):
        read_marker(control((key, value)))


def test_other_content_of_the_same_length_is_not_taken_for_a_marker() -> None:
    marker = end_transaction_marker(commit=True, producer_id=9, producer_epoch=0, coordinator_epoch=0, timestamp_ms=0)
    longer_key = control((b"\x00\x00\x00\x01" + b"\x00" * 6, None))
    assert len(longer_key) == len(marker)
    with pytest.raises(InvalidRecord):
        read_marker(longer_key)
