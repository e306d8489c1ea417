"""OffsetCommit and OffsetFetch."""

from __future__ import annotations

import pytest

from ottla_broker.coordinator.records import (
    LegacyOffsetCommitValue,
    OffsetCommitKey,
    OffsetCommitValue,
    read_offset_commit,
)
from ottla_wire.errors import NotEnoughReplicas
from ottla_wire.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopic,
    OffsetFetchRequestTopics,
)
from ottla_wire.records import build_batch
from ottla_wire.schema import Uuid
from support.groups import TOPIC, TOPIC_ID, Groups, error


def test_an_offset_is_committed_with_what_comes_with_it() -> None:
    groups = Groups()
    assert error(groups.commit(42, metadata="note", leader_epoch=3)) == ""
    fetched = groups.fetch().result()
    assert (fetched.committed_offset, fetched.metadata, fetched.committed_leader_epoch) == (42, "note", 3)


def test_the_record_says_when_and_for_which_topic() -> None:
    groups = Groups()
    groups.commit(42)
    (record,) = groups.log.records(groups.partition())
    key, value = read_offset_commit(record)
    assert key == OffsetCommitKey(group="g", topic=TOPIC, partition=0)
    assert value == OffsetCommitValue(offset=42, metadata="", commit_timestamp=groups.wall_ms(), topic_id=TOPIC_ID)


def test_what_was_never_committed_is_minus_one_and_no_error() -> None:
    groups = Groups()
    for stable in (False, True):
        fetched = groups.fetch(stable=stable).result()
        assert (fetched.committed_offset, fetched.committed_leader_epoch, fetched.metadata, fetched.error_code) == (
            -1, -1, "", 0,
        )  # fmt: skip
    groups.commit(1)
    assert groups.committed(partition=1) == -1


def test_a_commit_without_generation_makes_a_simple_group() -> None:
    groups = Groups()
    groups.commit(1)
    assert (groups.state(), groups.group().protocol_type) == ("Empty", None)
    assert groups.list() == [("g", "Empty")]


@pytest.mark.parametrize(("version", "told"), [(8, "IllegalGeneration"), (9, "GroupIdNotFound")])
def test_a_generation_of_a_group_that_is_not_there_is_told_by_version(version: int, told: str) -> None:
    groups = Groups()
    assert error(groups.commit(1, "member", 1, version=version)) == told
    assert groups.list() == []


def test_members_commit_in_their_generation() -> None:
    groups = Groups()
    (a,) = groups.form()
    assert error(groups.commit(1, a, 1)) == ""
    assert error(groups.commit(2, a, 2)) == "IllegalGeneration"
    assert error(groups.commit(2, a, 0)) == "IllegalGeneration"
    assert error(groups.commit(2, "stranger", 1)) == "UnknownMemberId"
    assert error(groups.commit(2, a, 1, instance="i")) == "UnknownMemberId"
    assert groups.committed() == 1


def test_nobody_else_commits_while_the_group_has_members() -> None:
    groups = Groups()
    (a,) = groups.form()
    assert error(groups.commit(1)) == "UnknownMemberId"
    assert error(groups.commit(1, a, -1)) == "IllegalGeneration"
    groups.leave(a)
    assert error(groups.commit(1)) == ""
    assert error(groups.commit(2, a, -1)) == "", "an Empty group takes whatever has no generation"
    assert error(groups.commit(3, a, 2)) == "UnknownMemberId"


def test_in_the_join_phase_members_may_commit_what_they_still_own() -> None:
    groups = Groups()
    a, b = groups.form(2)
    generation = groups.group().generation
    groups.join(a)
    assert error(groups.commit(1, b, generation)) == ""


def test_in_the_sync_phase_a_commit_is_told_to_join_again() -> None:
    groups = Groups()
    a, _ = groups.enter()
    groups.advance(0)
    assert groups.state() == "CompletingRebalance"
    assert error(groups.commit(1, a, 1)) == "RebalanceInProgress"
    assert groups.committed() == -1


