"""Offsets that are committed inside transactions: who sees them when, which one counts, and what deletes them."""

from __future__ import annotations

import random

import pytest

from ottla_broker.pending import Pending
from ottla_broker.replication.transaction_verification import Verified
from ottla_wire import errors
from ottla_wire.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteRequestPartition,
    OffsetDeleteRequestTopic,
)
from ottla_wire.messages.offset_fetch import OffsetFetchRequest, OffsetFetchRequestGroup
from support.groups import TOPIC, TOPIC_ID, FakeCoordinatorLog, Groups, error

HOUR_MS = 3_600_000
RETENTION = {"offsets_retention_minutes": 600, "offsets_retention_check_interval_ms": 600_000}


def stable(groups: Groups, *, partition: int = 0) -> tuple[int, str]:
    """Offset and error as a reader that needs stable offsets gets them."""
    answered = groups.fetch(partition=partition, stable=True)
    return answered.result().committed_offset, error_of(answered.result().error_code)


def error_of(code: int) -> str:
    known = errors.error_class(code)
    return "" if known is None else known.__name__


def delete_offset(groups: Groups) -> str:
    asked = OffsetDeleteRequestTopic(name=TOPIC, partitions=[OffsetDeleteRequestPartition(partition_index=0)])
    return error(groups.ask(OffsetDeleteRequest(group_id="g", topics=[asked]), 0))


class TestVisibility:
    def test_an_offset_of_an_open_transaction_is_not_seen(self) -> None:
        groups = Groups()
        groups.commit(5)
        assert error(groups.commit_in_transaction(42)) == ""
        assert groups.committed() == 5

    def test_it_is_seen_once_the_transaction_commits(self) -> None:
        groups = Groups()
        groups.commit_in_transaction(42, metadata="note")
        assert groups.end_transaction(commit=True).result() is None
        fetched = groups.fetch().result()
        assert (fetched.committed_offset, fetched.metadata) == (42, "note")

    def test_it_is_never_seen_if_the_transaction_aborts(self) -> None:
        groups = Groups()
        groups.commit(5)
        groups.commit_in_transaction(42)
        groups.end_transaction(commit=False)
        assert (groups.committed(), stable(groups)) == (5, (5, ""))

    def test_who_needs_stable_offsets_is_told_to_wait(self) -> None:
        groups = Groups()
        groups.commit(5)
        groups.commit_in_transaction(42)
        assert stable(groups) == (-1, "UnstableOffsetCommit")
        assert stable(groups, partition=1) == (-1, "")
        groups.end_transaction(commit=True)
        assert stable(groups) == (42, "")

    def test_all_offsets_of_a_group_are_marked_one_by_one(self) -> None:
        groups = Groups()
        groups.commit(5)
        groups.commit(6, partition=1)
        groups.commit_in_transaction(42)
        asked = OffsetFetchRequest(
            topics=[], groups=[OffsetFetchRequestGroup(group_id="g", topics=None)], require_stable=True
        )
        (topic,) = groups.ask(asked, 9).result().groups[0].topics
        told = {
            entry.partition_index: (entry.committed_offset, error_of(entry.error_code)) for entry in topic.partitions
        }
        assert told == {0: (-1, "UnstableOffsetCommit"), 1: (6, "")}

    def test_two_transactions_of_one_partition_both_have_to_end(self) -> None:
        groups = Groups()
        groups.commit_in_transaction(10, 1)
        groups.commit_in_transaction(20, 2)
        groups.end_transaction(2, commit=True)
        assert stable(groups) == (-1, "UnstableOffsetCommit")
        groups.end_transaction(1, commit=False)
        assert stable(groups) == (20, "")

    def test_a_marker_above_the_high_watermark_is_not_believed_by_plain_readers(self) -> None:
        groups = Groups()
        groups.commit(5)
        groups.commit_in_transaction(42)
        groups.log.replicating = False
        ended = groups.end_transaction(commit=True)
        assert not ended.done()
        assert groups.committed() == 5
        reader = groups.fetch(stable=True)
        assert not reader.done()
        groups.replicate()
        assert ended.result() is None
        assert (groups.committed(), reader.result().committed_offset) == (42, 42)

    def test_an_offset_that_only_waits_for_replicas_answers_late(self) -> None:
        groups = Groups()
        groups.log.replicating = False
        answer = groups.commit_in_transaction(42)
        assert not answer.done()
        groups.replicate()
        assert error(answer) == ""

    def test_a_transaction_speaks_for_its_own_producer_only(self) -> None:
        groups = Groups()
        groups.commit_in_transaction(10, 1)
        groups.commit_in_transaction(20, 2, partition=1)
        groups.end_transaction(1, commit=True)
        assert (groups.committed(), groups.committed(partition=1)) == (10, -1)

    def test_a_second_commit_of_the_same_transaction_replaces_the_first(self) -> None:
        groups = Groups()
        groups.commit_in_transaction(10)
        groups.commit_in_transaction(11)
        groups.end_transaction(commit=True)
        assert groups.committed() == 11

    def test_markers_for_which_nothing_is_pending_change_nothing(self) -> None:
        groups = Groups()
        groups.commit(5)
        for _ in range(2):
            groups.end_transaction(commit=True)
        assert groups.committed() == 5


