"""Payments, exactly once, while workers and broker are killed: the demonstration, and its proof.

    python samples/payments/demo.py [--seconds 60] [--seed 1] [--workers 3] [--rate 150] [--database URL]

The exit code is not 0 if one of the checks disagrees.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ledger import Ledger
from models import Payment, Receipt
from processes import START_SECONDS, Broker, Chaos, Worker
from proof import ABORT, COMMIT, Evidence, Files, checks, in_the_files, lag, read_committed, unfinished
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ottla.client import AdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from ottla.client.admin import NewTopic

PARTITIONS, ACCOUNTS, OPENING_CENTS = 6, 40, 20_000
CATCH_UP_SECONDS = 90
console = Console()


class Payers(threading.Thread):
    """Sends payments at a steady rate until it is told to finish."""

    def __init__(self, bootstrap_servers: str, accounts: list[str], rate: float, seed: int) -> None:
        super().__init__(name="payers", daemon=True)
        self.sent: list[Payment] = []
        self.failures: list[BaseException] = []
        self._accounts, self._rate, self._rng = accounts, rate, random.Random(seed)
        self._stopping = threading.Event()
        self._producer = KafkaProducer(bootstrap_servers=bootstrap_servers, linger_ms=5, delivery_timeout_ms=180_000)

    def run(self) -> None:
        started = time.monotonic()
        while not self._stopping.wait(0.01):
            while len(self.sent) < (time.monotonic() - started) * self._rate:
                self._send()

    def _send(self) -> None:
        payer, payee = self._rng.sample(self._accounts, 2)
        number = len(self.sent)
        payment = Payment(id=f"p-{number}", number=number, payer=payer, payee=payee, cents=self._rng.randint(1, 2_500))
        self.sent.append(payment)
        value, key = payment.model_dump_json().encode(), payer.encode()
        self._producer.send("payments", value, key=key).add_callback(lambda _: None, self.failures.append)

    def finish(self) -> None:
        self._stopping.set()
        self.join(30)
        self._producer.flush(180)
        self._producer.close(10)
        if self.failures:
            raise SystemExit(f"{len(self.failures)} payments could not be sent: {self.failures[0]}")

    def abandon(self) -> None:
        """Stop without waiting for what is on its way."""
        self._stopping.set()
        self.join(30)
        self._producer.close(0)


class Watcher(threading.Thread):
    """Reads the committed receipts while all this goes on."""

    def __init__(self, bootstrap_servers: str) -> None:
        super().__init__(name="watcher", daemon=True)
        self.told: list[Receipt] = []
        self.failure: BaseException | None = None
        self._stopping = threading.Event()
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest", isolation_level="read_committed"
        )
        self._consumer.assign([TopicPartition("receipts", index) for index in range(PARTITIONS)])

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self.told += [Receipt.model_validate_json(record.value) for record in self._consumer.poll(0.1)]
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self.failure = error

    def finish(self) -> None:
        self._stopping.set()
        self.join(30)
        self._consumer.close(10)
        if self.failure is not None:
            raise self.failure


class Demonstration:
    """A broker, workers, payers and a reader, in one folder."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        rng = random.Random(options.seed)
        self.seconds: float = options.seconds
        self.opening = {f"account-{number:02}": OPENING_CENTS for number in range(ACCOUNTS)}
        database = options.database or f"sqlite:///{folder / 'payments.db'}"
        self.ledger = Ledger(database)
        self.broker = Broker(folder, options.port)
        self.servers = f"127.0.0.1:{self.broker.port}"
        self.workers = [Worker(number, folder, self.servers, database) for number in range(options.workers)]
        self.chaos = Chaos(self.broker, self.workers, rng)
        self.rate: float = options.rate
        self.payers: Payers | None = None
        self.payers_seed = rng.randrange(1 << 30)

    def run(self) -> tuple[Evidence, Files]:
        self._check_ledger()
        self.broker.start()
        with AdminClient(bootstrap_servers=self.servers) as admin:
            admin.create_topics([NewTopic(name, partitions=PARTITIONS) for name in ("payments", "receipts")])
        payers = self.payers = Payers(self.servers, list(self.opening), self.rate, self.payers_seed)
        watcher = Watcher(self.servers)
        for child in (*self.workers, payers, watcher):
            child.start()
        columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, refresh_per_second=4) as progress:
            sent, told = (progress.add_task(name, total=None, note="") for name in ("payments", "receipts"))

            def look() -> int:
                counts = self.chaos.counts
                blows = f"kill -9: {counts['workers killed']} workers, {counts['broker killed']} broker"
                progress.update(sent, completed=len(payers.sent), total=int(self.rate * self.seconds), note=blows)
                progress.update(told, completed=len(watcher.told), total=len(payers.sent))
                return len(watcher.told)

            wait_until(lambda: look() > 0, "the first receipt", START_SECONDS)
            self.chaos.run(self.seconds, look)
            payers.finish()
            progress.update(sent, total=len(payers.sent))
            self._catch_up(payers, watcher, look)
            watcher.finish()
            progress.update(told, completed=len(watcher.told), total=len(payers.sent))
        return self._evidence(payers, watcher)

    def _check_ledger(self) -> None:
        self.ledger.open_accounts(self.opening)
        if self.ledger.receipts() or self.ledger.balances() != self.opening:
            raise SystemExit("the database has payments of an earlier run; give one that is empty")

    def _catch_up(self, payers: Payers, watcher: Watcher, look: Callable[[], int]) -> None:
        """Wait until all is read and nothing is open; the checks say what is missing if that never happens."""
        deadline = time.monotonic() + CATCH_UP_SECONDS
        with AdminClient(bootstrap_servers=self.servers) as admin:
            while time.monotonic() < deadline and watcher.failure is None:
                look()
                behind = sum(lag(admin, "payments", "payments", PARTITIONS).values())
                if not behind and len(watcher.told) >= len(payers.sent) and not self._unfinished(admin):
                    return
                time.sleep(0.2)

    def _unfinished(self, admin: AdminClient) -> list[str]:
        return unfinished(admin, {"payments": PARTITIONS, "receipts": PARTITIONS})

    def _evidence(self, payers: Payers, watcher: Watcher) -> tuple[Evidence, Files]:
        ended_by_themselves = list(self.chaos.ended_by_themselves)
        for worker in self.workers:
            code = worker.end(signal.SIGTERM)
            if code != 0:
                ended_by_themselves.append(f"{worker.name} ended with {code}; see {worker.log}")
        receipts = read_committed(self.servers, "receipts", PARTITIONS)
        with AdminClient(bootstrap_servers=self.servers) as admin:
            open_transactions, behind = self._unfinished(admin), lag(admin, "payments", "payments", PARTITIONS)
        self.broker.end(signal.SIGTERM)
        files = in_the_files(self.broker.data, "receipts")
        evidence = Evidence(
            sent=payers.sent,
            opening=self.opening,
            balances=self.ledger.balances(),
            charges=self.ledger.receipts(),
            receipts=receipts,
            told=watcher.told,
            in_the_files=[Receipt.model_validate_json(value) for value in files.committed],
            unfinished=open_transactions,
            lag=behind,
            ended_by_themselves=ended_by_themselves,
        )
        return evidence, files

    def recognised(self) -> int:
        """How often the inbox has kept a payment from being charged again."""
        return sum(worker.log.read_text(errors="replace").count("charged before: ") for worker in self.workers)

    def close(self) -> None:
        """Leave no process behind, and wait for nothing, whatever went wrong."""
        if self.payers is not None and self.payers.is_alive():
            self.payers.abandon()
        for child in (*self.workers, self.broker):
            if child.process is not None:
                child.kill()
        self.ledger.engine.dispose()


