"""DescribeConfigs, IncrementalAlterConfigs and AlterConfigs over the wire."""

from __future__ import annotations

from typing import Any

import pytest

from ottla_broker.controller.config_defs import BROKER_CONFIGS
from ottla_wire.messages import alter_configs as legacy
from ottla_wire.messages import incremental_alter_configs as incremental
from ottla_wire.messages.describe_configs import DescribeConfigsRequest, DescribeConfigsResource

TOPIC, BROKER, SET = 2, 4, 0
DYNAMIC_TOPIC, DYNAMIC_BROKER, DYNAMIC_DEFAULT, STATIC, DEFAULT = 1, 2, 3, 4, 5
BOOLEAN, STRING, INT, LONG, DOUBLE, LIST = 1, 2, 3, 5, 6, 7


def description(
    kind: int, name: str, keys: list[str] | None = None, *, synonyms: bool = False, documentation: bool = False
) -> DescribeConfigsRequest:
    resource = DescribeConfigsResource(resource_type=kind, resource_name=name, configuration_keys=keys)
    return DescribeConfigsRequest(resources=[resource], include_synonyms=synonyms, include_documentation=documentation)


def described(admin: Any, kind: int, name: str, *keys: str, version: int = 4, **options: bool) -> dict[str, Any]:
    (result,) = admin.ask(description(kind, name, list(keys) or None, **options), version).results
    assert (result.error_code, result.error_message) == (0, "")
    assert (result.resource_type, result.resource_name) == (kind, name)
    return {config.name: config for config in result.configs}


def change(kind: int, name: str, key: str, value: str) -> incremental.IncrementalAlterConfigsRequest:
    config = incremental.AlterableConfig(name=key, config_operation=SET, value=value)
    resource = incremental.AlterConfigsResource(resource_type=kind, resource_name=name, configs=[config])
    return incremental.IncrementalAlterConfigsRequest(resources=[resource], validate_only=False)


def synonyms_of(config: Any) -> list[tuple[str, str, int]]:
    return [(synonym.name, synonym.value, synonym.source) for synonym in config.synonyms]


@pytest.mark.parametrize("version", range(1, 5))
def test_a_topic_is_described_in_every_version(admin: Any, version: int) -> None:
    admin.bench.create_topic("orders", retention_ms="7")
    configs = described(admin, TOPIC, "orders", version=version)
    assert len(configs) == 33
    assert (configs["retention.ms"].value, configs["retention.ms"].config_source) == ("7", DYNAMIC_TOPIC)
    assert (configs["segment.bytes"].value, configs["segment.bytes"].config_source) == ("1073741824", DEFAULT)
    assert not any(config.read_only or config.is_sensitive for config in configs.values())
    assert configs["retention.ms"].config_type == (LONG if version >= 3 else 0)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("preallocate", BOOLEAN),
        ("compression.type", STRING),
        ("segment.bytes", INT),
        ("retention.ms", LONG),
        ("min.cleanable.dirty.ratio", DOUBLE),
        ("cleanup.policy", LIST),
    ],
)
def test_types_are_kafkas_numbers(admin: Any, key: str, kind: int) -> None:
    admin.bench.create_topic("orders")
    assert described(admin, TOPIC, "orders", key)[key].config_type == kind


def test_only_the_keys_asked_for_are_answered(admin: Any) -> None:
    admin.bench.create_topic("orders")
    assert set(described(admin, TOPIC, "orders", "retention.ms", "nobody", "flush.ms")) == {"retention.ms", "flush.ms"}


def test_synonyms_and_documentation_are_told_to_who_asks(admin: Any) -> None:
    admin.bench.create_topic("orders", max_message_bytes="77")
    (plain,) = described(admin, TOPIC, "orders", "max.message.bytes").values()
    assert (list(plain.synonyms), plain.documentation) == ([], None)
    (full,) = described(admin, TOPIC, "orders", "max.message.bytes", synonyms=True, documentation=True).values()
    assert synonyms_of(full) == [
        ("max.message.bytes", "77", DYNAMIC_TOPIC),
        ("message.max.bytes", "1048588", DEFAULT),
    ]
    assert full.documentation.startswith("The largest record batch")


