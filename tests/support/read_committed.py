"""What a read-committed client delivers of a fetch: the filter of every client, written down once more and plainly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ottla_wire.records import ControlType, RecordBatch, control_type, iter_batches


class Delivered(NamedTuple):
    """A record that reaches the application."""

    offset: int
    value: bytes | None


def delivered(records: Any, aborted: Iterable[tuple[int, int]], from_offset: int = 0) -> list[Delivered]:
    """The records of fetched batches, without those of the aborted transactions (producer id, first offset) given.

    An abort marker that ends none of these is no error: a transaction without records in this partition has one.
    """
    begins = sorted(((first, producer_id) for producer_id, first in aborted), reverse=True)
    skipped: set[int] = set()
    found: list[Delivered] = []
    for batch in iter_batches(records):
        while begins and begins[-1][0] <= batch.last_offset:
            skipped.add(begins.pop()[1])
        if batch.is_control:
            if control_type(batch) is ControlType.ABORT:
                skipped.discard(batch.producer_id)
        elif not (batch.is_transactional and batch.producer_id in skipped):
            found += [Delivered(r.offset, r.value) for r in batch.records() if r.offset >= from_offset]
    return found


def committed(batches: Iterable[RecordBatch]) -> list[Delivered]:
    """What a whole log delivers to who knows all of it, without any index: the truth to compare with."""
    pending: dict[int, list[Delivered]] = {}
    found: list[Delivered] = []
    for batch in batches:
        if batch.is_control:
            records = pending.pop(batch.producer_id, [])
            if control_type(batch) is ControlType.COMMIT:
                found += records
        else:
            records = [Delivered(record.offset, record.value) for record in batch.records()]
            if batch.is_transactional:
                pending.setdefault(batch.producer_id, []).extend(records)
            else:
                found += records
    return sorted(found)
