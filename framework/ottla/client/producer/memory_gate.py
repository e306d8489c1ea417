"""MemoryGate: where senders wait while `buffer_memory` is used up, first come, first served.

A sender that needs memory and does not get it takes a place in the line; so does one that comes while others wait, or
small records would keep large ones out for ever. Whoever gives memory back lets the first in the line try again.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable


class Place:
    """A place in the line: something to wait on, for a thread or for a task."""

    __slots__ = ("_wake", "is_called")

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self.is_called = False

    def call(self) -> None:
        """Let it try again; calling twice is calling once."""
        if not self.is_called:
            self.is_called = True
            self._wake()


class MemoryGate:
    """The line. Every method is called with the accumulator's lock held."""

    def __init__(self) -> None:
        self._line: deque[Place] = deque()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._line)

    def is_first(self, place: Place | None) -> bool:
        """Whether this place may take memory now: it is the first, or (None) nobody waits."""
        return not self._line if place is None else self._line[0] is place

    def join(self, wake: Callable[[], object]) -> Place:
        """Take a place at the end."""
        place = Place(wake)
        self._line.append(place)
        return place

    def leave(self, place: Place) -> None:
        """Leave, with memory or without; the next one may try."""
        self._line.remove(place)
        self.call_first()

    def wait_again(self, place: Place, wake: Callable[[], object]) -> None:
        """It was called, and there was not enough: keep the place."""
        place.is_called = False
        place._wake = wake

    def call_first(self) -> None:
        """There may be memory now."""
        if self._line:
            self._line[0].call()

    def call_all(self) -> None:
        """The producer is closed."""
        for place in self._line:
            place.call()


def thread_waiter() -> tuple[Callable[[], object], Callable[[float], bool]]:
    """Something for a thread to wait on: how to wake it, and how to wait (seconds; false if it took too long)."""
    event = threading.Event()
    return event.set, event.wait


def task_waiter() -> tuple[Callable[[], object], asyncio.Future[None]]:
    """Something for a task to await, and how to wake it from any thread."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def set_it() -> None:
        if not future.done():
            future.set_result(None)

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(set_it)
        except RuntimeError:
            pass  # the loop was closed: nobody waits there any more

    return wake, future
