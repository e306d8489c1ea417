"""Outbox: messages as rows of the application's database, written in its own transaction, and relayed to Kafka.

    outbox = Outbox(metadata)                           # tables beside the application's own
    with Session(engine) as session, session.begin():
        session.add(order)
        outbox.send(session, "orders", OrderPlaced(...), key=order.id)
    app.include(outbox.relay(engine))                   # sends them, in order, each exactly once

The row is committed with the work or not at all, whatever becomes of Kafka. How the relay keeps its promise is said in
`relay`, and what "in order" means in `outbox_store`.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Executable,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    delete,
    event,
    literal_column,
    select,
    text,
)

from ottla.client.producer.producer_core import _bytes_of
from ottla.serialization import as_serializer, serialize_headers, serialize_key, serialize_value
from ottla.serialization.serializers import HeadersGiven, Serializer
from ottla.transaction.database import synchronous
from ottla.transaction.statements import Rows, actual, dialect_name, execute, execute_async, insert_into

if TYPE_CHECKING:
    from sqlalchemy.sql import ColumnElement

    from ottla.transaction.relay import Relay

_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A message that waits, as bytes. `error`: why it was parked, if it was."""

    id: int
    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    timestamp_ms: int
    error: str | None = None


class Outbox:
    """The rows that are messages. Threads and event loops may share it.

    Args:
        metadata: the application's, so that its `create_all` or migrations make the tables; one of its own, if not
            given.
        table: the name of the table; the relay's own is called the same with `_state` behind it.
        schema: where both are, if not in the default schema.
        key_serializer: as for a ProducerFactory; by default what a template does.
        value_serializer: the same for values.
    """

    def __init__(
        self,
        metadata: MetaData | None = None,
        *,
        table: str = "ottla_outbox",
        schema: str | None = None,
        key_serializer: Any = None,
        value_serializer: Any = None,
    ) -> None:
        self.metadata = metadata if metadata is not None else MetaData()
        self.table = _messages(self.metadata, table, schema)
        self.state_table = _state(self.metadata, f"{table}_state", schema)
        self._key_serializer: Serializer = as_serializer(key_serializer, "key_serializer") or serialize_key
        self._value_serializer: Serializer = as_serializer(value_serializer, "value_serializer") or serialize_value
        self._relays: weakref.WeakSet[Relay] = weakref.WeakSet()
        self._lock = threading.Lock()

    # -- writing -------------------------------------------------------------------------------------------------------

    def send(
        self,
        database: Any,
        topic: str,
        value: Any,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: HeadersGiven | None = None,
    ) -> None:
        """Write a message into the database's open transaction; it is sent once that is committed.

        Args:
            database: a connection or session: SQLAlchemy's, sqlite3's, psycopg's.
            topic: where to; as for `template.send`, and so the others. Everything is serialized now.
            timestamp_ms: the record's time; now, and not when it is relayed, if not given.

        Raises:
            SerializationError: key, value or headers cannot be made bytes.
            ValueError: no topic has such a name, or partition or timestamp is negative.
            TypeError: the arguments are of other types, or the database is async: await `send_async`.
            ConfigError: the database commits each statement by itself, or is neither PostgreSQL nor SQLite.
        """
        database = actual(database, is_awaited=False)
        dialect = dialect_name(database, self.table)
        execute(database, self._insert(dialect, topic, value, key, partition, timestamp_ms, headers))
        self._written(database)

    async def send_async(
        self,
        database: Any,
        topic: str,
        value: Any,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: HeadersGiven | None = None,
    ) -> None:
        """`send`, awaited, for async connections and sessions."""
        database = actual(database, is_awaited=True)
        dialect = dialect_name(database, self.table)
        await execute_async(database, self._insert(dialect, topic, value, key, partition, timestamp_ms, headers))
        self._written(database)

    def _insert(
        self,
        dialect: str,
        topic: str,
        value: Any,
        key: Any,
        partition: int | None,
        timestamp_ms: int | None,
        headers: HeadersGiven | None,
    ) -> Executable:
        _check(topic, partition, timestamp_ms)
        raw_headers = [] if headers is None else serialize_headers(headers)
        raw_key = None if key is None else _bytes_of("key", self._key_serializer, topic, raw_headers, key)
        raw_value = None if value is None else _bytes_of("value", self._value_serializer, topic, raw_headers, value)
        now_ms = time.time_ns() // 1_000_000
        columns: dict[str, Any] = {
            "topic": topic,
            "partition_id": partition,
            "record_key": raw_key,
            "record_value": raw_value,
            "headers": _as_text(raw_headers),
            "timestamp_ms": now_ms if timestamp_ms is None else timestamp_ms,
            "written_ms": now_ms,
        }
        return self._with_id(dialect, insert_into(self.table, dialect).values(columns))

    def _with_id(self, dialect: str, insert: Any) -> Executable:
        """In PostgreSQL the transaction has its own number before the row has one: `outbox_store` relies on that."""
        if dialect == "postgresql":
            insert = insert.values(id=self._next_id())
        found: Executable = insert.inline()
        return found

    def _next_id(self) -> Any:
        name = self.table.name.replace('"', '""')
        schema = self.table.schema
        path = f'"{name}"' if schema is None else f'"{schema.replace(chr(34), chr(34) * 2)}"."{name}"'
        # CASE is what PostgreSQL evaluates in the order in which it is written.
        return text(
            "CASE WHEN pg_current_xact_id() IS NOT NULL THEN nextval(pg_get_serial_sequence(:ottla_table, 'id')) END"
        ).bindparams(ottla_table=path)

    def _written(self, database: Any) -> None:
        if not self._relays:
            return
        core = synchronous(database)
        if hasattr(core, "get_bind"):  # a Session tells when it has committed
            if not event.contains(core, "after_commit", self._on_commit):
                event.listen(core, "after_commit", self._on_commit)
            return
        for relay in list(self._relays):
            relay.expect()

    def _on_commit(self, _: Any) -> None:
        self.wake()

    def wake(self) -> None:
        """Have the relays of this process look now, and not when their interval is over."""
        for relay in list(self._relays):
            relay.wake()

    # -- relaying ------------------------------------------------------------------------------------------------------

    def relay(self, engine: Any, producer_factory: Any = None, **arguments: Any) -> Relay:
        """What sends the rows to Kafka: give it to `app.include(...)`, or use it as a context manager; see `Relay`."""
        from ottla.transaction.relay import Relay

        relay = Relay(self, engine, producer_factory, **arguments)
        self._relays.add(relay)
        return relay

    # -- parked rows ---------------------------------------------------------------------------------------------------

    def parked(self, database: Any) -> list[OutboxRow]:
        """The rows that Kafka refused and the relay passed over, oldest first."""
        return [row_of(row) for row in execute(actual(database, is_awaited=False), self._select_parked())]

    async def parked_async(self, database: Any) -> list[OutboxRow]:
        """`parked`, awaited."""
        return [row_of(row) for row in await execute_async(actual(database, is_awaited=True), self._select_parked())]

    def retry_parked(self, database: Any, ids: Sequence[int] | None = None) -> int:
        """Have parked rows sent once more: they go to the end of the line. All, or those with these ids.

        Returns:
            How many.
        """
        database = actual(database, is_awaited=False)
        dialect = dialect_name(database, self.table)
        rows = execute(database, self._take_parked(ids))
        for row in _in_order(rows):
            execute(database, self._again(dialect, row))
        self._written(database)
        return len(rows)

    async def retry_parked_async(self, database: Any, ids: Sequence[int] | None = None) -> int:
        """`retry_parked`, awaited."""
        database = actual(database, is_awaited=True)
        dialect = dialect_name(database, self.table)
        rows = await execute_async(database, self._take_parked(ids))
        for row in _in_order(rows):
            await execute_async(database, self._again(dialect, row))
        self._written(database)
        return len(rows)

    def _select_parked(self) -> Executable:
        return select(*self.row_columns).where(self.table.c.error.is_not(None)).order_by(self.table.c.id)

    def _take_parked(self, ids: Sequence[int] | None) -> Executable:
        where: ColumnElement[bool] = self.table.c.error.is_not(None)
        if ids is not None:
            where &= self.table.c.id.in_([literal_column(str(int(one))) for one in ids])
        return delete(self.table).where(where).returning(*self.row_columns)

    def _again(self, dialect: str, row: Sequence[Any]) -> Executable:
        """Under an id of its own: the old one is behind the relay's position."""
        names = [column.name for column in self.row_columns]
        values = dict(zip(names, row, strict=True)) | {"written_ms": time.time_ns() // 1_000_000, "error": None}
        del values["id"]
        return self._with_id(dialect, insert_into(self.table, dialect).values(values))

    @property
    def row_columns(self) -> tuple[Column[Any], ...]:
        """The columns that `row_of` takes."""
        c = self.table.c
        return (
            c.id,
            c.topic,
            c.partition_id,
            c.record_key,
            c.record_value,
            c.headers,
            c.timestamp_ms,
            c.error,
        )


def row_of(row: Sequence[Any]) -> OutboxRow:
    """From `Outbox.row_columns`."""
    number, topic, partition, key, value, headers, timestamp_ms, error = row
    raw_key = None if key is None else bytes(key)
    raw_value = None if value is None else bytes(value)
    return OutboxRow(number, topic, partition, raw_key, raw_value, _from_text(headers), timestamp_ms, error)


def _in_order(rows: Rows) -> list[Sequence[Any]]:
    return sorted(rows, key=lambda row: int(row[0]))


def _messages(metadata: MetaData, name: str, schema: str | None) -> Table:
    return Table(
        name,
        metadata,
        Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
        Column("topic", String(249), nullable=False),
        Column("partition_id", Integer),
        Column("record_key", LargeBinary),
        Column("record_value", LargeBinary),
        Column("headers", Text),
        Column("timestamp_ms", BigInteger, nullable=False),
        Column("written_ms", BigInteger, nullable=False),
        Column("error", Text),
        schema=schema,
        sqlite_autoincrement=True,  # else the ids of deleted rows come again, behind the relay's position
    )


def _state(metadata: MetaData, name: str, schema: str | None) -> Table:
    return Table(
        name,
        metadata,
        Column("slot", Integer, primary_key=True, autoincrement=False),
        Column("outbox_id", String(64), nullable=False),
        Column("position", BigInteger, nullable=False),
        Column("owner", String(255)),
        Column("lease_until_ms", BigInteger, nullable=False),
        schema=schema,
    )


def _check(topic: str, partition: int | None, timestamp_ms: int | None) -> None:
    """What a relay would find out too late for whoever wrote it."""
    if not isinstance(topic, str):
        raise TypeError(f"the topic is text, got {topic!r}")
    if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise ValueError(f"no topic is called {topic!r}: 1 to 249 letters, digits, dots, underscores and hyphens")
    for name, number in (("partition", partition), ("timestamp_ms", timestamp_ms)):
        if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
            raise TypeError(f"{name} is a number, got {number!r}")
        if number is not None and number < 0:
            raise ValueError(f"{name} is not negative, got {number}")


def _as_text(headers: list[tuple[str, bytes | None]]) -> str | None:
    if not headers:
        return None
    encoded = [(name, None if value is None else base64.b64encode(value).decode()) for name, value in headers]
    return json.dumps(encoded)


def _from_text(headers: str | None) -> list[tuple[str, bytes | None]]:
    if headers is None:
        return []
    return [(name, None if value is None else base64.b64decode(value)) for name, value in json.loads(headers)]
