"""The admin client against our own broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from ottla.client import AdminClient, AsyncAdminClient, KafkaProducer, OffsetAndMetadata, TopicPartition
from ottla.client.admin import ConfigResource, NewTopic, OffsetSpec, SomeFailed
from ottla.errors import (
    GroupIdNotFound,
    InvalidConfig,
    InvalidPartitions,
    InvalidTopic,
    OffsetOutOfRange,
    TopicAlreadyExists,
    UnknownTopicOrPartition,
)

NewTopicFixture = Callable[..., str]


def filled(bootstrap_servers: str, topic: str, *counts: int) -> None:
    with KafkaProducer(bootstrap_servers=bootstrap_servers) as producer:
        for partition, count in enumerate(counts):
            for number in range(count):
                producer.send(topic, b"v", partition=partition, timestamp_ms=1000 + number)
        producer.flush(20)


def test_a_topic_is_created_described_and_deleted(admin: AdminClient) -> None:
    created = admin.create_topics([NewTopic("made", 3, 1)])["made"]
    assert created.partitions == 3
    described = admin.describe_topics(["made"])["made"]
    assert described.topic_id == created.topic_id
    assert [partition.index for partition in described.partitions] == [0, 1, 2]
    assert described.partitions[0].leader is not None
    assert "made" in admin.list_topics()
    admin.delete_topics(["made"])
    assert "made" not in admin.list_topics()


def test_validate_only_creates_nothing(admin: AdminClient) -> None:
    admin.create_topics(["only-a-thought"], validate_only=True)
    assert "only-a-thought" not in admin.list_topics()


def test_one_item_raises_its_own_error(admin: AdminClient, new_topic: NewTopicFixture) -> None:
    topic = new_topic()
    with pytest.raises(TopicAlreadyExists):
        admin.create_topics([topic])
    with pytest.raises(InvalidTopic):
        admin.create_topics(["no/such/name"])
    with pytest.raises(UnknownTopicOrPartition):
        admin.delete_topics(["nowhere"])
    with pytest.raises(UnknownTopicOrPartition):
        admin.describe_topics(["nowhere"])


def test_several_items_tell_which_failed_and_what_came_of_the_others(
    admin: AdminClient, new_topic: NewTopicFixture
) -> None:
    topic = new_topic()
    with pytest.raises(SomeFailed, match=f"1 of 2 failed: {topic}: TopicAlreadyExists") as caught:
        admin.create_topics([topic, f"{topic}-other"])
    assert isinstance(caught.value.errors[topic], TopicAlreadyExists)
    assert caught.value.results[f"{topic}-other"].name == f"{topic}-other"


def test_partitions_can_be_added_and_not_taken_away(admin: AdminClient, new_topic: NewTopicFixture) -> None:
    topic = new_topic(2)
    admin.create_partitions({topic: 4})
    assert len(admin.describe_topics([topic])[topic].partitions) == 4
    with pytest.raises(InvalidPartitions):
        admin.create_partitions({topic: 1})


def test_the_cluster_names_its_brokers(admin: AdminClient, bootstrap_servers: str) -> None:
    cluster = admin.describe_cluster()
    assert cluster.cluster_id
    assert cluster.controller in cluster.nodes
    assert f"{cluster.nodes[0].host}:{cluster.nodes[0].port}" == bootstrap_servers


def test_a_changed_setting_leaves_the_others_and_none_brings_the_default_back(
    admin: AdminClient, new_topic: NewTopicFixture
) -> None:
    topic = new_topic(1, retention_ms=5000)
    owner = ConfigResource.topic(topic)
    admin.alter_configs({owner: {"max.message.bytes": 4000}})
    entries = admin.describe_configs([owner])[owner]
    assert entries["max.message.bytes"].value == "4000"
    assert entries["retention.ms"].value == "5000"
    assert not entries["retention.ms"].is_default
    assert entries["segment.bytes"].is_default
    admin.alter_configs({owner: {"retention.ms": None}})
    assert admin.describe_configs([owner])[owner]["retention.ms"].is_default
    with pytest.raises(InvalidConfig):
        admin.alter_configs({owner: {"retention.ms": "soon"}})


def test_a_brokers_settings_are_asked_of_that_broker(admin: AdminClient) -> None:
    node = admin.describe_cluster().nodes[0]
    owner = ConfigResource.broker(node.id)
    assert admin.describe_configs([owner])[owner]


def test_offsets_by_place_and_by_time(admin: AdminClient, new_topic: NewTopicFixture, bootstrap_servers: str) -> None:
    topic = new_topic(2)
    filled(bootstrap_servers, topic, 5, 2)
    first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
    assert admin.list_offsets({first: OffsetSpec.EARLIEST, second: OffsetSpec.LATEST})[second].offset == 2
    by_time = admin.list_offsets({first: 1003, second: 1003})
    assert (by_time[first].offset, by_time[first].timestamp_ms) == (3, 1003)
    assert by_time[second].offset == -1
    with pytest.raises(UnknownTopicOrPartition):
        admin.list_offsets({TopicPartition("nowhere", 0): OffsetSpec.LATEST}, timeout=0.3)


def test_records_below_an_offset_are_deleted(
    admin: AdminClient, new_topic: NewTopicFixture, bootstrap_servers: str
) -> None:
    topic = new_topic(2)
    filled(bootstrap_servers, topic, 5, 2)
    first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
    assert admin.delete_records({first: 3, second: -1}) == {first: 3, second: 2}
    assert admin.list_offsets({first: OffsetSpec.EARLIEST})[first].offset == 3
    with pytest.raises(OffsetOutOfRange):
        admin.delete_records({first: 99})


def test_a_groups_offsets_are_set_read_and_forgotten(admin: AdminClient, new_topic: NewTopicFixture) -> None:
    topic = new_topic(3)
    first, second, third = (TopicPartition(topic, index) for index in range(3))
    admin.alter_group_offsets("readers", {first: 4, second: OffsetAndMetadata(2, metadata="note")})
    assert admin.list_group_offsets("readers") == {
        first: OffsetAndMetadata(4),
        second: OffsetAndMetadata(2, metadata="note"),
    }
    assert admin.list_group_offsets("readers", [third]) == {third: None}
    assert "readers" in [group.group_id for group in admin.list_groups()]
    assert admin.describe_groups(["readers"])["readers"].state == "Empty"
    admin.delete_group_offsets("readers", [first])
    assert list(admin.list_group_offsets("readers")) == [second]
    admin.delete_groups(["readers"])
    with pytest.raises(GroupIdNotFound):
        admin.delete_groups(["readers"])


def test_the_async_face_does_the_same_awaited(bootstrap_servers: str) -> None:
    async def scenario() -> None:
        async with AsyncAdminClient(bootstrap_servers=bootstrap_servers) as client:
            await client.create_topics(["made-async"])
            assert "made-async" in await client.list_topics()

    asyncio.run(scenario())


def test_the_blocking_face_on_an_event_loop_names_the_async_one(admin: AdminClient) -> None:
    async def scenario() -> None:
        with pytest.raises(RuntimeError, match=r"await AsyncAdminClient\.list_topics"):
            admin.list_topics()

    asyncio.run(scenario())
