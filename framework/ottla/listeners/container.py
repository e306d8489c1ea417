"""Containers: consumers that run a listener (Spring: ConcurrentMessageListenerContainer and its children)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from ottla.client import AsyncKafkaConsumer, KafkaConsumer, TopicPartition
from ottla.consumer_factory import ConsumerFactory
from ottla.error_handling import ErrorHandler
from ottla.error_handling.error_handler import StopContainer
from ottla.errors import ConfigError, Fatal
from ottla.listeners.ack import AckMode, AckTracker
from ottla.listeners.binding import bind
from ottla.listeners.drivers import Driver, TaskDriver, ThreadDriver
from ottla.listeners.listener_loop import ListenerLoop, LoopControl
from ottla_wire.records import ConsumerRecord

logger = logging.getLogger("ottla.listener")

RESTART_DELAY_SECONDS = 1.0

AnyDriver = TypeVar("AnyDriver", bound=Driver)


class ContainerState(Enum):
    """What a container is doing."""

    STOPPED = "stopped"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"
    """Stopped by an error that a restart cannot mend; `reason` has it."""


@dataclass(frozen=True, slots=True)
class ContainerProperties:
    """How a container treats its listener (Spring: ContainerProperties). Times in seconds."""

    group: str | None = None
    pattern: str | None = None
    partitions: Mapping[str, Any] | None = None
    ack: AckMode = AckMode.BATCH
    ack_count: int = 1
    ack_time: float = 5.0
    batch: bool | None = None
    filter: Callable[[ConsumerRecord], bool] | None = None
    on_error: ErrorHandler = field(default_factory=ErrorHandler)
    poll_timeout: float = 1.0
    sync_commits: bool = False
    """Wait for each commit before the next records. Off: the commit is under way while they are handled; what has not
    been confirmed is committed again, and waited for, before a partition or the consumer is given up."""
    shutdown_timeout: float = 10.0
    consumer: Mapping[str, Any] = field(default_factory=dict)
    """Client settings that win over the factory's."""


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
        namespace: Mapping[str, Any] | None = None,
    ) -> None:
        self.properties = properties or ContainerProperties()
        self.id: str = id if id else getattr(listener, "__name__", "listener")
        self.topics = tuple(topics)
        self.consumer_factory = consumer_factory
        self.listener = bind(
            listener,
            batch=self.properties.batch,
            namespace=namespace,
            key_deserializer=consumer_factory.key_deserializer,
            value_deserializer=consumer_factory.value_deserializer,
        )
        if self.listener.is_batch and self.properties.ack is AckMode.RECORD:
            raise ConfigError(f"{self.id}: AckMode.RECORD needs a listener that takes one record; use AckMode.BATCH")
        if self.listener.is_async and loop is None:
            raise ConfigError(f"{self.id}: an async listener needs the event loop it is to run on (loop=)")
        self._loop = loop
        self._lock = threading.Lock()
        self._paused = False
        self._children: list[_ConsumerRunner] = []
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
            children = [_ConsumerRunner(self, index, share) for index, share in enumerate(self._shares)]
            for child in children:
                child.prepare()
            self._children = children
            for child in children:
                child.control.paused = self._paused
                child.start()

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
    def processed(self) -> int:
        """How many records are done with since `start`."""
        return sum(child.acks.total for child in self._children)

    def __repr__(self) -> str:
        return f"<ConcurrentMessageListenerContainer {self.id} {self.state.value}>"


