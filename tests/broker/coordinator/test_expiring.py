"""How long offsets are kept, and what deletes them and their groups."""

from __future__ import annotations

from ottla_wire.errors import KafkaStorageError
from ottla_wire.messages.consumer_protocol import ConsumerProtocolSubscription
from ottla_wire.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteRequestPartition,
    OffsetDeleteRequestTopic,
)
from ottla_wire.schema import Uuid
from support.groups import TOPIC, TOPIC_ID, Groups, error

HOUR_MS = 3_600_000
RETENTION = {"offsets_retention_minutes": 600, "offsets_retention_check_interval_ms": 600_000}


def subscribed_to(*topics: str) -> dict[str, bytes]:
    return {"range": ConsumerProtocolSubscription(topics=[*topics], user_data=None).encode_with_version(0)}


def keep_alive(groups: Groups, member_id: str, hours: int) -> None:
    generation = groups.group().generation
    for _ in range(hours):
        groups.advance(HOUR_MS)
        assert error(groups.heartbeat(member_id, generation)) == ""


def delete_offset(groups: Groups, topic: str = TOPIC, partition: int = 0) -> str:
    asked = OffsetDeleteRequestTopic(name=topic, partitions=[OffsetDeleteRequestPartition(partition_index=partition)])
    return error(groups.ask(OffsetDeleteRequest(group_id="g", topics=[asked]), 0))


def test_the_offsets_of_a_simple_group_age_from_their_commit_and_the_last_one_takes_the_group_along() -> None:
    groups = Groups(**RETENTION)
    groups.commit(1)
    groups.advance(5 * HOUR_MS)
    groups.commit(2, partition=1)
    groups.advance(5 * HOUR_MS + 600_000)
    assert (groups.committed(), groups.committed(partition=1)) == (-1, 2)
    assert groups.state() == "Empty"
    groups.advance(5 * HOUR_MS)
    assert groups.committed(partition=1) == -1
    assert groups.state() == "none"
    groups.restart()
    assert groups.list() == []


def test_the_offsets_of_a_group_that_lost_its_members_age_from_then() -> None:
    groups = Groups(**RETENTION, group_max_session_timeout_ms=10 * HOUR_MS)
    (a,) = groups.form(session_ms=2 * HOUR_MS)
    groups.commit(1, a, 1)
    keep_alive(groups, a, 8)
    groups.leave(a)
    groups.advance(9 * HOUR_MS)
    assert groups.committed() == 1
    groups.advance(HOUR_MS + 600_000)
    assert groups.state() == "none"


def test_the_time_without_members_is_counted_across_restarts() -> None:
    groups = Groups(**RETENTION)
    (a,) = groups.form()
    groups.commit(1, a, 1)
    groups.leave(a)
    groups.advance(9 * HOUR_MS)
    groups.restart()
    groups.advance(HOUR_MS + 600_000)
    assert groups.state() == "none"


def test_offsets_of_a_live_group_are_kept_for_its_topics_and_aged_for_others() -> None:
    groups = Groups(**RETENTION, group_max_session_timeout_ms=10 * HOUR_MS)
    (a,) = groups.form(protocols=subscribed_to(TOPIC), session_ms=2 * HOUR_MS)
    groups.topics_by_name["other"] = type(groups.topics_by_name[TOPIC])(
        name="other", id=Uuid(b"other topic's id"), partitions={0: None}
    )
    groups.commit(1, a, 1)
    groups.commit(1, a, 1, topic="other")
    keep_alive(groups, a, 11)
    assert groups.committed() == 1
    described = groups.coordinator.runtime.read(groups.partition(), lambda shard: shard.offsets.tombstones("g"))
    assert len(described) == 1


def test_offsets_of_a_live_group_that_nobody_can_read_are_all_kept() -> None:
    groups = Groups(**RETENTION, group_max_session_timeout_ms=10 * HOUR_MS)
    (a,) = groups.form(protocols={"range": b"what is this"}, session_ms=2 * HOUR_MS)
    groups.commit(1, a, 1)
    keep_alive(groups, a, 11)
    assert groups.committed() == 1


