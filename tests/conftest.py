"""What every test shares: the Hypothesis profile and the table of peers."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from support.peers import PeerTable

# The same examples on every run: a red build can be repeated. `make soak` looks for new ones.
settings.register_profile("ottla", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("soak", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile("ottla")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(PeerTable(), "ottla-peers")
