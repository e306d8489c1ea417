"""Containers: consumers that run a listener (Spring: ConcurrentMessageListenerContainer and its children)."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ottla.client import AsyncKafkaConsumer, KafkaConsumer, TopicPartition
from ottla.consumer_factory import ConsumerFactory, snake_case
from ottla.errors import ConfigError
from ottla.events import ConcurrentContainerStoppedEvent, EventSource, ListenerEvent, StopReason
from ottla.listeners.ack import AckMode
from ottla.listeners.class_listener import bind_any
from ottla.listeners.consumer_runner import ConsumerRunner
from ottla.listeners.container_properties import ContainerProperties, ContainerState, check_async_acks
from ottla.listeners.group_positions import AssignmentCommit
from ottla.listeners.invocation import Invocation
from ottla.listeners.replies import Replies
from ottla.listeners.transactional import check_ack_mode

__all__ = ["ConcurrentMessageListenerContainer", "ContainerProperties", "ContainerState"]


class ConcurrentMessageListenerContainer:
    """Runs a listener on `concurrency` consumers of one group: what `@listener` builds, and can be built by hand.

    A plain function runs on a thread per consumer; an `async def` one in tasks on `loop`. The order of a partition is
    kept in both.

    Args:
        consumer_factory: makes the consumers.
        topics: names; empty if `properties` has a pattern or explicit partitions.
        listener: the function; its parameters are bound by their type hints.
        concurrency: how many consumers; with explicit partitions at most as many as there are partitions.
        properties: everything else.
        id: the container's name, in logs and thread names.
        loop: gives the event loop for an async listener; it must be running.
        publish: told of the container's events; an application's is `app.events.publish`.
        namespace: names that the listener's hints use beyond its module's.
    """

    def __init__(
        self,
        consumer_factory: ConsumerFactory,
        topics: Sequence[str],
        listener: Callable[..., Any],
        *,
        concurrency: int = 1,
        properties: ContainerProperties | None = None,
        id: str | None = None,
        loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
        publish: Callable[[ListenerEvent], None] | None = None,
        namespace: Mapping[str, Any] | None = None,
    ) -> None:
        self.properties = properties or ContainerProperties()
        self.id: str = id if id else getattr(listener, "__name__", "listener")
        self.topics = tuple(topics)
        self.consumer_factory = consumer_factory
        self.listener = bind_any(
            listener,
            batch=self.properties.batch,
            namespace=namespace,
            key_deserializer=consumer_factory.key_deserializer,
            value_deserializer=consumer_factory.value_deserializer,
        )
        if self.listener.is_batch and self.properties.ack is AckMode.RECORD:
            raise ConfigError(f"{self.id}: AckMode.RECORD needs a listener that takes one record; use AckMode.BATCH")
        if self.properties.async_acks:
            check_async_acks(self.id, self.properties, takes_acknowledgment=self.listener.takes_acknowledgment)
        if self.properties.transactional is not None:
            _check_transactional(self.id, self.properties)
        if self.listener.is_async and loop is None:
            raise ConfigError(f"{self.id}: an async listener needs the event loop it is to run on (loop=)")
        self._invocation = self._new_invocation(listener)
        self._loop = loop
        self._publish = publish
        self._lock = threading.Lock()
        self._end_lock = threading.Lock()
        self._running_children = 0
        self._paused = False
        self._children: list[ConsumerRunner] = []
        self._shares = _shares(self.properties.partitions, concurrency)

    # -- lifecycle -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the consumers; a container that runs already is left alone.

        Raises:
            ConfigError: the client settings are wrong; nothing is left running.
        """
        with self._lock:
            if self.state is ContainerState.RUNNING:
                return
            children = [self._new_child(index, share) for index, share in enumerate(self._shares)]
            for child in children:
                child.prepare()
            self._children = children
            self._running_children = len(children)
            for child in children:
                child.control.paused = self._paused
                child.start()

    def _new_child(self, index: int, share: dict[TopicPartition, Any]) -> ConsumerRunner:
        return ConsumerRunner(
            f"{self.id}-{index}",
            self.properties,
            self.listener,
            self._invocation,
            self.topics,
            share,
            lambda: self._new_consumer(str(index)),
            self._loop,
            source=EventSource(self._publish, self, f"{self.id}-{index}"),
            on_failure=self._child_fails,
            on_end=self._child_ended,
            commits_start=self._commits_start(),
        )

    def _child_fails(self, failing: ConsumerRunner) -> None:
        """A consumer ends for good: the container stops, so that none of the others takes over where it has failed."""
        for child in self._children:
            if child is not failing and not child.control.stopping:
                child.request_stop(drain=True)

    def _child_ended(self) -> None:
        children = self._children
        with self._end_lock:
            self._running_children -= 1
            is_last = self._running_children == 0
        if is_last and self._publish is not None:
            reasons = [child.stop_reason for child in children if child.stop_reason is not StopReason.NORMAL]
            reason = reasons[0] if reasons else StopReason.NORMAL
            self._publish(ConcurrentContainerStoppedEvent(container=self, container_id=self.id, reason=reason))

    def _new_invocation(self, listener: Callable[..., Any]) -> Invocation:
        if inspect.isasyncgenfunction(listener):
            raise ConfigError(f"{self.id}: an async generator is no listener; return a list of replies in its place")
        reply_to, template = self.properties.reply_to, self.properties.reply_template
        if reply_to is None or reply_to is False:
            if inspect.isgeneratorfunction(listener):
                raise ConfigError(f"{self.id}: a generator gives replies, and there is no reply_to= to send them to")
            return Invocation(self.listener, self.properties.interceptors)
        if template is None:
            raise ConfigError(f"{self.id}: reply_to= needs a template to send with (reply_template=)")
        return Invocation(self.listener, self.properties.interceptors, Replies(template, reply_to))

    def _commits_start(self) -> bool:
        wanted = self.properties.assignment_commit
        if wanted in (AssignmentCommit.ALWAYS, AssignmentCommit.NEVER):
            return wanted is AssignmentCommit.ALWAYS
        settings = {**self.consumer_factory.settings(), **snake_case(self.properties.consumer)}
        return bool(settings.get("auto_offset_reset") == "latest")

    def _new_consumer(self, suffix: str) -> KafkaConsumer | AsyncKafkaConsumer:
        overrides = dict(self.properties.consumer)
        if self.properties.group is not None:
            overrides["group_id"] = self.properties.group
        factory = self.consumer_factory
        if self.listener.is_async:
            return factory.async_consumer(overrides, suffix=suffix)
        return factory.consumer(overrides, suffix=suffix)

    def stop(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Stop: no new polls; with `drain` the records of the current poll are handled; what is done is committed.

        Raises:
            TimeoutError: a handler did not return in time. Its consumer is left to end by itself.
        """
        self.request_stop(drain=drain)
        limit = self.properties.shutdown_timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        late = [child.name for child in self._children if not child.wait(max(0.0, deadline - time.monotonic()))]
        if late:
            raise TimeoutError(f"{', '.join(late)}: a handler has not returned after {limit:g} s")

    async def stop_async(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """`stop`, awaited."""
        self.request_stop(drain=drain)
        await asyncio.to_thread(self.stop, drain=drain, timeout=timeout)

    def request_stop(self, *, drain: bool = True) -> None:
        """Ask the consumers to stop, and do not wait."""
        for child in self._children:
            child.request_stop(drain)

    @property
    def state(self) -> ContainerState:
        """What the container is doing; RUNNING while at least one of its consumers is."""
        states = {child.state for child in self._children}
        for state in (ContainerState.RUNNING, ContainerState.STOPPING, ContainerState.FAILED):
            if state in states:
                return state
        return ContainerState.STOPPED

    @property
    def reason(self) -> BaseException | None:
        """The error that stopped a consumer for good, if one did."""
        return next((child.failure for child in self._children if child.failure is not None), None)

    # -- pause, seek, look ---------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Hand no more records to the listener after those of the current poll; the consumers stay in their group."""
        self._paused = True
        for child in self._children:
            child.control.paused = True
            child.wakeup()

    def resume(self) -> None:
        """Undo `pause`."""
        self._paused = False
        for child in self._children:
            child.control.paused = False
            child.wakeup()

    @property
    def is_pause_requested(self) -> bool:
        """Whether `pause` was called last."""
        return self._paused

    @property
    def is_paused(self) -> bool:
        """Whether the pause has taken effect in every consumer."""
        return bool(self._children) and all(child.loop.is_paused for child in self._children)

    def pause_partitions(self, partitions: Iterable[TopicPartition]) -> None:
        """Hand out no more records of these partitions; survives a rebalance."""
        self._each_partition(partitions, paused=True)

    def resume_partitions(self, partitions: Iterable[TopicPartition]) -> None:
        """Undo `pause_partitions`."""
        self._each_partition(partitions, paused=False)

    def _each_partition(self, partitions: Iterable[TopicPartition], *, paused: bool) -> None:
        partitions = list(partitions)
        for child in self._children:
            child.set_paused(partitions, paused)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go on from `offset` at the next poll; for a partition assigned here, else it is dropped with a warning."""
        for child in self._children:
            child.seek(partition, offset)

    @property
    def assigned_partitions(self) -> list[TopicPartition]:
        """The partitions of all consumers."""
        return sorted(partition for child in self._children for partition in child.assignment())

    def assignments(self) -> list[list[TopicPartition]]:
        """The partitions of each consumer."""
        return [child.assignment() for child in self._children]

    @property
    def lag(self) -> dict[TopicPartition, int]:
        """How many offsets the consumers' positions are behind the end of what they may read, by assigned partition.

        Records that the listener has in hand, those of one poll, are before the position. The end is that of the last
        fetch; before a partition's first it is not known, and the partition is left out.
        """
        return {partition: lag for child in self._children for partition, lag in child.lag().items()}

    @property
    def processed(self) -> int:
        """How many records are done with since `start`."""
        return sum(child.acks.total for child in self._children)

    def __repr__(self) -> str:
        return f"<ConcurrentMessageListenerContainer {self.id} {self.state.value}>"


def _shares(partitions: Mapping[str, Any] | None, concurrency: int) -> list[dict[TopicPartition, Any]]:
    """Explicit partitions in contiguous runs, one for each consumer; without them as many empty shares as consumers."""
    if partitions is None:
        return [{} for _ in range(concurrency)]
    wanted: dict[TopicPartition, Any] = {}
    for topic, chosen in partitions.items():
        starts = chosen if isinstance(chosen, Mapping) else dict.fromkeys(chosen)
        for partition, start in starts.items():
            if start is not None and not isinstance(start, int) and start not in ("earliest", "latest"):
                raise ConfigError(f"{topic}-{partition}: start at an offset, 'earliest' or 'latest', not {start!r}")
            wanted[TopicPartition(topic, partition)] = start
    if not wanted:
        raise ConfigError("partitions= names no partition")
    items = list(wanted.items())
    count = min(concurrency, len(items))
    bounds = [len(items) * index // count for index in range(count + 1)]
    return [dict(items[low:high]) for low, high in itertools.pairwise(bounds)]


def _check_transactional(name: str, properties: ContainerProperties) -> None:
    assert properties.transactional is not None
    check_ack_mode(name, properties.ack)
    if properties.group is None:
        raise ConfigError(f"{name}: a transactional listener needs a group, whose offsets its transactions commit")
    if properties.transactional.manager is None:
        raise ConfigError(
            f"{name}: whose transactions? Transactional(manager=KafkaTransactionManager(producer_factory))"
        )
