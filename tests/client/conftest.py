"""One broker of our own for all client tests that need a live one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from ottla.client import AdminClient
from ottla.client.admin import NewTopic
from ottla.embedded import EmbeddedKafka

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def broker() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as kafka:
        yield kafka


@pytest.fixture(scope="session")
def bootstrap_servers(broker: EmbeddedKafka) -> str:
    return broker.bootstrap_servers


@pytest.fixture(scope="session")
def admin(bootstrap_servers: str) -> Iterator[AdminClient]:
    with AdminClient(bootstrap_servers=bootstrap_servers) as client:
        yield client


@pytest.fixture
def new_topic(admin: AdminClient) -> Callable[..., str]:
    """Makes a topic with a name of its own."""

    def make(partitions: int = 1, **configs: object) -> str:
        name = f"topic-{next(_numbers)}"
        settings = {key.replace("_", "."): str(value) for key, value in configs.items()}
        admin.create_topics([NewTopic(name, partitions, 1, settings)])
        return name

    return make
