"""The processes of the demonstration, and what is done to them."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
START_SECONDS = 60
SESSION_SECONDS = 3
PATIENCE_SECONDS = 6
BROKER_SETTINGS = {
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
}


class Child:
    """A process that can be killed and started again. Its log goes on where it was."""

    def __init__(self, name: str, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self._command = command
        self._environment = {**os.environ, **(environment or {})}

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                cwd=FOLDER,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demonstration, which stops them itself
            )

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: int, timeout: float = 60) -> int:
        """Send a signal and wait for the end; gives the exit code."""
        process, self.process = self.process, None
        assert process is not None
        process.send_signal(number)
        if number != signal.SIGKILL:
            process.send_signal(signal.SIGCONT)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(timeout)
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def kill(self) -> None:
        """`kill -9`: nothing is finished, closed or said."""
        self.end(signal.SIGKILL)

    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None


class Broker(Child):
    """Our broker, on a folder and a port that stay."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.port = port or _free_port()
        self.data = folder / "broker"
        settings = [part for name, value in BROKER_SETTINGS.items() for part in ("--config", f"{name}={value}")]
        command = [sys.executable, "-m", "ottla", "broker", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--data", str(self.data), "--log-level", "WARNING", "--stop-with-stdin", *settings]
        super().__init__("broker", command, folder / "broker.log")

    def start(self) -> None:
        super().start()
        assert self.process is not None
        assert self.process.stdout is not None
        readable = select.select([self.process.stdout], [], [], START_SECONDS)[0]
        if not readable or not self.process.stdout.readline().startswith(b"ready "):
            raise SystemExit(f"the broker did not start; {self.log} says why")


class Worker(Child):
    """`ottla run payments:app`, under a name that stays, so that the group knows it again."""

    def __init__(self, number: int, folder: Path, bootstrap_servers: str, database: str) -> None:
        environment = {
            "PAYMENTS_DATABASE": database,
            "OTTLA_BOOTSTRAP_SERVERS": bootstrap_servers,
            "OTTLA_STATE_DIR": str(folder / "state"),
            "OTTLA_CONSUMER__GROUP_INSTANCE_ID": f"worker-{number}",
            "OTTLA_CONSUMER__SESSION_TIMEOUT_MS": str(SESSION_SECONDS * 1000),
            "OTTLA_CONSUMER__HEARTBEAT_INTERVAL_MS": str(SESSION_SECONDS * 1000 // 5),
        }
        command = [sys.executable, "-m", "ottla", "run", "payments:app"]
        super().__init__(f"worker-{number}", command, folder / f"worker-{number}.log", environment)


class Chaos:
    """Kills, freezes and starts again, at moments that come from a seed.

    A worker that stays away for longer than its session loses its partitions to the others; one that is frozen for
    that long does not know it, and goes on with them when it wakes up.

    Attributes:
        counts: what was done, by name.
        ended_by_themselves: workers that ended without having been killed.
    """

    def __init__(self, broker: Broker, workers: list[Worker], rng: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self.ended_by_themselves: list[str] = []
        self._broker = broker
        self._workers = workers
        self._rng = rng
        self._frozen: set[Worker] = set()
        self._due: list[tuple[float, Callable[[], None]]] = []

    def run(self, seconds: float, look: Callable[[], int]) -> None:
        """Do so for a while; then everything runs again.

        Args:
            seconds: how long.
            look: says how many payments are done. Most blows wait until that has grown since the last one: on a slow
                machine workers that only ever start would be all there is to strike.
        """
        until = time.monotonic() + seconds
        next_blow = time.monotonic() + self._rng.uniform(0.5, 1.0)
        next_broker = time.monotonic() + self._rng.uniform(3.0, 5.0)
        patience, done, done_at_brokers_end = next_blow, 0, 0
        while (now := time.monotonic()) < until:
            count = look()
            self._do_what_is_due(now)
            if now >= next_blow and (count > done or now >= patience):
                self._strike_a_worker(now)
                next_blow, done = now + self._rng.uniform(0.1, 0.9), count
                patience = next_blow + (0 if self._rng.random() < 0.1 else PATIENCE_SECONDS)
            if now >= next_broker and count > done_at_brokers_end:
                self._strike_the_broker()
                done_at_brokers_end = count
                next_broker = time.monotonic() + self._rng.uniform(5.0, 12.0)
            time.sleep(0.01)
        self._do_what_is_due(float("inf"))

    def _do_what_is_due(self, now: float) -> None:
        for entry in sorted(self._due, key=lambda entry: entry[0]):
            if entry[0] <= now:
                self._due.remove(entry)
                entry[1]()

    def _strike_a_worker(self, now: float) -> None:
        # Drawn whether it is used or not, so that a seed means the same blows on every machine.
        number, freeze, long = self._rng.randrange(len(self._workers)), self._rng.random(), self._rng.random()
        pause = self._rng.uniform(SESSION_SECONDS, SESSION_SECONDS + 1.5) if long < 0.2 else self._rng.uniform(0, 0.5)
        worker = self._workers[number]
        if worker.process is None or worker in self._frozen:
            return
        self.note_early_end(worker)
        if freeze < 0.15:
            self.counts["workers frozen"] += 1
            worker.signal(signal.SIGSTOP)
            self._frozen.add(worker)
            self._due.append((now + pause, lambda: self._thaw(worker)))
        else:
            self.counts["workers killed"] += 1
            worker.kill()
            self._due.append((now + pause, lambda: self._restart(worker)))

    def _thaw(self, worker: Worker) -> None:
        self._frozen.discard(worker)
        worker.signal(signal.SIGCONT)

    def _restart(self, worker: Worker) -> None:
        self.counts["workers restarted"] += 1
        worker.start()

    def note_early_end(self, worker: Worker) -> None:
        """A worker only ends if it is killed; one that did so by itself is a fault."""
        if worker.has_ended():
            assert worker.process is not None
            self.ended_by_themselves.append(f"{worker.name} with {worker.process.returncode}; see {worker.log}")

    def _strike_the_broker(self) -> None:
        self.counts["broker killed"] += 1
        self._broker.kill()
        time.sleep(self._rng.uniform(0, 0.5))
        self._broker.start()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
