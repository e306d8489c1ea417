"""The relay's side of Kafka: sends rows, and its position with them, in one transaction.

The position is a record like the others: the id of the last row, in a topic of the outbox's own, sent in the
transaction that sends the rows. So Kafka has both or neither. It is read back only after the transactional id was
registered: that fences whoever had it, and ends what that had open, the one way or the other. From then on nobody else
can write there, and the last committed position is the truth, whatever the database has heard of it.

A consumer group's offset, sent with `send_offsets`, would be as atomic, but brokers forget offsets of groups without
members after a week (`offsets.retention.minutes`): an outbox that was quiet for so long would send everything again.
A topic with one writer needs no compaction either: of its last records one is the position, so that old ones may be
deleted by size.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final

from ottla.client import AdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from ottla.client.admin import NewTopic, OffsetSpec
from ottla.client.engine import Engine
from ottla.consumer_factory import resolved
from ottla.errors import (
    BufferExhausted,
    DeliveryTimedOut,
    Fatal,
    NoAnswer,
    OttlaError,
    Retriable,
    SendError,
    TopicAlreadyExists,
    TransactionAborted,
    TransactionTimedOut,
    UnknownTopicOrPartition,
)
from ottla.producer_factory import ProducerFactory
from ottla.send import SendFuture
from ottla.transaction.outbox import OutboxRow

logger = logging.getLogger("ottla.outbox")

PREFIX: Final = "ottla.outbox."
POSITION_TOPIC_CONFIG: Final[Mapping[str, str | int]] = {
    "cleanup.policy": "delete",
    "retention.ms": -1,
    "retention.bytes": 1 << 20,
    "segment.bytes": 1 << 20,
}
_MAX_BLOCK_MS: Final = 10_000
_READ_SECONDS: Final = 30.0
_FIRST_LOOK: Final = 200


class RowRefused(Exception):
    """Kafka will not take a row, however often it is asked. `index`: its place in the batch."""

    def __init__(self, index: int, reason: BaseException) -> None:
        super().__init__(index, reason)
        self.index = index
        self.reason = reason


class RelayKafka:
    """A registered transactional producer, until something fails; then make another one. One thread.

    Args:
        outbox_id: names the transactional id and the topic of the position.
        factory: whose client settings are used; rows are bytes already, so its serializers are not.
    """

    def __init__(self, outbox_id: str, factory: ProducerFactory) -> None:
        self.transactional_id = f"{PREFIX}{outbox_id}"
        self.topic = f"{PREFIX}{outbox_id}"
        self._outbox_id = outbox_id
        settings = resolved(factory.settings())
        self._common = {"bootstrap_servers": settings["bootstrap_servers"]}
        for name in ("key_serializer", "value_serializer", "transactional_id"):
            settings.pop(name, None)
        settings.setdefault("max_block_ms", _MAX_BLOCK_MS)
        self._engine: Engine | None = factory._engine() if factory._engine is not None else None
        self._producer = KafkaProducer({**settings, "transactional_id": self.transactional_id}, engine=self._engine)
        self._patience = self._producer.config.transaction_timeout_ms / 1000

    def open(self) -> int | None:
        """Register, and read the position; None: there is none.

        Raises:
            OttlaError: not now.
        """
        self._create_topic()
        self._producer.init_transactions()
        return self._read_position()

    def relay(self, rows: Sequence[OutboxRow]) -> None:
        """Send the rows, and the last one's id as the position: all of it is committed, or nothing.

        Raises:
            RowRefused: nothing was sent; the producer may be used again.
            Exception: whether it was sent is not known here. Close this, open another one, and its position tells.
        """
        self._producer.begin_transaction()
        futures = [
            self._producer.send(row.topic, row.value, row.key, row.partition, row.timestamp_ms, row.headers or None)
            for row in rows
        ]
        position = json.dumps({"position": rows[-1].id}).encode()
        futures.append(self._producer.send(self.topic, position, self._outbox_id.encode(), 0))
        self._producer.flush(self._patience)
        refused = _refused(futures[:-1])
        if refused is not None:
            self._producer.abort_transaction()
            raise refused
        failure = next((failure for failure in map(_failure, futures) if failure is not None), None)
        if failure is not None:
            raise failure
        self._producer.commit_transaction()

    def close(self, timeout: float = 0.0) -> None:
        """Give the producer up; what it has open is aborted, now or by whoever registers next."""
        try:
            self._producer.close(timeout)
        except Exception as error:  # noqa: BLE001 - nobody needs it any more
            logger.debug("the relay's producer did not close cleanly: %s", error)

    # -- the position --------------------------------------------------------------------------------------------------

    def _create_topic(self) -> None:
        with AdminClient(self._common, engine=self._engine) as admin:
            try:
                admin.create_topics([NewTopic(self.topic, partitions=1, configs=POSITION_TOPIC_CONFIG)])
            except TopicAlreadyExists:
                pass

    def _read_position(self) -> int | None:
        partition = TopicPartition(self.topic, 0)
        with AdminClient(self._common, engine=self._engine) as admin:
            first = admin.list_offsets({partition: OffsetSpec.EARLIEST})[partition].offset
            # Of all records, and not of the committed ones: if some were undecided still, this must wait for them.
            end = admin.list_offsets({partition: OffsetSpec.LATEST})[partition].offset
        settings = {"isolation_level": "read_committed", "enable_auto_commit": False, "auto_offset_reset": "earliest"}
        with KafkaConsumer({**self._common, **settings}, engine=self._engine) as consumer:
            consumer.assign([partition])
            look = _FIRST_LOOK
            while True:
                start = max(first, end - look)
                last = _last_value(consumer, partition, start, end)
                if last is not None or start <= first:
                    return None if last is None else int(json.loads(last)["position"])
                look *= 10  # markers and aborted attempts only: further back


def _last_value(consumer: KafkaConsumer, partition: TopicPartition, start: int, end: int) -> bytes | None:
    consumer.seek(partition, start)
    last: bytes | None = None
    deadline = time.monotonic() + _READ_SECONDS
    while consumer.position(partition) < end:
        for record in consumer.poll(0.5):
            last = record.value
        if time.monotonic() > deadline:
            raise NoAnswer(f"the relay's position could not be read from {partition} within {_READ_SECONDS:g} s")
    return last


def _failure(future: SendFuture) -> SendError | None:
    return future.exception() if future.done() else None


def _refused(futures: Sequence[SendFuture]) -> RowRefused | None:
    for index, future in enumerate(futures):
        failure = _failure(future)
        reason = None if failure is None else failure.__cause__
        if reason is not None and _is_refusal(reason):
            return RowRefused(index, reason)
    return None


_PASSING: Final[tuple[type[BaseException], ...]] = (
    Retriable,
    Fatal,
    TransactionAborted,
    TransactionTimedOut,
    BufferExhausted,
    DeliveryTimedOut,
    TimeoutError,
)


def _is_refusal(reason: BaseException) -> bool:
    """Whether it is about the record, and will be the same tomorrow."""
    if isinstance(reason, UnknownTopicOrPartition):  # retriable, but the producer has been waiting for it
        return True
    return isinstance(reason, OttlaError) and not isinstance(reason, _PASSING)