class TestOrder:
    """The later record of `__consumer_offsets` counts, wherever the marker stands."""

    def test_a_plain_commit_behind_the_transactional_one_wins_though_the_marker_comes_last(self) -> None:
        groups = Groups()
        groups.commit_in_transaction(10)
        groups.commit(7)
        groups.end_transaction(commit=True)
        assert groups.committed() == 7
        groups.restart()
        assert groups.committed() == 7

    def test_a_plain_commit_before_it_loses(self) -> None:
        groups = Groups()
        groups.commit(7)
        groups.commit_in_transaction(10)
        groups.end_transaction(commit=True)
        assert groups.committed() == 10

    def test_of_two_transactions_the_later_record_wins_not_the_later_marker(self) -> None:
        groups = Groups()
        groups.commit_in_transaction(10, 1)
        groups.commit_in_transaction(20, 2)
        groups.end_transaction(2, commit=True)
        groups.end_transaction(1, commit=True)
        assert groups.committed() == 20

    def test_a_log_without_what_compaction_took_loads_to_the_same_offsets(self) -> None:
        groups = Groups()
        rng = random.Random(36)
        for _ in range(300):
            producer_id, partition, offset = rng.randrange(3), rng.randrange(2), rng.randrange(1000)
            match rng.randrange(4):
                case 0:
                    groups.commit(offset, partition=partition)
                case 1:
                    groups.commit_in_transaction(offset, producer_id, partition=partition)
                case 2:
                    groups.end_transaction(producer_id, commit=rng.random() < 0.5)
                case _:
                    delete_offset(groups)
        for producer_id in range(3):
            groups.end_transaction(producer_id, commit=True)
        expected = [groups.committed(partition=partition) for partition in (0, 1)]
        compacted = Groups(log=groups.log.compacted(groups.partition()))
        assert [compacted.committed(partition=partition) for partition in (0, 1)] == expected


class TestMembers:
    """KIP-447: what a producer says of its consumer is checked, so that a zombie of the group is fenced."""

    def test_a_member_of_the_generation_may_commit(self) -> None:
        groups = Groups()
        (a,) = groups.form()
        assert error(groups.commit_in_transaction(1, member_id=a, generation=1)) == ""

    @pytest.mark.parametrize(
        ("member", "generation", "told"),
        [("stranger", 1, "UnknownMemberId"), ("", 1, "UnknownMemberId"), ("a", 2, "IllegalGeneration")],
    )
    def test_strangers_and_other_generations_are_refused(self, member: str, generation: int, told: str) -> None:
        groups = Groups()
        (a,) = groups.form()
        member_id = a if member == "a" else member
        assert error(groups.commit_in_transaction(1, member_id=member_id, generation=generation)) == told
        assert groups.log.records(groups.partition())[-1].key[1] != 1

    def test_a_static_member_whose_instance_another_has_now_is_fenced(self) -> None:
        groups = Groups()
        joined = groups.join(instance="i")
        groups.advance(0)
        member_id = joined.result().member_id
        groups.sync(member_id, 1, {member_id: b""}, instance="i")
        fenced = groups.commit_in_transaction(1, member_id="old", generation=1, instance="i")
        assert error(fenced) == "FencedInstanceId"
        assert error(groups.commit_in_transaction(1, member_id=member_id, generation=1, instance="i")) == ""

    def test_a_generation_of_a_group_that_is_not_there_is_illegal(self) -> None:
        assert error(Groups().commit_in_transaction(1, member_id="m", generation=3)) == "IllegalGeneration"

    def test_a_producer_that_names_nobody_is_believed(self) -> None:
        groups = Groups()
        groups.form()
        for version in range(6):
            assert error(groups.commit_in_transaction(version, version=version)) == ""

    def test_a_rebalance_does_not_refuse_the_commit(self) -> None:
        groups = Groups()
        member_id, join = groups.enter()
        groups.advance(0)
        assert join.result().generation_id == 1
        assert groups.state() == "CompletingRebalance"
        assert error(groups.commit(1, member_id, 1)) == "RebalanceInProgress"
        assert error(groups.commit_in_transaction(1, member_id=member_id, generation=1)) == ""

    def test_the_commit_does_not_renew_the_members_session(self) -> None:
        groups = Groups()
        (a,) = groups.form(session_ms=10_000)
        groups.advance(9_000)
        groups.commit_in_transaction(1, member_id=a, generation=1)
        groups.advance(2_000)
        assert groups.state() == "Empty"

    def test_the_group_of_an_unknown_name_becomes_a_simple_one(self) -> None:
        groups = Groups()
        groups.commit_in_transaction(1)
        assert (groups.state(), groups.group().protocol_type) == ("Empty", None)


