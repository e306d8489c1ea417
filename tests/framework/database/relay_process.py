"""A relay in a process of its own, which may kill itself at a step: `relay_process.py URL SERVERS [STEP NUMBER]`.

It prints "active" once it is, and ends when a line comes in, after it has sent what is there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import create_engine

from ottla import ProducerFactory
from ottla.client import KafkaProducer
from ottla.transaction import Outbox, RelayState
from ottla.transaction.outbox_store import OutboxStore
from ottla.transaction.relay_kafka import RelayKafka

STEPS: dict[str, tuple[type, str, bool]] = {
    "registered": (KafkaProducer, "init_transactions", True),
    "position read": (RelayKafka, "open", True),
    "rows read": (OutboxStore, "batch", True),
    "begun": (KafkaProducer, "begin_transaction", True),
    "a row sent": (KafkaProducer, "send", True),
    "all stored": (KafkaProducer, "flush", True),
    "committed": (KafkaProducer, "commit_transaction", True),
    "database told": (OutboxStore, "advance", True),
}


def die_at(step: str, number: int) -> None:
    """Have the process killed right after the step was done for the nth time."""
    home, name, _ = STEPS[step]
    real: Callable[..., Any] = getattr(home, name)
    calls = 0

    def method(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        result = real(*args, **kwargs)
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(home, name, method)


def main() -> None:
    url, servers, *rest = sys.argv[1:]
    if rest:
        die_at(rest[0], int(rest[1]))
    connect_args = {"timeout": 20} if url.startswith("sqlite") else {}
    engine = create_engine(url, connect_args=connect_args)
    with ProducerFactory(bootstrap_servers=servers, linger_ms=0) as factory:
        relay = Outbox().relay(engine, factory, poll_interval=0.01, batch_rows=3, lease=0.5)
        with relay:
            threading.Thread(target=say_when_active, args=(relay,), daemon=True).start()
            sys.stdin.readline()
    engine.dispose()


def say_when_active(relay: Any) -> None:
    while relay.state is not RelayState.ACTIVE:
        time.sleep(0.005)
    print("active", flush=True)


if __name__ == "__main__":
    main()
