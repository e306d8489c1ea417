"""What administrators are told: an id with its transaction, ids that pass a filter, and why an epoch ended."""

from __future__ import annotations

import pytest

from ottla_wire.messages.describe_transactions import DescribeTransactionsRequest, EpochEnd
from support.transactions import ID, T0, T1, TIMEOUT_MS, Transactions, error, error_name


def test_an_id_is_described_with_its_transaction() -> None:
    transactions = Transactions()
    transactions.begun(("b", 1), ("a", 2), ("b", 0))
    begun_ms = transactions.wall_ms()
    transactions.advance(5_000)
    described = transactions.describe()
    assert (described.error_code, described.transactional_id, described.transaction_state) == (0, ID, "Ongoing")
    assert (described.producer_id, described.producer_epoch) == (101, 0)
    assert (described.transaction_timeout_ms, described.transaction_start_time_ms) == (TIMEOUT_MS, begun_ms)
    assert [(topic.topic, topic.partitions) for topic in described.topics] == [("a", [2]), ("b", [0, 1])]


def test_on_its_way_to_the_end_it_has_the_partitions_that_wait() -> None:
    transactions = Transactions()
    transactions.leaders.leaders = {T0: 1, T1: 2}
    transactions.leaders.holds = True
    transactions.end(transactions.begun(T0, T1))
    assert [topic.partitions for topic in transactions.describe().topics] == [[0, 1]]
    transactions.answer_markers()
    described = transactions.describe()
    assert described.transaction_state == "PrepareCommit"
    assert [topic.partitions for topic in described.topics] == [[1]]
    transactions.answer_markers()
    assert (transactions.describe().transaction_state, transactions.describe().topics) == ("CompleteCommit", [])


def test_an_id_that_is_not_there_is_not_found_and_an_empty_one_is_no_id() -> None:
    transactions = Transactions()
    transactions.started()
    request = DescribeTransactionsRequest(transactional_ids=["nobody", ID, ""])
    states = transactions.ask(request, 0).result().transaction_states
    assert [(each.transactional_id, error_name(each.error_code)) for each in states] == [
        ("nobody", "TransactionalIdNotFound"),
        (ID, ""),
        ("", "InvalidRequest"),
    ]


def test_what_is_not_replicated_yet_is_not_told() -> None:
    transactions = Transactions()
    producer = transactions.started()
    transactions.log.replicating = False
    transactions.add(producer)
    answer = transactions.ask(DescribeTransactionsRequest(transactional_ids=[ID]), 0)
    assert not answer.done()
    transactions.replicate()
    assert answer.result().transaction_states[0].transaction_state == "Ongoing"


# lists


def several() -> Transactions:
    """One id in each of several states."""
    transactions = Transactions()
    transactions.started("empty")
    transactions.begun(name="old")
    transactions.advance(30_000)
    transactions.begun(name="young")
    transactions.ended(transactions.begun(name="committed"), name="committed")
    transactions.ended(transactions.begun(name="aborted"), name="aborted", commit=False)
    return transactions


@pytest.mark.parametrize("version", range(3))
def test_all_ids_are_listed(version: int) -> None:
    response = several().list(version)
    assert {(each.transactional_id, each.transaction_state) for each in response.transaction_states} == {
        ("empty", "Empty"),
        ("old", "Ongoing"),
        ("young", "Ongoing"),
        ("committed", "CompleteCommit"),
        ("aborted", "CompleteAbort"),
    }
    assert {each.producer_id for each in response.transaction_states} == {101, 102, 103, 104, 105}


def test_by_state_and_states_that_do_not_exist_are_named() -> None:
    transactions = several()
    assert transactions.listed(state_filters=["Ongoing", "Empty"]) == ["empty", "old", "young"]
    response = transactions.list(state_filters=["Ongoing", "ongoing", "Nonsense"])
    assert sorted(each.transactional_id for each in response.transaction_states) == ["old", "young"]
    assert response.unknown_state_filters == ["ongoing", "Nonsense"]
    response = transactions.list(state_filters=["Nonsense"])
    assert (response.transaction_states, response.unknown_state_filters) == ([], ["Nonsense"])


def test_by_producer_id() -> None:
    transactions = several()
    assert transactions.listed(producer_id_filters=[102, 104, 9]) == ["committed", "old"]


def test_by_duration() -> None:
    transactions = several()
    assert transactions.listed(state_filters=["Ongoing"], duration_filter=29_999) == ["old"]
    assert transactions.listed(state_filters=["Ongoing"], duration_filter=30_000) == []
    transactions.advance(1)
    assert transactions.listed(state_filters=["Ongoing"], duration_filter=0) == ["old", "young"]
    assert transactions.listed(duration_filter=-1) == transactions.listed()


