"""The brokers that the clients are measured against, each in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import PARTITIONS, resident_megabytes

TESTS = Path(__file__).resolve().parent.parent / "tests"
NAMES = {"ours": "Ottla", "apache": "Apache Kafka"}
READY_SECONDS = 60

_DELETED_SOON = "log.segment.delete.delay.ms=1000"
"""Topics are deleted after use; their files should not outlive them by a minute."""


@dataclass(frozen=True, slots=True)
class Broker:
    """A running broker."""

    name: str
    bootstrap_servers: str
    pid: int
    start_seconds: float
    megabytes: float


class NoBroker(Exception):
    """A broker cannot be had here; the message says why."""


@contextlib.contextmanager
def running(name: str) -> Iterator[Broker]:
    """The broker called `name` (see NAMES), while the block lasts.

    Raises:
        NoBroker: it cannot be started.
    """
    with _apache() if name == "apache" else _ours() as broker:
        yield broker


@contextlib.contextmanager
def topic(broker: Broker, name: str) -> Iterator[str]:
    """A topic, while the block lasts."""
    from ottla.client import AdminClient
    from ottla.client.admin import NewTopic

    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        admin.create_topics([NewTopic(name, PARTITIONS)], timeout=30)
        try:
            yield name
        finally:
            admin.delete_topics([name], timeout=30)


@contextlib.contextmanager
def _ours() -> Iterator[Broker]:
    with tempfile.TemporaryDirectory(prefix="ottla-bench-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "ottla_broker", "--host", "127.0.0.1", "--port", "0", "--data", folder]
        command += ["--config", _DELETED_SOON, "--config", "group.initial.rebalance.delay.ms=0"]
        command += ["--stop-with-stdin", "--log-level", "WARNING"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line.startswith("ready "):
                raise NoBroker("our broker did not start; its standard error says why")
            seconds = time.perf_counter() - start
            address = line.split()[1]
            yield Broker("ours", address, process.pid, seconds, resident_megabytes(process.pid))
        finally:
            process.stdin.close()
            try:
                process.wait(READY_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


@contextlib.contextmanager
def _apache() -> Iterator[Broker]:
    apache_kafka = java()
    name, _, value = _DELETED_SOON.partition("=")
    kafka = apache_kafka.ApacheKafka(config={name: value, "num.network.threads": "3", "num.io.threads": "8"})
    try:
        apache_kafka.install(kafka.version)
        start = time.perf_counter()
        kafka.start()
    except apache_kafka.KafkaNotAvailable as error:
        raise NoBroker(str(error)) from error
    seconds = time.perf_counter() - start
    try:
        yield Broker("apache", kafka.bootstrap_servers, kafka.pid, seconds, resident_megabytes(kafka.pid))
    finally:
        kafka.stop()


def java() -> Any:
    """The tests' module that has Apache Kafka and its Java tools."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    from support import apache_kafka

    return apache_kafka
