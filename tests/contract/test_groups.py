"""Groups as applications use them: who reads what, what is committed, and what an administrator sees."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from ottla import errors
from ottla.client import KafkaConsumer, OffsetAndMetadata, TopicPartition
from ottla_wire.messages.describe_groups import DescribeGroupsRequest
from support.clusters import eventually

pytestmark = pytest.mark.every_version


def turn(consumers: list[KafkaConsumer], until: Callable[[], Any], seconds: float = 30) -> list[Any]:
    """Poll all of them in turn until something is so; returns what they read."""
    found: list[Any] = []
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, [consumer.assignment() for consumer in consumers]
        for consumer in consumers:
            found += consumer.poll(0.05)
    return found


def read(consumer: KafkaConsumer, count: int) -> list[Any]:
    found: list[Any] = []
    deadline = time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} records"
        found += consumer.poll(0.2)
    return found


def shares(consumers: list[KafkaConsumer]) -> list[list[int]]:
    """What each of them reads, as partition numbers."""
    return [sorted(partition.partition for partition in consumer.assignment()) for consumer in consumers]


@pytest.fixture
def group(cluster: Any) -> str:
    return str(cluster.fresh("g"))


@pytest.fixture
def member(cluster: Any, group: str, topic: Any, make_consumer: Any) -> Callable[..., KafkaConsumer]:
    """A consumer of the group that is subscribed to the topic of three partitions."""

    def make(**settings: Any) -> KafkaConsumer:
        consumer: KafkaConsumer = make_consumer(
            group_id=group, session_timeout_ms=8_000, heartbeat_interval_ms=100, **settings
        )
        consumer.subscribe([topic.name])
        return consumer

    return make


class TestSharing:
    def test_one_member_has_all(self, member: Any) -> None:
        alone = member()
        turn([alone], lambda: alone.assignment())
        assert shares([alone]) == [[0, 1, 2]]

    @pytest.mark.parametrize("strategy", ["range", "roundrobin", "sticky", "cooperative-sticky"])
    def test_members_that_come_get_a_share_and_leave_it_behind(self, member: Any, strategy: str) -> None:
        consumers = [member(partition_assignment_strategy=[strategy])]
        turn(consumers, lambda: shares(consumers) == [[0, 1, 2]])
        for expected in ([1, 2], [1, 1, 1]):
            consumers.append(member(partition_assignment_strategy=[strategy]))
            turn(consumers, lambda expected=expected: sorted(map(len, shares(consumers))) == expected)
            assert sorted(itertools.chain(*shares(consumers))) == [0, 1, 2]
        consumers.pop(0).close()
        turn(consumers, lambda: sorted(map(len, shares(consumers))) == [1, 2])

    def test_a_cooperative_rebalance_takes_away_only_what_moves(self, member: Any) -> None:
        heard: list[tuple[str, list[int]]] = []

        class Listener:
            def on_partitions_assigned(self, partitions: Any) -> None:
                heard.append(("assigned", sorted(partition.partition for partition in partitions)))

            def on_partitions_revoked(self, partitions: Any) -> None:
                heard.append(("revoked", sorted(partition.partition for partition in partitions)))

        first = member(partition_assignment_strategy=["cooperative-sticky"])
        first.subscribe(first.subscription(), listener=Listener())
        turn([first], lambda: first.assignment())
        assert heard == [("assigned", [0, 1, 2])]
        second = member(partition_assignment_strategy=["cooperative-sticky"])
        turn([first, second], lambda: sorted(map(len, shares([first, second]))) == [1, 2])
        (moved,) = [partitions for what, partitions in heard[1:] if what == "revoked" and partitions]
        assert len(moved) == 1
        assert [partitions for what, partitions in heard[1:] if what == "assigned" and partitions] == []

    def test_a_static_member_comes_back_without_a_rebalance(self, member: Any, cluster: Any, group: str) -> None:
        stays, goes = member(group_instance_id="stays"), member(group_instance_id="goes")
        turn([stays, goes], lambda: sorted(map(len, shares([stays, goes]))) == [1, 2])
        before = stays.group_metadata().generation_id
        share = shares([goes])
        goes.close()
        back = member(group_instance_id="goes")
        turn([stays, back], lambda: back.assignment())
        assert shares([back]) == share
        assert stays.group_metadata().generation_id == before

    def test_a_second_member_with_the_same_instance_fences_the_first(self, member: Any) -> None:
        first = member(group_instance_id="only")
        turn([first], lambda: first.assignment())
        second = member(group_instance_id="only")
        turn([second], lambda: second.assignment())
        with pytest.raises(errors.FencedInstanceId):
            turn([first], lambda: False, seconds=10)

    def test_a_topic_that_grows_reaches_the_group(self, member: Any, cluster: Any, topic: Any, make_batch: Any) -> None:
        consumer = member(metadata_max_age_ms=500)
        turn([consumer], lambda: shares([consumer]) == [[0, 1, 2]])
        cluster.admin.create_partitions({topic.name: 4})
        turn([consumer], lambda: shares([consumer]) == [[0, 1, 2, 3]])


class TestCommits:
    def test_the_next_member_goes_on_at_the_committed_offset(self, member: Any, topic: Any, make_batch: Any) -> None:
        topic.produce(make_batch(b"0", b"1", b"2", b"3"))
        first = member(max_poll_records=2)
        before = read(first, 2)
        first.commit()
        first.close()
        after = read(member(), 2)
        assert [record.offset for record in before + after] == [0, 1, 2, 3]

    def test_an_offset_with_its_metadata_and_epoch(self, member: Any, topic: Any) -> None:
        here = TopicPartition(topic.name, 1)
        consumer = member()
        turn([consumer], lambda: consumer.assignment())
        offset = OffsetAndMetadata(17, 0, "a note, grüße")
        consumer.commit({here: offset})
        nothing = TopicPartition(topic.name, 2)
        assert consumer.committed([here, nothing]) == {here: offset, nothing: None}

    def test_auto_commit_when_the_consumer_is_closed(
        self, member: Any, cluster: Any, group: str, topic: Any, make_batch: Any
    ) -> None:
        topic.produce(make_batch(b"a", b"b"))
        consumer = member(enable_auto_commit=True)
        read(consumer, 2)
        consumer.close()
        here = TopicPartition(topic.name, 0)
        assert cluster.admin.list_group_offsets(group)[here].offset == 2

    def test_commits_of_a_consumer_that_is_no_member(self, make_consumer: Any, group: str, topic: Any) -> None:
        here = TopicPartition(topic.name, 0)
        consumer = make_consumer(group_id=group)
        consumer.assign([here])
        consumer.commit({here: OffsetAndMetadata(5)})
        assert consumer.committed([here]) == {here: OffsetAndMetadata(5)}

    def test_such_a_commit_is_refused_while_the_group_has_members(
        self, member: Any, make_consumer: Any, group: str, topic: Any
    ) -> None:
        alive = member()
        turn([alive], lambda: alive.assignment())
        outsider = make_consumer(group_id=group)
        here = TopicPartition(topic.name, 0)
        outsider.assign([here])
        with pytest.raises(errors.CommitFailed):
            outsider.commit({here: OffsetAndMetadata(5)})


class TestAdministration:
    def test_a_group_and_its_members(self, member: Any, cluster: Any, group: str, topic: Any) -> None:
        consumers = [member(client_id="c", group_instance_id=f"i{number}") for number in range(2)]
        turn(consumers, lambda: sorted(map(len, shares(consumers))) == [1, 2])
        described = cluster.admin.describe_groups([group])[group]
        assert (described.state, described.protocol_type, described.assignor) == ("Stable", "consumer", "range")
        assert described.coordinator.id == 1
        assert {member.group_instance_id for member in described.members} == {"i0", "i1"}
        assert {member.client_id for member in described.members} == {"c"}
        assigned = sorted(partition for member in described.members for partition in member.assignment)
        assert assigned == [TopicPartition(topic.name, index) for index in range(3)]
        (listed,) = [listed for listed in cluster.admin.list_groups() if listed.group_id == group]
        assert (listed.protocol_type, listed.state, listed.type.lower()) == ("consumer", "Stable", "classic")
        assert group not in {listed.group_id for listed in cluster.admin.list_groups(states=["Empty"])}

    def test_a_group_with_offsets_only(self, cluster: Any, group: str, topic: Any) -> None:
        here = TopicPartition(topic.name, 0)
        cluster.admin.alter_group_offsets(group, {here: 3})
        assert cluster.admin.describe_groups([group])[group].state == "Empty"
        assert cluster.admin.list_group_offsets(group) == {here: OffsetAndMetadata(3)}
        cluster.admin.alter_group_offsets(group, {here: 1})
        assert cluster.admin.list_group_offsets(group) == {here: OffsetAndMetadata(1)}
        cluster.admin.delete_groups([group])
        assert cluster.admin.list_group_offsets(group) == {}

    def test_a_group_with_members_is_not_deleted_and_its_offsets_stay(
        self, member: Any, cluster: Any, group: str, topic: Any
    ) -> None:
        consumer = member()
        turn([consumer], lambda: consumer.assignment())
        here = TopicPartition(topic.name, 0)
        with pytest.raises(errors.NonEmptyGroup):
            cluster.admin.delete_groups([group])
        with pytest.raises(errors.UnknownMemberId):
            cluster.admin.alter_group_offsets(group, {here: 1})
        consumer.commit({here: OffsetAndMetadata(0)})
        with pytest.raises(errors.GroupSubscribedToTopic):
            cluster.admin.delete_group_offsets(group, [here])
        consumer.close()
        cluster.admin.delete_group_offsets(group, [here])
        assert cluster.admin.list_group_offsets(group) == {}

    def test_a_group_that_is_not_there(self, cluster: Any, group: str) -> None:
        admin = cluster.admin
        assert admin.list_group_offsets(group) == {}
        with pytest.raises(errors.GroupIdNotFound):
            admin.delete_groups([group])
        if cluster.newest(DescribeGroupsRequest, at_most=6) == 6:
            with pytest.raises(errors.GroupIdNotFound):
                admin.describe_groups([group])
        else:  # before Kafka 4.0 there is no error for it
            described = admin.describe_groups([group])[group]
            assert (described.state, described.members) == ("Dead", ())

    def test_offsets_go_with_their_topic(self, cluster: Any, group: str, topic: Any) -> None:
        cluster.admin.alter_group_offsets(group, {TopicPartition(topic.name, 0): 3})
        cluster.admin.delete_topics([topic.name])
        eventually(lambda: cluster.admin.list_group_offsets(group) == {})
