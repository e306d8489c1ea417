"""Idleness as events."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ottla.client import TopicPartition
from ottla.events import (
    EventSource,
    ListenerContainerIdleEvent,
    ListenerContainerNoLongerIdleEvent,
    ListenerContainerPartitionIdleEvent,
    ListenerContainerPartitionNoLongerIdleEvent,
)
from ottla.listeners.idle_watch import IdleWatch
from ottla.listeners.listener_loop import ListenerLoop, LoopControl
from ottla_wire.records import ConsumerRecord


class IdleEvents:
    """Publishes what an IdleWatch finds."""

    def __init__(self, watch: IdleWatch, source: EventSource, now_ms: Callable[[], int]) -> None:
        self._watch = watch
        self._source = source
        self._now_ms = now_ms

    def seconds_left(self) -> float:
        """How long a poll may take so that the next event is not late."""
        return max(0, self._watch.deadline_ms() - self._now_ms()) / 1000

    def polled(
        self,
        records: Sequence[ConsumerRecord],
        assigned: Sequence[TopicPartition],
        loop: ListenerLoop,
        control: LoopControl,
    ) -> None:
        """A poll is over."""
        for change in self._watch.polled(records, assigned, self._now_ms()):
            seconds, partition = change.idle_ms / 1000, change.partition
            if partition is None:
                self._consumer(change.is_idle, seconds, tuple(sorted(assigned)), loop.is_paused)
            else:
                self._partition(
                    change.is_idle, seconds, partition, loop.is_paused or partition in control.paused_partitions
                )

    def _consumer(self, is_idle: bool, seconds: float, partitions: tuple[TopicPartition, ...], paused: bool) -> None:
        if is_idle:
            self._source.say(ListenerContainerIdleEvent, idle_time=seconds, partitions=partitions, is_paused=paused)
        else:
            self._source.say(ListenerContainerNoLongerIdleEvent, idle_time=seconds, partitions=partitions)

    def _partition(self, is_idle: bool, seconds: float, partition: TopicPartition, paused: bool) -> None:
        if is_idle:
            kind = ListenerContainerPartitionIdleEvent
            self._source.say(kind, idle_time=seconds, partition=partition, is_paused=paused)
        else:
            self._source.say(ListenerContainerPartitionNoLongerIdleEvent, idle_time=seconds, partition=partition)
