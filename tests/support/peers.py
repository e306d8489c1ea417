"""Which foreign programs a test needs, and what happens where one is missing.

A test says `@pytest.mark.peer("java", "apache-4.3")`; "apache" is any Apache Kafka: at an address, from Maven, from a
container. A missing peer skips it, unless `OTTLA_REQUIRE` names the peer:
then it fails. The run ends with a table of peers: tests run, tests skipped and why.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache, partial

import pytest

from support import apache_kafka, postgres

APACHE_ADDRESS = "OTTLA_APACHE_KAFKA"  # HOST:PORT of an Apache Kafka that runs already
APACHE_IMAGE = "OTTLA_APACHE_IMAGE"  # the image that testcontainers starts


def _module(name: str) -> str | None:
    return None if importlib.util.find_spec(name) else f"the Python package {name} is not installed"


def _program(name: str) -> str | None:
    return None if shutil.which(name) else f"{name} is not on the PATH"


def docker_is_there() -> bool:
    """Whether containers can be started."""
    return shutil.which("docker") is not None and _module("testcontainers") is None


def _any_apache() -> str | None:
    if os.environ.get(APACHE_ADDRESS):
        return None
    reason = missing(f"apache-{apache_kafka.DEFAULT}")
    if reason is None or docker_is_there():
        return None
    return f"{reason}; there is no Docker either, and {APACHE_ADDRESS} names no address"


def _release(version: str) -> str | None:
    try:
        apache_kafka.install(version)
    except apache_kafka.KafkaNotAvailable as error:
        return str(error)
    return None


def _jars() -> str | None:
    from support.kafka_schemas import jars  # it imports this module

    return None if jars() else "there is no kafka-clients jar here: make peers gets them"


_CHECKS: dict[str, Callable[[], str | None]] = {
    "apache": _any_apache,
    "java": lambda: _program("java"),
    "kafka-jars": _jars,
    "kcat": lambda: _program("kcat"),
    "confluent": lambda: _module("confluent_kafka"),
    "aiokafka": lambda: _module("aiokafka"),
    "kafka-python": lambda: _module("kafka"),
    "postgres": postgres.missing,
    "faststream": lambda: _module("faststream"),
    **{f"apache-{short}": partial(_release, version) for short, version in apache_kafka.VERSIONS.items()},
}


@cache
def missing(peer: str) -> str | None:
    """Why the peer cannot be used here, or None if it can."""
    return _CHECKS[peer]()


def required() -> set[str]:
    return {peer for peer in os.environ.get("OTTLA_REQUIRE", "").replace(" ", "").split(",") if peer}


_RUN, _SKIPPED = "peer was there", "peer was missing"


class PeerTable:
    """A pytest plugin: skips or fails tests whose peers are missing, and prints the table at the end.

    Tests may run in other processes than the one that prints: what is counted comes with their reports.
    """

    def __init__(self) -> None:
        self._counted: dict[str, Counter[str]] = {_RUN: Counter(), _SKIPPED: Counter()}

    def pytest_sessionstart(self) -> None:
        if unknown := sorted(required() - _CHECKS.keys()):
            raise pytest.UsageError(
                f"OTTLA_REQUIRE names {', '.join(unknown)}; the peers are {', '.join(sorted(_CHECKS))}"
            )

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        for peer in [name for mark in item.iter_markers("peer") for name in mark.args]:
            reason = missing(peer)
            if reason is None:
                item.user_properties.append((_RUN, peer))
                continue
            item.user_properties.append((_SKIPPED, peer))
            if peer in required():
                pytest.fail(f"{peer} is required here (OTTLA_REQUIRE) and missing: {reason}", pytrace=False)
            pytest.skip(f"{peer}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "setup":
            for name, value in report.user_properties:
                if name in self._counted:
                    self._counted[name][str(value)] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        run, skipped = self._counted[_RUN], self._counted[_SKIPPED]
        peers = sorted(run.keys() | skipped.keys())
        if not peers:
            return
        terminalreporter.section("peers")
        for peer in peers:
            why = f"  skipped {skipped[peer]}: {missing(peer)}" if skipped[peer] else ""
            terminalreporter.write_line(f"{peer:<14} {run[peer]:>4} tests run{why}")
