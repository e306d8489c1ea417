"""Statements of SQLAlchemy Core on whatever connection or session the application has.

SQLAlchemy's own (Connection, Session and their async forms) execute them as they are. For a driver's own connection
(sqlite3, aiosqlite, psycopg) they are compiled here. All belong to the transaction that is open there, or begin it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Executable
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg as psycopg_dialect
from sqlalchemy.engine import Dialect

from ottla.errors import ConfigError
from ottla.transaction.database import commits_by_itself, open_transaction, synchronous

DIALECTS: Final = ("postgresql", "sqlite")
_DRIVERS: Final = {"sqlite3": "sqlite", "aiosqlite": "sqlite", "psycopg": "postgresql"}

Rows = Sequence[Sequence[Any]]


def actual(database: Any, *, is_awaited: bool) -> Any:
    """The connection or session that is meant, once it is certain that a statement there is part of a transaction.

    Raises:
        ConfigError: it commits each statement by itself.
        TypeError: it is none, or async where it cannot be awaited, or the other way round.
    """
    if callable(getattr(database, "registry", None)):  # a scoped_session: the thread's or task's own
        database = database()
    execute = getattr(database, "execute", None)
    if not callable(execute) or not callable(getattr(database, "commit", None)):
        raise TypeError(f"give a connection or session of a database (SQLAlchemy, sqlite3, psycopg), not {database!r}")
    if _is_async(database) is not is_awaited:
        other = "is not awaited: use the plain form" if is_awaited else "is awaited: use the async form of this call"
        raise TypeError(f"{database!r} {other}")
    if commits_by_itself(database) and open_transaction(database) is None:
        raise ConfigError(
            f"{database!r} commits each statement by itself (autocommit), so that nothing would belong together"
        )
    return database


def dialect_name(database: Any, statement_table: Any) -> str:
    """Which database it is.

    Raises:
        ConfigError: neither PostgreSQL nor SQLite.
    """
    core = synchronous(database)
    if hasattr(core, "get_bind"):
        name = core.get_bind(clause=statement_table).dialect.name
    elif hasattr(core, "dialect"):
        name = core.dialect.name
    else:
        name = _driver(database)
    if name not in DIALECTS:
        raise ConfigError(f"{database!r} is a {name or 'database'} that is not known here: PostgreSQL and SQLite are")
    return str(name)


def execute(database: Any, statement: Executable) -> Rows:
    """Execute it; gives the rows, if there are any."""
    driver = _driver(database)
    if driver:
        return _fetched(database.execute(*_compiled(statement, driver)))
    return _rows(database.execute(statement))


async def execute_async(database: Any, statement: Executable) -> Rows:
    """The same, awaited."""
    driver = _driver(database)
    if not driver:
        return _rows(await database.execute(statement))
    cursor = await database.execute(*_compiled(statement, driver))
    rows: Rows = await cursor.fetchall() if cursor.description else []
    await cursor.close()
    return rows


def _is_async(database: Any) -> bool:
    return inspect.iscoroutinefunction(database.commit)


def _driver(database: Any) -> str:
    """The dialect of a driver's own connection; empty for SQLAlchemy's."""
    modules = (kind.__module__.partition(".")[0] for kind in type(database).__mro__)
    return next((_DRIVERS[module] for module in modules if module in _DRIVERS), "")


@functools.cache
def _dialect_of(driver: str) -> Dialect:
    if driver == "sqlite":
        return sqlite.dialect(paramstyle="named")
    return psycopg_dialect.dialect()  # type: ignore[no-untyped-call]


def _compiled(statement: Any, driver: str) -> tuple[str, Any]:
    compiled = statement.compile(dialect=_dialect_of(driver))
    return str(compiled), compiled.params


def _rows(result: Any) -> Rows:
    return result.all() if result.returns_rows else []


def _fetched(cursor: Any) -> Rows:
    rows: Rows = cursor.fetchall() if cursor.description else []
    cursor.close()
    return rows


def insert_into(table: Any, dialect: str) -> Any:
    """An insert that may say what is to be done about conflicts; both dialects say it the same way."""
    return (postgresql if dialect == "postgresql" else sqlite).insert(table)
