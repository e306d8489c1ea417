"""How long the broker's event loop keeps a bystander waiting: one connection asks for ApiVersions all the time, while
another makes the broker do something large.

    python benchmarks/loop_latency.py [--rounds 5] [--partitions 1000] [--only create,append,...] [--broker-path DIR]

Prints, per scenario, the longest wait of the bystander (median and range of the rounds, milliseconds) and how long the
work took. Every round has a broker and a data folder of its own. `idle` says what the machine does by itself. The
folders are removed at the end only: ext4 makes files several times slower for some minutes after many were deleted.
`--broker-path` runs the broker of another checkout, for a comparison.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from ottla_wire.messages.api_versions import ApiVersionsRequest
from ottla_wire.messages.create_topics import CreatableTopic, CreateTopicsRequest
from ottla_wire.messages.delete_records import DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsTopic
from ottla_wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.records import build_batch

TESTS = Path(__file__).resolve().parent.parent / "tests"
PATIENCE_SECONDS = 120.0
PAUSE_SECONDS = 0.0005
CHECKPOINT_MS = 3_000


def _connect(address: str) -> Any:
    """A client that speaks the wire and nothing else: the tests have one."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    from support.wire_client import WireClient

    return WireClient(address, timeout=PATIENCE_SECONDS)


class Outcome(NamedTuple):
    """What one round showed, in milliseconds."""

    longest_wait_ms: float
    work_ms: float
    slowest_step_ms: float


class Work:
    """A connection that makes the broker work; `step` notes how long the slowest request took."""

    def __init__(self, address: str, partitions: int) -> None:
        self.partitions = partitions
        self.slowest_ms = 0.0
        self._client = _connect(address)

    def ask(self, request: Any, version: int) -> Any:
        """One request, timed."""
        start = time.perf_counter()
        answer = self._client.ask(request, version)
        self.slowest_ms = max(self.slowest_ms, (time.perf_counter() - start) * 1000)
        return answer

    def create(self) -> None:
        """One topic with all partitions."""
        topic = CreatableTopic(name="load", num_partitions=self.partitions, replication_factor=1)
        answer = self.ask(CreateTopicsRequest(topics=[topic], timeout_ms=60_000), 7)
        assert answer.topics[0].error_code == 0, answer

    def append(self) -> None:
        """One record into each partition, one request after the other."""
        for index in range(self.partitions):
            self.append_to([index])

    def append_together(self) -> None:
        """One record into each partition, a hundred partitions per request."""
        for start in range(0, self.partitions, 100):
            self.append_to(list(range(start, min(start + 100, self.partitions))))

    def append_to(self, indexes: list[int]) -> None:
        """One record into each of these, acks=1."""
        records = build_batch([(int(time.time() * 1000), None, b"x" * 100, ())])
        data = [PartitionProduceData(index=index, records=records) for index in indexes]
        topics = [TopicProduceData(name="load", partition_data=data)]
        answer = self.ask(ProduceRequest(acks=1, timeout_ms=60_000, topic_data=topics), 9)
        assert not any(p.error_code for p in answer.responses[0].partition_responses), answer

    def delete_records(self) -> None:
        """Raise the start of every partition, which makes its epoch file stale."""
        parts = [DeleteRecordsPartition(partition_index=index, offset=1) for index in range(self.partitions)]
        topic = DeleteRecordsTopic(name="load", partitions=parts)
        answer = self.ask(DeleteRecordsRequest(topics=[topic], timeout_ms=60_000), 2)
        assert not any(p.error_code for p in answer.topics[0].partitions), answer

    def delete(self) -> None:
        """Delete the topic."""
        answer = self.ask(DeleteTopicsRequest(topics=[DeleteTopicState(name="load")], timeout_ms=60_000), 6)
        assert answer.responses[0].error_code == 0, answer

    def wait_for_checkpoint(self) -> None:
        """Until the broker has written its checkpoints."""
        time.sleep(CHECKPOINT_MS / 1000 * 1.5)

    def nothing(self) -> None:
        """Only time passes."""
        time.sleep(1)


