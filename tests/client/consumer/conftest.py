"""Builders of what brokers send, and a broker of our own for the tests that need a whole one."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import pytest

from ottla.client import AdminClient, KafkaProducer
from ottla.client.admin_types import NewTopic
from ottla.embedded import EmbeddedKafka
from ottla_wire.records import RecordBatchBuilder
from ottla_wire.records.control import end_transaction_marker


def data_batch(
    base_offset: int,
    values: Sequence[bytes | None],
    *,
    producer_id: int = -1,
    transactional: bool = False,
    leader_epoch: int = 0,
) -> bytes:
    builder = RecordBatchBuilder(1 << 20)
    for number, value in enumerate(values):
        builder.append(1_000 + number, b"k%d" % (base_offset + number), value, None)
    return builder.build(
        base_offset=base_offset,
        producer_id=producer_id,
        producer_epoch=0 if producer_id >= 0 else -1,
        base_sequence=0 if producer_id >= 0 else -1,
        transactional=transactional,
        leader_epoch=leader_epoch,
    )


def marker(offset: int, producer_id: int, *, commit: bool, leader_epoch: int = 0) -> bytes:
    return end_transaction_marker(
        commit=commit,
        producer_id=producer_id,
        producer_epoch=0,
        coordinator_epoch=0,
        timestamp_ms=2_000,
        base_offset=offset,
        leader_epoch=leader_epoch,
    )


@pytest.fixture(scope="session")
def log() -> SimpleNamespace:
    """`log.batch(...)` and `log.marker(...)`: the pieces that a partition's log is made of."""
    batch: Callable[..., bytes] = data_batch
    return SimpleNamespace(batch=batch, marker=marker)


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """The address of a broker of our own, in a process of its own: it must not wait for the tests' GIL."""
    with EmbeddedKafka(process=True) as kafka:
        yield kafka.bootstrap_servers


@pytest.fixture
def new_topic(broker: str) -> Iterator[Callable[..., str]]:
    """Makes a topic of a name that no other test has: `new_topic(partitions=3)`."""
    with AdminClient(bootstrap_servers=broker) as admin:

        def make(partitions: int = 1, name: str | None = None) -> str:
            name = name or f"topic-{uuid.uuid4().hex[:8]}"
            admin.create_topics([NewTopic(name, partitions)])
            return name

        yield make


@pytest.fixture
def producer(broker: str) -> Iterator[KafkaProducer]:
    with KafkaProducer(bootstrap_servers=broker, linger_ms=0) as made:
        yield made
