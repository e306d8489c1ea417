"""AddPartitionsToTxn and AddOffsetsToTxn: partitions join a transaction, or it is asked whether they are in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ottla_wire.messages.add_partitions_to_txn import (
    AddPartitionsToTxnRequest,
    AddPartitionsToTxnTopic,
    AddPartitionsToTxnTransaction,
)
from support.transactions import ID, T0, T1, T2, Transactions, error_name

OFFSETS_OF_G = ("__consumer_offsets", ord("g") % 50)


@pytest.mark.parametrize("version", range(6))
def test_the_first_partition_starts_the_transaction(version: int) -> None:
    transactions = Transactions()
    producer = transactions.started()
    transactions.advance(500)
    assert transactions.add(producer, T0, T1, version=version).result() == {T0: "", T1: ""}
    metadata = transactions.metadata()
    assert (transactions.state(), metadata.partitions) == ("Ongoing", {T0, T1})
    assert (metadata.start_ms, metadata.last_update_ms) == (transactions.wall_ms(), transactions.wall_ms())
    assert metadata.transaction_version == (0 if version < 4 else 2)


def test_more_partitions_join_and_the_start_stays() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    begun_ms = transactions.metadata().start_ms
    transactions.advance(1_000)
    assert transactions.added(producer, T1) == ""
    assert (transactions.metadata().partitions, transactions.metadata().start_ms) == ({T0, T1}, begun_ms)
    assert transactions.metadata().last_update_ms == begun_ms + 1_000


def test_partitions_that_are_in_it_already_are_not_written_again() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0, T1)
    written = transactions.log.appends
    assert transactions.added(producer, T0) == ""
    assert transactions.added(producer, T1, T0) == ""
    assert transactions.log.appends == written
    assert transactions.added(producer, T0, T2) == ""
    assert transactions.log.appends == written + 1


def test_the_record_has_the_partitions_by_topic() -> None:
    transactions = Transactions()
    transactions.begun(("b", 3), ("a", 1), ("b", 0))
    value = transactions.values()[-1]
    assert value is not None
    assert value.transaction_partitions is not None
    assert [(each.topic, each.partition_ids) for each in value.transaction_partitions] == [("a", [1]), ("b", [0, 3])]


@pytest.mark.parametrize(
    ("prepare", "producer", "name"),
    [
        (lambda _: None, (101, 0), "InvalidProducerIdMapping"),
        (lambda t: t.started(), (999, 0), "InvalidProducerIdMapping"),
        (lambda t: (t.started(), t.started()), (101, 0), "ProducerFenced"),
        (lambda t: t.started(), (101, 1), "ProducerFenced"),
        (lambda t: t.started(), (101, -1), "ProducerFenced"),
    ],
    ids=["nobody", "another's id", "an older epoch", "a newer epoch", "no epoch"],
)
def test_who_is_not_the_producer_adds_nothing_and_learns_nothing(
    prepare: Callable[[Transactions], object], producer: tuple[int, int], name: str
) -> None:
    transactions = Transactions()
    prepare(transactions)
    written = transactions.log.appends
    assert transactions.added(producer) == name
    assert transactions.verify(producer) == {T0: name}
    assert transactions.add_offsets(producer) == name
    assert transactions.log.appends == written


@pytest.mark.parametrize(
    ("version", "name"), [(0, "InvalidProducerEpoch"), (1, "InvalidProducerEpoch"), (2, "ProducerFenced")]
)
def test_fenced_is_told_by_version(version: int, name: str) -> None:
    transactions = Transactions()
    old = transactions.started()
    transactions.started()
    assert transactions.added(old, version=version) == name
    assert transactions.add_offsets(old, version=version) == name


@pytest.mark.parametrize("version", range(6))
def test_a_partition_that_does_not_exist_keeps_the_others_out(version: int) -> None:
    transactions = Transactions()
    producer = transactions.started()
    assert transactions.add(producer, T0, ("missing", 3), version=version).result() == {
        T0: "OperationNotAttempted",
        ("missing", 3): "UnknownTopicOrPartition",
    }
    assert transactions.state() == "Empty"


@pytest.mark.parametrize("version", [3, 5])
def test_an_empty_id_is_no_id(version: int) -> None:
    transactions = Transactions()
    assert transactions.added((1, 0), name="", version=version) == "InvalidRequest"
    assert transactions.add_offsets((1, 0), name="") == "InvalidRequest"


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("version", [3, 5])
def test_while_the_last_transaction_is_being_ended_nothing_joins_the_next(version: int, commit: bool) -> None:
    transactions = Transactions()
    transactions.leaders.holds = True
    producer = transactions.begun()
    following = transactions.ended(producer, commit=commit)
    assert isinstance(following, tuple)
    for each in (producer, following):
        assert transactions.added(each, version=version) == "ConcurrentTransactions"
        assert transactions.add_offsets(each) == "ConcurrentTransactions"
    assert transactions.verify(following) == {T0: "ConcurrentTransactions"}
    transactions.answer_markers()
    assert transactions.added(following, version=version) == ""


def test_a_change_that_is_not_replicated_yet_is_waited_for_by_those_behind_it() -> None:
    transactions = Transactions()
    producer = transactions.started()
    transactions.log.replicating = False
    first = transactions.add(producer, T0)
    assert not first.done()
    assert transactions.added(producer, T1) == "ConcurrentTransactions"
    transactions.replicate()
    assert first.result() == {T0: ""}
    second = transactions.add(producer, T1)
    assert not second.done()
    transactions.replicate()
    assert second.result() == {T1: ""}


def test_a_partition_that_cannot_be_written_down_has_not_joined() -> None:
    transactions = Transactions()
    producer = transactions.started()
    transactions.log.failure = OSError("disk")
    assert transactions.added(producer) == "NotCoordinator"
    transactions.log.failure = None
    assert (transactions.state(), transactions.pending()) == ("Empty", None)
    assert transactions.added(producer) == ""


# verifying


def test_it_is_verified_partition_by_partition() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    written = transactions.log.appends
    assert transactions.verify(producer, T0, T1) == {T0: "", T1: "TransactionAbortable"}
    assert transactions.log.appends == written


def test_verifying_does_not_care_about_a_change_in_progress() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    transactions.log.replicating = False
    transactions.add(producer, T1)
    assert transactions.pending() == "Ongoing"
    answer = transactions.add(producer, T0, verify_only=True)
    transactions.replicate()
    assert answer.result() == {T0: ""}


def test_after_the_end_nothing_is_in_the_transaction() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    following = transactions.ended(producer)
    assert isinstance(following, tuple)
    assert transactions.verify(producer) == {T0: "ProducerFenced"}
    assert transactions.verify(following) == {T0: "TransactionAbortable"}
    older = transactions.begun(T0, name="v1", version=3)
    transactions.ended(older, name="v1", version=4)
    assert transactions.verify(older, name="v1") == {T0: "TransactionAbortable"}


# several transactions, offsets


def test_several_transactions_in_one_request_have_each_their_own_answer() -> None:
    transactions = Transactions()
    a, b = transactions.started("a"), transactions.started("b")
    topics = [AddPartitionsToTxnTopic(name="t", partitions=[0, 1])]
    wanted = [
        AddPartitionsToTxnTransaction(transactional_id="a", producer_id=a[0], producer_epoch=0, topics=topics),
        AddPartitionsToTxnTransaction(
            transactional_id="b", producer_id=b[0], producer_epoch=0, verify_only=True, topics=topics
        ),
        AddPartitionsToTxnTransaction(transactional_id="c", producer_id=1, producer_epoch=0, topics=topics),
    ]
    response = transactions.ask(AddPartitionsToTxnRequest(transactions=wanted), 5).result()
    found = {
        each.transactional_id: [
            error_name(result.partition_error_code)
            for topic in each.topic_results
            for result in topic.results_by_partition
        ]
        for each in response.results_by_transaction
    }
    assert response.error_code == 0
    assert found == {
        "a": ["", ""],
        "b": ["TransactionAbortable"] * 2,
        "c": ["InvalidProducerIdMapping"] * 2,
    }


@pytest.mark.parametrize("version", range(5))
def test_the_offsets_of_a_group_join_as_its_partition(version: int) -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    assert transactions.add_offsets(producer, "g", version=version) == ""
    assert transactions.metadata().partitions == {T0, OFFSETS_OF_G}
    assert transactions.metadata().transaction_version == 0, "only clients of version 1 ask for this"


def test_group_offsets_are_added_and_verified_for_the_group_coordinator_too() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    coordinator = transactions.coordinator

    def ask(*, verify_only: bool) -> int:
        answer = coordinator.add_group_offsets(ID, *producer, 5, verify_only=verify_only, now_ms=transactions.now_ms)
        return answer.result()

    assert error_name(ask(verify_only=True)) == "TransactionAbortable"
    assert ask(verify_only=False) == 0
    assert ask(verify_only=True) == 0
    assert ("__consumer_offsets", 5) in transactions.metadata().partitions
