"""How a session's clusters share the machine: a version of Apache Kafka gives way to the next."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from support import clusters
from support.clusters import Clusters


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to two clusters that are only names."""
    events: list[str] = []

    def cluster_named(name: str) -> clusters.Starter:
        @contextlib.contextmanager
        def start() -> Iterator[str]:
            events.append(f"{name} starts")
            yield name
            events.append(f"{name} stops")

        return start

    monkeypatch.setattr(clusters, "CLUSTERS", {name: cluster_named(name) for name in ("one", "two")})
    return events


def test_a_cluster_starts_with_its_first_lease_and_serves_the_next_one(happened: list[str]) -> None:
    held = Clusters()
    for _ in range(2):
        with held.lease("one") as leased:
            assert leased == "one"
    assert happened == ["one starts"]


def test_one_that_nobody_has_on_lease_stops_before_another_starts(happened: list[str]) -> None:
    held = Clusters()
    for name in ("one", "two"):
        with held.lease(name):
            pass
    assert happened == ["one starts", "one stops", "two starts"]


def test_one_on_lease_stays(happened: list[str]) -> None:
    held = Clusters()
    with held.lease("one"), held.lease("two"):
        assert happened == ["one starts", "two starts"]


def test_at_the_end_all_are_stopped(happened: list[str]) -> None:
    held = Clusters()
    with held.lease("one"), held.lease("two"):
        pass
    held.close()
    assert happened[2:] == ["one stops", "two stops"]
