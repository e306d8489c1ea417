"""TransactionalWork: what a listener sends and how far it has read become visible together, or not at all.

Theory of operation. A transaction lives inside of one call of `handle` or `recover`; none is open while the consumer
polls, so a rebalance never finds one. `handle` is given the records of a poll and cuts them into transactions:

    begin | deliver a run | deliver a longer run | ... | offsets, commit         until the bounds of count or time

Runs grow as long as they are quick, since between two of them the clock is looked at. Whatever fails, the transaction
is aborted, and nothing of it has happened; then the culprit is isolated:

- *The listener raised* at record k: the records before k are delivered again, by themselves, and commit; record k is
  the one that `handle` reports. With `max_records=1` there are none before it.
- *The commit was refused* (a send had failed) with n records in it: the next transactions have half as many, until one
  with a single record fails: that one is reported. Errors that no record is to blame for (brokers that do not answer)
  are reported at once, and the error handler's back-off decides.

What is reported is held by the loop and delivered again from memory: the consumer's position has passed it, its
committed offset has not. Some errors end the loop: a producer that was fenced stops the container; a member that was
replaced, and a commit whose outcome is unknown, make the consumer start anew from the committed offsets.

`recover` is the same with the recoverer in place of the listener: what it sends (a dead letter) and the offset of the
record that is passed over are one transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ottla.client import OffsetAndMetadata, TopicPartition
from ottla.errors import (
    CannotBeginTransaction,
    ClientClosed,
    CommitFailed,
    Fatal,
    InvalidProducerIdMapping,
    InvalidTxnState,
    ProducerFenced,
    Retriable,
    SendError,
    TransactionOutcomeUnknown,
    TransactionTimedOut,
    UnexpectedRollback,
)
from ottla.listeners.ack import AckMode, AckTracker, Offsets
from ottla.listeners.effects import Commit, Deliver, DeliverBatch, Delivered, Effects, Perform, Recover
from ottla.listeners.group_positions import GroupPositions
from ottla.listeners.transactional import Transactional
from ottla.listeners.unit_of_work import Unit, UnitOfWork
from ottla.transaction import boundaries, context
from ottla.transaction.sides import Side
from ottla.transaction.transaction import Transaction, TransactionState
from ottla_wire.records import ConsumerRecord

if TYPE_CHECKING:
    from ottla.producer_factory import ProducerFactory

logger = logging.getLogger("ottla.listener")

LONGEST_FIRST_RUN = 32
"""Records of a transaction's first run: a listener that has become slow must not be given many before it shows."""
SKIPPED_COMMIT_MS = 1_000

