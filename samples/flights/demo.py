"""The main job, whole: real records through `template.send`, two consumers, a second topic, totals, and a check of all.

    python samples/flights/demo.py [--input my.jsonl --key field] [--bootstrap-servers HOST:PORT]

Without an address a broker of ours is started for the run. The exit code is not 0 if one of the checks disagrees.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from jobs import FlightJob, Job, JsonLinesJob
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ottla import ConsumerRecord, Header, Ottla, RecordMetadata, SendResult

PARTITIONS = 4
TIMEOUT_SECONDS = 120
console = Console()


class Flow:
    """The application: its topics and listeners, and what they have seen."""

    def __init__(self, job: Job, bootstrap_servers: str | None) -> None:
        self.job = job
        self.app = Ottla(bootstrap_servers, name="flights")
        self.app.use_broker_process()
        self.template = self.app.template
        self.lock = threading.Lock()
        self.failures: list[BaseException] = []
        self.sent_at_ns = array("q")
        self.sent_fingerprint = 0
        self.acknowledged_after_ms = array("d")
        self.handled_after_ms = array("d")
        self.handled_fingerprint = 0
        self.handled_by: Counter[str] = Counter()
        self.last_row_of_key: dict[bytes, int] = {}
        self.out_of_order = 0
        self.published = 0
        self.published_acknowledged = 0
        self.totals: Counter[str] = Counter()
        self.totals_gone_on: Counter[str] = Counter()
        self._declare()

    def _declare(self) -> None:
        model = self.job.model
        self.app.topic("scheduled", partitions=PARTITIONS)
        self.app.topic("delayed", partitions=PARTITIONS)

        def handle(payload: Any, record: ConsumerRecord, row: Annotated[int, Header("row")]) -> None:
            self.saw(payload, record, row)

        def total(payload: Any, metadata: RecordMetadata) -> None:
            totals = self.totals if metadata.topic == "scheduled" else self.totals_gone_on
            totals[self.job.group_of(payload)] += 1

        # The model is known only now: an application would write it where `Any` stands.
        handle.__annotations__["payload"] = total.__annotations__["payload"] = model
        self.app.listener("scheduled", id="handle", concurrency=2)(handle)
        self.app.listener("scheduled", "delayed", id="totals")(total)

    def saw(self, payload: Any, record: ConsumerRecord, row: int) -> None:
        """The first listener: note the record, and send on what is to go on."""
        now_ns = time.perf_counter_ns()
        fingerprint = self.job.fingerprint(payload)
        goes_on = self.job.goes_on(payload)
        with self.lock:
            self.handled_after_ms.append((now_ns - self.sent_at_ns[row]) / 1e6)
            self.handled_fingerprint += fingerprint
            self.handled_by[threading.current_thread().name] += 1
            if record.key is not None:
                self.out_of_order += self.last_row_of_key.get(record.key, -1) >= row
                self.last_row_of_key[record.key] = row
            self.published += goes_on
        if goes_on:
            self.template.send("delayed", payload, key=record.key).add_callback(self._gone_on, self.failures.append)

    def _gone_on(self, _: SendResult) -> None:
        self.published_acknowledged += 1

    def send_all(self, progress: Progress, bar: TaskID) -> None:
        """Send every record, with callbacks."""
        for row, (key, payload) in enumerate(self.job.records()):
            self.sent_fingerprint += self.job.fingerprint(payload)
            self.sent_at_ns.append(time.perf_counter_ns())
            future = self.template.send("scheduled", payload, key=key, headers={"row": str(row)})
            future.add_callback(self._acknowledged(row), self.failures.append)
            if row % 2000 == 0:
                progress.update(bar, completed=row)
        progress.update(bar, completed=len(self.sent_at_ns), total=len(self.sent_at_ns))

    def _acknowledged(self, row: int) -> Any:
        def note(_: SendResult) -> None:
            self.acknowledged_after_ms.append((time.perf_counter_ns() - self.sent_at_ns[row]) / 1e6)

        return note

    def is_complete(self) -> bool:
        """Whether all that was sent has been acknowledged, handled, published and counted."""
        sent = len(self.sent_at_ns)
        arrived = len(self.acknowledged_after_ms) == sent and len(self.handled_after_ms) >= sent
        counted = self.totals.total() >= sent and self.totals_gone_on.total() >= self.published
        return bool(self.failures) or (arrived and counted and self.published_acknowledged == self.published)


def wait_until(condition: Any, what: str, seconds: float = TIMEOUT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"the demo gave up: {what} did not happen within {seconds:g} s")
        time.sleep(0.02)


def run(flow: Flow) -> float:
    """Everything, from the first send to the last record handled; gives the seconds it took."""
    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with flow.app, Progress(*columns, console=console) as progress:
        shares = flow.app.listeners["handle"].assignments
        wait_until(
            lambda: all(shares()) and len(flow.app.listeners["totals"].assigned_partitions) == 8, "the assignment"
        )
        total = 336_776 if isinstance(flow.job, FlightJob) else None
        sending = progress.add_task("sent", total=total)
        handling = progress.add_task("handled", total=total)
        publishing = progress.add_task("published", total=None)
        started = time.perf_counter()
        sender = threading.Thread(target=flow.send_all, args=(progress, sending))
        sender.start()

        def is_complete() -> bool:
            progress.update(handling, completed=len(flow.handled_after_ms))
            progress.update(publishing, completed=flow.published_acknowledged)
            return not sender.is_alive() and flow.is_complete()

        wait_until(is_complete, "the end of the flow")
        progress.update(handling, total=len(flow.handled_after_ms))
        progress.update(publishing, total=flow.published)
        return time.perf_counter() - started


def summary(flow: Flow, seconds: float) -> None:
    table = Table(title=f"{flow.job.title}: {seconds:.1f} s", show_header=False, title_justify="left")
    sent = len(flow.sent_at_ns)
    table.add_row("sent", f"{sent:,}")
    table.add_row("acknowledged", f"{len(flow.acknowledged_after_ms):,}")
    table.add_row(
        "handled", f"{len(flow.handled_after_ms):,} by " + " + ".join(f"{n:,}" for n in flow.handled_by.values())
    )
    table.add_row("published", f"{flow.published:,}")
    table.add_row(
        "records/s", f"{sent / seconds:,.0f} sent and handled, {(sent + flow.published) / seconds:,.0f} sent in all"
    )
    for name, values in (("send to ack", flow.acknowledged_after_ms), ("send to handled", flow.handled_after_ms)):
        ordered = sorted(values)
        p50, p99 = (ordered[int(len(ordered) * q)] for q in (0.5, 0.99)) if ordered else (0.0, 0.0)
        table.add_row(name, f"p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    console.print(table)
    top = Table(title="totals", title_justify="left")
    for name in ("of", "all", "went on"):
        top.add_column(name, justify="left" if name == "of" else "right")
    for group, count in flow.totals.most_common(16):
        top.add_row(group, f"{count:,}", f"{flow.totals_gone_on[group]:,}")
    console.print(top)


def checks(flow: Flow) -> dict[str, bool]:
    """What must hold, whatever the input."""
    sent = len(flow.sent_at_ns)
    everything, gone_on = flow.job.expected()
    found = {
        "no send failed": not flow.failures,
        "every record sent was acknowledged once": len(flow.acknowledged_after_ms) == sent,
        "every record sent was handled once": len(flow.handled_after_ms) == sent,
        "what was handled is what was sent, by checksum": flow.handled_fingerprint == flow.sent_fingerprint,
        "the order of every key was kept": flow.out_of_order == 0,
        "both consumers handled records": len(flow.handled_by) == 2 or sent < 100,
        "totals agree with an independent read of the input": flow.totals == everything,
        "what went on agrees with it too": flow.totals_gone_on == gone_on,
    }
    if isinstance(flow.job, FlightJob):
        found["336,776 flights, 72,914 of them late"] = (sent, flow.published) == (336_776, 72_914)
        found["UA 58,665 and B6 54,635"] = (flow.totals["UA"], flow.totals["B6"]) == (58_665, 54_635)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="a file of JSON lines instead of the flights")
    parser.add_argument("--key", help="the field of the JSON objects that is the record's key")
    parser.add_argument("--bootstrap-servers", help="a Kafka that runs already")
    arguments = parser.parse_args()
    if arguments.input is not None and not arguments.input.is_file():
        parser.error(f"there is no file {arguments.input}")
    if arguments.key is not None and arguments.input is None:
        parser.error("--key is a field of your own records: it needs --input")
    job: Job = FlightJob()
    if arguments.input is not None:
        job = JsonLinesJob(arguments.input, arguments.key)
        job.look()
    # A thread that parses a CSV must not keep the others from their acknowledgments for 5 ms at a time. `app.run()`
    # goes down to 0.5 ms, for latency; this is all throughput.
    sys.setswitchinterval(0.002)
    flow = Flow(job, arguments.bootstrap_servers)
    seconds = run(flow)
    summary(flow, seconds)
    for error in flow.failures[:5]:
        console.print(f"[red]a send failed: {error}")
    results = checks(flow)
    for what, holds in results.items():
        console.print(f"[green]ok[/]      {what}" if holds else f"[red]WRONG[/]   {what}")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
