"""The coordinator runtime with the smallest shard there is: a list of what was replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ottla_broker.coordinator.runtime import (
    COALESCED_BYTES,
    LOAD_STEP_RECORDS,
    CoordinatorRecord,
    CoordinatorRuntime,
    Decision,
    Outbox,
    Verb,
)
from ottla_broker.coordinator.timers import Timers
from ottla_broker.pending import Pending
from ottla_wire import errors
from ottla_wire.records import build_batch, end_transaction_marker
from support.groups import FakeCoordinatorLog


class ListShard:
    """Keeps what it was told."""

    def __init__(self, partition: int, timers: Timers[Verb[Any, Any]], outbox: Outbox) -> None:
        self.partition = partition
        self.timers = timers
        self.outbox = outbox
        self.replayed: list[tuple[int, bytes]] = []
        self.told: list[Any] = []
        self.high_watermark = 0

    def replay(self, offset: int, record: CoordinatorRecord, producer_id: int, producer_epoch: int) -> None:
        self.replayed.append((offset, record.key))
        if producer_id != -1:
            self.told.append(("transactional", producer_id, producer_epoch))

    def replay_end_marker(self, offset: int, producer_id: int, producer_epoch: int, *, committed: bool) -> None:
        self.told.append(("marker", offset, producer_id, producer_epoch, committed))

    def high_watermark_moved(self, high_watermark: int) -> None:
        self.high_watermark = high_watermark

    def loaded(self, now_ms: int) -> None:
        self.told.append(("loaded", now_ms))

    def unloaded(self, error: errors.KafkaError) -> None:
        self.told.append(("unloaded", type(error).__name__))


class Bench:
    """A runtime of one partition."""

    def __init__(self) -> None:
        self.log = FakeCoordinatorLog()
        self.shards: list[ListShard] = []
        self.runtime: CoordinatorRuntime[ListShard] = CoordinatorRuntime(self.log, self._make)
        self.runtime.load(0, 1, 0)

    def _make(self, partition: int, timers: Timers[Verb[Any, Any]], outbox: Outbox) -> ListShard:
        self.shards.append(ListShard(partition, timers, outbox))
        return self.shards[-1]

    @property
    def shard(self) -> ListShard:
        return self.shards[-1]

    def write(self, key: str, now_ms: int = 0, **hooks: Any) -> Pending[str]:
        return self.runtime.run(0, writing(key, **hooks), now_ms)

    def replicate(self, now_ms: int = 0) -> None:
        self.runtime.high_watermark_moved(0, self.log.replicate(0), now_ms)


def writing(key: str, **hooks: Any) -> Callable[[ListShard, int], Decision[str]]:
    def verb(shard: ListShard, now_ms: int) -> Decision[str]:
        return Decision(f"wrote {key}", [CoordinatorRecord(key.encode(), b"")], **hooks)

    return verb


def asking(shard: ListShard, now_ms: int) -> Decision[str]:
    return Decision("asked")


def failure(pending: Pending[Any]) -> str:
    return type(pending.error()).__name__


def test_a_decision_is_appended_replayed_and_answered() -> None:
    bench = Bench()
    assert bench.write("a").result() == "wrote a"
    assert bench.write("b").result() == "wrote b"
    assert bench.shard.replayed == [(0, b"a"), (1, b"b")]
    assert [record.key for record in bench.log.records(0)] == [b"a", b"b"]


def test_the_answer_waits_for_the_high_watermark() -> None:
    bench = Bench()
    bench.log.replicating = False
    answer = bench.write("a")
    assert bench.shard.replayed == [(0, b"a")], "state moves on at the append"
    assert not answer.done()
    bench.replicate()
    assert answer.result() == "wrote a"
    assert bench.shard.high_watermark == 1


def test_an_answer_without_records_waits_for_what_it_may_be_based_on() -> None:
    bench = Bench()
    assert bench.runtime.run(0, asking, 0).result() == "asked"
    bench.log.replicating = False
    written = bench.write("a")
    asked = bench.runtime.run(0, asking, 0)
    assert not asked.done()
    bench.replicate()
    assert (written.result(), asked.result()) == ("wrote a", "asked")


def test_answers_leave_in_the_order_of_their_requests() -> None:
    bench = Bench()
    bench.log.replicating = False
    left: list[str] = []
    for key in "abc":
        bench.write(key).on_done(lambda pending: left.append(pending.result()))
    bench.runtime.high_watermark_moved(0, bench.log.replicate(0, 2), 0)
    assert left == ["wrote a", "wrote b"]
    bench.replicate()
    assert left == ["wrote a", "wrote b", "wrote c"]


def test_a_failed_append_changes_nothing() -> None:
    bench = Bench()
    calls: list[str] = []
    bench.log.failure = errors.NotLeaderOrFollower()
    answer = bench.write(
        "a",
        applied=lambda: calls.append("applied"),
        refused=lambda error, now: calls.append(f"refused {type(error).__name__} {now}"),
        committed=lambda now: calls.append("committed"),
        timed_out=lambda error, now: calls.append("timed out"),
        now_ms=7,
    )
    assert failure(answer) == "NotCoordinator"
    assert bench.shard.replayed == []
    assert calls == ["refused NotCoordinator 7"]


@pytest.mark.parametrize(
    ("append_error", "client_error"),
    [
        (errors.UnknownTopicOrPartition, "CoordinatorNotAvailable"),
        (errors.NotEnoughReplicas, "CoordinatorNotAvailable"),
        (errors.NotEnoughReplicasAfterAppend, "CoordinatorNotAvailable"),
        (errors.RequestTimedOut, "CoordinatorNotAvailable"),
        (errors.NotLeaderOrFollower, "NotCoordinator"),
        (errors.KafkaStorageError, "NotCoordinator"),
        (OSError, "NotCoordinator"),
        (errors.MessageTooLarge, "UnknownServerError"),
        (errors.RecordListTooLarge, "UnknownServerError"),
        (errors.InvalidProducerEpoch, "InvalidProducerEpoch"),
    ],
)
def test_errors_of_an_append_are_told_as_errors_of_a_coordinator(
    append_error: type[Exception], client_error: str
) -> None:
    bench = Bench()
    bench.log.failure = append_error()
    assert failure(bench.write("a")) == client_error


def test_hooks_run_in_the_order_applied_then_committed() -> None:
    bench = Bench()
    bench.log.replicating = False
    calls: list[Any] = []
    bench.write("a", applied=lambda: calls.append(list(bench.shard.replayed)), committed=lambda now: calls.append(now))
    assert calls == [[(0, b"a")]]
    bench.replicate(now_ms=9)
    assert calls == [[(0, b"a")], 9]


def test_an_answer_does_not_wait_for_ever() -> None:
    bench = Bench()
    bench.log.replicating = False
    calls: list[str] = []
    answer = bench.write("a", timed_out=lambda error, now: calls.append(f"{type(error).__name__} {now}"))
    assert bench.runtime.deadline_ms() == 5_000
    bench.runtime.tick(4_999)
    assert not answer.done()
    bench.runtime.tick(5_000)
    assert failure(answer) == "CoordinatorNotAvailable"
    assert calls == ["CoordinatorNotAvailable 5000"]
    assert bench.runtime.deadline_ms() is None
    bench.replicate()
    assert bench.shard.replayed == [(0, b"a")], "a time-out takes nothing back"


def test_a_verb_that_raises_answers_with_that_error_and_writes_nothing() -> None:
    bench = Bench()

    def refuse(shard: ListShard, now_ms: int) -> Decision[str]:
        raise errors.UnknownMemberId

    assert failure(bench.runtime.run(0, refuse, 0)) == "UnknownMemberId"
    assert bench.log.appends == 0


def test_coalesced_decisions_are_appended_as_one_batch() -> None:
    bench = Bench()
    answers = [bench.runtime.run_coalesced(0, writing(key), 3) for key in "abc"]
    assert bench.log.appends == 0
    assert not any(answer.done() for answer in answers)
    assert bench.runtime.deadline_ms() == 3
    bench.runtime.flush(3)
    assert bench.log.appends == 1
    assert [answer.result() for answer in answers] == ["wrote a", "wrote b", "wrote c"]
    assert bench.shard.replayed == [(0, b"a"), (1, b"b"), (2, b"c")]
    assert bench.runtime.deadline_ms() is None


def test_a_tick_flushes_what_nobody_flushed() -> None:
    bench = Bench()
    answer = bench.runtime.run_coalesced(0, writing("a"), 0)
    bench.runtime.tick(0)
    assert answer.result() == "wrote a"


def test_a_verb_sees_what_was_coalesced_before_it() -> None:
    bench = Bench()
    bench.runtime.run_coalesced(0, writing("a"), 0)
    seen: list[Any] = []

    def look(shard: ListShard, now_ms: int) -> Decision[str]:
        seen.append(list(shard.replayed))
        return Decision("looked")

    bench.runtime.run(0, look, 0)
    assert seen == [[(0, b"a")]]


def test_coalesced_decisions_fail_together() -> None:
    bench = Bench()
    answers = [bench.runtime.run_coalesced(0, writing(key), 0) for key in "ab"]
    bench.log.failure = errors.NotEnoughReplicas()
    bench.runtime.flush(0)
    assert [failure(answer) for answer in answers] == ["CoordinatorNotAvailable"] * 2
    assert bench.shard.replayed == []


def test_coalesced_records_do_not_outgrow_a_batch() -> None:
    bench = Bench()
    big = "x" * (COALESCED_BYTES // 2)
    for _ in range(2):
        bench.runtime.run_coalesced(0, writing(big), 0)
    assert bench.log.appends == 1, "the second one filled the batch"


def test_a_decision_that_need_not_be_atomic_is_cut() -> None:
    bench = Bench()
    records = [CoordinatorRecord(bytes(300_000), None) for _ in range(5)]
    bench.runtime.run(0, lambda shard, now_ms: Decision("done", records, atomic=False), 0)
    assert bench.log.appends == 3
    assert len(bench.shard.replayed) == 5


def test_a_decision_that_must_be_atomic_is_not_cut() -> None:
    bench = Bench()
    records = [CoordinatorRecord(bytes(300_000), None) for _ in range(5)]
    bench.runtime.run(0, lambda shard, now_ms: Decision("done", records), 0)
    assert bench.log.appends == 1


def test_whoever_is_woken_by_an_answer_may_ask_again() -> None:
    bench = Bench()
    bench.log.replicating = False
    again: list[Pending[str]] = []
    bench.write("a").on_done(lambda _: again.append(bench.write("b")))
    bench.replicate()
    bench.replicate()
    assert again[0].result() == "wrote b"


def test_a_parked_answer_is_the_machines_own() -> None:
    bench = Bench()
    parked: Pending[str] = Pending()
    answer = bench.runtime.run(0, lambda shard, now_ms: Decision(parked), 0)
    assert not answer.done()

    def release(shard: ListShard, now_ms: int) -> Decision[str]:
        shard.outbox.complete(parked, "released")
        assert not parked.done(), "answers leave when the machine is through"
        return Decision("done")

    bench.runtime.run(0, release, 0)
    assert answer.result() == "released"


def test_a_timer_is_a_verb() -> None:
    bench = Bench()
    bench.shard.timers.schedule((0, "alarm"), 10, writing("rang"))
    assert bench.runtime.deadline_ms() == 10
    bench.runtime.tick(9)
    assert bench.shard.replayed == []
    bench.runtime.tick(10)
    assert bench.shard.replayed == [(0, b"rang")]


def test_a_broken_timer_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()

    def broken(shard: ListShard, now_ms: int) -> Decision[str]:
        raise ZeroDivisionError

    bench.shard.timers.schedule((0, "broken"), 10, broken)
    bench.shard.timers.schedule((0, "alarm"), 10, writing("rang"))
    bench.runtime.tick(10)
    assert bench.shard.replayed == [(0, b"rang")]
    assert "timer (0, 'broken') failed" in caplog.text


def test_elsewhere_is_not_coordinator() -> None:
    bench = Bench()
    assert failure(bench.runtime.run(1, asking, 0)) == "NotCoordinator"
    assert failure(bench.runtime.run_coalesced(1, asking, 0)) == "NotCoordinator"
    with pytest.raises(errors.NotCoordinator):
        bench.runtime.read(1, lambda shard: shard)


def test_loading_replays_the_log_with_its_offsets() -> None:
    bench = Bench()
    for key in "abc":
        bench.write(key)
    bench.runtime.load(0, 2, now_ms=42)
    assert len(bench.shards) == 2
    assert bench.shard.replayed == [(0, b"a"), (1, b"b"), (2, b"c")]
    assert bench.shard.told == [("loaded", 42)]
    assert bench.shards[0].told[-1] == ("unloaded", "NotCoordinator")


def test_a_long_log_is_loaded_in_steps() -> None:
    bench = Bench()
    half = LOAD_STEP_RECORDS // 2 + 1
    for _ in range(3):
        bench.runtime.run(0, lambda shard, now_ms: Decision("ok", [CoordinatorRecord(b"k", b"")] * half), 0)
    bench.runtime.load(0, 2, 10)
    assert failure(bench.runtime.run(0, asking, 10)) == "CoordinatorLoadInProgress"
    with pytest.raises(errors.CoordinatorLoadInProgress):
        bench.runtime.read(0, lambda shard: shard)
    assert bench.runtime.deadline_ms() == 10, "it wants to go on at once"
    bench.runtime.flush(10)
    bench.runtime.tick(10)
    assert bench.runtime.run(0, asking, 10).result() == "asked"
    assert len(bench.shard.replayed) == 3 * half


def test_transactional_records_and_markers_are_told_apart_when_loading() -> None:
    bench = Bench()
    batch = build_batch([(0, b"k", b"v", ())], producer_id=7, producer_epoch=2, base_sequence=-1, transactional=True)
    bench.log.add_batch(0, batch, 1)
    for offset, commit in ((1, True), (2, False)):
        marker = end_transaction_marker(
            commit=commit, producer_id=7, producer_epoch=2, coordinator_epoch=0, timestamp_ms=0, base_offset=offset
        )
        bench.log.add_batch(0, marker, 1)
    bench.runtime.load(0, 2, 0)
    assert bench.shard.told == [
        ("transactional", 7, 2),
        ("marker", 1, 7, 2, True),
        ("marker", 2, 7, 2, False),
        ("loaded", 0),
    ]
    assert bench.shard.replayed == [(0, b"k")]


def test_an_older_epoch_neither_loads_nor_unloads() -> None:
    bench = Bench()
    bench.runtime.load(0, 5, 0)
    bench.runtime.load(0, 5, 0)
    bench.runtime.load(0, 4, 0)
    bench.runtime.unload(0, 4)
    assert len(bench.shards) == 2
    assert bench.runtime.partitions() == [0]
    bench.runtime.unload(0, 6)
    assert bench.runtime.partitions() == []


def test_unloading_answers_everything_with_not_coordinator() -> None:
    bench = Bench()
    bench.log.replicating = False
    hooks: list[str] = []
    deferred = bench.write("a", committed=lambda now: hooks.append("committed"))
    coalesced = bench.runtime.run_coalesced(0, writing("b"), 0)
    bench.shard.timers.schedule((0, "alarm"), 10, writing("rang"))
    bench.runtime.unload(0)
    assert [failure(deferred), failure(coalesced)] == ["NotCoordinator"] * 2
    assert bench.shard.told[-1] == ("unloaded", "NotCoordinator")
    assert bench.runtime.deadline_ms() is None
    bench.runtime.high_watermark_moved(0, 10, 0)
    bench.runtime.tick(10_000)
    assert hooks == []


def test_a_log_that_cannot_be_read_is_nobodys_coordinator(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.write("a")

    class Broken(ListShard):
        def replay(self, *_: Any) -> None:
            raise errors.DecodeError("no such version")

    bench._make = lambda *arguments: Broken(*arguments)  # type: ignore[method-assign]
    runtime: CoordinatorRuntime[ListShard] = CoordinatorRuntime(bench.log, bench._make)
    runtime.load(0, 1, 0)
    assert failure(runtime.run(0, asking, 0)) == "NotCoordinator"
    assert "partition 0 cannot be loaded" in caplog.text


def test_a_high_watermark_that_moves_during_the_append_answers_after_the_replay() -> None:
    bench = Bench()
    bench.log.replicating = False
    order: list[str] = []
    bench.write("a", committed=lambda now: order.append(f"committed a with {len(bench.shard.replayed)}"))
    append = bench.log.append

    def append_and_move(partition: int, records: Any, now_ms: int, producer: Any) -> int:
        end = append(partition, records, now_ms, producer)
        bench.runtime.high_watermark_moved(0, bench.log.replicate(0), now_ms)
        return end

    bench.log.append = append_and_move  # type: ignore[method-assign]
    answer = bench.write("b")
    assert order == ["committed a with 2"]
    assert answer.result() == "wrote b"
