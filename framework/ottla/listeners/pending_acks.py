"""Acknowledgments that come in any order (Spring: asyncAcks).

What is committed for a partition is the offset of its oldest record that was delivered and not acknowledged; with none,
the offset behind the last one that was. A record that failed stays the oldest until it is handled or recovered.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from ottla.client import TopicPartition
from ottla.listeners.ack import AckMode, AckTracker
from ottla_wire.records import ConsumerRecord


class _Pending:
    """One partition: which offsets wait for their acknowledgment, and how far it has come."""

    def __init__(self, first: int) -> None:
        self.waiting: set[int] = set()
        self._heap: list[int] = []
        self._behind_last: tuple[int, int | None] = (first, None)
        self._reached = first

    def deliver(self, offset: int) -> None:
        if offset not in self.waiting:
            self.waiting.add(offset)
            heapq.heappush(self._heap, offset)

    def done(self, offset: int, leader_epoch: int | None) -> tuple[int, int | None] | None:
        """The place up to which all is done, if this has moved it."""
        self.waiting.discard(offset)
        if offset >= self._behind_last[0]:
            self._behind_last = (offset + 1, leader_epoch)
        while self._heap and self._heap[0] not in self.waiting:
            heapq.heappop(self._heap)
        place = (self._heap[0], None) if self._heap else self._behind_last
        if place[0] <= self._reached:
            return None
        self._reached = place[0]
        return place


class OutOfOrderAckTracker(AckTracker):
    """Commits only what is done without a gap.

    Args:
        mode: a manual one.
        limit: of records that wait for their acknowledgment; from then on the consumer takes no more.
    """

    is_out_of_order = True

    def __init__(self, mode: AckMode, *, limit: int) -> None:
        super().__init__(mode)
        self._limit = limit
        self._pending: dict[TopicPartition, _Pending] = {}
        self._waiting = 0

    @property
    def is_full(self) -> bool:
        """See AckTracker."""
        return self._waiting >= self._limit

    def delivered(self, records: Sequence[ConsumerRecord]) -> None:
        """See AckTracker."""
        with self._lock:
            for record in records:
                self._of(record).deliver(record.offset)
            self._count_waiting()

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """See AckTracker. Acknowledgments that come for them later are nobody's concern."""
        partitions = list(partitions)
        super().forget(partitions)
        with self._lock:
            for partition in partitions:
                self._pending.pop(partition, None)
            self._count_waiting()

    def acknowledge(self, record: ConsumerRecord) -> None:
        """See AckTracker: this record, whatever is before it."""
        with self._lock:
            if TopicPartition(record.topic, record.partition) in self._pending:
                self._advance(record)

    def _advance(self, record: ConsumerRecord) -> None:
        place = self._of(record).done(record.offset, record.leader_epoch)
        self._count_waiting()
        if place is not None:
            self._ready[TopicPartition(record.topic, record.partition)] = place

    def _of(self, record: ConsumerRecord) -> _Pending:
        partition = TopicPartition(record.topic, record.partition)
        pending = self._pending.get(partition)
        if pending is None:
            pending = self._pending[partition] = _Pending(record.offset)
        return pending

    def _count_waiting(self) -> None:
        self._waiting = sum(len(pending.waiting) for pending in self._pending.values())
