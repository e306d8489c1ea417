"""What every test shares: the Hypothesis profile, the table of peers, the clusters of the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from support.peers import PeerTable

if TYPE_CHECKING:
    from support.clusters import Clusters

# The same examples on every run: a red build can be repeated. `make soak` looks for new ones.
settings.register_profile("ottla", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("soak", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile("ottla")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(PeerTable(), "ottla-peers")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from support.scheduling import ByClusterAndModule  # here, because pytest-xdist is not needed to run a test

    return ByClusterAndModule(config, log)


@pytest.fixture(scope="session", autouse=True)
def locks_apart_from_the_users(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Transactional ids are locks in the user's folder for state: not in that of whoever runs the tests."""
    os.environ["OTTLA_STATE_DIR"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    """Ours and Apache Kafka in its versions; `support.clusters` says how a suite takes one."""
    from support.clusters import Clusters  # here, because it imports the client, which most tests do without

    held = Clusters()
    yield held
    held.close()
