"""The controller's loop: decide, append, replay, commit, answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ottla_broker.controller.image import MetadataDelta
from ottla_broker.controller.metadata_log import MemoryMetadataLog
from ottla_broker.controller.records import (
    FeatureLevelRecord,
    MetadataRecord,
    PartitionChangeRecord,
    RegisterBrokerRecord,
    decode_record,
)
from ottla_wire.errors import KafkaStorageError
from ottla_wire.messages.create_topics import CreateTopicsRequest


def record_types(log: MemoryMetadataLog) -> list[list[type]]:
    return [[type(decode_record(value)) for value in batch] for batch in log.batches]


def test_an_empty_log_begins_with_the_features_and_the_registration_of_its_broker(cluster: Any) -> None:
    types = record_types(cluster.log)
    assert types == [[FeatureLevelRecord] * 3, [RegisterBrokerRecord]]
    assert dict(cluster.image.features) == {"group.version": 1, "metadata.version": 30, "transaction.version": 2}
    assert (cluster.image.controller_id, cluster.image.controller_epoch) == (1, 1)


def test_the_epoch_of_a_broker_is_the_offset_of_its_registration(cluster: Any) -> None:
    assert cluster.image.brokers[1].epoch == 3
    again = cluster.restarted()
    assert again.image.brokers[1].epoch == 4
    assert again.image.brokers[1].incarnation_id != cluster.image.brokers[1].incarnation_id


def test_a_second_start_writes_only_a_registration(cluster: Any) -> None:
    again = cluster.restarted()
    assert record_types(again.log)[2:] == [[RegisterBrokerRecord]]


def test_an_unclean_restart_raises_every_leader_epoch_so_that_lost_offsets_are_not_used_twice(cluster: Any) -> None:
    cluster.create_one("orders", 3)
    again = cluster.restarted(clean_shutdown=False)
    assert [p.leader_epoch for p in again.image.topics_by_name["orders"].partitions.values()] == [1, 1, 1]
    assert record_types(again.log)[-1] == [PartitionChangeRecord] * 3
    third = again.restarted(clean_shutdown=True)
    assert [p.leader_epoch for p in third.image.topics_by_name["orders"].partitions.values()] == [1, 1, 1]


def test_a_listener_hears_of_the_whole_state_when_the_log_is_loaded(
    cluster: Any, make_cluster: Callable[..., Any]
) -> None:
    topic_id = cluster.create_one("orders", 2)
    late = make_cluster(cluster.log.reopened())
    late.controller.load()
    (everything,) = late.deltas
    assert everything.changed_partitions == {topic_id: {0, 1}}
    assert everything.changed_brokers == {1}


def test_a_verb_that_changes_nothing_writes_nothing_and_tells_nobody(cluster: Any) -> None:
    cluster.create_one("orders")
    heard, written = len(cluster.deltas), cluster.log.end_offset
    cluster.create(cluster.topic("orders"))
    cluster.create(cluster.topic("payments"), validate_only=True)
    cluster.alter("orders", ("retention.ms", 1, None))
    assert (len(cluster.deltas), cluster.log.end_offset) == (heard, written)


@pytest.fixture
def held(make_cluster: Callable[..., Any]) -> Any:
    """A cluster whose commits wait for `log.commit_all()`."""
    cluster = make_cluster(MemoryMetadataLog(hold=True)).start()
    cluster.log.commit_all()
    cluster.deltas.clear()
    return cluster


def test_nobody_hears_of_a_change_before_it_is_committed(held: Any) -> None:
    answer = held.controller.create_topics(CreateTopicsRequest(topics=[held.topic("orders")]))
    assert not answer.done()
    assert held.deltas == []
    held.log.commit_all()
    assert answer.result().topics[0].error_code == 0
    assert [set(d.created_topics) for d in held.deltas] == [{answer.result().topics[0].topic_id}]


def test_an_answer_about_an_uncommitted_change_waits_for_it(held: Any) -> None:
    """ "It exists already" may still turn out wrong: if the first request is lost, its topic does not exist."""
    first = held.controller.create_topics(CreateTopicsRequest(topics=[held.topic("orders")]))
    second = held.controller.create_topics(CreateTopicsRequest(topics=[held.topic("orders")]))
    assert not second.done()
    held.log.commit_all()
    assert (first.result().topics[0].error_code, second.result().topics[0].error_code) == (0, 36)


def test_what_was_not_committed_is_not_there_after_a_restart(held: Any) -> None:
    held.controller.create_topics(CreateTopicsRequest(topics=[held.topic("orders")]))
    assert not held.restarted().image.topics_by_name


def test_listeners_hear_of_changes_in_order_even_if_one_of_them_makes_another(cluster: Any) -> None:
    heard: list[list[str]] = []

    def meddle(delta: MetadataDelta) -> None:
        names = [topic.name for topic in delta.created_topics.values()]
        if names == ["orders"]:
            cluster.controller.create_topics(CreateTopicsRequest(topics=[cluster.topic("orders-dlt")]))

    cluster.controller.on_change(meddle)
    cluster.controller.on_change(lambda delta: heard.append([t.name for t in delta.created_topics.values()]))
    cluster.create_one("orders")
    assert heard == [["orders"], ["orders-dlt"]]


def test_a_failing_listener_keeps_neither_the_others_nor_the_answer(
    cluster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[MetadataDelta] = []

    def fail(delta: MetadataDelta) -> None:
        raise RuntimeError("the disk is full")

    cluster.controller.on_change(fail)
    cluster.controller.on_change(heard.append)
    with caplog.at_level(logging.ERROR):
        cluster.create_one("orders")
    assert len(heard) == 1
    assert "a listener failed" in caplog.text


class BrokenLog(MemoryMetadataLog):
    """Refuses every append once it is told to."""

    is_broken = False

    def append(self, records: Sequence[MetadataRecord]) -> int:
        if self.is_broken:
            raise KafkaStorageError("the disk is gone")
        return super().append(records)


def test_a_log_that_cannot_be_written_leaves_the_image_as_it_was(
    make_cluster: Callable[..., Any], snapshot_of: Callable[..., Any]
) -> None:
    cluster = make_cluster(BrokenLog()).start()
    cluster.create_one("orders")
    before, heard = snapshot_of(cluster.image), len(cluster.deltas)
    cluster.log.is_broken = True
    with pytest.raises(KafkaStorageError):
        cluster.create(cluster.topic("payments"))
    with pytest.raises(KafkaStorageError):
        cluster.delete("orders")
    assert (snapshot_of(cluster.image), len(cluster.deltas)) == (before, heard)


def test_missing_topics_are_created_once_and_failures_are_named(cluster: Any) -> None:
    cluster.create_one("orders")
    failures = cluster.controller.create_missing_topics(["orders", "payments", "payments", "no good"]).result()
    assert {name: error.code for name, error in failures.items()} == {"no good": 17}
    assert set(cluster.image.topics_by_name) == {"orders", "payments"}


def test_internal_topics_are_created_as_kafka_creates_them(cluster: Any) -> None:
    assert cluster.controller.create_missing_topics(["__consumer_offsets", "__transaction_state"]).result() == {}
    offsets = cluster.image.topics_by_name["__consumer_offsets"]
    assert (len(offsets.partitions), offsets.is_internal) == (50, True)
    assert dict(cluster.image.topic_config("__consumer_offsets")) == {
        "cleanup.policy": "compact",
        "compression.type": "producer",
        "segment.bytes": "104857600",
    }
    assert len(cluster.image.topics_by_name["__transaction_state"].partitions) == 50
    assert dict(cluster.image.topic_config("__transaction_state")) == {
        "cleanup.policy": "compact",
        "compression.type": "uncompressed",
        "min.insync.replicas": "1",
        "segment.bytes": "104857600",
        "unclean.leader.election.enable": "false",
    }
