"""How threads and event loops wait for a send: the slow paths, which both twins of `SendFuture` share.

A future keeps its watchers in one slot: callbacks as tuples `(on_success, on_failure)`, waiters as objects of this
module. `_push` adds one unless the future is done, `_drop` takes one away, and the finisher takes them all while it
makes the future done. Each of the three is one step that no other thread can divide. Otherwise this would happen:

1. a waiter looks: the future is not done;
2. the finisher makes it done and takes the watchers: none;
3. the waiter adds itself, and sleeps for ever.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock
from collections.abc import Generator
from threading import TIMEOUT_MAX, local
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable


class Watched(Protocol):
    """What this module needs of a future."""

    @property
    def topic(self) -> str: ...  # noqa: D102

    def done(self) -> bool: ...  # noqa: D102

    def _push(self, watcher: object) -> bool: ...

    def _drop(self, watcher: object) -> None: ...


class ThreadWaiter:
    """A thread that waits: a lock that is held until the finisher lets go of it."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def wait(self, timeout: float | None) -> None:
        """Return when woken, or after `timeout` seconds."""
        self._lock.acquire(timeout=-1 if timeout is None else min(timeout, TIMEOUT_MAX))

    def wake(self) -> None:
        """Let the thread go; called once."""
        self._lock.release()


class LoopWaiter:
    """A task that waits: a future of its own loop. Cancelling the task cancels this one, never the send."""

    __slots__ = ("future", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()


class _PerThread(local):
    forbidden = False


# Per thread and not a set of thread idents: those are given to other threads when one has ended.
_this_thread = _PerThread()


def forbid_waiting_on_this_thread() -> None:
    """Refuse, from now on, to wait for a send on this thread, because it is the one that finishes sends."""
    _this_thread.forbidden = True


def refuse_where_waiting_would_block() -> None:
    """Raise RuntimeError on a thread that must not wait: the I/O thread, and any that runs an event loop."""
    if _this_thread.forbidden:
        raise RuntimeError(
            "waiting for a send on the client's I/O thread would wait for ever: that thread receives the answer. "
            "In a callback use add_callback, or hand the future to another thread"
        )
    events = sys.modules.get("asyncio.events")
    if events is not None and events._get_running_loop() is not None:
        raise RuntimeError(
            "waiting for a send would block the event loop that runs on this thread: use `await future` in place of "
            "future.result()"
        )


def wait_in_thread(future: Watched, timeout: float | None) -> None:
    """Wait until the future is done.

    Raises:
        TimeoutError: it is not done after `timeout` seconds. The record may still be stored.
        RuntimeError: this thread must not wait.
    """
    if timeout is None or timeout > 0:
        refuse_where_waiting_would_block()
        waiter = ThreadWaiter()
        if not future._push(waiter):
            return
        try:
            waiter.wait(timeout)
        finally:
            future._drop(waiter)
    if not future.done():
        raise TimeoutError(f"no answer to a record for {future.topic} after {timeout} s; it may still be stored")


def wait_in_loop(future: Watched) -> Generator[Any, None, None]:
    """What `await` does while the future is not done."""
    from asyncio import get_running_loop

    waiter = LoopWaiter(get_running_loop())
    if not future._push(waiter):
        return
    try:
        yield from waiter.future
    finally:
        # For a task that was cancelled: a future that is awaited again and again must not collect its waiters.
        future._drop(waiter)


def wake(waiters: Iterable[ThreadWaiter | LoopWaiter]) -> None:
    """Wake all waiters of a batch of futures, each loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for waiter in waiters:
        if isinstance(waiter, ThreadWaiter):
            waiter.wake()
        else:
            loops.setdefault(waiter.loop, []).append(waiter.future)
    for loop, futures in loops.items():
        try:
            loop.call_soon_threadsafe(_set_all, futures)
        except RuntimeError:
            # The loop was closed, so nobody waits there any more; the others still do.
            pass


def _set_all(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def log_failure(callback: object) -> None:
    """Log the exception that a callback raised: it harms neither the next callback nor the thread that calls them."""
    import logging

    logging.getLogger("ottla.send").exception("a callback of a send failed: %r", callback)
