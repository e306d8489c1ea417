"""The markers' way to the partitions: by node, again where it has to be, and not at all where others have the id."""

from __future__ import annotations

from collections import deque

import pytest

from ottla_wire.errors import NotEnoughReplicas, NotLeaderOrFollower
from support.transactions import T0, T1, T2, Transactions, error

RETRY_MS = 100


def on_the_way(*partitions: tuple[str, int]) -> Transactions:
    """A transaction of which everything but the markers is done."""
    transactions = Transactions()
    transactions.leaders.holds = True
    assert error(transactions.end(transactions.begun(*partitions))) == ""
    return transactions


def asked_of(transactions: Transactions) -> list[tuple[int, list[tuple[str, int]]]]:
    """The requests so far: node and partitions."""
    return [
        (
            node,
            [
                (topic.name, index)
                for marker in request.markers
                for topic in marker.topics
                for index in topic.partition_indexes
            ],
        )
        for node, request in transactions.leaders.requests
    ]


def test_each_node_is_sent_one_request_for_all_that_is_for_it() -> None:
    transactions = Transactions(transaction_state_log_num_partitions=1)
    transactions.leaders.leaders = {T0: 1, T1: 2, T2: 1}
    a, b = transactions.begun(T0, T1, T2, name="a"), transactions.begun(T1, name="b")
    transactions.end(a, name="a", settle=False)
    transactions.end(b, name="b", settle=False)
    transactions.settle()
    assert asked_of(transactions) == [(1, [T0, T2]), (2, [T1, T1])]
    assert {marker.producer_id for marker in transactions.leaders.requests[1][1].markers} == {a[0], b[0]}


def test_a_node_has_one_request_at_a_time_and_then_one_for_all_that_came_meanwhile() -> None:
    transactions = Transactions()
    transactions.leaders.holds = True
    for name in ("a", "b", "c"):
        transactions.end(transactions.begun(T0, name=name), name=name)
    assert len(transactions.leaders.requests) == 1
    transactions.answer_markers()
    assert asked_of(transactions) == [(1, [T0]), (1, [T0, T0])]
    transactions.answer_markers()
    assert {transactions.state(name) for name in ("a", "b", "c")} == {"CompleteCommit"}


def test_a_slow_node_does_not_hold_up_the_others() -> None:
    transactions = Transactions()
    transactions.leaders.leaders = {T0: 1, T1: 2}
    transactions.leaders.holds = True
    transactions.end(transactions.begun(T0, name="a"), name="a")
    transactions.leaders.holds = False
    transactions.end(transactions.begun(T1, name="b"), name="b")
    assert (transactions.state("a"), transactions.state("b")) == ("PrepareCommit", "CompleteCommit")


@pytest.mark.parametrize("code", [3, 6, 7, 19, 20, 56])
def test_a_partition_that_cannot_now_is_asked_again_and_the_others_are_not(code: int) -> None:
    transactions = Transactions()
    transactions.leaders.codes[T1] = deque([code, code])
    transactions.end(transactions.begun(T0, T1))
    assert transactions.state() == "PrepareCommit"
    transactions.advance(RETRY_MS)
    transactions.advance(RETRY_MS)
    assert asked_of(transactions) == [(1, [T0, T1]), (1, [T1]), (1, [T1])]
    assert transactions.state() == "CompleteCommit"
    assert [marker.partition for marker in transactions.leaders.markers] == [T0, T1]


@pytest.mark.parametrize("code", [-1, 2, 10, 18, 21])
def test_an_error_that_should_not_be_is_logged_and_tried_again(code: int, caplog: pytest.LogCaptureFixture) -> None:
    transactions = Transactions()
    transactions.leaders.codes[T0] = deque([code])
    transactions.end(transactions.begun(T0))
    assert any(f"error {code}" in record.message and record.levelname == "ERROR" for record in caplog.records)
    transactions.advance(RETRY_MS)
    assert transactions.state() == "CompleteCommit"


@pytest.mark.parametrize("code", [35, 43])
def test_a_partition_that_knows_no_transactions_needs_no_marker(code: int) -> None:
    transactions = Transactions()
    transactions.leaders.codes[T0] = deque([code])
    transactions.end(transactions.begun(T0))
    assert transactions.state() == "CompleteCommit"


@pytest.mark.parametrize("code", [47, 52])
def test_a_partition_that_has_heard_of_others_ends_the_sending(code: int, caplog: pytest.LogCaptureFixture) -> None:
    transactions = Transactions()
    transactions.leaders.leaders = {T0: 1, T1: 2}
    transactions.leaders.codes[T0] = deque([code])
    transactions.leaders.codes[T1] = deque([6])
    transactions.end(transactions.begun(T0, T1))
    transactions.advance(60_000)
    assert (transactions.state(), transactions.pending()) == ("PrepareCommit", "CompleteCommit")
    assert len(transactions.leaders.requests) == 2, "T1 is not asked again"
    assert "whoever has it finishes its transaction" in caplog.text
    transactions.restart()
    assert transactions.state() == "CompleteCommit"