SCENARIOS: dict[str, tuple[list[Callable[[Work], None]], Callable[[Work], None]]] = {
    "idle": ([], Work.nothing),
    "create": ([], Work.create),
    "append": ([Work.create], Work.append),
    "append_together": ([Work.create], Work.append_together),
    "checkpoint": ([Work.create, Work.append_together, Work.delete_records], Work.wait_for_checkpoint),
    "delete_unused": ([Work.create], Work.delete),
    "delete_used": ([Work.create, Work.append_together], Work.delete),
}


def bystander(address: str, ready: Any, stop: Any, result: Any) -> None:
    """Ask for ApiVersions until told to stop; hand back the longest wait."""
    client = _connect(address)
    longest = 0.0
    asked = 0
    while not stop.is_set():
        start = time.perf_counter()
        client.ask(ApiVersionsRequest(), 2)
        longest = max(longest, time.perf_counter() - start)
        asked += 1
        if asked == 20:
            longest = 0.0  # the first ones import and warm up
            ready.set()
        time.sleep(PAUSE_SECONDS)
    result.put(longest * 1000)
    client.close()


def measure(name: str, partitions: int, broker_path: str | None, folder: Path) -> Outcome:
    """One round of one scenario, with a broker of its own on a new folder."""
    before, work = SCENARIOS[name]
    context = get_context("spawn")
    ready, stop, result = context.Event(), context.Event(), context.Queue()
    with broker(folder, broker_path) as address:
        load = Work(address, partitions)
        for step in before:
            step(load)
        if name != "checkpoint":
            time.sleep(0.3)  # what the steps left to the disk thread
        probe = context.Process(target=bystander, args=(address, ready, stop, result))
        probe.start()
        assert ready.wait(PATIENCE_SECONDS)
        load.slowest_ms = 0.0
        start = time.perf_counter()
        work(load)
        took_ms = (time.perf_counter() - start) * 1000
        time.sleep(0.05)
        stop.set()
        longest_ms = result.get(timeout=PATIENCE_SECONDS)
        probe.join(PATIENCE_SECONDS)
    return Outcome(longest_ms, took_ms, load.slowest_ms)


@contextlib.contextmanager
def broker(data: Path, broker_path: str | None) -> Iterator[str]:
    """A broker process; its address."""
    environment = dict(os.environ)
    if broker_path is not None:
        environment["PYTHONPATH"] = broker_path
    command = [sys.executable, "-m", "ottla_broker", "--port", "0", "--data", str(data), "--log-level", "WARNING"]
    command += ["--config", f"log.flush.offset.checkpoint.interval.ms={CHECKPOINT_MS}", "--stop-with-stdin"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=str(data.parent)
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], 60)[0], "the broker did not start"
        yield process.stdout.readline().decode().split()[1]
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def main() -> None:
    """Run the scenarios, rounds interleaved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--partitions", type=int, default=1000)
    parser.add_argument("--only", default=",".join(SCENARIOS))
    parser.add_argument("--broker-path", action="append", help="may be given several times: each is measured")
    options = parser.parse_args()
    names = options.only.split(",")
    paths: list[str | None] = options.broker_path or [None]
    found: dict[tuple[str, str | None], list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, path in [(name, path) for _ in range(options.rounds) for name in names for path in paths]:
            data = Path(folder) / str(sum(map(len, found.values())))
            found.setdefault((name, path), []).append(measure(name, options.partitions, path, data))
    print(f"{options.partitions} partitions, {options.rounds} rounds, load average {os.getloadavg()[0]:.1f}")
    print(
        "| work | longest wait of a bystander | the work as a whole | its slowest request |\n| --- | --- | --- | --- |"
    )
    for (name, path), outcomes in found.items():
        cells = [f"{statistics.median(v):.1f} ({min(v):.1f}-{max(v):.1f}) ms" for v in zip(*outcomes, strict=True)]
        label = name if path is None else f"{name} [{path}]"
        print(f"| {label} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