@pytest.mark.parametrize(
    ("kind", "name", "code"),
    [(TOPIC, "nobody", 3), (TOPIC, "a b", 17), (BROKER, "2", 42), (BROKER, "x", 42), (1, "x", 42), (77, "x", 42)],
)
def test_what_cannot_be_described_carries_its_error_and_its_neighbour_is_described(
    admin: Any, kind: int, name: str, code: int
) -> None:
    admin.bench.create_topic("orders")
    request = description(kind, name)
    request.resources.append(DescribeConfigsResource(resource_type=TOPIC, resource_name="orders"))
    request.resources[-1].configuration_keys = None
    failed, good = admin.ask(request).results
    assert (failed.error_code, failed.resource_name, list(failed.configs)) == (code, name, [])
    assert (good.error_code, len(good.configs)) == (0, 33)


def test_a_broker_describes_everything_that_it_honours(make_admin: Any) -> None:
    admin = make_admin(num_partitions=3)
    configs = described(admin, BROKER, "1", synonyms=True)
    assert set(configs) == set(BROKER_CONFIGS)
    assert (configs["num.partitions"].value, configs["num.partitions"].config_source) == ("3", STATIC)
    assert synonyms_of(configs["num.partitions"]) == [("num.partitions", "3", STATIC), ("num.partitions", "1", DEFAULT)]
    assert configs["num.partitions"].read_only
    assert not configs["log.retention.ms"].read_only
    assert configs["log.retention.ms"].value is None


def test_what_is_set_for_all_brokers_is_described_under_the_empty_name(admin: Any) -> None:
    assert described(admin, BROKER, "") == {}
    admin.ask(change(BROKER, "", "log.retention.ms", "6000"))
    admin.ask(change(BROKER, "1", "message.max.bytes", "5000"))
    (config,) = described(admin, BROKER, "", synonyms=True).values()
    assert (config.name, config.value, config.config_source) == ("log.retention.ms", "6000", DYNAMIC_DEFAULT)
    assert synonyms_of(config) == [("log.retention.ms", "6000", DYNAMIC_DEFAULT)]
    one = described(admin, BROKER, "1", "message.max.bytes", "log.retention.ms")
    assert (one["message.max.bytes"].value, one["message.max.bytes"].config_source) == ("5000", DYNAMIC_BROKER)
    assert (one["log.retention.ms"].value, one["log.retention.ms"].config_source) == ("6000", DYNAMIC_DEFAULT)


@pytest.mark.parametrize("version", [0, 1])
def test_a_key_is_changed_in_every_version_of_the_incremental_request(admin: Any, version: int) -> None:
    admin.bench.create_topic("orders")
    (response,) = admin.ask(change(TOPIC, "orders", "retention.ms", "7"), version).responses
    assert (response.error_code, response.error_message) == (0, None)
    assert (response.resource_type, response.resource_name) == (TOPIC, "orders")
    assert described(admin, TOPIC, "orders", "retention.ms")["retention.ms"].value == "7"
    (response,) = admin.ask(change(TOPIC, "orders", "retention.ms", "x"), version).responses
    assert response.error_code == 40
    assert response.error_message == "Invalid value x for configuration retention.ms: Not a number of type LONG"


@pytest.mark.parametrize("version", range(3))
def test_a_configuration_is_replaced_in_every_version_of_the_legacy_request(admin: Any, version: int) -> None:
    admin.bench.create_topic("orders", retention_ms="7")
    config = legacy.AlterableConfig(name="flush.ms", value="8")
    resource = legacy.AlterConfigsResource(resource_type=TOPIC, resource_name="orders", configs=[config])
    (response,) = admin.ask(legacy.AlterConfigsRequest(resources=[resource], validate_only=False), version).responses
    assert (response.error_code, response.error_message) == (0, None)
    assert dict(admin.image.topic_config("orders")) == {"flush.ms": "8"}
