"""The runner: every scenario, every client, in interleaved rounds, each run in a process of its own.

A round runs each client once, and the next round begins with another client, so that neither a slow minute of the
machine nor the order favours anybody.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from benchmarks import brokers, figures
from benchmarks.brokers import Broker, NoBroker
from benchmarks.measuring import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_ROUNDS = 7
DEFAULT_RECORDS = 200_000
_PACKAGES = {
    "confluent-kafka": "confluent_kafka",
    "aiokafka": "aiokafka",
    "kafka-python": "kafka",
    "faststream": "faststream",
}

Fill = Callable[[Broker, str, int, int], None]
T = TypeVar("T")


class RunFailed(Exception):
    """A measured run ended without its line."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is measured: the clients of a script, on records of one size."""

    name: str
    module: str
    baseline: str = ""
    value_bytes: int = 100
    share: float = 1.0
    """Of --records: what is slow takes fewer."""
    fill: Fill | None = None
    """Fills one topic that all runs read; without it each run has a topic of its own."""
    least_rounds: int = 1
    """A difference of a few percent is not seen in fewer."""
    chosen: tuple[str, ...] = ()
    """The script's clients that take part; none: all."""

    @property
    def clients(self) -> Sequence[str]:
        """Their names, in the order of the table."""
        return self.chosen or list(importlib.import_module(self.module).CLIENTS)

    def rounds(self, options: Options) -> int:
        """How many: as wanted, and as needed where more than a first look is wanted."""
        return options.rounds if options.rounds == 1 else max(options.rounds, self.least_rounds)


def _fill_plain(broker: Broker, topic: str, records: int, value_bytes: int) -> None:
    _measure("benchmarks.produce", "ottla", broker, topic, records, value_bytes)


def _fill_orders(broker: Broker, topic: str, records: int, _: int) -> None:
    from benchmarks.listener import fill

    fill(broker.bootstrap_servers, topic, records)


