"""Pending: an answer that is not there yet, without an event loop.

Handlers and coordinators are synchronous. What has to wait (for the high watermark, for other members, for data)
returns a `Pending`, and whoever learns that the wait is over completes it. Everything happens on one thread; a
callback runs inside `complete` or `fail`, in the order in which callbacks were added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar, cast

T = TypeVar("T")
U = TypeVar("U")

_WAITING, _COMPLETED, _FAILED = 0, 1, 2


class Pending(Generic[T]):
    """A single-threaded promise: completed or failed exactly once."""

    __slots__ = ("_callbacks", "_outcome", "_state")

    def __init__(self) -> None:
        self._state = _WAITING
        self._outcome: object = None
        self._callbacks: list[Callable[[Pending[T]], None]] = []

    @classmethod
    def completed(cls, value: T) -> Pending[T]:
        """An answer that is there already."""
        pending: Pending[T] = cls()
        pending.complete(value)
        return pending

    @classmethod
    def failed(cls, error: Exception) -> Pending[T]:
        """A failure that is known already."""
        pending: Pending[T] = cls()
        pending.fail(error)
        return pending

    def complete(self, value: T) -> None:
        """Set the value and run the callbacks."""
        self._settle(_COMPLETED, value)

    def fail(self, error: Exception) -> None:
        """Set the error and run the callbacks."""
        self._settle(_FAILED, error)

    def done(self) -> bool:
        """Whether `complete` or `fail` was called."""
        return self._state != _WAITING

    def result(self) -> T:
        """The value; raises the error it failed with. Only to be called when done."""
        assert self._state != _WAITING, "result() of an unfinished Pending"
        if self._state == _FAILED:
            raise cast(Exception, self._outcome)
        return cast(T, self._outcome)

    def error(self) -> Exception | None:
        """The error it failed with, or None. Only to be called when done."""
        assert self._state != _WAITING, "error() of an unfinished Pending"
        return cast(Exception, self._outcome) if self._state == _FAILED else None

    def on_done(self, callback: Callable[[Pending[T]], None]) -> None:
        """Call back when finished; at once if that is already so."""
        if self._state != _WAITING:
            callback(self)
        else:
            self._callbacks.append(callback)

    def then(self, transform: Callable[[T], U]) -> Pending[U]:
        """A Pending of the transformed value; an error here, or in `transform`, fails it."""
        following: Pending[U] = Pending()

        def settle(source: Pending[T]) -> None:
            try:
                value = transform(source.result())
            except Exception as error:  # noqa: BLE001 - handed on, not swallowed
                following.fail(error)
            else:
                following.complete(value)

        self.on_done(settle)
        return following

    def follow(self, source: Pending[T]) -> None:
        """Finish as `source` does."""
        source.on_done(self._copy)

    def _copy(self, source: Pending[T]) -> None:
        self._settle(source._state, source._outcome)

    def _settle(self, state: int, outcome: object) -> None:
        assert self._state == _WAITING, "a Pending is finished once"
        self._state = state
        self._outcome = outcome
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def __repr__(self) -> str:
        state = ("waiting", "completed", "failed")[self._state]
        return f"<Pending {state}{'' if self._state == _WAITING else f' {self._outcome!r}'}>"


class Unapplied(Pending[T]):
    """A Pending answer to a request that has not taken effect yet.

    Nothing behind it on its connection may be handled before it is answered: a produce request whose transaction is
    being verified must not be overtaken by the next one.
    """

    __slots__ = ()