def wait_until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not come within {seconds:g} s")
        time.sleep(0.02)


def summary(demonstration: Demonstration, evidence: Evidence, files: Files, seconds: float) -> None:
    table = Table(title=f"exactly once: {seconds:.1f} s", show_header=False, title_justify="left")
    table.add_row("payments sent", f"{len(evidence.sent):,}")
    paid = sum(receipt.status.value == "paid" for receipt in evidence.receipts)
    table.add_row("receipts", f"{len(evidence.receipts):,}: {paid:,} paid, {len(evidence.receipts) - paid:,} declined")
    for what, count in sorted(demonstration.chaos.counts.items()):
        table.add_row(what, f"{count:,}")
    table.add_row("transactions committed", f"{len(files.ended[COMMIT]):,}")
    table.add_row("transactions aborted", f"{len(files.ended[ABORT]):,}, with {files.rolled_back:,} receipts")
    table.add_row("recognised by the inbox", f"{demonstration.recognised():,} payments that had been charged")
    console.print(table)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--seconds", type=float, default=60, help="how long things are killed (60)")
    found.add_argument("--seed", type=int, help="says what is killed when, and who pays whom; by default a new one")
    found.add_argument("--workers", type=int, default=3, help="worker processes (3)")
    found.add_argument("--rate", type=float, default=150, help="payments per second (150)")
    found.add_argument("--database", help="an SQLAlchemy URL of an empty database; by default SQLite in the folder")
    found.add_argument("--keep", type=Path, help="a folder for logs and data, which stays; by default a temporary one")
    found.add_argument("--port", type=int, help="where the broker listens; by default any free port")
    return found


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1_000_000)
    folder: Path = options.keep or Path(tempfile.mkdtemp(prefix="payments-"))
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"seed {options.seed}, data and logs in {folder}")
    demonstration = Demonstration(options, folder)
    started = time.monotonic()
    try:
        evidence, files = demonstration.run()
        summary(demonstration, evidence, files, time.monotonic() - started)
    finally:
        demonstration.close()
    results = checks(evidence)
    for what, holds in results.items():
        console.print(f"[green]ok[/]      {what}" if holds else f"[red]WRONG[/]   {what}")
    for line in (*evidence.unfinished, *evidence.ended_by_themselves):
        console.print(f"[red]{line}")
    if all(results.values()):
        if options.keep is None:
            shutil.rmtree(folder)
        return 0
    console.print(f"what is left is in {folder}; --seed {options.seed} strikes in the same places")
    return 1


if __name__ == "__main__":
    sys.exit(main())
