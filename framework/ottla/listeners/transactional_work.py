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
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ottla.client import OffsetAndMetadata, TopicPartition
from ottla.client.topic_partition import ConsumerGroupMetadata
from ottla.errors import (
    CannotBeginTransaction,
    ClientClosed,
    CommitFailed,
    Fatal,
    InvalidProducerIdMapping,
    InvalidTxnState,
    Retriable,
    SendError,
    TransactionOutcomeUnknown,
    TransactionTimedOut,
)
from ottla.listeners.ack import AckTracker, Offsets
from ottla.listeners.effects import Deliver, DeliverBatch, Delivered, Effects, Perform, Recover
from ottla.listeners.transactional import Transactional
from ottla.listeners.unit_of_work import Unit, UnitOfWork
from ottla.transaction import boundaries, context
from ottla.transaction.sides import Side
from ottla.transaction.transaction import Transaction, TransactionState
from ottla_wire.records import ConsumerRecord

if TYPE_CHECKING:
    from ottla.producer_factory import ProducerFactory

logger = logging.getLogger("ottla.listener")

FIRST_RUN = 32
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
    """Offsets are part of transactions, of the listener's producer factory."""

    def __init__(
        self,
        transactional: Transactional,
        acks: AckTracker,
        now_ms: Callable[[], int],
        group_metadata: Callable[[], ConsumerGroupMetadata],
    ) -> None:
        assert transactional.manager is not None
        self._factory: ProducerFactory = transactional.manager.producer_factory
        self._prefix = transactional.manager.transaction_id_prefix
        self._timeout = transactional.timeout if transactional.timeout is not None else transactional.manager.timeout
        self._max_records = transactional.max_records
        self._max_time_ms = max(1, int(transactional.max_time * 1000))
        self._acks = acks
        self._now_ms = now_ms
        self._group_metadata = group_metadata
        self._skipped: Offsets = {}
        self._skipped_since_ms = 0

    # -- deliveries ----------------------------------------------------------------------------------------------------

    def handle(self, unit: Unit) -> Effects[Delivered]:
        """See UnitOfWork."""
        if isinstance(unit, DeliverBatch):
            return (yield from self._handle_batch(unit.records))
        return (yield from self._handle_run(unit.records))

    def _handle_batch(self, records: Sequence[ConsumerRecord]) -> Effects[Delivered]:
        attempt = yield from self._transaction(records, lambda part: DeliverBatch(part), len(records))
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
            attempt = yield from self._transaction(records[done:end], lambda part: Deliver(part), limit)
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
        self, records: Sequence[ConsumerRecord], unit: Callable[[Sequence[ConsumerRecord]], Unit], limit: int
    ) -> Effects[_Attempt]:
        """One transaction, with at most `limit` of the records."""
        begun = yield Perform(self._begin)
        if not isinstance(begun, Transaction):
            return _Attempt(len(records), _reported(begun), in_commit=True)
        try:
            outcome = yield from self._deliver(begun, records, unit, limit)
            if outcome.error is None:
                offsets = self._offsets(records[: outcome.count])
                error = yield Perform(lambda side: self._commit(begun, offsets, side))
                if error is not None:
                    return _Attempt(max(1, outcome.count), _reported(error), in_commit=True)
                self._acks.done(outcome.count)
                return _Attempt(outcome.count, nack_delay=outcome.nack_delay, stopped=outcome.stopped)
            yield Perform(lambda side: self._abort(begun, outcome.error, side))
            return _Attempt(outcome.count, _reported(outcome.error))
        except GeneratorExit:
            begun.abandon()  # the driver was interrupted: nothing more can be asked of it
            raise

    def _deliver(
        self,
        tx: Transaction,
        records: Sequence[ConsumerRecord],
        unit: Callable[[Sequence[ConsumerRecord]], Unit],
        limit: int,
    ) -> Effects[Delivered]:
        """Deliver records inside of the transaction, until a bound, a failure or the end."""
        limit = min(limit, len(records))
        started_ms = self._now_ms()
        count, run = 0, limit if unit is not Deliver else min(limit, FIRST_RUN)
        while True:
            part = records[count : count + run] if run < len(records) else records
            before_ms = self._now_ms()
            outcome: Delivered = yield from self._inside(tx, unit(part))
            count += outcome.count
            now_ms = self._now_ms()
            if outcome.count < len(part) or outcome.error is not None or outcome.nack_delay is not None:
                return Delivered(count, outcome.error, outcome.nack_delay, outcome.stopped)
            left_ms = self._max_time_ms - (now_ms - started_ms)
            if count >= limit or left_ms <= 0 or tx.state is not TransactionState.OPEN:
                return Delivered(count)
            took_ms = now_ms - before_ms
            run = 2 * run if 2 * took_ms <= left_ms else max(1, run * left_ms // took_ms)
            run = min(run, limit - count)

    def _inside(self, tx: Transaction, effect: Any) -> Effects[Any]:
        """An effect whose sends are part of the transaction."""
        frame = context.enter(self._factory, tx)
        try:
            return (yield effect)
        finally:
            context.leave(frame)
