"""Inbox: which records have been worked off, in the database and the transaction of the work.

    inbox = Inbox("billing", metadata)                  # a table beside the application's own
    with Session(engine) as session, session.begin(), inbox.handle(record, session) as fresh:
        if fresh:
            session.add(Charge(...))

    @app.listener("orders", group="billing")
    @inbox.once(sessionmaker(engine))
    def bill(order: Order, session: Session) -> None:   # the session is given, and committed with the identity
        session.add(Charge(...))

A record is delivered again after a crash, a rebalance or an abort. Its identity is a row, committed with the work or
not at all, so the second delivery finds it. Two processes with the same record at the same time: the second insert
waits for the first transaction, and then finds the row, or, if that was rolled back, does the work.

The identity is group, topic, partition, offset and timestamp (a topic that was deleted and made anew has the same
offsets again), or group and the value of a header, where senders may send a message twice.

What is *sent to Kafka* is not covered: a record that is recognised is skipped, and with it its sends, also those that
an abort has undone. Write them to an outbox in the same transaction.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import time
import typing
from collections.abc import Callable
from types import TracebackType
from typing import Annotated, Any, Final, TypeVar

from sqlalchemy import BigInteger, Column, Executable, MetaData, String, Table, delete, literal_column, select, tuple_
from sqlalchemy.sql import ColumnElement

from ottla.errors import ConfigError, OttlaError
from ottla.transaction.statements import actual, dialect_name, execute, execute_async, insert_into
from ottla_wire.records import ConsumerRecord

Function = TypeVar("Function", bound=Callable[..., Any])

DEFAULT_RETENTION_SECONDS: Final = 14 * 86_400.0
_LONGEST_ID: Final = 400
_PURGE_SECONDS: Final = 60.0
_PURGE_ROWS: Final = 1_000
_RECORD: Final = "ottla_inbox_record"


class Inbox:
    """What one consumer group has worked off. Threads and event loops may share it.

    Args:
        group: the consumer group, or any other name of whoever does the work once.
        metadata: the application's, so that its `create_all` or migrations make the table; one of its own, if not
            given. Inboxes of several groups may share a table: they then give the same metadata.
        message_id: the header that identifies a message; if not given, a record's place does.
        retention: seconds for which identities are kept; None: for ever. It has to be longer than a record may take
            to be delivered again: not less than the time for which a group may stand still.
        table: its name.
        schema: where it is, if not in the default schema.
    """

    def __init__(
        self,
        group: str,
        metadata: MetaData | None = None,
        *,
        message_id: str | None = None,
        retention: float | None = DEFAULT_RETENTION_SECONDS,
        table: str = "ottla_inbox",
        schema: str | None = None,
    ) -> None:
        if not group or len(group) > 255:
            raise ConfigError(f"an inbox needs a group of 1 to 255 characters, got {group!r}")
        if retention is not None and retention <= 0:
            raise ConfigError(f"retention is in seconds and positive, or None, got {retention!r}")
        self.group = group
        self.metadata = metadata if metadata is not None else MetaData()
        self.table = _table(self.metadata, table, schema)
        self._message_id = message_id
        self._retention = retention
        self._purged_at = time.monotonic() - _PURGE_SECONDS

    def handle(self, record: ConsumerRecord, database: Any) -> Handling:
        """For `with` and `async with`: whether the record is new, in the database's open transaction.

        The block does not commit: whoever began the transaction does, and thereby makes work and identity last.

        Args:
            record: as it was delivered.
            database: a connection or session: SQLAlchemy's, sqlite3's, psycopg's, or an async one.

        Raises:
            MissingMessageId: (entering) the record does not have the header that identifies it.
            ConfigError: (entering) the database commits each statement by itself, or is not known.
        """
        return Handling(self, record, database)

    def once(self, sessions: Callable[[], Any], parameter: str = "session") -> Callable[[Function], Function]:
        """Decorator of a listener: the record is worked off once, in a transaction of a session that it is given.

        A record that is recognised is not handled; a handler that raises leaves nothing behind.

        Args:
            sessions: gives a session or connection that is a context manager: a sessionmaker, `engine.connect`, or
                an async one for an async listener.
            parameter: the name of the listener's parameter that takes it.

        Raises:
            TypeError: the function has no such parameter, or takes lists.
        """

        def decorate(function: Function) -> Function:
            wrapper = _awaited if inspect.iscoroutinefunction(function) else _called
            shown, name, adds = _signature(function, parameter)
            once = wrapper(self, sessions, function, parameter, name, adds)
            once.__signature__ = shown
            once.__annotations__ = {
                one.name: one.annotation for one in shown.parameters.values() if one.annotation is not one.empty
            }
            del once.__wrapped__  # its hints are not those of what is called
            return once  # type: ignore[no-any-return]

        return decorate

    def purge(self, database: Any, older_than: float | None = None) -> int:
        """Forget identities that are older than so many seconds (`retention`, if not given); at most 1,000 of them.

        That is done now and then anyway, in the transactions of `handle`. Returns how many.
        """
        database = actual(database, is_awaited=False)
        return len(execute(database, self._old(dialect_name(database, self.table), older_than)))

    async def purge_async(self, database: Any, older_than: float | None = None) -> int:
        """`purge`, awaited."""
        database = actual(database, is_awaited=True)
        return len(await execute_async(database, self._old(dialect_name(database, self.table), older_than)))

    # -- statements ----------------------------------------------------------------------------------------------------

    def identity_of(self, record: ConsumerRecord) -> str:
        """What the record is recognised by, within the group.

        Raises:
            MissingMessageId: it does not have the header.
        """
        if self._message_id is None:
            return f"{record.topic}/{record.partition}/{record.offset}@{record.timestamp_ms}"
        value = record.header(self._message_id)
        if not value:
            raise MissingMessageId(
                f"{record.topic}-{record.partition} at offset {record.offset} has no header {self._message_id!r}, by "
                f"which the inbox of {self.group!r} recognises messages"
            )
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = ""
        if not text or len(text) > _LONGEST_ID or "\0" in text:
            return f"sha256:{hashlib.sha256(value).hexdigest()}"
        return f"id:{text}"

    def _claim(self, dialect: str, record: ConsumerRecord) -> Executable:
        row = {"group_id": self.group, "message_id": self.identity_of(record), "received_ms": _now_ms()}
        claim: Executable = (
            insert_into(self.table, dialect).values(row).on_conflict_do_nothing().returning(self.table.c.message_id)
        )
        return claim

    def _old(self, dialect: str, older_than: float | None = None) -> Executable:
        seconds = self._retention if older_than is None else older_than
        if seconds is None:
            raise ConfigError("this inbox keeps everything (retention=None): say older_than=")
        c = self.table.c
        before: ColumnElement[int] = literal_column(str(_now_ms() - int(seconds * 1000)))
        found = select(c.group_id, c.message_id).where(c.received_ms < before).limit(literal_column(str(_PURGE_ROWS)))
        if dialect == "postgresql":
            found = found.with_for_update(skip_locked=True)  # whoever purges at the same time takes others
        return delete(self.table).where(tuple_(c.group_id, c.message_id).in_(found)).returning(c.message_id)

    def _purge_is_due(self) -> bool:
        now = time.monotonic()
        if self._retention is None or now - self._purged_at < min(_PURGE_SECONDS, self._retention):
            return False
        self._purged_at = now
        return True


class MissingMessageId(OttlaError):
    """A record does not have the header that an inbox recognises messages by."""


class Handling:
    """One use of `inbox.handle`, by `with` or `async with`: gives whether the record is new."""

    def __init__(self, inbox: Inbox, record: ConsumerRecord, database: Any) -> None:
        self._inbox = inbox
        self._record = record
        self._database = database

    def __enter__(self) -> bool:
        inbox = self._inbox
        database = actual(self._database, is_awaited=False)
        dialect = dialect_name(database, inbox.table)
        fresh = bool(execute(database, inbox._claim(dialect, self._record)))
        if inbox._purge_is_due():
            execute(database, inbox._old(dialect))
        return fresh

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Committing or rolling back is for whoever began."""

    async def __aenter__(self) -> bool:
        inbox = self._inbox
        database = actual(self._database, is_awaited=True)
        dialect = dialect_name(database, inbox.table)
        fresh = bool(await execute_async(database, inbox._claim(dialect, self._record)))
        if inbox._purge_is_due():
            await execute_async(database, inbox._old(dialect))
        return fresh

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """As `__exit__`."""


