"""KIP-227: what a session remembers, tells and forgets, and which session gives way to which."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ottla_broker.replication.fetch_sessions import EVICTION_MS, FetchResult, FetchSessions, FetchTarget
from ottla_wire.schema import Uuid

SESSION_ID_NOT_FOUND, INVALID_SESSION_EPOCH, SESSION_TOPIC_ID_ERROR = 70, 71, 106


def target(topic: str = "t", index: int = 0, offset: int = 0) -> FetchTarget:
    return FetchTarget(topic, Uuid.ZERO, index, fetch_offset=offset, max_bytes=1000)


def nothing_new(high_watermark: int = 0) -> FetchResult:
    return FetchResult(0, high_watermark, 0, 0)


def with_records(high_watermark: int = 0) -> FetchResult:
    return FetchResult(100, high_watermark, 0, 0)


class Bench:
    def __init__(self, max_sessions: int = 10) -> None:
        self.sessions = FetchSessions(max_sessions, random.Random(1))
        self.now_ms = 1_000

    def begin(self, session_id: int, epoch: int, *targets: FetchTarget, **options: Any) -> Any:
        options = {"forgotten": (), "uses_topic_ids": False, "privileged": False} | options
        return self.sessions.begin(session_id=session_id, epoch=epoch, targets=targets, now_ms=self.now_ms, **options)

    def open(self, *targets: FetchTarget, **options: Any) -> int:
        """A full request; returns the session id."""
        context = self.begin(0, 0, *targets, **options)
        _, session_id, _ = context.finish({t: nothing_new() for t in context.targets}, self.now_ms)
        return int(session_id)

    def fetch(self, session_id: int, epoch: int, results: Any = nothing_new, **options: Any) -> Any:
        """An incremental request without changes; returns (error, partitions told)."""
        context = self.begin(session_id, epoch, **options)
        found = {
            t: results(t) if callable(results) and results is not nothing_new else nothing_new()
            for t in context.targets
        }
        error, _, told = context.finish(found, self.now_ms)
        return error, [(t.topic, t.index) for t in told]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_full_request_tells_all_partitions_and_opens_a_session_at_epoch_1(bench: Bench) -> None:
    context = bench.begin(0, 0, target(index=0), target(index=1))
    error, session_id, told = context.finish({t: nothing_new() for t in context.targets}, 1_000)
    assert (error, len(told)) == (0, 2)
    assert session_id > 0
    assert next(iter(bench.sessions)).epoch == 1


def test_epoch_minus_1_closes_the_session_and_opens_none(bench: Bench) -> None:
    session_id = bench.open(target())
    context = bench.begin(session_id, -1, target())
    error, new_id, told = context.finish({t: nothing_new() for t in context.targets}, 1_000)
    assert (error, new_id, len(told)) == (0, 0, 1)
    assert len(bench.sessions) == 0


def test_a_full_request_that_names_a_session_replaces_it(bench: Bench) -> None:
    old = bench.open(target())
    context = bench.begin(old, 0, target())
    _, new, _ = context.finish({t: nothing_new() for t in context.targets}, 1_000)
    assert new != old
    assert [session.id for session in bench.sessions] == [new]


def test_an_unknown_session_is_an_error(bench: Bench) -> None:
    assert bench.fetch(12345, 1) == (SESSION_ID_NOT_FOUND, [])


def test_a_wrong_epoch_is_an_error_and_the_session_lives_on(bench: Bench) -> None:
    session_id = bench.open(target())
    assert bench.fetch(session_id, 2) == (INVALID_SESSION_EPOCH, [])
    assert bench.fetch(session_id, 1) == (0, [])
    assert bench.fetch(session_id, 1) == (INVALID_SESSION_EPOCH, [])
    assert bench.fetch(session_id, 2) == (0, [])


def test_a_session_of_names_cannot_go_on_with_ids(bench: Bench) -> None:
    session_id = bench.open(target())
    assert bench.fetch(session_id, 1, uses_topic_ids=True) == (SESSION_TOPIC_ID_ERROR, [])


def test_the_epoch_wraps_to_1(bench: Bench) -> None:
    session_id = bench.open(target())
    next(iter(bench.sessions)).epoch = 2**31 - 1
    assert bench.fetch(session_id, 2**31 - 1) == (0, [])
    assert bench.fetch(session_id, 1) == (0, [])


def test_an_incremental_answer_tells_only_what_is_new(bench: Bench) -> None:
    session_id = bench.open(target(index=0), target(index=1), target(index=2))

    def results(t: FetchTarget) -> FetchResult:
        return [nothing_new(), nothing_new(high_watermark=5), FetchResult(0, 0, 3, 0)][t.index]

    assert bench.fetch(session_id, 1, results) == (0, [("t", 1), ("t", 2)])
    assert bench.fetch(session_id, 2, results) == (0, [])


def test_a_divergence_is_told_each_time(bench: Bench) -> None:
    session_id = bench.open(target())
    for epoch in (1, 2):
        assert bench.fetch(session_id, epoch, lambda t: FetchResult(0, 0, 0, 0, True)) == (0, [("t", 0)])


def test_an_error_is_told_each_time_and_so_is_the_recovery(bench: Bench) -> None:
    session_id = bench.open(target())
    for epoch in (1, 2):
        assert bench.fetch(session_id, epoch, lambda t: FetchResult(0, 0, 0, 6)) == (0, [("t", 0)])
    # The high watermark is what it was before the error: it is told all the same.
    assert bench.fetch(session_id, 3) == (0, [("t", 0)])
    assert bench.fetch(session_id, 4) == (0, [])


def test_partitions_with_records_move_to_the_end(bench: Bench) -> None:
    session_id = bench.open(target(index=0), target(index=1), target(index=2))
    bench.fetch(session_id, 1, lambda t: with_records() if t.index == 0 else nothing_new())
    context = bench.begin(session_id, 2)
    assert [t.index for t in context.targets] == [1, 2, 0]


def test_a_request_changes_adds_and_forgets_partitions(bench: Bench) -> None:
    session_id = bench.open(target(index=0), target(index=1))
    context = bench.begin(session_id, 1, target(index=1, offset=7), target(index=2), forgotten=[("t", 0)])
    assert [(t.index, t.fetch_offset) for t in context.targets] == [(1, 7), (2, 0)]


def test_a_session_without_partitions_is_closed(bench: Bench) -> None:
    session_id = bench.open(target())
    context = bench.begin(session_id, 1, forgotten=[("t", 0)])
    assert context.finish({}, 1_000) == (0, 0, [])
    assert bench.fetch(session_id, 2) == (SESSION_ID_NOT_FOUND, [])


def test_a_fetch_that_was_overtaken_while_parked_is_refused(bench: Bench) -> None:
    session_id = bench.open(target())
    parked = bench.begin(session_id, 1)
    bench.fetch(session_id, 2)
    error, _, told = parked.finish({t: with_records() for t in parked.targets}, 1_000)
    assert (error, told) == (INVALID_SESSION_EPOCH, [])


class TestEviction:
    def test_without_room_the_answer_has_no_session(self) -> None:
        bench = Bench(max_sessions=1)
        bench.open(target())
        assert bench.open(target()) == 0

    def test_an_idle_session_gives_way(self) -> None:
        bench = Bench(max_sessions=1)
        old = bench.open(target())
        bench.now_ms += EVICTION_MS
        assert bench.open(target()) == 0
        bench.now_ms += 1
        assert bench.open(target()) != 0
        assert bench.fetch(old, 1) == (SESSION_ID_NOT_FOUND, [])

    def test_a_use_keeps_a_session(self) -> None:
        bench = Bench(max_sessions=1)
        session_id = bench.open(target(), target(index=1), target(index=2))
        bench.now_ms += EVICTION_MS
        bench.fetch(session_id, 1)
        bench.now_ms += 1
        assert bench.open(target()) == 0

    def test_the_least_recently_used_goes_first(self) -> None:
        bench = Bench(max_sessions=2)
        first, second = bench.open(target()), bench.open(target())
        bench.now_ms += 1
        bench.fetch(first, 1)
        bench.now_ms += EVICTION_MS
        bench.open(target())
        assert {session.id for session in bench.sessions} >= {first}
        assert second not in {session.id for session in bench.sessions}

    def test_an_old_session_in_use_gives_way_to_a_larger_one_only(self) -> None:
        bench = Bench(max_sessions=1)
        session_id = bench.open(target(), target(index=1))
        for epoch in (1, 2):
            bench.now_ms += EVICTION_MS // 2 + 1
            bench.fetch(session_id, epoch)
        assert bench.open(target()) == 0
        assert bench.open(target(), target(index=1), target(index=2)) != 0

    def test_a_follower_takes_the_place_of_a_young_consumer(self) -> None:
        bench = Bench(max_sessions=1)
        bench.open(target())
        assert bench.open(target(), privileged=True) != 0
        assert bench.open(target(), target(index=1)) == 0

    def test_of_1001_sessions_one_has_to_wait(self) -> None:
        bench = Bench(max_sessions=1000)
        ids = [bench.open(target()) for _ in range(1001)]
        assert ids.count(0) == 1
        assert len(set(ids)) == 1001