class _ConsumerRunner:
    """One consumer of a container: its client, its loop, and the thread or task that drives them."""

    def __init__(
        self, container: ConcurrentMessageListenerContainer, index: int, share: dict[TopicPartition, Any]
    ) -> None:
        self.container = container
        self.name = f"{container.id}-{index}"
        self.control = LoopControl()
        self.state = ContainerState.STOPPED
        self.failure: BaseException | None = None
        self._share = share
        self._index = index
        self._consumer: KafkaConsumer | AsyncKafkaConsumer | None = None
        self._ended = threading.Event()
        self._future: concurrent.futures.Future[None] | None = None
        self._new_loop()

    def _new_loop(self) -> None:
        properties = self.container.properties
        self.acks = AckTracker(
            properties.ack, ack_count=properties.ack_count, ack_time_ms=int(properties.ack_time * 1000)
        )
        self.loop = ListenerLoop(
            is_batch=self.container.listener.is_batch,
            acks=self.acks,
            errors=properties.on_error,
            control=self.control,
            now_ms=_monotonic_ms,
            record_filter=properties.filter,
            poll_timeout=properties.poll_timeout,
            sync_commits=properties.sync_commits,
        )

    # -- lifecycle -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the client, so that wrong settings show in `start`."""
        overrides = dict(self.container.properties.consumer)
        if self.container.properties.group is not None:
            overrides["group_id"] = self.container.properties.group
        factory = self.container.consumer_factory
        if self.container.listener.is_async:
            self._consumer = factory.async_consumer(overrides, suffix=str(self._index))
        else:
            self._consumer = factory.consumer(overrides, suffix=str(self._index))

    def start(self) -> None:
        """Start the thread or task."""
        self.state = ContainerState.RUNNING
        if self.container.listener.is_async:
            assert self.container._loop is not None
            self._future = asyncio.run_coroutine_threadsafe(self._run_task(), self.container._loop())
        else:
            threading.Thread(target=self._run_thread, name=f"ottla-{self.name}", daemon=True).start()

    def request_stop(self, drain: bool) -> None:
        """Ask the loop to end."""
        if self.state is ContainerState.RUNNING:
            self.state = ContainerState.STOPPING
        self.control.stop_immediately = not drain
        self.control.stopping = True
        self.wakeup()

    def wait(self, timeout: float) -> bool:
        """Whether the consumer has ended, waiting at most `timeout` seconds."""
        return self.state in (ContainerState.STOPPED, ContainerState.FAILED) or self._ended.wait(timeout)

    def wakeup(self) -> None:
        """Let a poll that is under way return."""
        consumer = self._consumer
        if consumer is not None:
            consumer.wakeup()

    def _run_thread(self) -> None:
        try:
            while True:
                error = self._run_once()
                if not self._goes_on_after(error):
                    return
                self._ended.wait(RESTART_DELAY_SECONDS)
                if self.control.stopping:
                    return
                self._new_loop()
                self.prepare()
        finally:
            self._end()

    def _driver(self, kind: type[AnyDriver]) -> AnyDriver:
        recover = self.container.properties.on_error.recover
        return kind(self.loop, self.control, self.container.listener, self.acks, recover, self.wakeup)

    def _run_once(self) -> BaseException | None:
        consumer = self._consumer
        assert isinstance(consumer, KafkaConsumer)
        driver = self._driver(ThreadDriver)
        try:
            with consumer:
                self._subscribe(consumer, _SyncRebalance(driver, consumer))
                driver.run(consumer)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported and decided on below
            return error
        return None

    async def _run_task(self) -> None:
        try:
            while True:
                error = await self._run_once_async()
                if not self._goes_on_after(error):
                    return
                await asyncio.sleep(RESTART_DELAY_SECONDS)
                if self.control.stopping:
                    return
                self._new_loop()
                self.prepare()
        finally:
            self._end()

    async def _run_once_async(self) -> BaseException | None:
        consumer = self._consumer
        assert isinstance(consumer, AsyncKafkaConsumer)
        driver = self._driver(TaskDriver)
        try:
            async with consumer:
                self._subscribe(consumer, _AsyncRebalance(driver, consumer))
                await driver.run(consumer)
        except Exception as error:  # noqa: BLE001 - see above
            return error
        return None

    def _goes_on_after(self, error: BaseException | None) -> bool:
        """Whether the consumer is to be made anew: yes after errors that a new one may not meet."""
        if error is None:
            return False
        if isinstance(error, (Fatal, ConfigError, StopContainer)):
            self.failure = error
            logger.error("%s: the consumer stops: %s", self.name, error, exc_info=error)
            return False
        if self.control.stopping:
            logger.warning("%s: while stopping: %s", self.name, error, exc_info=error)
            return False
        logger.error("%s: the consumer failed and is made anew: %s", self.name, error, exc_info=error)
        return True

    def _end(self) -> None:
        self._consumer = None
        self.state = ContainerState.FAILED if self.failure is not None else ContainerState.STOPPED
        self._ended.set()

    def _subscribe(self, consumer: Any, rebalance: Any) -> None:
        properties = self.container.properties
        if self._share:
            consumer.assign(list(self._share))
            for partition, start in self._share.items():
                _seek_to_start(consumer, partition, start)
        elif properties.pattern is not None:
            consumer.subscribe(pattern=properties.pattern, listener=rebalance)
        else:
            consumer.subscribe(list(self.container.topics), listener=rebalance)

    # -- asked from other threads --------------------------------------------------------------------------------------

    def set_paused(self, partitions: Iterable[TopicPartition], paused: bool) -> None:
        """Pause or resume partitions, now if they are assigned here and whenever they come back."""
        partitions = list(partitions)
        if paused:
            self.control.paused_partitions.update(partitions)
        else:
            self.control.paused_partitions.difference_update(partitions)

        def apply(consumer: Any) -> None:
            here = [p for p in partitions if p in set(consumer.assignment()) and not self.loop.is_held(p)]
            (consumer.pause if paused else consumer.resume)(here)

        self.control.requests.append(apply)
        self.wakeup()

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Seek before the next poll."""

        def apply(consumer: Any) -> None:
            if partition not in set(consumer.assignment()):
                return
            self.loop.seeking(partition)
            consumer.seek(partition, offset)

        self.control.requests.append(apply)
        self.wakeup()

    def assignment(self) -> list[TopicPartition]:
        """The partitions of this consumer."""
        consumer = self._consumer
        return list(consumer.assignment()) if consumer is not None else []


class _SyncRebalance:
    """The client's rebalance listener, handed on to the driver."""

    def __init__(self, driver: ThreadDriver, consumer: KafkaConsumer) -> None:
        self._driver, self._consumer = driver, consumer

    def on_partitions_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self._driver.on_partitions_assigned(self._consumer, partitions)

    def on_partitions_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._driver.on_partitions_revoked(self._consumer, partitions)

    def on_partitions_lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._driver.loop.lost(partitions)


class _AsyncRebalance:
    """The same for the async client."""

    def __init__(self, driver: TaskDriver, consumer: AsyncKafkaConsumer) -> None:
        self._driver, self._consumer = driver, consumer

    async def on_partitions_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        await self._driver.on_partitions_assigned(self._consumer, partitions)

    async def on_partitions_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        await self._driver.on_partitions_revoked(self._consumer, partitions)

    async def on_partitions_lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._driver.loop.lost(partitions)


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


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


def _seek_to_start(consumer: Any, partition: TopicPartition, start: Any) -> None:
    if start == "earliest":
        consumer.seek_to_beginning([partition])
    elif start == "latest":
        consumer.seek_to_end([partition])
    elif start is not None:
        consumer.seek(partition, start)
