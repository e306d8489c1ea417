"""Configuration is changed as Apache Kafka does it: the codes and sentences are those of a 4.3.1 broker."""

from __future__ import annotations

from typing import Any

import pytest

from ottla_broker.controller.image import CLUSTER_DEFAULT, ConfigResource, ResourceType
from ottla_wire.messages import alter_configs as legacy
from ottla_wire.messages import incremental_alter_configs as incremental

SET, DELETE, APPEND, SUBTRACT = range(4)
UNKNOWN_TOPIC, INVALID_TOPIC, INVALID_CONFIG, INVALID_REQUEST = 3, 17, 40, 42
BROKER = ConfigResource(ResourceType.BROKER, "1")


@pytest.fixture
def orders(cluster: Any) -> Any:
    """A cluster with the topic `orders`."""
    cluster.create_one("orders")
    return cluster


# -- values ------------------------------------------------------------------------------------------------------------


def wrong(value: str, name: str, why: str) -> str:
    return f"Invalid value {value} for configuration {name}: {why}"


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ({"nope": "1"}, "Unknown topic config name: nope"),
        ({"retention.ms": "abc"}, wrong("abc", "retention.ms", "Not a number of type LONG")),
        ({"retention.ms": ""}, wrong("", "retention.ms", "Not a number of type LONG")),
        ({"retention.ms": "9" * 25}, wrong("9" * 25, "retention.ms", "Not a number of type LONG")),
        ({"retention.ms": "-2"}, wrong("-2", "retention.ms", "Value must be at least -1")),
        ({"segment.ms": "0x10"}, wrong("0x10", "segment.ms", "Not a number of type LONG")),
        ({"segment.ms": "1_000"}, wrong("1_000", "segment.ms", "Not a number of type LONG")),
        ({"max.message.bytes": "99999999999"}, wrong("99999999999", "max.message.bytes", "Not a number of type INT")),
        ({"segment.bytes": "10"}, wrong("10", "segment.bytes", "Value must be at least 1048576")),
        ({"cleanup.policy": "foo"}, wrong("foo", "cleanup.policy", "String must be one of: compact, delete")),
        ({"cleanup.policy": "compact,"}, "Configuration 'cleanup.policy' values must not be empty."),
        ({"preallocate": "yes"}, wrong("yes", "preallocate", "Expected value to be either true or false")),
        ({"min.cleanable.dirty.ratio": "2"}, wrong("2.0", "min.cleanable.dirty.ratio", "Value must be no more than 1")),
        ({"min.cleanable.dirty.ratio": "-0.5"}, wrong("-0.5", "min.cleanable.dirty.ratio", "Value must be at least 0")),
        ({"min.cleanable.dirty.ratio": "x"}, wrong("x", "min.cleanable.dirty.ratio", "Not a number of type DOUBLE")),
        (
            {"compression.type": "foo"},
            wrong(
                "foo",
                "compression.type",
                "String must be one of: uncompressed, zstd, lz4, snappy, gzip, producer",
            ),
        ),
        (
            {"compression.gzip.level": "0"},
            wrong("0", "compression.gzip.level", "Value must be between 1 and 9 or equal to -1"),
        ),
        ({"compression.lz4.level": "18"}, wrong("18", "compression.lz4.level", "Value must be no more than 17")),
        ({"compression.zstd.level": "23"}, wrong("23", "compression.zstd.level", "Value must be no more than 22")),
        (
            {"message.timestamp.type": "Foo"},
            wrong("Foo", "message.timestamp.type", "String must be one of: CreateTime, LogAppendTime"),
        ),
        (
            {"min.compaction.lag.ms": "10", "max.compaction.lag.ms": "5"},
            "conflict topic config setting min.compaction.lag.ms (10) > max.compaction.lag.ms (5)",
        ),
        (
            {"remote.storage.enable": "true"},
            "Tiered Storage functionality is disabled in the broker. Topic cannot be configured with remote log "
            "storage.",
        ),
        (
            {"leader.replication.throttled.replicas": "x"},
            wrong(
                "[x]",
                "leader.replication.throttled.replicas",
                "leader.replication.throttled.replicas must be the literal '*' or a list of replicas in the following "
                "format: [partitionId]:[brokerId],[partitionId]:[brokerId],...",
            ),
        ),
        (
            {"retention.ms": "x" * 32768},
            "The configuration value cannot be added because it exceeds the maximum value size of 32767 bytes.",
        ),
    ],
)
def test_a_value_that_a_topic_cannot_have_is_refused_with_kafkas_sentence(
    cluster: Any, configs: dict[str, str], message: str
) -> None:
    result = cluster.create(cluster.topic("orders", configs=configs))["orders"]
    assert (result.error_code, result.error_message) == (INVALID_CONFIG, message)
    cluster.create_one("orders")
    changed = cluster.alter("orders", *((name, SET, value) for name, value in configs.items()))
    assert (changed.error_code, changed.error_message) == (INVALID_CONFIG, message)
    assert dict(cluster.image.topic_config("orders")) == {}


