"""A unit of work: one delivery to the listener, with what makes its outcome last.

Theory of operation. The loop decides what is delivered next and what happens to a record that failed; whatever has to
surround a delivery is here, in one object that the loop asks. A unit is the effect that delivers it: `Deliver` (a run
of records, one call each) or `DeliverBatch` (one call for all). `handle` yields it in the middle of whatever else is to
be done, and says how far it came. What `handle` does not count as done is held and delivered again, so a strategy that
undoes a unit (a transaction that is aborted) has nothing to rewind: it answers `Delivered(0, error)`.

`AcknowledgedWork` marks what is done and commits offsets through the consumer, by the container's ack mode. It commits
while the next records are handled: one commit is under way at a time, and what is processed meanwhile goes into the
next one; where polls follow each other within milliseconds, so do not their commits. What has not been confirmed is
committed again, and waited for, before a partition or the consumer is given up; so nothing is promised less than by
waiting each time, and a round trip per poll is saved.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from ottla.client import TopicPartition
from ottla.listeners.ack import AckMode, AckTracker, Offsets, last_of_each
from ottla.listeners.effects import Commit, CommitSoon, Deliver, DeliverBatch, Delivered, Effects, Recover
from ottla.listeners.group_positions import GroupPositions
from ottla_wire.records import ConsumerRecord

logger = logging.getLogger("ottla.listener")

COMMIT_CHECK_SECONDS = 0.02

Unit = Deliver | DeliverBatch


class UnitOfWork(ABC):
    """What surrounds each delivery of one consumer. All but the callbacks run between two effects of its loop."""

    one_by_one: bool = False
    """Whether each record is a unit; else the records of a poll are one, as far as it comes without a failure."""

    @property
    def is_full(self) -> bool:
        """Whether no more records may be delivered until some that were are acknowledged."""
        return False

    @abstractmethod
    def handle(self, unit: Unit) -> Effects[Delivered]:
        """Deliver the unit (`outcome = yield unit`) and make the outcome last. What is not counted is delivered again.

        Raises:
            Exception: something that neither a redelivery nor the error handler can mend; it ends the loop.
        """

    @abstractmethod
    def recover(self, record: ConsumerRecord, error: BaseException) -> Effects[BaseException | None]:
        """Give a record up: call the recoverer (`yield Recover(...)`) and, if that went well, pass over the record."""

    @abstractmethod
    def skip(self, record: ConsumerRecord) -> None:
        """The record was filtered out: it is done with."""

    @abstractmethod
    def settle(self) -> Effects[None]:
        """The records of a poll, or a redelivery, are through: commit what is due."""

    @abstractmethod
    def finish(self) -> Effects[None]:
        """The loop ends: commit what is done."""

    def poll_timeout(self, timeout: float) -> float:
        """Seconds that the next poll may wait, at most `timeout`."""
        return timeout

    def poll_limit(self) -> dict[str, int]:
        """How many records the next poll may bring, as its argument; nothing: as many as the client is set to."""
        return {}

    @abstractmethod
    def revoked(self, partitions: Iterable[TopicPartition]) -> Offsets:
        """The partitions go to somebody else: what is to be committed for them through the consumer before that."""

    @abstractmethod
    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """The partitions are lost, or go on from elsewhere: nothing that was done may be committed for them."""

    def committed(self, error: BaseException | None) -> None:
        """A CommitSoon is done, or failed with an error that allows to try again. Called inside a poll."""
        raise AssertionError("this work commits nothing in the background")

    def commit_failed(self, error: BaseException) -> None:
        """A CommitSoon failed for good. Called inside a poll."""
        raise AssertionError("this work commits nothing in the background")


class AcknowledgedWork(UnitOfWork):
    """Offsets are committed through the consumer, when the container's ack mode says so."""

    def __init__(
        self,
        acks: AckTracker,
        now_ms: Callable[[], int],
        *,
        positions: GroupPositions | None = None,
        sync_commits: bool = False,
        commits_apart_ms: int = 0,
    ) -> None:
        self._acks = acks
        self._positions = positions
        self._is_busy = False
        self._now_ms = now_ms
        self._is_immediate = acks.mode in (AckMode.RECORD, AckMode.MANUAL_IMMEDIATE)
        self.one_by_one = self._is_immediate
        self._waits_for_commits = sync_commits or self._is_immediate
        self._commits_apart_ms = 0 if self._waits_for_commits else commits_apart_ms
        self._next_commit_ms = now_ms()
        self._unconfirmed: Offsets = {}
        self._commit_error: BaseException | None = None

    @property
    def is_full(self) -> bool:
        """See UnitOfWork."""
        return self._acks.is_full

    def handle(self, unit: Unit) -> Effects[Delivered]:
        """See UnitOfWork."""
        self._is_busy = True
        last = last_of_each(unit.records)
        if self._positions is not None:
            self._positions.seen(last)
        outcome: Delivered = yield unit
        if outcome.count == len(unit.records):
            self._acks.processed_to(last, outcome.count)
        else:
            self._acks.processed(unit.records[: outcome.count])
        if self._is_immediate:
            yield from self.settle()
        return outcome

    def recover(self, record: ConsumerRecord, error: BaseException) -> Effects[BaseException | None]:
        """See UnitOfWork."""
        self._is_busy = True
        failure: BaseException | None = yield Recover(record, error)
        if failure is None:
            self._acks.skipped(record)
        return failure

    def skip(self, record: ConsumerRecord) -> None:
        """See UnitOfWork."""
        self._is_busy = True
        self._acks.skipped(record)

    def settle(self) -> Effects[None]:
        """See UnitOfWork. With nothing to do: commit past what is never delivered."""
        if self._commit_error is not None:
            raise self._commit_error
        is_idle, self._is_busy = not self._is_busy, True
        if is_idle and self._positions is not None and not self._unconfirmed:
            yield from self._catch_up(self._positions)
        now_ms = self._now_ms()
        if self._unconfirmed or now_ms < self._next_commit_ms or not self._acks.is_due(now_ms):
            return
        self._next_commit_ms = now_ms + self._commits_apart_ms
        offsets = self._acks.take(now_ms)
        if not self._waits_for_commits:
            self._unconfirmed = offsets
            yield CommitSoon(offsets)
            return
        failure = yield Commit(offsets)
        if failure is not None:
            logger.info("a commit is tried again later: %s", failure)
            self._acks.restore(offsets)
        elif self._positions is not None:
            self._positions.committed(offsets)

    def _catch_up(self, positions: GroupPositions) -> Effects[None]:
        behind, starts = yield from positions.left_to_commit()
        if behind or starts:
            failure = yield Commit(behind | starts)
            if failure is None:
                positions.committed(behind | starts)

    def finish(self) -> Effects[None]:
        """See UnitOfWork."""
        offsets = {**self._unconfirmed, **self._acks.take(self._now_ms())}
        if offsets:
            yield Commit(offsets)

    def poll_timeout(self, timeout: float) -> float:
        """See UnitOfWork. Look again soon if more is due, as a commit is under way or just over, or if it is full."""
        self._is_busy = False
        is_short = self._acks.is_full or self._acks.is_due(self._now_ms())
        return min(timeout, COMMIT_CHECK_SECONDS) if is_short else timeout

    def revoked(self, partitions: Iterable[TopicPartition]) -> Offsets:
        """See UnitOfWork."""
        partitions = list(partitions)
        unconfirmed = {p: self._unconfirmed.pop(p) for p in partitions if p in self._unconfirmed}
        if self._positions is not None:
            self._positions.forget(partitions)
        return {**unconfirmed, **self._acks.take(self._now_ms(), partitions)}

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """See UnitOfWork."""
        partitions = list(partitions)
        for partition in partitions:
            self._unconfirmed.pop(partition, None)
        self._acks.forget(partitions)
        if self._positions is not None:
            self._positions.forget(partitions)

    def committed(self, error: BaseException | None) -> None:
        """See UnitOfWork."""
        offsets, self._unconfirmed = self._unconfirmed, {}
        if error is not None:
            logger.info("a commit is tried again later: %s", error)
            self._acks.restore(offsets)
        elif self._positions is not None:
            self._positions.committed(offsets)

    def commit_failed(self, error: BaseException) -> None:
        """See UnitOfWork."""
        self._unconfirmed = {}
        self._commit_error = error
