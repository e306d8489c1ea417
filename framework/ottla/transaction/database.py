"""Databases that take part in a transaction: whatever has `commit()` and `rollback()`, plain or to be awaited.

That is a DB-API connection (sqlite3, psycopg), a SQLAlchemy Session or Connection, and their async forms under
`async with`. Such a connection begins its transaction by itself, with its first statement, so there is nothing to begin
here; what happens when is said in `boundaries`. Two things can go wrong without anybody noticing, and are found here:

- *A session that is closed too early.* A block that joins a transaction is left before that is committed. A SQLAlchemy
  session that is closed in between rolls back, and its `commit()` afterwards succeeds with nothing in it. So what was
  open when the block was left has to be open still when its turn comes.
- *A cancellation in the middle of an awaited commit.* Nobody would know whether the database is committed, and Kafka
  would be aborted. So the commit is waited for, and the task is cancelled again after it; the commit to Kafka, which
  comes next, bears that.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable
from typing import Any, Final

from ottla.errors import ConfigError, TransactionEnded

_PSYCOPG_IDLE: Final = 0


class DatabaseTransaction:
    """The part that a connection or session has in a transaction; async ones return awaitables."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self._expected: Any = None

    def left(self) -> None:
        """The block that brought the database was left, and the transaction that it had joined goes on."""
        self._expected = open_transaction(self._database)

    def commit(self) -> Any:
        """Make its work durable.

        Raises:
            TransactionEnded: it was ended after the block that brought it was left.
        """
        if self._expected is not None and open_transaction(self._database) is not self._expected:
            raise TransactionEnded(
                f"the database transaction of {self._database!r} was ended (the session or connection was closed, "
                "committed or rolled back) after the block that brought it, and before the Kafka transaction that this "
                "block had joined was committed: its work would be lost. Keep it open until then, or let the database "
                "commit in its own block inside of the Kafka transaction, without database="
            )
        result = self._database.commit()
        return _to_its_end(result) if inspect.isawaitable(result) else result

    def rollback(self) -> Any:
        """Undo its work."""
        return self._database.rollback()


def begin(database: Any) -> DatabaseTransaction:
    """Check that the database can take part.

    Raises:
        ConfigError: it has no transactions, commits each statement by itself, or has to be awaited and this is a
            thread.
    """
    if callable(getattr(database, "registry", None)):  # a scoped_session: the thread's or task's own
        database = database()
    commit = getattr(database, "commit", None)
    if not callable(commit) or not callable(getattr(database, "rollback", None)):
        raise ConfigError(
            f"database={database!r}: give a connection or session that has commit() and rollback() (DB-API, "
            "SQLAlchemy), not what makes them"
        )
    if inspect.iscoroutinefunction(commit) and asyncio._get_running_loop() is None:
        raise ConfigError(f"database={database!r} is async: it needs `async with template.transaction(database=...)`")
    if commits_by_itself(database):
        raise ConfigError(
            f"database={database!r} commits each statement by itself (autocommit): nothing could be undone"
        )
    return DatabaseTransaction(database)


async def _to_its_end(committing: Awaitable[Any]) -> None:
    """Await a commit; a cancellation meanwhile comes after it. A second one is not held up."""
    work = asyncio.ensure_future(committing)
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError as cancelled:
        if work.cancelled():
            raise
        await asyncio.shield(work)
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()  # it is the same cancellation once more: whoever counts them counts one
        task.cancel(*cancelled.args)


def commits_by_itself(database: Any) -> bool:
    """Whether each statement is a transaction of its own, unless one was begun by hand."""
    core = synchronous(database)
    if hasattr(core, "get_execution_options"):  # a SQLAlchemy Connection
        level = core.get_execution_options().get("isolation_level")
        if level is None:
            level = getattr(core.dialect, "_on_connect_isolation_level", None)
        return bool(level == "AUTOCOMMIT")
    if getattr(database, "autocommit", False) is True:  # psycopg, sqlite3 from Python 3.12 on
        return True
    # sqlite3 and aiosqlite; psycopg's None means the server's default. Who begins by hand has begun already.
    return getattr(database, "in_transaction", None) is False and getattr(database, "isolation_level", "") is None


def open_transaction(database: Any) -> Any:
    """The open transaction: the same object as long as it is the same one; None: there is none, or who knows."""
    core = synchronous(database)
    get_transaction = getattr(core, "get_transaction", None)
    if callable(get_transaction):  # SQLAlchemy
        return get_transaction()
    if hasattr(database, "in_transaction"):  # sqlite3, aiosqlite
        return True if database.in_transaction else None
    status = getattr(getattr(database, "info", None), "transaction_status", _PSYCOPG_IDLE)
    return True if status != _PSYCOPG_IDLE else None


def synchronous(database: Any) -> Any:
    """What SQLAlchemy's async classes wrap; others as they are."""
    return getattr(database, "sync_session", None) or getattr(database, "sync_connection", None) or database