_MENDED_BY_A_NEW_PRODUCER = (InvalidProducerIdMapping, InvalidTxnState)
_ENDS_THE_CONSUMER = (CommitFailed, TransactionOutcomeUnknown, ClientClosed)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What came of one transaction. With an error nothing has happened, and `count` records came before the failure."""

    count: int
    error: BaseException | None = None
    in_commit: bool = False
    nack_delay: float | None = None
    stopped: bool = False


class TransactionalWork(UnitOfWork):
    """Offsets are part of transactions, of the listener's producer factory.

    Args:
        transactional: how records are divided, and with whose transactions.
        acks: what the listener acknowledges, in a manual mode; else only a counter.
        now_ms: monotonic.
        positions: the group's, for commits without records.
        starts_in_transaction: whether the start of a partition is committed in a transaction, too.
    """

    def __init__(
        self,
        transactional: Transactional,
        acks: AckTracker,
        now_ms: Callable[[], int],
        *,
        positions: GroupPositions | None,
        starts_in_transaction: bool = False,
    ) -> None:
        assert transactional.manager is not None
        self._factory: ProducerFactory = transactional.manager.producer_factory
        self._prefix = transactional.manager.transaction_id_prefix
        self._timeout = transactional.timeout if transactional.timeout is not None else transactional.manager.timeout
        self._max_records = 1 if acks.mode is AckMode.RECORD else transactional.max_records
        self._max_time_ms = max(1, int(transactional.max_time * 1000))
        self._acks = acks
        self._now_ms = now_ms
        self._positions = positions or GroupPositions()
        self._starts_in_transaction = starts_in_transaction
        self._is_busy = False
        self._takes_batches = False
        self._first_run = 1
        self._fitting_records: int | None = None
        self._skipped: Offsets = {}
        self._skipped_since_ms = 0

    # -- deliveries ----------------------------------------------------------------------------------------------------

    def handle(self, unit: Unit) -> Effects[Delivered]:
        """See UnitOfWork."""
        self._is_busy = True
        self._positions.seen(unit.records)
        self._takes_batches = isinstance(unit, DeliverBatch)
        if isinstance(unit, DeliverBatch):
            return (yield from self._handle_batch(unit.records))
        return (yield from self._handle_run(unit.records))

    def _handle_batch(self, records: Sequence[ConsumerRecord]) -> Effects[Delivered]:
        attempt = yield from self._transaction(records, DeliverBatch, len(records))
        if attempt.error is None:
            return Delivered(attempt.count, nack_delay=attempt.nack_delay)
        # All of it is undone; where the listener points at a record, the loop delivers those before it once more.
        return Delivered(0, attempt.error)

    def _handle_run(self, records: Sequence[ConsumerRecord]) -> Effects[Delivered]:
        done, end, limit, suspects_until = 0, len(records), self._max_records, 0
        failure: BaseException | None = None
        while done < end:
            if done >= suspects_until:
                limit = self._max_records
            attempt = yield from self._transaction(records[done:end], Deliver, limit)
            if attempt.error is None:
                done += attempt.count
                if attempt.stopped or attempt.nack_delay is not None:
                    return Delivered(done, nack_delay=attempt.nack_delay, stopped=attempt.stopped)
                continue
            if not attempt.in_commit:
                end, failure = done + attempt.count, attempt.error
            elif attempt.count > 1 and _may_be_one_records_fault(attempt.error):
                limit, suspects_until = (attempt.count + 1) // 2, done + attempt.count
            else:
                return Delivered(done, attempt.error)
            for record in records[done : done + attempt.count]:
                record.delivery_attempt = (record.delivery_attempt or 1) + 1
        return Delivered(done, failure)

    def _transaction(
        self, records: Sequence[ConsumerRecord], unit: type[Deliver] | type[DeliverBatch], limit: int
    ) -> Effects[_Attempt]:
        """One transaction, with at most `limit` of the records."""
        begun = yield Perform(self._begin)
        if not isinstance(begun, Transaction):
            return _Attempt(len(records), _reported(begun), in_commit=True)
        acknowledged = self._acknowledged()
        try:
            outcome = yield from self._deliver(begun, records, unit, min(limit, len(records)))
            if outcome.error is not None:
                self._take_back(acknowledged, records)
                yield from self._undo(begun, outcome.error)
                return _Attempt(outcome.count, outcome.error)
            offsets = self._offsets(records[: outcome.count])
            error = yield from self._commit(begun, offsets)
        except GeneratorExit:
            begun.abandon()  # the driver was interrupted: nothing more can be asked of it
            raise
        if error is not None:
            self._take_back(acknowledged, records)
            return _Attempt(max(1, outcome.count), _reported(error), in_commit=True)
        self._acks.done(outcome.count)
        return _Attempt(outcome.count, nack_delay=outcome.nack_delay, stopped=outcome.stopped)

    def _deliver(
        self,
        tx: Transaction,
        records: Sequence[ConsumerRecord],
        unit: type[Deliver] | type[DeliverBatch],
        limit: int,
    ) -> Effects[Delivered]:
        """Deliver records inside of the transaction, until a bound, a failure or the end."""
        started_ms = self._now_ms()
        count, run = 0, limit if unit is DeliverBatch else min(limit, self._first_run)
        while True:
            part = records[count : count + run] if run < len(records) else records
            before_ms = self._now_ms()
            outcome: Delivered = yield from self._inside(tx, unit(part))
            count += outcome.count
            if outcome.count < len(part) or outcome.error is not None or outcome.nack_delay is not None:
                return Delivered(count, outcome.error, outcome.nack_delay, outcome.stopped)
            now_ms = self._now_ms()
            took_ms = now_ms - before_ms
            left_ms = self._max_time_ms - (now_ms - started_ms)
            if count >= limit or left_ms <= 0 or tx.state is not TransactionState.OPEN:
                self._learn(count, now_ms - started_ms)
                return Delivered(count)
            run = min(_fitting(len(part), took_ms, left_ms), limit - count)

    def _learn(self, records: int, took_ms: int) -> None:
        """A transaction shows how quick the listener is, and so how many records the next one should have."""
        fitting = max(1, records * self._max_time_ms // max(1, took_ms))
        self._fitting_records = min(fitting, self._max_records)
        self._first_run = min(fitting, LONGEST_FIRST_RUN)

    def recover(self, record: ConsumerRecord, error: BaseException) -> Effects[BaseException | None]:
        """See UnitOfWork. A recoverer that fails leaves nothing behind, and the record is delivered again."""
        self._is_busy = True
        begun = yield Perform(self._begin)
        if not isinstance(begun, Transaction):
            return _reported(begun)
        try:
            failure: BaseException | None = yield from self._inside(begun, Recover(record, error))
            if failure is not None:
                yield from self._undo(begun, failure)
                return failure
            offsets = self._offsets([record]) | _behind([record])
            failure = yield from self._commit(begun, offsets)
        except GeneratorExit:
            begun.abandon()
            raise
        if failure is None:
            self._acks.done(1)
        return None if failure is None else _reported(failure)

    # -- transactions --------------------------------------------------------------------------------------------------

    async def _begin(self, _: Any, side: Side) -> Transaction | Exception:
        try:
            return await boundaries.begin(self._factory, side, prefix=self._prefix, timeout=self._timeout)
        except CannotBeginTransaction as error:
            return error

    def _inside(self, tx: Transaction, effect: Any) -> Effects[Any]:
        """An effect whose sends are part of the transaction."""
        frame = context.enter(self._factory, tx)
        try:
            return (yield effect)
        finally:
            context.leave(frame)

    def _commit(self, tx: Transaction, offsets: Offsets) -> Effects[BaseException | None]:
        """Commit with these offsets. Gives what went wrong; nothing has happened then, unless it says so itself."""

        async def commit(consumer: Any, side: Side) -> BaseException | None:
            failure: Exception | None = None
            frame = context.enter(self._factory, tx)
            try:
                if offsets:
                    tx.send_offsets(offsets, consumer.group_metadata())
            except Exception as error:  # noqa: BLE001 - it is undone, and then told
                failure = error
            try:
                await boundaries.leave(tx, side, failure, frame)
            except Exception as error:  # noqa: BLE001 - the loop decides
                return error
            return failure or (rolled_back_by_listener() if tx.rollback_only else None)

        error: BaseException | None = yield Perform(commit)
        if error is None:
            self._positions.committed(offsets)
            for partition in offsets:
                self._skipped.pop(partition, None)
        return error

    def _undo(self, tx: Transaction, cause: BaseException) -> Effects[None]:
        """Abort. A producer that turns out to be fenced ends the loop, whatever the listener has made of it."""

        async def undo(_: Any, side: Side) -> BaseException | None:
            return await boundaries.abort(tx, side, cause)

        failure = yield Perform(undo)
        if isinstance(failure, Fatal) and not isinstance(failure, _MENDED_BY_A_NEW_PRODUCER):
            raise failure from cause

    def _offsets(self, records: Sequence[ConsumerRecord]) -> Offsets:
        """What a transaction with these records commits: in the manual modes, what the listener acknowledged."""
        offsets = self._acks.take(self._now_ms()) if self._acks.mode.is_manual else _behind(records)
        for partition, place in self._skipped.items():
            known = offsets.get(partition)
            if known is None or known.offset < place.offset:
                offsets[partition] = place
        return offsets

    def _acknowledged(self) -> Offsets:
        """In the manual modes: what was acknowledged before a transaction."""
        if not self._acks.mode.is_manual:
            return {}
        offsets = self._acks.take(self._now_ms())
        self._acks.restore(offsets)
        return offsets

    def _take_back(self, acknowledged: Offsets, records: Sequence[ConsumerRecord]) -> None:
        """The transaction is undone, and with it what was acknowledged of its records."""
        if self._acks.mode.is_manual:
            partitions = list(_behind(records))
            self._acks.take(self._now_ms(), partitions)
            self._acks.restore(
                {partition: acknowledged[partition] for partition in partitions if partition in acknowledged}
            )

    # -- without records -----------------------------------------------------------------------------------------------

    def skip(self, record: ConsumerRecord) -> None:
        """See UnitOfWork. Its offset goes with the next transaction; one of its own can wait."""
        if not self._skipped:
            self._skipped_since_ms = self._now_ms()
        self._positions.seen([record])
        self._skipped |= _behind([record])
        self._acks.done(1)

    def settle(self) -> Effects[None]:
        """See UnitOfWork. With nothing to do: commit what is left, and past what is never delivered."""
        is_idle, self._is_busy = not self._is_busy, True
        if self._has_left() and (is_idle or self._now_ms() - self._skipped_since_ms >= SKIPPED_COMMIT_MS):
            yield from self._commit_offsets(self._offsets(()))
        elif is_idle:
            yield from self._catch_up()

    def _has_left(self) -> bool:
        return bool(self._skipped) or (self._acks.mode.is_manual and self._acks.is_due(self._now_ms()))

    def _catch_up(self) -> Effects[None]:
        behind, starts = yield from self._positions.left_to_commit()
        if self._starts_in_transaction:
            behind |= starts
        elif starts:
            error = yield Commit(starts)
            if error is None:
                self._positions.committed(starts)
        if behind:
            yield from self._commit_offsets(behind)

    def _commit_offsets(self, offsets: Offsets) -> Effects[None]:
        """A transaction of offsets alone. What fails is tried again the next time."""
        begun = yield Perform(self._begin)
        error = begun if not isinstance(begun, Transaction) else (yield from self._commit(begun, offsets))
        if error is not None:
            logger.info("offsets are committed later: %s", _reported(error))
            if self._acks.mode.is_manual:
                self._acks.restore(offsets)

    def finish(self) -> Effects[None]:
        """See UnitOfWork."""
        if self._has_left():
            yield from self._commit_offsets(self._offsets(()))

    def poll_timeout(self, timeout: float) -> float:
        """See UnitOfWork. What is acknowledged late is committed when the poll is over, so that is not to be long."""
        self._is_busy = False
        return 0.0 if self._has_left() and self._acks.mode.is_manual else timeout

    def poll_limit(self) -> dict[str, int]:
        """See UnitOfWork. As many as one transaction holds: more would only wait, and delay the next poll."""
        if self._takes_batches or self._fitting_records is None:
            return {}
        return {"max_records": self._fitting_records}

    def revoked(self, partitions: Iterable[TopicPartition]) -> Offsets:
        """See UnitOfWork. In the container's own modes nothing is ever left; what was acknowledged late goes now."""
        partitions = list(partitions)
        late = self._acks.take(self._now_ms(), partitions) if self._acks.mode.is_manual else {}
        self.forget(partitions)
        return late

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """See UnitOfWork."""
        partitions = list(partitions)
        self._acks.forget(partitions)
        self._positions.forget(partitions)
        for partition in partitions:
            self._skipped.pop(partition, None)