def test_a_node_that_does_not_answer_is_asked_again() -> None:
    transactions = Transactions()
    transactions.leaders.failure = ConnectionError("refused")
    transactions.end(transactions.begun(T0, T1))
    transactions.advance(RETRY_MS)
    assert len(transactions.leaders.requests) == 2
    transactions.leaders.failure = None
    transactions.advance(RETRY_MS)
    assert transactions.state() == "CompleteCommit"


def test_a_marker_whose_answer_is_lost_is_written_again() -> None:
    transactions = on_the_way(T0)
    transactions.answer_markers(lost=True)
    transactions.leaders.holds = False
    transactions.advance(RETRY_MS)
    assert transactions.state() == "CompleteCommit"
    first, second = transactions.leaders.markers
    assert first == second


def test_it_is_asked_of_whoever_leads_the_partition_then() -> None:
    transactions = Transactions()
    transactions.leaders.codes[T0] = deque([NotLeaderOrFollower.code])
    transactions.end(transactions.begun(T0))
    transactions.leaders.leaders[T0] = 5
    transactions.advance(RETRY_MS)
    assert asked_of(transactions) == [(1, [T0]), (5, [T0])]


def test_a_partition_without_a_leader_is_waited_for() -> None:
    transactions = Transactions()
    transactions.leaders.leaders = {T0: -1}
    transactions.end(transactions.begun(T0, T1))
    assert asked_of(transactions) == [(1, [T1])]
    transactions.advance(10 * RETRY_MS)
    assert transactions.state() == "PrepareCommit"
    transactions.leaders.leaders = {T0: 3}
    transactions.advance(RETRY_MS)
    assert transactions.state() == "CompleteCommit"


def test_a_partition_that_was_deleted_needs_no_marker() -> None:
    transactions = Transactions()
    transactions.leaders.leaders = {T0: None}
    transactions.end(transactions.begun(T0, T1))
    assert transactions.state() == "CompleteCommit"
    assert asked_of(transactions) == [(1, [T1])]
    transactions.leaders.leaders = {T1: None}
    transactions.end(transactions.begun(T1, name="all gone"), name="all gone")
    assert transactions.state("all gone") == "CompleteCommit"


def test_a_partition_that_is_deleted_while_it_is_tried_again_needs_no_marker() -> None:
    transactions = Transactions()
    transactions.leaders.codes[T0] = deque([3])
    transactions.end(transactions.begun(T0))
    assert transactions.state() == "PrepareCommit"
    transactions.leaders.leaders = {T0: None}
    transactions.advance(RETRY_MS)
    assert transactions.state() == "CompleteCommit"


def test_a_completion_that_cannot_be_written_is_written_later_and_nothing_is_done_meanwhile() -> None:
    transactions = on_the_way(T0)
    transactions.log.failure = NotEnoughReplicas()
    transactions.answer_markers()
    assert (transactions.state(), transactions.pending()) == ("PrepareCommit", "CompleteCommit")
    assert error(transactions.init()) == "ConcurrentTransactions"
    transactions.advance(3 * RETRY_MS)
    assert transactions.state() == "PrepareCommit"
    transactions.log.failure = None
    transactions.advance(RETRY_MS)
    assert (transactions.state(), transactions.pending()) == ("CompleteCommit", None)
    assert len(transactions.leaders.requests) == 1, "the markers are there already"


def test_a_completion_on_a_broken_disk_waits_for_whoever_has_the_partition_next() -> None:
    transactions = on_the_way(T0)
    transactions.log.failure = OSError("disk")
    transactions.answer_markers()
    transactions.log.failure = None
    transactions.advance(60_000)
    assert (transactions.state(), transactions.pending()) == ("PrepareCommit", "CompleteCommit")
    transactions.leaders.holds = False
    transactions.restart()
    assert transactions.state() == "CompleteCommit"


def test_a_completion_is_pending_until_it_is_replicated() -> None:
    transactions = on_the_way(T0)
    transactions.log.replicating = False
    transactions.answer_markers()
    assert (transactions.state(), transactions.pending()) == ("CompleteCommit", "CompleteCommit")
    assert transactions.added((101, 1)) == "ConcurrentTransactions"
    transactions.advance(10_000)
    assert transactions.pending() == "CompleteCommit", "however long that takes"
    transactions.replicate()
    assert transactions.pending() is None
