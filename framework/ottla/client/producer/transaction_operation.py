"""Operation: one call of a transaction method, from the moment it is made until its caller knows how it ended."""

from __future__ import annotations

from collections.abc import Callable

from ottla.errors import OttlaError


class Operation:
    """What a caller of init, commit, abort or send_offsets waits for.

    It is not `acknowledged` before a caller was told how it ended. One who stops waiting (a time-out, a cancelled task)
    leaves it behind, and has to make the same call again: that joins what is under way, or learns how it ended.
    """

    __slots__ = ("_callbacks", "acknowledged", "error", "is_done", "method")

    def __init__(self, method: str) -> None:
        self.method = method
        self.is_done = False
        self.acknowledged = False
        self.error: OttlaError | None = None
        self._callbacks: list[Callable[[], object]] = []

    def on_done(self, callback: Callable[[], object]) -> None:
        """Call back once it has ended. To be attached, as everything here is done, with the accumulator's lock held."""
        self._callbacks.append(callback)

    def take_callbacks(self) -> list[Callable[[], object]]:
        """Whom to call, now that it has ended. They are called without the lock."""
        callbacks, self._callbacks = self._callbacks, []
        return callbacks

    def __repr__(self) -> str:
        return f"<Operation {self.method} {'done' if self.is_done else 'pending'} {self.error or ''}>"
