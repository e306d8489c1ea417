"""InitProducerId: who gets which producer id and epoch, and whose transaction it ends."""

from __future__ import annotations

import pytest

from ottla_wire.errors import CoordinatorNotAvailable, KafkaStorageError, MessageTooLarge, NotEnoughReplicas
from ottla_wire.messages.init_producer_id import InitProducerIdRequest
from support.transactions import ID, T0, T1, TIMEOUT_MS, Transactions, error


def test_a_producer_without_a_transactional_id_gets_an_id_of_its_own() -> None:
    transactions = Transactions()
    first, second = (transactions.init(None).result() for _ in range(2))
    assert (first.error_code, first.producer_epoch, second.producer_epoch) == (0, 0, 0)
    assert first.producer_id != second.producer_id
    assert transactions.log.appends == 0


@pytest.mark.parametrize("version", range(6))
def test_a_new_transactional_id_starts_with_epoch_0(version: int) -> None:
    transactions = Transactions()
    assert transactions.started(version=version) == (101, 0)
    (value,) = transactions.values()
    assert value is not None
    assert (value.producer_id, value.producer_epoch, value.transaction_status) == (101, 0, 0)
    assert (value.transaction_partitions, value.transaction_start_timestamp_ms) == (None, -1)
    assert value.transaction_last_update_timestamp_ms == transactions.wall_ms()
    assert value.transaction_timeout_ms == TIMEOUT_MS
    assert value.previous_producer_id == 101


def test_each_start_takes_the_epoch_one_up_and_keeps_the_producer_id() -> None:
    transactions = Transactions()
    assert [transactions.started() for _ in range(3)] == [(101, 0), (101, 1), (101, 2)]
    assert transactions.started("other") == (102, 0)


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (InitProducerIdRequest(transactional_id="", transaction_timeout_ms=1), "InvalidRequest"),
        (InitProducerIdRequest(transactional_id=ID, transaction_timeout_ms=0), "InvalidTransactionTimeout"),
        (InitProducerIdRequest(transactional_id=ID, transaction_timeout_ms=-1), "InvalidTransactionTimeout"),
        (InitProducerIdRequest(transactional_id=ID, transaction_timeout_ms=900_001), "InvalidTransactionTimeout"),
        (InitProducerIdRequest(transactional_id=ID, transaction_timeout_ms=900_000), ""),
        (InitProducerIdRequest(transactional_id=ID, transaction_timeout_ms=1, producer_id=1), "InvalidRequest"),
        (InitProducerIdRequest(transactional_id=ID, transaction_timeout_ms=1, producer_epoch=1), "InvalidRequest"),
        (InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=0, producer_id=1), "InvalidRequest"),
        (InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=0), ""),
    ],
)
def test_what_cannot_be_is_refused(request_: InitProducerIdRequest, name: str) -> None:
    transactions = Transactions()
    answer = transactions.ask(request_, 5)
    assert error(answer) == name
    if name:
        assert (answer.result().producer_id, answer.result().producer_epoch) == (-1, -1)
        assert transactions.log.appends == 0


def test_the_timeout_is_the_one_of_the_last_start() -> None:
    transactions = Transactions()
    transactions.started(timeout_ms=1_000)
    transactions.started(timeout_ms=2_000)
    assert transactions.metadata().timeout_ms == 2_000


# KIP-360: a producer that has an id and an epoch


def test_a_producer_that_goes_on_takes_its_own_epoch_one_up() -> None:
    transactions = Transactions()
    producer = transactions.started()
    assert transactions.started(expected=producer) == (101, 1)
    assert transactions.metadata().last_producer_epoch == 0


def test_a_retry_of_that_is_told_the_same_epoch_again() -> None:
    transactions = Transactions()
    producer = transactions.started()
    assert [transactions.started(expected=producer) for _ in range(3)] == [(101, 1)] * 3


def test_an_epoch_that_others_have_left_behind_is_fenced() -> None:
    transactions = Transactions()
    old = transactions.started()
    transactions.started()
    assert error(transactions.init(expected=old)) == "ProducerFenced", "a start without an epoch was no retry of his"
    assert error(transactions.init(expected=(101, 7))) == "ProducerFenced"
    assert error(transactions.init(expected=(999, 1))) == "ProducerFenced", "of another producer id"


def test_a_producer_whose_id_has_been_forgotten_gets_a_new_one() -> None:
    transactions = Transactions()
    assert transactions.started(expected=(77, 3)) == (101, 0)


@pytest.mark.parametrize(("version", "name"), [(3, "InvalidProducerEpoch"), (4, "ProducerFenced")])
def test_fenced_is_told_by_version(version: int, name: str) -> None:
    transactions = Transactions()
    old = transactions.started()
    transactions.started()
    assert error(transactions.init(expected=old, version=version)) == name


# the transaction of the producer before


def test_an_open_transaction_is_aborted_first_and_the_newcomer_comes_again() -> None:
    transactions = Transactions()
    transactions.leaders.holds = True
    old = transactions.begun(T0, T1)
    assert error(transactions.init()) == "ConcurrentTransactions"
    assert (transactions.state(), transactions.metadata().producer_epoch) == ("PrepareAbort", 1)
    assert error(transactions.init()) == "ConcurrentTransactions", "while the markers are on their way"
    transactions.answer_markers()
    assert [(m.partition, m.producer_epoch, m.committed) for m in transactions.leaders.markers] == [
        (T0, 1, False),
        (T1, 1, False),
    ]
    assert transactions.started() == (101, 2), "the epoch of the fence is nobody's"
    assert transactions.added(old) == "ProducerFenced"
    assert transactions.ended(old) == "ProducerFenced"


