"""ProducerPool: the transactional producers of one prefix, each used by one transaction at a time.

Theory of operation. A producer is *idle* (in the pool), *in use* (by a transaction), or *being made* (its id is
registered with the brokers, which takes a round trip or two). The lock guards only the counting; nothing waits while
holding it. Who finds no idle producer makes one while there are fewer than `limit`, and otherwise takes a place in a
line. What comes free goes to the first in the line: a producer that comes back, or the right to make one.

A producer that failed is closed in place of coming back, and its id is free at once: the next producer registers the
same id anew, so its epoch is above the failed one's, and whatever that had left open is aborted.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from ottla.client import KafkaProducer
from ottla.client.engine import Engine
from ottla.client.producer.memory_gate import task_waiter, thread_waiter
from ottla.errors import CannotBeginTransaction, NoProducerAvailable
from ottla.transaction.slots import Slot

if TYPE_CHECKING:
    from ottla.transaction.producer_pools import ProducerPools

logger = logging.getLogger("ottla.transaction")

PATIENCE_SECONDS: Final = 5.0
"""How much longer than a producer's own time limits a thread waits for it."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How the pools of a factory behave. Times in seconds.

    Attributes:
        make: gives a producer for a transactional id, not registered yet.
        limit: how many producers a prefix has at most.
        max_age: a producer that was idle for longer is replaced when its turn comes.
        max_wait: how long a transaction waits for a producer when `limit` are in use.
        fixed_ranges: the ids of the first prefix are 0..limit-1, of the second limit..2*limit-1 (Spring's bounded
            strategy); else all prefixes share one counter.
        clock: monotonic seconds.
    """

    make: Callable[[str, Engine], KafkaProducer]
    limit: int
    max_age: float
    max_wait: float
    fixed_ranges: bool = False
    clock: Callable[[], float] = time.monotonic


@dataclass(slots=True, eq=False)
class PooledProducer:
    """A producer of a pool, which threads and tasks both use, with the slot that its transactional id comes from."""

    producer: KafkaProducer
    slot: Slot
    pool: ProducerPool
    idle_since: float = 0.0

    @property
    def transactional_id(self) -> str:
        """Its transactional id."""
        return self.slot.transactional_id


class PoolRetired(Exception):
    """The factory was reset meanwhile: ask it for its present pool."""


class _Outcome(Enum):
    MAKE = "make"
    RETIRED = "retired"


@dataclass(slots=True, eq=False)
class _Place:
    """A place in the line, and what came of it."""

    wake: Callable[[], object]
    outcome: PooledProducer | _Outcome | None = None


class ProducerPool:
    """The transactional producers of one prefix. Any thread and any event loop may use it."""

    def __init__(self, pools: ProducerPools, prefix: str, index: int, settings: PoolSettings) -> None:
        self.prefix = prefix
        self._pools = pools
        self._settings = settings
        self._first_number = index * settings.limit if settings.fixed_ranges else 0
        self._lock = threading.Lock()
        self._idle: list[PooledProducer] = []
        self._line: deque[_Place] = deque()
        self._count = 0
        self._retired = False

    @property
    def idle(self) -> list[str]:
        """The transactional ids of idle producers; the last one is the next to be used."""
        with self._lock:
            return [pooled.transactional_id for pooled in self._idle]

    # -- taking --------------------------------------------------------------------------------------------------------

    def take(self) -> PooledProducer:
        """An idle producer, or a new one; waits in this thread for `max_wait` at most.

        Raises:
            NoProducerAvailable: all are in use, and none came back in time.
            CannotBeginTransaction: a new one could not be registered.
            PoolRetired: see there.
        """
        pooled = self._take_idle()
        if pooled is not None:
            return pooled
        joined = self._join(thread_waiter)
        if joined is not None:
            place, wait = joined
            try:
                wait(self._settings.max_wait)
            except BaseException:
                self._leave(place)
                raise
            granted = self._granted(place)
            if granted is not None:
                return granted
        making = self._pools.engine.submit(self._make())
        patience = self._settings.max_wait + PATIENCE_SECONDS
        try:
            return making.result(patience)
        except concurrent.futures.CancelledError:
            raise _closed() from None
        except concurrent.futures.TimeoutError:
            making.add_done_callback(_give_back_unclaimed)
            if making.done():
                raise
            raise CannotBeginTransaction(
                f"the transaction did not begin: no producer could be registered within {patience:g} s"
            ) from None
        except BaseException:
            making.add_done_callback(_give_back_unclaimed)
            raise

    async def take_async(self) -> PooledProducer:
        """`take`, awaited, on whatever loop."""
        pooled = self._take_idle()
        if pooled is not None:
            return pooled
        joined = self._join(task_waiter)
        if joined is not None:
            place, woken = joined
            try:
                async with asyncio.timeout(self._settings.max_wait):
                    await woken
            except TimeoutError:
                pass
            except BaseException:
                self._leave(place)
                raise
            granted = self._granted(place)
            if granted is not None:
                return granted
        making = self._pools.engine.submit(self._make())
        try:
            return await asyncio.shield(asyncio.wrap_future(making))
        except asyncio.CancelledError:
            if making.cancelled():
                raise _closed() from None
            making.add_done_callback(_give_back_unclaimed)
            raise

    def _take_idle(self) -> PooledProducer | None:
        """An idle producer that is young enough. None: `_join`."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                pooled = self._idle.pop()
                if self._settings.clock() - pooled.idle_since <= self._settings.max_age:
                    return pooled
            logger.debug("%s was idle for longer than max_age and is replaced", pooled.transactional_id)
            self.give_back(pooled, failed=False, keep=False)

    def _join(self, make_waiter: Callable[[], tuple[Callable[[], object], Any]]) -> tuple[_Place, Any] | None:
        """A place in the line, with what to wait on; None if the caller is to make a producer."""
        with self._lock:
            if self._retired:
                raise PoolRetired
            if self._count < self._settings.limit:
                self._count += 1
                return None
            wake, wait = make_waiter()
            place = _Place(wake)
            self._line.append(place)
            return place, wait

    def _granted(self, place: _Place) -> PooledProducer | None:
        """What the wait has brought: a producer; None: the right to make one."""
        with self._lock:
            outcome = place.outcome
            if outcome is None:
                self._line.remove(place)
        if isinstance(outcome, PooledProducer):
            return outcome
        if outcome is _Outcome.MAKE:
            return None
        if outcome is _Outcome.RETIRED:
            raise PoolRetired
        raise NoProducerAvailable(
            f"no producer available: all {self._settings.limit} of the prefix {self.prefix!r} (max_producers) were in "
            f"use by other transactions for {self._settings.max_wait:g} s; raise max_producers, or end transactions "
            "sooner"
        )

    def _leave(self, place: _Place) -> None:
        """Whoever waited was interrupted: what came for it meanwhile goes to the next one."""
        with self._lock:
            outcome = place.outcome
            if outcome is None:
                self._line.remove(place)
        if isinstance(outcome, PooledProducer):
            self.give_back(outcome)
        elif outcome is _Outcome.MAKE:
            self._one_fewer()

    # -- making --------------------------------------------------------------------------------------------------------

    async def _make(self) -> PooledProducer:
        """Make a producer and register its id, on the engine's loop. It has been counted already."""
        try:
            pooled = await self._made()
        except BaseException:
            self._one_fewer()
            raise
        return pooled

    async def _made(self) -> PooledProducer:
        shared = not self._settings.fixed_ranges
        slot = await asyncio.to_thread(self._pools.slots.take, self.prefix, self._first_number, shared=shared)
        try:
            producer = self._settings.make(slot.transactional_id, self._pools.engine)
        except BaseException:
            slot.release()
            raise
        pooled = PooledProducer(producer, slot, self)
        self._pools.adopt(pooled)
        try:
            await producer.init_transactions_async()
        except BaseException as error:
            # Nothing of this producer can be open: only what its predecessor left, which whoever comes next ends.
            self._pools.discard(pooled, clean=False)
            if not isinstance(error, Exception):
                raise
            raise CannotBeginTransaction(
                f"the transaction did not begin: init_transactions() failed for {pooled.transactional_id!r}: {error}"
            ) from error
        return pooled

    # -- giving back ---------------------------------------------------------------------------------------------------

    def give_back(self, pooled: PooledProducer, *, failed: bool = False, keep: bool = True) -> None:
        """The transaction is over. A producer that failed is closed, any other serves the next transaction."""
        with self._lock:
            keep = keep and not failed and not self._retired
            if keep:
                place = self._line.popleft() if self._line else None
                if place is not None:
                    place.outcome = pooled
                else:
                    pooled.idle_since = self._settings.clock()
                    self._idle.append(pooled)
        if not keep:
            self._pools.discard(pooled, clean=not failed)  # frees the id before somebody else may make a producer
            self._one_fewer()
        elif place is not None:
            place.wake()

    def _one_fewer(self) -> None:
        with self._lock:
            place = self._line.popleft() if self._line else None
            if place is not None:
                place.outcome = _Outcome.MAKE
            else:
                self._count -= 1
        if place is not None:
            place.wake()

    def retire(self) -> list[concurrent.futures.Future[None]]:
        """Hand out no more; idle producers are closed now, the others as they come back. Gives the closings."""
        with self._lock:
            self._retired = True
            idle, self._idle = self._idle, []
            line = list(self._line)
            self._line.clear()
            for place in line:
                place.outcome = _Outcome.RETIRED
            self._count -= len(idle)
        for place in line:
            place.wake()
        closing = [self._pools.discard(pooled, clean=True) for pooled in idle]
        return [future for future in closing if future is not None]


def _closed() -> CannotBeginTransaction:
    return CannotBeginTransaction("the transaction did not begin: the client was closed meanwhile")


def _give_back_unclaimed(making: concurrent.futures.Future[PooledProducer]) -> None:
    """Whoever asked for the producer no longer waits for it."""
    if not making.cancelled() and making.exception() is None:
        pooled = making.result()
        pooled.pool.give_back(pooled)
