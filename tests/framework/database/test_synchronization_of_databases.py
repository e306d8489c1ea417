"""`template.transaction(database=...)`: which databases take part, and what comes first, on real ones."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from ottla import KafkaTemplate
from ottla.client import KafkaProducer
from ottla.errors import ConfigError, ProducerFenced, SendError, TransactionEnded

INSERT = "INSERT INTO orders VALUES (1)"


@pytest.fixture(autouse=True)
def orders(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (id INTEGER)"))


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM orders")).scalar_one()


# -- who takes part ----------------------------------------------------------------------------------------------------


@contextmanager
def of_the_driver(engine: Engine) -> Iterator[Any]:
    if engine.dialect.name == "sqlite":
        connection: Any = sqlite3.connect(engine.url.database or "")
    else:
        connection = psycopg.connect(engine.url.set(drivername="postgresql").render_as_string(hide_password=False))
    yield connection
    connection.close()


@contextmanager
def scoped(engine: Engine) -> Iterator[Any]:
    registry = scoped_session(sessionmaker(engine))
    yield registry
    registry.remove()


KINDS = {"connection": Engine.connect, "session": Session, "scoped session": scoped, "driver": of_the_driver}


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_commits_the_database_and_kafka_or_neither(
    template: KafkaTemplate, engine: Engine, reader: Any, kafka_topic: str, kind: str
) -> None:
    insert: Any = INSERT if kind == "driver" else text(INSERT)
    with KINDS[kind](engine) as database:
        with template.transaction(database=database):
            database.execute(insert)
            template.send_default("order 1")
        with pytest.raises(KeyError), template.transaction(database=database):
            database.execute(insert)
            template.send_default("order 2")
            raise KeyError
        assert count(engine) == 1
    assert reader.values(kafka_topic) == ["order 1"]


@asynccontextmanager
async def async_of_the_driver(engine: Any) -> AsyncIterator[Any]:
    if engine.dialect.name == "sqlite":
        import aiosqlite

        connection: Any = await aiosqlite.connect(engine.url.database)
    else:
        url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        connection = await psycopg.AsyncConnection.connect(url)
    yield connection
    await connection.close()


ASYNC_KINDS: dict[str, Callable[[Any], Any]] = {
    "connection": lambda engine: engine.connect(),
    "session": AsyncSession,
    "driver": async_of_the_driver,
}


@pytest.mark.parametrize("kind", ASYNC_KINDS)
def test_an_async_block_commits_an_async_database_and_kafka_or_neither(
    template: KafkaTemplate, engine: Engine, async_url: str, reader: Any, kafka_topic: str, kind: str
) -> None:
    insert: Any = INSERT if kind == "driver" else text(INSERT)

    async def main() -> None:
        async_engine = create_async_engine(async_url)
        async with ASYNC_KINDS[kind](async_engine) as database:
            async with template.transaction(database=database):
                await database.execute(insert)
                template.send_default("order 1")
            with pytest.raises(KeyError):
                async with template.transaction(database=database):
                    await database.execute(insert)
                    template.send_default("order 2")
                    raise KeyError
        await async_engine.dispose()

    asyncio.run(main())
    assert count(engine) == 1
    assert reader.values(kafka_topic) == ["order 1"]


def test_an_async_database_in_a_plain_block_is_refused_before_anything_is_done(
    template: KafkaTemplate, async_url: str
) -> None:
    session = AsyncSession(create_async_engine(async_url))
    with pytest.raises(ConfigError, match="async with"):
        template.transaction(database=session).__enter__()


def test_what_commits_by_itself_or_makes_connections_is_refused(template: KafkaTemplate, engine: Engine) -> None:
    autocommit = create_engine(engine.url, isolation_level="AUTOCOMMIT")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as one, autocommit.connect() as other:
        for connection in (one, other):
            with pytest.raises(ConfigError, match="autocommit"):
                template.transaction(database=connection).__enter__()
    autocommit.dispose()
    with pytest.raises(ConfigError, match="not what makes them"):
        template.transaction(database=engine).__enter__()


def test_sqlite_that_is_begun_by_hand_takes_part(template: KafkaTemplate, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "own.db", isolation_level=None)
    with pytest.raises(ConfigError, match="autocommit"):
        template.transaction(database=connection).__enter__()
    connection.execute("CREATE TABLE orders (id INTEGER)")
    connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(KeyError), template.transaction(database=connection):
        connection.execute(INSERT)
        raise KeyError
    assert connection.execute("SELECT count(*) FROM orders").fetchone() == (0,)
    connection.close()


# -- the order of things -----------------------------------------------------------------------------------------------


def test_the_database_is_committed_before_kafka_makes_anything_visible(
    template: KafkaTemplate, engine: Engine, reader: Any, kafka_topic: str
) -> None:
    seen = []
    with Session(engine) as session, template.transaction(database=session):
        session.execute(text(INSERT))
        template.send_default("order 1")
        event.listen(session, "after_commit", lambda _: seen.append(reader.values(kafka_topic)))
    assert seen == [[]]
    assert reader.values(kafka_topic) == ["order 1"]


def test_a_database_that_does_not_commit_aborts_kafka(
    template: KafkaTemplate, engine: Engine, reader: Any, kafka_topic: str
) -> None:
    def refuse(_: Any) -> None:
        raise ValueError("no room")

    with Session(engine) as session, pytest.raises(ValueError, match="no room"), template.transaction(database=session):
        session.execute(text(INSERT))
        template.send_default("order 1")
        event.listen(session, "before_commit", refuse)
    assert count(engine) == 0
    assert reader.values(kafka_topic) == []


def test_a_send_that_fails_leaves_the_database_as_it_was(template: KafkaTemplate, engine: Engine) -> None:
    with Session(engine) as session, pytest.raises(SendError), template.transaction(database=session):
        session.execute(text(INSERT))
        template.send_default(object())
    assert count(engine) == 0


def test_a_kafka_commit_that_fails_is_what_the_caller_gets_and_the_database_stays_committed(
    template: KafkaTemplate, engine: Engine, reader: Any, kafka: Any, kafka_topic: str
) -> None:
    with Session(engine) as session, pytest.raises(ProducerFenced) as caught:
        with template.transaction(database=session) as tx:
            session.execute(text(INSERT))
            template.send_default("order 1")

            def another_takes_the_id(_: Any) -> None:
                settings = {"bootstrap_servers": kafka.bootstrap_servers, "transactional_id": tx.transactional_id}
                with KafkaProducer(**settings) as usurper:
                    usurper.init_transactions()

            event.listen(session, "after_commit", another_takes_the_id)
    assert count(engine) == 1
    assert reader.values(kafka_topic) == []
    (note,) = caught.value.__notes__
    assert "database transaction is committed and stays so" in note
    assert "Outbox" in note


def test_without_a_send_kafka_is_not_asked_for_a_transaction(
    template: KafkaTemplate, engine: Engine, kafka: Any
) -> None:
    from ottla.client import AdminClient

    with AdminClient(bootstrap_servers=kafka.bootstrap_servers) as admin:
        ids: list[str] = []

        def state() -> tuple[str, int]:
            found = admin.describe_transactions(ids)[ids[0]]
            return str(found.state), found.producer_epoch

        with Session(engine) as session:
            with template.transaction(database=session) as tx:
                session.execute(text(INSERT))
                ids.append(tx.transactional_id)
                before = state()
            assert state() == before, "an end of a transaction would have counted the epoch up"
            with template.transaction(database=session):
                template.send_default("order 1").result(timeout=10)
                during = state()
    assert count(engine) == 1
    assert before[0] != during[0]


def test_kafka_inside_of_a_database_transaction_is_committed_first(
    template: KafkaTemplate, engine: Engine, reader: Any, kafka_topic: str
) -> None:
    with pytest.raises(KeyError), Session(engine) as session, session.begin():
        session.execute(text(INSERT))
        with template.transaction():
            template.send_default("order 1")
        assert reader.values(kafka_topic) == ["order 1"]
        raise KeyError
    assert count(engine) == 0
    assert reader.values(kafka_topic) == ["order 1"]


# -- blocks that join --------------------------------------------------------------------------------------------------


def test_a_session_of_a_joined_block_is_committed_with_the_whole(
    template: KafkaTemplate, engine: Engine, reader: Any, kafka_topic: str
) -> None:
    with Session(engine) as session:
        with template.transaction():
            with template.transaction(database=session):
                session.execute(text(INSERT))
                template.send_default("order 1")
            assert count(engine) == 0
        assert count(engine) == 1
    assert reader.values(kafka_topic) == ["order 1"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_is_closed_before_the_whole_is_committed_is_not_lost_in_silence(
    template: KafkaTemplate, engine: Engine, reader: Any, kafka_topic: str, kind: str
) -> None:
    insert: Any = INSERT if kind == "driver" else text(INSERT)
    with pytest.raises(Exception) as caught, template.transaction():  # noqa: PT011 - a driver has its own error
        with KINDS[kind](engine) as database, template.transaction(database=database):
            database.execute(insert)
            template.send_default("order 1")
    assert isinstance(caught.value, TransactionEnded) or "closed" in str(caught.value)
    assert reader.values(kafka_topic) == []


# -- cancellation ------------------------------------------------------------------------------------------------------


def test_a_task_that_is_cancelled_while_its_database_commits_has_both_or_none(
    template: KafkaTemplate, reader: Any, kafka_topic: str
) -> None:
    committed = []

    class SlowDatabase:
        def __init__(self) -> None:
            self.committing = asyncio.Event()
            self.go_on = asyncio.Event()

        async def commit(self) -> None:
            self.committing.set()
            await self.go_on.wait()
            committed.append("database")

        async def rollback(self) -> None:
            committed.append("rolled back")

    async def main() -> None:
        database = SlowDatabase()

        async def work() -> None:
            async with template.transaction(database=database):
                template.send_default("order 1")

        task = asyncio.create_task(work())
        await database.committing.wait()
        task.cancel()
        await asyncio.sleep(0)
        database.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert committed == ["database"]
    assert reader.values(kafka_topic) == ["order 1"]
