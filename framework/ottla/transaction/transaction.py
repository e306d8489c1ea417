"""Transaction: one transaction of one producer, from its begin to its end.

Theory of operation. A transaction is OPEN until somebody ends it, and only one can: whoever leaves the block, or the
watchdog. Each step is made under a lock; what it brings about is in `boundaries`.

    OPEN --(a database or hook wants all sends stored: PREPARING)--> ENDING --> COMMITTED | ABORTED | UNKNOWN
      '--watchdog--> TIMED_OUT --the block is left--> ABORTED

TIMED_OUT means that the producer is being aborted in the background, while the block still runs. It may come out of
PREPARING, too; once a commit is under way, nothing but its outcome counts.

A send does not take that lock. It registers in `_sending`, looks at the state, sends, and signs off; who ends the
transaction changes the state first and then waits until nobody is registered. So a thread that is in the middle of a
send while another one ends the transaction is either part of it or sees that it has ended; its record never gets into
the next transaction of the same producer. `_futures` are the sends so far, the finished ones dropped now and then.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar

from ottla.client import OffsetAndMetadata, TopicPartition
from ottla.client.topic_partition import ConsumerGroupMetadata
from ottla.errors import SendError, TransactionAborted, TransactionEnded, TransactionTimedOut
from ottla.send import SendFuture
from ottla.transaction import context
from ottla.transaction.producer_pool import PooledProducer

if TYPE_CHECKING:
    from ottla.transaction.limits import TransactionLimits
    from ottla.transaction.producer_pools import ProducerPools

logger = logging.getLogger("ottla.transaction")

P = ParamSpec("P")
T = TypeVar("T")

PRUNE_ABOVE: Final = 1024
SENDER_PAUSE_SECONDS: Final = 0.001


class Synchronization(Protocol):
    """Called around the end of a transaction (Spring: TransactionSynchronization). Each method may be left out.

    In an `async with` block they may be coroutine functions. An error of the first two aborts the transaction; one of
    the last two is logged, since nothing can be undone any more.
    """

    def before_commit(self, tx: Transaction) -> Awaitable[None] | None:
        """The block went well; sends are still part of the transaction."""

    def before_completion(self, tx: Transaction) -> Awaitable[None] | None:
        """All sends are stored, and the commit comes next."""

    def after_commit(self, tx: Transaction) -> Awaitable[None] | None:
        """Readers see what was sent."""

    def after_rollback(self, tx: Transaction) -> Awaitable[None] | None:
        """Nothing of it will be seen."""


class TransactionState(Enum):
    """Where a transaction is on its way; see the picture above."""

    OPEN = "open"
    PREPARING = "being prepared"
    ENDING = "ending"
    COMMITTED = "committed"
    ABORTED = "aborted"
    TIMED_OUT = "timed out"
    UNKNOWN = "outcome unknown"


_OPEN = TransactionState.OPEN


class Transaction:
    """A transaction: what `with template.transaction() as tx` gives. Any thread that is part of it may use it."""

    # What most transactions never need is here, so that beginning one costs less.
    synchronizations: Sequence[Any] = ()
    databases: Sequence[tuple[Any, Any]] = ()
    """Databases, each with its transaction, that are to be committed first."""
    databases_committed = 0
    depth = 1
    """How many blocks are inside of each other: the one that began it, and those that joined."""
    rollback_only = False
    inner_failure: BaseException | None = None
    rolled_back_inside = False
    timing_out: concurrent.futures.Future[BaseException | None] | None = None
    """Its abort by the watchdog, and what went wrong with that."""
    _failure: SendError | None = None
    _offsets: Mapping[str, tuple[ConsumerGroupMetadata, dict[TopicPartition, OffsetAndMetadata]]] = {}

    def __init__(self, factory: object, pooled: PooledProducer, pools: ProducerPools, timeout: float) -> None:
        self.factory = factory
        self.pooled = pooled
        self.producer = pooled.producer
        self.timeout = timeout
        self.state = _OPEN
        self.deadline = pools.clock() + timeout
        self._pools = pools
        self._lock = threading.Lock()
        self._sending: list[None] = []
        self._futures: deque[SendFuture] = deque()
        self._remember = self._futures.append
        self._send = pooled.producer.send
        pools.watchdog.add(self)

    # -- what a user calls ---------------------------------------------------------------------------------------------

    @property
    def is_active(self) -> bool:
        """Whether a send would be part of it."""
        return self.state is TransactionState.OPEN

    @property
    def transactional_id(self) -> str:
        """The id of its producer."""
        return self.pooled.transactional_id

    def send_offsets(
        self, offsets: Mapping[TopicPartition, OffsetAndMetadata | int], group_metadata: ConsumerGroupMetadata
    ) -> None:
        """Commit a group's positions with the transaction: all of it is seen, or nothing.

        The positions are sent when the block is left, and a refusal (the member has been replaced) aborts. Later
        positions of the same partitions replace earlier ones.

        Args:
            offsets: for each partition the offset of the next record to read.
            group_metadata: the member that read them: `consumer.group_metadata()` (KIP-447).

        Raises:
            TransactionEnded: it is over.
            TypeError: the arguments are of other types.
        """
        if not isinstance(group_metadata, ConsumerGroupMetadata):
            raise TypeError(f"send_offsets takes consumer.group_metadata(), not {group_metadata!r}")
        wanted = {
            TopicPartition(*partition): place if isinstance(place, OffsetAndMetadata) else OffsetAndMetadata(place)
            for partition, place in offsets.items()
        }
        with self._lock:
            if self.state is not TransactionState.OPEN:
                raise self._not_open()
            _, known = self._offsets.get(group_metadata.group_id, (None, {}))
            self._offsets = {**self._offsets, group_metadata.group_id: (group_metadata, known | wanted)}

    def set_rollback_only(self) -> None:
        """Abort when the block is left, also if it goes well. In a block that joined, the outer one then raises."""
        self.rollback_only = True
        if self.depth > 1:
            self.rolled_back_inside = True

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function as part of the transaction, on a thread or task that is outside of it.

        For instance `executor.submit(tx.run, work, argument)`. Of a coroutine function this gives the coroutine.
        """
        if inspect.iscoroutinefunction(function):
            return self._run_async(function(*args, **kwargs))  # type: ignore[return-value]
        with self.bound():
            return function(*args, **kwargs)

    async def _run_async(self, coroutine: Coroutine[Any, Any, T]) -> T:
        with self.bound():
            return await coroutine

    def add_synchronization(self, synchronization: Synchronization | Any) -> None:
        """Have an object called around the end; see `Synchronization` for its methods.

        Raises:
            TransactionEnded: it is over.
        """
        if self.state is not TransactionState.OPEN:
            raise self._not_open()
        self.synchronizations = [*self.synchronizations, synchronization]

    # -- what the framework calls --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def bound(self) -> Any:
        """Sends in this context are part of it, until the end of the block."""
        frame = context.enter(self.factory, self)
        try:
            yield
        finally:
            context.leave(frame)

    def send(
        self, topic: str, value: Any, key: Any, partition: int | None, timestamp_ms: int | None, headers: Any
    ) -> SendFuture:
        """Send a record as part of it.

        Raises:
            TransactionEnded: it is over.
            TransactionTimedOut: it took too long and was aborted.
        """
        # Every record of a transactional listener comes through here: bound once, no call that can be spared.
        sending = self._sending
        sending.append(None)
        try:
            if self.state is not _OPEN:
                raise self._not_open()
            future = self._send(topic, value, key, partition, timestamp_ms, headers)
            self._remember(future)
        finally:
            sending.pop()
        if len(self._futures) > PRUNE_ABOVE:
            self._forget_done()
        return future

    def shorten(self, timeout: float) -> None:
        """A block that joined is to end within so many seconds."""
        deadline = self._pools.clock() + timeout
        if deadline < self.deadline:
            self.deadline = deadline
            self._pools.watchdog.shorten(self)

    def fail_inside(self, error: BaseException) -> None:
        """A block that had joined failed: whoever began the transaction must not commit it."""
        self.rollback_only = True
        if self.inner_failure is None:
            self.inner_failure = error

    def _not_open(self) -> TransactionEnded | TransactionTimedOut:
        if self.state is TransactionState.TIMED_OUT:
            return self.timed_out()
        return TransactionEnded(
            f"the transaction that this code is part of is over ({self.state.value}): the block that began it was left "
            "before. Wait for the task or thread inside of the block, or let it use a `template.transaction()` of its "
            "own"
        )

    def timed_out(self) -> TransactionTimedOut:
        """The error of a transaction that the watchdog ended."""
        return TransactionTimedOut(
            f"the transaction was open for longer than its {self.timeout:g} s and was aborted, before the coordinator "
            "would have done so: do less in one transaction, or raise timeout= (or transaction_timeout_ms, which "
            "limits it)"
        )

    @property
    def limits(self) -> TransactionLimits:
        """How long it may be open."""
        return self._pools.limits

    @property
    def patience(self) -> float:
        """Seconds after which an abort under way has certainly come to its end."""
        return self._pools.patience

    def _forget_done(self) -> None:
        """Drop sends that went well, so that a long transaction does not hold every one. One thread at a time."""
        futures = self._futures
        if not self._lock.acquire(blocking=False):
            return
        try:
            while len(futures) > 1 and futures[0].done():
                failure = futures.popleft().exception()
                if failure is not None and self._failure is None and _is_origin(failure):
                    self._failure = failure
        finally:
            self._lock.release()

    # -- the way to its end, for `boundaries` --------------------------------------------------------------------------

    def step(self, after: TransactionState, *before: TransactionState) -> bool:
        """Go on from one of these states; False: somebody else was faster."""
        with self._lock:
            if self.state not in before:
                return False
            self.state = after
        if after is TransactionState.ENDING:
            self._pools.watchdog.remove(self)
        return True

    def end(self, state: TransactionState, *, failed: bool = False) -> None:
        """It is over. The producer goes back to its pool; one that failed is closed."""
        self._pools.watchdog.remove(self)
        self.state = state
        self.pooled.pool.give_back(self.pooled, failed=failed)

    def abandon(self) -> None:
        """Whoever was to end it is gone: close the producer, which aborts it."""
        if self.step(
            TransactionState.ENDING, TransactionState.OPEN, TransactionState.PREPARING, TransactionState.TIMED_OUT
        ):
            self.end(TransactionState.ABORTED, failed=True)

    @property
    def has_senders(self) -> bool:
        """Whether a thread is in the middle of a send."""
        return bool(self._sending)

    def take_offsets(self) -> list[tuple[ConsumerGroupMetadata | None, dict[TopicPartition, OffsetAndMetadata] | None]]:
        """The positions that are to be committed with it and have not been sent yet, by group."""
        offsets, self._offsets = self._offsets, {}
        return [*offsets.values()]

    def first_failure(self) -> SendError | None:
        """The first send that failed by itself, in the order of the calls: not as a consequence of another failure."""
        with self._lock:  # a thread whose send is done may be in the middle of `_forget_done` still
            if self._failure is not None:
                return self._failure
            for future in self._futures:
                failure = future.exception() if future.done() else None
                if failure is not None and _is_origin(failure):
                    return failure
        return None

    # -- the watchdog --------------------------------------------------------------------------------------------------

    def time_out(self) -> None:
        """See Watched. The producer stays with the transaction until the block is left."""
        with self._lock:
            if self.state not in (TransactionState.OPEN, TransactionState.PREPARING):
                return
            # First this: who leaves the block at this very moment waits for it as soon as the state says so.
            self.timing_out = self._pools.engine.submit(self._abort_timed_out())
            self.state = TransactionState.TIMED_OUT
        logger.warning("%s: %s", self.transactional_id, self.timed_out())

    async def _abort_timed_out(self) -> BaseException | None:
        while self.has_senders:  # noqa: ASYNC110 - see boundaries.no_more_senders
            await asyncio.sleep(SENDER_PAUSE_SECONDS)
        try:
            await self.producer.abort_transaction_async()
        except Exception as failure:  # noqa: BLE001 - reported where the block is left
            return failure
        return None


def _is_origin(failure: SendError) -> bool:
    """Whether the send failed by itself, and not because its transaction had failed already."""
    return not isinstance(failure.__cause__, TransactionAborted)
