"""Builders of what brokers send, and a broker of our own for the tests that need a whole one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from ottla_wire.records import RecordBatchBuilder
from ottla_wire.records.control import end_transaction_marker


def data_batch(
    base_offset: int,
    values: Sequence[bytes | None],
    *,
    producer_id: int = -1,
    transactional: bool = False,
    leader_epoch: int = 0,
) -> bytes:
    builder = RecordBatchBuilder(1 << 20)
    for number, value in enumerate(values):
        builder.append(1_000 + number, b"k%d" % (base_offset + number), value, None)
    return builder.build(
        base_offset=base_offset,
        producer_id=producer_id,
        producer_epoch=0 if producer_id >= 0 else -1,
        base_sequence=0 if producer_id >= 0 else -1,
        transactional=transactional,
        leader_epoch=leader_epoch,
    )


def marker(offset: int, producer_id: int, *, commit: bool, leader_epoch: int = 0) -> bytes:
    return end_transaction_marker(
        commit=commit,
        producer_id=producer_id,
        producer_epoch=0,
        coordinator_epoch=0,
        timestamp_ms=2_000,
        base_offset=offset,
        leader_epoch=leader_epoch,
    )


@pytest.fixture(scope="session")
def log() -> SimpleNamespace:
    """`log.batch(...)` and `log.marker(...)`: the pieces that a partition's log is made of."""
    batch: Callable[..., bytes] = data_batch
    return SimpleNamespace(batch=batch, marker=marker)