@pytest.mark.parametrize(
    ("name", "value", "in_force"),
    [
        ("retention.ms", "-1", -1),
        ("retention.ms", " 5 ", 5),
        ("segment.ms", "+5", 5),
        ("preallocate", "TRUE", True),
        ("cleanup.policy", "", []),
        ("cleanup.policy", "compact, delete", ["compact", "delete"]),
        ("cleanup.policy", "compact,compact", ["compact"]),
        ("min.cleanable.dirty.ratio", "1", 1.0),
        ("compression.gzip.level", "-1", -1),
        ("compression.zstd.level", "-131072", -131072),
        ("leader.replication.throttled.replicas", "*", ["*"]),
        ("leader.replication.throttled.replicas", "0:1,1:2", ["0:1", "1:2"]),
        ("internal.segment.bytes", "100", 100),
    ],
)
def test_values_are_read_as_kafka_reads_them(orders: Any, name: str, value: str, in_force: object) -> None:
    assert orders.alter("orders", (name, SET, value)).error_code == 0
    assert orders.controller.configs.topic("orders")[name] == in_force
    assert orders.image.topic_config("orders")[name] == value


# -- incremental -------------------------------------------------------------------------------------------------------


def test_keys_are_set_and_deleted_one_by_one(orders: Any) -> None:
    assert orders.alter("orders", ("retention.ms", SET, "1"), ("segment.ms", SET, "2")).error_code == 0
    assert orders.alter("orders", ("retention.ms", DELETE, None), ("flush.ms", SET, "3")).error_code == 0
    assert dict(orders.image.topic_config("orders")) == {"segment.ms": "2", "flush.ms": "3"}


def test_deleting_a_key_that_is_not_set_is_fine(orders: Any) -> None:
    assert orders.alter("orders", ("retention.ms", DELETE, None)).error_code == 0
    assert orders.alter("orders", ("nope", DELETE, None)).error_code == 0


def test_words_are_appended_to_and_subtracted_from_what_is_in_force(orders: Any) -> None:
    orders.alter("orders", ("cleanup.policy", APPEND, "compact"))
    assert orders.image.topic_config("orders")["cleanup.policy"] == "delete,compact"
    orders.alter("orders", ("cleanup.policy", APPEND, "compact"))
    assert orders.image.topic_config("orders")["cleanup.policy"] == "delete,compact"
    orders.alter("orders", ("cleanup.policy", SUBTRACT, "delete,nobody"))
    assert orders.image.topic_config("orders")["cleanup.policy"] == "compact"
    orders.alter("orders", ("cleanup.policy", SUBTRACT, "compact"))
    assert orders.image.topic_config("orders")["cleanup.policy"] == ""


