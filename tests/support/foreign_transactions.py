"""Transactional producers of other people, and ours, behind one face. Each imports its library when it is used."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from support.foreign_clients import WAIT_SECONDS


class Writer(Protocol):
    """A producer with a transactional id, initialised. Its errors are those of its library."""

    def begin(self) -> None: ...

    def send(self, topic: str, value: str) -> None:
        """Write to partition 0, and wait until that is acknowledged."""
        ...

    def send_offset(self, group: str, topic: str, offset: int) -> None:
        """Make a position in partition 0 part of the transaction, without being a member of the group."""
        ...

    def commit(self) -> None: ...

    def abort(self) -> None: ...

    def close(self) -> None:
        """End it, whatever its state is."""
        ...


class OttlaWriter:
    """Ours."""

    def __init__(self, servers: str, transactional_id: str, timeout_ms: int) -> None:
        from ottla.client import KafkaProducer

        self._producer = KafkaProducer(
            bootstrap_servers=servers,
            client_id="ottla-writer",
            transactional_id=transactional_id,
            transaction_timeout_ms=timeout_ms,
        )
        self._producer.init_transactions(WAIT_SECONDS)
        self.begin = self._producer.begin_transaction

    def send(self, topic: str, value: str) -> None:
        self._producer.send(topic, value, partition=0).result(WAIT_SECONDS)

    def send_offset(self, group: str, topic: str, offset: int) -> None:
        from ottla.client import ConsumerGroupMetadata, TopicPartition

        self._producer.send_offsets_to_transaction({TopicPartition(topic, 0): offset}, ConsumerGroupMetadata(group))

    def commit(self) -> None:
        self._producer.commit_transaction(WAIT_SECONDS)

    def abort(self) -> None:
        self._producer.abort_transaction(WAIT_SECONDS)

    def close(self) -> None:
        self._producer.close(5)


class ConfluentWriter:
    """confluent-kafka."""

    def __init__(self, servers: str, transactional_id: str, timeout_ms: int) -> None:
        from confluent_kafka import Producer

        settings = {"bootstrap.servers": servers, "client.id": "confluent-writer", "linger.ms": 0}
        settings |= {"transactional.id": transactional_id, "transaction.timeout.ms": timeout_ms}
        settings |= {"message.timeout.ms": timeout_ms}
        self._servers = servers
        self._producer = Producer(settings)
        self._producer.init_transactions(WAIT_SECONDS)
        self.begin = self._producer.begin_transaction

    def send(self, topic: str, value: str) -> None:
        failures: list[Any] = []
        self._producer.produce(
            topic, value=value, partition=0, on_delivery=lambda error, _: failures.append(error) if error else None
        )
        assert self._producer.flush(WAIT_SECONDS) == 0
        assert not failures, failures

    def send_offset(self, group: str, topic: str, offset: int) -> None:
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer({"bootstrap.servers": self._servers, "group.id": group})
        try:
            positions = [TopicPartition(topic, 0, offset)]
            self._producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata(), WAIT_SECONDS)
        finally:
            consumer.close()

    def commit(self) -> None:
        self._producer.commit_transaction(WAIT_SECONDS)

    def abort(self) -> None:
        self._producer.abort_transaction(WAIT_SECONDS)

    def close(self) -> None:
        from confluent_kafka import KafkaException

        self._producer.purge()
        with contextlib.suppress(KafkaException):  # a fenced one raises once more what it was fenced with
            self._producer.flush(5)


class KafkaPythonWriter:
    """kafka-python."""

    def __init__(self, servers: str, transactional_id: str, timeout_ms: int) -> None:
        from kafka import KafkaProducer

        self._producer = KafkaProducer(
            bootstrap_servers=servers,
            client_id="kafka-python-writer",
            transactional_id=transactional_id,
            transaction_timeout_ms=timeout_ms,
        )
        self._producer.init_transactions()
        self.begin = self._producer.begin_transaction
        self.commit = self._producer.commit_transaction
        self.abort = self._producer.abort_transaction

    def send(self, topic: str, value: str) -> None:
        self._producer.send(topic, value=value.encode(), partition=0).get(WAIT_SECONDS)

    def send_offset(self, group: str, topic: str, offset: int) -> None:
        from kafka import TopicPartition
        from kafka.structs import OffsetAndMetadata

        self._producer.send_offsets_to_transaction({TopicPartition(topic, 0): OffsetAndMetadata(offset, "", -1)}, group)

    def close(self) -> None:
        self._producer.close(timeout=5)


class AioKafkaWriter:
    """aiokafka, whose loop runs while one of these methods is waited for."""

    def __init__(self, servers: str, transactional_id: str, timeout_ms: int) -> None:
        self._runner = asyncio.Runner()
        self._producer: Any = self._run(self._start(servers, transactional_id, timeout_ms))

    async def _start(self, servers: str, transactional_id: str, timeout_ms: int) -> Any:
        from aiokafka import AIOKafkaProducer

        producer = AIOKafkaProducer(
            bootstrap_servers=servers,
            client_id="aiokafka-writer",
            transactional_id=transactional_id,
            transaction_timeout_ms=timeout_ms,
        )
        await producer.start()
        return producer

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(asyncio.wait_for(work, WAIT_SECONDS))

    def begin(self) -> None:
        self._run(self._producer.begin_transaction())

    def send(self, topic: str, value: str) -> None:
        self._run(self._producer.send_and_wait(topic, value=value.encode(), partition=0))

    def send_offset(self, group: str, topic: str, offset: int) -> None:
        from aiokafka import TopicPartition

        self._run(self._producer.send_offsets_to_transaction({TopicPartition(topic, 0): offset}, group))

    def commit(self) -> None:
        self._run(self._producer.commit_transaction())

    def abort(self) -> None:
        self._run(self._producer.abort_transaction())

    def close(self) -> None:
        from aiokafka.errors import KafkaError

        with contextlib.suppress(KafkaError):  # a fenced one raises once more what it was fenced with
            self._run(self._producer.stop())
        self._runner.close()


WRITERS: dict[str, Callable[[str, str, int], Writer]] = {
    "ottla": OttlaWriter,
    "confluent": ConfluentWriter,
    "aiokafka": AioKafkaWriter,
    "kafka-python": KafkaPythonWriter,
}
