"""An inbox: a record's database work is done once, however often the record is delivered."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any

import psycopg
import pytest
from pydantic import BaseModel
from sqlalchemy import Connection, Engine, MetaData, Table, create_engine, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from ottla import ConsumerRecord, ErrorHandler, Header, Ottla, Retry
from ottla.errors import ConfigError
from ottla.transaction import Inbox
from ottla.transaction.inbox import MissingMessageId

Record = Callable[..., ConsumerRecord]


class Order(BaseModel):
    id: int


@pytest.fixture
def inbox(engine: Engine, metadata: MetaData) -> Inbox:
    inbox = Inbox("billing", metadata)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE work (id INTEGER)"))
    return inbox


def count(engine: Engine, table: str | Table = "work") -> int:
    with engine.connect() as connection:
        chosen = text(table) if isinstance(table, str) else table
        return connection.execute(select(func.count()).select_from(chosen)).scalar_one()


def handle(inbox: Inbox, engine: Engine, record: ConsumerRecord, fail: bool = False) -> bool:
    with Session(engine) as session, session.begin(), inbox.handle(record, session) as fresh:
        if fresh:
            session.execute(text("INSERT INTO work VALUES (1)"))
        if fail:
            raise ValueError("after the work")
    return fresh


def eventually(satisfied: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not satisfied():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_a_record_that_is_delivered_again_is_recognised(inbox: Inbox, engine: Engine, make_record: Record) -> None:
    assert handle(inbox, engine, make_record(1))
    assert not handle(inbox, engine, make_record(1))
    assert handle(inbox, engine, make_record(2))
    assert handle(inbox, engine, make_record(1, partition=1))
    assert handle(inbox, engine, make_record(1, topic="other"))
    assert count(engine) == 4


def test_work_that_was_rolled_back_leaves_the_record_unknown(inbox: Inbox, engine: Engine, make_record: Record) -> None:
    with pytest.raises(ValueError, match="after the work"):
        handle(inbox, engine, make_record(1), fail=True)
    assert count(engine) == count(engine, inbox.table) == 0
    assert handle(inbox, engine, make_record(1))
    assert count(engine) == 1


def test_a_recognised_record_whose_block_fails_is_recognised_still(
    inbox: Inbox, engine: Engine, make_record: Record
) -> None:
    assert handle(inbox, engine, make_record(1))
    with pytest.raises(ValueError, match="after the work"):
        handle(inbox, engine, make_record(1), fail=True)
    assert not handle(inbox, engine, make_record(1))


def test_each_group_works_a_record_off_once(
    inbox: Inbox, engine: Engine, metadata: MetaData, make_record: Record
) -> None:
    other = Inbox("shipping", metadata)
    assert other.table is inbox.table
    assert handle(inbox, engine, make_record(1))
    assert handle(other, engine, make_record(1))
    assert not handle(other, engine, make_record(1))


def test_a_topic_that_was_made_anew_has_the_same_offsets_for_other_records(
    inbox: Inbox, engine: Engine, make_record: Record
) -> None:
    assert handle(inbox, engine, make_record(0, timestamp_ms=1_000))
    assert handle(inbox, engine, make_record(0, timestamp_ms=2_000))


def test_a_header_may_identify_a_message_wherever_it_is(
    engine: Engine, metadata: MetaData, inbox: Inbox, make_record: Record
) -> None:
    by_id = Inbox("by-id", metadata, message_id="message-id")
    assert handle(by_id, engine, make_record(1, headers=[("message-id", b"a")]))
    assert not handle(by_id, engine, make_record(7, partition=3, headers=[("message-id", b"a")]))
    for strange in (b"\xff\x00", b"x" * 5_000, b"a\0b"):
        assert handle(by_id, engine, make_record(1, headers=[("message-id", strange)]))
        assert not handle(by_id, engine, make_record(1, headers=[("message-id", strange)]))
    with pytest.raises(MissingMessageId, match="orders-0 at offset 5 has no header 'message-id'"):
        handle(by_id, engine, make_record(5))


@pytest.mark.peer("postgres")
def test_the_second_of_two_processes_waits_for_the_first_and_then_knows(postgres_url: str, make_record: Record) -> None:
    engine, metadata = create_engine(postgres_url), MetaData()
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    inbox = Inbox("billing", metadata)
    metadata.create_all(engine)
    for first_commits in (True, False):
        record = make_record(int(first_commits))
        found: list[bool] = []

        def second(record: ConsumerRecord = record, found: list[bool] = found) -> None:
            with engine.begin() as connection, inbox.handle(record, connection) as fresh:
                found.append(fresh)

        with engine.connect() as connection:
            with inbox.handle(record, connection) as fresh:
                assert fresh
            thread = threading.Thread(target=second)
            thread.start()
            with engine.connect() as other:
                eventually(lambda other=other: other.execute(waiting).scalar_one() == 1 or other.rollback())
            assert found == []
            if first_commits:
                connection.commit()
            else:
                connection.rollback()
            thread.join(10)
        assert found == [not first_commits]
    engine.dispose()


def test_a_drivers_own_connection_and_async_ones_will_do(
    inbox: Inbox, engine: Engine, async_url: str, make_record: Record
) -> None:
    record = make_record(1)
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    is_sqlite = engine.dialect.name == "sqlite"
    plain: Any = sqlite3.connect(engine.url.database or "") if is_sqlite else psycopg.connect(url)
    with inbox.handle(record, plain) as fresh:
        assert fresh
    plain.rollback()
    plain.close()

    async def main() -> None:
        async_engine = create_async_engine(async_url)
        async with AsyncSession(async_engine) as session:
            async with inbox.handle(record, session) as fresh:
                assert fresh
            with pytest.raises(TypeError, match="async form"):
                inbox.handle(record, session).__enter__()
            await session.commit()
        async with async_engine.begin() as connection, inbox.handle(record, connection) as fresh:
            assert not fresh
        await async_engine.dispose()

    asyncio.run(main())


def test_what_is_older_than_the_retention_is_forgotten(engine: Engine, metadata: MetaData, make_record: Record) -> None:
    brief = Inbox("brief", metadata, retention=0.001)
    kept = Inbox("kept", metadata, retention=None, table="kept")
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE work (id INTEGER)"))
    for offset in range(5):
        handle(brief, engine, make_record(offset))
        handle(kept, engine, make_record(offset))
        time.sleep(0.01)
    assert count(engine, brief.table) < 5
    assert count(engine, kept.table) == 5
    with engine.begin() as connection:
        assert kept.purge(connection, older_than=3600) == 0
        assert kept.purge(connection, older_than=0.001) == 5
        with pytest.raises(ConfigError, match="older_than"):
            kept.purge(connection)
    assert count(engine, kept.table) == 0


def test_a_database_that_commits_by_itself_is_refused(inbox: Inbox, engine: Engine, make_record: Record) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        with pytest.raises(ConfigError, match="autocommit"):
            inbox.handle(make_record(1), connection).__enter__()


# -- as a decorator ----------------------------------------------------------------------------------------------------


def test_once_gives_a_session_and_commits_it_with_the_identity(
    inbox: Inbox, engine: Engine, make_record: Record
) -> None:
    @inbox.once(sessionmaker(engine))
    def bill(record: ConsumerRecord, session: Session) -> str:
        session.execute(text("INSERT INTO work VALUES (1)"))
        if record.value == b"bad":
            raise ValueError("no")
        return "billed"

    with pytest.raises(ValueError, match="no"):
        bill(make_record(1, value=b"bad"))
    assert count(engine) == count(engine, inbox.table) == 0
    assert bill(make_record(1)) == "billed"
    assert bill(make_record(1)) is None
    assert count(engine) == count(engine, inbox.table) == 1


def test_once_takes_a_connection_under_any_name(inbox: Inbox, engine: Engine, make_record: Record) -> None:
    @inbox.once(engine.connect, "database")
    def bill(database: Connection, record: ConsumerRecord) -> None:
        database.execute(text("INSERT INTO work VALUES (1)"))

    bill(make_record(1))
    bill(make_record(1))
    assert count(engine) == 1


def test_once_refuses_what_it_cannot_serve(inbox: Inbox, engine: Engine) -> None:
    with pytest.raises(TypeError, match="no parameter 'session'"):

        @inbox.once(sessionmaker(engine))
        def no_session(order: Order) -> None: ...

    with pytest.raises(TypeError, match="takes lists"):

        @inbox.once(sessionmaker(engine))
        def many(orders: list[Order], session: Session) -> None: ...


def test_a_listener_works_a_record_off_once_though_it_is_delivered_again(
    inbox: Inbox, engine: Engine, kafka: Any, kafka_topic: str
) -> None:
    """The listener fails after its database work was committed, so the record comes again."""
    app = Ottla(kafka.bootstrap_servers, name=f"app-{kafka_topic}")
    deliveries: list[tuple[int, str]] = []
    handled: list[int] = []

    @inbox.once(sessionmaker(engine))
    def bill(order: Order, session: Session, source: Annotated[str, Header("source")]) -> None:
        session.execute(text("INSERT INTO work VALUES (1)"))
        handled.append(order.id)

    @app.listener(kafka_topic, group=kafka_topic, on_error=ErrorHandler(retry=Retry.fixed(0.01, attempts=5)))
    def listen(record: ConsumerRecord, order: Order, source: Annotated[str, Header("source")]) -> None:
        bill(record, order, source)
        deliveries.append((order.id, source))
        if len(deliveries) < 3:
            raise RuntimeError("the process might as well have been killed here")

    with app:
        app.template.send(kafka_topic, Order(id=7), headers={"source": "web"})
        eventually(lambda: len(deliveries) == 3)
    assert handled == [7]
    assert deliveries == [(7, "web")] * 3
    assert count(engine) == 1


def test_once_stands_below_the_listener_decorator_and_payloads_are_bound_as_ever(
    inbox: Inbox, engine: Engine, kafka: Any, kafka_topic: str, async_url: str
) -> None:
    app = Ottla(kafka.bootstrap_servers, name=f"app-{kafka_topic}")
    handled: list[tuple[str, int, str]] = []
    async_engine = create_async_engine(async_url, poolclass=NullPool)  # a connection belongs to the application's loop

    @app.listener(kafka_topic, group=f"{kafka_topic}-1", consumer={"auto_offset_reset": "earliest"})
    @inbox.once(sessionmaker(engine))
    def bill(order: Order, session: Session, source: Annotated[str, Header("source")]) -> None:
        session.execute(text("INSERT INTO work VALUES (1)"))
        handled.append(("plain", order.id, source))

    other = Inbox("shipping", inbox.metadata)

    @app.listener(kafka_topic, group=f"{kafka_topic}-2")
    @other.once(async_sessionmaker(async_engine))
    async def ship(order: Order, session: AsyncSession, source: Annotated[str, Header("source")] = "none") -> None:
        await session.execute(text("INSERT INTO work VALUES (2)"))
        handled.append(("async", order.id, source))

    with app:
        app.template.send(kafka_topic, Order(id=7), headers={"source": "web"})
        eventually(lambda: count(engine) == 2)
        eventually(lambda: len(handled) == 2)
    assert sorted(handled) == [("async", 7, "web"), ("plain", 7, "web")]