@pytest.mark.parametrize("name", ["retention.ms", "nope"])
@pytest.mark.parametrize(("operation", "word"), [(APPEND, "APPEND"), (SUBTRACT, "SUBTRACT")])
def test_only_lists_are_appended_to(orders: Any, name: str, operation: int, word: str) -> None:
    result = orders.alter("orders", (name, operation, "1"))
    assert (result.error_code, result.error_message) == (
        INVALID_CONFIG,
        f"Can't {word} to key {name} because its type is not LIST.",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("retention.ms", SET, None)], "Null value not supported for : retention.ms"),
        ([("retention.ms", SET, "1"), ("retention.ms", DELETE, None)], "Error due to duplicate config keys"),
        ([("retention.ms", 9, "1")], "Unknown operations type 9"),
    ],
)
def test_a_malformed_change_is_refused(orders: Any, changes: list[tuple[str, int, str | None]], message: str) -> None:
    result = orders.alter("orders", *changes)
    assert (result.error_code, result.error_message) == (INVALID_REQUEST, message)


def test_a_resource_is_changed_as_a_whole_or_not_at_all(orders: Any) -> None:
    assert orders.alter("orders", ("retention.ms", SET, "1"), ("segment.bytes", SET, "5")).error_code == INVALID_CONFIG
    assert dict(orders.image.topic_config("orders")) == {}


def test_a_change_can_be_tried_without_changing(orders: Any) -> None:
    assert orders.alter("orders", ("retention.ms", SET, "1"), validate_only=True).error_code == 0
    assert orders.alter("orders", ("retention.ms", SET, "x"), validate_only=True).error_code == INVALID_CONFIG
    assert dict(orders.image.topic_config("orders")) == {}


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("nobody", UNKNOWN_TOPIC, "The topic 'nobody' does not exist."),
        ("", INVALID_REQUEST, "Default topic resources are not allowed."),
        ("a b", INVALID_TOPIC, None),
    ],
)
def test_only_existing_topics_are_configured(orders: Any, name: str, code: int, message: str | None) -> None:
    result = orders.alter(name, ("retention.ms", SET, "1"))
    assert result.error_code == code
    assert message is None or result.error_message == message


@pytest.mark.parametrize("kind", [ResourceType.BROKER_LOGGER, ResourceType.CLIENT_METRICS, ResourceType.GROUP, 1, 77])
def test_what_has_no_configuration_here_is_refused(orders: Any, kind: int) -> None:
    assert orders.alter(ConfigResource(kind, "x"), ("a", SET, "1")).error_code == INVALID_REQUEST
    assert orders.replace(ConfigResource(kind, "x"), {"a": "1"}).error_code == INVALID_REQUEST


def test_a_resource_appears_once_in_a_request_and_its_neighbour_is_still_changed(orders: Any) -> None:
    orders.create_one("payments")
    configs = [incremental.AlterableConfig(name="flush.ms", config_operation=SET, value="7")]
    entries = [
        incremental.AlterConfigsResource(resource_type=2, resource_name=name, configs=configs)
        for name in ("orders", "payments", "orders")
    ]
    request = incremental.IncrementalAlterConfigsRequest(resources=entries, validate_only=False)
    responses = orders.controller.incremental_alter_configs(request).result().responses
    assert [(r.resource_name, r.error_code) for r in responses] == [("orders", 42), ("payments", 0), ("orders", 42)]
    assert responses[0].error_message == "Each resource must appear at most once."
    assert dict(orders.image.topic_config("payments")) == {"flush.ms": "7"}
    assert dict(orders.image.topic_config("orders")) == {}


def test_a_change_reaches_listeners_with_its_resource(orders: Any) -> None:
    orders.alter("orders", ("flush.ms", SET, "7"))
    assert orders.deltas[-1].changed_configs == {ConfigResource(ResourceType.TOPIC, "orders")}


# -- legacy ------------------------------------------------------------------------------------------------------------


def test_the_legacy_request_replaces_everything_that_is_set(orders: Any) -> None:
    orders.alter("orders", ("retention.ms", SET, "1"), ("segment.ms", SET, "2"))
    assert orders.replace("orders", {"segment.ms": "3", "flush.ms": "4"}).error_code == 0
    assert dict(orders.image.topic_config("orders")) == {"segment.ms": "3", "flush.ms": "4"}
    assert orders.replace("orders", {}).error_code == 0
    assert dict(orders.image.topic_config("orders")) == {}


