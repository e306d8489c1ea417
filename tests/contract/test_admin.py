"""Topics, partitions, configurations: what is done, and what is refused with which words.

A broker learns of a change a moment after the controller has made it, so what was changed is looked for `eventually`.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from ottla import errors
from ottla.client import TopicPartition
from ottla.client.admin import ConfigChange, ConfigOperation, ConfigResource, NewTopic
from support.clusters import eventually


def refusal(act: Any) -> tuple[str, str]:
    """The error's name and the broker's words, without the call and the item that our client puts before them."""
    with pytest.raises(errors.KafkaError) as caught:
        act()
    return type(caught.value).__name__, re.sub(r"\A\w+: [^:]*: ", "", caught.value.message)


class TestTopics:
    @pytest.mark.every_version
    def test_a_topic_from_its_creation_to_its_end(self, cluster: Any) -> None:
        name = cluster.fresh("life")
        created = cluster.admin.create_topics([NewTopic(name, partitions=3, replication_factor=1)])[name]
        assert (created.partitions, created.replication_factor) == (3, 1)
        eventually(lambda: name in cluster.admin.list_topics())
        described = cluster.admin.describe_topics([name])[name]
        assert described.topic_id == created.topic_id
        assert [partition.index for partition in described.partitions] == [0, 1, 2]
        assert {partition.replicas == partition.isr != () for partition in described.partitions} == {True}
        cluster.admin.create_partitions({name: 5})
        eventually(lambda: len(cluster.admin.describe_topics([name])[name].partitions) == 5)
        cluster.admin.delete_topics([name])
        eventually(lambda: name not in cluster.admin.list_topics())

    def test_a_name_used_again_is_another_topic(self, cluster: Any) -> None:
        name = cluster.create_topic()
        first = cluster.admin.describe_topics([name])[name].topic_id
        cluster.admin.delete_topics([name])
        second = cluster.admin.create_topics([NewTopic(name, partitions=1, replication_factor=1)])[name].topic_id
        assert first != second

    @pytest.mark.every_version
    def test_the_brokers_defaults(self, cluster: Any) -> None:
        name = cluster.fresh("defaults")
        created = cluster.admin.create_topics([name])[name]
        assert (created.partitions, created.replication_factor) == (1, 1)

    @pytest.mark.every_version
    def test_validate_only_creates_nothing(self, cluster: Any) -> None:
        name = cluster.fresh("checked")
        cluster.admin.create_topics([NewTopic(name, partitions=1, replication_factor=1)], validate_only=True)
        assert name not in cluster.admin.list_topics()

    @pytest.mark.parametrize(
        ("topic", "expected"),
        [
            (NewTopic("a b", partitions=1), "InvalidTopic"),
            (NewTopic("", partitions=1), "InvalidTopic"),
            (NewTopic(".", partitions=1), "InvalidTopic"),
            (NewTopic("x" * 250, partitions=1), "InvalidTopic"),
            (NewTopic("fine", partitions=0), "InvalidPartitions"),
            (NewTopic("fine", partitions=-2), "InvalidPartitions"),
            (NewTopic("fine", replication_factor=0), "InvalidReplicationFactor"),
            (NewTopic("fine", replication_factor=9), "InvalidReplicationFactor"),
            (NewTopic("fine", replica_assignments={0: [77]}), "InvalidReplicaAssignment"),
            (NewTopic("fine", replica_assignments={1: [1]}), "InvalidReplicaAssignment"),
            (NewTopic("fine", configs={"no.such": "1"}), "InvalidConfig"),
            (NewTopic("fine", configs={"retention.ms": "soon"}), "InvalidConfig"),
            (NewTopic("fine", configs={"cleanup.policy": "shred"}), "InvalidConfig"),
            (NewTopic("fine", configs={"segment.bytes": "1"}), "InvalidConfig"),
        ],
        ids=lambda value: value if isinstance(value, str) else str((value.name[:5], value.partitions, value.configs)),
    )
    def test_a_topic_that_cannot_be(self, cluster: Any, topic: NewTopic, expected: str) -> None:
        assert refusal(lambda: cluster.admin.create_topics([topic]))[0] == expected

    def test_the_words_of_refusals(self, cluster: Any) -> None:
        name = cluster.create_topic(2)
        admin = cluster.admin
        assert refusal(lambda: admin.create_topics([name])) == (
            "TopicAlreadyExists",
            f"Topic '{name}' already exists.",
        )
        assert refusal(lambda: admin.create_partitions({name: 2})) == (
            "InvalidPartitions",
            "Topic already has 2 partition(s).",
        )
        assert refusal(lambda: admin.create_partitions({name: 1})) == (
            "InvalidPartitions",
            f"The topic {name} currently has 2 partition(s); 1 would not be an increase.",
        )
        assert refusal(lambda: admin.create_topics([NewTopic("a b", partitions=1)])) == (
            "InvalidTopic",
            "Topic name is invalid: 'a b' contains one or more characters other than ASCII alphanumerics, "
            "'.', '_' and '-'",
        )

    def test_names_that_metrics_cannot_tell_apart(self, cluster: Any) -> None:
        stem = cluster.fresh("c").replace("-", "")
        cluster.admin.create_topics([NewTopic(f"{stem}.x", partitions=1)])
        name, words = refusal(lambda: cluster.admin.create_topics([NewTopic(f"{stem}_x", partitions=1)]))
        assert name == "InvalidTopic"
        assert words == f"Topic '{stem}_x' collides with existing topic: {stem}.x"

    @pytest.mark.every_version
    @pytest.mark.parametrize("verb", ["delete_topics", "create_partitions", "describe_topics"])
    def test_a_topic_that_is_not_there(self, cluster: Any, verb: str) -> None:
        argument = {"nobody-made-this": 3} if verb == "create_partitions" else ["nobody-made-this"]
        assert refusal(lambda: getattr(cluster.admin, verb)(argument))[0] == "UnknownTopicOrPartition"

    @pytest.mark.every_version
    def test_one_bad_topic_does_not_stop_the_others(self, cluster: Any) -> None:
        from ottla.client.admin import SomeFailed

        name = cluster.fresh("good")
        with pytest.raises(SomeFailed) as caught:
            cluster.admin.create_topics([NewTopic(name, partitions=1), NewTopic("a b", partitions=1)])
        assert [type(error).__name__ for error in caught.value.errors.values()] == ["InvalidTopic"]
        eventually(lambda: name in cluster.admin.list_topics())

    @pytest.mark.every_version
    def test_the_cluster(self, cluster: Any) -> None:
        described = cluster.admin.describe_cluster()
        assert len(described.cluster_id) == 22
        assert [node.id for node in described.nodes] == [1]
        assert described.controller == described.nodes[0]


class TestConfigurations:
    @pytest.mark.every_version
    def test_set_append_subtract_and_delete(self, cluster: Any) -> None:
        name = cluster.create_topic(retention_ms="1000")
        owner = ConfigResource.topic(name)

        def becomes(setting: str, value: str, is_default: bool = False) -> None:
            def is_so() -> bool:
                entry = cluster.admin.describe_configs([owner])[owner][setting]
                return (entry.value, entry.is_default) == (value, is_default)

            eventually(is_so)

        becomes("retention.ms", "1000")
        cluster.admin.alter_configs({owner: {"retention.ms": 2000}})
        becomes("retention.ms", "2000")
        cluster.admin.alter_configs({owner: {"cleanup.policy": ConfigChange("compact", ConfigOperation.APPEND)}})
        becomes("cleanup.policy", "delete,compact")
        cluster.admin.alter_configs({owner: {"cleanup.policy": ConfigChange("delete", ConfigOperation.SUBTRACT)}})
        becomes("cleanup.policy", "compact")
        cluster.admin.alter_configs({owner: {"retention.ms": ConfigChange(None, ConfigOperation.DELETE)}})
        becomes("retention.ms", "604800000", is_default=True)

    def test_every_setting_of_a_topic_with_its_default(self, cluster: Any) -> None:
        owner = ConfigResource.topic(cluster.create_topic())
        found = cluster.admin.describe_configs([owner])[owner]
        defaults = {
            "cleanup.policy": "delete",
            "compression.type": "producer",
            "max.message.bytes": "1048588",
            "message.timestamp.type": "CreateTime",
            "min.insync.replicas": "1",
            "retention.bytes": "-1",
            "retention.ms": "604800000",
            "segment.bytes": "1073741824",
            "unclean.leader.election.enable": "false",
        }
        assert {name: found[name].value for name in defaults} == defaults

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"no.such": "1"}, "InvalidConfig"),
            ({"retention.ms": "soon"}, "InvalidConfig"),
            ({"min.insync.replicas": "0"}, "InvalidConfig"),
            ({"retention.ms": ConfigChange("5", ConfigOperation.APPEND)}, "InvalidConfig"),
        ],
        ids=str,
    )
    def test_a_change_that_cannot_be(self, cluster: Any, changes: dict[str, Any], expected: str) -> None:
        owner = ConfigResource.topic(cluster.create_topic())
        assert refusal(lambda: cluster.admin.alter_configs({owner: changes}))[0] == expected

    @pytest.mark.every_version
    def test_of_a_topic_that_is_not_there(self, cluster: Any) -> None:
        owner = ConfigResource.topic("nobody-made-this")
        assert refusal(lambda: cluster.admin.describe_configs([owner]))[0] == "UnknownTopicOrPartition"
        assert (
            refusal(lambda: cluster.admin.alter_configs({owner: {"retention.ms": 1}}))[0] == "UnknownTopicOrPartition"
        )

    def test_a_change_reaches_the_log(self, cluster: Any, make_topic: Any, make_batch: Any) -> None:
        topic = make_topic()
        assert topic.produce(make_batch(b"x" * 2_000)).error_code == 0
        cluster.admin.alter_configs({ConfigResource.topic(topic.name): {"max.message.bytes": 1000}})
        eventually(lambda: topic.produce(make_batch(b"x" * 2_000)).error_code == errors.MessageTooLarge.code)

    @pytest.mark.every_version
    def test_validate_only_changes_nothing(self, cluster: Any) -> None:
        owner = ConfigResource.topic(cluster.create_topic())
        cluster.admin.alter_configs({owner: {"retention.ms": 7}}, validate_only=True)
        assert cluster.admin.describe_configs([owner])[owner]["retention.ms"].is_default


@pytest.mark.every_version
def test_a_deleted_topics_records_are_gone_when_its_name_is_used_again(
    cluster: Any, make_topic: Any, make_batch: Any, make_consumer: Any
) -> None:
    topic = make_topic()
    topic.produce(make_batch(b"old"))
    cluster.admin.delete_topics([topic.name])
    cluster.admin.create_topics([NewTopic(topic.name, partitions=1, replication_factor=1)])
    here = TopicPartition(topic.name, 0)
    eventually(lambda: make_consumer().end_offsets([here]) == {here: 0})
