"""The pytest plugin: `kafka`, a broker for the session, and `kafka_topic`, a topic nobody else uses.

`--ottla-broker=embedded|apache|HOST:PORT` chooses where the same tests run: on the embedded broker (the default), on
Apache Kafka in a container (`apache`; needs Docker and testcontainers), or on a Kafka that runs already.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from typing import Protocol

    class Kafka(Protocol):
        """What the fixture `kafka` gives."""

        @property
        def bootstrap_servers(self) -> str:
            """`host:port`, for any client."""


_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--ottla-broker`."""
    parser.getgroup("ottla").addoption(
        "--ottla-broker",
        default="embedded",
        metavar="embedded|apache|HOST:PORT",
        help="where tests that use the fixture `kafka` run (default: embedded)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what `--ottla-broker` cannot be before any test runs."""
    where: str = config.getoption("--ottla-broker")
    host, _, port = where.rpartition(":")
    if where not in ("embedded", "apache") and not (host and port.isdecimal()):
        raise pytest.UsageError(f"--ottla-broker={where}: choose embedded, apache or HOST:PORT")


class _Running:
    """A Kafka that somebody else runs."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[Kafka]:
    """A broker for the whole session."""
    where: str = request.config.getoption("--ottla-broker")
    if where == "embedded":
        from ottla.embedded import EmbeddedKafka

        with EmbeddedKafka() as broker:
            yield broker
    elif where == "apache":
        with _apache_in_a_container() as running:
            yield running
    else:
        yield _Running(where)


@contextlib.contextmanager
def _apache_in_a_container() -> Iterator[_Running]:
    try:
        from testcontainers.community.kafka import KafkaContainer
    except ImportError:
        pytest.fail("--ottla-broker=apache needs testcontainers: pip install testcontainers", pytrace=False)
    try:
        container = KafkaContainer().with_kraft()
    except Exception as error:  # noqa: BLE001 - Docker's own errors, of a package that need not be there
        pytest.fail(f"--ottla-broker=apache needs Docker, which does not answer: {error}", pytrace=False)
    with container:
        yield _Running(container.get_bootstrap_server())


@pytest.fixture
def kafka_topic(request: pytest.FixtureRequest) -> str:
    """The name of a topic that no other test uses; it is created at its first use."""
    return f"{request.node.name.partition('[')[0]}-{next(_numbers)}"
