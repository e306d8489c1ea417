"""CreateTopics, CreatePartitions and DeleteTopics over the wire; the decisions are tested beside the controller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ottla_wire.messages.create_partitions import CreatePartitionsRequest, CreatePartitionsTopic
from ottla_wire.messages.create_topics import CreatableTopic, CreateTopicsRequest
from ottla_wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from ottla_wire.schema import Uuid

POLICY_VIOLATION, INVALID_REQUEST, DELETION_DISABLED, INVALID_PARTITIONS = 44, 42, 73, 37


def creation(*names: str, partitions: int = 2) -> CreateTopicsRequest:
    topics = [CreatableTopic(name=name, num_partitions=partitions, replication_factor=1) for name in names]
    return CreateTopicsRequest(topics=topics)


def deletion(version: int, *names: str) -> DeleteTopicsRequest:
    if version >= 6:
        return DeleteTopicsRequest(topics=[DeleteTopicState(name=name) for name in names], timeout_ms=1)
    return DeleteTopicsRequest(topic_names=list(names), timeout_ms=1)


@pytest.mark.parametrize("version", range(2, 8))
def test_a_topic_is_created_in_every_version(admin: Any, version: int) -> None:
    (result,) = admin.ask(creation("orders"), version).topics
    assert (result.name, result.error_code, result.error_message) == ("orders", 0, None)
    assert (result.num_partitions, result.replication_factor) == ((2, 1) if version >= 5 else (-1, -1))
    assert len(result.configs) == (33 if version >= 5 else 0)
    assert (result.topic_id != Uuid.ZERO) == (version >= 7)
    assert admin.bench.partition("orders", 1).is_leader


@pytest.mark.parametrize("version", range(2, 8))
def test_a_refusal_carries_its_sentence_in_every_version(admin: Any, version: int) -> None:
    (result,) = admin.ask(creation("a b"), version).topics
    assert result.error_code == 17
    assert result.error_message.startswith("Topic name is invalid: 'a b' contains")


def test_a_request_for_too_much_is_refused_topic_by_topic(admin: Any) -> None:
    results = admin.ask(creation("orders", "payments", partitions=5_001)).topics
    assert [(r.name, r.error_code) for r in results] == [("orders", POLICY_VIOLATION), ("payments", POLICY_VIOLATION)]
    assert results[0].error_message == "Excessively large number of partitions per request."
    assert not admin.image.topics_by_name


@pytest.mark.parametrize("version", range(4))
def test_a_topic_grows_in_every_version(admin: Any, version: int) -> None:
    admin.bench.create_topic("orders")
    growth = CreatePartitionsTopic(name="orders", count=3, assignments=None)
    request = CreatePartitionsRequest(topics=[growth], timeout_ms=1, validate_only=False)
    (result,) = admin.ask(request, version).results
    assert (result.name, result.error_code, result.error_message) == ("orders", 0, None)
    assert admin.bench.partition("orders", 2).is_leader
    (result,) = admin.ask(request, version).results
    assert (result.error_code, result.error_message) == (INVALID_PARTITIONS, "Topic already has 3 partition(s).")


def test_growth_by_too_much_is_refused_topic_by_topic(admin: Any) -> None:
    admin.bench.create_topic("orders")
    growth = CreatePartitionsTopic(name="orders", count=10_002, assignments=None)
    request = CreatePartitionsRequest(topics=[growth], timeout_ms=1, validate_only=False)
    (result,) = admin.ask(request).results
    assert (result.name, result.error_code) == ("orders", POLICY_VIOLATION)


@pytest.mark.parametrize("version", range(1, 7))
def test_a_topic_is_deleted_in_every_version_and_its_logs_with_it(admin: Any, version: int) -> None:
    topic_id = admin.bench.create_topic("orders", 2)
    (result,) = admin.ask(deletion(version, "orders"), version).responses
    assert (result.name, result.error_code) == ("orders", 0)
    assert result.topic_id == (topic_id if version >= 6 else Uuid.ZERO)
    assert sorted(admin.bench.storage.deleted) == [("orders", 0), ("orders", 1)]
    assert admin.bench.replicas.find("orders", 0) is None


def test_a_topic_deleted_and_created_again_is_empty_and_has_another_id(admin: Any, make_records: Any) -> None:
    old = admin.bench.create_topic("orders")
    log = admin.bench.partition("orders").log
    log.append(bytearray(make_records(b"1", b"2")), leader_epoch=0, now_ms=admin.bench.clock.wall_ms())
    assert log.log_end_offset == 2
    admin.ask(deletion(6, "orders"))
    new = admin.bench.create_topic("orders")
    assert new != old
    assert admin.bench.partition("orders").log.log_end_offset == 0
    assert admin.bench.partition("orders").topic_id == new


@pytest.mark.parametrize("version", range(1, 7))
def test_where_deletion_is_switched_off_every_topic_says_so(make_admin: Callable[..., Any], version: int) -> None:
    admin = make_admin(delete_topic_enable=False)
    admin.bench.create_topic("orders")
    results = admin.ask(deletion(version, "orders", "payments"), version).responses
    code = INVALID_REQUEST if version < 3 else DELETION_DISABLED
    assert [(r.name, r.error_code) for r in results] == [("orders", code), ("payments", code)]
    assert "orders" in admin.image.topics_by_name
