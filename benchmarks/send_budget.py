"""What one send costs where: nanoseconds per record at the stations in the caller's thread, and awaited sends.

Awaited sends are what a web handler does: one record, linger 0, and the answer awaited. "Busy" is the same beside a
thread that computes in Python without a pause: with the interpreter's own switch interval (5 ms), and with the one that
`app.run()` sets.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.listener import EXAMPLE
from benchmarks.measuring import BATCH_BYTES, KEYS, LINGER_MS, PATIENCE_SECONDS, Job, Meter, payload, report, run

AWAITED_SENDS = 300
RUN_SWITCH_INTERVAL_SECONDS = 0.0005  # as ottla.app has it


def _stations(job: Job, _: Meter) -> None:
    # Each station alone, on the clock of this thread: the wall clock would count the other thread, too.
    from ottla.producer_factory import ProducerFactory
    from ottla.serialization import serialize_value
    from ottla.template import KafkaTemplate

    value = payload(job.value_bytes)
    text = value.hex()[: job.value_bytes]
    headers = [("trace", b"0123456789abcdef")]
    futures: list[Any] = []

    def nothing(_: object) -> None:
        pass

    factory = ProducerFactory(
        bootstrap_servers=job.bootstrap_servers, linger_ms=LINGER_MS, batch_size=BATCH_BYTES, buffer_memory=1 << 28
    )
    with factory:
        template = KafkaTemplate(factory)
        sender = factory.producer()
        sender.send(job.topic, value).result(30)
        send = sender.send
        cpu = time.process_time()
        wall = time.perf_counter()
        calls = _thread_ns(lambda n: futures.append(send(job.topic, value, KEYS[n & 63])), job.records)
        sender.flush(PATIENCE_SECONDS)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu

        def each(action: Callable[[int], object]) -> float:
            found = _thread_ns(action, job.records)
            sender.flush(PATIENCE_SECONDS)
            return found

        report(
            records=job.records,
            nothing_ns=_thread_ns(lambda n: futures.append(n), job.records),
            model_to_json_ns=_thread_ns(lambda n: serialize_value(job.topic, [], EXAMPLE), job.records),
            send_ns=calls,
            send_text_ns=each(lambda n: send(job.topic, text, KEYS[n & 63])),
            send_headers_ns=each(lambda n: send(job.topic, value, KEYS[n & 63], headers=headers)),
            send_model_ns=each(lambda n: send(job.topic, EXAMPLE, KEYS[n & 63])),
            template_ns=each(lambda n: template.send(job.topic, value, key=KEYS[n & 63])),
            template_model_ns=each(lambda n: template.send(job.topic, EXAMPLE, key=KEYS[n & 63])),
            callback_ns=_thread_ns(lambda n: futures[n].add_callback(nothing), job.records),
            all_threads_ns=cpu / job.records * 1e9,
            seconds=wall,
        )


def _awaited_idle(job: Job, _: Meter) -> None:
    asyncio.run(_awaited(job))


def _awaited_busy(job: Job, _: Meter) -> None:
    _beside_a_busy_thread(lambda: asyncio.run(_awaited(job)))


def _awaited_busy_app(job: Job, _: Meter) -> None:
    sys.setswitchinterval(RUN_SWITCH_INTERVAL_SECONDS)
    _beside_a_busy_thread(lambda: asyncio.run(_awaited(job)))


def _aiokafka_idle(job: Job, _: Meter) -> None:
    asyncio.run(_awaited_aiokafka(job))


def _aiokafka_busy(job: Job, _: Meter) -> None:
    _beside_a_busy_thread(lambda: asyncio.run(_awaited_aiokafka(job)))


async def _awaited(job: Job) -> None:
    from ottla.client import AsyncKafkaProducer

    value = payload(job.value_bytes)
    async with AsyncKafkaProducer(bootstrap_servers=job.bootstrap_servers, linger_ms=0) as producer:
        await _time_each(lambda: producer.send(job.topic, value))


async def _awaited_aiokafka(job: Job) -> None:
    from aiokafka import AIOKafkaProducer

    value = payload(job.value_bytes)
    async with AIOKafkaProducer(
        bootstrap_servers=job.bootstrap_servers, linger_ms=0, acks="all", enable_idempotence=True
    ) as producer:
        await _time_each(lambda: producer.send_and_wait(job.topic, value))


async def _time_each(send: Callable[[], Any]) -> None:
    await send()
    latencies = []
    for _ in range(AWAITED_SENDS):
        start = time.perf_counter()
        await send()
        latencies.append((time.perf_counter() - start) * 1e3)
    cuts = statistics.quantiles(latencies, n=100)
    report(records=AWAITED_SENDS, seconds=sum(latencies) / 1e3, latency_ms=cuts[49], latency_99_ms=cuts[98])


def _beside_a_busy_thread(action: Callable[[], None]) -> None:
    stop = False

    def compute() -> None:
        for number in itertools.count():
            if stop:
                return
            hash(number)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        action()
    finally:
        stop = True
        thread.join()


def _thread_ns(action: Callable[[int], object], count: int) -> float:
    """CPU nanoseconds of this thread per call, the loop around it included."""
    start = time.thread_time_ns()
    for number in range(count):
        action(number)
    return (time.thread_time_ns() - start) / count


CLIENTS = {
    "stations": _stations,
    "ottla, idle": _awaited_idle,
    "ottla, busy": _awaited_busy,
    "ottla, busy, app.run": _awaited_busy_app,
    "aiokafka, idle": _aiokafka_idle,
    "aiokafka, busy": _aiokafka_busy,
}

if __name__ == "__main__":
    run(CLIENTS)
