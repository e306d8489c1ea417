"""The consumer itself, written once for both faces.

Three parties work on one consumer: the *polling side* (a thread or a task of the application), the *I/O loop*
(`ConsumerIo`: fetches ahead, looks positions up, keeps the membership alive), and between them `Shared`, under one
lock. The polling side decodes records, moves positions, runs listeners and callbacks, and is the only one that changes
subscription and assignment. Everything it waits for ends in `Face.notify`; it then looks at everything anew.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
import random
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from ottla.client.config import ConsumerConfig
from ottla.client.consumer.assignors import assignors_for
from ottla.client.consumer.collector import Collector
from ottla.client.consumer.consumer_io import ConsumerIo
from ottla.client.consumer.coordinator_client import commit_meets_rebalance
from ottla.client.consumer.faces import Face
from ottla.client.consumer.iteration import Iteration
from ottla.client.consumer.membership import Effect, Generation
from ottla.client.consumer.rebalance import Rebalancer
from ottla.client.consumer.reset_policy import EARLIEST_TIMESTAMP, LATEST_TIMESTAMP, ResetPolicy
from ottla.client.consumer.shared import CommitCallback, Shared
from ottla.client.consumer.subscription_state import SubscriptionKind
from ottla.client.engine import Engine, monotonic_ms
from ottla.client.metadata import PartitionMetadata
from ottla.client.topic_partition import (
    ConsumerGroupMetadata,
    OffsetAndMetadata,
    OffsetAndTimestamp,
    TopicPartition,
)
from ottla.errors import (
    ClientClosed,
    CommitFailed,
    ConcurrentUse,
    ConfigError,
    InvalidGroupId,
    KafkaError,
    NoAnswer,
    OttlaError,
    UnsupportedVersion,
    WakeupError,
)
from ottla_wire.records import ConsumerRecord

logger = logging.getLogger("ottla.client.consumer")

T = TypeVar("T")

CLOSE_SECONDS = 30.0
_numbers = itertools.count(1)

Offsets = Mapping[TopicPartition, OffsetAndMetadata]


class ConsumerCore:
    """What KafkaConsumer and AsyncKafkaConsumer are faces of."""

    def __init__(self, config: ConsumerConfig, engine: Engine | None, face: Face) -> None:
        if config.group_protocol != "classic":
            raise ConfigError("group_protocol='consumer' (KIP-848) is not supported yet; leave it at 'classic'")
        self.config = config
        self.client_id = config.client_id or f"ottla-consumer-{next(_numbers)}"
        self._rng = random.Random()
        self._shared = Shared(config, self._rng)
        self._assignors = assignors_for(config.partition_assignment_strategy)
        self._owns_engine = engine is None
        self._engine = engine or Engine(config, name=self.client_id)
        self._face = face
        self._shared.notify = face.notify
        self._collector = Collector(
            self._shared.lock,
            self._shared.subscription,
            self._shared.buffer,
            give_way=self._shared.receiving.give_way,
            deserialize_key=_deserializer(config.key_deserializer),
            deserialize_value=_deserializer(config.value_deserializer),
        )
        self._rebalancer = Rebalancer(self._shared, self, self._assignors)
        self._io: ConsumerIo | None = None
        self._auto_commits = config.group_id is not None and config.enable_auto_commit is not False
        self._auto_commit_at_ms = 0
        self._auto_commit: concurrent.futures.Future[None] | None = None
        self._wake_fetcher = True
        self._woken = False
        self._closed = False
        self._user: object = None
        self._depth = 0
        self._iteration = Iteration(self._shared)

    # --- subscription

    def subscribe(
        self, topics: Iterable[str] | str | re.Pattern[str] | None, pattern: str | re.Pattern[str] | None, listener: Any
    ) -> None:
        """Subscribe by name or pattern; takes effect with the next poll."""
        self._check_open()
        if isinstance(topics, re.Pattern):
            topics, pattern = None, topics
        if (topics is None) == (pattern is None):
            raise ValueError("subscribe to topics, or to a pattern: exactly one of them")
        if self.config.group_id is None:
            raise InvalidGroupId("subscribe() needs a group: set group_id, or assign() partitions by hand")
        if isinstance(topics, str):
            topics = [topics]
        names = None if topics is None else list(topics)
        if names is not None and not all(names):
            raise ValueError("a topic's name is empty")
        with self._shared.lock:
            subscription, membership = self._shared.subscription, self._shared.membership
            first = not subscription.is_group_managed
            if names is not None:
                changed = subscription.subscribe_topics(names)
            else:
                assert pattern is not None
                compiled = re.compile(pattern)
                changed = compiled != subscription.pattern
                subscription.subscribe_pattern(compiled)
            if changed and not first:
                membership.request_rejoin("the subscription changed")
            self._rebalancer.listener = listener
            self._shared.topic_errors.clear()
        self._wake_fetcher = True

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Read exactly these partitions, outside of any group."""
        self._check_open()
        wanted = [TopicPartition(*partition) for partition in partitions]
        with self._shared.lock:
            is_assigned = self._shared.subscription.kind is SubscriptionKind.ASSIGNED
        if is_assigned:
            self._auto_commit_now()
        with self._shared.lock:
            self._shared.subscription.assign_by_user(wanted)
            self._shared.buffer.drop_void(self._shared.subscription)
            self._shared.topic_errors.clear()
        self._wake_fetcher = True

    async def unsubscribe(self) -> None:
        """Leave the group, forget the assignment."""
        with self._using("unsubscribe"):
            await self._leave("the consumer unsubscribed", 5.0)
            with self._shared.lock:
                self._shared.subscription.unsubscribe()
                self._shared.buffer.drop_void(self._shared.subscription)
            self._rebalancer.listener = None
            self._wake_fetcher = True
            self._wake_io()

    def assignment(self) -> list[TopicPartition]:
        """The partitions that this consumer reads."""
        with self._shared.lock:
            return list(self._shared.subscription.partitions)

    def subscription(self) -> frozenset[str]:
        """The topics subscribed to, or matched by the pattern."""
        with self._shared.lock:
            return self._shared.subscription.topics if self._shared.subscription.is_group_managed else frozenset()

    def pause(self, partitions: Iterable[TopicPartition], *, paused: bool) -> None:
        """Stop or go on handing out records of these partitions."""
        self._check_open()
        with self._shared.lock:
            self._shared.subscription.pause(partitions, paused=paused)
        self._wake_fetcher = True
        if not paused:
            self._face.notify()

    def paused(self) -> list[TopicPartition]:
        """The partitions that are paused."""
        with self._shared.lock:
            return [state.partition for state in self._shared.subscription if state.paused]

    # --- positions

    def seek(self, partition: TopicPartition, offset: int | OffsetAndMetadata) -> None:
        """Go on reading at this offset."""
        self._check_open()
        place = offset if isinstance(offset, OffsetAndMetadata) else OffsetAndMetadata(offset)
        with self._shared.lock:
            self._shared.subscription.seek(TopicPartition(*partition), place.offset, place.leader_epoch)
        self._wake_fetcher = True

    def seek_to(self, partitions: Iterable[TopicPartition], policy: ResetPolicy) -> None:
        """Go on reading at an end of the log, which is looked up when the position is needed. No partitions: all."""
        self._check_open()
        with self._shared.lock:
            subscription = self._shared.subscription
            states = [subscription.require(TopicPartition(*partition)) for partition in partitions]
            for state in states or list(subscription):
                subscription.request_reset(state.partition, policy)
        self._wake_fetcher = True

    async def position(self, partition: TopicPartition, timeout: float | None) -> int:
        """The offset of the next record; waits until it is known."""
        partition = TopicPartition(*partition)
        with self._using("position"):
            deadline_ms = self._deadline_ms(timeout)
            while True:
                with self._shared.lock:
                    state = self._shared.subscription.require(partition)
                    position = state.position
                    error = self._shared.take_partition_error(partition)
                if position is not None:
                    return position.offset
                if error is not None:
                    raise error
                self._raise_if_woken()
                self._wake_io()
                await self._wait_until(deadline_ms, f"the position of {partition} is not known yet")

    def read_past(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """The positions that reading has led to; without those that were sought and not read from since."""
        with self._shared.lock:
            return self._shared.subscription.read_past()

    def current_lag(self, partition: TopicPartition) -> int | None:
        """How many offsets the position is behind what may be read; None until the first fetch."""
        with self._shared.lock:
            state = self._shared.subscription.require(TopicPartition(*partition))
            end = state.last_stable_offset if self.config.isolation_level == "read_committed" else state.high_watermark
            return None if end is None or end < 0 or state.position is None else max(0, end - state.offset)

    async def offsets_for_times(
        self, timestamps: Mapping[TopicPartition, int], timeout: float | None
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """For each partition the first record at or after a time."""
        wanted = {TopicPartition(*partition): timestamp for partition, timestamp in timestamps.items()}
        negative = [timestamp for timestamp in wanted.values() if timestamp < 0]
        if negative:
            raise ValueError(f"a timestamp is in milliseconds since 1970 and not negative, got {negative[0]}")
        with self._using("offsets_for_times"):
            return await self._offsets(wanted, timeout)

    async def end_offsets(
        self, partitions: Iterable[TopicPartition], timeout: float | None
    ) -> dict[TopicPartition, int]:
        """Where the partitions end, for this consumer's isolation level."""
        return await self._ends(partitions, LATEST_TIMESTAMP, timeout, "end_offsets")

    async def beginning_offsets(
        self, partitions: Iterable[TopicPartition], timeout: float | None
    ) -> dict[TopicPartition, int]:
        """Where the partitions begin."""
        return await self._ends(partitions, EARLIEST_TIMESTAMP, timeout, "beginning_offsets")

    async def _ends(
        self, partitions: Iterable[TopicPartition], timestamp: int, timeout: float | None, name: str
    ) -> dict[TopicPartition, int]:
        with self._using(name):
            wanted = {TopicPartition(*partition): timestamp for partition in partitions}
            found = await self._offsets(wanted, timeout)
            return {partition: place.offset for partition, place in found.items() if place is not None}

    async def _offsets(
        self, timestamps: Mapping[TopicPartition, int], timeout: float | None
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        deadline_ms = self._deadline_ms(timeout)
        return await self._on_io(lambda io: io.offsets_for(timestamps, deadline_ms), deadline_ms)

    async def partitions_for(self, topic: str, timeout: float | None) -> list[PartitionMetadata]:
        """What is known of a topic's partitions."""
        with self._using("partitions_for"):
            deadline_ms = self._deadline_ms(timeout)
            return await self._on_io(lambda io: io.partitions_for(topic, deadline_ms), deadline_ms)

    # --- commits

    async def commit(self, offsets: Offsets | None, timeout: float | None) -> None:
        """Commit, and wait until it is done. Earlier asynchronous commits are done then, too."""
        with self._using("commit"):
            deadline_ms = self._deadline_ms(timeout)
            wanted = self._to_commit(offsets)
            if wanted:
                generation = self._generation_to_commit()
                await self._on_io(lambda io: io.commit(wanted, generation, deadline_ms), deadline_ms)
            await self._run_commit_callbacks()

    def commit_async(self, offsets: Offsets | None, callback: CommitCallback | None) -> None:
        """Begin to commit; the callback runs in a later poll, with the error if there was one."""
        self._check_open()
        wanted = self._to_commit(offsets)
        generation = self._generation_to_commit()
        report = callback or _log_commit
        io = self._io_part()
        self._engine.submit(io.commit_and_report(wanted, generation, report))

    async def committed(
        self, partitions: Iterable[TopicPartition], timeout: float | None
    ) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """The group's committed offsets; None where there is none."""
        with self._using("committed"):
            wanted = [TopicPartition(*partition) for partition in partitions]
            deadline_ms = self._deadline_ms(timeout)
            return await self._on_io(lambda io: io.committed(wanted, deadline_ms), deadline_ms)

    def _to_commit(self, offsets: Offsets | None) -> dict[TopicPartition, OffsetAndMetadata]:
        if self.config.group_id is None:
            raise InvalidGroupId("this consumer has no group: set group_id to commit offsets")
        if offsets is None:
            with self._shared.lock:
                return self._shared.subscription.all_consumed()
        return {
            TopicPartition(*partition): place if isinstance(place, OffsetAndMetadata) else OffsetAndMetadata(place)
            for partition, place in offsets.items()
        }

    def _generation_to_commit(self) -> Generation:
        """Under which membership to commit: none for partitions that were assigned by hand.

        Raises:
            CommitFailed: there was a membership and it is lost.
            RebalanceInProgress: it is being renewed.
        """
        with self._shared.lock:
            if not self._shared.subscription.is_group_managed:
                return Generation()
            membership = self._shared.membership
            stable = membership.stable_generation
            if stable is not None:
                return stable
            rebalancing = membership.is_rebalancing
        raise commit_meets_rebalance() if rebalancing else CommitFailed.because_of(None)

    async def _run_commit_callbacks(self) -> None:
        outcomes = self._shared.commit_outcomes
        while outcomes:
            outcome = outcomes.popleft()
            await self._face.invoke(outcome.callback, outcome.offsets, outcome.error)

    # --- auto-commit: the positions as they are when poll begins, so everything committed has been handled

    def _auto_commit_if_due(self) -> None:
        if not self._auto_commits or self.now_ms() < self._auto_commit_at_ms:
            return
        self._auto_commit_at_ms = self.now_ms() + self.config.auto_commit_interval_ms
        self._auto_commit_now()

    def _auto_commit_now(self) -> None:
        if not self._auto_commits or (self._auto_commit is not None and not self._auto_commit.done()):
            return
        self._auto_commit = self.begin_commit_of_consumed()
        if self._auto_commit is not None:
            self._auto_commit.add_done_callback(_log_auto_commit)

    def begin_commit_of_consumed(self) -> concurrent.futures.Future[None] | None:
        """See rebalance.Host."""
        if not self._auto_commits:
            return None
        try:
            generation = self._generation_to_commit()
        except KafkaError:
            return None  # while the group rebalances there is nothing to commit under; the rebalance commits first
        with self._shared.lock:
            consumed = self._shared.subscription.all_consumed()
        if not consumed:
            return None
        deadline_ms = self.now_ms() + self.config.request_timeout_ms
        future = self._engine.submit(self._io_part().commit(consumed, generation, deadline_ms))
        future.add_done_callback(lambda _: self._face.notify())
        return future

    # --- poll

    async def poll(self, timeout: float, max_records: int | None) -> list[ConsumerRecord]:
        """The next records, up to `max_records`; waits at most `timeout` seconds for the first."""
        limit = self.config.max_poll_records if max_records is None else max_records
        if limit < 1:
            raise ValueError(f"max_records must be at least 1, got {limit}")
        with self._using("poll"):
            self._wake_fetcher |= self._iteration.give_back()
            if self._shared.subscription.kind is SubscriptionKind.NONE:
                raise ValueError("this consumer reads nothing: subscribe() to topics, or assign() partitions")
            deadline_ms = self.now_ms() + int(timeout * 1000)
            self._shared.last_poll_ms = None
            try:
                while True:
                    records = await self._poll_once(limit)
                    if records:
                        return records
                    left_ms = deadline_ms - self.now_ms()
                    if left_ms <= 0:
                        return records
                    await self._face.wait(left_ms / 1000)
            finally:
                self._shared.last_poll_ms = self.now_ms()

    async def poll_unread(self, timeout: float) -> list[ConsumerRecord]:
        """Records to hand out one by one: `take_unread` says for each whether it still may be."""
        records = await self.poll(timeout, None)
        self._iteration.begin(records)
        return records

    def take_unread(self, record: ConsumerRecord) -> bool:
        """Move the position past this record; False if the consumer was closed or moved elsewhere meanwhile."""
        return not self._closed and self._iteration.take(record)

    async def _poll_once(self, limit: int) -> list[ConsumerRecord]:
        self._raise_if_woken()
        if self._wake_fetcher:
            self._wake_io()
        if self._shared.commit_outcomes:
            await self._run_commit_callbacks()
        if self._shared.subscription.is_group_managed:
            await self._see_topics_of_pattern()
            await self._rebalancer.step()
        self._auto_commit_if_due()
        self._raise_errors()
        records = self._collector.collect(limit)
        if self._collector.wants_fetch:
            self._wake_io()
        return records

    async def _see_topics_of_pattern(self) -> None:
        subscription = self._shared.subscription
        if subscription.pattern is None or subscription.topics or self._shared.membership.generation.is_member:
            return
        try:
            await self._on_io(lambda io: io.refresh_for_pattern(), self._deadline_ms(None))
        except NoAnswer as error:
            logger.warning("the topics that match the pattern are not known yet: %s", error)

    def _raise_errors(self) -> None:
        if not self._shared.partition_errors and not self._shared.topic_errors:
            return
        with self._shared.lock:
            errors = self._shared.topic_errors
            error = errors.pop(next(iter(errors))) if errors else self._shared.take_partition_error()
        self._wake_fetcher = True
        if error is not None:
            raise error

    def _wake_io(self) -> None:
        self._wake_fetcher = False
        self._collector.wants_fetch = False
        self._engine.post(self._io_part().wake)

    # --- rebalance.Host

    async def invoke(self, function: Callable[..., Any], *arguments: Any) -> None:
        """See rebalance.Host."""
        await self._face.invoke(function, *arguments)

    def execute(self, effects: list[Effect]) -> None:
        """See rebalance.Host."""
        self._engine.post(self._io_part().execute, effects)

    def assignment_changed(self) -> None:
        """See rebalance.Host."""
        self._auto_commit_at_ms = self.now_ms() + self.config.auto_commit_interval_ms
        self._wake_io()

    def now_ms(self) -> int:
        """The monotonic clock, the same as the I/O loop's."""
        return monotonic_ms()

    # --- the group

    def group_metadata(self) -> ConsumerGroupMetadata:
        """The membership under which records were read, for `send_offsets_to_transaction`.

        Also if it has been lost meanwhile: without any, coordinators would take the offsets as those of somebody who
        is in no group, and let a replaced member commit.
        """
        if self.config.group_id is None:
            raise InvalidGroupId("this consumer has no group: set group_id")
        with self._shared.lock:
            is_managed = self._shared.subscription.is_group_managed
            generation = self._shared.membership.last_generation if is_managed else Generation()
        return ConsumerGroupMetadata(
            self.config.group_id, generation.id, generation.member_id, self.config.group_instance_id
        )

    def enforce_rebalance(self, reason: str | None) -> None:
        """Have the group rebalance with the next poll."""
        self._check_open()
        if not self._shared.subscription.is_group_managed:
            raise ValueError("partitions were assigned by hand, there is no group to rebalance")
        with self._shared.lock:
            self._shared.membership.request_rejoin(reason or "the application asked for it")
        self._face.notify()

    def wakeup(self) -> None:
        """End the wait that is under way, or the next one, with WakeupError. From any thread."""
        self._woken = True
        self._face.notify()

    # --- the end

    async def close(self, timeout: float) -> None:
        """Commit (with auto-commit), tell the listener, leave the group, close connections; within `timeout`."""
        if self._closed:
            return
        with self._using("close"):
            self._woken = False
            deadline_ms = self.now_ms() + int(timeout * 1000)
            errors: list[Exception] = []
            try:
                await self._say_goodbye(deadline_ms, errors)
            finally:
                self._closed = True
                if self._io is not None and not self._engine.is_closed:
                    left = max(0.1, (deadline_ms - self.now_ms()) / 1000)
                    closing = self._engine.submit(self._io.close(min(left, 5.0)))
                    await self._until_done(closing, deadline_ms + 1000)
                if self._owns_engine:
                    self._engine.close(max(1.0, (deadline_ms - self.now_ms()) / 1000))
            if errors:
                raise errors[0]

    async def _say_goodbye(self, deadline_ms: int, errors: list[Exception]) -> None:
        if self._io is None:
            return
        commit = self.begin_commit_of_consumed()
        if commit is not None:
            await self._until_done(commit, deadline_ms)
            if commit.done() and not commit.cancelled() and commit.exception() is not None:
                logger.warning("offsets were not committed while closing: %s", commit.exception())
        try:
            await self._leave("the consumer is being closed", (deadline_ms - self.now_ms()) / 1000)
            await self._run_commit_callbacks()
        except Exception as error:  # noqa: BLE001 - a listener's failure must not keep anything open; raised at the end
            errors.append(error)

    async def _leave(self, reason: str, timeout: float) -> None:
        async def execute(effects: list[Effect]) -> None:
            if self._io is None:
                return
            timeout_ms = max(1, int(timeout * 1000))
            future = self._engine.submit(self._io.leave(effects, timeout_ms))
            await self._until_done(future, self.now_ms() + timeout_ms)

        await self._rebalancer.leave(reason, execute)

    # --- waiting

    async def _on_io(self, make: Callable[[ConsumerIo], Coroutine[Any, Any, T]], deadline_ms: int) -> T:
        """Run a coroutine on the I/O loop and wait for it; `wakeup` ends the wait."""
        future = self._engine.submit(make(self._io_part()))
        future.add_done_callback(lambda _: self._face.notify())
        try:
            while not future.done():
                self._raise_if_woken()
                await self._wait_until(deadline_ms + 500, "the brokers did not answer in time")
        except BaseException:
            future.cancel()
            raise
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ClientClosed("the client was closed during the call") from None

    async def _until_done(self, future: concurrent.futures.Future[Any], deadline_ms: int) -> None:
        """Wait for a future without regard to `wakeup`; what is not done by then is cancelled."""
        future.add_done_callback(lambda _: self._face.notify())
        try:
            while not future.done():
                left_ms = deadline_ms - self.now_ms()
                if left_ms <= 0:
                    return
                await self._face.wait(left_ms / 1000)
        finally:
            future.cancel()

    async def _wait_until(self, deadline_ms: int, otherwise: str) -> None:
        left_ms = deadline_ms - self.now_ms()
        if left_ms <= 0:
            raise NoAnswer(otherwise)
        await self._face.wait(left_ms / 1000)

    def _deadline_ms(self, timeout: float | None) -> int:
        timeout_ms = self.config.default_api_timeout_ms if timeout is None else int(timeout * 1000)
        return self.now_ms() + timeout_ms

    def _raise_if_woken(self) -> None:
        if self._woken:
            self._woken = False
            raise WakeupError("wakeup() was called; nothing was done, the call may be repeated")

    def _io_part(self) -> ConsumerIo:
        if self._io is None:
            self._io = ConsumerIo(self._shared, self._engine.cluster, self._assignors, self.client_id, self._rng)
        return self._io

    @property
    def is_closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosed("the consumer is closed")

    @contextmanager
    def _using(self, name: str) -> Iterator[None]:
        """One user at a time; listeners and callbacks inside a call may call again."""
        self._check_open()
        self._face.check(name)
        user = self._face.user()
        if self._depth and self._user != user:
            raise ConcurrentUse(
                f"{name}() while another thread or task uses this consumer; only wakeup() may be called from elsewhere"
            )
        self._user = user
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1


def _deserializer(given: Any) -> Callable[[str, Any, bytes], Any] | None:
    """A callable `(topic, headers, data)`, or an object with such a `deserialize` method."""
    if given is None:
        return None
    method = getattr(given, "deserialize", given)
    if not callable(method):
        raise ConfigError(f"a deserializer is a callable (topic, headers, data) -> value, got {given!r}")
    found: Callable[[str, Any, bytes], Any] = method
    return found


def _log_commit(offsets: Offsets, error: BaseException | None) -> None:
    if error is not None:
        logger.warning("offsets were not committed: %s", error)


def _log_auto_commit(future: concurrent.futures.Future[None]) -> None:
    if not future.cancelled() and isinstance(future.exception(), OttlaError | UnsupportedVersion):
        logger.warning("the automatic commit failed: %s", future.exception())
