"""The transaction methods of a producer, for threads and for event loops, over one TransactionManager.

A call changes the machine in the caller's thread, under the accumulator's lock, and wakes the I/O thread if there is
something to ask; then the caller waits. That is one hand-over there and one back for a commit, however many records it
waits for, and none for `begin_transaction` or for ending a transaction in which nothing was sent.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from ottla.client.engine import Engine, monotonic_ms
from ottla.client.producer.transaction_manager import TransactionManager
from ottla.client.producer.transaction_operation import Operation
from ottla.client.producer.transaction_tables import TransactionState
from ottla.client.topic_partition import ConsumerGroupMetadata, OffsetAndMetadata, TopicPartition
from ottla.errors import ClientClosed, IllegalTransactionState, InvalidTransactionTimeout, NoAnswer, OttlaError
from ottla_wire.messages.describe_configs import DescribeConfigsRequest, DescribeConfigsResource

if TYPE_CHECKING:
    from ottla.client.config import ProducerConfig
    from ottla.client.producer.record_accumulator import RecordAccumulator

Offsets = Mapping[TopicPartition, OffsetAndMetadata | int]

BROKER: Final = 4
TIMEOUT_LIMIT: Final = "transaction.max.timeout.ms"
LIMIT_TIMEOUT_MS: Final = 3_000

_ENDING: Final = (TransactionState.COMMITTING, TransactionState.ABORTING)

_ONLY_AGAIN: Final = {
    "init_transactions": "call init_transactions() again",
    "begin_transaction": "call begin_transaction() again",
    "send_offsets_to_transaction": "call it again, or abort_transaction()",
    "commit_transaction": (
        "whether the transaction is committed is not known: call commit_transaction() again, and nothing else"
    ),
    "abort_transaction": "call abort_transaction() again, and nothing else",
}


class TransactionMethods:
    """What `ProducerCore` offers for transactions; `*_async` on any event loop, the others (`_wait_for`) on threads."""

    config: ProducerConfig
    _transactions: TransactionManager | None
    _accumulator: RecordAccumulator
    _engine: Engine
    _lock: threading.Lock
    _closed: bool
    _wake: Callable[[], None]
    _start: Callable[[], object]

    @property
    def transactional_id(self) -> str | None:
        """The producer's transactional id; None: it has no transactions."""
        return self.config.transactional_id

    @property
    def transaction_state(self) -> TransactionState:
        """What the producer is in the middle of, at this moment."""
        if self._transactions is None:
            return TransactionState.UNINITIALIZED
        return self._transactions.state

    async def init_transactions_async(self, timeout: float | None = None) -> None:
        """Get a producer id, and with it the right to this transactional id. Once, before the first transaction.

        A transaction that an earlier instance left open is aborted, and that instance is fenced if it still runs.

        Raises:
            NoAnswer: it took longer than `timeout` seconds (`max_block_ms`); call it again.
            InvalidTransactionTimeout: `transaction_timeout_ms` is above what the brokers allow.
            TransactionalIdAuthorizationFailed: the id may not be used.
            IllegalTransactionState: it was called already, or the producer has no transactional id.
        """
        try:
            await self._await("init_transactions", lambda machine: machine.init(), timeout)
        except InvalidTransactionTimeout as error:
            raise await self._engine.call(self._with_limit(error)) from None

    async def begin_transaction_async(self) -> None:
        """Begin a transaction: what is sent from now on is visible to read_committed readers after the commit.

        Asks no broker, unless the transaction before was one after which the producer needs its next epoch.

        Raises:
            IllegalTransactionState: a transaction is open, or `init_transactions` was not called.
            ProducerFenced, ...: the producer is of no more use.
        """
        while not await self._await("begin_transaction", lambda machine: machine.begin(), None):
            pass

    async def send_offsets_to_transaction_async(
        self, offsets: Offsets, group_metadata: ConsumerGroupMetadata, timeout: float | None = None
    ) -> None:
        """Commit a group's offsets with the transaction: they are the next to read, and count if it is committed.

        Args:
            offsets: by partition, the offset of the next record to read.
            group_metadata: what the consumer's `group_metadata()` returns, so that a replaced member is refused.
            timeout: in seconds; `max_block_ms` if not given.

        Raises:
            NotInTransaction: no transaction is open.
            CommitFailed: the group has moved on without this member. The transaction must be aborted.
            NoAnswer: it took longer than `timeout`; call it again, or abort.
        """
        wanted = checked_offsets(offsets, group_metadata)
        await self._await(
            "send_offsets_to_transaction",
            lambda machine: machine.send_offsets(wanted, group_metadata, monotonic_ms()),
            timeout,
        )

    async def commit_transaction_async(
        self,
        timeout: float | None = None,
        *,
        offsets: Offsets | None = None,
        group_metadata: ConsumerGroupMetadata | None = None,
    ) -> None:
        """Commit: waits until all that was sent is stored, and the coordinator has taken the commit.

        Args:
            timeout: in seconds; `max_block_ms` if not given.
            offsets: to be committed with it, as `send_offsets_to_transaction` does, without waiting for that first.
            group_metadata: belongs to `offsets`.

        Raises:
            NotInTransaction: no transaction is open.
            NoAnswer: it took longer than `timeout`. Whether it is committed is not known: only this call may be
                repeated, and it then tells.
            TransactionTimedOut: the coordinator has aborted it, because it was open for too long.
            ProducerFenced: another producer has taken over the transactional id; close this one.
            OttlaError: whatever a send or the offsets failed with, whether or not that was seen.
                `abort_transaction` is next, for all but what is Fatal.
        """
        start = self._commit(offsets, group_metadata)
        await self._await("commit_transaction", start, timeout)

    async def abort_transaction_async(self, timeout: float | None = None) -> None:
        """Abort: nobody who reads committed records sees any of it, and what was not sent is dropped.

        The futures of dropped records fail with TransactionAborted. After it the next transaction may begin, also after
        a failure.

        Raises:
            NotInTransaction: no transaction is open.
            NoAnswer: it took longer than `timeout` seconds (`max_block_ms`); only this call may be repeated.
            ProducerFenced: another producer has taken over the transactional id; close this one.
        """
        await self._await("abort_transaction", lambda machine: machine.abort(), timeout)

    # --- parts

    async def _with_limit(self, error: InvalidTransactionTimeout) -> InvalidTransactionTimeout:
        """The same error with the brokers' limit, if they tell it."""
        try:
            node_id = await self._engine.cluster.any_node()
            broker = DescribeConfigsResource(
                resource_type=BROKER, resource_name=str(node_id), configuration_keys=[TIMEOUT_LIMIT]
            )
            request = DescribeConfigsRequest(resources=[broker])
            answer = await self._engine.cluster.send(node_id, request, timeout_ms=LIMIT_TIMEOUT_MS)
            (limit,) = answer.results[0].configs
        except (OttlaError, ValueError):
            return error
        return InvalidTransactionTimeout(f"{error}: {limit.value}")

    def _commit(
        self, offsets: Offsets | None, group: ConsumerGroupMetadata | None
    ) -> Callable[[TransactionManager], Operation]:
        if offsets is None and group is None:
            return lambda machine: machine.commit()
        if offsets is None or group is None:
            raise TypeError("commit_transaction: offsets and group_metadata belong together")
        wanted = checked_offsets(offsets, group)

        def start(machine: TransactionManager) -> Operation:
            if machine.state is TransactionState.IN_TRANSACTION:  # and no repeated call
                machine.send_offsets(wanted, group, monotonic_ms())
            return machine.commit()

        return start

    def _begin_operation(
        self,
        method: str,
        start: Callable[[TransactionManager], Operation | None],
        attach: Callable[[Operation], None],
    ) -> Operation | None:
        """Change the machine, and have the I/O thread look; None: that was all, there is nothing to wait for."""
        machine = self._transactions
        if machine is None:
            raise IllegalTransactionState(f"{method}: this producer has no transactional_id, and so no transactions")
        if method == "init_transactions":
            self._start()
        with self._lock:
            if self._closed:
                raise ClientClosed("the producer is closed")
            operation = start(machine)
            if operation is None:
                return None
            if machine.state in _ENDING:
                self._accumulator.end_batches()
                machine.settle(unfinished=self._accumulator.has_unfinished)
            if not operation.is_done:
                attach(operation)
        if not operation.is_done:
            self._wake()
        return operation

    def _wait_for(
        self, method: str, start: Callable[[TransactionManager], Operation | None], timeout: float | None
    ) -> bool:
        """On a thread. False where `begin` has to be tried again after what was waited for."""
        self._engine.check_may_wait(f"Async{type(self).__name__}.{method}(...)")
        done = threading.Lock()
        done.acquire()
        operation = self._begin_operation(method, start, lambda operation: operation.on_done(done.release))
        if operation is None:
            return True
        limit = self.config.max_block_ms / 1000 if timeout is None else timeout
        if not operation.is_done and not done.acquire(timeout=max(0.0, min(limit, threading.TIMEOUT_MAX))):
            raise self._no_answer(operation, limit)
        return _acknowledge(operation)

    async def _await(
        self, method: str, start: Callable[[TransactionManager], Operation | None], timeout: float | None
    ) -> bool:
        """The same on any event loop."""
        done, wake = _loop_waiter()
        operation = self._begin_operation(method, start, lambda operation: operation.on_done(wake))
        if operation is None:
            return True
        if not operation.is_done:
            limit = self.config.max_block_ms / 1000 if timeout is None else timeout
            try:
                async with asyncio.timeout(limit):
                    await done
            except TimeoutError:
                raise self._no_answer(operation, limit) from None
        return _acknowledge(operation)

    def _no_answer(self, operation: Operation, limit: float) -> NoAnswer:
        assert self._transactions is not None
        with self._lock:
            waits_for = self._transactions.waits_for(len(self._accumulator.incomplete))
        return NoAnswer(
            f"{operation.method} of transactional id {self.transactional_id!r} took longer than {limit} s, waiting for "
            f"{waits_for}: {_ONLY_AGAIN[operation.method]}"
        )

    # --- closing

    def _end_transaction_blocking(self, timeout: float | None) -> None:
        """Before the producer closes: abort an open transaction, or wait for the one that is being ended."""
        done = threading.Lock()
        done.acquire()
        if self._begin_last(done.release) and not self._engine.is_io_thread:
            limit = self.config.max_block_ms / 1000 if timeout is None else timeout
            done.acquire(timeout=max(0.0, min(limit, threading.TIMEOUT_MAX)))

    async def _end_transaction_async(self, timeout: float | None) -> None:
        done, wake = _loop_waiter()
        if self._begin_last(wake):
            limit = self.config.max_block_ms / 1000 if timeout is None else timeout
            await asyncio.wait([done], timeout=limit)

    def _begin_last(self, wake: Callable[[], object]) -> bool:
        """Abort what is open; says whether there is anything to wait for."""
        machine = self._transactions
        if machine is None or machine.transactional_id is None or self._closed:
            return False
        with self._lock:
            operation = machine.abort_at_close()
            if operation is None:
                return False
            self._accumulator.end_batches()
            machine.settle(unfinished=self._accumulator.has_unfinished)
            if operation.is_done:
                return False
            operation.on_done(wake)
        self._wake()
        return True


