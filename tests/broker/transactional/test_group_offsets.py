"""Offsets in transactions, from the request to the log of `__consumer_offsets` and back."""

from __future__ import annotations

from typing import Any

import pytest

from ottla_broker.coordinator.records import read_offset_commit
from ottla_broker.pending import Pending
from ottla_wire import errors
from ottla_wire.messages.offset_fetch import OffsetFetchRequest, OffsetFetchRequestGroup, OffsetFetchRequestTopics
from ottla_wire.messages.txn_offset_commit import (
    TxnOffsetCommitRequest,
    TxnOffsetCommitRequestPartition,
    TxnOffsetCommitRequestTopic,
)
from ottla_wire.records import iter_batches
from support.fake_transactions import Asked

OFFSETS_TOPIC = "__consumer_offsets"
NOT_LEADER, INVALID_EPOCH, INVALID_TXN_STATE, FENCED, ABORTABLE, UNSTABLE = 6, 47, 48, 52, 120, 88
COORDINATOR_LOADING, NOT_COORDINATOR = 14, 16


class Committer:
    """A consumer whose positions travel in the transactions of a producer."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage
        self.groups = stage.with_groups()
        self.partition = self.groups.partition_for("g")

    def commits(self, offset: int, *, epoch: int = 0, version: int = 5, transactional_id: str = "tx") -> Any:
        """The error code, or a Pending of the answer."""
        request = TxnOffsetCommitRequest(
            transactional_id=transactional_id,
            group_id="g",
            producer_id=9,
            producer_epoch=epoch,
            topics=[
                TxnOffsetCommitRequestTopic(
                    name="t",
                    partitions=[TxnOffsetCommitRequestPartition(partition_index=0, committed_offset=offset)],
                )
            ],
        )
        answer = self.stage.bench.ask(request, version)
        return answer if isinstance(answer, Pending) else code(answer)

    def ends(self, *, commit: bool, epoch: int = 1, **options: Any) -> Any:
        return self.stage.writes_marker(
            9, commit=commit, epoch=epoch, topic=OFFSETS_TOPIC, partitions=(self.partition,), **options
        )

    def position(self, *, stable: bool = False) -> tuple[int, int]:
        """Offset and error code."""
        topic = OffsetFetchRequestTopics(name="t", partition_indexes=[0])
        request = OffsetFetchRequest(
            topics=[], groups=[OffsetFetchRequestGroup(group_id="g", topics=[topic])], require_stable=stable
        )
        (group,) = self.stage.bench.ask(request, 9).groups
        entry = group.topics[0].partitions[0]
        return entry.committed_offset, entry.error_code

    def batches(self) -> list[Any]:
        log = self.stage.bench.partition(OFFSETS_TOPIC, self.partition).log
        return list(iter_batches(log.read(0, 1 << 20, at_least_one=True).records)) if log.log_end_offset else []


def code(answer: Any) -> int:
    (topic,) = answer.topics
    return int(topic.partitions[0].error_code)


@pytest.fixture
def committer(stage: Any) -> Committer:
    return Committer(stage)


def test_the_commit_adds_the_groups_partition_to_the_transaction(stage: Any, committer: Committer) -> None:
    assert committer.commits(42) == 0
    assert stage.coordinator.asked == [Asked("tx", 9, 0, ((OFFSETS_TOPIC, committer.partition),), verify_only=False)]


@pytest.mark.parametrize("version", range(5))
def test_before_version_5_the_producer_has_added_it(stage: Any, committer: Committer, version: int) -> None:
    stage.coordinator.partitions["tx"].add((OFFSETS_TOPIC, committer.partition))
    assert committer.commits(42, version=version) == 0
    assert stage.coordinator.asked[0].verify_only


@pytest.mark.parametrize(("version", "expected"), [(3, INVALID_TXN_STATE), (4, ABORTABLE)])
def test_a_transaction_that_does_not_know_the_partition_is_told_by_version(
    committer: Committer, version: int, expected: int
) -> None:
    assert committer.commits(42, version=version) == expected
    assert committer.batches() == []


def test_the_records_are_a_batch_of_the_producer_without_a_sequence(committer: Committer) -> None:
    committer.commits(42)
    (batch,) = committer.batches()
    batch.verify()
    assert (batch.is_transactional, batch.is_control, batch.base_sequence) == (True, False, -1)
    assert (batch.producer_id, batch.producer_epoch) == (9, 0)
    key, value = read_offset_commit(batch.records()[0])
    assert value is not None
    assert (key.group, key.topic, key.partition, value.offset) == ("g", "t", 0, 42)


@pytest.mark.parametrize("commit", [True, False])
def test_the_marker_settles_them(committer: Committer, commit: bool) -> None:
    committer.commits(42)
    assert committer.position() == (-1, 0)
    assert committer.position(stable=True) == (-1, UNSTABLE)
    assert committer.ends(commit=commit) == [0]
    assert committer.position(stable=True) == ((42 if commit else -1), 0)
    marker = committer.batches()[-1]
    assert (marker.is_control, marker.producer_epoch) == (True, 1)


def test_another_process_reads_the_same_from_the_log(stage: Any, committer: Committer) -> None:
    committer.commits(41)
    committer.ends(commit=True)
    committer.commits(42, epoch=1)
    committer.groups.unload(committer.partition)
    committer.groups.load(committer.partition, 1, stage.bench.clock.now_ms())
    assert (committer.position(), committer.position(stable=True)) == ((41, 0), (-1, UNSTABLE))
    committer.ends(commit=True, epoch=2)
    assert committer.position(stable=True) == (42, 0)


def test_readers_wait_until_the_marker_is_replicated(stage: Any, committer: Committer) -> None:
    committer.commits(42)
    catch_up = stage.stops_replicating(committer.partition, OFFSETS_TOPIC)
    answer = committer.ends(commit=True)
    assert isinstance(answer, Pending)
    assert committer.position() == (-1, 0)
    catch_up()
    assert answer.result().markers[0].topics[0].partitions[0].error_code == 0
    assert committer.position() == (42, 0)


def test_a_late_commit_after_the_transactions_end_is_refused(stage: Any, committer: Committer) -> None:
    committer.commits(41)
    committer.ends(commit=True)
    stage.coordinator.end("tx")
    assert committer.commits(42, version=4) == INVALID_EPOCH
    assert committer.position() == (41, 0)


def test_an_answer_about_the_transaction_before_commits_nothing(stage: Any, committer: Committer) -> None:
    stage.coordinator.partitions["tx"].add((OFFSETS_TOPIC, committer.partition))
    stage.coordinator.holds = True
    late = committer.commits(42, version=4)
    committer.ends(commit=False, epoch=0, transaction_version=1)
    stage.coordinator.answer()
    assert code(late.result()) == INVALID_TXN_STATE
    assert committer.position(stable=True) == (-1, 0)


def test_a_fenced_producer_commits_nothing(committer: Committer) -> None:
    committer.commits(41)
    committer.ends(commit=True)
    assert committer.commits(42, epoch=0) == INVALID_EPOCH
    assert committer.position(stable=True) == (41, 0)


def test_an_old_coordinators_marker_settles_nothing(committer: Committer) -> None:
    committer.ends(commit=True, coordinator_epoch=5)
    committer.commits(42, epoch=1)
    assert committer.ends(commit=True, epoch=2, coordinator_epoch=4) == [FENCED]
    assert committer.position(stable=True) == (-1, UNSTABLE)


def test_a_repeated_marker_settles_nothing_twice(committer: Committer) -> None:
    committer.commits(41)
    committer.ends(commit=True)
    committer.commits(42, epoch=1)
    assert committer.ends(commit=False) == [INVALID_EPOCH]
    committer.ends(commit=True, epoch=2)
    assert committer.ends(commit=False, epoch=2) == [0]
    assert committer.position(stable=True) == (42, 0)


def test_the_transaction_coordinator_is_told_to_try_again_while_the_group_coordinator_is_not_there(
    stage: Any, committer: Committer
) -> None:
    committer.groups.unload(committer.partition)
    assert committer.ends(commit=True) == [NOT_LEADER]


def test_the_client_is_sent_away_while_the_group_coordinator_is_not_there(committer: Committer) -> None:
    committer.groups.unload(committer.partition)
    assert committer.commits(42) == NOT_COORDINATOR


def test_a_coordinator_that_does_not_answer_has_the_client_try_again(stage: Any, committer: Committer) -> None:
    stage.coordinator.holds = True
    answer = committer.commits(42)
    stage.bench.advance(30_000)
    assert code(answer.result()) == COORDINATOR_LOADING


def test_concurrent_transactions_are_told_at_once(stage: Any, committer: Committer) -> None:
    stage.coordinator.codes.append(errors.ConcurrentTransactions.code)
    assert committer.commits(42) == errors.ConcurrentTransactions.code


def test_describing_the_offsets_partition_shows_the_transaction(stage: Any, committer: Committer) -> None:
    committer.commits(42)
    (entry,) = stage.described(topic=OFFSETS_TOPIC, partition=committer.partition)
    assert (entry.producer_id, entry.current_txn_start_offset, entry.last_sequence) == (9, 0, -1)
