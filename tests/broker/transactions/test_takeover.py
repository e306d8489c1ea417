"""Another broker becomes the coordinator: what it finds, what it finishes, and what the old one may still do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from ottla_broker.coordinator.runtime import LOAD_STEP_RECORDS
from ottla_wire.records import build_batch
from support.groups import FakeCoordinatorLog
from support.transactions import ID, T0, T1, FakeLeaders, Transactions, error, metadata_sequence


def replicated(transactions: Transactions, up_to: int | None = None) -> FakeCoordinatorLog:
    """A follower's log of the id's partition, with what it has fetched."""
    copy = FakeCoordinatorLog()
    partition = transactions.partition()
    for batch in transactions.log.read(partition):
        if up_to is None or batch.next_offset <= up_to:
            copy.add_batch(partition, bytes(batch.data), batch.count)
    return copy


def successor(transactions: Transactions, log: FakeCoordinatorLog | None = None) -> Transactions:
    """The next coordinator, in a later epoch, on another node; it finds the partitions as they are."""
    return Transactions(
        log=log or replicated(transactions),
        leaders=transactions.leaders,
        epoch=transactions.epoch + 1,
        now_ms=transactions.now_ms,
    )


Story = Callable[[Transactions], object]

STORIES: dict[str, Story] = {
    "a start": lambda t: t.started(),
    "two starts": lambda t: (t.started(), t.started()),
    "an epoch goes on": lambda t: t.started(expected=t.started()),
    "a commit": lambda t: t.ended(t.begun(T0, T1)),
    "an abort": lambda t: t.ended(t.begun(T0, T1), commit=False),
    "a commit of version 1": lambda t: t.ended(t.begun(T0, T1, version=3), version=4),
    "an abort of version 1": lambda t: t.ended(t.begun(T0, T1, version=3), version=4, commit=False),
    "an abort of nothing": lambda t: t.ended(t.started(), commit=False),
    "a fence": lambda t: (t.begun(T0), t.init(), t.started()),
    "a time-out": lambda t: (t.begun(T0, T1), t.advance(80_000)),
}


@pytest.mark.parametrize("transaction_version", [0, 2])
@pytest.mark.parametrize("story", STORIES)
def test_a_restart_at_every_record_finds_what_was_there_and_finishes_it(story: str, transaction_version: int) -> None:
    told = Transactions()
    told.transaction_version = transaction_version
    STORIES[story](told)
    for records in range(len(told.values()) + 1):
        log = replicated(told, up_to=records)
        found = metadata_sequence(told.values()[:records])
        leaders = FakeLeaders()
        leaders.holds = True
        restarted = Transactions(log=log, leaders=leaders, epoch=5)
        if not found:
            assert restarted.state() == "none"
            continue
        last = found[-1]
        assert last is not None
        if not last.partitions and "Prepare" in last.state.kafka_name:
            assert restarted.state() == "CompleteAbort", "there was nothing left to be done"
            continue
        assert restarted.metadata() == last
        if "Prepare" not in restarted.state():
            assert restarted.leaders.requests == []
            continue
        assert restarted.pending() == restarted.state().replace("Prepare", "Complete")
        restarted.leaders.holds = False
        while restarted.leaders.is_holding:
            restarted.answer_markers()
        assert [(m.partition, m.committed, m.coordinator_epoch) for m in restarted.leaders.markers] == [
            (partition, "Commit" in restarted.state(), 5) for partition in sorted(last.partitions)
        ]
        assert {(m.producer_epoch, m.transaction_version) for m in restarted.leaders.markers} <= {
            (last.producer_epoch, last.transaction_version)
        }
        assert (restarted.state().startswith("Complete"), restarted.pending()) == (True, None)


@pytest.mark.parametrize("story", STORIES)
def test_state_that_lived_is_state_that_is_replayed(story: str) -> None:
    transactions = Transactions()
    STORIES[story](transactions)
    lived = transactions.metadata()
    transactions.restart()
    replayed = transactions.metadata()
    assert replayed._replace(last_producer_epoch=lived.last_producer_epoch) == lived
    if replayed.transaction_version == 2 and "Complete" in transactions.state():
        assert replayed.last_producer_epoch == lived.last_producer_epoch


def test_a_retry_of_an_end_is_known_as_one_by_the_next_coordinator() -> None:
    for commit in (True, False):
        transactions = Transactions()
        producer = transactions.begun(T0)
        transactions.ended(producer, commit=commit)
        written = transactions.log.appends
        transactions.restart()
        assert transactions.ended(producer, commit=commit) == (101, 1)
        assert transactions.started(expected=producer) == (101, 1), "and so is its wish to go on (KIP-360)"
        assert transactions.ended(producer, commit=not commit) in ("InvalidTxnState", "ProducerFenced")
        assert transactions.log.appends == written + 1


def test_an_open_transaction_goes_on_at_the_next_coordinator() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    transactions.restart()
    assert transactions.verify(producer) == {T0: ""}
    assert transactions.added(producer, T1) == ""
    assert transactions.ended(producer) == (101, 1)
    assert [marker.partition for marker in transactions.leaders.markers] == [T0, T1]


# prepared, and the coordinator is gone


def test_what_is_above_the_high_watermark_is_not_acted_upon_until_it_is_committed() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    transactions.log.replicating = False
    transactions.end(producer)
    transactions.restart()
    assert (transactions.state(), transactions.pending()) == ("PrepareCommit", None)
    assert transactions.leaders.requests == [], "another leader might not have it"
    assert error(transactions.init()) == "ConcurrentTransactions"
    transactions.advance(30_000)
    assert transactions.leaders.requests == []
    transactions.log.replicating = True
    transactions.replicate()
    assert transactions.state() == "CompleteCommit"


def test_markers_that_the_old_coordinator_still_sends_are_fenced_and_it_gives_up() -> None:
    old = Transactions()
    old.leaders.leaders = {T0: 1, T1: 2}
    old.leaders.codes[T1] = deque([6])
    producer = old.begun(T0, T1)
    old.end(producer)  # T0 has its marker, T1 could not just then
    new = successor(old)
    assert new.state() == "CompleteCommit"
    old.advance(1_000)
    assert old.state() == "PrepareCommit"
    old.advance(60_000)
    t1 = [marker for marker in old.leaders.markers if marker.partition == T1]
    assert [(marker.coordinator_epoch, marker.committed) for marker in t1] == [(2, True)]


def test_an_old_coordinator_that_wakes_up_decides_nothing() -> None:
    """It is paused with a decision of its own that nobody else has: what counts is what its successor finds."""
    old = Transactions()
    producer = old.begun(T0)
    old.log.replicating = False
    answer = old.end(producer, commit=True)
    new = successor(old, replicated(old, up_to=old.log.high_watermark(old.partition())))
    assert new.state() == "Ongoing"
    assert new.ended(producer, commit=False) == (101, 1)
    # It learns that it has lost the partition.
    old.coordinator.unload(old.partition(), new.epoch)
    assert error(answer) == "NotCoordinator"
    assert {marker.committed for marker in old.leaders.markers} == {False}


def test_answers_to_markers_of_the_epoch_before_mean_nothing() -> None:
    transactions = Transactions()
    transactions.leaders.holds = True
    transactions.end(transactions.begun(T0))
    partition = transactions.partition()
    transactions.coordinator.unload(partition)
    transactions.coordinator.load(partition, 7, transactions.now_ms)
    transactions.advance(0)  # the markers of epoch 7 wait behind those of epoch 1
    assert transactions.state() == "PrepareCommit"
    transactions.answer_markers()
    assert transactions.state() == "PrepareCommit", "that was the answer to the old ones"
    transactions.answer_markers()
    assert transactions.state() == "CompleteCommit"
    assert [marker.coordinator_epoch for marker in transactions.leaders.markers] == [1, 7]


def test_a_completion_that_is_retried_is_dropped_with_the_partition() -> None:
    transactions = Transactions()
    transactions.leaders.codes[T0] = deque([6])
    transactions.end(transactions.begun(T0))
    transactions.coordinator.unload(transactions.partition())
    transactions.advance(60_000)
    assert len(transactions.leaders.requests) == 1
    assert transactions.leaders.markers == []


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_older_or_the_same_epoch_changes_nothing(epoch: int) -> None:
    transactions = Transactions()
    transactions.begun(T0)
    shard = transactions.coordinator.runtime.read(transactions.partition(), lambda shard: shard)
    transactions.coordinator.load(transactions.partition(), epoch, transactions.now_ms)
    transactions.coordinator.unload(transactions.partition(), epoch - 1)
    assert transactions.coordinator.runtime.read(transactions.partition(), lambda shard: shard) is shard
    assert shard.coordinator_epoch == 1


# who waits, and who comes too early


def test_who_waits_is_told_to_look_for_the_new_coordinator() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    transactions.log.replicating = False
    answers = [transactions.end(producer), transactions.init("other"), transactions.init(ID)]
    for partition in range(4):
        transactions.coordinator.unload(partition)
    assert [error(answer) for answer in answers] == ["NotCoordinator", "NotCoordinator", "ConcurrentTransactions"]
    assert transactions.added(producer) == "NotCoordinator"
    assert transactions.ended(producer) == "NotCoordinator"
    assert error(transactions.init()) == "NotCoordinator"
    assert transactions.describe().error_code == 16


def test_while_it_is_loading_nobody_is_served_and_nothing_is_listed() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    unknown = build_batch([(0, b"\x00\x63", b"", ())] * LOAD_STEP_RECORDS)
    for _ in range(2):  # two steps of loading
        transactions.log.add_batch(transactions.partition(), unknown, LOAD_STEP_RECORDS)
    transactions.coordinator.load(transactions.partition(), 9, transactions.now_ms)
    loading = "CoordinatorLoadInProgress"
    assert transactions.added(producer) == loading
    assert transactions.verify(producer) == {T0: loading}
    assert transactions.ended(producer) == loading
    assert error(transactions.init()) == loading
    assert transactions.describe().error_code == 14
    assert transactions.list().error_code == 14
    transactions.advance(0)
    assert transactions.ended(producer) == (101, 1), "records of unknown types were skipped"


def test_a_record_of_a_newer_version_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    transactions = Transactions()
    transactions.started()
    (record,) = transactions.log.records(transactions.partition())
    assert record.value is not None
    newer = build_batch([(0, record.key, b"\x00\x09" + record.value[2:], ())])
    transactions.log.add_batch(transactions.partition(), newer, 1)
    transactions.restart()
    assert transactions.metadata().producer_epoch == 0
    assert "not known here" in caplog.text


def test_a_producer_id_that_comes_after_the_partition_has_gone_is_told_so() -> None:
    transactions = Transactions()
    transactions.holds_ids = True
    answer = transactions.init()
    transactions.coordinator.unload(transactions.partition())
    transactions.give_id()
    assert error(answer) == "NotCoordinator"
