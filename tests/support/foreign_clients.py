"""Other people's Python clients, and ours, behind one face: produce, consume, be a member of a group.

Each imports its library when it is used. A member runs in a thread of its own and is looked at from outside.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
WAIT_SECONDS = 40


def isolation(committed: bool) -> str:
    """The isolation level as all configurations spell it."""
    return "read_committed" if committed else "read_uncommitted"


class Rec(NamedTuple):
    """A record as the clients see it. Text only, since the command lines know nothing else."""

    key: str | None
    value: str | None
    headers: tuple[tuple[str, str], ...] = ()


class Member(Protocol):
    """A member of a group at work: which partitions it has, and which values it has read."""

    assigned: set[int]
    values: list[str]

    def close(self) -> None:
        """Leave the group, with what was read committed."""
        ...


class Peer(Protocol):
    """A client of somebody's."""

    name: str

    def codecs(self) -> Sequence[str]:
        """Those that it can write and read as it is installed here."""
        ...

    def produce(self, servers: str, topic: str, records: Sequence[Rec], codec: str) -> None:
        """Write, and wait until all is acknowledged."""
        ...

    def consume(self, servers: str, topic: str, count: int, *, committed: bool = False) -> list[Rec]:
        """Read so many records from the start; only what is committed, if that is asked for."""
        ...

    def member(self, servers: str, topic: str, group: str) -> Member:
        """Join a group."""
        ...


class ThreadMember:
    """A member whose client lives in a thread: `work(self)` runs until `stopping` is set."""

    def __init__(self, work: Callable[[ThreadMember], None]) -> None:
        self.assigned: set[int] = set()
        self.values: list[str] = []
        self.stopping = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[ThreadMember], None]) -> None:
        try:
            work(self)
        except BaseException as error:  # noqa: BLE001 - close() raises it
            self.error = error

    def close(self) -> None:
        self.stopping.set()
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive(), "the member did not end"
        if self.error is not None:
            raise self.error


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _decoded(data: bytes | bytearray | memoryview | None) -> str | None:
    return None if data is None else bytes(data).decode()


def _rec(key: Any, value: Any, headers: Any) -> Rec:
    return Rec(_decoded(key), _decoded(value), tuple((name, _decoded(data) or "") for name, data in headers or ()))


def _bytes_headers(record: Rec) -> list[tuple[str, bytes]]:
    return [(name, value.encode()) for name, value in record.headers]


def _deadline() -> Callable[[], None]:
    end = time.monotonic() + WAIT_SECONDS

    def check() -> None:
        assert time.monotonic() < end, f"not within {WAIT_SECONDS} s"

    return check


class Ottla:
    """Ours."""

    name = "ottla"

    def codecs(self) -> Sequence[str]:
        return CODECS

    def produce(self, servers: str, topic: str, records: Sequence[Rec], codec: str) -> None:
        from ottla.client import KafkaProducer

        with KafkaProducer(bootstrap_servers=servers, compression_type=codec) as producer:
            sent = [producer.send(topic, r.value, key=r.key, headers=_bytes_headers(r)) for r in records]
            for future in sent:
                future.result(WAIT_SECONDS)

    def consume(self, servers: str, topic: str, count: int, *, committed: bool = False) -> list[Rec]:
        from ottla.client import KafkaConsumer, TopicPartition

        found: list[Rec] = []
        with KafkaConsumer(
            bootstrap_servers=servers, auto_offset_reset="earliest", isolation_level=isolation(committed)
        ) as consumer:
            consumer.assign([TopicPartition(topic, part.index) for part in consumer.partitions_for(topic)])
            check = _deadline()
            while len(found) < count:
                check()
                found += [_rec(r.key, r.value, r.headers) for r in consumer.poll(0.2)]
        return found

    def member(self, servers: str, topic: str, group: str) -> Member:
        from ottla.client import KafkaConsumer

        def work(me: ThreadMember) -> None:
            with KafkaConsumer(
                bootstrap_servers=servers,
                group_id=group,
                auto_offset_reset="earliest",
                heartbeat_interval_ms=300,
                partition_assignment_strategy=["range"],
            ) as consumer:
                consumer.subscribe([topic])
                while not me.stopping.is_set():
                    records = consumer.poll(0.1)
                    me.assigned = {partition.partition for partition in consumer.assignment()}
                    me.values += [record.value.decode() for record in records]

        return ThreadMember(work)


