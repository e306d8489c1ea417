"""Processes: whatever runs in one can be paused, like by SIGSTOP, and killed, like by SIGKILL.

A process is a context variable. The loop asks it before it runs a callback: a dead process's callbacks are dropped, a
paused one's wait, in their order, until it goes on.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any

CURRENT: contextvars.ContextVar[Process | None] = contextvars.ContextVar("simulated process", default=None)


class Killed(BaseException):
    """A process was killed in the middle of what it was doing: nothing behind that happens."""


class Process:
    """Something that can be paused or killed. `on_death` is called when it is killed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.is_paused = False
        self.on_death: list[Callable[[], None]] = []
        self._waiting: deque[tuple[contextvars.Context, Callable[..., Any], tuple[Any, ...]]] = deque()
        self._context = contextvars.Context()
        self._context.run(CURRENT.set, self)

    def start(self, coroutine: Any) -> asyncio.Task[Any]:
        """Run a coroutine in this process."""
        return asyncio.get_running_loop().create_task(coroutine, context=self._context.copy())

    def run(self, callback: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Run a callback of this process, now or later or never."""
        if self.is_dead:
            return
        if self.is_paused or self._waiting:
            self._waiting.append((contextvars.copy_context(), callback, arguments))
        else:
            self._call(callback, arguments)

    def _call(self, callback: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            callback(*arguments)
        except Killed:
            assert self.is_dead

    def pause(self) -> None:
        """Stop running callbacks."""
        self.is_paused = True

    def resume(self) -> None:
        """Run what has waited, and go on."""
        self.is_paused = False
        asyncio.get_running_loop().call_soon(self._catch_up, context=contextvars.Context())

    def _catch_up(self) -> None:
        while self._waiting and not self.is_paused and not self.is_dead:
            context, callback, arguments = self._waiting.popleft()
            context.run(self._call, callback, arguments)

    def kill(self) -> None:
        """Nothing of it runs any more."""
        if not self.is_dead:
            self.is_dead = True
            self._waiting.clear()
            for told in self.on_death:
                told()