class TestRefusals:
    def test_metadata_that_is_too_long_is_refused_on_its_own(self) -> None:
        groups = Groups(offset_metadata_max_bytes=4)
        assert error(groups.commit_in_transaction(1, metadata="12345")) == "OffsetMetadataTooLarge"
        assert groups.log.end_offset(groups.partition()) == 0

    def test_partitions_that_do_not_exist_are_refused_on_their_own(self) -> None:
        groups = Groups()
        assert error(groups.commit_in_transaction(1, topic="nowhere")) == "UnknownTopicOrPartition"
        assert error(groups.commit_in_transaction(1, partition=7)) == "UnknownTopicOrPartition"

    def test_a_group_without_a_name_is_refused(self) -> None:
        assert error(Groups().commit_in_transaction(1, group="")) == "InvalidGroupId"

    @pytest.mark.parametrize(
        ("refusal", "version", "told"),
        [
            (errors.NetworkError(), 3, "CoordinatorLoadInProgress"),
            (errors.NetworkError(), 1, "CoordinatorNotAvailable"),
            (errors.CoordinatorLoadInProgress(), 1, "CoordinatorNotAvailable"),
            (errors.CoordinatorLoadInProgress(), 2, "CoordinatorLoadInProgress"),
            (errors.CoordinatorNotAvailable(), 5, "CoordinatorNotAvailable"),
            (errors.ConcurrentTransactions(), 5, "ConcurrentTransactions"),
            (errors.InvalidProducerEpoch(), 5, "InvalidProducerEpoch"),
            (errors.InvalidProducerIdMapping(), 5, "InvalidProducerIdMapping"),
            (errors.TransactionAbortable(), 4, "TransactionAbortable"),
            (errors.NotLeaderOrFollower(), 5, "NotCoordinator"),
            (errors.UnknownTopicOrPartition(), 5, "CoordinatorNotAvailable"),
        ],
    )
    def test_what_the_verification_says_is_told_as_the_client_knows_it(
        self, refusal: errors.KafkaError, version: int, told: str
    ) -> None:
        groups = Groups()
        groups.verified = Verified({}, {("__consumer_offsets", groups.partition()): refusal})
        assert error(groups.commit_in_transaction(1, version=version)) == told

    def test_the_commit_goes_on_when_the_verification_comes_later(self) -> None:
        groups = Groups()
        groups.verified = later = Pending()
        answer = groups.commit_in_transaction(1)
        assert not answer.done()
        later.complete(Verified({}, {}))
        assert error(answer) == ""

    @pytest.mark.parametrize(
        ("failure", "told"),
        [
            (errors.NotEnoughReplicas(), "CoordinatorNotAvailable"),
            (errors.InvalidProducerEpoch(), "InvalidProducerEpoch"),
            (errors.InvalidTxnState(), "InvalidTxnState"),
        ],
    )
    def test_what_the_log_refuses_leaves_no_trace(self, failure: errors.KafkaError, told: str) -> None:
        groups = Groups()
        groups.log.failure = failure
        assert error(groups.commit_in_transaction(1)) == told
        groups.log.failure = None
        assert stable(groups) == (-1, "")
        assert groups.state() == "none"

    def test_a_marker_that_is_refused_settles_nothing(self) -> None:
        groups = Groups()
        groups.commit_in_transaction(1)
        groups.log.failure = errors.TransactionCoordinatorFenced()
        assert isinstance(groups.end_transaction(commit=True).error(), errors.TransactionCoordinatorFenced)
        groups.log.failure = None
        assert stable(groups) == (-1, "UnstableOffsetCommit")