def test_a_commit_is_a_sign_of_life() -> None:
    groups = Groups()
    (a,) = groups.form(session_ms=10_000)
    for offset in range(3):
        groups.advance(9_000)
        assert error(groups.commit(offset, a, 1)) == ""
    assert groups.state() == "Stable"


def test_metadata_has_a_limit_for_each_partition() -> None:
    groups = Groups(offset_metadata_max_bytes=10)
    assert error(groups.commit(1, metadata="x" * 10)) == ""
    assert error(groups.commit(2, metadata="x" * 11)) == "OffsetMetadataTooLarge"
    assert error(groups.commit(3, metadata=None)) == ""
    assert groups.fetch().result().metadata == ""
    assert groups.committed() == 3


def test_partitions_that_do_not_exist_are_refused_and_the_others_committed() -> None:
    groups = Groups()
    request_topics = groups.commit(5, partition=1).result().topics
    assert [partition.error_code for partition in request_topics[0].partitions] == [0]
    assert error(groups.commit(5, partition=2)) == "UnknownTopicOrPartition"
    assert error(groups.commit(5, topic="nowhere")) == "UnknownTopicOrPartition"
    assert groups.committed(partition=1) == 5


def test_from_version_ten_topics_are_named_by_id() -> None:
    groups = Groups()
    answer = groups.commit(5, version=10, topic="", topic_id=TOPIC_ID)
    assert error(answer) == ""
    assert answer.result().topics[0].topic_id == TOPIC_ID
    assert groups.committed() == 5
    stranger = Uuid(b"nobody's topic..")
    answer = groups.commit(5, version=10, topic="", topic_id=stranger)
    assert error(answer) == "UnknownTopicId"
    assert answer.result().topics[0].topic_id == stranger


def test_a_commit_is_told_when_it_is_replicated_and_a_read_before_does_not_see_it() -> None:
    groups = Groups()
    groups.commit(1)
    groups.log.replicating = False
    answer = groups.commit(2)
    assert not answer.done()
    assert groups.committed() == 1, "a failover could take the new one back"
    stable = groups.fetch(stable=True)
    assert not stable.done(), "a stable read waits for the newest"
    groups.replicate()
    assert error(answer) == ""
    assert groups.committed() == 2
    assert stable.result().committed_offset == 2


def test_a_stable_read_that_is_not_replicated_in_time_is_not_coordinator() -> None:
    groups = Groups()
    groups.log.replicating = False
    commit, stable = groups.commit(2), groups.fetch(stable=True)
    groups.advance(5_000)
    assert error(commit) == "CoordinatorNotAvailable"
    assert error(stable) == "NotCoordinator"


def test_a_commit_that_cannot_be_appended_leaves_the_offset_as_it_was() -> None:
    groups = Groups()
    groups.commit(1)
    groups.log.failure = NotEnoughReplicas()
    assert error(groups.commit(2)) == "CoordinatorNotAvailable"
    assert groups.committed() == 1
    assert groups.fetch(stable=True).result().committed_offset == 1


def test_the_commits_of_one_turn_are_one_batch() -> None:
    groups = Groups()
    appends = groups.log.appends
    answers = [groups.commit(offset, settle=False) for offset in range(5)]
    assert not any(answer.done() for answer in answers)
    groups.coordinator.settle(groups.now_ms)
    assert groups.log.appends == appends + 1
    assert [error(answer) for answer in answers] == [""] * 5
    assert groups.committed() == 4


def test_a_fetch_after_a_commit_on_the_same_turn_sees_it_if_it_is_stable() -> None:
    groups = Groups()
    groups.commit(1, settle=False)
    assert groups.fetch(stable=True).result().committed_offset == 1


