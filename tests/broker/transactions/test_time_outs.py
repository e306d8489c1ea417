"""Transactions that are open for too long, and ids that nobody uses any more."""

from __future__ import annotations

import pytest

from ottla_broker.coordinator.transaction_config import TransactionConfig
from ottla_wire.errors import NotEnoughReplicas
from support.transactions import T0, T1, TIMEOUT_MS, Transactions, error

SCAN_MS = TransactionConfig().transaction_abort_timed_out_transaction_cleanup_interval_ms
EXPIRY_SCAN_MS = TransactionConfig().transaction_remove_expired_transaction_cleanup_interval_ms
DAY_MS = 24 * 60 * 60 * 1000


def for_days() -> Transactions:
    """A coordinator that does not look for open transactions every ten seconds of a test of weeks."""
    return Transactions(
        transaction_abort_timed_out_transaction_cleanup_interval_ms=1_000 * DAY_MS,
        transaction_state_log_num_partitions=1,
        transaction_max_timeout_ms=2**31 - 1,
    )


def test_a_transaction_that_is_open_for_too_long_is_aborted_at_the_next_look() -> None:
    transactions = Transactions()
    transactions.advance(3_000)
    producer = transactions.begun(T0, T1)
    transactions.advance(TIMEOUT_MS)
    assert transactions.state() == "Ongoing", "not before its time, and the looks are ten seconds apart"
    transactions.advance(SCAN_MS)
    assert transactions.state() == "CompleteAbort"
    assert [(m.partition, m.producer_epoch, m.committed) for m in transactions.leaders.markers] == [
        (T0, 1, False),
        (T1, 1, False),
    ]
    assert transactions.added(producer) == "ProducerFenced"
    assert transactions.verify(producer) == {T0: "ProducerFenced"}


def test_partitions_that_join_do_not_prolong_it() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    transactions.advance(TIMEOUT_MS - 1_000)
    assert transactions.added(producer, T1) == ""
    transactions.advance(1_000 + SCAN_MS)
    assert transactions.state() == "CompleteAbort"


def test_its_producer_may_go_on_with_the_epoch_that_the_abort_made() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    transactions.advance(TIMEOUT_MS + SCAN_MS)
    # KIP-890: an abort of version 2 is a retry of the coordinator's, and told what comes next.
    assert transactions.ended(producer, commit=True) == "InvalidTxnState"
    assert transactions.ended(producer, commit=False) == (101, 1)
    assert transactions.started(expected=producer) == (101, 1)
    assert transactions.added((101, 1)) == ""


def test_a_producer_of_version_1_is_fenced_for_good() -> None:
    transactions = Transactions()
    transactions.transaction_version = 0
    producer = transactions.begun(T0, version=3)
    transactions.advance(TIMEOUT_MS + SCAN_MS)
    assert transactions.ended(producer, version=4, commit=False) == "ProducerFenced"
    assert error(transactions.init(expected=producer)) == "ProducerFenced"
    assert transactions.leaders.markers[0].transaction_version == 0
    assert transactions.started() == (101, 2)


def test_what_is_decided_does_not_time_out() -> None:
    transactions = Transactions()
    transactions.leaders.holds = True
    transactions.end(transactions.begun(T0))
    transactions.advance(TIMEOUT_MS + 2 * SCAN_MS)
    assert transactions.state() == "PrepareCommit"
    transactions.answer_markers()
    assert transactions.state() == "CompleteCommit"


def test_what_is_being_decided_does_not_time_out() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    transactions.log.replicating = False
    transactions.add(producer, T1)
    transactions.advance(TIMEOUT_MS + 2 * SCAN_MS)
    assert transactions.state() == "Ongoing"
    transactions.log.replicating = True
    transactions.replicate()
    transactions.advance(SCAN_MS)
    assert transactions.state() == "CompleteAbort"


def test_a_time_out_that_cannot_be_written_is_tried_at_the_next_look() -> None:
    transactions = Transactions()
    transactions.begun(T0)
    transactions.log.failure = NotEnoughReplicas()
    transactions.advance(TIMEOUT_MS + SCAN_MS)
    assert (transactions.state(), transactions.pending(), transactions.metadata().producer_epoch) == (
        "Ongoing",
        None,
        0,
    )
    transactions.log.failure = None
    transactions.advance(SCAN_MS)
    assert (transactions.state(), transactions.metadata().producer_epoch) == ("CompleteAbort", 1)


