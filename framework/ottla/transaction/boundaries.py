"""Where a transaction begins and where it ends: what is done in which order, on either side."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING, Any, Final

from ottla.client.producer.transaction_tables import TransactionState as ProducerState
from ottla.errors import (
    CannotBeginTransaction,
    Fatal,
    ProducerFenced,
    TransactionOutcomeUnknown,
    TransactionTimedOut,
    UnexpectedRollback,
)
from ottla.transaction import context
from ottla.transaction.producer_pool import PoolRetired
from ottla.transaction.sides import Side
from ottla.transaction.transaction import SENDER_PAUSE_SECONDS, Transaction, TransactionState

if TYPE_CHECKING:
    from ottla.producer_factory import ProducerFactory

logger = logging.getLogger("ottla.transaction")

_OPEN = (TransactionState.OPEN, TransactionState.PREPARING)
_NO_OFFSETS: Final[list[tuple[Any, Any]]] = [(None, None)]


async def begin(factory: ProducerFactory, side: Side, *, prefix: str | None, timeout: float | None) -> Transaction:
    """Take a producer and begin.

    Raises:
        CannotBeginTransaction: no producer could be had, or it refused; nothing has begun.
        ConfigError: the timeout is above what `transaction_timeout_ms` allows.
    """
    while True:
        pools = factory.producer_pools()
        seconds = pools.limits.seconds(timeout)
        try:
            pooled = await side.take(pools.pool(prefix or pools.prefix))
            break
        except PoolRetired:  # the factory was reset while we waited
            continue
    try:
        await side.begin(pooled.producer)
    except BaseException as error:
        pooled.pool.give_back(pooled, failed=True)
        if not isinstance(error, Exception):
            raise
        raise CannotBeginTransaction(
            f"the transaction of {pooled.transactional_id!r} did not begin: {error}"
        ) from error
    return Transaction(factory, pooled, pools, seconds)


async def leave(tx: Transaction, side: Side, error: BaseException | None, frame: context.Frame) -> None:
    """The block is left, and with it the context. As `complete`, after the hooks that may still send."""
    own = error
    try:
        if error is None and not tx.rollback_only:
            for synchronization in list(tx.synchronizations):
                await _notify(synchronization, "before_commit", tx, side)
    except BaseException as failure:  # noqa: BLE001 - raised below, once the transaction has been undone
        error = failure
    finally:
        context.leave(frame)
    await complete(tx, side, error)
    if error is not own and error is not None:
        raise error


async def complete(tx: Transaction, side: Side, error: BaseException | None) -> None:
    """The block was left: commit, or abort if it raised `error` or is to be rolled back.

    An error of the block is not raised here, it is on its way already. Everything else that goes wrong is raised if
    there is none, and attached to it as a note otherwise.
    """
    if error is not None:
        await roll_back(tx, side, error)
    elif not tx.rollback_only:
        await _commit(tx, side)
    else:
        await roll_back(tx, side, None)
        if tx.inner_failure is not None or tx.rolled_back_inside:
            how = f"with {tx.inner_failure!r}" if tx.inner_failure is not None else "with set_rollback_only()"
            raise UnexpectedRollback(
                f"the transaction was aborted, because a block inside of it that had joined it ended {how}; "
                'let the error pass, or give that block propagation="requires_new"'
            ) from tx.inner_failure


# -- committing --------------------------------------------------------------------------------------------------------


async def _commit(tx: Transaction, side: Side) -> None:
    if not tx.synchronizations and not tx.databases:
        await _commit_kafka(tx, side)
        return
    try:
        await _prepare(tx, side)
        for synchronization in tx.synchronizations:
            await _notify(synchronization, "before_completion", tx, side)
        await _commit_databases(tx, side)
    except BaseException as error:
        await roll_back(tx, side, error)
        raise
    try:
        await _commit_kafka(tx, side)
    except BaseException as error:
        if tx.databases_committed:
            error.add_note(_database_is_committed(tx))
        if tx.state is TransactionState.ABORTED:
            await _after(tx, side, "after_rollback")
        raise
    await _after(tx, side, "after_commit")


def _database_is_committed(tx: Transaction) -> str:
    what = "may not be" if tx.state is TransactionState.UNKNOWN else "is not"
    return (
        "its database transaction is committed and stays so, as database transactions come first; what was sent "
        f"{what} visible. An outbox (ottla.transaction.Outbox) is the way in which this cannot happen"
    )


async def _prepare(tx: Transaction, side: Side) -> None:
    """Wait until every send is stored, so that whoever commits before Kafka knows that Kafka will, too."""
    if not tx.step(TransactionState.PREPARING, TransactionState.OPEN):
        raise tx.timed_out()
    await _no_more_senders(tx, side)
    await side.flush(tx.producer)
    failure = tx.first_failure()
    if tx.state is TransactionState.TIMED_OUT:
        raise tx.timed_out() from failure
    if failure is not None:
        raise failure
    for metadata, offsets in tx.take_offsets():
        await side.send_offsets(tx.producer, offsets, metadata)


async def _commit_databases(tx: Transaction, side: Side) -> None:
    while tx.databases:
        try:
            await side.invoke(tx.databases[0][1].commit)
        except BaseException as error:
            if tx.databases_committed:
                error.add_note(f"{tx.databases_committed} database transactions before it are committed")
            raise
        tx.databases = tx.databases[1:]
        tx.databases_committed += 1


async def _commit_kafka(tx: Transaction, side: Side) -> None:
    """Commit, and give the producer back.

    Raises:
        SendError: the first send that failed; it is aborted.
        TransactionTimedOut: the watchdog was faster.
        ProducerFenced: it was, and its abort met another owner of the id.
        TransactionOutcomeUnknown: the coordinator did not answer.
        KafkaError: it is aborted, or its producer is fenced.
    """
    if not tx.step(TransactionState.ENDING, *_OPEN):
        failure = await _await_timed_out(tx, side)
        if isinstance(failure, ProducerFenced):
            raise failure from tx.timed_out()
        raise tx.timed_out() from failure
    if tx.has_senders:
        await _no_more_senders(tx, side)
    failure = None
    cancelled: BaseException | None = None
    try:
        *others, (metadata, offsets) = tx.take_offsets() or _NO_OFFSETS
        for group, places in others:
            await side.send_offsets(tx.producer, places, group)
        cancelled = await side.commit(tx.producer, offsets, metadata)
    except BaseException as error:  # noqa: BLE001 - raised below, or what it was the consequence of
        failure = error
    if failure is not None:
        raise await _commit_failed(tx, side, failure)
    tx.end(TransactionState.COMMITTED)
    if cancelled is not None:
        cancelled.add_note("the transaction was being committed already, and is committed")
        raise cancelled


async def _commit_failed(tx: Transaction, side: Side, error: BaseException) -> BaseException:
    """What to raise. The producer's state says what is left to be done."""
    error = named(tx, error)
    failure = tx.first_failure()
    state = tx.producer.transaction_state
    if state in (ProducerState.ABORTABLE_ERROR, ProducerState.IN_TRANSACTION) and isinstance(error, Exception):
        if failure is not None and not isinstance(error, (Fatal, TransactionTimedOut)):
            error = failure
        await _abort_kafka(tx, side, error)
        return error
    if state is ProducerState.COMMITTING:
        # Committed or not, this producer must not be used again: its successor's registration settles it.
        tx.end(TransactionState.UNKNOWN, failed=True)
        if isinstance(error, Exception):
            unknown = TransactionOutcomeUnknown(
                f"whether the transaction of {tx.transactional_id!r} is committed is not known: {error}"
            )
            unknown.__cause__ = error
            return unknown
        return error
    tx.end(TransactionState.ABORTED, failed=True)
    return error