def _loop_waiter() -> tuple[asyncio.Future[None], Callable[[], None]]:
    """Something to await on this event loop, and how to wake it from any thread."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(finish)
        except RuntimeError:
            pass  # the loop was closed: nobody waits there any more

    return done, wake


def _acknowledge(operation: Operation) -> bool:
    operation.acknowledged = True
    if operation.error is not None:
        raise operation.error.with_traceback(None)
    return operation.method != "begin_transaction"


def checked_offsets(offsets: Offsets, group: ConsumerGroupMetadata) -> dict[TopicPartition, OffsetAndMetadata]:
    """Offsets as the machine wants them.

    Raises:
        TypeError: one of them, or the group's metadata, is something else.
        ValueError: an offset is negative.
    """
    if not isinstance(group, ConsumerGroupMetadata):
        raise TypeError(f"group_metadata is what consumer.group_metadata() returns, got {group!r}")
    wanted: dict[TopicPartition, OffsetAndMetadata] = {}
    for partition, offset in offsets.items():
        if isinstance(offset, int) and not isinstance(offset, bool):
            offset = OffsetAndMetadata(offset)
        if not isinstance(offset, OffsetAndMetadata):
            raise TypeError(f"the offset of {partition} is a number or an OffsetAndMetadata, got {offset!r}")
        wanted[TopicPartition(*partition)] = offset
    return wanted