def test_the_time_counts_across_a_takeover() -> None:
    transactions = Transactions()
    transactions.begun(T0)
    transactions.advance(TIMEOUT_MS - 5_000)
    transactions.restart()
    transactions.advance(SCAN_MS)
    assert transactions.state() == "CompleteAbort"


def test_a_transaction_without_a_time_out_is_left_alone() -> None:
    transactions = Transactions(transaction_max_timeout_ms=2**31 - 1)
    producer = transactions.started(timeout_ms=2**31 - 1)
    transactions.added(producer)
    transactions.now_ms += 40 * DAY_MS
    transactions.advance(SCAN_MS)
    assert transactions.state() == "Ongoing"


def test_it_says_so_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    transactions = Transactions()
    transactions.begun(T0)
    transactions.advance(TIMEOUT_MS + SCAN_MS)
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert line == (
        "transactional id tx: the transaction is aborted and epoch 0 of producer id 101 ends, for it was open for "
        "longer than its timeout of 60000 ms"
    )


# ids that nobody uses


def test_an_id_that_is_not_used_is_forgotten_after_a_week() -> None:
    transactions = for_days()
    producer = transactions.started()
    transactions.advance(7 * DAY_MS - EXPIRY_SCAN_MS)
    assert transactions.state() == "Empty"
    transactions.advance(2 * EXPIRY_SCAN_MS)
    assert transactions.state() == "none"
    assert transactions.history() == ["Empty", "-"]
    assert transactions.added(producer) == "InvalidProducerIdMapping"
    assert transactions.ended(producer) == "InvalidProducerIdMapping"
    assert transactions.started(expected=producer) == (102, 0)


@pytest.mark.parametrize("commit", [True, False])
def test_every_use_starts_the_week_again(commit: bool) -> None:
    transactions = for_days()
    producer = transactions.started()
    transactions.advance(6 * DAY_MS)
    transactions.added(producer)
    transactions.ended(producer, commit=commit)
    transactions.advance(6 * DAY_MS)
    assert transactions.state() == ("CompleteCommit" if commit else "CompleteAbort")
    transactions.advance(2 * DAY_MS)
    assert transactions.state() == "none"


def test_an_id_with_an_open_or_prepared_transaction_is_not_forgotten() -> None:
    transactions = for_days()
    transactions.leaders.holds = True
    producer = transactions.started(timeout_ms=2**31 - 1)
    transactions.added(producer)
    transactions.advance(8 * DAY_MS)
    assert transactions.state() == "Ongoing"
    transactions.end(producer)
    transactions.advance(8 * DAY_MS)
    assert transactions.state() == "PrepareCommit"


def test_an_id_in_the_middle_of_a_change_is_not_forgotten() -> None:
    transactions = for_days()
    transactions.started()
    transactions.advance(7 * DAY_MS - 1_000)
    transactions.log.replicating = False
    transactions.init()
    transactions.advance(DAY_MS)
    assert transactions.state() == "Empty"


def test_many_ids_are_forgotten_in_few_batches() -> None:
    transactions = for_days()
    names = [f"id-{number}" for number in range(50)]
    for name in names:
        transactions.started(name)
    written = transactions.log.appends
    transactions.advance(8 * DAY_MS)
    assert transactions.listed() == []
    assert transactions.log.appends == written + 1
    transactions.restart()
    assert transactions.listed() == []


def test_the_tombstone_that_cannot_be_written_has_forgotten_nothing() -> None:
    transactions = for_days()
    transactions.started()
    transactions.log.failure = NotEnoughReplicas()
    transactions.advance(8 * DAY_MS)
    assert transactions.listed() == ["tx"]
    transactions.log.failure = None
    transactions.advance(EXPIRY_SCAN_MS)
    assert transactions.listed() == []


def test_where_nothing_is_led_nothing_is_due() -> None:
    transactions = Transactions()
    for partition in range(4):
        transactions.coordinator.unload(partition)
    assert transactions.coordinator.deadline_ms() is None
