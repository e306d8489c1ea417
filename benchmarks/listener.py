"""A listener with a pydantic model: from the first call of its handler to the last, with commits as the mode has them.

The topic holds JSON orders of about 100 bytes. FastStream is measured in its default mode (offsets committed in the
background, whether or not the handler is done: at most once), and in its at-least-once modes: one record and one commit
at a time, and, its fastest, a list of records and one commit for each list. It logs nothing, which is faster than its
default. Ours commits after its polls, at least once, in all modes. Each runs as its applications do: ours by
`app.run()`, the other one on an event loop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import uuid
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from benchmarks.measuring import PATIENCE_SECONDS, Job, Meter, run


class Order(BaseModel):
    """What each record holds."""

    id: int
    customer: str
    amount: float
    paid: bool
    tags: list[str]


EXAMPLE = Order(id=1_234_567, customer="customer-0042", amount=19.95, paid=True, tags=["book", "gift"])


class Progress:
    """Starts the clock with the first record, stops it with the last, and says so."""

    def __init__(self, job: Job, meter: Meter, finish: Callable[[], object]) -> None:
        self._job, self._meter, self._finish = job, meter, finish
        self._seen = self._first = 0

    def one(self, _: Order) -> None:
        """An order was handled."""
        self.some(1)

    def some(self, count: int) -> None:
        """Orders were handled."""
        if not self._first:
            self._first = count
            self._meter.start()
        self._seen += count
        if self._seen == self._job.records:
            self._meter.stop(self._seen - self._first)
            self._finish()


def _ottla_sync(job: Job, meter: Meter) -> None:
    def handlers(progress: Progress) -> Callable[..., Any]:
        one = progress.one

        def handle(order: Order) -> None:
            one(order)

        return handle

    _ottla(job, meter, handlers)


def _ottla_async(job: Job, meter: Meter) -> None:
    def handlers(progress: Progress) -> Callable[..., Any]:
        one = progress.one

        async def handle(order: Order) -> None:
            one(order)

        return handle

    _ottla(job, meter, handlers)


def _ottla_list(job: Job, meter: Meter) -> None:
    def handlers(progress: Progress) -> Callable[..., Any]:
        def handle(orders: list[Order]) -> None:
            progress.some(len(orders))

        return handle

    _ottla(job, meter, handlers)


def _ottla(job: Job, meter: Meter, handlers: Callable[[Progress], Callable[..., Any]]) -> None:
    from ottla import Ottla

    done = threading.Event()

    def finish() -> None:
        done.set()
        os.kill(os.getpid(), signal.SIGTERM)  # what ends an application

    app = Ottla(job.bootstrap_servers)
    app.listener(job.topic, group=_group())(handlers(Progress(job, meter, finish)))
    app.run(until_idle=PATIENCE_SECONDS)
    if not done.is_set():
        raise SystemExit("not all records came")


def _faststream_default(job: Job, meter: Meter) -> None:
    asyncio.run(_faststream(job, meter))


def _faststream_ack(job: Job, meter: Meter) -> None:
    from faststream import AckPolicy

    asyncio.run(_faststream(job, meter, ack_policy=AckPolicy.ACK))


def _faststream_list_ack(job: Job, meter: Meter) -> None:
    from faststream import AckPolicy

    asyncio.run(_faststream(job, meter, ack_policy=AckPolicy.ACK, batch=True, max_records=500))


async def _faststream(job: Job, meter: Meter, **mode: Any) -> None:
    from faststream.kafka import KafkaBroker

    done = asyncio.Event()
    progress = Progress(job, meter, done.set)
    broker = KafkaBroker(job.bootstrap_servers, logger=None)

    async def handle_one(order: Order) -> None:
        progress.one(order)

    async def handle_list(orders: list[Order]) -> None:
        progress.some(len(orders))

    subscriber = broker.subscriber(job.topic, group_id=_group(), auto_offset_reset="earliest", **mode)
    subscriber(handle_list if mode.get("batch") else handle_one)
    async with broker:
        await broker.start()
        await asyncio.wait_for(done.wait(), PATIENCE_SECONDS)


def fill(bootstrap_servers: str, topic: str, records: int) -> None:
    """Put `records` orders into the topic."""
    from ottla.client import KafkaProducer

    value = EXAMPLE.model_dump_json()
    with KafkaProducer(bootstrap_servers=bootstrap_servers) as producer:
        for number in range(records):
            producer.send(topic, value, key=f"key-{number & 63}")
        producer.flush(PATIENCE_SECONDS)


def _group() -> str:
    return f"bench-{uuid.uuid4().hex[:8]}"


CLIENTS = {
    "ottla": _ottla_sync,
    "ottla, async": _ottla_async,
    "ottla, list": _ottla_list,
    "faststream, default": _faststream_default,
    "faststream, ACK": _faststream_ack,
    "faststream, ACK, list": _faststream_list_ack,
}

if __name__ == "__main__":
    run(CLIENTS)
