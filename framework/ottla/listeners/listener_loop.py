"""The life of one consumer in a container: poll, deliver, acknowledge, retry, recover.

Theory of operation. `run` is a generator. It yields *effects* (poll the client, call the listener, commit, ...), and is
sent each one's outcome; so the same logic serves listeners on a thread and listeners on an event loop, and tests drive
it with no thread, clock or client. The two drivers are in `drivers.py`.

A failed record is *held* together with what follows it in its partition: the partition is paused at the client, the
others go on, and polling goes on too, so the consumer stays in its group however long the back-off is. When its time
has come the held records are delivered from memory; when none is left the partition is resumed. Nothing is fetched
twice, and the order of a partition is kept. A partition that is revoked takes its held records with it.

Offsets are committed while the next records are handled: one commit is under way at a time, and what is processed
meanwhile goes into the next one. What has not been confirmed is committed again, and waited for, before a partition or
the consumer is given up; so nothing is promised less than by waiting each time, and a round trip per poll is saved.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ottla.client import TopicPartition
from ottla.error_handling import BatchListenerFailed, ErrorHandler
from ottla.error_handling.error_handler import StopContainer
from ottla.listeners.ack import AckMode, AckTracker, Offsets
from ottla_wire.records import ConsumerRecord

logger = logging.getLogger("ottla.listener")

COMMIT_CHECK_SECONDS = 0.02


class Effect:
    """Something the driver does for the loop; its outcome is sent back."""


@dataclass(frozen=True, slots=True)
class Poll(Effect):
    """Ask the client for records, waiting at most so many seconds. Outcome: the records."""

    timeout: float


@dataclass(frozen=True, slots=True)
class Deliver(Effect):
    """Call the listener with one record after the other, up to the first failure. Outcome: a Delivered."""

    records: Sequence[ConsumerRecord]


@dataclass(frozen=True, slots=True)
class DeliverBatch(Effect):
    """Call the listener once with all records. Outcome: a Delivered."""

    records: Sequence[ConsumerRecord]


@dataclass(frozen=True, slots=True)
class Recover(Effect):
    """Call the error handler's recoverer. Outcome: None, or the error it raised."""

    record: ConsumerRecord
    error: BaseException


@dataclass(frozen=True, slots=True)
class Commit(Effect):
    """Commit these offsets and wait for it. Outcome: None, or the error that may be tried again."""

    offsets: Offsets


@dataclass(frozen=True, slots=True)
class CommitSoon(Effect):
    """Begin to commit these offsets and go on; `ListenerLoop.committed` is told the outcome inside a later poll."""

    offsets: Offsets


@dataclass(frozen=True, slots=True)
class Pause(Effect):
    """Stop the client from handing out records of these partitions."""

    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class Resume(Effect):
    """Let the client hand out records of these partitions again."""

    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class PauseAll(Effect):
    """Stop the client from handing out records at all."""


@dataclass(frozen=True, slots=True)
class ResumeAll(Effect):
    """Let the client hand out records again, except of these partitions."""

    still_paused: frozenset[TopicPartition]


@dataclass(frozen=True, slots=True)
class Request(Effect):
    """Call something with the client, for another thread that asked."""

    call: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Delivered:
    """How far a delivery came: `count` records are done; then `error`, or a nack, if either is set."""

    count: int
    error: BaseException | None = None
    nack_delay: float | None = None
    stopped: bool = False


@dataclass(slots=True)
class Held:
    """Records of one partition that wait for their next delivery, the failed one first."""

    records: deque[ConsumerRecord]
    due_ms: int
    failures: int = 0
    error: BaseException | None = None


@dataclass(slots=True)
class LoopControl:
    """What other threads ask of the loop; read between two effects."""

    stopping: bool = False
    stop_immediately: bool = False
    paused: bool = False
    paused_partitions: set[TopicPartition] = field(default_factory=set)
    requests: deque[Callable[[Any], Any]] = field(default_factory=deque)
    """Calls to be made with the client, on its own thread or task: seeks, partition pauses."""