# -- once --------------------------------------------------------------------------------------------------------------


def _signature(function: Callable[..., Any], parameter: str) -> tuple[inspect.Signature, str, bool]:
    """What the container sees: without the session, and with the whole record. Its name, and whether it was added."""
    signature = inspect.signature(function)
    if parameter not in signature.parameters:
        raise TypeError(
            f"{function.__qualname__} has no parameter {parameter!r} for the session that inbox.once gives it; name "
            "another one: inbox.once(sessions, 'name')"
        )
    hints = _hints_of(function)
    shown = [
        one.replace(annotation=hints.get(one.name, one.annotation))
        for one in signature.parameters.values()
        if one.name != parameter
    ]
    for one in shown:
        if typing.get_origin(_bare(one.annotation)) is list:
            raise TypeError(
                f"{function.__qualname__} takes lists: `with inbox.handle(record, session) as fresh` for each record"
            )
        if _bare(one.annotation) is ConsumerRecord:
            return signature.replace(parameters=shown), one.name, False
    record = inspect.Parameter(_RECORD, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=ConsumerRecord)
    return signature.replace(parameters=[record, *shown]), _RECORD, True


def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Resolved where possible. What is local to a function remains as text, for the container to resolve."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError:
        return {name: _if_record(function, hint) for name, hint in function.__annotations__.items()}


