"""Transactions of one record: begin, send, commit, one after the other. So a rate here is a latency, too.

Every client is warmed up with transactions of its own before the clock starts, and sends what it has at once: nobody
lingers before a commit. Ours takes part twice: the bare producer, and `with template.transaction():`.
"""

from __future__ import annotations

import asyncio
import uuid

from benchmarks.measuring import Job, Meter, payload, run

WARM_UP = 20
TIMEOUT_SECONDS = 30.0


def _ottla(job: Job, meter: Meter) -> None:
    from ottla.client import KafkaProducer

    topic, value = job.topic, payload(job.value_bytes)
    with KafkaProducer(bootstrap_servers=job.bootstrap_servers, transactional_id=_id()) as producer:
        producer.init_transactions()

        def transactions(count: int) -> None:
            for _ in range(count):
                producer.begin_transaction()
                producer.send(topic, value)
                producer.commit_transaction()

        transactions(WARM_UP)
        meter.start()
        transactions(job.records)
        meter.stop(job.records)


def _ottla_template(job: Job, meter: Meter) -> None:
    from ottla import KafkaTemplate, ProducerFactory

    topic, value = job.topic, payload(job.value_bytes)
    factory = ProducerFactory(bootstrap_servers=job.bootstrap_servers, transaction_id_prefix=_id())
    template = KafkaTemplate(factory)

    def transactions(count: int) -> None:
        for _ in range(count):
            with template.transaction():
                template.send(topic, value)

    with factory:
        transactions(WARM_UP)
        meter.start()
        transactions(job.records)
        meter.stop(job.records)


def _confluent(job: Job, meter: Meter) -> None:
    from confluent_kafka import Producer

    topic, value = job.topic, payload(job.value_bytes)
    producer = Producer({"bootstrap.servers": job.bootstrap_servers, "transactional.id": _id(), "linger.ms": 0})
    producer.init_transactions(TIMEOUT_SECONDS)

    def transactions(count: int) -> None:
        for _ in range(count):
            producer.begin_transaction()
            producer.produce(topic, value)
            producer.commit_transaction(TIMEOUT_SECONDS)

    transactions(WARM_UP)
    meter.start()
    transactions(job.records)
    meter.stop(job.records)


def _aiokafka(job: Job, meter: Meter) -> None:
    asyncio.run(_aiokafka_async(job, meter))


async def _aiokafka_async(job: Job, meter: Meter) -> None:
    from aiokafka import AIOKafkaProducer

    topic, value = job.topic, payload(job.value_bytes)
    async with AIOKafkaProducer(
        bootstrap_servers=job.bootstrap_servers, transactional_id=_id(), linger_ms=0
    ) as producer:

        async def transactions(count: int) -> None:
            for _ in range(count):
                async with producer.transaction():
                    await producer.send(topic, value)

        await transactions(WARM_UP)
        meter.start()
        await transactions(job.records)
        meter.stop(job.records)


def _kafka_python(job: Job, meter: Meter) -> None:
    from kafka import KafkaProducer

    topic, value = job.topic, payload(job.value_bytes)
    producer = KafkaProducer(bootstrap_servers=job.bootstrap_servers, transactional_id=_id(), linger_ms=0)
    producer.init_transactions()

    def transactions(count: int) -> None:
        for _ in range(count):
            producer.begin_transaction()
            producer.send(topic, value)
            producer.commit_transaction()

    transactions(WARM_UP)
    meter.start()
    transactions(job.records)
    meter.stop(job.records)
    producer.close(10)


def _id() -> str:
    return f"bench-{uuid.uuid4().hex[:8]}"


CLIENTS = {
    "ottla": _ottla,
    "ottla, template": _ottla_template,
    "confluent-kafka": _confluent,
    "aiokafka": _aiokafka,
    "kafka-python": _kafka_python,
}

if __name__ == "__main__":
    run(CLIENTS)
