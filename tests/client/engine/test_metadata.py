from __future__ import annotations

from typing import Any

from ottla.client.metadata import Metadata, Node
from ottla.errors import UnknownTopicOrPartition
from ottla_wire.messages.metadata import (
    MetadataResponse,
    MetadataResponseBroker,
    MetadataResponsePartition,
    MetadataResponseTopic,
)
from ottla_wire.schema import Uuid

FIRST, SECOND = Uuid(b"1" * 16), Uuid(b"2" * 16)


def answer(leader: int, epoch: int, topic_id: Uuid = FIRST, **fields: Any) -> MetadataResponse:
    partition = MetadataResponsePartition(partition_index=0, leader_id=leader, leader_epoch=epoch)
    topic = MetadataResponseTopic(name="t", topic_id=topic_id, partitions=[partition], **fields)
    brokers = [MetadataResponseBroker(node_id=node, host="h", port=9000 + node) for node in (1, 2)]
    return MetadataResponse(brokers=brokers, topics=[topic])


def test_an_older_answer_does_not_bring_an_older_leader_back() -> None:
    metadata = Metadata()
    metadata.update(answer(leader=2, epoch=5))
    metadata.update(answer(leader=1, epoch=4))
    assert metadata.leader("t", 0) == 2


def test_an_answer_of_the_same_epoch_is_taken_over() -> None:
    metadata = Metadata()
    metadata.update(answer(leader=2, epoch=5))
    metadata.update(answer(leader=-1, epoch=5))
    assert metadata.leader("t", 0) is None


def test_a_topic_that_was_made_again_begins_with_a_lower_epoch() -> None:
    metadata = Metadata()
    metadata.update(answer(leader=2, epoch=5))
    metadata.update(answer(leader=1, epoch=0, topic_id=SECOND))
    assert metadata.leader("t", 0) == 1
    assert metadata.topic_name(FIRST) is None
    assert metadata.topic_name(SECOND) == "t"


def test_brokers_without_epochs_are_always_believed() -> None:
    metadata = Metadata()
    metadata.update(answer(leader=2, epoch=5))
    metadata.update(answer(leader=1, epoch=-1))
    assert metadata.leader("t", 0) == 1


def test_a_hint_is_taken_only_with_a_newer_epoch_and_a_known_address() -> None:
    metadata = Metadata()
    metadata.update(answer(leader=1, epoch=5))
    assert not metadata.update_leader("t", 0, 2, 5)
    assert not metadata.update_leader("t", 0, 7, 6)
    assert not metadata.update_leader("t", 0, -1, 6)
    assert not metadata.update_leader("t", 3, 2, 6)
    assert metadata.leader("t", 0) == 1
    version = metadata.version
    assert metadata.update_leader("t", 0, 7, 6, [Node(7, "h", 9007)])
    assert metadata.leader("t", 0) == 7
    assert metadata.node(7) == Node(7, "h", 9007)
    assert metadata.version > version
    metadata.update(answer(leader=1, epoch=5))
    assert metadata.leader("t", 0) == 7


def test_a_topic_error_is_remembered_until_the_topic_is_there() -> None:
    metadata = Metadata()
    metadata.update(MetadataResponse(topics=[MetadataResponseTopic(name="t", error_code=3)]))
    assert isinstance(metadata.topic_error("t"), UnknownTopicOrPartition)
    metadata.update(answer(leader=1, epoch=0))
    assert metadata.topic_error("t") is None


def test_a_whole_answer_forgets_what_it_does_not_name() -> None:
    metadata = Metadata()
    metadata.update(answer(leader=1, epoch=0))
    metadata.update(MetadataResponse(topics=[]))
    assert metadata.topic("t") is not None
    metadata.update(MetadataResponse(topics=[]), whole=True)
    assert metadata.topic("t") is None


def test_after_rebootstrap_any_epoch_is_believed() -> None:
    metadata = Metadata()
    metadata.update(answer(leader=2, epoch=5))
    metadata.rebootstrap()
    assert metadata.nodes() == []
    metadata.update(answer(leader=1, epoch=0))
    assert metadata.leader("t", 0) == 1
