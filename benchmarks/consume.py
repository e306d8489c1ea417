"""Consume a filled topic: from the first records in hand to the last.

Every client reads all partitions from the start, without a group, checks CRCs, takes up to 500 records at a time in its
fastest way, and looks at each value. The records of the first poll are not counted, as the clock starts with them.
"""

from __future__ import annotations

import asyncio

from benchmarks.measuring import FETCH_WAIT_MS, PARTITION_FETCH_BYTES, PARTITIONS, POLL_RECORDS, Job, Meter, run


def _ottla(job: Job, meter: Meter) -> None:
    from ottla.client import KafkaConsumer, TopicPartition

    with KafkaConsumer(
        bootstrap_servers=job.bootstrap_servers,
        auto_offset_reset="earliest",
        check_crcs=True,
        fetch_max_wait_ms=FETCH_WAIT_MS,
        max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
        max_poll_records=POLL_RECORDS,
    ) as consumer:
        consumer.assign([TopicPartition(job.topic, number) for number in range(PARTITIONS)])
        seen = first = size = 0
        while seen < job.records:
            records = consumer.poll(10)
            if not first:
                first = len(records)
                meter.start()
            for record in records:
                size += len(record.value or b"")
            seen += _some(len(records))
        meter.stop(seen - first)


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
    seen = first = size = 0
    while seen < job.records:
        messages = consumer.consume(POLL_RECORDS, 10)
        if not first:
            first = len(messages)
            meter.start()
        for message in messages:
            if message.error() is not None:
                raise SystemExit(str(message.error()))
            size += len(message.value() or b"")
        seen += _some(len(messages))
    meter.stop(seen - first)
    consumer.close()


def _aiokafka(job: Job, meter: Meter) -> None:
    asyncio.run(_aiokafka_async(job, meter))


async def _aiokafka_async(job: Job, meter: Meter) -> None:
    from aiokafka import AIOKafkaConsumer, TopicPartition

    async with AIOKafkaConsumer(
        bootstrap_servers=job.bootstrap_servers,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        check_crcs=True,
        fetch_max_wait_ms=FETCH_WAIT_MS,
        max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
    ) as consumer:
        consumer.assign([TopicPartition(job.topic, number) for number in range(PARTITIONS)])
        seen = first = size = 0
        while seen < job.records:
            answer = await consumer.getmany(timeout_ms=10_000, max_records=POLL_RECORDS)
            got = sum(map(len, answer.values()))
            if not first:
                first = got
                meter.start()
            for records in answer.values():
                for record in records:
                    size += len(record.value or b"")
            seen += _some(got)
        meter.stop(seen - first)


def _kafka_python(job: Job, meter: Meter) -> None:
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(
        bootstrap_servers=job.bootstrap_servers,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        group_id=None,
        check_crcs=True,
        fetch_max_wait_ms=FETCH_WAIT_MS,
        max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
        max_poll_records=POLL_RECORDS,
    )
    consumer.assign([TopicPartition(job.topic, number) for number in range(PARTITIONS)])
    seen = first = size = 0
    while seen < job.records:
        answer = consumer.poll(10_000)
        got = sum(map(len, answer.values()))
        if not first:
            first = got
            meter.start()
        for records in answer.values():
            for record in records:
                size += len(record.value or b"")
        seen += _some(got)
    meter.stop(seen - first)
    consumer.close()


CLIENTS = {"ottla": _ottla, "confluent-kafka": _confluent, "aiokafka": _aiokafka, "kafka-python": _kafka_python}


def _some(count: int) -> int:
    if not count:
        raise SystemExit("no record came for ten seconds, though there are more")
    return count


if __name__ == "__main__":
    run(CLIENTS)