class ListenerLoop:
    """One consumer's loop over a listener."""

    def __init__(
        self,
        *,
        is_batch: bool,
        acks: AckTracker,
        errors: ErrorHandler,
        control: LoopControl,
        now_ms: Callable[[], int],
        record_filter: Callable[[ConsumerRecord], bool] | None = None,
        poll_timeout: float = 1.0,
        sync_commits: bool = False,
    ) -> None:
        self._is_batch = is_batch
        self._acks = acks
        self._errors = errors
        self._control = control
        self._now_ms = now_ms
        self._filter = record_filter
        self._poll_timeout = poll_timeout
        self._waits_for_commits = sync_commits or acks.mode in (AckMode.RECORD, AckMode.MANUAL_IMMEDIATE)
        self._unconfirmed: Offsets = {}
        self._commit_error: BaseException | None = None
        self._held: dict[TopicPartition, Held] = {}
        self._released: list[TopicPartition] = []
        self._is_paused = False

    # -- what the client tells us from inside a poll ------------------------------------------------------------------

    def revoked(self, partitions: Iterable[TopicPartition]) -> Offsets:
        """The partitions go to somebody else: forget what is held, and give what can still be committed for them."""
        partitions = list(partitions)
        for partition in partitions:
            self._held.pop(partition, None)
        unconfirmed = {p: self._unconfirmed.pop(p) for p in partitions if p in self._unconfirmed}
        return {**unconfirmed, **self._acks.take(self._now_ms(), partitions)}

    def lost(self, partitions: Iterable[TopicPartition]) -> None:
        """The partitions are gone already: nothing may be committed for them."""
        partitions = list(partitions)
        for partition in partitions:
            self._held.pop(partition, None)
            self._unconfirmed.pop(partition, None)
        self._acks.forget(partitions)

    def committed(self, error: BaseException | None) -> None:
        """The commit that was under way is done, or failed with an error that allows to try again."""
        offsets, self._unconfirmed = self._unconfirmed, {}
        if error is not None:
            logger.info("a commit is tried again later: %s", error)
            self._acks.restore(offsets)

    def commit_failed(self, error: BaseException) -> None:
        """The commit that was under way failed for good: the loop ends with the error."""
        self._unconfirmed = {}
        self._commit_error = error

    def is_held(self, partition: TopicPartition) -> bool:
        """Whether the loop itself wants this partition paused."""
        return partition in self._held

    def seeking(self, partition: TopicPartition) -> None:
        """The partition goes on from elsewhere: what is held or ready to be committed of it no longer counts."""
        if self._held.pop(partition, None) is not None:
            self._released.append(partition)
        self._unconfirmed.pop(partition, None)
        self._acks.forget([partition])

    def to_pause(self, assigned: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Which of the partitions that were just assigned must not hand out records yet."""
        if self._control.paused:
            return list(assigned)
        return [partition for partition in assigned if partition in self._control.paused_partitions]

    @property
    def is_paused(self) -> bool:
        """Whether a requested pause has taken effect."""
        return self._is_paused

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self) -> Generator[Effect, Any, None]:
        """Yield effects until told to stop. What has been processed is committed before the end."""
        while not self._control.stopping:
            yield from self._apply_control()
            if not self._is_paused:
                yield from self._retry_due()
            records = yield Poll(self._timeout())
            if records:
                yield from self._process(records)
            yield from self._commit_if_due()
        offsets = {**self._unconfirmed, **self._acks.take(self._now_ms())}
        if offsets:
            yield Commit(offsets)

    def _apply_control(self) -> Generator[Effect, Any, None]:
        while self._control.requests:
            yield Request(self._control.requests.popleft())
        if self._released:
            released = tuple(p for p in self._released if p not in self._control.paused_partitions)
            self._released.clear()
            yield Resume(released)
        if self._control.paused and not self._is_paused:
            yield PauseAll()
            self._is_paused = True
        elif self._is_paused and not self._control.paused:
            yield ResumeAll(frozenset(self._held) | frozenset(self._control.paused_partitions))
            self._is_paused = False

    def _timeout(self) -> float:
        timeout = self._poll_timeout
        if self._unconfirmed and self._acks.is_due(self._now_ms()):
            timeout = min(timeout, COMMIT_CHECK_SECONDS)
        if not self._held or self._is_paused:
            return timeout
        due = min(held.due_ms for held in self._held.values())
        return min(timeout, max(0, due - self._now_ms()) / 1000)

    def _process(self, records: Sequence[ConsumerRecord]) -> Generator[Effect, Any, None]:
        wanted = self._without_filtered(records) if self._filter is not None else records
        if self._is_batch:
            yield from self._deliver_batch(list(wanted))
        else:
            yield from self._deliver_records(wanted)

    def _without_filtered(self, records: Sequence[ConsumerRecord]) -> list[ConsumerRecord]:
        assert self._filter is not None
        wanted = []
        for record in records:
            if self._filter(record):
                self._acks.skipped(record)
            else:
                wanted.append(record)
        return wanted

    def _deliver_records(self, records: Sequence[ConsumerRecord]) -> Generator[Effect, Any, None]:
        """Deliver in order; where a record fails, what follows in its partition is held and the rest goes on."""
        while records:
            run = records[:1] if self._acks.mode is AckMode.RECORD else records
            outcome: Delivered = yield Deliver(run)
            self._acks.processed(run[: outcome.count])
            if self._acks.mode in (AckMode.RECORD, AckMode.MANUAL_IMMEDIATE):
                yield from self._commit_if_due()
            records = records[outcome.count :]
            if outcome.stopped or not records:
                return
            if outcome.error is not None or outcome.nack_delay is not None:
                records = yield from self._failed(records, outcome, Held(deque(), self._now_ms()))

    def _failed(
        self, records: Sequence[ConsumerRecord], outcome: Delivered, state: Held
    ) -> Generator[Effect, Any, Sequence[ConsumerRecord]]:
        """The first of `records` failed. Gives what may be delivered now: without its partition, if that is held."""
        record = records[0]
        if outcome.error is None:
            delay: float | None = outcome.nack_delay
        else:
            delay = self._count_failure(state, record, outcome.error)
            if delay is None:
                recovered = yield from self._recovered(record, outcome.error)
                if recovered:
                    return records[1:]
                delay = self._errors.retry.next_delay(1, outcome.error) or 0.0
                state.failures = 0
        partition = TopicPartition(record.topic, record.partition)
        same = [r for r in records if r.partition == record.partition and r.topic == record.topic]
        state.records = deque(same)
        state.due_ms = self._now_ms() + int((delay or 0.0) * 1000)
        self._held[partition] = state
        yield Pause((partition,))
        return [r for r in records if r.partition != record.partition or r.topic != record.topic]

    def _count_failure(self, state: Held, record: ConsumerRecord, error: BaseException) -> float | None:
        """Seconds until the next delivery, or None if there is to be none."""
        if self._errors.reset_on_change and state.error is not None and type(error) is not type(state.error):
            state.failures = 0
        state.failures += 1
        state.error = error
        delay = self._errors.next_delay(state.failures, error)
        if delay is not None:
            logger.warning(
                "%s-%s@%s: delivery %s failed, the next one is in %.3g s: %r",
                record.topic,
                record.partition,
                record.offset,
                state.failures,
                delay,
                error,
            )
            if self._errors.on_retry is not None:
                self._errors.on_retry(record, error, state.failures)
        return delay

    def _recovered(self, record: ConsumerRecord, error: BaseException) -> Generator[Effect, Any, bool]:
        failure = yield Recover(record, error)
        if isinstance(failure, StopContainer):
            raise failure
        if failure is not None:
            place = f"{record.topic}-{record.partition}@{record.offset}"
            logger.error(
                "%s: the recoverer failed, the record is delivered again: %r", place, failure, exc_info=failure
            )
            return False
        self._acks.skipped(record)
        return True

    def _retry_due(self) -> Generator[Effect, Any, None]:
        """Deliver held records whose time has come."""
        now_ms = self._now_ms()
        for partition in [p for p, held in self._held.items() if held.due_ms <= now_ms]:
            held = self._held.pop(partition)
            if self._is_batch:
                yield from self._retry_batch(partition, held)
            else:
                yield from self._retry_records(partition, held)
            if partition not in self._held and partition not in self._control.paused_partitions:
                yield Resume((partition,))
        yield from self._commit_if_due()

    def _retry_records(self, partition: TopicPartition, held: Held) -> Generator[Effect, Any, None]:
        records: Sequence[ConsumerRecord] = list(held.records)
        _count_delivery(records[0])
        outcome: Delivered = yield Deliver(records[:1])
        self._acks.processed(records[: outcome.count])
        if outcome.stopped:
            return
        if outcome.error is not None or outcome.nack_delay is not None:
            records = yield from self._failed(records, outcome, held)
            if partition in self._held:
                return
        else:
            records = records[1:]
        yield from self._deliver_records(records)

    # -- batches -------------------------------------------------------------------------------------------------------

    def _deliver_batch(self, records: list[ConsumerRecord]) -> Generator[Effect, Any, None]:
        if records:
            outcome: Delivered = yield DeliverBatch(records)
            yield from self._batch_outcome(records, outcome, {})

    def _retry_batch(self, partition: TopicPartition, held: Held) -> Generator[Effect, Any, None]:
        records = list(held.records)
        for record in records:
            _count_delivery(record)
        outcome: Delivered = yield DeliverBatch(records)
        yield from self._batch_outcome(records, outcome, {partition: held})

    def _batch_outcome(
        self, records: list[ConsumerRecord], outcome: Delivered, states: dict[TopicPartition, Held]
    ) -> Generator[Effect, Any, None]:
        """A failed batch is held partition by partition, so that each keeps its order and may be revoked alone."""
        error = outcome.error
        done = outcome.count
        if isinstance(error, BatchListenerFailed):
            done = min(max(error.index, 0), len(records))
        self._acks.processed(records[:done])
        rest = records[done:]
        if outcome.stopped or not rest or (error is None and outcome.nack_delay is None):
            return
        pointed = isinstance(error, BatchListenerFailed)
        first = TopicPartition(rest[0].topic, rest[0].partition)
        for partition, part in _by_partition(rest).items():
            state = states.get(partition) or Held(deque(), self._now_ms())
            delay = outcome.nack_delay
            if error is not None:
                # Only the partition of the record that was pointed at has failed; the others are merely not done yet.
                failed = not pointed or partition == first
                delay = self._count_failure(state, part[0], error) if failed else 0.0
                if delay is None:
                    part = yield from self._recover_batch(part, error, pointed)
                    delay = 0.0
                    state = Held(deque(), self._now_ms())
            if part:
                state.records = deque(part)
                state.due_ms = self._now_ms() + int((delay or 0.0) * 1000)
                self._held[partition] = state
                yield Pause((partition,))

    def _recover_batch(
        self, records: list[ConsumerRecord], error: BaseException, pointed: bool
    ) -> Generator[Effect, Any, list[ConsumerRecord]]:
        """Recover the record the listener pointed at, or else every one; gives what is still to be delivered."""
        cause = error.__cause__ if pointed and error.__cause__ is not None else error
        count = 1 if pointed else len(records)
        for index in range(count):
            recovered = yield from self._recovered(records[index], cause)
            if not recovered:
                return records[index:]
        return records[count:]

    # -- commits -------------------------------------------------------------------------------------------------------

    def _commit_if_due(self) -> Generator[Effect, Any, None]:
        if self._commit_error is not None:
            raise self._commit_error
        if self._unconfirmed or not self._acks.is_due(self._now_ms()):
            return
        offsets = self._acks.take(self._now_ms())
        if not self._waits_for_commits:
            self._unconfirmed = offsets
            yield CommitSoon(offsets)
            return
        failure = yield Commit(offsets)
        if failure is not None:
            logger.info("a commit is tried again later: %s", failure)
            self._acks.restore(offsets)


def _by_partition(records: Iterable[ConsumerRecord]) -> dict[TopicPartition, list[ConsumerRecord]]:
    parts: dict[TopicPartition, list[ConsumerRecord]] = {}
    for record in records:
        parts.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
    return parts


def _count_delivery(record: ConsumerRecord) -> None:
    # A record that the client has just fetched has no number yet; its first delivery counts as 1.
    record.delivery_attempt = (record.delivery_attempt or 1) + 1