# -- aborting ----------------------------------------------------------------------------------------------------------


async def roll_back(tx: Transaction, side: Side, cause: BaseException | None) -> None:
    """Undo everything. What goes wrong is attached to the cause as notes, or raised if there is none."""
    failure = await abort(tx, side, cause)
    if cause is None and failure is not None:
        raise failure


async def abort(tx: Transaction, side: Side, cause: BaseException | None) -> BaseException | None:
    """Undo everything: databases, then Kafka. Gives what went wrong with that; it is noted with the cause, too."""
    failure: BaseException | None = None
    for _, database in tx.databases:
        try:
            await side.invoke(database.rollback)
        except Exception as error:  # noqa: BLE001 - the rest has to be undone all the same
            failure = error
            if cause is not None:
                cause.add_note(f"rolling its database transaction back failed, too: {error!r}")
    if tx.step(TransactionState.ENDING, *_OPEN):
        await _no_more_senders(tx, side)
        failure = await _abort_kafka(tx, side, cause) or failure
    elif tx.state is TransactionState.TIMED_OUT:
        unfinished = await _await_timed_out(tx, side)
        if unfinished is not None:
            failure = unfinished
            _note_abort(tx, cause, failure)
    await _after(tx, side, "after_rollback")
    return failure


async def _abort_kafka(tx: Transaction, side: Side, cause: BaseException | None) -> BaseException | None:
    """Abort, and give the producer back. What goes wrong is attached to the cause, and returned."""
    try:
        cancelled = await side.abort(tx.producer)
    except Exception as error:  # noqa: BLE001 - whoever calls decides whether it is the main thing
        tx.end(TransactionState.ABORTED, failed=True)
        failure = named(tx, error)
        _note_abort(tx, cause, failure)
        return failure
    except BaseException:
        tx.end(TransactionState.ABORTED, failed=True)
        raise
    tx.end(TransactionState.ABORTED)
    if cancelled is not None:
        raise cancelled
    return None


