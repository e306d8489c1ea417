"""The last epochs of a producer id: 32766 is the last one a producer has, 32767 is the coordinator's."""

from __future__ import annotations

import pytest

from ottla_broker.coordinator.transaction_state import LAST_CLIENT_EPOCH, MAX_EPOCH, value_of
from ottla_wire.errors import CoordinatorNotAvailable
from ottla_wire.records import build_batch
from support.transactions import ID, T0, T1, Transactions, error


def near_the_end(epoch: int, *, state: str = "Empty") -> tuple[Transactions, tuple[int, int]]:
    """An id that has come as far as `epoch`, with a transaction or without."""
    transactions = Transactions()
    transactions.started()
    metadata = transactions.metadata()._replace(producer_epoch=epoch)
    (record,) = transactions.log.records(transactions.partition())
    later = build_batch([(0, record.key, value_of(metadata).encode_with_version(1), ())])
    transactions.log.add_batch(transactions.partition(), later, 1)
    transactions.restart()
    producer = (101, epoch)
    if state == "Ongoing":
        assert transactions.added(producer, T0) == ""
    return transactions, producer


@pytest.mark.parametrize("commit", [True, False])
def test_the_end_of_the_last_epoch_goes_on_with_the_next_producer_id(commit: bool) -> None:
    transactions, producer = near_the_end(LAST_CLIENT_EPOCH, state="Ongoing")
    transactions.leaders.holds = True
    answer = transactions.end(producer, commit=commit).result()
    assert (answer.producer_id, answer.producer_epoch) == (102, 0), "told before it is so"
    assert (transactions.metadata().producer_id, transactions.metadata().producer_epoch) == (101, MAX_EPOCH)
    assert transactions.added((102, 0)) == "ConcurrentTransactions", "and not fenced: the change is still pending"
    assert transactions.ended((102, 0), commit=False) == "ConcurrentTransactions"
    assert transactions.ended(producer, commit=commit) == "ConcurrentTransactions"
    transactions.answer_markers()
    assert [(m.producer_id, m.producer_epoch) for m in transactions.leaders.markers] == [(101, MAX_EPOCH)]
    metadata = transactions.metadata()
    assert (metadata.producer_id, metadata.producer_epoch, metadata.previous_producer_id) == (102, 0, 101)
    assert transactions.added((102, 0)) == ""


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("commit", [True, False])
def test_a_retry_of_that_end_is_told_the_same(commit: bool, restart: bool) -> None:
    transactions, producer = near_the_end(LAST_CLIENT_EPOCH, state="Ongoing")
    assert transactions.ended(producer, commit=commit) == (102, 0)
    if restart:
        transactions.restart()
    written = transactions.log.appends
    assert [transactions.ended(producer, commit=commit) for _ in range(3)] == [(102, 0)] * 3
    assert transactions.ended(producer, commit=not commit) == "InvalidTxnState"
    assert transactions.log.appends == written
    assert transactions.started(expected=producer) == (102, 0), "a producer that starts instead is no stranger either"


def test_once_the_next_transaction_has_begun_a_retry_over_the_overflow_is_fenced() -> None:
    transactions, producer = near_the_end(LAST_CLIENT_EPOCH, state="Ongoing")
    assert transactions.ended(producer) == (102, 0)
    transactions.added((102, 0), T1)
    for commit in (True, False):
        # Its record names 102 as the producer id before, so 101 is nobody's by now.
        assert transactions.ended(producer, commit=commit) == "InvalidProducerIdMapping"
    assert transactions.state() == "Ongoing"


def test_twenty_transactions_across_the_end_change_the_producer_id_once_and_fence_nobody() -> None:
    transactions, producer = near_the_end(32_760)
    seen = []
    for number in range(20):
        assert transactions.added(producer, T0) == ""
        following = transactions.ended(producer, commit=number % 3 > 0)
        # Every answer is lost once.
        assert transactions.ended(producer, commit=number % 3 > 0) == following
        assert isinstance(following, tuple)
        seen.append(following)
        producer = following
    assert [producer_id for producer_id, _ in seen] == [101] * 6 + [102] * 14
    assert [epoch for _, epoch in seen] == [*range(32_761, 32_767), *range(14)]


@pytest.mark.parametrize("epoch", [LAST_CLIENT_EPOCH, MAX_EPOCH])
@pytest.mark.parametrize("version", [2, 5])
def test_a_start_after_the_last_epoch_gets_a_fresh_producer_id(epoch: int, version: int) -> None:
    transactions, _ = near_the_end(epoch)
    assert transactions.started(version=version) == (102, 0)
    assert transactions.started(version=version) == (102, 1)


