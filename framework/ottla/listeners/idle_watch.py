"""When a consumer, or a partition of it, counts as idle. A machine: it is told of polls, and has no clock.

The rules are Spring's. An idle event comes when no record has come for an interval, and again after each further one;
before the first record ever the interval is several times as long, since a group needs its time to begin. The first
record after an idle event gives one "no longer idle".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ottla.client import TopicPartition
from ottla_wire.records import ConsumerRecord


@dataclass(frozen=True, slots=True)
class IdleChange:
    """What one look has found: idle (again), or no longer; of a partition, or of the consumer as a whole."""

    partition: TopicPartition | None
    is_idle: bool
    idle_ms: int


class _Watched:
    """One thing that records come for, or do not."""

    __slots__ = ("has_data", "is_idle", "last_event_ms", "last_record_ms")

    def __init__(self, now_ms: int) -> None:
        self.last_record_ms = now_ms
        self.last_event_ms = now_ms
        self.has_data = False
        self.is_idle = False


class IdleWatch:
    """The idleness of one consumer and its partitions.

    Args:
        interval_ms: of the consumer; None: it is not watched.
        partition_interval_ms: of each partition; None: they are not watched.
        before_data: the first interval is so many times as long.
    """

    def __init__(
        self, interval_ms: int | None, partition_interval_ms: int | None, *, before_data: float, now_ms: int
    ) -> None:
        self._interval_ms = interval_ms
        self._partition_interval_ms = partition_interval_ms
        self._before_data = before_data
        self._consumer = _Watched(now_ms)
        self._partitions: dict[TopicPartition, _Watched] = {}

    def polled(
        self, records: Sequence[ConsumerRecord], assigned: Iterable[TopicPartition], now_ms: int
    ) -> list[IdleChange]:
        """A poll has brought these records, or none."""
        changes: list[IdleChange] = []
        if self._interval_ms is not None:
            changes += self._look(self._consumer, None, self._interval_ms, bool(records), now_ms)
        if self._partition_interval_ms is not None:
            here = set(assigned)
            self._partitions = {p: self._partitions.get(p) or _Watched(now_ms) for p in here}
            busy = {TopicPartition(*place) for place in {(record.topic, record.partition) for record in records}}
            for partition, watched in sorted(self._partitions.items()):
                changes += self._look(watched, partition, self._partition_interval_ms, partition in busy, now_ms)
        return changes

    def _look(
        self, watched: _Watched, partition: TopicPartition | None, interval_ms: int, has_records: bool, now_ms: int
    ) -> list[IdleChange]:
        idle_ms = now_ms - watched.last_record_ms
        if has_records:
            was_idle, watched.is_idle = watched.is_idle, False
            watched.last_record_ms = watched.last_event_ms = now_ms
            watched.has_data = True
            return [IdleChange(partition, False, idle_ms)] if was_idle else []
        if now_ms < watched.last_event_ms + self._wait_ms(watched, interval_ms):
            return []
        watched.is_idle, watched.last_event_ms = True, now_ms
        return [IdleChange(partition, True, idle_ms)]

    def _wait_ms(self, watched: _Watched, interval_ms: int) -> int:
        return interval_ms if watched.has_data else int(interval_ms * self._before_data)

    def deadline_ms(self) -> int:
        """When the next look may find something if no record comes."""
        deadlines = []
        if self._interval_ms is not None:
            deadlines.append(self._consumer.last_event_ms + self._wait_ms(self._consumer, self._interval_ms))
        interval_ms = self._partition_interval_ms
        if interval_ms is not None:
            deadlines += [one.last_event_ms + self._wait_ms(one, interval_ms) for one in self._partitions.values()]
        return min(deadlines, default=2**62)