def _fitting(records: int, took_ms: int, left_ms: int) -> int:
    """How many records will take `left_ms`: at most twice as many as have taken `took_ms`, and at least one."""
    return 2 * records if 2 * took_ms <= left_ms else max(1, records * left_ms // took_ms)


def _behind(records: Sequence[ConsumerRecord]) -> Offsets:
    """The offsets after these records. They come in the order of their partitions, mostly in runs of one."""
    offsets: Offsets = {}
    last: tuple[str, int] | None = None
    for record in reversed(records):
        if (record.topic, record.partition) != last:
            last = (record.topic, record.partition)
            offsets.setdefault(TopicPartition(*last), OffsetAndMetadata(record.offset + 1, record.leader_epoch))
    return offsets


def rolled_back_by_listener() -> UnexpectedRollback:
    """The error of a listener whose transaction was aborted because it asked for that."""
    return UnexpectedRollback(
        "the listener called set_rollback_only(): nothing of the transaction has happened, and its records are not "
        "done; raise an error in its place, so that the error handler sees which"
    )


def _reported(error: BaseException) -> BaseException:
    """The error, if it is one for the error handler; raised, if it ends the loop.

    A producer that was fenced, and rights that are missing, stop the container. A member that was replaced, and a
    commit of unknown outcome, make the consumer start anew from the committed offsets.
    """
    cause = error.__cause__ if isinstance(error, (CannotBeginTransaction, SendError)) else None
    for one in (error, cause):
        if isinstance(one, _ENDS_THE_CONSUMER):
            raise error
        if isinstance(one, Fatal) and not isinstance(one, _MENDED_BY_A_NEW_PRODUCER):
            if isinstance(error, SendError) and not isinstance(one, ProducerFenced):
                continue  # the record is to blame, or its topic
            raise one from error
    return error


def _may_be_one_records_fault(error: BaseException) -> bool:
    """Whether fewer records in a transaction may find the one that is to blame."""
    if isinstance(error, SendError):
        return not isinstance(error.__cause__, (Retriable, TimeoutError))
    return isinstance(error, (TransactionTimedOut, UnexpectedRollback))
