"""PostgreSQL gives ids in one order and makes rows visible in another: no row is passed over, and ids are the order."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, MetaData, create_engine, select, text

from ottla import ProducerFactory
from ottla.transaction import Outbox, RelayState
from ottla.transaction.outbox_store import OutboxStore

pytestmark = pytest.mark.peer("postgres")


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    engine = create_engine(postgres_url, pool_size=20)
    yield engine
    engine.dispose()


@pytest.fixture
def outbox(engine: Engine, metadata: MetaData) -> Outbox:
    outbox = Outbox(metadata)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE other (id INTEGER)"))
    return outbox


@pytest.fixture
def store(outbox: Outbox, engine: Engine) -> OutboxStore:
    return OutboxStore(outbox, engine)


def settled_rows(store: OutboxStore) -> list[bytes | None]:
    """What a relay that begins now would send, after as many looks as it takes if nobody else does anything."""
    settled = 0
    for _ in range(3):
        settled = store.settled(0)
    return [row.value for row in store.batch(0, settled, 1_000, 1 << 20)]


def test_a_lower_id_that_is_committed_later_holds_the_higher_ones_back(
    store: OutboxStore, outbox: Outbox, engine: Engine
) -> None:
    with engine.connect() as first, engine.connect() as second:
        outbox.send(first, "t", "1")
        outbox.send(second, "t", "2")
        second.commit()
        assert settled_rows(store) == []
        assert store.is_waiting
        assert len(store.blocked_by()) == 1
        first.commit()
        assert settled_rows(store) == [b"1", b"2"]
        assert not store.is_waiting


def test_a_lower_id_that_is_rolled_back_holds_nobody_up(store: OutboxStore, outbox: Outbox, engine: Engine) -> None:
    with engine.connect() as first, engine.connect() as second:
        outbox.send(first, "t", "1")
        outbox.send(second, "t", "2")
        second.commit()
        first.rollback()
    assert settled_rows(store) == [b"2"]


def test_a_lower_id_of_a_younger_transaction_is_waited_for_too(
    store: OutboxStore, outbox: Outbox, engine: Engine
) -> None:
    """The numbers of transactions and the ids of rows need not be in the same order."""
    with engine.connect() as older, engine.connect() as younger:
        older.execute(text("INSERT INTO other VALUES (1)"))
        outbox.send(younger, "t", "1")
        outbox.send(older, "t", "2")
        older.commit()
        assert settled_rows(store) == []
        younger.commit()
        assert settled_rows(store) == [b"1", b"2"]


def test_who_waits_for_a_lock_is_behind_who_held_it(store: OutboxStore, outbox: Outbox, engine: Engine) -> None:
    """The one that changes an account second sends its message second, though its transaction is the older one."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE account (balance INTEGER)"))
        connection.execute(text("INSERT INTO account VALUES (0)"))
    change = text("UPDATE account SET balance = balance + 1")
    with engine.connect() as older, engine.connect() as younger:
        older.execute(text("INSERT INTO other VALUES (1)"))
        younger.execute(change)
        outbox.send(younger, "t", "balance 1")
        younger.commit()
        older.execute(change)
        outbox.send(older, "t", "balance 2")
        older.commit()
    assert settled_rows(store) == [b"balance 1", b"balance 2"]


def test_a_transaction_has_its_number_before_it_takes_an_id(outbox: Outbox, engine: Engine) -> None:
    """Otherwise a mark could be made between the two, and know nothing of it. (nextval gives one at times.)"""
    without_row = select(outbox._next_id())
    number = text("SELECT pg_current_xact_id_if_assigned()")
    for _ in range(40):
        with engine.connect() as connection:
            connection.execute(without_row)
            assert connection.execute(number).scalar_one() is not None


def test_rows_that_come_while_others_are_waited_for_are_settled_later(
    store: OutboxStore, outbox: Outbox, engine: Engine
) -> None:
    def write(value: str) -> None:
        with engine.begin() as connection:
            outbox.send(connection, "t", value)

    write("1")
    store.settled(0)
    with engine.connect() as late:
        outbox.send(late, "t", "2")
        write("3")
        assert [row.value for row in store.batch(0, store.settled(0), 10, 1 << 20)] == [b"1"]
        late.commit()
    assert settled_rows(store) == [b"1", b"2", b"3"]


def test_nothing_new_costs_no_transaction_number(store: OutboxStore, engine: Engine) -> None:
    def next_number() -> Any:
        with engine.connect() as connection:
            return connection.execute(text("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")).scalar_one()

    before = next_number()
    for _ in range(5):
        assert store.settled(0) == 0
    assert next_number() == before


class Writer(threading.Thread):
    """Transactions of one to three messages with pauses between, some of them rolled back, until it has enough."""

    def __init__(self, name: str, outbox: Outbox, engine: Engine, topic: str, seed: int) -> None:
        super().__init__(name=name)
        self._outbox, self._engine, self._topic = outbox, engine, topic
        self._rng = random.Random(seed)
        self.committed: list[str] = []

    def run(self) -> None:
        for number in range(60):
            with self._engine.connect() as connection:
                values = [f"{self.name}-{number}-{part}" for part in range(self._rng.randint(1, 3))]
                if self._rng.random() < 0.5:
                    connection.execute(text("INSERT INTO other VALUES (1)"))
                for value in values:
                    self._outbox.send(connection, self._topic, value)
                    time.sleep(self._rng.random() * 0.004)
                if self._rng.random() < 0.2:
                    connection.rollback()
                else:
                    connection.commit()
                    self.committed += values


def ids_of(connection: Connection, outbox: Outbox) -> dict[str, int]:
    rows = connection.execute(select(outbox.table.c.record_value, outbox.table.c.id))
    return {bytes(value).decode(): number for value, number in rows}


def test_writers_at_the_same_time_lose_nothing_and_every_record_is_in_the_order_of_ids(
    outbox: Outbox, engine: Engine, kafka: Any, reader: Any, kafka_topic: str
) -> None:
    writers = [Writer(f"w{number}", outbox, engine, kafka_topic, number) for number in range(8)]
    with ProducerFactory(bootstrap_servers=kafka.bootstrap_servers, linger_ms=0) as factory:
        relay = outbox.relay(engine, factory, poll_interval=0.002, batch_rows=7, retention=3600.0)
        with relay:
            wait_for(lambda: relay.state is RelayState.ACTIVE)
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join(60)
    with engine.connect() as connection:
        ids = ids_of(connection, outbox)
    sent = reader.values(kafka_topic)
    assert sorted(sent) == sorted(value for writer in writers for value in writer.committed)
    assert sent == sorted(sent, key=ids.__getitem__)


def wait_for(satisfied: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not satisfied():
        assert time.monotonic() < deadline
        time.sleep(0.01)
