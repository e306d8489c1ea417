"""KafkaTemplate: sending, the way Spring Kafka's users know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from ottla.client import KafkaConsumer, KafkaProducer, TopicPartition
from ottla.consumer_factory import ConsumerFactory
from ottla.errors import ConfigError, NotInTransaction
from ottla.listeners.message import Message
from ottla.producer_factory import ProducerFactory, checked_prefix
from ottla.send import ProducerRecord, SendFuture, SendResult
from ottla.transaction.blocks import Propagation, TransactionBlock
from ottla.transaction.context import current_frame, transaction_of
from ottla_wire.records import ConsumerRecord

Headers = Mapping[str, bytes | str | None] | Sequence[tuple[str, bytes | str | None]]
_NOT_GIVEN: Any = object()
_frame = current_frame.get  # one object for all sends: Python makes a new one where it is looked up
OnSend = Callable[[ProducerRecord], ProducerRecord]


class KafkaTemplate:
    """Sends records and returns futures (Spring: KafkaTemplate). Threads and event loops may share it.

    Args:
        producer_factory: whose producer the template sends through.
        default_topic: where `send_default` sends to.
        transaction_id_prefix: of the transactional ids of transactions that this template begins, if not the factory's.
        allow_non_transactional: let a template of a transactional factory (one that was given a
            `transaction_id_prefix`) send outside of a transaction, too; such a record is visible at once.
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
        transaction_id_prefix: str | None = None,
        allow_non_transactional: bool = False,
        on_success: Callable[[SendResult], None] | None = None,
        on_error: Callable[[BaseException], None] | None = None,
        interceptors: Sequence[OnSend] = (),
        consumer_factory: ConsumerFactory | None = None,
    ) -> None:
        self.producer_factory = producer_factory
        self.default_topic = default_topic
        self.transaction_id_prefix = checked_prefix(transaction_id_prefix)
        self.allow_non_transactional = allow_non_transactional
        self._refuses: bool | None = False if allow_non_transactional else None
        self._on_success = on_success
        self._on_error = on_error
        self._has_callbacks = on_success is not None or on_error is not None
        self._interceptors = tuple(interceptors)
        self._consumer_factory = consumer_factory

    @overload
    def send(self, message: Message[Any], /) -> SendFuture: ...
    @overload
    def send(
        self,
        topic: str,
        value: Any,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Headers | None = None,
    ) -> SendFuture: ...
    def send(
        self,
        topic: Any,
        value: Any = _NOT_GIVEN,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Headers | None = None,
    ) -> SendFuture:
        """Send one record. Returns at once a future that can be awaited, waited on, or given callbacks.

        Any failure, also of serialization or metadata, reaches the future as a SendError; only wrong use raises here.

        `send(Message(...))` sends its payload with its key and headers to its topic, or to the default topic.

        Raises:
            TypeError: the topic is not a string, or the partition or timestamp not a number.
            ConfigError: a message has no topic, and the template no default one.
            RuntimeError: the template's factory is closed.
            NotInTransaction: the template sends in transactions only, and this is outside of one.
            TransactionEnded: the transaction that this code was part of is over.
            TransactionTimedOut: it took too long, and was aborted.
        """
        if value is _NOT_GIVEN:
            return self._send_message(topic, key, partition, timestamp_ms, headers)
        if self._interceptors:
            record = ProducerRecord(topic, value, key, partition, timestamp_ms, headers)
            for intercept in self._interceptors:
                record = intercept(record)
            topic, value, key = record.topic, record.value, record.key
            partition, timestamp_ms, headers = record.partition, record.timestamp_ms, record.headers
        future: SendFuture
        frame = _frame()
        if frame is None:
            if self._refuses is not False:
                self._check_non_transactional()
            producer = self.producer_factory.shared or self.producer_factory.producer()
            future = producer.send(topic, value, key, partition, timestamp_ms, headers)
        elif frame.factory is self.producer_factory and frame.transaction is not None:
            future = frame.transaction.send(topic, value, key, partition, timestamp_ms, headers)
        else:
            future = self._send_inside_of_others(topic, value, key, partition, timestamp_ms, headers)
        if self._has_callbacks:
            future.add_callback(self._on_success or _ignore, self._on_error)
        return future

    def _send_inside_of_others(
        self, topic: str, value: Any, key: Any, partition: int | None, timestamp_ms: int | None, headers: Any
    ) -> SendFuture:
        """This code is part of a transaction of another factory; and of one of this, around that, or not."""
        transaction = transaction_of(self.producer_factory)
        if transaction is None:
            self._check_parent()
            if self._refuses is not False:
                self._check_non_transactional()
            return self.producer_factory.producer().send(topic, value, key, partition, timestamp_ms, headers)
        return transaction.send(topic, value, key, partition, timestamp_ms, headers)

    def _check_non_transactional(self) -> None:
        if self._refuses is None:
            self._refuses = self.producer_factory.is_transactional
        if self._refuses:
            raise NotInTransaction(
                "no transaction is in process, and this template sends in transactions only, as its factory has a "
                "transaction_id_prefix: send inside `with template.transaction()` (or `async with`), in a function "
                "with @transactional(template), or in a @listener(..., transactional=True); or make the template with "
                "allow_non_transactional=True"
            )

    def _check_parent(self) -> None:
        factory = self.producer_factory.parent
        while factory is not None:
            transaction = transaction_of(factory)
            if transaction is not None and transaction.is_active:
                raise NotInTransaction(
                    "the transaction around this send belongs to the template that this one was made from, and "
                    "with_overrides() gave it producers of its own: send through the other one, begin a transaction "
                    "of this one, or make it from a ProducerFactory of its own to send outside of any"
                )
            factory = factory.parent

    def send_default(self, value: Any, **arguments: Any) -> SendFuture:
        """`send` to the default topic.

        Raises:
            ConfigError: the template has no default topic.
        """
        if self.default_topic is None:
            raise ConfigError("send_default needs a default topic: KafkaTemplate(factory, default_topic='...')")
        return self.send(self.default_topic, value, **arguments)

    def _send_message(self, message: Any, *more: Any) -> SendFuture:
        if not isinstance(message, Message):
            raise TypeError(f"send() takes a topic and a value, or a Message, not {type(message).__name__} alone")
        if any(one is not None for one in more):
            raise TypeError("send(Message(...)) takes nothing more: key, headers and partition are the message's own")
        topic = message.topic or self.default_topic
        if topic is None:
            raise ConfigError("the message has no topic=, and the template no default_topic=")
        headers = message.headers
        return self.send(topic, message.payload, key=message.key, partition=message.partition, headers=headers)

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

    # -- transactions --------------------------------------------------------------------------------------------------

    def transaction(
        self,
        timeout: float | None = None,
        propagation: Propagation | str = Propagation.REQUIRED,
        database: Any = None,
    ) -> TransactionBlock:
        """A transaction, for `with` and `async with` (Spring: executeInTransaction, TransactionTemplate).

            with template.transaction() as tx:
                template.send("orders", order)
                template.send("stock", change)

        Sends of all templates of the factory are part of it, on this thread or task, in tasks begun inside, and in
        `asyncio.to_thread`; other threads take part through `tx.run`. Leaving the block waits for the sends and
        commits. If the block raises, it aborts; if a send has failed, it aborts and raises that send's error.

        Args:
            timeout: seconds until it is aborted; a little less than `transaction_timeout_ms`, if not given.
            propagation: what to do if there is a transaction already: "required" (join it), "requires_new",
                "mandatory" (join it, or raise), "never" (raise).
            database: a connection or session of a database, whose transaction is committed right before this one.

        Raises:
            RuntimeError: `with` on a thread that runs an event loop; use `async with` there.
            CannotBeginTransaction: (entering) no producer could be had or registered; the block is not run.
            SendError: (leaving) the first send that failed; it is aborted.
            TransactionTimedOut: (leaving, and sending) it took too long, and was aborted.
            UnexpectedRollback: (leaving) a block inside that had joined it had failed.
            TransactionOutcomeUnknown: (leaving) the coordinator did not answer.
            ProducerFenced: (leaving) another producer has taken over the transactional id.
        """
        return TransactionBlock(
            self.producer_factory,
            prefix=self.transaction_id_prefix,
            timeout=timeout,
            propagation=propagation,
            database=database,
        )

    @property
    def is_transactional(self) -> bool:
        """Whether it sends in transactions only, unless `allow_non_transactional` is set."""
        return self.producer_factory.is_transactional

    @property
    def in_transaction(self) -> bool:
        """Whether a send here would be part of a transaction."""
        transaction = transaction_of(self.producer_factory)
        return transaction is not None and transaction.is_active

    def _producer(self) -> Any:
        """What a send here goes through."""
        transaction = transaction_of(self.producer_factory)
        if transaction is not None and transaction.is_active:
            return transaction.producer
        return self.producer_factory.producer()

    # -- the producer --------------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """Send what is buffered now and wait until every send so far is done; inside a transaction, every one of it.

        Raises:
            TimeoutError: that took longer than `timeout` seconds.
            RuntimeError: called on a thread that runs an event loop; await `flush_async` there.
        """
        if self.in_transaction or self.producer_factory.is_started:
            self._producer().flush(timeout)

    async def flush_async(self, timeout: float | None = None) -> None:
        """`flush`, awaited."""
        if self.in_transaction or self.producer_factory.is_started:
            await self._producer().flush_async(timeout)

    async def room(self) -> None:
        """Wait until the send buffer has room again: for async senders that met BufferExhausted."""
        await self._producer().room()

    def partitions_for(self, topic: str) -> Any:
        """The partitions of a topic, as the cluster tells."""
        return self._producer().partitions_for(topic)

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The producer's counters."""
        figures: Mapping[str, Any] = self._producer().metrics()
        return figures

    def execute(self, call: Callable[[KafkaProducer], Any]) -> Any:
        """Call something with the raw producer, inside a transaction with that one's (Spring: execute).

        What it sends inside a transaction is part of it, but a failure of such a send shows only in its future and
        in the commit.
        """
        return call(self._producer())

    def with_overrides(self, **config: Any) -> KafkaTemplate:
        """A template with some client settings changed; it has a producer of its own."""
        return KafkaTemplate(
            self.producer_factory.with_overrides(**config),
            default_topic=self.default_topic,
            transaction_id_prefix=self.transaction_id_prefix,
            allow_non_transactional=self.allow_non_transactional,
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