async def _await_timed_out(tx: Transaction, side: Side) -> BaseException | None:
    """The watchdog's abort is under way; the producer goes back when it is done. Gives what went wrong with it."""
    assert tx.timing_out is not None, tx.state
    try:
        failure: BaseException | None = await side.outcome(tx.timing_out, tx.patience)
    except Exception as error:  # noqa: BLE001 - that it timed out is the main thing
        failure = error
    except BaseException:
        tx.end(TransactionState.ABORTED, failed=True)
        raise
    tx.end(TransactionState.ABORTED, failed=failure is not None)
    return failure if failure is None else named(tx, failure)


def named(tx: Transaction, error: BaseException) -> BaseException:
    """A fence with both owners: the client says who took over, and here is known who had it before."""
    if not isinstance(error, ProducerFenced) or error.__cause__ is not None:
        return error
    client_id = getattr(tx.producer, "client_id", "")
    message = (
        f"{str(error).rstrip('.')}. This one: client {client_id!r}, process {os.getpid()} on {socket.gethostname()}"
    )
    if error.reason is None or not error.reason.by_administrator:
        message += "; transaction_id_prefix (or OTTLA_INSTANCE) has to differ between hosts"
    fenced = ProducerFenced(message, error.reason)
    fenced.__cause__ = error
    return fenced


def _note_abort(tx: Transaction, cause: BaseException | None, failure: BaseException) -> None:
    if cause is not None and failure is not cause:
        cause.add_note(f"aborting the transaction of {tx.transactional_id!r} failed, too: {failure!r}")


# -- shared ------------------------------------------------------------------------------------------------------------


async def _no_more_senders(tx: Transaction, side: Side) -> None:
    # Nearly always there is none: an event that every send would have to set costs more than looking again.
    while tx.has_senders:
        await side.sleep(SENDER_PAUSE_SECONDS)


async def _notify(synchronization: Any, moment: str, tx: Transaction, side: Side) -> None:
    method = getattr(synchronization, moment, None)
    if method is not None:
        await side.invoke(method, tx)


async def _after(tx: Transaction, side: Side, moment: str) -> None:
    for synchronization in tx.synchronizations:
        try:
            await _notify(synchronization, moment, tx, side)
        except Exception:
            logger.exception("%s of %r failed; the transaction is over and stays %s", moment, synchronization, tx.state)
