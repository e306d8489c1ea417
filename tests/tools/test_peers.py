"""The table of peers: who is skipped, who fails, and what the run says of them at its end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from support import peers
from support.peers import PeerTable


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> PeerTable:
    """A table of two peers, of which one is there."""
    monkeypatch.setattr(peers, "_CHECKS", {"here": lambda: None, "gone": lambda: "it is not installed"})
    monkeypatch.delenv("OTTLA_REQUIRE", raising=False)
    return PeerTable()


@pytest.fixture(autouse=True)
def nothing_remembered() -> Any:
    peers.missing.cache_clear()
    yield
    peers.missing.cache_clear()


def needs(*names: str) -> Any:
    return SimpleNamespace(iter_markers=lambda _: [SimpleNamespace(args=names)], user_properties=[])


def report(test: Any, when: str = "setup") -> Any:
    return SimpleNamespace(when=when, user_properties=test.user_properties)


def summary(table: PeerTable) -> list[str]:
    lines: list[str] = []
    table.pytest_terminal_summary(SimpleNamespace(section=lines.append, write_line=lines.append))  # type: ignore[arg-type]
    return lines


def test_a_missing_peer_skips_its_test_and_the_table_says_why(table: PeerTable) -> None:
    ran, skipped = needs("here"), needs("here", "gone")
    table.pytest_runtest_setup(ran)
    with pytest.raises(pytest.skip.Exception, match="gone: it is not installed"):
        table.pytest_runtest_setup(skipped)
    for test in (ran, skipped):
        for when in ("setup", "call", "teardown"):
            table.pytest_runtest_logreport(report(test, when))
    _, gone, here = summary(table)
    assert gone.split() == ["gone", "0", "tests", "run", "skipped", "1:", "it", "is", "not", "installed"]
    assert here.split() == ["here", "2", "tests", "run"]


def test_what_ran_in_other_processes_is_in_the_table(table: PeerTable) -> None:
    """Each counts nothing that the one which prints has not seen in a report."""
    elsewhere, test = PeerTable(), needs("here")
    elsewhere.pytest_runtest_setup(test)
    assert summary(table) == []
    table.pytest_runtest_logreport(report(test))
    assert summary(table)[1].split() == ["here", "1", "tests", "run"]


def test_a_required_peer_that_is_missing_fails_its_test(table: PeerTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTTLA_REQUIRE", "here, gone")
    table.pytest_sessionstart()
    with pytest.raises(pytest.fail.Exception, match="gone is required here"):
        table.pytest_runtest_setup(needs("gone"))


def test_a_required_peer_that_does_not_exist_ends_the_run(table: PeerTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTTLA_REQUIRE", "here,hier")
    with pytest.raises(pytest.UsageError, match="OTTLA_REQUIRE names hier; the peers are gone, here"):
        table.pytest_sessionstart()


def test_a_run_without_peers_has_no_table(table: PeerTable) -> None:
    assert summary(table) == []