def test_the_legacy_request_is_checked_too(orders: Any) -> None:
    assert orders.replace("orders", {"segment.ms": None}).error_message == "Null value not supported for : segment.ms"
    assert orders.replace("orders", {"nope": "1"}).error_code == INVALID_CONFIG
    assert orders.replace("nobody", {}).error_code == UNKNOWN_TOPIC
    twice = [legacy.AlterableConfig(name="segment.ms", value=value) for value in ("1", "2")]
    entry = legacy.AlterConfigsResource(resource_type=2, resource_name="orders", configs=twice)
    request = legacy.AlterConfigsRequest(resources=[entry], validate_only=False)
    (response,) = orders.controller.alter_configs(request).result().responses
    assert (response.error_code, response.error_message) == (INVALID_REQUEST, "Error due to duplicate config keys")


# -- brokers -----------------------------------------------------------------------------------------------------------


def test_a_brokers_setting_is_the_default_of_topics_that_do_not_say_otherwise(orders: Any) -> None:
    orders.create_one("payments", retention_ms="9")
    assert orders.alter(CLUSTER_DEFAULT, ("log.retention.ms", SET, "6000")).error_code == 0
    assert orders.controller.configs.topic("orders")["retention.ms"] == 6000
    assert orders.alter(BROKER, ("log.retention.ms", SET, "5000")).error_code == 0
    assert orders.controller.configs.topic("orders")["retention.ms"] == 5000
    assert orders.controller.configs.topic("payments")["retention.ms"] == 9
    orders.alter(BROKER, ("log.retention.ms", DELETE, None))
    orders.alter(CLUSTER_DEFAULT, ("log.retention.ms", DELETE, None))
    assert orders.controller.configs.topic("orders")["retention.ms"] == 604_800_000
    assert orders.restarted().controller.configs.topic("payments")["retention.ms"] == 9


def test_a_brokers_settings_survive_a_restart(orders: Any) -> None:
    orders.alter(CLUSTER_DEFAULT, ("log.retention.ms", SET, "6000"))
    assert orders.restarted().controller.configs.topic("orders")["retention.ms"] == 6000


@pytest.mark.parametrize(
    ("name", "change", "code", "message"),
    [
        ("1", ("num.partitions", SET, "3"), 42, "Cannot update these configs dynamically: [num.partitions]"),
        ("1", ("log.retention.hours", SET, "1"), 42, "Cannot update these configs dynamically: [log.retention.hours]"),
        ("1", ("log.retention.ms", SET, "x"), 42, wrong("x", "log.retention.ms", "Not a number of type LONG")),
        ("", ("log.segment.bytes", SET, "3"), 42, wrong("3", "log.segment.bytes", "Value must be at least 1048576")),
        ("1", ("log.segment.bytes", APPEND, "3"), 40, "Config value append is not allowed for config key: "),
        ("2", ("log.retention.ms", SET, "1"), 42, "Unexpected broker id, expected 1, but received 2"),
        ("x", ("log.retention.ms", SET, "1"), 42, "Node id must be an integer, but it is: x"),
        ("1", ("foo.bar", SET, "1"), 42, "Unknown broker configs: foo.bar"),
    ],
)
def test_a_broker_takes_only_what_it_can_change_while_running(
    orders: Any, name: str, change: tuple[str, int, str], code: int, message: str
) -> None:
    result = orders.alter(ConfigResource(ResourceType.BROKER, name), change)
    assert result.error_code == code
    assert result.error_message.startswith(message)
    assert not orders.image.configs


def test_words_are_appended_to_a_brokers_list(orders: Any) -> None:
    assert orders.alter(BROKER, ("log.cleanup.policy", APPEND, "compact")).error_code == 0
    assert orders.controller.configs.topic("orders")["cleanup.policy"] == ["delete", "compact"]
