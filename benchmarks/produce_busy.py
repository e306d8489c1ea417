"""Produce from a thread that computes: 1 KB records to one partition, with 50 us of work for each, in 16 KiB batches.

This is what an application that does something is like. Here the rate is given by the work; what differs is how far the
answers lag behind, which is the latency from send to callback, measured at each 16th record.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks.measuring import ACKS, BUFFER_BYTES, LINGER_MS, PATIENCE_SECONDS, Job, Meter, payload, run

WORK_SECONDS = 50e-6
SMALL_BATCH_BYTES = 16_384  # Java's default


def _work() -> None:
    end = time.perf_counter() + WORK_SECONDS
    while time.perf_counter() < end:
        pass


class Latencies:
    """Makes callbacks that note how long they took to be called."""

    def __init__(self) -> None:
        self._found: list[float] = []

    def from_now(self) -> Any:
        """A callback, whatever its arguments."""
        start = time.perf_counter()
        return lambda *_: self._found.append(time.perf_counter() - start)

    def figures(self) -> dict[str, float]:
        """Median and 99th percentile."""
        cuts = statistics.quantiles(self._found, n=100)
        return {"latency_ms": cuts[49] * 1e3, "latency_99_ms": cuts[98] * 1e3}


def _ottla(job: Job, meter: Meter) -> None:
    from ottla.client import KafkaProducer

    latencies = Latencies()
    value = payload(job.value_bytes)
    with KafkaProducer(
        bootstrap_servers=job.bootstrap_servers,
        acks=ACKS,
        enable_idempotence=True,
        linger_ms=LINGER_MS,
        batch_size=SMALL_BATCH_BYTES,
        buffer_memory=BUFFER_BYTES,
    ) as producer:
        producer.send(job.topic, value, partition=0).result(30)
        meter.start()
        for number in range(job.records):
            future = producer.send(job.topic, value, partition=0)
            if not number & 15:
                future.add_callback(latencies.from_now())
            _work()
        producer.flush(PATIENCE_SECONDS)
        meter.stop(job.records, **latencies.figures())


def _confluent(job: Job, meter: Meter) -> None:
    from confluent_kafka import Producer

    latencies = Latencies()
    value = payload(job.value_bytes)
    producer = Producer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "acks": ACKS,
            "enable.idempotence": True,
            "linger.ms": LINGER_MS,
            "batch.size": SMALL_BATCH_BYTES,
            "queue.buffering.max.kbytes": BUFFER_BYTES // 1024,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    producer.produce(job.topic, value, partition=0)
    producer.flush(30)
    meter.start()
    for number in range(job.records):
        if number & 15:
            producer.produce(job.topic, value, partition=0)
        else:
            producer.produce(job.topic, value, partition=0, on_delivery=latencies.from_now())
            producer.poll(0)
        _work()
    producer.flush(PATIENCE_SECONDS)
    meter.stop(job.records, **latencies.figures())


CLIENTS = {"ottla": _ottla, "confluent-kafka": _confluent}

if __name__ == "__main__":
    run(CLIENTS)
