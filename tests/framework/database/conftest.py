"""Each test runs on SQLite and on PostgreSQL; Kafka is our own broker, embedded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, create_engine

from ottla import KafkaTemplate, ProducerFactory
from ottla.client import KafkaConsumer, TopicPartition
from ottla_wire.records import ConsumerRecord
from support.postgres import fresh_database, running_postgres

_numbers = itertools.count(1)
POSTGRES = pytest.param("postgresql", marks=pytest.mark.peer("postgres"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """An empty PostgreSQL database, as SQLAlchemy names it."""
    with fresh_database(postgres_server, f"t{next(_numbers)}") as url:
        yield url.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture(params=["sqlite", POSTGRES])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shop.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def async_url(database_url: str) -> str:
    """The same database, for SQLAlchemy's async engines."""
    return database_url.replace("sqlite://", "sqlite+aiosqlite://")


@pytest.fixture
def metadata() -> MetaData:
    return MetaData()


@pytest.fixture
def template(kafka: Any, kafka_topic: str) -> Iterator[KafkaTemplate]:
    with ProducerFactory(bootstrap_servers=kafka.bootstrap_servers, transaction_id_prefix=f"{kafka_topic}-") as factory:
        yield KafkaTemplate(factory, default_topic=kafka_topic)


class Reader:
    """What topics hold for readers of committed records."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers

    def records(self, topic: str, partitions: int = 1) -> list[ConsumerRecord]:
        """All that may be read now."""
        settings = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}
        with KafkaConsumer(bootstrap_servers=self.bootstrap_servers, **settings) as consumer:
            wanted = [TopicPartition(topic, index) for index in range(partitions)]
            consumer.assign(wanted)
            ends = consumer.end_offsets(wanted)
            found: list[ConsumerRecord] = []
            while any(consumer.position(partition) < ends[partition] for partition in wanted):
                found += consumer.poll(0.2)
        return found

    def values(self, topic: str) -> list[str]:
        return [record.value.decode() for record in self.records(topic)]


@pytest.fixture
def reader(kafka: Any) -> Reader:
    return Reader(kafka.bootstrap_servers)


@pytest.fixture
def make_record() -> Callable[..., ConsumerRecord]:
    def make(offset: int = 0, **fields: Any) -> ConsumerRecord:
        given = {
            "topic": "orders",
            "partition": 0,
            "offset": offset,
            "timestamp_ms": 1_700_000_000_000,
            "timestamp_type": 0,
            "key": None,
            "value": b"v",
            "headers": [],
            "leader_epoch": 0,
            "delivery_attempt": None,
        }
        return ConsumerRecord(**{**given, **fields})

    return make
