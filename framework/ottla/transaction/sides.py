"""The two sides from which a transaction is begun and ended: a thread that blocks, and a task that awaits.

What happens around a transaction is written once, as coroutines. On the blocking side nothing in them suspends, so a
thread runs them in one step (`run_blocking`). The producer is the same on both: it has its methods in two forms.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from ottla.client import KafkaProducer
from ottla.transaction.producer_pool import PooledProducer, ProducerPool


class Side(Protocol):
    """How to wait, and how to call the application."""

    async def take(self, pool: ProducerPool) -> PooledProducer:
        """Take a producer."""

    async def begin(self, producer: KafkaProducer) -> None:
        """Begin a transaction."""

    async def flush(self, producer: KafkaProducer) -> None:
        """Wait until all sends are done."""

    async def send_offsets(self, producer: KafkaProducer, offsets: Any, group_metadata: Any) -> None:
        """Send a group's offsets."""

    async def commit(self, producer: KafkaProducer, offsets: Any, group_metadata: Any) -> asyncio.CancelledError | None:
        """Commit, with offsets or None. Returns a cancellation that came meanwhile."""

    async def abort(self, producer: KafkaProducer) -> asyncio.CancelledError | None:
        """Abort. Returns a cancellation that came meanwhile."""

    async def invoke(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the application here."""

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""

    async def outcome(self, future: concurrent.futures.Future[Any], seconds: float) -> Any:
        """Wait for what happens on the engine's loop."""


class BlockingSide:
    """A thread. An interrupt ends the wait, not what the producer does."""

    async def take(self, pool: ProducerPool) -> PooledProducer:
        """See Side."""
        return pool.take()

    async def begin(self, producer: KafkaProducer) -> None:
        """See Side."""
        producer.begin_transaction()

    async def flush(self, producer: KafkaProducer) -> None:
        """See Side."""
        producer.flush()

    async def send_offsets(self, producer: KafkaProducer, offsets: Any, group_metadata: Any) -> None:
        """See Side."""
        producer.send_offsets_to_transaction(offsets, group_metadata)

    async def commit(self, producer: KafkaProducer, offsets: Any, group_metadata: Any) -> None:
        """See Side."""
        producer.commit_transaction(offsets=offsets, group_metadata=group_metadata)

    async def abort(self, producer: KafkaProducer) -> None:
        """See Side."""
        producer.abort_transaction()

    async def invoke(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """See Side."""
        result = function(*arguments)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise TypeError(f"{function!r} is async: it needs `async with template.transaction()`")
        return result

    async def sleep(self, seconds: float) -> None:
        """See Side."""
        time.sleep(seconds)  # noqa: ASYNC251 - blocking is what this side is for

    async def outcome(self, future: concurrent.futures.Future[Any], seconds: float) -> Any:
        """See Side."""
        return future.result(seconds)


class AwaitingSide:
    """A task, on whatever loop."""

    async def take(self, pool: ProducerPool) -> PooledProducer:
        """See Side."""
        return await pool.take_async()

    async def begin(self, producer: KafkaProducer) -> None:
        """See Side."""
        await producer.begin_transaction_async()

    async def flush(self, producer: KafkaProducer) -> None:
        """See Side."""
        await producer.flush_async()

    async def send_offsets(self, producer: KafkaProducer, offsets: Any, group_metadata: Any) -> None:
        """See Side."""
        await producer.send_offsets_to_transaction_async(offsets, group_metadata)

    async def commit(self, producer: KafkaProducer, offsets: Any, group_metadata: Any) -> asyncio.CancelledError | None:
        """See Side."""
        return await _to_the_end(
            lambda: producer.commit_transaction_async(offsets=offsets, group_metadata=group_metadata)
        )

    async def abort(self, producer: KafkaProducer) -> asyncio.CancelledError | None:
        """See Side."""
        return await _to_the_end(producer.abort_transaction_async)

    async def invoke(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """See Side."""
        result = function(*arguments)
        return await result if inspect.isawaitable(result) else result

    async def sleep(self, seconds: float) -> None:
        """See Side."""
        await asyncio.sleep(seconds)

    async def outcome(self, future: concurrent.futures.Future[Any], seconds: float) -> Any:
        """See Side."""
        return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), seconds)


async def _to_the_end(call: Callable[[], Awaitable[None]]) -> asyncio.CancelledError | None:
    """A cancellation waits for the end, which is near, so that nothing is in doubt; a second one does not.

    Returns:
        The cancellation, if there was one: it is to be raised once everybody knows that the end has come.
    """
    try:
        await call()
    except asyncio.CancelledError as cancelled:
        await call()  # the same call again joins the one that is under way
        return cancelled
    return None


BLOCKING = BlockingSide()
AWAITING = AwaitingSide()
