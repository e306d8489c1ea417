"""Topics are created, grown and deleted as by Apache Kafka: codes and sentences are those of a 4.3.1 broker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from ottla_broker.controller.records import ConfigRecord, PartitionRecord, TopicRecord, decode_record
from ottla_broker.controller.topic_names import is_internal
from ottla_wire.errors import PolicyViolation
from ottla_wire.messages.create_partitions import CreatePartitionsRequest, CreatePartitionsTopic
from ottla_wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from ottla_wire.schema import Uuid

INVALID_TOPIC, EXISTS, INVALID_PARTITIONS, INVALID_REPLICATION_FACTOR = 17, 36, 37, 38
INVALID_ASSIGNMENT, INVALID_CONFIG, INVALID_REQUEST, UNKNOWN_TOPIC, UNKNOWN_ID = 39, 40, 42, 3, 100

LONG = "a" * 250
WRONG_CHARACTERS = "contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "the empty string is not allowed"),
        (".", "'.' is not allowed"),
        ("..", "'..' is not allowed"),
        (LONG, f"the length of '{LONG}' is longer than the max allowed length 249"),
        ("a b", f"'a b' {WRONG_CHARACTERS}"),
        ("ä", f"'ä' {WRONG_CHARACTERS}"),
        ("x/y", f"'x/y' {WRONG_CHARACTERS}"),
        ("x\n", f"'x\n' {WRONG_CHARACTERS}"),
    ],
)
def test_a_name_that_no_topic_can_have_is_refused_with_kafkas_reason(cluster: Any, name: str, reason: str) -> None:
    result = cluster.create(cluster.topic(name))[name]
    assert (result.error_code, result.error_message) == (INVALID_TOPIC, f"Topic name is invalid: {reason}")
    assert not cluster.image.topics_by_name


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "...", "a" * 249, "-"])
def test_names_of_legal_characters_up_to_249_are_taken(cluster: Any, name: str) -> None:
    assert cluster.create(cluster.topic(name))[name].error_code == 0


def test_the_metadata_topic_cannot_be_created(cluster: Any) -> None:
    result = cluster.create(cluster.topic("__cluster_metadata"))["__cluster_metadata"]
    assert result.error_code == INVALID_REQUEST
    assert result.error_message == "Creation of internal topic __cluster_metadata is prohibited."
    assert not is_internal("__cluster_metadata")


def test_a_topic_that_exists_is_not_created_again(cluster: Any) -> None:
    topic_id = cluster.create_one("orders.eu")
    result = cluster.create(cluster.topic("orders.eu", 9))["orders.eu"]
    assert (result.error_code, result.error_message) == (EXISTS, "Topic 'orders.eu' already exists.")
    assert result.topic_id == Uuid.ZERO
    assert cluster.image.topics_by_name["orders.eu"].id == topic_id


def test_a_name_that_collides_with_an_existing_one_is_refused(cluster: Any) -> None:
    cluster.create_one("orders.eu")
    result = cluster.create(cluster.topic("orders_eu"))["orders_eu"]
    assert result.error_code == INVALID_TOPIC
    assert result.error_message == "Topic 'orders_eu' collides with existing topic: orders.eu"


def test_a_created_topic_is_answered_with_its_size_id_and_configuration(cluster: Any) -> None:
    result = cluster.create(cluster.topic("orders", 3, configs={"cleanup.policy": "compact, delete"}))["orders"]
    assert (result.error_code, result.error_message) == (0, None)
    assert (result.num_partitions, result.replication_factor) == (3, 1)
    assert result.topic_id == cluster.image.topics_by_name["orders"].id
    configs = {config.name: config for config in result.configs}
    assert len(configs) == 33
    # as it was written, from the topic; as it is by default, from the broker
    assert (configs["cleanup.policy"].value, configs["cleanup.policy"].config_source) == ("compact, delete", 1)
    assert (configs["segment.ms"].value, configs["segment.ms"].config_source) == ("604800000", 5)
    assert "internal.segment.bytes" not in configs


def test_a_topic_is_one_batch_of_its_record_its_configuration_and_its_partitions(cluster: Any) -> None:
    cluster.create(cluster.topic("orders", 2, configs={"retention.ms": "7"}), cluster.topic("payments"))
    written = [type(decode_record(value)) for value in cluster.log.batches[-1]]
    assert written == [TopicRecord, ConfigRecord, PartitionRecord, PartitionRecord, TopicRecord, PartitionRecord]


def test_new_partitions_start_at_epoch_zero_led_by_their_only_replica(cluster: Any) -> None:
    cluster.create_one("orders", 2)
    for index, partition in cluster.image.topics_by_name["orders"].partitions.items():
        assert partition.id == index
        assert (partition.replicas, partition.isr, partition.leader) == ((1,), (1,), 1)
        assert (partition.leader_epoch, partition.partition_epoch) == (0, 0)
        assert partition.directories == cluster.image.brokers[1].directories


def test_validate_only_answers_as_if_and_creates_nothing(cluster: Any) -> None:
    for _ in range(2):
        result = cluster.create(cluster.topic("orders", 2), validate_only=True)["orders"]
        assert (result.error_code, result.num_partitions) == (0, 2)
    assert not cluster.image.topics_by_name


def test_a_topic_named_twice_in_a_request_is_refused_and_its_neighbour_created(cluster: Any) -> None:
    results = cluster.create(cluster.topic("orders"), cluster.topic("orders", 2), cluster.topic("payments"))
    assert (results["orders"].error_code, results["orders"].error_message) == (INVALID_REQUEST, "Duplicate topic name.")
    assert results["payments"].error_code == 0
    assert set(cluster.image.topics_by_name) == {"payments"}


@pytest.mark.parametrize(
    ("partitions", "replicas", "code", "message"),
    [
        (0, 1, INVALID_PARTITIONS, "Number of partitions was set to an invalid non-positive value."),
        (-2, 1, INVALID_PARTITIONS, "Number of partitions was set to an invalid non-positive value."),
        (1, 0, INVALID_REPLICATION_FACTOR, "Replication factor must be larger than 0, or -1 to use the default value."),
        (
            0,
            -2,
            INVALID_REPLICATION_FACTOR,
            "Replication factor must be larger than 0, or -1 to use the default value.",
        ),
        (
            1,
            2,
            INVALID_REPLICATION_FACTOR,
            "Unable to replicate the partition 2 time(s): The target replication factor of 2 cannot be reached because "
            "only 1 broker(s) are registered.",
        ),
    ],
)
def test_counts_that_cannot_be_are_refused(
    cluster: Any, partitions: int, replicas: int, code: int, message: str
) -> None:
    result = cluster.create(cluster.topic("orders", partitions, replicas))["orders"]
    assert (result.error_code, result.error_message) == (code, message)


def test_minus_one_takes_the_brokers_defaults(make_cluster: Callable[..., Any]) -> None:
    cluster = make_cluster(num_partitions=4).start()
    result = cluster.create(cluster.topic("orders", -1, -1))["orders"]
    assert (result.num_partitions, result.replication_factor) == (4, 1)


@pytest.mark.parametrize(
    ("assignments", "code", "message"),
    [
        ([(0, [1]), (2, [1])], INVALID_ASSIGNMENT, "partitions should be a consecutive 0-based integer sequence"),
        ([(1, [1])], INVALID_ASSIGNMENT, "partitions should be a consecutive 0-based integer sequence"),
        ([(0, [1]), (0, [1])], INVALID_ASSIGNMENT, "Found multiple manual partition assignments for partition 0"),
        (
            [(0, [2])],
            INVALID_ASSIGNMENT,
            "The manual partition assignment includes broker 2, but no such broker is registered.",
        ),
        ([(0, [])], INVALID_ASSIGNMENT, "The manual partition assignment includes an empty replica list."),
        (
            [(0, [1, 1])],
            INVALID_ASSIGNMENT,
            "The manual partition assignment includes the broker 1 more than once.",
        ),
    ],
)
def test_an_assignment_that_cannot_be_is_refused(
    cluster: Any, assignments: list[tuple[int, list[int]]], code: int, message: str
) -> None:
    result = cluster.create(cluster.topic("orders", assignments=assignments))["orders"]
    assert (result.error_code, result.error_message) == (code, message)


def test_an_assignment_leaves_the_counts_open(cluster: Any) -> None:
    counted = cluster.topic("orders", assignments={0: [1]})
    counted.num_partitions = 1
    assert cluster.create(counted)["orders"].error_message == (
        "A manual partition assignment was specified, but numPartitions was not set to -1."
    )
    counted = cluster.topic("orders", assignments={0: [1]})
    counted.replication_factor = 1
    result = cluster.create(counted)["orders"]
    assert (result.error_code, result.error_message) == (
        INVALID_REQUEST,
        "A manual partition assignment was specified, but replication factor was not set to -1.",
    )


def test_an_assigned_topic_has_its_replicas_where_they_were_put(cluster: Any) -> None:
    cluster.add_broker(2)
    cluster.add_broker(3, fenced=True)
    assert cluster.create(cluster.topic("orders", assignments={1: [2, 1], 0: [3, 2]}))["orders"].error_code == 0
    partitions = cluster.image.topics_by_name["orders"].partitions
    assert (partitions[0].replicas, partitions[0].isr, partitions[0].leader) == ((3, 2), (2,), 2)
    assert (partitions[1].replicas, partitions[1].isr, partitions[1].leader) == ((2, 1), (2, 1), 2)


def test_assigned_partitions_have_one_replication_factor_and_a_living_replica(cluster: Any) -> None:
    cluster.add_broker(2)
    cluster.add_broker(3, fenced=True)
    result = cluster.create(cluster.topic("orders", assignments={0: [1], 1: [1, 2]}))["orders"]
    assert result.error_message == (
        "The manual partition assignment includes a partition with 2 replica(s), but this is not consistent with "
        "previous partitions, which have 1 replica(s)."
    )
    result = cluster.create(cluster.topic("orders", assignments={0: [3]}))["orders"]
    assert (result.error_code, result.error_message) == (
        INVALID_ASSIGNMENT,
        "All brokers specified in the manual partition assignment for partition 0 are fenced or in controlled "
        "shutdown.",
    )


def test_replicas_and_leaders_are_spread_evenly_over_active_brokers(cluster: Any) -> None:
    for broker_id in (2, 3):
        cluster.add_broker(broker_id)
    cluster.add_broker(4, fenced=True)
    cluster.create(cluster.topic("orders", 6, 2))
    partitions = cluster.image.topics_by_name["orders"].partitions.values()
    assert Counter(partition.leader for partition in partitions) == {1: 2, 2: 2, 3: 2}
    assert Counter(replica for partition in partitions for replica in partition.replicas) == {1: 4, 2: 4, 3: 4}
    assert all(len(set(partition.replicas)) == 2 for partition in partitions)
    cluster.grow("orders", 9)
    partitions = cluster.image.topics_by_name["orders"].partitions.values()
    assert Counter(partition.leader for partition in partitions) == {1: 3, 2: 3, 3: 3}


def test_without_an_active_broker_no_topic_can_be_created(make_cluster: Callable[..., Any]) -> None:
    cluster = make_cluster()
    cluster.controller.load()
    result = cluster.create(cluster.topic("orders"))["orders"]
    assert result.error_code == INVALID_REPLICATION_FACTOR
    assert "All brokers are currently fenced" in result.error_message


def test_a_null_configuration_is_refused(cluster: Any) -> None:
    result = cluster.create(cluster.topic("orders", configs={"retention.ms": None, "segment.ms": None}))["orders"]
    assert (result.error_code, result.error_message) == (
        INVALID_CONFIG,
        "Null value not supported for topic configs: retention.ms,segment.ms",
    )


def test_ten_thousand_partitions_fit_in_a_request_and_no_more(cluster: Any) -> None:
    with pytest.raises(PolicyViolation, match="Excessively large number of partitions per request"):
        cluster.create(cluster.topic("big", 9_999), cluster.topic("small", 2))
    assert not cluster.image.topics_by_name
    assert cluster.create(cluster.topic("big", 9_999), cluster.topic("small", -1))["big"].error_code == 0


# -- partitions --------------------------------------------------------------------------------------------------------


def test_a_topic_grows_and_its_old_partitions_stay_as_they_are(cluster: Any) -> None:
    topic_id = cluster.create_one("orders", 2)
    before = dict(cluster.image.topics_by_name["orders"].partitions)
    result = cluster.grow("orders", 4)
    assert (result.error_code, result.error_message) == (0, None)
    after = cluster.image.topics_by_name["orders"].partitions
    assert {index: after[index] for index in before} == before
    assert sorted(after) == [0, 1, 2, 3]
    assert cluster.deltas[-1].changed_partitions == {topic_id: {2, 3}}


@pytest.mark.parametrize(
    ("name", "count", "code", "message"),
    [
        ("orders", 2, INVALID_PARTITIONS, "Topic already has 2 partition(s)."),
        (
            "orders",
            1,
            INVALID_PARTITIONS,
            "The topic orders currently has 2 partition(s); 1 would not be an increase.",
        ),
        (
            "orders",
            -1,
            INVALID_PARTITIONS,
            "The topic orders currently has 2 partition(s); -1 would not be an increase.",
        ),
        ("payments", 3, UNKNOWN_TOPIC, None),
    ],
)
def test_a_topic_only_grows(cluster: Any, name: str, count: int, code: int, message: str | None) -> None:
    cluster.create_one("orders", 2)
    result = cluster.grow(name, count)
    assert result.error_code == code
    assert message is None or result.error_message == message


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            [[1]],
            "Attempted to add 2 additional partition(s), but only 1 assignment(s) were specified.",
        ),
        ([], "Attempted to add 2 additional partition(s), but only 0 assignment(s) were specified."),
        ([[1], []], "The manual partition assignment includes an empty replica list."),
        ([[1], [2]], "The manual partition assignment includes broker 2, but no such broker is registered."),
        ([[1], [1, 1]], "The manual partition assignment includes the broker 1 more than once."),
    ],
)
def test_assignments_of_new_partitions_are_checked(cluster: Any, assignments: list[list[int]], message: str) -> None:
    cluster.create_one("orders", 1)
    result = cluster.grow("orders", 3, assignments)
    assert (result.error_code, result.error_message) == (INVALID_ASSIGNMENT, message)
    assert len(cluster.image.topics_by_name["orders"].partitions) == 1


def test_new_partitions_have_as_many_replicas_as_the_old_ones(cluster: Any) -> None:
    cluster.add_broker(2)
    cluster.create(cluster.topic("orders", 1, 2))
    assert "not consistent with previous partitions, which have 2" in cluster.grow("orders", 2, [[1]]).error_message
    assert cluster.grow("orders", 2, [[2, 1]]).error_code == 0
    assert cluster.image.topics_by_name["orders"].partitions[1].replicas == (2, 1)


def test_growth_can_be_tried_without_growing(cluster: Any) -> None:
    cluster.create_one("orders")
    assert cluster.grow("orders", 2, validate_only=True).error_code == 0
    assert len(cluster.image.topics_by_name["orders"].partitions) == 1


def test_growing_a_topic_twice_in_one_request_is_refused(cluster: Any) -> None:
    cluster.create_one("orders")
    topics = [CreatePartitionsTopic(name="orders", count=count, assignments=None) for count in (2, 3)]
    request = CreatePartitionsRequest(topics=topics, timeout_ms=1, validate_only=False)
    (result,) = cluster.controller.create_partitions(request).result().results
    assert (result.error_code, result.error_message) == (INVALID_REQUEST, "Duplicate topic name.")


def test_growth_by_more_than_ten_thousand_partitions_is_refused_as_a_whole(cluster: Any) -> None:
    cluster.create_one("orders")
    cluster.create_one("payments")
    topics = [
        CreatePartitionsTopic(name="orders", count=5_001, assignments=None),
        CreatePartitionsTopic(name="payments", count=5_002, assignments=None),
    ]
    with pytest.raises(PolicyViolation):
        cluster.controller.create_partitions(CreatePartitionsRequest(topics=topics, timeout_ms=1, validate_only=False))
    assert len(cluster.image.topics_by_name["orders"].partitions) == 1


# -- deletion ----------------------------------------------------------------------------------------------------------


def outcomes(results: list[Any]) -> dict[tuple[str | None, Uuid], tuple[int, str | None]]:
    return {(r.name, r.topic_id): (r.error_code, r.error_message) for r in results}


def test_a_topic_is_deleted_by_name_or_by_id_and_answered_with_both(cluster: Any) -> None:
    orders, payments = cluster.create_one("orders"), cluster.create_one("payments")
    results = cluster.delete("orders", ids=[payments])
    assert outcomes(results) == {("orders", orders): (0, None), ("payments", payments): (0, None)}
    assert not cluster.image.topics_by_name
    assert set(cluster.deltas[-1].deleted_topics) == {orders, payments}


def test_old_versions_name_topics_in_a_list(cluster: Any) -> None:
    topic_id = cluster.create_one("orders")
    request = DeleteTopicsRequest(topic_names=["orders", "nobody"], timeout_ms=1)
    results = outcomes(cluster.controller.delete_topics(request).result().responses)
    assert results["orders", topic_id] == (0, None)
    assert results["nobody", Uuid.ZERO][0] == UNKNOWN_TOPIC


def test_what_does_not_exist_cannot_be_deleted(cluster: Any) -> None:
    nobody = Uuid(b"n" * 16)
    results = outcomes(cluster.delete("nobody", ids=[nobody]))
    assert results["nobody", Uuid.ZERO][0] == UNKNOWN_TOPIC
    assert results[None, nobody][0] == UNKNOWN_ID


def test_a_topic_meant_twice_is_not_deleted(cluster: Any) -> None:
    orders, payments, other = (cluster.create_one(name) for name in ("orders", "payments", "other"))
    results = outcomes(cluster.delete("orders", "orders", "other", ids=[payments, payments, other]))
    assert results == {
        ("orders", Uuid.ZERO): (INVALID_REQUEST, "Duplicate topic name."),
        (None, payments): (INVALID_REQUEST, "Duplicate topic id."),
        ("other", other): (INVALID_REQUEST, "The provided topic name maps to an ID that was already supplied."),
    }
    assert set(cluster.image.topics_by_id) == {orders, payments, other}


def test_a_topic_is_named_in_exactly_one_way(cluster: Any) -> None:
    topic_id = cluster.create_one("orders")
    states = [DeleteTopicState(name="orders", topic_id=topic_id), DeleteTopicState(name=None)]
    assert outcomes(cluster.delete(states=states)) == {
        ("orders", topic_id): (INVALID_REQUEST, "You may not specify both topic name and topic id."),
        (None, Uuid.ZERO): (INVALID_REQUEST, "Neither topic name nor id were specified."),
    }


def test_a_topic_created_again_has_a_new_id_and_nothing_of_the_old_one(cluster: Any) -> None:
    """The old offsets, epochs and settings must not be taken for the new topic's (pitfall 43)."""
    old = cluster.create_one("orders", 3, retention_ms="7")
    cluster.delete("orders")
    new = cluster.create_one("orders")
    assert new != old
    assert old not in cluster.image.topics_by_id
    topic = cluster.image.topics_by_name["orders"]
    assert (len(topic.partitions), topic.partitions[0].leader_epoch) == (1, 0)
    assert dict(cluster.image.topic_config("orders")) == {}
    assert outcomes(cluster.delete(ids=[old]))[None, old][0] == UNKNOWN_ID


def test_a_restart_with_the_same_seed_does_not_give_the_same_topic_id_again(make_cluster: Callable[..., Any]) -> None:
    first = make_cluster(seed=3).start()
    old = first.create_one("orders")
    second = make_cluster(first.log.reopened(), seed=3).start()
    assert second.create_one("payments") != old
