"""Consume a filled topic: from the first records in hand to the last.

Every client reads all partitions from the start, without a group, checks CRCs, takes up to 500 records at a time in its
fastest way, and looks at each value. The records of the first poll are not counted, as the clock starts with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measuring import FETCH_WAIT_MS, PARTITION_FETCH_BYTES, PARTITIONS, POLL_RECORDS, Job, Meter, run

# What aiokafka and kafka-python call the same.
_SETTINGS: dict[str, Any] = {
    "auto_offset_reset": "earliest",
    "enable_auto_commit": False,
    "group_id": None,
    "check_crcs": True,
    "fetch_max_wait_ms": FETCH_WAIT_MS,
    "max_partition_fetch_bytes": PARTITION_FETCH_BYTES,
}


class Count:
    """How many records came, and when the clock starts and stops."""

    def __init__(self, job: Job, meter: Meter) -> None:
        self._records = job.records
        self._meter = meter
        self._first = self._seen = 0

    def goes_on(self) -> bool:
        """Whether there is more to come; otherwise the clock stops."""
        if self._seen < self._records:
            return True
        self._meter.stop(self._seen - self._first)
        return False

    def add(self, count: int) -> None:
        """What one poll brought; the clock starts with the first."""
        if not count:
            raise SystemExit("no record came for ten seconds, though there are more")
        if not self._first:
            self._first = count
            self._meter.start()
        self._seen += count

    def look(self, records: Sequence[Any]) -> None:
        """One poll's records, each of which is looked at."""
        self.add(len(records))
        _look(records)

    def look_by_partition(self, answer: Mapping[Any, Sequence[Any]]) -> None:
        """The same, of a client that sorts them by partition."""
        self.add(sum(map(len, answer.values())))
        for records in answer.values():
            _look(records)


def _look(records: Sequence[Any]) -> None:
    for record in records:
        len(record.value or b"")


def _ottla(job: Job, meter: Meter) -> None:
    from ottla.client import KafkaConsumer, TopicPartition

    count = Count(job, meter)
    with KafkaConsumer(
        bootstrap_servers=job.bootstrap_servers,
        auto_offset_reset="earliest",
        check_crcs=True,
        fetch_max_wait_ms=FETCH_WAIT_MS,
        max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
        max_poll_records=POLL_RECORDS,
    ) as consumer:
        consumer.assign([TopicPartition(job.topic, number) for number in range(PARTITIONS)])
        while count.goes_on():
            count.look(consumer.poll(10))


def _confluent(job: Job, meter: Meter) -> None:
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "group.id": "not-joined",
            "enable.auto.commit": False,
            "check.crcs": True,
            "fetch.wait.max.ms": FETCH_WAIT_MS,
            "fetch.message.max.bytes": PARTITION_FETCH_BYTES,
            # Its defaults pause a partition for a second when 100,000 records wait: made for slower applications.
            "queued.min.messages": 1_000_000,
            "fetch.queue.backoff.ms": 10,
        }
    )
    consumer.assign([TopicPartition(job.topic, partition, OFFSET_BEGINNING) for partition in range(PARTITIONS)])
    count = Count(job, meter)
    while count.goes_on():
        messages = consumer.consume(POLL_RECORDS, 10)
        count.add(len(messages))
        for message in messages:
            if message.error() is not None:
                raise SystemExit(str(message.error()))
            len(message.value() or b"")
    consumer.close()


def _aiokafka(job: Job, meter: Meter) -> None:
    asyncio.run(_aiokafka_async(job, meter))


async def _aiokafka_async(job: Job, meter: Meter) -> None:
    from aiokafka import AIOKafkaConsumer, TopicPartition

    count = Count(job, meter)
    async with AIOKafkaConsumer(bootstrap_servers=job.bootstrap_servers, **_SETTINGS) as consumer:
        consumer.assign([TopicPartition(job.topic, number) for number in range(PARTITIONS)])
        while count.goes_on():
            count.look_by_partition(await consumer.getmany(timeout_ms=10_000, max_records=POLL_RECORDS))


def _kafka_python(job: Job, meter: Meter) -> None:
    from kafka import KafkaConsumer, TopicPartition

    count = Count(job, meter)
    consumer = KafkaConsumer(bootstrap_servers=job.bootstrap_servers, max_poll_records=POLL_RECORDS, **_SETTINGS)
    consumer.assign([TopicPartition(job.topic, number) for number in range(PARTITIONS)])
    while count.goes_on():
        count.look_by_partition(consumer.poll(10_000))
    consumer.close()


CLIENTS = {"ottla": _ottla, "confluent-kafka": _confluent, "aiokafka": _aiokafka, "kafka-python": _kafka_python}

if __name__ == "__main__":
    run(CLIENTS)
