"""Watchdog: ends transactions that are open for too long, before the coordinator does.

A coordinator that ends a transaction by its time-out fences its producer: what the producer then meets looks the same
as if another one had taken over. So this side is earlier. There is one timer for all transactions of an engine, and it
is set again only when a transaction comes that ends before it: the usual transaction costs an entry in a dict.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

from ottla.client.engine import Engine


class Watched(Protocol):
    """What a watchdog watches."""

    deadline: float

    def time_out(self) -> None:
        """The deadline has passed. Called on the engine's loop; must not wait."""


class Watchdog:
    """The timer of an engine's transactions. `add` and `remove` may be called from any thread."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._watched: dict[Watched, None] = {}
        self._armed_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def add(self, watched: Watched) -> None:
        """Watch this one, until `remove`."""
        self._watched[watched] = None
        if watched.deadline < self._armed_at:
            self._armed_at = watched.deadline
            self._engine.post(self._arm)

    def remove(self, watched: Watched) -> None:
        """It has ended."""
        self._watched.pop(watched, None)

    def shorten(self, watched: Watched) -> None:
        """Its deadline has come nearer."""
        if watched in self._watched:
            self.add(watched)

    def check(self) -> None:
        """Time out what is overdue, and set the timer for what comes next."""
        now = self._clock()
        for watched in [one for one in list(self._watched) if one.deadline <= now]:
            self._watched.pop(watched, None)
            watched.time_out()
        earliest = self._earliest()
        while True:
            self._armed_at = earliest
            # One that another thread has added meanwhile has compared itself with the time before this one.
            again = self._earliest()
            if again >= earliest:
                break
            earliest = again
        self._arm()

    def _earliest(self) -> float:
        return min((one.deadline for one in list(self._watched)), default=math.inf)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._armed_at < math.inf:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, self._armed_at - self._clock()), self.check)