def test_all_topics_can_be_fetched_in_every_version_that_has_it() -> None:
    groups = Groups()
    groups.commit(1)
    groups.commit(2, partition=1)
    for version in range(2, 11):
        if version < 8:
            request = OffsetFetchRequest(group_id="g", topics=None, groups=[])
        else:
            request = OffsetFetchRequest(groups=[OffsetFetchRequestGroup(group_id="g", topics=None)], topics=[])
        answer = groups.ask(request, version).result()
        (topic,) = answer.topics if version < 8 else answer.groups[0].topics
        assert (topic.topic_id == TOPIC_ID) if version == 10 else (topic.name == TOPIC)
        offsets = {partition.partition_index: partition.committed_offset for partition in topic.partitions}
        assert offsets == {0: 1, 1: 2}


def test_several_groups_can_be_fetched_at_once() -> None:
    groups = Groups()
    groups.commit(1, group="one")
    groups.commit(2, group="two")
    asked = [
        OffsetFetchRequestGroup(group_id=name, topics=[OffsetFetchRequestTopics(name=TOPIC, partition_indexes=[0])])
        for name in ("one", "two", "three")
    ]
    answer = groups.ask(OffsetFetchRequest(groups=asked, topics=[]), 8).result()
    found = {group.group_id: group.topics[0].partitions[0].committed_offset for group in answer.groups}
    assert found == {"one": 1, "two": 2, "three": -1}


def test_while_a_partition_is_loading_an_offset_is_an_error_and_not_minus_one() -> None:
    groups = Groups()
    groups.commit(1)
    groups.coordinator.unload(groups.partition())
    topics = [OffsetFetchRequestTopic(name=TOPIC, partition_indexes=[0])]
    for version, in_partition in ((1, True), (2, False), (7, False)):
        answer = groups.ask(OffsetFetchRequest(group_id="g", topics=topics, groups=[]), version).result()
        if in_partition:
            (partition,) = answer.topics[0].partitions
            assert (partition.error_code, partition.committed_offset) == (16, -1)
        else:
            assert (answer.error_code, answer.topics) == (16, [])
    assert error(groups.fetch()) == "NotCoordinator"


def test_a_topic_id_that_is_not_known_is_an_error_of_its_partitions() -> None:
    groups = Groups()
    groups.commit(1)
    topics = [
        OffsetFetchRequestTopics(topic_id=TOPIC_ID, partition_indexes=[0]),
        OffsetFetchRequestTopics(topic_id=Uuid(b"nobody's topic.."), partition_indexes=[0]),
    ]
    asked = [OffsetFetchRequestGroup(group_id="g", topics=topics)]
    (group,) = groups.ask(OffsetFetchRequest(groups=asked, topics=[]), 10).result().groups
    assert [topic.partitions[0].error_code for topic in group.topics] == [0, 100]
    assert [topic.partitions[0].committed_offset for topic in group.topics] == [1, -1]


def test_an_offset_of_a_former_topic_of_that_name_is_not_told() -> None:
    groups = Groups()
    groups.commit(1)
    again = Uuid(b"the same name...")
    groups.topics_by_name[TOPIC].id = again
    groups.topics_by_id[again] = groups.topics_by_name[TOPIC]
    topic = OffsetFetchRequestTopics(topic_id=again, partition_indexes=[0])
    asked = [OffsetFetchRequestGroup(group_id="g", topics=[topic])]
    (group,) = groups.ask(OffsetFetchRequest(groups=asked, topics=[]), 10).result().groups
    assert group.topics[0].partitions[0].committed_offset == -1


@pytest.mark.parametrize("kind", [0, 1])
def test_offsets_from_older_brokers_are_read(kind: int) -> None:
    groups = Groups()
    key = OffsetCommitKey(group="g", topic=TOPIC, partition=0).encode_with_version(kind)
    value = (
        LegacyOffsetCommitValue(offset=9, metadata="m", commit_timestamp=1).encode_with_version(0)
        if kind == 0
        else OffsetCommitValue(offset=9, metadata="m", commit_timestamp=1, expire_timestamp=5).encode_with_version(1)
    )
    groups.log.add_batch(groups.partition(), build_batch([(0, key, value, ())]), 1)
    groups.restart()
    assert groups.fetch().result().metadata == "m"
    assert groups.committed() == 9
