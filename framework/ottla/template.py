"""KafkaTemplate: sending, the way Spring Kafka's users know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ottla.client import KafkaConsumer, KafkaProducer, TopicPartition
from ottla.consumer_factory import ConsumerFactory
from ottla.errors import ConfigError
from ottla.producer_factory import ProducerFactory
from ottla.send import ProducerRecord, SendFuture, SendResult
from ottla_wire.records import ConsumerRecord

Headers = Mapping[str, bytes | str | None] | Sequence[tuple[str, bytes | str | None]]
OnSend = Callable[[ProducerRecord], ProducerRecord]


class KafkaTemplate:
    """Sends records and returns futures (Spring: KafkaTemplate). Threads and event loops may share it.

    Args:
        producer_factory: whose producer the template sends through.
        default_topic: where `send_default` sends to.
        on_success: called with every send's SendResult, on the client's I/O thread (Spring: ProducerListener).
        on_error: called with every failed send's SendError. The client logs failed batches in any case.
        interceptors: each may replace the record before it is serialized.
        consumer_factory: needed by `receive` only.
    """

    def __init__(
        self,
        producer_factory: ProducerFactory,
        *,
        default_topic: str | None = None,
        on_success: Callable[[SendResult], None] | None = None,
        on_error: Callable[[BaseException], None] | None = None,
        interceptors: Sequence[OnSend] = (),
        consumer_factory: ConsumerFactory | None = None,
    ) -> None:
        self.producer_factory = producer_factory
        self.default_topic = default_topic
        self._on_success = on_success
        self._on_error = on_error
        self._interceptors = tuple(interceptors)
        self._consumer_factory = consumer_factory

    def send(
        self,
        topic: str,
        value: Any,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Headers | None = None,
    ) -> SendFuture:
        """Send one record. Returns at once a future that can be awaited, waited on, or given callbacks.

        Any failure, also of serialization or metadata, reaches the future as a SendError; only wrong use raises here.

        Raises:
            TypeError: the topic is not a string, or the partition or timestamp not a number.
            RuntimeError: the template's factory is closed.
        """
        if self._interceptors:
            record = ProducerRecord(topic, value, key, partition, timestamp_ms, headers)
            for intercept in self._interceptors:
                record = intercept(record)
            topic, value, key = record.topic, record.value, record.key
            partition, timestamp_ms, headers = record.partition, record.timestamp_ms, record.headers
        producer = self.producer_factory.producer()
        future: SendFuture = producer.send(topic, value, key, partition, timestamp_ms, headers)
        if self._on_success is not None or self._on_error is not None:
            future.add_callback(self._on_success or _ignore, self._on_error)
        return future

    def send_default(self, value: Any, **arguments: Any) -> SendFuture:
        """`send` to the default topic.

        Raises:
            ConfigError: the template has no default topic.
        """
        if self.default_topic is None:
            raise ConfigError("send_default needs a default topic: KafkaTemplate(factory, default_topic='...')")
        return self.send(self.default_topic, value, **arguments)

    def send_record(self, record: ProducerRecord) -> SendFuture:
        """Send a ready-made record."""
        return self.send(
            record.topic,
            record.value,
            key=record.key,
            partition=record.partition,
            timestamp_ms=record.timestamp_ms,
            headers=record.headers,
        )

    def flush(self, timeout: float | None = None) -> None:
        """Send what is buffered now and wait until every send so far is done.

        Raises:
            TimeoutError: that took longer than `timeout` seconds.
            RuntimeError: called on a thread that runs an event loop; await `flush_async` there.
        """
        if self.producer_factory.is_started:
            self.producer_factory.producer().flush(timeout)

    async def flush_async(self, timeout: float | None = None) -> None:
        """`flush`, awaited."""
        if self.producer_factory.is_started:
            await self.producer_factory.producer().flush_async(timeout)

    async def room(self) -> None:
        """Wait until the send buffer has room again: for async senders that met BufferExhausted."""
        await self.producer_factory.producer().room()

    def partitions_for(self, topic: str) -> Any:
        """The partitions of a topic, as the cluster tells."""
        return self.producer_factory.producer().partitions_for(topic)

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The producer's counters."""
        return self.producer_factory.producer().metrics()

    def execute(self, call: Callable[[KafkaProducer], Any]) -> Any:
        """Call something with the raw producer (Spring: execute)."""
        return call(self.producer_factory.producer())

    def with_overrides(self, **config: Any) -> KafkaTemplate:
        """A template with some client settings changed; it has a producer of its own."""
        return KafkaTemplate(
            self.producer_factory.with_overrides(**config),
            default_topic=self.default_topic,
            on_success=self._on_success,
            on_error=self._on_error,
            interceptors=self._interceptors,
            consumer_factory=self._consumer_factory,
        )

    def receive(self, topic: str, partition: int, offset: int, *, timeout: float = 5.0) -> ConsumerRecord | None:
        """Fetch one record by its place, or None if there is none after `timeout` seconds.

        Raises:
            ConfigError: the template has no consumer factory.
            ValueError: the offset is negative.
        """
        if self._consumer_factory is None:
            raise ConfigError("receive needs a consumer factory: KafkaTemplate(factory, consumer_factory=...)")
        if offset < 0:
            raise ValueError(f"receive takes an absolute offset, 0 or more, not {offset}")
        with self._consumer_factory.consumer({"max_poll_records": 1, "group_id": None}) as consumer:
            return _receive_one(consumer, TopicPartition(topic, partition), offset, timeout)

    def close(self, timeout: float = 30.0) -> None:
        """Flush, and close the producer factory."""
        self.producer_factory.close(timeout)


def _receive_one(
    consumer: KafkaConsumer, partition: TopicPartition, offset: int, timeout: float
) -> ConsumerRecord | None:
    consumer.assign([partition])
    consumer.seek(partition, offset)
    records = consumer.poll(timeout, max_records=1)
    return records[0] if records and records[0].offset == offset else None


def _ignore(result: SendResult) -> None:
    pass