def test_only_one_of_two_newcomers_is_left() -> None:
    transactions = Transactions()
    old = transactions.begun()
    assert error(transactions.init()) == "ConcurrentTransactions"
    first, second = transactions.started(), transactions.started()
    assert [transactions.added(producer) for producer in (old, first, second)] == ["ProducerFenced"] * 2 + [""]


def test_a_live_producer_is_fenced_too_when_it_is_its_own_newcomer() -> None:
    transactions = Transactions()
    producer = transactions.begun()
    assert error(transactions.init(expected=producer)) == "ConcurrentTransactions"
    # Transactions version 2: the end took the epoch up, and the producer is told so as the answer to its own wish.
    assert transactions.started(expected=producer) == (101, 1)


@pytest.mark.parametrize("commit", [True, False])
def test_while_a_transaction_is_being_ended_the_newcomer_comes_again(commit: bool) -> None:
    transactions = Transactions()
    transactions.leaders.holds = True
    producer = transactions.begun()
    transactions.end(producer, commit=commit)
    assert error(transactions.init()) == "ConcurrentTransactions"
    assert error(transactions.init(expected=producer)) == "ConcurrentTransactions"
    transactions.answer_markers()
    assert transactions.started() == (101, 2)


def test_a_stranger_is_fenced_before_it_is_told_to_come_again() -> None:
    transactions = Transactions()
    transactions.begun()
    assert error(transactions.init(expected=(999, 0))) == "ProducerFenced"
    assert transactions.state() == "Ongoing", "and the transaction is left alone"


# appends that fail, or take their time


@pytest.mark.parametrize(
    ("failure", "name"),
    [
        (NotEnoughReplicas(), "CoordinatorNotAvailable"),
        (KafkaStorageError(), "NotCoordinator"),
        (MessageTooLarge(), "UnknownServerError"),
        (OSError("disk"), "NotCoordinator"),
    ],
)
def test_a_start_that_cannot_be_written_has_not_happened(failure: Exception, name: str) -> None:
    transactions = Transactions()
    transactions.log.failure = failure
    assert error(transactions.init()) == name
    assert transactions.state() == "none"
    transactions.log.failure = None
    assert transactions.started() == (102, 0)
    transactions.log.failure = failure
    assert error(transactions.init()) == name
    assert transactions.pending() is None
    transactions.log.failure = None
    assert transactions.started() == (102, 1)


@pytest.mark.parametrize("transaction_version", [0, 1, 2])
def test_a_fence_that_cannot_be_written_takes_the_same_epoch_the_next_time(transaction_version: int) -> None:
    transactions = Transactions()
    transactions.transaction_version = transaction_version
    producer = transactions.begun()
    transactions.log.failure = NotEnoughReplicas()
    for _ in range(3):
        assert error(transactions.init()) == "CoordinatorNotAvailable"
    assert (transactions.state(), transactions.metadata().producer_epoch, transactions.pending()) == (
        "Ongoing",
        0,
        None,
    )
    transactions.log.failure = None
    assert transactions.added(producer, T1) == "", "its producer has not been fenced either"
    assert error(transactions.init()) == "ConcurrentTransactions"
    assert transactions.leaders.markers[0].producer_epoch == 1
    assert transactions.started() == (101, 2)


def test_a_start_is_told_when_it_is_replicated_and_meanwhile_the_id_is_busy() -> None:
    transactions = Transactions()
    transactions.log.replicating = False
    answer = transactions.init()
    assert not answer.done()
    assert transactions.pending() == "Empty"
    assert error(transactions.init()) == "ConcurrentTransactions"
    assert transactions.added((101, 0)) == "ConcurrentTransactions"
    transactions.replicate()
    assert (answer.result().producer_id, answer.result().producer_epoch) == (101, 0)
    assert transactions.pending() is None


def test_a_fence_is_replicated_before_the_markers_go_out() -> None:
    transactions = Transactions()
    transactions.begun()
    transactions.log.replicating = False
    answer = transactions.init()
    assert not answer.done()
    assert transactions.leaders.requests == []
    transactions.replicate()
    assert error(answer) == "ConcurrentTransactions"
    assert len(transactions.leaders.requests) == 1
    assert (transactions.state(), transactions.pending()) == ("CompleteAbort", "CompleteAbort")
    transactions.replicate()
    assert transactions.pending() is None


def test_where_producer_ids_have_run_out_the_error_is_told() -> None:
    transactions = Transactions()
    transactions.holds_ids = True
    answer = transactions.init()
    assert not answer.done()
    transactions.give_id(CoordinatorNotAvailable())
    assert error(answer) == "CoordinatorNotAvailable"
    later = transactions.init()
    transactions.give_id()
    transactions.settle()
    assert error(later) == ""


def test_two_that_wait_for_the_first_producer_id_of_an_id_get_one_after_the_other() -> None:
    transactions = Transactions()
    transactions.holds_ids = True
    first, second = transactions.init(), transactions.init()
    transactions.give_id()
    transactions.give_id()
    transactions.settle()
    answers = [(each.result().producer_id, each.result().producer_epoch) for each in (first, second)]
    assert answers == [(101, 0), (101, 1)]