class TestDeletion:
    def test_a_tombstone_deletes_what_is_pending(self) -> None:
        groups = Groups()
        groups.commit_in_transaction(42)
        assert delete_offset(groups) == ""
        assert stable(groups) == (-1, "")
        groups.end_transaction(commit=True)
        assert groups.committed() == -1
        groups.restart()
        assert groups.committed() == -1

    def test_a_commit_behind_the_tombstone_counts(self) -> None:
        groups = Groups()
        groups.commit_in_transaction(42)
        delete_offset(groups)
        groups.commit_in_transaction(43)
        groups.end_transaction(commit=True)
        assert groups.committed() == 43

    def test_a_deleted_group_takes_its_pending_offsets_along(self) -> None:
        groups = Groups()
        groups.commit(1)
        groups.commit_in_transaction(42)
        groups.commit_in_transaction(43, partition=1)
        assert groups.delete() == ""
        groups.end_transaction(commit=True)
        assert (groups.state(), groups.committed(), groups.committed(partition=1)) == ("none", -1, -1)
        groups.restart()
        assert (groups.state(), groups.committed(partition=1)) == ("none", -1)

    def test_a_deleted_topic_takes_its_pending_offsets_along(self) -> None:
        groups = Groups()
        groups.commit_in_transaction(42)
        groups.coordinator.on_topics_deleted({TOPIC_ID: TOPIC}, groups.now_ms)
        groups.end_transaction(commit=True)
        assert groups.committed() == -1

    def test_a_group_with_pending_offsets_does_not_expire(self) -> None:
        groups = Groups(**RETENTION)
        groups.commit_in_transaction(42)
        groups.advance(100 * HOUR_MS)
        assert groups.state() == "Empty"
        groups.end_transaction(commit=False)
        groups.advance(600_000)
        assert groups.state() == "none"

    def test_an_offset_does_not_expire_while_another_is_pending_for_its_partition(self) -> None:
        groups = Groups(**RETENTION)
        groups.commit(5)
        groups.commit(6, partition=1)
        groups.commit_in_transaction(42)
        groups.advance(100 * HOUR_MS)
        assert (groups.committed(), groups.committed(partition=1)) == (5, -1)


class TestReloading:
    @pytest.mark.parametrize("commit", [True, False])
    def test_a_transaction_may_end_under_another_coordinator(self, commit: bool) -> None:
        groups = Groups()
        groups.commit(5)
        groups.commit_in_transaction(42)
        groups.restart()
        assert (groups.committed(), stable(groups)) == (5, (-1, "UnstableOffsetCommit"))
        groups.end_transaction(commit=commit)
        assert groups.committed() == (42 if commit else 5)
        groups.restart()
        assert stable(groups) == (42 if commit else 5, "")

    def test_offsets_of_an_open_transaction_whose_group_is_gone_come_back(self) -> None:
        groups = Groups()
        groups.commit_in_transaction(42)
        groups.restart()
        assert groups.state() == "Empty"

    def test_a_marker_needs_a_coordinator_that_has_loaded(self) -> None:
        groups = Groups()
        groups.coordinator.unload(groups.partition())
        assert isinstance(groups.end_transaction(commit=True).error(), errors.NotCoordinator)

    def test_a_marker_that_is_not_replicated_in_time_is_answered(self) -> None:
        groups = Groups()
        groups.commit_in_transaction(42)
        groups.log.replicating = False
        ended = groups.end_transaction(commit=True)
        groups.advance(5_000)
        assert isinstance(ended.error(), errors.CoordinatorNotAvailable)

    def test_coalesced_commits_stand_before_the_marker(self) -> None:
        groups = Groups()
        groups.commit_in_transaction(10)
        groups.commit(7, settle=False)
        groups.end_transaction(commit=True)
        assert groups.committed() == 7


def test_a_fake_log_compacts_like_kafka() -> None:
    groups = Groups(log=FakeCoordinatorLog())
    groups.commit(1)
    groups.commit(2)
    groups.commit_in_transaction(3)
    compacted = groups.log.compacted(groups.partition())
    assert [batch.base_offset for batch in compacted.read(groups.partition())] == [1, 2]
