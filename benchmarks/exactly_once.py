"""A listener that sends one record for each that it handles: at least once, and exactly once in transactions.

The clock runs from the first call of the handler until the last output is acknowledged and the container has stopped,
with everything committed.
"""

from __future__ import annotations

import threading
import uuid

from benchmarks.listener import Order
from benchmarks.measuring import PARTITIONS, PATIENCE_SECONDS, Job, Meter, run


def _at_least_once(job: Job, meter: Meter) -> None:
    _listen(job, meter, transactional=False)


def _exactly_once(job: Job, meter: Meter) -> None:
    _listen(job, meter, transactional=True)


def _listen(job: Job, meter: Meter, *, transactional: bool) -> None:
    from ottla import Ottla

    unique = uuid.uuid4().hex[:8]
    output, group = f"{job.topic}-{unique}", f"bench-{unique}"
    app = Ottla(job.bootstrap_servers, name=group)
    app.topic(output, partitions=PARTITIONS)
    template, done = app.template, threading.Event()
    handled = acknowledged = 0

    def stored(_: object) -> None:
        nonlocal acknowledged
        acknowledged += 1
        if acknowledged == job.records:
            done.set()

    @app.listener(job.topic, id=group, transactional=transactional)
    def handle(order: Order) -> None:
        nonlocal handled
        if not handled:
            meter.start()
        handled += 1
        template.send(output, order, key=order.customer).add_callback(stored)

    with app:
        if not done.wait(PATIENCE_SECONDS):
            raise SystemExit(f"{acknowledged} of {job.records} outputs were acknowledged")
        app.listeners[group].stop(timeout=30)
        if handled != job.records:
            raise SystemExit(f"{handled} records were handled, and there are {job.records}")
        meter.stop(handled)


CLIENTS = {"at least once": _at_least_once, "exactly once": _exactly_once}

if __name__ == "__main__":
    run(CLIENTS)
