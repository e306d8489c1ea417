"""What transactions of 100 ms cost a producer that sends as fast as it can: the same sends, with and without.

The clock runs from the first send to the end of the last commit; without transactions to the last acknowledgment.
"""

from __future__ import annotations

import time
import uuid

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
from benchmarks.produce import Acknowledged

TRANSACTION_SECONDS = 0.1
_LOOK_EVERY = 128


def _none(job: Job, meter: Meter) -> None:
    _send(job, meter, transactional_id=None)


def _transactions(job: Job, meter: Meter) -> None:
    _send(job, meter, transactional_id=f"bench-{uuid.uuid4().hex[:8]}")


def _send(job: Job, meter: Meter, transactional_id: str | None) -> None:
    from ottla.client import KafkaProducer

    acknowledged = Acknowledged()
    on_success, on_failure = acknowledged.on_success, acknowledged.on_failure
    topic, value = job.topic, payload(job.value_bytes)
    with KafkaProducer(
        bootstrap_servers=job.bootstrap_servers,
        acks=ACKS,
        linger_ms=LINGER_MS,
        batch_size=BATCH_BYTES,
        buffer_memory=BUFFER_BYTES,
        transactional_id=transactional_id,
    ) as producer:
        if transactional_id is None:
            producer.send(topic, value).result(30)
        else:
            producer.init_transactions()
            producer.begin_transaction()
            producer.send(topic, value)
            producer.commit_transaction()
            producer.begin_transaction()
        meter.start()
        began = time.perf_counter()
        for number in range(job.records):
            producer.send(topic, value, KEYS[number & 63]).add_callback(on_success, on_failure)
            # Without transactions it looks at the clock as well, so that the two differ in the transactions only.
            if number % _LOOK_EVERY == 0 and (now := time.perf_counter()) - began >= TRANSACTION_SECONDS:
                began = now
                if transactional_id is not None:
                    producer.commit_transaction(PATIENCE_SECONDS)
                    producer.begin_transaction()
        if transactional_id is None:
            producer.flush(PATIENCE_SECONDS)
        else:
            producer.commit_transaction(PATIENCE_SECONDS)
        meter.stop(acknowledged.check(job.records))


CLIENTS = {"without": _none, "transactions of 100 ms": _transactions}

if __name__ == "__main__":
    run(CLIENTS)
