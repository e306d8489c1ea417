"""Metadata, version by version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ottla_broker.controller.image import MetadataDelta
from ottla_broker.controller.records import BrokerRegistrationChangeRecord, PartitionChangeRecord
from ottla_wire.messages.metadata import MetadataRequest, MetadataRequestTopic
from ottla_wire.schema import Uuid

UNKNOWN_TOPIC, LEADER_NOT_AVAILABLE, REPLICA_NOT_AVAILABLE, INVALID_TOPIC = 3, 5, 9, 17
INVALID_REQUEST, UNKNOWN_ID, NOTHING_ASKED = 42, 100, -(2**31)
NOBODY = Uuid(b"n" * 16)
ALL_VERSIONS = range(14)


def named(*names: str | None, create: bool = True, **fields: Any) -> MetadataRequest:
    topics = [MetadataRequestTopic(name=name) for name in names]
    return MetadataRequest(topics=topics, allow_auto_topic_creation=create, **fields)


def by_id(*ids: Uuid, name: str | None = None) -> MetadataRequest:
    return MetadataRequest(topics=[MetadataRequestTopic(name=name, topic_id=topic_id) for topic_id in ids])


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_every_version_names_the_brokers_and_the_leaders(admin: Any, version: int) -> None:
    topic_id = admin.bench.create_topic("orders", 2)
    response = admin.ask(named("orders"), version)
    (broker,) = response.brokers
    assert (broker.node_id, broker.host, broker.port) == (1, "bench.example", 9092)
    (topic,) = response.topics
    assert (topic.name, topic.error_code) == ("orders", 0)
    assert topic.topic_id == (topic_id if version >= 10 else Uuid.ZERO)
    assert [(p.partition_index, p.leader_id, p.error_code) for p in topic.partitions] == [(0, 1, 0), (1, 1, 0)]
    assert [(list(p.replica_nodes), list(p.isr_nodes)) for p in topic.partitions] == [([1], [1])] * 2
    assert [p.leader_epoch for p in topic.partitions] == [0 if version >= 7 else -1] * 2
    assert response.controller_id == (1 if version >= 1 else -1)
    assert response.cluster_id == ("bench" if version >= 2 else None)


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_all_topics_are_asked_for_with_null_and_in_the_oldest_version_with_an_empty_list(
    admin: Any, version: int
) -> None:
    admin.bench.create_topic("orders")
    admin.bench.create_topic("payments")
    everything = MetadataRequest(topics=[] if version == 0 else None)
    assert {t.name for t in admin.ask(everything, version).topics} == {"orders", "payments"}
    if version:
        assert list(admin.ask(MetadataRequest(topics=[]), version).topics) == []


@pytest.mark.parametrize("version", range(4))
def test_before_version_4_asking_creates(admin: Any, version: int) -> None:
    assert admin.ask(named("orders"), version).topics[0].error_code == 0
    assert "orders" in admin.image.topics_by_name


@pytest.mark.parametrize("version", range(4, 14))
def test_from_version_4_on_the_client_says_whether_asking_creates(admin: Any, version: int) -> None:
    assert admin.ask(named("orders", create=False), version).topics[0].error_code == UNKNOWN_TOPIC
    assert "orders" not in admin.image.topics_by_name
    (topic,) = admin.ask(named("orders", create=True), version).topics
    assert (topic.error_code, len(topic.partitions)) == (0, 1)


def test_a_created_topic_takes_records_when_its_metadata_is_answered(make_admin: Callable[..., Any]) -> None:
    admin = make_admin(num_partitions=3)
    (topic,) = admin.ask(named("orders")).topics
    assert len(topic.partitions) == 3
    assert admin.bench.partition("orders", 2).is_leader


def test_nothing_is_created_where_the_broker_does_not_allow_it(make_admin: Callable[..., Any]) -> None:
    admin = make_admin(auto_create_topics_enable=False)
    assert admin.ask(named("orders")).topics[0].error_code == UNKNOWN_TOPIC
    assert not admin.image.topics_by_name


def test_a_topic_that_cannot_be_created_is_unknown(make_admin: Callable[..., Any]) -> None:
    admin = make_admin(default_replication_factor=3)
    assert admin.ask(named("orders")).topics[0].error_code == UNKNOWN_TOPIC


@pytest.mark.parametrize("name", ["", "a b", "."])
def test_a_name_that_no_topic_can_have_is_called_invalid(admin: Any, name: str) -> None:
    assert admin.ask(named(name)).topics[0].error_code == INVALID_TOPIC
    assert admin.ask(named(name, create=False)).topics[0].error_code == INVALID_TOPIC
    assert not admin.image.topics_by_name


def test_an_internal_topic_is_created_with_its_own_settings_and_flagged(make_admin: Callable[..., Any]) -> None:
    admin = make_admin(offsets_topic_num_partitions=5)
    (unknown,) = admin.ask(named("__consumer_offsets", create=False)).topics
    assert (unknown.error_code, unknown.is_internal) == (UNKNOWN_TOPIC, True)
    (topic,) = admin.ask(named("__consumer_offsets")).topics
    assert (topic.is_internal, len(topic.partitions)) == (True, 5)
    assert admin.image.topic_config("__consumer_offsets")["cleanup.policy"] == "compact"


def test_a_name_asked_for_twice_is_answered_once(admin: Any) -> None:
    assert [t.name for t in admin.ask(named("orders", "orders", "payments")).topics] == ["orders", "payments"]


@pytest.mark.parametrize("version", [12, 13])
def test_topics_are_found_by_id_and_names_beside_ids_are_not_looked_at(admin: Any, version: int) -> None:
    topic_id = admin.bench.create_topic("orders")
    request = by_id(topic_id, NOBODY)
    request.topics.append(MetadataRequestTopic(name="payments"))
    known, unknown = admin.ask(request, version).topics
    assert (known.name, known.topic_id, known.error_code) == ("orders", topic_id, 0)
    assert (unknown.name, unknown.topic_id, unknown.error_code) == (None, NOBODY, UNKNOWN_ID)
    assert "payments" not in admin.image.topics_by_name


@pytest.mark.parametrize("version", [10, 11])
@pytest.mark.parametrize(("name", "topic_id"), [(None, Uuid.ZERO), (None, NOBODY), ("orders", NOBODY)])
def test_versions_10_and_11_have_ids_but_may_not_ask_with_them(
    admin: Any, version: int, name: str | None, topic_id: Uuid
) -> None:
    response = admin.ask(by_id(topic_id, name=name), version)
    (topic,) = response.topics
    assert (topic.name, topic.error_code) == (name or "", INVALID_REQUEST)
    assert list(response.brokers) == []


def test_a_topic_asked_for_by_nothing_is_an_error_that_version_13_says_at_the_top(admin: Any) -> None:
    assert admin.ask(by_id(Uuid.ZERO), 12).topics[0].error_code == INVALID_REQUEST
    response = admin.ask(by_id(Uuid.ZERO), 13)
    assert (response.error_code, response.topics[0].error_code) == (INVALID_REQUEST, INVALID_REQUEST)
    assert admin.ask(named("orders"), 13).error_code == 0


@pytest.mark.parametrize("version", range(8, 14))
def test_authorized_operations_are_told_to_who_asks(admin: Any, version: int) -> None:
    """The numbers are those of an Apache Kafka broker without an authorizer."""
    cluster = {"include_cluster_authorized_operations": True} if version <= 10 else {}
    request = named("orders", create=True, include_topic_authorized_operations=True, **cluster)
    response = admin.ask(request, version)
    assert response.topics[0].topic_authorized_operations == 3576
    assert response.cluster_authorized_operations == (8096 if version <= 10 else NOTHING_ASKED)
    response = admin.ask(named("orders"), version)
    assert response.topics[0].topic_authorized_operations == NOTHING_ASKED
    assert response.cluster_authorized_operations == NOTHING_ASKED


def change(admin: Any, *records: Any) -> None:
    for record in records:
        admin.image.replay(record, admin.image.end_offset, MetadataDelta())


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_a_partition_without_a_leader_says_so(admin: Any, version: int) -> None:
    topic_id = admin.bench.create_topic("orders")
    change(admin, PartitionChangeRecord(partition_id=0, topic_id=topic_id, leader=-1))
    (partition,) = admin.ask(named("orders"), version).topics[0].partitions
    assert (partition.error_code, partition.leader_id) == (LEADER_NOT_AVAILABLE, -1)


def test_a_fenced_broker_is_hidden_and_leads_nothing(admin: Any) -> None:
    admin.bench.create_topic("orders")
    change(admin, BrokerRegistrationChangeRecord(broker_id=1, broker_epoch=admin.image.brokers[1].epoch, fenced=1))
    response = admin.ask(named("orders"))
    (partition,) = response.topics[0].partitions
    assert list(response.brokers) == []
    assert (partition.error_code, partition.leader_id) == (LEADER_NOT_AVAILABLE, -1)
    assert list(partition.offline_replicas) == [1]
    assert list(partition.replica_nodes) == [1]


@pytest.mark.parametrize(("version", "code", "replicas"), [(0, REPLICA_NOT_AVAILABLE, [1]), (5, 0, [1, 2])])
def test_the_oldest_version_has_an_error_for_replicas_that_are_down(
    admin: Any, version: int, code: int, replicas: list[int]
) -> None:
    topic_id = admin.bench.create_topic("orders")
    change(admin, PartitionChangeRecord(partition_id=0, topic_id=topic_id, replicas=[1, 2], isr=[1, 2]))
    (partition,) = admin.ask(named("orders"), version).topics[0].partitions
    assert (partition.error_code, partition.leader_id) == (code, 1)
    assert list(partition.replica_nodes) == replicas
    assert list(partition.isr_nodes) == replicas
    assert list(partition.offline_replicas) == ([2] if version >= 5 else [])