class Confluent:
    """confluent-kafka: librdkafka, whose producer is made idempotent here."""

    name = "confluent"

    def codecs(self) -> Sequence[str]:
        return CODECS

    def produce(self, servers: str, topic: str, records: Sequence[Rec], codec: str) -> None:
        from confluent_kafka import Producer

        failures: list[Any] = []
        delivered: list[Any] = []

        def report(error: Any, message: Any) -> None:
            (failures if error else delivered).append(error or message)

        producer = Producer(
            {"bootstrap.servers": servers, "compression.type": codec, "enable.idempotence": True, "linger.ms": 20}
        )
        for record in records:
            producer.produce(
                topic, value=record.value, key=record.key, headers=_bytes_headers(record), on_delivery=report
            )
        assert producer.flush(WAIT_SECONDS) == 0
        assert not failures, failures
        assert len(delivered) == len(records)

    def _consumer(self, servers: str, group: str, **settings: Any) -> Any:
        from confluent_kafka import Consumer

        return Consumer(
            {
                "bootstrap.servers": servers,
                "group.id": group,
                "auto.offset.reset": "earliest",
                "heartbeat.interval.ms": 300,
                "partition.assignment.strategy": "range",
                **settings,
            }
        )

    def consume(self, servers: str, topic: str, count: int, *, committed: bool = False) -> list[Rec]:
        from confluent_kafka import TopicPartition

        consumer = self._consumer(
            servers, "unused", **{"enable.auto.commit": False, "isolation.level": isolation(committed)}
        )
        found: list[Rec] = []
        try:
            partitions = consumer.list_topics(topic, timeout=WAIT_SECONDS).topics[topic].partitions
            consumer.assign([TopicPartition(topic, index, 0) for index in partitions])
            check = _deadline()
            while len(found) < count:
                check()
                for message in consumer.consume(100, 0.2):
                    assert message.error() is None, message.error()
                    found.append(_rec(message.key(), message.value(), message.headers()))
        finally:
            consumer.close()
        return found

    def member(self, servers: str, topic: str, group: str) -> Member:
        def work(me: ThreadMember) -> None:
            consumer = self._consumer(servers, group)
            try:
                consumer.subscribe([topic])
                while not me.stopping.is_set():
                    messages = consumer.consume(100, 0.1)
                    me.assigned = {partition.partition for partition in consumer.assignment()}
                    me.values += [message.value().decode() for message in messages if message.error() is None]
            finally:
                consumer.close()

        return ThreadMember(work)


class KafkaPython:
    """kafka-python."""

    name = "kafka-python"

    def codecs(self) -> Sequence[str]:
        from kafka import codec

        return ["none"] + [name for name in CODECS[1:] if getattr(codec, f"has_{name}")()]

    def produce(self, servers: str, topic: str, records: Sequence[Rec], codec: str) -> None:
        from kafka import KafkaProducer

        producer = KafkaProducer(bootstrap_servers=servers, compression_type=None if codec == "none" else codec)
        try:
            sent = [
                producer.send(topic, value=_encoded(r.value), key=_encoded(r.key), headers=_bytes_headers(r))
                for r in records
            ]
            for future in sent:
                future.get(WAIT_SECONDS)
        finally:
            producer.close()

    def consume(self, servers: str, topic: str, count: int, *, committed: bool = False) -> list[Rec]:
        from kafka import KafkaConsumer, TopicPartition

        found: list[Rec] = []
        consumer = KafkaConsumer(
            bootstrap_servers=servers,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level=isolation(committed),
        )
        try:
            consumer.assign([TopicPartition(topic, index) for index in consumer.partitions_for_topic(topic)])
            check = _deadline()
            while len(found) < count:
                check()
                for records in consumer.poll(200).values():
                    found += [_rec(r.key, r.value, r.headers) for r in records]
        finally:
            consumer.close()
        return found

    def member(self, servers: str, topic: str, group: str) -> Member:
        from kafka import KafkaConsumer

        def work(me: ThreadMember) -> None:
            consumer = KafkaConsumer(
                topic,
                bootstrap_servers=servers,
                group_id=group,
                auto_offset_reset="earliest",
                heartbeat_interval_ms=300,
                session_timeout_ms=10_000,
            )
            try:
                while not me.stopping.is_set():
                    polled = consumer.poll(100)
                    me.assigned = {partition.partition for partition in consumer.assignment()}
                    me.values += [record.value.decode() for records in polled.values() for record in records]
            finally:
                consumer.close()

        return ThreadMember(work)


class AioKafka:
    """aiokafka, with an idempotent producer."""

    name = "aiokafka"

    def codecs(self) -> Sequence[str]:
        return CODECS

    def produce(self, servers: str, topic: str, records: Sequence[Rec], codec: str) -> None:
        asyncio.run(self._produce(servers, topic, records, codec))

    async def _produce(self, servers: str, topic: str, records: Sequence[Rec], codec: str) -> None:
        from aiokafka import AIOKafkaProducer

        async with AIOKafkaProducer(
            bootstrap_servers=servers, compression_type=None if codec == "none" else codec, enable_idempotence=True
        ) as producer:
            sent = [
                await producer.send(topic, value=_encoded(r.value), key=_encoded(r.key), headers=_bytes_headers(r))
                for r in records
            ]
            await asyncio.wait_for(asyncio.gather(*sent), WAIT_SECONDS)

    def consume(self, servers: str, topic: str, count: int, *, committed: bool = False) -> list[Rec]:
        return asyncio.run(asyncio.wait_for(self._consume(servers, topic, count, committed), WAIT_SECONDS))

    async def _consume(self, servers: str, topic: str, count: int, committed: bool) -> list[Rec]:
        from aiokafka import AIOKafkaConsumer

        found: list[Rec] = []
        async with AIOKafkaConsumer(
            topic,
            bootstrap_servers=servers,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level=isolation(committed),
        ) as consumer:
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += [_rec(r.key, r.value, r.headers) for r in records]
        return found

    def member(self, servers: str, topic: str, group: str) -> Member:
        return ThreadMember(lambda me: asyncio.run(self._work(me, servers, topic, group)))

    async def _work(self, me: ThreadMember, servers: str, topic: str, group: str) -> None:
        from aiokafka import AIOKafkaConsumer
        from aiokafka.coordinator.assignors.range import RangePartitionAssignor

        async with AIOKafkaConsumer(
            topic,
            bootstrap_servers=servers,
            group_id=group,
            auto_offset_reset="earliest",
            heartbeat_interval_ms=300,
            partition_assignment_strategy=(RangePartitionAssignor,),
        ) as consumer:
            while not me.stopping.is_set():
                polled = await consumer.getmany(timeout_ms=100)
                me.assigned = {partition.partition for partition in consumer.assignment()}
                me.values += [record.value.decode() for records in polled.values() for record in records]