def test_nothing_expires_during_a_rebalance() -> None:
    groups = Groups(**RETENTION, group_max_session_timeout_ms=100 * HOUR_MS)
    (a,) = groups.form(protocols=subscribed_to(), session_ms=100 * HOUR_MS, rebalance_ms=100 * HOUR_MS)
    groups.commit(1, a, 1)
    groups.enter(protocols=subscribed_to(), session_ms=100 * HOUR_MS)
    groups.join(protocols=subscribed_to(), session_ms=100 * HOUR_MS)  # an id that is given out holds the phase open
    groups.join(a, protocols=subscribed_to(), session_ms=100 * HOUR_MS, rebalance_ms=100 * HOUR_MS)
    groups.advance(11 * HOUR_MS)
    assert groups.state() == "PreparingRebalance"
    assert groups.committed() == 1


def test_an_expiry_that_came_with_the_commit_counts_instead() -> None:
    groups = Groups(**RETENTION)
    groups.commit(1, version=3, retention_ms=HOUR_MS)
    groups.advance(HOUR_MS - 1)
    assert groups.committed() == 1
    groups.advance(600_000)
    assert groups.committed() == -1


def test_an_empty_group_without_offsets_goes_at_the_next_look_but_not_under_a_joining_member() -> None:
    groups = Groups(**RETENTION)
    groups.join(session_ms=900_000)
    groups.advance(600_000)
    assert groups.state() == "Empty", "an id is given out"
    groups.advance(600_000)
    assert groups.state() == "none"


def test_deleting_a_topic_deletes_its_offsets_in_all_groups() -> None:
    groups = Groups()
    for name in ("one", "two", "three"):
        groups.commit(1, group=name)
    groups.coordinator.on_topics_deleted({TOPIC_ID: TOPIC}, groups.now_ms)
    assert [groups.committed(group=name) for name in ("one", "two", "three")] == [-1] * 3
    groups.restart()
    assert groups.committed(group="one") == -1
    assert groups.state("one") == "Empty"


def test_deleting_a_topic_spares_the_offsets_of_its_namesake() -> None:
    groups = Groups()
    groups.commit(1)
    groups.coordinator.on_topics_deleted({Uuid(b"an older topic.."): TOPIC}, groups.now_ms)
    assert groups.committed() == 1


def test_offsets_can_be_deleted_for_topics_that_are_not_subscribed() -> None:
    groups = Groups()
    (a,) = groups.form(protocols=subscribed_to(TOPIC))
    groups.commit(1, a, 1)
    assert delete_offset(groups) == "GroupSubscribedToTopic"
    assert groups.committed() == 1
    groups.leave(a)
    assert delete_offset(groups) == ""
    assert groups.committed() == -1
    assert delete_offset(groups, partition=7) == "UnknownTopicOrPartition"
    assert delete_offset(groups, topic="nowhere") == "UnknownTopicOrPartition"


def test_offsets_of_a_group_of_another_protocol_cannot_be_deleted_while_it_has_members() -> None:
    groups = Groups()
    _, join = groups.enter(protocol_type="connect")
    groups.advance(0)
    assert join.done()
    assert delete_offset(groups) == "NonEmptyGroup"


def test_offsets_of_a_group_that_is_not_there_cannot_be_deleted() -> None:
    groups = Groups()
    assert delete_offset(groups) == "GroupIdNotFound"


def test_a_group_is_deleted_with_its_offsets_when_nobody_is_in_it() -> None:
    groups = Groups()
    (a,) = groups.form()
    groups.commit(1, a, 1)
    assert groups.delete() == "NonEmptyGroup"
    groups.leave(a)
    assert groups.delete() == ""
    assert (groups.state(), groups.committed()) == ("none", -1)
    assert groups.delete() == "GroupIdNotFound"
    groups.restart()
    assert (groups.state(), groups.committed()) == ("none", -1)


def test_a_deleted_group_leaves_no_timer_and_no_id_behind() -> None:
    groups = Groups()
    unused = groups.join().result().member_id
    assert groups.delete() == ""
    assert error(groups.join(unused)) == "UnknownMemberId"
    groups.advance(20_000)
    assert groups.state() == "none"


def test_a_deletion_that_cannot_be_appended_deletes_nothing() -> None:
    groups = Groups()
    groups.commit(1)
    groups.log.failure = KafkaStorageError()
    assert groups.delete() == "NotCoordinator"
    assert groups.committed() == 1
