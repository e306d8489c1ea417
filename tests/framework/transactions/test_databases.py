"""sqlite3 in a transaction, on our broker and on Apache Kafka: the database commits first, then Kafka, or neither."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ottla import KafkaTemplate, ProducerFactory
from ottla.errors import ConfigError, ProducerFenced
from support.clusters import ClusterUnderTest


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "shop.db")
    connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    connection.commit()
    yield connection
    connection.close()


@pytest.fixture
def rows(tmp_path: Path) -> Callable[[], list[int]]:
    """What another connection sees."""

    def look() -> list[int]:
        with sqlite3.connect(tmp_path / "shop.db") as other:
            return [row[0] for row in other.execute("SELECT id FROM orders")]

    return look


@pytest.fixture
def topic(cluster: ClusterUnderTest) -> str:
    return cluster.create_topic()


INSERT = "INSERT INTO orders VALUES (1)"


def test_the_database_is_committed_and_then_kafka(
    live_template: KafkaTemplate, topic: str, connection: sqlite3.Connection, rows: Any, reader: Any
) -> None:
    seen: list[Any] = []

    class Look:
        def before_completion(self, tx: Any) -> None:
            seen.append((rows(), reader.values(topic)))

    class Connection:
        """Looks around right after the commit."""

        in_transaction, isolation_level = True, ""
        rollback = connection.rollback

        def commit(self) -> None:
            connection.commit()
            seen.append((rows(), reader.values(topic), live_template.in_transaction))

    with live_template.transaction(database=Connection()) as tx:
        tx.add_synchronization(Look())
        assert live_template.in_transaction
        connection.execute(INSERT)
        live_template.send(topic, "order 1")
    assert seen == [([], []), ([1], [], False)]
    assert rows() == [1]
    reader.assert_sees(topic, "order 1")


def test_without_a_send_no_transaction_begins_at_the_broker(
    cluster: ClusterUnderTest,
    live_template: KafkaTemplate,
    topic: str,
    connection: sqlite3.Connection,
    rows: Any,
) -> None:
    def state(transactional_id: str) -> tuple[str, int]:
        found = cluster.admin.describe_transactions([transactional_id])[transactional_id]
        return str(found.state), found.producer_epoch

    with live_template.transaction(database=connection) as tx:
        connection.execute(INSERT)
        before = state(tx.transactional_id)
    assert state(tx.transactional_id) == before == ("Empty", 0)
    assert rows() == [1]
    with live_template.transaction(database=connection) as tx:
        assert state(tx.transactional_id) == before
        live_template.send(topic, "order 1").result(10)
        assert state(tx.transactional_id) == ("Ongoing", 0), "it begins with the first send"


def test_a_block_that_raises_leaves_nothing_in_either(
    live_template: KafkaTemplate, topic: str, connection: sqlite3.Connection, rows: Any, reader: Any
) -> None:
    with pytest.raises(ValueError, match="no"), live_template.transaction(database=connection):
        connection.execute(INSERT)
        live_template.send(topic, "order 1").result(10)
        raise ValueError("no")
    assert rows() == []
    assert reader.values(topic) == []


def test_a_database_that_does_not_commit_aborts_kafka(
    live_template: KafkaTemplate, topic: str, connection: sqlite3.Connection, rows: Any, reader: Any
) -> None:
    connection.executescript(
        "PRAGMA foreign_keys = ON;CREATE TABLE lines (id INTEGER REFERENCES orders (id) DEFERRABLE INITIALLY DEFERRED);"
    )
    with pytest.raises(sqlite3.IntegrityError), live_template.transaction(database=connection):
        connection.execute("INSERT INTO lines VALUES (7)")
        live_template.send(topic, "order 1").result(10)
    assert not connection.in_transaction
    assert reader.values(topic) == []


def test_a_kafka_commit_that_fails_is_raised_and_the_database_stays_committed(
    cluster: ClusterUnderTest,
    live_template: KafkaTemplate,
    topic: str,
    connection: sqlite3.Connection,
    rows: Any,
    reader: Any,
) -> None:
    class Fence:
        def before_completion(self, tx: Any) -> None:
            cluster.admin.fence_producers([tx.transactional_id])

    with pytest.raises(ProducerFenced) as caught, live_template.transaction(database=connection) as tx:
        tx.add_synchronization(Fence())
        connection.execute(INSERT)
        live_template.send(topic, "order 1")
    assert any("database transaction is committed" in note for note in caught.value.__notes__)
    assert rows() == [1]
    assert reader.values(topic) == []


def test_kafka_inside_of_the_databases_transaction_is_committed_first_and_stays_so(
    live_template: KafkaTemplate, topic: str, connection: sqlite3.Connection, rows: Any, reader: Any
) -> None:
    with pytest.raises(KeyError), connection:
        connection.execute(INSERT)
        with live_template.transaction():
            live_template.send(topic, "order 1")
        assert rows() == []
        raise KeyError
    assert rows() == []
    reader.assert_sees(topic, "order 1")


def test_what_cannot_be_rolled_back_is_refused(make_factory: Callable[..., ProducerFactory], tmp_path: Path) -> None:
    template = KafkaTemplate(make_factory(transaction_id_prefix="tx-"))
    plain = sqlite3.connect(tmp_path / "plain.db", isolation_level=None)
    with plain, pytest.raises(ConfigError, match="autocommit"), template.transaction(database=plain):
        pass
    plain.close()
    with pytest.raises(ConfigError, match="commit"), template.transaction(database=object()):
        pass
