"""MetadataImage: what replayed records add up to, and what a delta tells of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottla_broker.controller.image import (
    CLUSTER_DEFAULT,
    ConfigResource,
    MetadataDelta,
    MetadataImage,
    ResourceType,
)
from ottla_broker.controller.records import (
    BrokerRegistrationChangeRecord,
    ConfigRecord,
    FeatureLevelRecord,
    MetadataRecord,
    PartitionChangeRecord,
    PartitionRecord,
    ProducerIdsRecord,
    RegisterBrokerRecord,
    RemoveTopicRecord,
    TopicRecord,
    UnregisterBrokerRecord,
)
from ottla_wire.schema import Uuid

A, B = Uuid(b"a" * 16), Uuid(b"b" * 16)


def partition(topic_id: Uuid, index: int = 0, **fields: Any) -> PartitionRecord:
    defaults: dict[str, Any] = {"replicas": [1, 2], "isr": [1, 2], "leader": 1, "leader_epoch": 0, "partition_epoch": 0}
    return PartitionRecord(partition_id=index, topic_id=topic_id, **(defaults | fields))


class Replayed:
    """An image, and the delta of what was replayed last."""

    def __init__(self) -> None:
        self.image = MetadataImage("cluster")
        self.delta = MetadataDelta()

    def replay(self, *records: MetadataRecord) -> Replayed:
        self.delta = MetadataDelta()
        for record in records:
            self.image.replay(record, self.image.end_offset, self.delta)
        return self


@pytest.fixture
def state() -> Replayed:
    return Replayed()


def test_a_topic_and_its_partitions_are_found_by_name_and_id(state: Replayed) -> None:
    state.replay(TopicRecord(name="orders", topic_id=A), partition(A, 0), partition(A, 1, leader=2, leader_epoch=4))
    topic = state.image.topics_by_name["orders"]
    assert state.image.topics_by_id[A] is topic
    assert topic.partitions[1].leader == 2
    found = state.image.partition("orders", 1)
    assert found is not None
    assert found.leader_epoch == 4
    assert state.image.partition("orders", 2) is None
    assert state.image.partition("other", 0) is None
    assert state.image.end_offset == state.delta.end_offset == 3
    assert set(state.delta.created_topics) == {A}
    assert state.delta.changed_partitions == {A: {0, 1}}


def test_a_change_without_a_leader_raises_only_the_partition_epoch(state: Replayed) -> None:
    state.replay(TopicRecord(name="orders", topic_id=A), partition(A, leader_epoch=7))
    state.replay(PartitionChangeRecord(partition_id=0, topic_id=A, isr=[1]))
    changed = state.image.topics_by_id[A].partitions[0]
    assert (changed.isr, changed.leader, changed.leader_epoch, changed.partition_epoch) == ((1,), 1, 7, 1)
    assert state.delta.changed_partitions == {A: {0}}
    assert not state.delta.created_topics


@pytest.mark.parametrize("leader", [1, 2, -1])
def test_a_change_with_a_leader_raises_the_leader_epoch_even_for_the_same_leader(state: Replayed, leader: int) -> None:
    state.replay(TopicRecord(name="orders", topic_id=A), partition(A, leader_epoch=7))
    state.replay(PartitionChangeRecord(partition_id=0, topic_id=A, leader=leader, replicas=[2, 1]))
    changed = state.image.topics_by_id[A].partitions[0]
    assert (changed.leader, changed.leader_epoch, changed.partition_epoch) == (leader, 8, 1)
    assert (changed.replicas, changed.isr) == ((2, 1), (1, 2))


def test_a_partition_taken_from_the_image_stays_as_it_was(state: Replayed) -> None:
    state.replay(TopicRecord(name="orders", topic_id=A), partition(A))
    before = state.image.topics_by_id[A].partitions[0]
    state.replay(PartitionChangeRecord(partition_id=0, topic_id=A, leader=2))
    assert before.leader == 1
    with pytest.raises(AttributeError):
        before.leader = 5  # type: ignore[misc]


def test_a_removed_topic_takes_its_configuration_along_and_leaves_its_last_state_in_the_delta(state: Replayed) -> None:
    config = ConfigRecord(resource_type=2, resource_name="orders", name="retention.ms", value="1")
    state.replay(TopicRecord(name="orders", topic_id=A), config, partition(A, 0), partition(A, 1))
    state.replay(RemoveTopicRecord(topic_id=A))
    assert not state.image.topics_by_name
    assert not state.image.topics_by_id
    assert not state.image.configs
    assert set(state.delta.deleted_topics[A].partitions) == {0, 1}
    assert state.delta.changed_configs == {ConfigResource(ResourceType.TOPIC, "orders")}
    state.replay(TopicRecord(name="orders", topic_id=B))
    assert dict(state.image.topic_config("orders")) == {}


def test_a_topic_recreated_in_one_delta_is_deleted_and_created_under_its_two_ids(state: Replayed) -> None:
    state.replay(TopicRecord(name="orders", topic_id=A), partition(A))
    state.replay(RemoveTopicRecord(topic_id=A), TopicRecord(name="orders", topic_id=B), partition(B))
    assert (set(state.delta.deleted_topics), set(state.delta.created_topics)) == ({A}, {B})
    assert state.delta.changed_partitions == {B: {0}}


def test_a_topic_that_comes_and_goes_in_one_delta_is_not_in_it(state: Replayed) -> None:
    state.replay(TopicRecord(name="orders", topic_id=A), partition(A), RemoveTopicRecord(topic_id=A))
    assert (state.delta.created_topics, state.delta.deleted_topics, state.delta.changed_partitions) == ({}, {}, {})


def test_a_partition_change_before_the_removal_of_its_topic_leaves_no_trace(state: Replayed) -> None:
    state.replay(TopicRecord(name="orders", topic_id=A), partition(A))
    state.replay(PartitionChangeRecord(partition_id=0, topic_id=A, leader=2), RemoveTopicRecord(topic_id=A))
    assert state.delta.changed_partitions == {}
    assert set(state.delta.deleted_topics) == {A}


def test_names_collide_that_differ_in_dot_and_underscore_only(state: Replayed) -> None:
    state.replay(TopicRecord(name="a.b_c", topic_id=A), TopicRecord(name="plain", topic_id=B))
    assert state.image.topic_colliding_with("a_b.c") == "a.b_c"
    assert state.image.topic_colliding_with("a.b_c") == "a.b_c"
    assert state.image.topic_colliding_with("a.b-c") is None
    assert state.image.topic_colliding_with("plain") is None
    state.replay(RemoveTopicRecord(topic_id=A))
    assert state.image.topic_colliding_with("a_b.c") is None


def test_of_two_colliding_topics_the_other_is_found_when_one_is_gone(state: Replayed) -> None:
    state.replay(TopicRecord(name="a.b", topic_id=A), TopicRecord(name="a_b", topic_id=B))
    state.replay(RemoveTopicRecord(topic_id=A))
    assert state.image.topic_colliding_with("a.b") == "a_b"


def test_a_configuration_is_set_and_removed_by_its_key(state: Replayed) -> None:
    state.replay(
        ConfigRecord(resource_type=4, resource_name="", name="log.retention.ms", value="5"),
        ConfigRecord(resource_type=4, resource_name="", name="message.max.bytes", value="6"),
        ConfigRecord(resource_type=4, resource_name="", name="log.retention.ms", value=None),
    )
    assert dict(state.image.config(CLUSTER_DEFAULT)) == {"message.max.bytes": "6"}
    assert state.delta.changed_configs == {CLUSTER_DEFAULT}
    state.replay(ConfigRecord(resource_type=4, resource_name="", name="message.max.bytes", value=None))
    assert not state.image.configs


def registered(broker_id: int, epoch: int, **fields: Any) -> RegisterBrokerRecord:
    return RegisterBrokerRecord(
        broker_id=broker_id, incarnation_id=A, broker_epoch=epoch, end_points=[], features=[], **fields
    )


def test_a_broker_is_active_while_it_is_neither_fenced_nor_shutting_down(state: Replayed) -> None:
    state.replay(registered(2, 0), registered(1, 1, fenced=False, log_dirs=[B]))
    assert [broker.id for broker in state.image.active_brokers()] == [1]
    state.replay(BrokerRegistrationChangeRecord(broker_id=2, broker_epoch=0, fenced=-1))
    assert [broker.id for broker in state.image.active_brokers()] == [1, 2]
    state.replay(BrokerRegistrationChangeRecord(broker_id=1, broker_epoch=1, in_controlled_shutdown=1))
    assert [broker.id for broker in state.image.active_brokers()] == [2]
    assert state.image.brokers[1].directories == (B,)
    state.replay(BrokerRegistrationChangeRecord(broker_id=2, broker_epoch=0, fenced=1))
    assert state.image.active_brokers() == []
    assert state.delta.changed_brokers == {2}


def test_a_new_incarnation_replaces_the_old_one_and_an_unregistered_broker_is_gone(state: Replayed) -> None:
    state.replay(registered(1, 0, fenced=False))
    state.replay(registered(1, 1, fenced=False))
    assert state.image.brokers[1].epoch == 1
    state.replay(UnregisterBrokerRecord(broker_id=1, broker_epoch=1))
    assert not state.image.brokers


def test_a_change_for_another_incarnation_of_a_broker_is_a_broken_log(state: Replayed) -> None:
    state.replay(registered(1, 0))
    with pytest.raises(AssertionError, match="wrong broker epoch"):
        state.replay(BrokerRegistrationChangeRecord(broker_id=1, broker_epoch=9, fenced=-1))
    with pytest.raises(AssertionError, match="wrong broker epoch"):
        state.replay(UnregisterBrokerRecord(broker_id=1, broker_epoch=9))


def test_a_feature_at_level_zero_is_not_finalized(state: Replayed) -> None:
    state.replay(FeatureLevelRecord(name="group.version", feature_level=1))
    assert dict(state.image.features) == {"group.version": 1}
    state.replay(FeatureLevelRecord(name="group.version", feature_level=0))
    assert dict(state.image.features) == {}
    assert state.delta.changed_features == {"group.version"}


def test_producer_ids_never_go_back(state: Replayed) -> None:
    state.replay(ProducerIdsRecord(broker_id=1, broker_epoch=0, next_producer_id=2000))
    with pytest.raises(AssertionError, match="given once"):
        state.replay(ProducerIdsRecord(broker_id=1, broker_epoch=0, next_producer_id=1000))


def test_the_epoch_of_the_controller_never_falls(state: Replayed) -> None:
    state.image.leader_changed(1, 4)
    with pytest.raises(AssertionError, match="never falls"):
        state.image.leader_changed(1, 3)


def test_a_topic_that_exists_cannot_be_created(state: Replayed) -> None:
    state.replay(TopicRecord(name="orders", topic_id=A))
    with pytest.raises(AssertionError, match="while it exists"):
        state.replay(TopicRecord(name="orders", topic_id=B))


def test_the_delta_of_everything_names_all_that_a_late_listener_needs(state: Replayed) -> None:
    state.replay(
        registered(1, 0),
        TopicRecord(name="orders", topic_id=A),
        partition(A, 0),
        partition(A, 1),
        ConfigRecord(resource_type=2, resource_name="orders", name="retention.ms", value="1"),
        FeatureLevelRecord(name="group.version", feature_level=1),
    )
    everything = state.image.everything()
    assert everything == state.delta


class Change:
    """One random step of a cluster's life: chosen by numbers, so that hypothesis can shrink it."""

    def __init__(self, cluster: Any, number: int, choice: int) -> None:
        names = sorted(cluster.image.topics_by_name)
        name = names[choice % len(names)] if names else "none"
        steps: list[Callable[[], Any]] = [
            lambda: cluster.create(cluster.topic(f"t.{choice % 7}", 1 + choice % 3)),
            lambda: cluster.delete(name),
            lambda: cluster.grow(name, 2 + choice % 4),
            lambda: cluster.alter(name, ("retention.ms", choice % 2, str(choice))),
            lambda: cluster.alter(CLUSTER_DEFAULT, ("log.retention.ms", choice % 2, str(choice))),
            lambda: cluster.controller.producer_ids.next(),
            lambda: cluster.replace(name, {"segment.ms": str(1 + choice)} if choice % 2 else {}),
        ]
        steps[number % len(steps)]()


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 50)), max_size=30), st.booleans())
def test_the_image_after_a_restart_is_the_image_before_it(
    make_cluster: Callable[..., Any],
    snapshot_of: Callable[[MetadataImage], dict[str, Any]],
    steps: list[tuple[int, int]],
    is_clean: bool,
) -> None:
    cluster = make_cluster().start()
    for number, choice in steps:
        Change(cluster, number, choice)
    before = snapshot_of(cluster.image)
    again = make_cluster(cluster.log.reopened())
    again.controller.load()
    assert snapshot_of(again.image) == before
    registered_again = cluster.restarted(clean_shutdown=is_clean)
    for name, (_, partitions) in before["topics"].items():
        for index, old in partitions.items():
            new = registered_again.image.topics_by_name[name].partitions[index]
            assert new.leader_epoch == old.leader_epoch + (0 if is_clean else 1)


def test_random_topic_ids_do_not_depend_on_the_global_generator(make_cluster: Callable[..., Any]) -> None:
    random.seed(1)
    first = make_cluster(seed=5).start().create_one("orders")
    random.seed(2)
    assert make_cluster(seed=5).start().create_one("orders") == first
