"""One consumer of a container: its client, its loop, and the thread or task that drives them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from ottla.client import AsyncKafkaConsumer, KafkaConsumer, TopicPartition
from ottla.client.consumer.faces import run_blocking
from ottla.error_handling.error_handler import StopContainer
from ottla.errors import ConfigError, Fatal, FencedInstanceId, ProducerFenced
from ottla.events import (
    ConsumerFailedEvent,
    ConsumerPartitionPausedEvent,
    ConsumerPartitionResumedEvent,
    ConsumerStartedEvent,
    ConsumerStartingEvent,
    ConsumerStoppedEvent,
    ConsumerStoppingEvent,
    EventSource,
    StopReason,
)
from ottla.listeners.ack import AckTracker
from ottla.listeners.binding import BoundListener
from ottla.listeners.container_properties import ContainerProperties, ContainerState
from ottla.listeners.driver import Driver, settled
from ottla.listeners.group_positions import AssignmentCommit, GroupPositions
from ottla.listeners.idle_events import IdleEvents
from ottla.listeners.idle_watch import IdleWatch
from ottla.listeners.invocation import Invocation
from ottla.listeners.listener_loop import ListenerLoop, LoopControl
from ottla.listeners.pending_acks import OutOfOrderAckTracker
from ottla.listeners.transactional_work import TransactionalWork
from ottla.listeners.unit_of_work import AcknowledgedWork, UnitOfWork

logger = logging.getLogger("ottla.listener")

RESTART_DELAY_SECONDS = 1.0
COMMITS_APART_MS = 10
"""A fast listener polls every two or three milliseconds; a commit for each poll would take a tenth of its CPU."""

AnyConsumer = KafkaConsumer | AsyncKafkaConsumer

_ENDS_FOR_GOOD = (Fatal, ConfigError, StopContainer)


class ConsumerRunner:
    """Runs a loop with a consumer until it is told to stop, or fails for good; after other failures with a new one.

    `_run` is written once, as a coroutine: for an async listener a task on the event loop; for a plain one a thread
    runs it in one step, since nothing that it awaits there suspends (see `driver.py`).

    Args:
        name: of the thread, and in logs.
        properties: the container's.
        listener: what is called.
        invocation: how it is called.
        topics: what to subscribe to, unless the properties have a pattern, or there is a share.
        share: explicit partitions and where to start in each.
        make_consumer: gives a new consumer, with the face that the listener needs.
        event_loop: gives the loop for an async listener.
        source: the consumer as events name it.
        on_failure: called when the consumer is about to end for good because of an error: before it leaves its group.
        on_end: called when the consumer has ended for good.
        commits_start: whether the start of a partition without committed offset is committed.
    """

    def __init__(
        self,
        name: str,
        properties: ContainerProperties,
        listener: BoundListener,
        invocation: Invocation,
        topics: Sequence[str],
        share: Mapping[TopicPartition, Any],
        make_consumer: Callable[[], AnyConsumer],
        event_loop: Callable[[], asyncio.AbstractEventLoop] | None,
        *,
        source: EventSource,
        on_failure: Callable[[ConsumerRunner], None],
        on_end: Callable[[], None],
        commits_start: bool = False,
    ) -> None:
        self.name = name
        self.control = LoopControl()
        self.state = ContainerState.STOPPED
        self.failure: BaseException | None = None
        self._properties = properties
        self._listener = listener
        self._invocation = invocation
        self._topics = topics
        self._share = share
        self._make_consumer = make_consumer
        self._event_loop = event_loop
        self._source = source
        self._on_failure = on_failure
        self._on_end = on_end
        self._commits_start = commits_start
        self._consumer: AnyConsumer | None = None
        self._stop_asked = threading.Event()
        self._ended = threading.Event()
        self._future: concurrent.futures.Future[None] | None = None
        self._new_loop()

    def _new_loop(self) -> None:
        properties = self._properties
        if properties.async_acks:
            self.acks: AckTracker = OutOfOrderAckTracker(properties.ack, limit=properties.max_pending_acks)
        else:
            self.acks = AckTracker(
                properties.ack, ack_count=properties.ack_count, ack_time_ms=int(properties.ack_time * 1000)
            )
        self.loop = ListenerLoop(
            is_batch=self._listener.is_batch,
            work=self._new_work(),
            errors=properties.on_error,
            control=self.control,
            now_ms=_monotonic_ms,
            record_filter=properties.filter,
            poll_timeout=properties.poll_timeout,
            sub_batches=properties.sub_batch_per_partition,
        )

    def _new_work(self) -> UnitOfWork:
        properties = self._properties
        positions = GroupPositions(commits_start=self._commits_start) if properties.group is not None else None
        if properties.transactional is None:
            return AcknowledgedWork(
                self.acks,
                _monotonic_ms,
                positions=positions,
                sync_commits=properties.sync_commits,
                commits_apart_ms=COMMITS_APART_MS,
            )
        in_transaction = properties.assignment_commit is not AssignmentCommit.LATEST_ONLY_NO_TX
        return TransactionalWork(
            properties.transactional,
            self.acks,
            _monotonic_ms,
            positions=positions,
            starts_in_transaction=in_transaction,
        )

    # -- lifecycle -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the client, so that wrong settings show in the container's `start`."""
        self._consumer = self._make_consumer()

    def start(self) -> None:
        """Start the thread or task."""
        self.state = ContainerState.RUNNING
        if self._listener.is_async:
            assert self._event_loop is not None
            self._future = asyncio.run_coroutine_threadsafe(self._run(), self._event_loop())
        else:
            run = lambda: run_blocking(self._run())  # noqa: E731
            threading.Thread(target=run, name=f"ottla-{self.name}", daemon=True).start()

    def request_stop(self, drain: bool) -> None:
        """Ask the loop to end."""
        if self.state is ContainerState.RUNNING:
            self.state = ContainerState.STOPPING
        self.control.stop_immediately = not drain
        self.control.stopping = True
        self._stop_asked.set()
        self.wakeup()

    def wait(self, timeout: float) -> bool:
        """Whether the consumer has ended, waiting at most `timeout` seconds."""
        return self.state in (ContainerState.STOPPED, ContainerState.FAILED) or self._ended.wait(timeout)

    def wakeup(self) -> None:
        """Let a poll that is under way return."""
        consumer = self._consumer
        if consumer is not None:
            consumer.wakeup()

    async def _run(self) -> None:
        self._source.say(ConsumerStartingEvent)
        try:
            while self._goes_on_after(await self._run_once()):
                await self._pause_before_restart()
                if self.control.stopping:
                    return
                self._new_loop()
        finally:
            self.state = ContainerState.FAILED if self.failure is not None else ContainerState.STOPPED
            self._source.say(ConsumerStoppedEvent, reason=self.stop_reason, error=self.failure)
            self._on_end()
            self._ended.set()

    @property
    def stop_reason(self) -> StopReason:
        """Why it has stopped, if it has."""
        if self.failure is None:
            return StopReason.NORMAL
        if isinstance(self.failure, StopContainer):
            return StopReason.ABNORMAL
        if isinstance(self.failure, (ProducerFenced, FencedInstanceId)):
            return StopReason.FENCED
        return StopReason.ERROR

    async def _run_once(self) -> BaseException | None:
        """Run one consumer to its end; gives the error that ended it, if one did."""
        try:
            consumer = self._consumer = self._consumer or self._make_consumer()
            recover = self._properties.on_error.recover
            driver = Driver(
                self.loop,
                self.control,
                self._listener,
                self.acks,
                recover,
                consumer,
                self._invocation,
                self._source,
                self._new_idle_events(),
            )
            try:
                self._subscribe(consumer, _Rebalances(driver))
                self._source.say(ConsumerStartedEvent)
                await driver.run()
            except _ENDS_FOR_GOOD:
                self._on_failure(self)
                raise
            finally:
                self._source.say(ConsumerStoppingEvent)
                await settled(consumer.close())
                self._consumer = None
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported and decided on below
            return error
        return None

    def _new_idle_events(self) -> IdleEvents | None:
        properties = self._properties
        interval, of_partitions = properties.idle_event_interval, properties.idle_partition_event_interval
        if interval is None and of_partitions is None:
            return None
        watch = IdleWatch(
            None if interval is None else int(interval * 1000),
            None if of_partitions is None else int(of_partitions * 1000),
            before_data=properties.idle_before_data_multiplier,
            now_ms=_monotonic_ms(),
        )
        return IdleEvents(watch, self._source, _monotonic_ms)

    async def _pause_before_restart(self) -> None:
        if self._listener.is_async:
            await asyncio.sleep(RESTART_DELAY_SECONDS)
        else:
            self._stop_asked.wait(RESTART_DELAY_SECONDS)

    def _goes_on_after(self, error: BaseException | None) -> bool:
        """Whether the consumer is to be made anew: yes after errors that a new one may not meet."""
        if error is None:
            return False
        if isinstance(error, _ENDS_FOR_GOOD):
            self.failure = error
            self._on_failure(self)
            logger.error("%s: the consumer stops: %s", self.name, error, exc_info=error)
            return False
        if self.control.stopping:
            logger.warning("%s: while stopping: %s", self.name, error, exc_info=error)
            return False
        logger.error("%s: the consumer failed and is made anew: %s", self.name, error, exc_info=error)
        self._source.say(ConsumerFailedEvent, error=error)
        return True

    def _subscribe(self, consumer: AnyConsumer, rebalances: _Rebalances) -> None:
        if self._share:
            consumer.assign(list(self._share))
            for partition, start in self._share.items():
                _seek_to_start(consumer, partition, start)
        elif self._properties.pattern is not None:
            consumer.subscribe(pattern=self._properties.pattern, listener=rebalances)
        else:
            consumer.subscribe(self._topics, listener=rebalances)

    # -- asked from other threads --------------------------------------------------------------------------------------

    def set_paused(self, partitions: Iterable[TopicPartition], paused: bool) -> None:
        """Pause or resume partitions, now if they are assigned here and whenever they come back."""
        partitions = list(partitions)
        if paused:
            self.control.paused_partitions.update(partitions)
        else:
            self.control.paused_partitions.difference_update(partitions)

        def apply(consumer: AnyConsumer) -> None:
            here = [p for p in partitions if p in set(consumer.assignment()) and not self.loop.is_held(p)]
            if paused or not self.loop.pauses_all:  # else the end of that pause resumes them
                (consumer.pause if paused else consumer.resume)(here)
            for partition in here:
                kind = ConsumerPartitionPausedEvent if paused else ConsumerPartitionResumedEvent
                self._source.say(kind, partition=partition)

        self.control.requests.append(apply)
        self.wakeup()

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Seek before the next poll."""

        def apply(consumer: AnyConsumer) -> None:
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

    def lag(self) -> dict[TopicPartition, int]:
        """How far the consumer's positions are behind the ends, where those are known."""
        consumer = self._consumer
        if consumer is None:
            return {}
        found = {}
        for partition in consumer.assignment():
            with contextlib.suppress(ValueError):  # taken away in the meantime
                lag = consumer.current_lag(partition)
                if lag is not None:
                    found[partition] = lag
        return found


class _Rebalances:
    """The client's rebalance listener, handed on to the driver: as plain calls, or as coroutines, as the face wants."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._as_wanted: Callable[[Coroutine[Any, Any, None]], Any] = (
            _unchanged if driver.listener.is_async else run_blocking
        )

    def on_partitions_assigned(self, partitions: Sequence[TopicPartition]) -> Any:
        return self._as_wanted(self._driver.assigned(partitions))

    def on_partitions_revoked(self, partitions: Sequence[TopicPartition]) -> Any:
        return self._as_wanted(self._driver.revoked(partitions))

    def on_partitions_lost(self, partitions: Sequence[TopicPartition]) -> Any:
        return self._as_wanted(self._driver.lost(partitions))


def _unchanged(coroutine: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
    return coroutine


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _seek_to_start(consumer: AnyConsumer, partition: TopicPartition, start: Any) -> None:
    if start == "earliest":
        consumer.seek_to_beginning([partition])
    elif start == "latest":
        consumer.seek_to_end([partition])
    elif start is not None:
        consumer.seek(partition, start)
