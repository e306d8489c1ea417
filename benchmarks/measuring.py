"""What one measured run needs: its arguments, its clocks, and the one JSON line that it prints.

A measured run is a process of its own, so that no client finds another's modules, threads or garbage. What it prints is
all that it hands back.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ACKS = "all"
LINGER_MS = 5
BATCH_BYTES = 65_536
BUFFER_BYTES = 33_554_432
POLL_RECORDS = 500
FETCH_WAIT_MS = 500
PARTITION_FETCH_BYTES = 1_048_576
PARTITIONS = 4
KEYS = [f"key-{number:04}".encode() for number in range(64)]
"""Every client hashes these keys with murmur2, so that every client fills the same partitions."""

PATIENCE_SECONDS = 300.0
"""How long a run may wait for its records before it gives up."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a measured run is asked to do."""

    client: str
    bootstrap_servers: str
    topic: str
    records: int
    value_bytes: int
    broker_pid: int


def payload(size: int) -> bytes:
    """The value of every record: `size` bytes that do not compress, the same in every run."""
    return random.Random(size).randbytes(size)


def cpu_seconds_of(pid: int) -> float:
    """User and system CPU seconds of another process with all its threads; 0.0 where there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_megabytes(pid: int) -> float:
    """Memory that a process has in RAM, in MB; 0.0 where there is no /proc."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Meter:
    """Times a stretch of work: the wall clock, this process's CPU (all threads) and the broker's."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def start(self) -> None:
        """Begin; a second call begins anew."""
        self._broker = cpu_seconds_of(self._job.broker_pid)
        self._cpu = _own_cpu_seconds()
        self._wall = time.perf_counter()

    def stop(self, records: int, **more: float) -> None:
        """End, and print what was measured, and what the run has measured itself."""
        seconds = time.perf_counter() - self._wall
        report(
            records=records,
            seconds=seconds,
            cpu_seconds=_own_cpu_seconds() - self._cpu,
            broker_cpu_seconds=cpu_seconds_of(self._job.broker_pid) - self._broker,
            **more,
        )


def report(**figures: float) -> None:
    """Print the run's one line."""
    print(json.dumps(figures), flush=True)


def run(clients: Mapping[str, Callable[[Job, Meter], None]]) -> None:
    """The main function of a script with measured runs: do the one that the arguments name."""
    parser = argparse.ArgumentParser(description="One measured run; `python -m benchmarks` starts many.")
    parser.add_argument("--client", required=True, choices=clients)
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--broker-pid", type=int, default=0)
    job = Job(**vars(parser.parse_args()))
    clients[job.client](job, Meter(job))


def _own_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
