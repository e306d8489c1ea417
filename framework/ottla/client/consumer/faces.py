"""How the core waits and calls the application: by blocking a thread, or by awaiting on a loop.

The core is written once, as coroutines. Under the blocking face everything that it awaits blocks in its place, so the
coroutine runs from start to end in one `send(None)`; under the async face the same awaits are real ones.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Face(Protocol):
    """What the core needs of either side."""

    def notify(self) -> None:
        """End the wait that is under way, or the next one. From any thread."""

    async def wait(self, seconds: float) -> None:
        """Wait for `notify`, at most so long."""

    async def invoke(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call the application."""

    def user(self) -> object:
        """Who is calling: one consumer is used by one of these at a time."""

    def check(self, name: str) -> None:
        """Refuse to wait where that would do harm."""


class BlockingFace:
    """Waits in a thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def notify(self) -> None:
        """See Face."""
        if not self._event.is_set():
            self._event.set()

    async def wait(self, seconds: float) -> None:
        """See Face. Whoever waits looks at everything anew, so a notification between wait and clear is not lost."""
        self._event.wait(seconds)
        self._event.clear()

    async def invoke(self, function: Callable[..., Any], *arguments: Any) -> None:
        """See Face."""
        result = function(*arguments)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise TypeError(f"{function!r} is async; a KafkaConsumer calls plain functions, an AsyncKafkaConsumer both")

    def user(self) -> object:
        """See Face."""
        return threading.get_ident()

    def check(self, name: str) -> None:
        """See Face."""
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                f"KafkaConsumer.{name}() would block the event loop that runs on this thread: "
                f"use AsyncKafkaConsumer and `await consumer.{name}()`"
            )


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of the core under the blocking face, where it never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise AssertionError("the core awaited something that does not block")


class AsyncFace:
    """Waits on the loop of whoever calls."""

    def __init__(self) -> None:
        self._notified = False
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def notify(self) -> None:
        """See Face. The flag is set before looking for a waiter, who in turn shows up before looking at the flag."""
        self._notified = True
        waiting = self._waiting
        if waiting is not None:
            loop, future = waiting
            try:
                loop.call_soon_threadsafe(_resolve, future)
            except RuntimeError:
                pass  # the loop has ended, and with it whoever waited

    async def wait(self, seconds: float) -> None:
        """See Face."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting = (loop, future)
        try:
            if self._notified:
                await asyncio.sleep(0)
                return
            timer = loop.call_later(max(0.0, seconds), _resolve, future)
            try:
                await future
            finally:
                timer.cancel()
        finally:
            self._waiting = None
            self._notified = False

    async def invoke(self, function: Callable[..., Any], *arguments: Any) -> None:
        """See Face."""
        result = function(*arguments)
        if inspect.isawaitable(result):
            await result

    def user(self) -> object:
        """See Face."""
        return asyncio.current_task()

    def check(self, name: str) -> None:
        """See Face."""


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