def test_so_does_a_producer_that_goes_on_and_its_retry_is_told_the_same() -> None:
    transactions, producer = near_the_end(LAST_CLIENT_EPOCH)
    assert transactions.started(expected=producer) == (102, 0)
    assert transactions.started(expected=producer) == (102, 0)
    assert transactions.started(expected=(102, 0)) == (102, 1)
    assert error(transactions.init(expected=producer)) == "ProducerFenced"


def test_a_retry_that_took_the_last_epoch_is_told_it_again() -> None:
    transactions, producer = near_the_end(LAST_CLIENT_EPOCH - 1)
    assert transactions.started(expected=producer) == (101, LAST_CLIENT_EPOCH)
    assert transactions.started(expected=producer) == (101, LAST_CLIENT_EPOCH)
    assert transactions.added((101, LAST_CLIENT_EPOCH)) == ""


@pytest.mark.parametrize("transaction_version", [0, 2])
def test_a_producer_with_the_last_epoch_can_be_fenced(transaction_version: int) -> None:
    transactions, producer = near_the_end(LAST_CLIENT_EPOCH, state="Ongoing")
    transactions.transaction_version = transaction_version
    assert error(transactions.init()) == "ConcurrentTransactions"
    assert [(m.producer_id, m.producer_epoch) for m in transactions.leaders.markers] == [(101, MAX_EPOCH)]
    newcomer = transactions.started()
    assert newcomer == ((102, 1) if transaction_version else (102, 0))
    assert transactions.added(producer) == "InvalidProducerIdMapping"
    assert transactions.added(newcomer) == ""


def test_a_transaction_with_the_last_epoch_can_time_out() -> None:
    transactions, producer = near_the_end(LAST_CLIENT_EPOCH, state="Ongoing")
    transactions.advance(80_000)
    assert transactions.state() == "CompleteAbort"
    assert (transactions.metadata().producer_id, transactions.metadata().producer_epoch) == (102, 0)
    assert transactions.ended(producer, commit=False) == (102, 0), "its abort is a retry, over the overflow"
    assert transactions.started(expected=producer) == (102, 0)


def test_an_epoch_that_only_a_fence_of_version_1_leaves_behind_does_not_overflow() -> None:
    transactions, producer = near_the_end(MAX_EPOCH, state="Ongoing")
    assert transactions.ended(producer, commit=False) == (102, 0)
    assert [(m.producer_id, m.producer_epoch) for m in transactions.leaders.markers] == [(101, MAX_EPOCH)]
    assert transactions.state() == "CompleteAbort"


def test_an_end_waits_for_the_producer_id_that_it_needs() -> None:
    transactions, producer = near_the_end(LAST_CLIENT_EPOCH, state="Ongoing")
    transactions.holds_ids = True
    first = transactions.end(producer)
    second = transactions.end(producer)
    assert not first.done()
    assert len(transactions.fresh_ids) == 2
    assert transactions.state() == "Ongoing"
    transactions.give_id()
    transactions.settle()
    transactions.give_id()
    transactions.settle()
    answers = [(each.result().error_code, each.result().producer_id) for each in (first, second)]
    assert answers == [(0, 102), (0, 102)]


def test_where_there_is_no_producer_id_the_transaction_stays_open() -> None:
    transactions, producer = near_the_end(LAST_CLIENT_EPOCH, state="Ongoing")
    transactions.holds_ids = True
    answer = transactions.end(producer)
    transactions.give_id(CoordinatorNotAvailable())
    assert error(answer) == "CoordinatorNotAvailable"
    assert (transactions.state(), transactions.pending()) == ("Ongoing", None)


def test_an_overflow_that_was_prepared_is_finished_by_the_next_coordinator() -> None:
    transactions, producer = near_the_end(LAST_CLIENT_EPOCH, state="Ongoing")
    transactions.leaders.holds = True
    transactions.end(producer)
    assert transactions.metadata().next_producer_id == 102
    transactions.leaders.holds = False
    transactions.restart()
    transactions.answer_markers()
    assert (transactions.metadata().producer_id, transactions.metadata().producer_epoch) == (102, 0)
    assert transactions.ended(producer) == (102, 0)
    assert transactions.known(ID).pending is None
