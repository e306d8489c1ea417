"""The calls of transaction methods: which may be made when, and what their callers wait for. Sans-I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ottla.client.producer.transaction_tables import HINTS, METHODS, TransactionState
from ottla.errors import IllegalTransactionState, NotInTransaction, OttlaError

_S = TransactionState

_INSIDE: Final = frozenset({"send", "send_offsets_to_transaction", "commit_transaction", "abort_transaction"})
_OUTSIDE: Final = frozenset({_S.UNINITIALIZED, _S.INITIALIZING, _S.READY})


class Operation:
    """One call of a transaction method, from the moment it is made until its caller knows how it ended.

    It is not `acknowledged` before a caller was told. One who stops waiting (a time-out, a cancelled task) leaves it
    behind, and has to make the same call again: that joins what is under way, or learns how it ended.
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


class Calls:
    """The calls on one producer."""

    def __init__(self, transactional_id: str | None) -> None:
        self._transactional_id = transactional_id
        self._latest: Operation | None = None  # of init, begin, commit, abort: kept until it is acknowledged
        self._finished: list[Operation] = []

    @property
    def pending(self) -> Operation | None:
        """The call whose end nobody was told of yet."""
        if self._latest is not None and self._latest.acknowledged:
            self._latest = None
        return self._latest

    def check(self, method: str, state: TransactionState, error: OttlaError | None) -> Operation | None:
        """Whether a method may be called in a state; returns the call to join, if it is a repeated one.

        Raises:
            NotInTransaction: it is for open transactions, and there is none.
            IllegalTransactionState: its moment has passed, or has not come; the message names what to call.
            OttlaError: what the transaction, or the producer, has failed with.
        """
        if self._transactional_id is None:
            raise IllegalTransactionState(f"{method}: this producer has no transactional_id, and so no transactions")
        pending = self.pending
        if pending is not None and pending.method == method:
            return pending
        if pending is not None and method != "send" and _forbids_others(pending, state):
            raise IllegalTransactionState(
                f"{method}: what came of {pending.method}() is not known: call {pending.method}() again, and nothing "
                "else"
            )
        if state in METHODS[method]:
            return None
        if error is not None and (state is _S.FATAL or method in _INSIDE):
            raise error.with_traceback(None)
        raise self._wrong_moment(method, state, error)

    def _wrong_moment(self, method: str, state: TransactionState, error: OttlaError | None) -> IllegalTransactionState:
        kind = NotInTransaction if method in _INSIDE and state in _OUTSIDE else IllegalTransactionState
        hint = HINTS[state]
        if method == "init_transactions" and state is not _S.INITIALIZING:
            hint = f"it was called already; {hint}"
        failure = f" ({error})" if error is not None else ""
        return kind(f"{method} of transactional id {self._transactional_id!r}: {hint}{failure}")

    def begin(self, method: str) -> Operation:
        """A call to wait for."""
        self._latest = Operation(method)
        return self._latest

    def abandon(self) -> None:
        """Nobody comes back for the call that is pending: the producer is closed."""
        self._latest = None

    def finish(self, operation: Operation | None, error: OttlaError | None = None) -> None:
        """It has ended; that it has is told once."""
        if operation is not None and not operation.is_done:
            operation.is_done = True
            operation.error = error
            self._finished.append(operation)

    def take_finished(self) -> list[Operation]:
        """Those that have ended since the last time: their callbacks are to be called, without the lock."""
        finished, self._finished = self._finished, []
        return finished


def _forbids_others(pending: Operation, state: TransactionState) -> bool:
    """Whether a call whose end nobody was told of forbids every other one."""
    if state is _S.FATAL or pending.method == "begin_transaction":
        return False
    return not (pending.is_done and pending.error is not None)
