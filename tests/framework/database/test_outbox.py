"""What an outbox writes, into whose transaction, and what it refuses."""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
import subprocess
import sys
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, MetaData, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from ottla.errors import ConfigError, SerializationError
from ottla.transaction import Outbox
from ottla.transaction.outbox import OutboxRow, row_of


@dataclasses.dataclass
class Order:
    id: int


@pytest.fixture
def outbox(engine: Engine, metadata: MetaData) -> Outbox:
    outbox = Outbox(metadata)
    metadata.create_all(engine)
    return outbox


def rows(outbox: Outbox, engine: Engine) -> list[OutboxRow]:
    from sqlalchemy import select

    with engine.connect() as connection:
        return [row_of(row) for row in connection.execute(select(*outbox.row_columns).order_by(outbox.table.c.id))]


def test_a_row_is_what_a_template_would_have_sent(outbox: Outbox, engine: Engine) -> None:
    headers = {"a": "text", "b": b"\x00\xff", "c": None}
    with engine.begin() as connection:
        outbox.send(
            connection, "orders", Order(7), key="k", partition=2, timestamp_ms=1_700_000_000_000, headers=headers
        )
        outbox.send(connection, "orders", None, key=b"k")
    first, second = rows(outbox, engine)
    pairs: list[tuple[str, bytes | None]] = [("a", b"text"), ("b", b"\x00\xff"), ("c", None)]
    assert first == OutboxRow(first.id, "orders", 2, b"k", b'{"id":7}', pairs, 1_700_000_000_000)
    assert (second.key, second.value, second.partition, second.headers) == (b"k", None, None, [])
    assert second.timestamp_ms > first.timestamp_ms


def test_serializers_may_be_named_as_for_a_producer_factory(engine: Engine, metadata: MetaData) -> None:
    outbox = Outbox(
        metadata,
        key_serializer=lambda topic, headers, key: key.to_bytes(4),
        value_serializer=lambda topic, headers, value: headers.append(("kind", b"text")) or str(value).encode(),
    )
    metadata.create_all(engine)
    with engine.begin() as connection:
        outbox.send(connection, "t", 5, key=5)
    (row,) = rows(outbox, engine)
    assert (row.key, row.value, row.headers) == (b"\0\0\0\5", b"5", [("kind", b"text")])


def test_a_transaction_that_is_rolled_back_leaves_no_row(outbox: Outbox, engine: Engine) -> None:
    with Session(engine) as session:
        outbox.send(session, "orders", "no")
        session.rollback()
        outbox.send(session, "orders", "yes")
        session.commit()
    assert [row.value for row in rows(outbox, engine)] == [b"yes"]


def test_a_drivers_own_connection_will_do(outbox: Outbox, engine: Engine) -> None:
    connection: Any
    if engine.dialect.name == "sqlite":
        connection = sqlite3.connect(engine.url.database or "")
    else:
        connection = psycopg.connect(engine.url.set(drivername="postgresql").render_as_string(hide_password=False))
    outbox.send(connection, "orders", "no")
    connection.rollback()
    outbox.send(connection, "orders", "100 %", key="k", headers={"h": "v"})
    connection.commit()
    connection.close()
    (row,) = rows(outbox, engine)
    assert (row.topic, row.key, row.value, row.headers) == ("orders", b"k", b"100 %", [("h", b"v")])


def test_async_sessions_and_connections_are_awaited(outbox: Outbox, engine: Engine, async_url: str) -> None:
    async def main() -> None:
        async_engine = create_async_engine(async_url)
        async with AsyncSession(async_engine) as session:
            await outbox.send_async(session, "orders", "a")
            await session.commit()
            with pytest.raises(TypeError, match="async form"):
                outbox.send(session, "orders", "b")
        async with async_engine.begin() as connection:
            await outbox.send_async(connection, "orders", "c")
        with Session(engine) as plain, pytest.raises(TypeError, match="plain form"):
            await outbox.send_async(plain, "orders", "d")
        driver: Any
        if engine.dialect.name == "sqlite":
            import aiosqlite

            driver = await aiosqlite.connect(engine.url.database or "")
        else:
            url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
            driver = await psycopg.AsyncConnection.connect(url)
        await outbox.send_async(driver, "orders", "e")
        await driver.commit()
        await driver.close()
        await async_engine.dispose()

    asyncio.run(main())
    assert [row.value for row in rows(outbox, engine)] == [b"a", b"c", b"e"]


def test_tables_may_have_other_names_and_a_schema(postgres_url: str) -> None:
    from sqlalchemy import text

    metadata = MetaData()
    outbox = Outbox(metadata, table='out "box"', schema="Messages")
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "Messages"'))
        metadata.create_all(connection)
        outbox.send(connection, "orders", "a")
    assert [row.value for row in rows(outbox, engine)] == [b"a"]
    engine.dispose()


test_tables_may_have_other_names_and_a_schema = pytest.mark.peer("postgres")(
    test_tables_may_have_other_names_and_a_schema
)


def test_what_a_relay_would_find_out_too_late_is_refused_at_once(outbox: Outbox, engine: Engine) -> None:
    with engine.begin() as connection:
        for arguments, error, match in (
            (("a/b", "v"), ValueError, "no topic is called"),
            ((7, "v"), TypeError, "topic is text"),
            (("t", object()), SerializationError, "could not be serialized"),
        ):
            with pytest.raises(error, match=match):
                outbox.send(connection, *arguments)  # type: ignore[arg-type]
        for name, number, wrong in (("partition", -1, ValueError), ("timestamp_ms", "now", TypeError)):
            with pytest.raises(wrong, match=name):
                outbox.send(connection, "t", "v", **{name: number})  # type: ignore[arg-type]
    assert rows(outbox, engine) == []


def test_a_database_that_commits_by_itself_is_refused(outbox: Outbox, engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        with pytest.raises(ConfigError, match="autocommit"):
            outbox.send(connection, "t", "v")
    with pytest.raises(TypeError, match="connection or session"):
        outbox.send(engine, "t", "v")


def test_without_sqlalchemy_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['sqlalchemy'] = None\n"
        "import ottla, ottla.transaction, ottla.template\n"
        "try: from ottla.transaction import Outbox\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'ottla[database]'" in done.stdout
