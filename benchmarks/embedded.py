"""The embedded broker: how long it takes until it serves, imports included, and the memory that it then has.

`thread` is what tests use, `process` what an application run by `ottla run` uses. The time is that of `start`, with the
import of `ottla.embedded` before it; the memory is what this process gained, or what the child has.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.measuring import Job, Meter, report, resident_megabytes, run


def _thread(_: Job, meter: Meter) -> None:
    _measure(process=False)


def _process(_: Job, meter: Meter) -> None:
    _measure(process=True)


def _measure(*, process: bool) -> None:
    before = resident_megabytes(os.getpid())
    start = time.perf_counter()
    from ottla.embedded import EmbeddedKafka

    with EmbeddedKafka(process=process):
        seconds = time.perf_counter() - start
        if process:
            children = Path(f"/proc/self/task/{os.getpid()}/children")
            memory = sum(resident_megabytes(int(pid)) for pid in children.read_text().split())
        else:
            memory = resident_megabytes(os.getpid()) - before
    report(seconds=seconds, megabytes=memory)


CLIENTS = {"ottla, thread": _thread, "ottla, process": _process}

if __name__ == "__main__":
    run(CLIENTS)
