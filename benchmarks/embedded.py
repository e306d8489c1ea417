"""The embedded broker: importing it, starting it until it answers Metadata, and memory once it has been used.

`thread` is what tests use, `process` what an application run by `ottla run` uses.

* import: `import ottla_broker` in a fresh interpreter, the median of several.
* start: modules imported, from `EmbeddedKafka().start()` until a client on a socket of its own has the answer to its
  first Metadata; the median of 20 starts.
* memory: after one produce and one consume, above an interpreter that has imported nothing. That of the thread is the
  whole process, our client included; that of the process is the child's.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measuring import Job, Meter, report, resident_megabytes, run

if TYPE_CHECKING:
    from ottla.embedded import EmbeddedKafka

STARTS = 20
IMPORTS = 7
PATIENCE_SECONDS = 30

_IMPORT = "import time; start = time.perf_counter(); import ottla_broker; print(time.perf_counter() - start)"
_BARE = "print(int(open('/proc/self/statm').read().split()[1]))"


def _thread(_: Job, meter: Meter) -> None:
    _measure(process=False)


def _process(_: Job, meter: Meter) -> None:
    _measure(process=True)


def _measure(*, process: bool) -> None:
    imports = statistics.median(float(_fresh(_IMPORT)) for _ in range(IMPORTS))
    starts = statistics.median(_start(process=process) for _ in range(STARTS))
    report(import_seconds=imports, seconds=starts, megabytes=_memory(process=process))


def _start(*, process: bool) -> float:
    """Seconds until the first answer."""
    from ottla.embedded import EmbeddedKafka
    from ottla_wire.framing import encode_request
    from ottla_wire.messages.metadata import MetadataRequest

    request = b"".join(bytes(part) for part in encode_request(MetadataRequest(topics=[]), 9, 1, "bench"))
    start = time.perf_counter()
    with EmbeddedKafka(process=process) as kafka:
        host, _, port = kafka.bootstrap_servers.partition(":")
        with socket.create_connection((host, int(port)), PATIENCE_SECONDS) as connection:
            connection.sendall(request)
            answer = connection.recv(65_536)
            seconds = time.perf_counter() - start
    if len(answer) < 8:
        raise SystemExit("the broker did not answer Metadata")
    return seconds


def _memory(*, process: bool) -> float:
    from ottla.embedded import EmbeddedKafka

    bare = int(_fresh(_BARE)) * os.sysconf("SC_PAGE_SIZE") / 1e6
    with EmbeddedKafka(process=process) as kafka:
        _use(kafka)
        pids = [os.getpid()] if not process else _children()
        return sum(resident_megabytes(pid) for pid in pids) - bare


def _use(kafka: EmbeddedKafka) -> None:
    from ottla.client import KafkaConsumer, KafkaProducer

    with KafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        producer.send("bench", b"value").result(PATIENCE_SECONDS)
    address = kafka.bootstrap_servers
    with KafkaConsumer(bootstrap_servers=address, group_id="bench", auto_offset_reset="earliest") as consumer:
        consumer.subscribe(["bench"])
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not consumer.poll(1):
            if time.monotonic() > deadline:
                raise SystemExit("the record did not come")


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _fresh(program: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


CLIENTS = {"ottla, thread": _thread, "ottla, process": _process}

if __name__ == "__main__":
    run(CLIENTS)
