"""Databases that take part in a transaction: whatever has `commit()` and `rollback()`, plain or to be awaited.

That is a DB-API connection (sqlite3, psycopg), a SQLAlchemy Session or Connection, and their async forms under
`async with`. Such a connection begins its transaction by itself, with its first statement, so there is nothing to begin
here; what happens when is said in `boundaries`.
"""

from __future__ import annotations

from typing import Any, Protocol

from ottla.errors import ConfigError


class Database(Protocol):
    """A connection or session with an open transaction; async ones return awaitables."""

    def commit(self) -> Any:
        """Make its work durable."""

    def rollback(self) -> Any:
        """Undo its work."""


def begin(database: Any) -> Database:
    """Check that the database can take part.

    Raises:
        ConfigError: it has no transactions, or commits each statement by itself.
    """
    if not callable(getattr(database, "commit", None)) or not callable(getattr(database, "rollback", None)):
        raise ConfigError(
            f"database={database!r}: give a connection or session that has commit() and rollback() (DB-API, SQLAlchemy)"
        )
    if getattr(database, "autocommit", False) is True or getattr(database, "isolation_level", "") is None:
        raise ConfigError(
            f"database={database!r} commits each statement by itself (autocommit): nothing could be undone"
        )
    found: Database = database
    return found