CONFLUENT = "confluent-kafka"
AWAITED = ("ottla, idle", "ottla, busy", "ottla, busy, app.run", "aiokafka, idle", "aiokafka, busy")
SCENARIOS = (
    Scenario("produce 100 B", "benchmarks.produce", CONFLUENT, 100),
    Scenario("produce 1 KB", "benchmarks.produce", CONFLUENT, 1000, 0.5),
    Scenario("produce 1 KB, one partition, 50 us of work", "benchmarks.produce_busy", CONFLUENT, 1000, 0.2),
    Scenario("consume 100 B", "benchmarks.consume", CONFLUENT, 100, 2.0, _fill_plain),
    Scenario("consume 1 KB", "benchmarks.consume", CONFLUENT, 1000, 1.0, _fill_plain),
    Scenario("listener", "benchmarks.listener", "faststream, default", share=0.1, fill=_fill_orders),
    Scenario("send stations", "benchmarks.send_budget", share=0.5, chosen=("stations",)),
    Scenario("send and await", "benchmarks.send_budget", chosen=AWAITED),
    Scenario("transactions of one record", "benchmarks.transactions", CONFLUENT, share=0.01),
    Scenario("transactions of 100 ms", "benchmarks.transaction_throughput", "without", share=4.0, least_rounds=11),
    Scenario("exactly-once listener", "benchmarks.exactly_once", "at least once", share=0.25, fill=_fill_orders),
)
JAVA = Scenario("broker 1 KB, Java client", "benchmarks.broker", value_bytes=1000, share=1.5)
COMMIT = Scenario(
    "commit of one record", "benchmarks.transactions", share=0.005, chosen=("ottla", CONFLUENT, "aiokafka")
)
EMBEDDED = Scenario("embedded broker", "benchmarks.embedded")
GROUPS = (
    "produce", "consume", "listener", "send", "transactions", "exactly-once", "commit", "broker", "embedded",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure, and how often."""

    rounds: int = DEFAULT_ROUNDS
    records: int = DEFAULT_RECORDS
    broker: str = "both"
    only: tuple[str, ...] = GROUPS
    clients: tuple[str, ...] = ()
    """Beginnings of the names of the clients to measure; none: all."""

    def wants(self, scenario: Scenario) -> bool:
        """Whether `--only` names it."""
        return scenario.name.split()[0] in self.only

    def choose(self, clients: Sequence[str]) -> list[str]:
        """Those of the clients that `--clients` leaves."""
        return [name for name in clients if not self.clients or name.startswith(self.clients)]


def measure_all(options: Options, console: Console) -> list[figures.Result]:
    """Every wanted scenario, shown as soon as it is done."""
    results = []
    for name in ("ours", "apache") if options.broker == "both" else (options.broker,):
        for result in _against(name, options, console):
            figures.show(console, result)
            results.append(result)
    for scenario, measure in ((JAVA, _both_brokers), (COMMIT, _both_brokers), (EMBEDDED, _embedded)):
        if options.wants(scenario):
            result = measure(scenario, options, console)
            figures.show(console, result)
            results.append(result)
    return results


def _against(name: str, options: Options, console: Console) -> Iterator[figures.Result]:
    scenarios = [scenario for scenario in SCENARIOS if options.wants(scenario)]
    if not scenarios:
        return
    try:
        with brokers.running(name) as broker:
            _warm_up(broker, options.records)
            for scenario in scenarios:
                yield _clients(scenario, broker, options, console)
    except NoBroker as error:
        console.print(f"{brokers.NAMES[name]} is not measured: {error}", style="yellow")


def _warm_up(broker: Broker, records: int) -> None:
    """What a virtual machine compiles, and what anybody does at first, belongs to no client's figures."""
    with brokers.topic(broker, _name()) as topic:
        _measure("benchmarks.produce", "ottla", broker, topic, records, 1000)
        _measure("benchmarks.consume", "ottla", broker, topic, records, 1000)


def _clients(scenario: Scenario, broker: Broker, options: Options, console: Console) -> figures.Result:
    result = figures.Result(scenario.name, brokers.NAMES[broker.name], scenario.baseline)
    records = max(1000, int(options.records * scenario.share))
    present = []
    for client in options.choose(scenario.clients):
        reason = _missing(client)
        if reason is None:
            present.append(client)
            result.runs[client] = []
        else:
            result.missing[client] = reason
    with ExitStack() as stack:
        filled = None
        if scenario.fill is not None:
            filled = stack.enter_context(brokers.topic(broker, _name()))
            scenario.fill(broker, filled, records, scenario.value_bytes)
        for number in range(scenario.rounds(options)):
            for client in _rotated(present, number):
                _say(console, f"{scenario.name}, round {number + 1}: {client}")
                with _topic(broker, filled) as topic:
                    run = _measure(scenario.module, client, broker, topic, records, scenario.value_bytes)
                result.runs[client].append(run)
    return result


def _both_brokers(scenario: Scenario, options: Options, console: Console) -> figures.Result:
    """Both brokers are up, and take turns: the ratio is then that of neighbouring minutes."""
    apache, ours = brokers.NAMES["apache"], brokers.NAMES["ours"]
    pairs = {f"{ours}, {client}": f"{apache}, {client}" for client in scenario.clients}
    result = figures.Result(scenario.name, "as named", f"{apache}, same client", pairs=pairs)
    records = max(1000, int(options.records * scenario.share))
    try:
        with brokers.running("apache") as theirs, brokers.running("ours") as mine:
            _warm_up(theirs, options.records)
            _warm_up(mine, options.records)
            for number in range(scenario.rounds(options)):
                for client in scenario.clients:
                    for broker in _rotated([theirs, mine], number):
                        label = f"{brokers.NAMES[broker.name]}, {client}"
                        _say(console, f"{scenario.name}, round {number + 1}: {label}")
                        with brokers.topic(broker, _name()) as topic:
                            run = _measure(scenario.module, client, broker, topic, records, scenario.value_bytes)
                        result.runs.setdefault(label, []).append(run)
    except NoBroker as error:
        result.missing[apache] = str(error)
    return result


def _embedded(scenario: Scenario, options: Options, console: Console) -> figures.Result:
    """Our embedded broker, and what it takes to start the brokers as programs."""
    result = figures.Result(scenario.name, "embedded", "")
    nobody = Broker("", "none:0", 0, 0.0, 0.0)
    for number in range(options.rounds):
        for client in scenario.clients:
            _say(console, f"{scenario.name}, round {number + 1}: {client}")
            result.runs.setdefault(client, []).append(_measure(scenario.module, client, nobody, "none", 1, 0))
        for name in ("ours", "apache") if options.broker == "both" else (options.broker,):
            label = f"{brokers.NAMES[name]}, program"
            if label in result.missing:
                continue
            _say(console, f"{scenario.name}, round {number + 1}: {label}")
            try:
                with brokers.running(name) as broker:
                    figures_of_start = {"seconds": broker.start_seconds, "megabytes": broker.megabytes}
                result.runs.setdefault(label, []).append(figures_of_start)
            except NoBroker as error:
                result.missing[label] = str(error)
    return result


def _measure(module: str, client: str, broker: Broker, topic: str, records: int, value_bytes: int) -> dict[str, float]:
    """One measured run, in a fresh interpreter."""
    command = [sys.executable, "-m", module, "--client", client, "--bootstrap-servers", broker.bootstrap_servers]
    command += ["--topic", topic, "--records", str(records), "--value-bytes", str(value_bytes)]
    command += ["--broker-pid", str(broker.pid)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS + 60, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"{module}, {client}: not done after {error.timeout:.0f} s") from error
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(lines) != 1:
        raise RunFailed(f"{module}, {client}: {(done.stdout + done.stderr)[-2000:]}")
    found: dict[str, float] = json.loads(lines[0])
    return found


@contextmanager
def _topic(broker: Broker, filled: str | None) -> Iterator[str]:
    if filled is not None:
        yield filled
    else:
        with brokers.topic(broker, _name()) as name:
            yield name


def _missing(client: str) -> str | None:
    package = _PACKAGES.get(client.partition(",")[0])
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return f"the Python package {package} is not installed (make peers)"


def _rotated(items: Sequence[T], by: int) -> list[T]:
    by %= len(items) or 1
    return [*items[by:], *items[:by]]


def _name() -> str:
    return f"bench-{uuid.uuid4().hex[:12]}"


def _say(console: Console, what: str) -> None:
    if console.is_terminal:
        console.print(what, style="dim")


def parse(arguments: Sequence[str] | None = None) -> tuple[Options, Path]:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours beside its peers, in one run.")
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS, help="how often each client runs (%(default)s)")
    parser.add_argument("--records", type=int, default=DEFAULT_RECORDS, help="per run; what is slow takes fewer")
    parser.add_argument("--broker", choices=("ours", "apache", "both"), default="both")
    parser.add_argument("--only", default=",".join(GROUPS), help="some of: %(default)s")
    parser.add_argument("--clients", default="", help="beginnings of names: ottla,confluent; default: all")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench" / "results.json")
    given = parser.parse_args(arguments)
    only = tuple(given.only.split(","))
    unknown = set(only) - set(GROUPS)
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(GROUPS)}")
    if given.rounds < 1 or given.records < 1000:
        parser.error("--rounds must be at least 1, and --records at least 1000")
    clients = tuple(filter(None, given.clients.split(",")))
    return Options(given.rounds, given.records, given.broker, only, clients), given.output


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print tables, write JSON."""
    options, output = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    load = os.getloadavg()[0]
    console.print(f"{os.cpu_count()} CPUs, load {load:.1f}; {options.rounds} rounds of {options.records:,} records")
    try:
        results = measure_all(options, console)
    except RunFailed as error:
        raise SystemExit(str(error)) from error
    figures.write(output, results, rounds=options.rounds, records=options.records, load_before=load)
    console.print(f"all figures: {output}")
