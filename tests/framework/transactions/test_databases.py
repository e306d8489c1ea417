"""sqlite3 in a transaction: its commit comes with Kafka's, its rollback with Kafka's abort."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ottla import KafkaTemplate, ProducerFactory
from ottla.client import KafkaConsumer, TopicPartition
from ottla.errors import ConfigError


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "shop.db")
    connection.execute("CREATE TABLE orders (id INTEGER)")
    connection.commit()
    yield connection
    connection.close()


@pytest.fixture
def template(kafka: Any, kafka_topic: str) -> Iterator[KafkaTemplate]:
    with ProducerFactory(bootstrap_servers=kafka.bootstrap_servers, transaction_id_prefix=kafka_topic) as factory:
        yield KafkaTemplate(factory, default_topic=kafka_topic)


def committed(kafka: Any, topic: str) -> list[bytes]:
    with KafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, isolation_level="read_committed") as consumer:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning([partition])
        end = consumer.end_offsets([partition])[partition]
        found: list[bytes] = []
        while consumer.position(partition) < end:
            found += [record.value for record in consumer.poll(1.0)]
        return found


def test_the_database_and_kafka_are_committed_together(
    template: KafkaTemplate, connection: sqlite3.Connection, kafka: Any, kafka_topic: str
) -> None:
    with template.transaction(database=connection):
        connection.execute("INSERT INTO orders VALUES (1)")
        template.send_default(b"order 1")
    assert not connection.in_transaction
    assert connection.execute("SELECT id FROM orders").fetchall() == [(1,)]
    assert committed(kafka, kafka_topic) == [b"order 1"]


def test_a_block_that_raises_leaves_nothing_in_either(
    template: KafkaTemplate, connection: sqlite3.Connection, kafka: Any, kafka_topic: str
) -> None:
    with pytest.raises(ValueError, match="no"), template.transaction(database=connection):
        connection.execute("INSERT INTO orders VALUES (1)")
        template.send_default(b"order 1").result(timeout=10)
        raise ValueError("no")
    assert connection.execute("SELECT id FROM orders").fetchall() == []
    assert committed(kafka, kafka_topic) == []


def test_what_cannot_be_rolled_back_is_refused(template: KafkaTemplate, tmp_path: Path) -> None:
    plain = sqlite3.connect(tmp_path / "plain.db", isolation_level=None)
    with plain, pytest.raises(ConfigError, match="autocommit"), template.transaction(database=plain):
        pass
    plain.close()
    with pytest.raises(ConfigError, match="commit"), template.transaction(database=object()):
        pass
