"""Waiting for everything that was sent, on a thread or on an event loop: what `flush` and `close` do.

Futures come in groups, one for each batch, because those of a batch are done together: a group is looked through once
before its end and once after it, however many records there are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Final

from ottla.errors import NoAnswer
from ottla_wire.records import SendError, SendFuture, first_pending

Groups = Sequence[Sequence[SendFuture]]

LEAST_SECONDS: Final = 0.1
"""How long callbacks of what is acknowledged may take in any case: they are being called already."""


def _pending(groups: Groups) -> Iterator[SendFuture]:
    """Futures to wait for, one after the other, until none is left. The newest group is the last to be done: first."""
    for group in reversed(groups):
        while (future := first_pending(group)) is not None:
            yield future


def wait_for_all(groups: Groups, timeout: float | None) -> bool:
    """Wait on this thread until all are done, however they end; false if that takes longer than `timeout` seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    for future in _pending(groups):
        try:
            future.exception(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            return False
    return True


async def await_all(groups: Groups, timeout: float | None) -> bool:
    """The same on an event loop."""
    try:
        async with asyncio.timeout(timeout):
            for future in _pending(groups):
                try:
                    await future
                except SendError:
                    pass  # its sender is told; here only the end counts
    except TimeoutError:
        return False
    return True


class Patience:
    """The end of a flush: all is acknowledged, and callbacks are being called on the I/O thread.

    Args:
        timeout: the seconds that the whole flush may take from now on; None: as long as a delivery.
        delivery_timeout_ms: how long that is.
    """

    def __init__(self, timeout: float | None, delivery_timeout_ms: int) -> None:
        self._seconds = delivery_timeout_ms / 1000 if timeout is None else timeout
        self._deadline = time.monotonic() + self._seconds

    def _left(self) -> float:
        return max(LEAST_SECONDS, self._deadline - time.monotonic())

    def wait_in_thread(self, called: Future[None] | None) -> None:
        """Wait on this thread.

        Raises:
            NoAnswer: it takes too long.
        """
        if called is not None and wait([called], self._left()).not_done:
            raise self._out()

    async def wait_in_loop(self, called: Future[None] | None) -> None:
        """The same on an event loop."""
        if called is not None:
            _, late = await asyncio.wait([asyncio.wrap_future(called)], timeout=self._left())
            if late:
                raise self._out()

    def _out(self) -> NoAnswer:
        return NoAnswer(f"flush: all is acknowledged, but callbacks did not return within {self._seconds} s")
