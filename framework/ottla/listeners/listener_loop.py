"""The life of one consumer in a container: poll, deliver, retry, recover.

Theory of operation. `run` is a generator. It yields *effects* (poll the client, call the listener, commit, ...), and is
sent each one's outcome; so the same logic serves listeners on a thread and listeners on an event loop, and tests drive
it with no thread, clock or client. The driver is in `driver.py`.

A failed record is *held* together with what follows it in its partition: the partition is paused at the client, the
others go on, and polling goes on too, so the consumer stays in its group however long the back-off is. When its time
has come the held records are delivered from memory; when none is left the partition is resumed. Nothing is fetched
twice, and the order of a partition is kept. A partition that is revoked takes its held records with it.

The loop says what is delivered, and when again. What surrounds a delivery and makes its outcome last (commits) is a
`UnitOfWork`: every delivery, and every recovery, goes through it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ottla.client import TopicPartition
from ottla.error_handling import BatchListenerFailed, ErrorHandler
from ottla.error_handling.error_handler import StopContainer
from ottla.listeners.ack import Offsets
from ottla.listeners.conversion import UnfitRecord
from ottla.listeners.effects import (
    Deliver,
    DeliverBatch,
    Delivered,
    Effects,
    Pause,
    PauseAll,
    Poll,
    Request,
    Resume,
    ResumeAll,
)
from ottla.listeners.unit_of_work import UnitOfWork
from ottla_wire.records import ConsumerRecord

logger = logging.getLogger("ottla.listener")


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


EMPTY: Mapping[TopicPartition, Held] = MappingProxyType({})


class ListenerLoop:
    """One consumer's loop over a listener."""

    def __init__(
        self,
        *,
        is_batch: bool,
        work: UnitOfWork,
        errors: ErrorHandler,
        control: LoopControl,
        now_ms: Callable[[], int],
        record_filter: Callable[[ConsumerRecord], bool] | None = None,
        poll_timeout: float = 1.0,
        sub_batches: bool = False,
    ) -> None:
        self.work = work
        self._is_batch = is_batch
        self._errors = errors
        self._control = control
        self._now_ms = now_ms
        self._filter = record_filter
        self._poll_timeout = poll_timeout
        self._sub_batches = sub_batches
        self._held: dict[TopicPartition, Held] = {}
        self._released: list[TopicPartition] = []
        self.pauses_all = False
        """Whether all partitions are paused now: on request, or because too many acknowledgments are missing."""

    # -- what the client tells us from inside a poll ------------------------------------------------------------------

    def revoked(self, partitions: Iterable[TopicPartition]) -> Offsets:
        """The partitions go to somebody else: forget what is held, and give what can still be committed for them."""
        partitions = list(partitions)
        for partition in partitions:
            self._held.pop(partition, None)
        return self.work.revoked(partitions)

    def lost(self, partitions: Iterable[TopicPartition]) -> None:
        """The partitions are gone already: nothing may be committed for them."""
        partitions = list(partitions)
        for partition in partitions:
            self._held.pop(partition, None)
        self.work.forget(partitions)

    def is_held(self, partition: TopicPartition) -> bool:
        """Whether the loop itself wants this partition paused."""
        return partition in self._held

    def seeking(self, partition: TopicPartition) -> None:
        """The partition goes on from elsewhere: what is held or ready to be committed of it no longer counts."""
        if self._held.pop(partition, None) is not None:
            self._released.append(partition)
        self.work.forget([partition])

    def to_pause(self, assigned: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Which of the partitions that were just assigned must not hand out records yet."""
        if self._control.paused or self.pauses_all:
            return list(assigned)
        return [partition for partition in assigned if partition in self._control.paused_partitions]

    @property
    def is_paused(self) -> bool:
        """Whether a requested pause has taken effect."""
        return self.pauses_all and self._control.paused

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self) -> Effects[None]:
        """Yield effects until told to stop. What has been processed is committed before the end."""
        while not self._control.stopping:
            yield from self._apply_control()
            if not self._control.paused:
                yield from self._retry_due()
            records = yield Poll(self._timeout())
            if records:
                yield from self._process(records)
            yield from self.work.settle()
        yield from self.work.finish()

    def _apply_control(self) -> Effects[None]:
        while self._control.requests:
            yield Request(self._control.requests.popleft())
        if self._released:
            released = tuple(p for p in self._released if p not in self._control.paused_partitions)
            self._released.clear()
            if not self.pauses_all:
                yield Resume(released)
        wants_pause = self._control.paused or self.work.is_full
        if wants_pause and not self.pauses_all:
            yield PauseAll()
            self.pauses_all = True
        elif self.pauses_all and not wants_pause:
            yield ResumeAll(frozenset(self._held) | frozenset(self._control.paused_partitions))
            self.pauses_all = False

    def _timeout(self) -> float:
        timeout = self.work.poll_timeout(self._poll_timeout)
        if not self._held or self._control.paused:
            return timeout
        due = min(held.due_ms for held in self._held.values())
        return min(timeout, max(0, due - self._now_ms()) / 1000)

    def _process(self, records: Sequence[ConsumerRecord]) -> Effects[None]:
        wanted, filtered = (records, []) if self._filter is None else self._filtered(records)
        if not self._is_batch:
            yield from self._deliver_records(wanted)
        elif not self._sub_batches:
            yield from self._deliver_batch(list(wanted))
        else:
            for part in _by_partition(wanted).values():
                yield from self._deliver_batch(part)
        for record in filtered:
            if self._may_pass(record):
                self.work.skip(record)

    def _filtered(self, records: Sequence[ConsumerRecord]) -> tuple[list[ConsumerRecord], list[ConsumerRecord]]:
        assert self._filter is not None
        wanted: list[ConsumerRecord] = []
        filtered: list[ConsumerRecord] = []
        for record in records:
            (filtered if self._filter(record) else wanted).append(record)
        return wanted, filtered

    def _may_pass(self, record: ConsumerRecord) -> bool:
        """Whether a filtered record may count as done: not while one before it in its partition is not."""
        if self._control.stop_immediately:
            return False
        held = self._held.get(TopicPartition(record.topic, record.partition))
        return held is None or record.offset < held.records[0].offset

    def _deliver_records(self, records: Sequence[ConsumerRecord]) -> Effects[None]:
        """Deliver in order; where a record fails, what follows in its partition is held and the rest goes on."""
        while records:
            outcome = yield from self.work.handle(Deliver(records[:1] if self.work.one_by_one else records))
            records = records[outcome.count :]
            if outcome.stopped or not records:
                return
            if outcome.error is not None or outcome.nack_delay is not None:
                records = yield from self._failed(records, outcome, Held(deque(), self._now_ms()))

    def _failed(
        self, records: Sequence[ConsumerRecord], outcome: Delivered, state: Held
    ) -> Effects[Sequence[ConsumerRecord]]:
        """The first of `records` failed. Gives what may be delivered now: without its partition, if that is held."""
        record = records[0]
        if outcome.error is None:
            delay: float | None = outcome.nack_delay
        else:
            delay = self._count_failure(state, record, outcome.error)
            if delay is None:
                recovered = yield from self._recovered(record, outcome.error)
                if recovered:
                    state.failures, state.error = 0, None
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

    def _recovered(self, record: ConsumerRecord, error: BaseException) -> Effects[bool]:
        failure = yield from self.work.recover(record, error)
        if isinstance(failure, StopContainer):
            raise failure
        if failure is not None:
            place = f"{record.topic}-{record.partition}@{record.offset}"
            logger.error(
                "%s: the recoverer failed, the record is delivered again: %r", place, failure, exc_info=failure
            )
            return False
        return True

    def _retry_due(self) -> Effects[None]:
        """Deliver held records whose time has come."""
        now_ms = self._now_ms()
        for partition in [p for p, held in self._held.items() if held.due_ms <= now_ms]:
            held = self._held.pop(partition)
            if self._is_batch:
                yield from self._retry_batch(partition, held)
            else:
                yield from self._retry_records(partition, held)
            stays = self.pauses_all or partition in self._held or partition in self._control.paused_partitions
            if not stays:
                yield Resume((partition,))
        yield from self.work.settle()

    def _retry_records(self, partition: TopicPartition, held: Held) -> Effects[None]:
        records: Sequence[ConsumerRecord] = list(held.records)
        _count_delivery(records[0])
        outcome = yield from self.work.handle(Deliver(records[:1]))
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

    def _deliver_batch(
        self, records: list[ConsumerRecord], states: Mapping[TopicPartition, Held] = EMPTY
    ) -> Effects[None]:
        """Deliver in one call; `states` has what is known of partitions that have failed before."""
        while records:
            outcome = yield from self.work.handle(DeliverBatch(records))
            if not isinstance(outcome.error, UnfitRecord):
                yield from self._batch_outcome(records, outcome, states)
                return
            records = yield from self._around_unfit(records, outcome.error, states)

    def _retry_batch(self, partition: TopicPartition, held: Held) -> Effects[None]:
        records = list(held.records)
        for record in records:
            _count_delivery(record)
        yield from self._deliver_batch(records, {partition: held})

    def _around_unfit(
        self, records: list[ConsumerRecord], error: UnfitRecord, states: Mapping[TopicPartition, Held]
    ) -> Effects[list[ConsumerRecord]]:
        """The listener was not called, since one record cannot be given to it. Deliver what comes before that one.

        Gives what may be delivered next: what follows, but nothing of a partition that is held now.
        """
        yield from self._deliver_batch(records[: error.index], states)
        rest = self._behind_held(records[error.index :])
        if not rest or rest[0] is not records[error.index]:
            return rest
        state = states.get(TopicPartition(rest[0].topic, rest[0].partition)) or Held(deque(), self._now_ms())
        return list((yield from self._failed(rest, Delivered(0, error.__cause__), state)))

    def _behind_held(self, records: list[ConsumerRecord]) -> list[ConsumerRecord]:
        """Put what belongs to held partitions behind what is held of them; gives the others."""
        if not self._held:
            return records
        others: list[ConsumerRecord] = []
        for record in records:
            held = self._held.get(TopicPartition(record.topic, record.partition))
            (others if held is None else held.records).append(record)
        return others

    def _batch_outcome(
        self, records: list[ConsumerRecord], outcome: Delivered, states: Mapping[TopicPartition, Held]
    ) -> Effects[None]:
        """A failed batch is held partition by partition, so that each keeps its order and may be revoked alone."""
        error = outcome.error
        if outcome.stopped or (error is None and outcome.nack_delay is None):
            return
        failed = outcome.count
        if isinstance(error, BatchListenerFailed):
            failed = min(max(error.index, failed), len(records))
            # What went well and was undone together with the one that failed comes once more, by itself.
            yield from self._deliver_batch(records[outcome.count : failed], states)
        rest = self._behind_held(records[failed:])
        for index, (partition, part) in enumerate(_by_partition(rest).items()):
            state = states.get(partition) or Held(deque(), self._now_ms())
            delay = outcome.nack_delay or 0.0
            # Only the partition of a record that was pointed at has failed; the others are merely not done yet.
            if error is not None and (index == 0 or not isinstance(error, BatchListenerFailed)):
                counted = self._count_failure(state, part[0], error)
                if counted is None:
                    part = yield from self._recover_batch(part, error)
                    state = Held(deque(), self._now_ms())
                delay = counted or 0.0
            if part:
                state.records = deque(part)
                state.due_ms = self._now_ms() + int(delay * 1000)
                self._held[partition] = state
                yield Pause((partition,))

    def _recover_batch(self, records: list[ConsumerRecord], error: BaseException) -> Effects[list[ConsumerRecord]]:
        """Recover the record the listener pointed at, or else every one; gives what is still to be delivered."""
        points = isinstance(error, BatchListenerFailed)
        cause = error.__cause__ if points and error.__cause__ is not None else error
        count = 1 if points else len(records)
        for index in range(count):
            recovered = yield from self._recovered(records[index], cause)
            if not recovered:
                return records[index:]
        return records[count:]


def _by_partition(records: Iterable[ConsumerRecord]) -> dict[TopicPartition, list[ConsumerRecord]]:
    parts: dict[TopicPartition, list[ConsumerRecord]] = {}
    for record in records:
        parts.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
    return parts


def _count_delivery(record: ConsumerRecord) -> None:
    # A record that the client has just fetched has no number yet; its first delivery counts as 1.
    record.delivery_attempt = (record.delivery_attempt or 1) + 1