def test_by_a_pattern_for_the_whole_id() -> None:
    transactions = several()
    assert transactions.listed(transactional_id_pattern="o.*|empty") == ["empty", "old"]
    assert transactions.listed(transactional_id_pattern="ol") == []
    assert transactions.listed(transactional_id_pattern="") == transactions.listed()
    assert transactions.listed(transactional_id_pattern=None) == transactions.listed()
    assert error_name(transactions.list(transactional_id_pattern="(ab").error_code) == "InvalidRegularExpression"


# why an epoch ended


def test_an_id_that_nothing_has_happened_to_says_nothing() -> None:
    transactions = Transactions()
    transactions.ended(transactions.begun())
    assert transactions.describe().epoch_end == EpochEnd()
    assert EpochEnd().reason == 0


def test_the_answer_to_who_does_not_ask_has_kafkas_bytes() -> None:
    transactions = Transactions()
    transactions.begun()
    transactions.init()
    assert transactions.describe(epoch_end=False).epoch_end == EpochEnd()
    assert transactions.describe(epoch_end=True).epoch_end != EpochEnd()


@pytest.mark.parametrize("restart", [False, True])
def test_who_was_fenced_can_learn_by_whom(restart: bool) -> None:
    transactions = Transactions()
    transactions.begun(T0)
    transactions.init(client_id="orders-2", host="192.0.2.7")
    fenced_ms = transactions.wall_ms()
    if restart:
        transactions.restart()
    assert transactions.describe().epoch_end == EpochEnd(
        reason=2, client_id="orders-2", client_host="192.0.2.7", at_ms=fenced_ms, producer_epoch=0
    )
    transactions.advance(100)
    transactions.started(client_id="orders-2", host="192.0.2.7")
    end = transactions.describe().epoch_end
    assert (end.reason, end.client_id, end.producer_epoch, end.at_ms) == (2, "orders-2", 1, fenced_ms + 100)


def test_between_transactions_a_newcomer_ends_an_epoch_too() -> None:
    transactions = Transactions()
    transactions.ended(transactions.begun(), commit=True)
    transactions.started(client_id="b")
    end = transactions.describe().epoch_end
    assert (end.reason, end.client_id, end.producer_epoch) == (2, "b", 1)


def test_a_producer_that_goes_on_has_not_been_fenced() -> None:
    transactions = Transactions()
    producer = transactions.started()
    transactions.started(expected=producer)
    assert transactions.describe().epoch_end == EpochEnd()


@pytest.mark.parametrize("restart", [False, True])
def test_who_was_too_slow_can_learn_that(restart: bool) -> None:
    transactions = Transactions()
    transactions.begun(T0)
    transactions.advance(75_000)
    if restart:
        transactions.restart()
    end = transactions.describe().epoch_end
    assert (end.reason, end.client_id, end.client_host, end.producer_epoch) == (1, "", "", 0)
    assert transactions.wall_ms() - 15_000 <= end.at_ms <= transactions.wall_ms()


def test_an_administrator_who_fences_is_told_apart_from_a_newcomer() -> None:
    transactions = Transactions()
    transactions.begun(T0)
    assert error(transactions.init(fences_only=True, client_id="admin")) == "ConcurrentTransactions"
    end = transactions.describe().epoch_end
    assert (end.reason, end.client_id, end.producer_epoch) == (3, "admin", 0)
    transactions.started(fences_only=True, client_id="admin")
    end = transactions.describe().epoch_end
    assert (end.reason, end.client_id, end.producer_epoch) == (3, "admin", 1)


def test_the_reason_stays_until_there_is_another() -> None:
    transactions = Transactions()
    transactions.started(client_id="a")
    producer = transactions.started(client_id="b")
    for _ in range(3):
        transactions.added(producer)
        following = transactions.ended(producer)
        assert isinstance(following, tuple)
        producer = following
    assert transactions.describe().epoch_end.client_id == "b"


def test_the_log_names_the_id_the_reason_and_who(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ottla_broker.coordinator")
    transactions = Transactions()
    transactions.begun(T0)
    transactions.init(client_id="orders-2", host="192.0.2.7")
    transactions.started(client_id="orders-2", host="192.0.2.7")
    assert [record.message for record in caplog.records] == [
        "transactional id tx begins with producer id 101, for client c at 192.0.2.1",
        "transactional id tx: the transaction is aborted and epoch 0 of producer id 101 ends, for client orders-2 at "
        "192.0.2.7 has started with the same id",
        "transactional id tx goes from epoch 1 of producer id 101 to epoch 2 of producer id 101, for client orders-2 "
        "at 192.0.2.7 has started with it",
    ]
