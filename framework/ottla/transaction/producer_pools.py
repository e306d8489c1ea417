"""ProducerPools: what all transactional producers of a factory share, from one reset to the next.

That is the engine (one I/O thread for all of them), the slots, the watchdog, and a pool for each prefix. A reset
retires the whole: the transactions that run finish on it, and with its last producer it closes the engine, if that is
its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from typing import Final

from ottla.client.engine import Engine
from ottla.client.producer.transaction_tables import TransactionState as ProducerState
from ottla.errors import ClientClosed
from ottla.transaction.limits import TransactionLimits
from ottla.transaction.producer_pool import PooledProducer, PoolSettings, ProducerPool
from ottla.transaction.slots import Slots
from ottla.transaction.watchdog import Watchdog

logger = logging.getLogger("ottla.transaction")

CLOSE_SECONDS: Final = 5.0


class ProducerPools:
    """The pools of a factory. Any thread may use it.

    Args:
        prefix: of transactional ids, where a template has none of its own.
        engine: whose I/O thread the producers use.
        owns_engine: close it with the last producer.
        slots: where transactional ids come from.
        settings: of each pool.
        limits: how long a transaction may be open.
        patience: seconds after which the end of a transaction has come to its own end, by the producers' time limits.
    """

    def __init__(
        self,
        prefix: str,
        engine: Engine,
        *,
        owns_engine: bool,
        slots: Slots,
        settings: PoolSettings,
        limits: TransactionLimits,
        patience: float,
    ) -> None:
        self.prefix = prefix
        self.engine = engine
        self.slots = slots
        self.limits = limits
        self.patience = patience
        self.clock = settings.clock
        self.watchdog = Watchdog(engine, settings.clock)
        self._owns_engine = owns_engine
        self._settings = settings
        self._lock = threading.Lock()
        self._pools: dict[str, ProducerPool] = {}
        self._alive: set[PooledProducer] = set()
        self._retired = False
        engine.at_exit(self._at_exit)

    def pool(self, prefix: str) -> ProducerPool:
        """The pool of a prefix. With the first use of a prefix, what a dead process left open under it is ended."""
        pool = self._pools.get(prefix)
        if pool is not None:
            return pool
        with self._lock:
            pool = self._pools.get(prefix)
            if pool is None:
                pool = self._pools[prefix] = ProducerPool(self, prefix, len(self._pools), self._settings)
                is_new = True
            else:
                is_new = False
        if is_new:
            self.end_left_behind_soon(prefix)
        return pool

    def adopt(self, pooled: PooledProducer) -> None:
        """A producer was made."""
        with self._lock:
            self._alive.add(pooled)

    def discard(self, pooled: PooledProducer, *, clean: bool) -> concurrent.futures.Future[None] | None:
        """Free a producer's id at once, and close it in the background. Not `clean`: a transaction may be open."""
        try:
            pooled.slot.release(clean=clean)
        except OSError as error:
            logger.warning("the slot of %s was not given up cleanly: %s", pooled.transactional_id, error)
        try:
            # One that cannot say anything to its coordinator any more is not waited for.
            is_lost = pooled.producer.transaction_state in (ProducerState.FATAL, ProducerState.COMMITTING)
            return self.engine.submit(self._close(pooled, 0.0 if is_lost else CLOSE_SECONDS))
        except ClientClosed:
            self._forget(pooled)
            return None

    async def _close(self, pooled: PooledProducer, timeout: float) -> None:
        try:
            await pooled.producer.close_async(timeout)
        except Exception as error:  # noqa: BLE001 - nobody waits for this one any more
            logger.warning("the producer %s did not close cleanly: %s", pooled.transactional_id, error)
        finally:
            self._forget(pooled)

    def _forget(self, pooled: PooledProducer) -> None:
        with self._lock:
            self._alive.discard(pooled)
        self._close_engine_if_unused()

    # -- what dead processes left --------------------------------------------------------------------------------------

    def end_left_behind_soon(self, prefix: str) -> concurrent.futures.Future[int]:
        """Begin to; it goes on in the background."""
        return self.engine.submit(self.end_left_behind(prefix))

    async def end_left_behind(self, prefix: str) -> int:
        """Register every id that a process of this host died with, which aborts what is open under it.

        Returns:
            How many ids that were.
        """
        count = 0
        for number in await asyncio.to_thread(self.slots.left_behind, prefix):
            slot = await asyncio.to_thread(self.slots.take_number, prefix, number)
            if slot is None:
                continue  # in use: its process is alive
            clean = False
            try:
                producer = self._settings.make(slot.transactional_id, self.engine)
                try:
                    await producer.init_transactions_async()
                    clean = True
                finally:
                    await producer.close_async(CLOSE_SECONDS)
            except Exception as error:  # noqa: BLE001 - the coordinator ends it too, at the transaction's time-out
                logger.warning(
                    "what a process of this host left open as %s is not ended yet: %s", slot.transactional_id, error
                )
                return count
            finally:
                slot.release(clean=clean)
            count += 1
            logger.info("ended what a process of this host may have left open as %s", slot.transactional_id)
        return count

    # -- the end -------------------------------------------------------------------------------------------------------

    def retire(self, timeout: float | None = None) -> None:
        """Hand out no more producers; close the idle ones, waiting `timeout` seconds at most, and the others later."""
        with self._lock:
            if self._retired:
                return
            self._retired = True
            pools = list(self._pools.values())
        self.engine.forget_exit(self._at_exit)
        closing = [future for pool in pools for future in pool.retire()]
        if timeout and not self.engine.is_io_thread:
            concurrent.futures.wait(closing, timeout)
        self._close_engine_if_unused()

    def _close_engine_if_unused(self) -> None:
        with self._lock:
            unused = self._retired and not self._alive
        if unused and self._owns_engine:
            self.engine.close()

    def _at_exit(self) -> None:
        """At interpreter exit idle producers have nothing open: their notes need not alarm the next process."""
        for pool in list(self._pools.values()):
            pool.retire()
