"""When a container commits, and the object by which a listener says so itself.

Theory of operation. The container calls `processed` for each record that is done with (handled, filtered, recovered).
In the modes that the container rules itself those offsets become committable at once; in the manual modes only what the
listener acknowledged does, cumulatively per partition: acknowledging offset 5 also covers 3 (Spring's rule; without it:
`pending_acks.py`). `take` hands out what is to be committed next and forgets it; a commit that failed and may
be tried again is put back with `restore`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from enum import Enum

from ottla.client import OffsetAndMetadata, TopicPartition
from ottla_wire.records import ConsumerRecord

Offsets = dict[TopicPartition, OffsetAndMetadata]


class AckMode(Enum):
    """When the container commits offsets (Spring: ContainerProperties.AckMode)."""

    RECORD = "record"
    """After each record."""
    BATCH = "batch"
    """After all records of a poll have been processed."""
    TIME = "time"
    """After a poll's records, when `ack_time` has passed since the last commit."""
    COUNT = "count"
    """After a poll's records, when `ack_count` records have been processed since the last commit."""
    COUNT_TIME = "count_time"
    """When either of the two says so."""
    MANUAL = "manual"
    """What the listener has acknowledged, at the end of the poll's records."""
    MANUAL_IMMEDIATE = "manual_immediate"
    """What the listener has acknowledged, at once."""

    @property
    def is_manual(self) -> bool:
        """Whether the listener acknowledges, not the container."""
        return self in (AckMode.MANUAL, AckMode.MANUAL_IMMEDIATE)


class AckTracker:
    """The offsets of one consumer that are ready to be committed. Safe to call from any thread."""

    is_out_of_order = False
    """Whether acknowledging a record says nothing of those before it."""

    def __init__(self, mode: AckMode, *, ack_count: int = 1, ack_time_ms: int = 5_000) -> None:
        self.mode = mode
        self._is_manual = mode.is_manual
        self._ack_count = ack_count
        self._ack_time_ms = ack_time_ms
        self._lock = threading.Lock()
        self._ready: dict[TopicPartition, tuple[int, int | None]] = {}
        self._since_commit = 0
        self._last_commit_ms = 0
        self.total = 0
        """Records done with since the consumer started."""

    def processed(self, records: Sequence[ConsumerRecord]) -> None:
        """These records are done with; in the container's own modes their offsets may be committed."""
        with self._lock:
            self._count(len(records))
            if not self._is_manual:
                for record in last_of_each(records):
                    self._advance(record)

    def processed_to(self, last: Sequence[ConsumerRecord], count: int) -> None:
        """`processed` for `count` records of which the last of each partition are known."""
        with self._lock:
            self._count(count)
            if not self._is_manual:
                for record in last:
                    self._advance(record)

    def done(self, records: int) -> None:
        """So many records are done with, and their offsets are committed by other means."""
        with self._lock:
            self._count(records)

    @property
    def is_full(self) -> bool:
        """Whether so many acknowledgments are missing that no more records are to be delivered."""
        return False

    def delivered(self, records: Sequence[ConsumerRecord]) -> None:
        """The listener is about to get these records, and will acknowledge them."""

    def acknowledge(self, record: ConsumerRecord) -> None:
        """The listener has acknowledged this record and all before it in its partition."""
        with self._lock:
            self._advance(record)

    def skipped(self, record: ConsumerRecord) -> None:
        """This record was recovered or filtered: no listener will ever acknowledge it, so the container does."""
        with self._lock:
            self._count(1)
            self._advance(record)

    def _count(self, records: int) -> None:
        self._since_commit += records
        self.total += records

    def _advance(self, record: ConsumerRecord) -> None:
        partition = TopicPartition(record.topic, record.partition)
        known = self._ready.get(partition)
        if known is None or known[0] <= record.offset:
            self._ready[partition] = (record.offset + 1, record.leader_epoch)

    def is_due(self, now_ms: int) -> bool:
        """Whether what is ready should be committed at the end of this poll's records."""
        if not self._ready:
            return False
        count = self._since_commit >= self._ack_count
        time = now_ms - self._last_commit_ms >= self._ack_time_ms
        if self.mode is AckMode.COUNT:
            return count
        if self.mode is AckMode.TIME:
            return time
        if self.mode is AckMode.COUNT_TIME:
            return count or time
        return True

    def take(self, now_ms: int, partitions: Iterable[TopicPartition] | None = None) -> Offsets:
        """What is ready to be committed, of these partitions only if given. The caller commits it or restores it."""
        with self._lock:
            wanted = list(self._ready) if partitions is None else [p for p in partitions if p in self._ready]
            taken = {p: OffsetAndMetadata(*self._ready.pop(p)) for p in wanted}
            if taken:
                self._since_commit = 0
                self._last_commit_ms = now_ms
            return taken

    def restore(self, offsets: Offsets) -> None:
        """A commit failed in a way that allows to try it again: keep what newer acknowledgments have not passed."""
        with self._lock:
            for partition, offset in offsets.items():
                known = self._ready.get(partition)
                if known is None or known[0] < offset.offset:
                    self._ready[partition] = (offset.offset, offset.leader_epoch)

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """These partitions belong to somebody else now."""
        with self._lock:
            for partition in partitions:
                self._ready.pop(partition, None)