def _if_record(function: Callable[..., Any], hint: Any) -> Any:
    if not isinstance(hint, str):
        return hint
    name, _, attribute = hint.partition(".")
    found = function.__globals__.get(name)
    found = getattr(found, attribute, None) if attribute else found
    return ConsumerRecord if found is ConsumerRecord else hint


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _split(name: str, adds: bool, shown: inspect.Signature, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
    bound = shown.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    record = arguments.pop(name) if adds else arguments[name]
    return record, arguments


def _called(inbox: Inbox, sessions: Any, function: Any, parameter: str, name: str, adds: bool) -> Any:
    @functools.wraps(function)
    def once(*args: Any, **kwargs: Any) -> Any:
        record, arguments = _split(name, adds, once.__signature__, args, kwargs)  # type: ignore[attr-defined]
        with sessions() as session, _Committing(session), inbox.handle(record, session) as fresh:
            return function(**arguments, **{parameter: session}) if fresh else None

    return once


def _awaited(inbox: Inbox, sessions: Any, function: Any, parameter: str, name: str, adds: bool) -> Any:
    @functools.wraps(function)
    async def once(*args: Any, **kwargs: Any) -> Any:
        record, arguments = _split(name, adds, once.__signature__, args, kwargs)  # type: ignore[attr-defined]
        async with sessions() as session, _Committing(session), inbox.handle(record, session) as fresh:
            return await function(**arguments, **{parameter: session}) if fresh else None

    return once


class _Committing:
    """Commits a session or connection of any kind at the end of the block, or rolls it back."""

    def __init__(self, database: Any) -> None:
        self._database = database

    def __enter__(self) -> None:
        """It begins with its first statement."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._database.commit()
        else:
            self._database.rollback()

    async def __aenter__(self) -> None:
        """As `__enter__`."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self._database.commit()
        else:
            await self._database.rollback()


def _table(metadata: MetaData, name: str, schema: str | None) -> Table:
    full = name if schema is None else f"{schema}.{name}"
    if full in metadata.tables:  # another group's inbox
        return metadata.tables[full]
    return Table(
        name,
        metadata,
        Column("group_id", String(255), primary_key=True),
        Column("message_id", String(512), primary_key=True),
        Column("received_ms", BigInteger, nullable=False, index=True),
        schema=schema,
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
