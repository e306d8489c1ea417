"""Produce with a callback for each record: from the first send to the last callback.

Every client sends the same keys and values with acks=all, idempotence, the same linger, batch bytes and memory. One
record is sent before the clock starts, so that connections, metadata and producer id are there.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from benchmarks.measuring import (
    ACKS,
    BATCH_BYTES,
    BUFFER_BYTES,
    KEYS,
    LINGER_MS,
    PATIENCE_SECONDS,
    Job,
    Meter,
    payload,
    run,
)


class Acknowledged:
    """Counts the callbacks, which is the least that a callback can do."""

    def __init__(self) -> None:
        self.count = 0

    def on_success(self, _: object) -> None:
        """One more."""
        self.count += 1

    def on_failure(self, error: BaseException) -> None:
        """Say so; `check` then fails the run, as one is missing."""
        logging.error("a send failed: %r", error)

    def check(self, records: int) -> int:
        """The count, which must be that of the records sent."""
        if self.count != records:
            raise SystemExit(f"{self.count} of {records} records were acknowledged")
        return self.count


def _ottla(job: Job, meter: Meter) -> None:
    from ottla.client import KafkaProducer

    acknowledged = Acknowledged()
    on_success, on_failure = acknowledged.on_success, acknowledged.on_failure
    topic, value = job.topic, payload(job.value_bytes)
    with KafkaProducer(
        bootstrap_servers=job.bootstrap_servers,
        acks=ACKS,
        enable_idempotence=True,
        linger_ms=LINGER_MS,
        batch_size=BATCH_BYTES,
        buffer_memory=BUFFER_BYTES,
    ) as producer:
        producer.send(topic, value).result(30)
        meter.start()
        for number in range(job.records):
            producer.send(topic, value, KEYS[number & 63]).add_callback(on_success, on_failure)
        producer.flush(PATIENCE_SECONDS)
        meter.stop(acknowledged.check(job.records))


def _confluent(job: Job, meter: Meter) -> None:
    from confluent_kafka import Producer

    acknowledged = Acknowledged()
    topic, value = job.topic, payload(job.value_bytes)
    producer = Producer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "acks": ACKS,
            "enable.idempotence": True,
            "linger.ms": LINGER_MS,
            "batch.size": BATCH_BYTES,
            "queue.buffering.max.kbytes": BUFFER_BYTES // 1024,
            "queue.buffering.max.messages": 1_000_000,
            "partitioner": "murmur2_random",
        }
    )

    def delivered(error: Any, message: Any) -> None:
        if error is not None:
            raise SystemExit(f"a send failed: {error}")
        acknowledged.on_success(message)

    producer.produce(topic, value)
    producer.flush(30)
    produce, poll = producer.produce, producer.poll
    meter.start()
    for number in range(job.records):
        while True:
            try:
                produce(topic, value, KEYS[number & 63], on_delivery=delivered)
                break
            except BufferError:  # its queue is full: callbacks make room
                poll(0.01)
        if not number & 255:
            poll(0)
    producer.flush(PATIENCE_SECONDS)
    meter.stop(acknowledged.check(job.records))


def _aiokafka(job: Job, meter: Meter) -> None:
    asyncio.run(_aiokafka_async(job, meter))


async def _aiokafka_async(job: Job, meter: Meter) -> None:
    from aiokafka import AIOKafkaProducer

    acknowledged = Acknowledged()
    topic, value = job.topic, payload(job.value_bytes)

    def delivered(future: asyncio.Future[Any]) -> None:
        acknowledged.on_success(future.result())

    async with AIOKafkaProducer(
        bootstrap_servers=job.bootstrap_servers,
        acks=ACKS,
        enable_idempotence=True,
        linger_ms=LINGER_MS,
        max_batch_size=BATCH_BYTES,
    ) as producer:
        await producer.send_and_wait(topic, value)
        meter.start()
        for number in range(job.records):
            (await producer.send(topic, value, KEYS[number & 63])).add_done_callback(delivered)
        await producer.flush()
        await asyncio.sleep(0)  # callbacks of the last batch
        meter.stop(acknowledged.check(job.records))


def _kafka_python(job: Job, meter: Meter) -> None:
    from kafka import KafkaProducer

    acknowledged = Acknowledged()
    topic, value = job.topic, payload(job.value_bytes)
    producer = KafkaProducer(
        bootstrap_servers=job.bootstrap_servers,
        acks=ACKS,
        enable_idempotence=True,
        linger_ms=LINGER_MS,
        batch_size=BATCH_BYTES,
    )
    producer.send(topic, value).get(30)
    meter.start()
    for number in range(job.records):
        producer.send(topic, value, KEYS[number & 63]).add_callback(acknowledged.on_success)
    producer.flush(PATIENCE_SECONDS)
    meter.stop(acknowledged.check(job.records))
    producer.close(10)


CLIENTS = {"ottla": _ottla, "confluent-kafka": _confluent, "aiokafka": _aiokafka, "kafka-python": _kafka_python}

if __name__ == "__main__":
    run(CLIENTS)