def last_of_each(records: Sequence[ConsumerRecord]) -> list[ConsumerRecord]:
    """The last record of each partition, which says it for all: they come in order, and mostly in runs of one."""
    last: dict[tuple[str, int], ConsumerRecord] = {}
    topic = partition = None
    for record in reversed(records):
        if record.partition != partition or record.topic != topic:
            topic, partition = record.topic, record.partition
            last.setdefault((topic, partition), record)
    return list(last.values())


class Acknowledgment:
    """Given to a listener that asks for it, one for each delivery (Spring: Acknowledgment)."""

    __slots__ = ("_acknowledged", "_on_acknowledge", "_records", "_tracker", "nacked")

    def __init__(
        self, tracker: AckTracker, records: Sequence[ConsumerRecord], on_acknowledge: Callable[[], None]
    ) -> None:
        self._tracker = tracker
        self._records = records
        self._on_acknowledge = on_acknowledge
        self._acknowledged = -1
        self.nacked: tuple[int, float] | None = None

    def acknowledge(self, index: int | None = None) -> None:
        """The record, or the whole batch, is done with; with `index` the batch up to and including that record.

        Raises:
            RuntimeError: the container's mode is not a manual one, or `index` is not above an earlier one.
        """
        if not self._tracker.mode.is_manual:
            raise RuntimeError(f"acknowledge() needs ack=AckMode.MANUAL or MANUAL_IMMEDIATE, not {self._tracker.mode}")
        last = len(self._records) - 1 if index is None else index
        if index is not None and not self._acknowledged < index < len(self._records):
            raise RuntimeError(
                f"acknowledge({index}): the batch has {len(self._records)} records, and indexes must rise"
            )
        for record in self._records[self._acknowledged + 1 : last + 1]:
            self._tracker.acknowledge(record)
        self._acknowledged = max(self._acknowledged, last)
        self._on_acknowledge()

    def nack(self, index: int | None = None, *, delay: float = 0.0) -> None:
        """Redeliver this record (of a batch: from `index` on) and what follows, after `delay` seconds.

        Call it on the listener's own thread or task, as the last thing it does.

        Raises:
            RuntimeError: the container's mode is not a manual one, or acknowledgments come in any order.
        """
        if self._tracker.is_out_of_order:
            raise RuntimeError(
                "nack() does not go together with async_acks: raise an error, it is delivered again then"
            )
        if not self._tracker.mode.is_manual:
            raise RuntimeError(f"nack() needs ack=AckMode.MANUAL or MANUAL_IMMEDIATE, not {self._tracker.mode}")
        at = index or 0
        for record in self._records[self._acknowledged + 1 : at]:
            self._tracker.acknowledge(record)
        self.nacked = (at, delay)
