"""What is in force, where it comes from, and the table of keys behind it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from ottla_broker.controller.config_defs import BROKER_CONFIGS, LISTED_TOPIC_CONFIGS, TOPIC_CONFIGS
from ottla_broker.controller.config_types import ConfigType, to_text
from ottla_broker.controller.effective_configs import ConfigSource, EffectiveConfigs, Setting
from ottla_broker.controller.image import MetadataDelta, MetadataImage
from ottla_broker.controller.records import ConfigRecord
from ottla_broker.log.config import LogConfig
from ottla_broker.shell.config import BrokerConfig
from ottla_broker.shell.topic_settings import log_config

DYNAMIC_BROKER, DYNAMIC_DEFAULT = ConfigSource.DYNAMIC_BROKER, ConfigSource.DYNAMIC_DEFAULT_BROKER
STATIC, DEFAULT, TOPIC = ConfigSource.STATIC_BROKER, ConfigSource.DEFAULT, ConfigSource.DYNAMIC_TOPIC


class Node:
    """Node 1, started with some settings."""

    def __init__(self, **started_with: Any) -> None:
        self.image = MetadataImage("cluster")
        config, defaults = BrokerConfig(**started_with), BrokerConfig()
        self.configs = EffectiveConfigs(self.image, 1, config.as_mapping(), defaults.as_mapping())

    def set(self, kind: int, resource: str, name: str, value: str) -> Node:
        record = ConfigRecord(resource_type=kind, resource_name=resource, name=name, value=value)
        self.image.replay(record, self.image.end_offset, MetadataDelta())
        self.configs.forget()
        return self

    def topic_settings(self, name: str) -> list[Setting]:
        return self.configs.topic_settings(TOPIC_CONFIGS[name], self.image.topic_config("orders"))


@pytest.mark.parametrize(
    ("started_with", "retention_ms"),
    [
        ({}, 604_800_000),
        ({"log_retention_hours": 1}, 3_600_000),
        ({"log_retention_hours": 1, "log_retention_minutes": 2}, 120_000),
        ({"log_retention_hours": 1, "log_retention_minutes": 2, "log_retention_ms": 3}, 3),
        ({"log_retention_minutes": -1}, -1),
        ({"log_retention_hours": -1}, -1),
    ],
)
def test_retention_comes_from_the_finest_unit_that_is_set(started_with: dict[str, int], retention_ms: int) -> None:
    assert Node(**started_with).configs.topic("orders")["retention.ms"] == retention_ms
    assert BrokerConfig(**started_with).retention_ms == retention_ms


@pytest.mark.parametrize(
    ("key", "started_with", "value"),
    [
        ("segment.ms", {"log_roll_hours": 2}, 7_200_000),
        ("segment.ms", {"log_roll_hours": 2, "log_roll_ms": 5}, 5),
        ("segment.jitter.ms", {"log_roll_jitter_hours": 2}, 7_200_000),
        ("flush.ms", {"log_flush_scheduler_interval_ms": 9}, 9),
        ("flush.ms", {"log_flush_scheduler_interval_ms": 9, "log_flush_interval_ms": 4}, 4),
        ("max.message.bytes", {"message_max_bytes": 77}, 77),
        ("cleanup.policy", {"log_cleanup_policy": "compact"}, ["compact"]),
        ("min.cleanable.dirty.ratio", {"log_cleaner_min_cleanable_ratio": 0.25}, 0.25),
    ],
)
def test_a_topics_default_is_what_the_broker_was_started_with(
    key: str, started_with: dict[str, Any], value: object
) -> None:
    assert Node(**started_with).configs.topic("orders")[key] == value


def test_the_nearest_layer_wins_even_with_a_coarser_unit() -> None:
    node = Node(log_retention_ms=3)
    assert node.configs.topic("orders")["retention.ms"] == 3
    node.set(4, "", "log.retention.minutes", "1")
    assert node.configs.topic("orders")["retention.ms"] == 60_000


def test_all_layers_are_shown_the_one_in_force_first() -> None:
    node = Node(message_max_bytes=4)
    node.set(4, "", "message.max.bytes", "3").set(4, "1", "message.max.bytes", "2")
    node.set(2, "orders", "max.message.bytes", "1")
    assert node.topic_settings("max.message.bytes") == [
        Setting("max.message.bytes", "1", TOPIC),
        Setting("message.max.bytes", "2", DYNAMIC_BROKER),
        Setting("message.max.bytes", "3", DYNAMIC_DEFAULT),
        Setting("message.max.bytes", "4", STATIC),
        Setting("message.max.bytes", "1048588", DEFAULT),
    ]
    assert node.configs.broker_value("message.max.bytes") == 2


def test_another_brokers_settings_do_not_count() -> None:
    node = Node().set(4, "2", "message.max.bytes", "2")
    assert node.configs.broker_value("message.max.bytes") == 1_048_588


def test_as_in_kafka_a_default_in_another_unit_is_shown_only_behind_one_in_milliseconds() -> None:
    node = Node()
    assert node.topic_settings("retention.ms") == []
    assert node.configs.broker_synonyms(BROKER_CONFIGS["log.retention.hours"]) == [
        Setting("log.retention.hours", "168", DEFAULT)
    ]
    node.set(4, "1", "log.retention.ms", "5000")
    assert node.topic_settings("retention.ms") == [
        Setting("log.retention.ms", "5000", DYNAMIC_BROKER),
        Setting("log.retention.hours", "168", DEFAULT),
    ]


def test_defaults_are_read_anew_after_a_change_of_broker_settings() -> None:
    node = Node()
    before = node.configs.topic_defaults()
    assert node.configs.topic_defaults() is before
    node.set(4, "1", "log.segment.bytes", "2000000")
    assert node.configs.topic_defaults()["segment.bytes"] == 2_000_000
    assert before["segment.bytes"] == 1_073_741_824


def test_a_topic_key_that_this_version_does_not_know_is_left_out() -> None:
    """A log written by a later version must not keep the broker from starting."""
    node = Node().set(2, "orders", "key.of.the.future", "1")
    assert node.configs.topic("orders") == Node().configs.topic("orders")


# -- the tables --------------------------------------------------------------------------------------------------------


def test_topics_have_all_keys_of_kafka() -> None:
    assert [definition.name for definition in LISTED_TOPIC_CONFIGS] == sorted(
        [
            "cleanup.policy",
            "compression.gzip.level",
            "compression.lz4.level",
            "compression.type",
            "compression.zstd.level",
            "delete.retention.ms",
            "file.delete.delay.ms",
            "flush.messages",
            "flush.ms",
            "follower.replication.throttled.replicas",
            "index.interval.bytes",
            "leader.replication.throttled.replicas",
            "local.retention.bytes",
            "local.retention.ms",
            "max.compaction.lag.ms",
            "max.message.bytes",
            "message.timestamp.after.max.ms",
            "message.timestamp.before.max.ms",
            "message.timestamp.type",
            "min.cleanable.dirty.ratio",
            "min.compaction.lag.ms",
            "min.insync.replicas",
            "preallocate",
            "remote.log.copy.disable",
            "remote.log.delete.on.disable",
            "remote.storage.enable",
            "retention.bytes",
            "retention.ms",
            "segment.bytes",
            "segment.index.bytes",
            "segment.jitter.ms",
            "segment.ms",
            "unclean.leader.election.enable",
        ]
    )


@pytest.mark.parametrize("definition", TOPIC_CONFIGS.values(), ids=TOPIC_CONFIGS.keys())
def test_a_topic_key_explains_itself_and_accepts_its_own_default(definition: Any) -> None:
    assert len(definition.doc) > 20
    assert definition.doc.endswith(".")
    if definition.default is not None:
        assert definition.parse(to_text(definition.default) or "") == definition.default
    for synonym, _ in definition.synonyms:
        assert synonym in BROKER_CONFIGS


def test_the_first_broker_synonym_of_a_topic_key_can_be_changed_while_running_and_nothing_else() -> None:
    dynamic = {name for name, definition in BROKER_CONFIGS.items() if definition.dynamic}
    assert dynamic == {definition.synonyms[0][0] for definition in TOPIC_CONFIGS.values() if definition.synonyms}


def test_the_table_of_broker_keys_is_that_of_the_broker_configuration() -> None:
    assert set(BROKER_CONFIGS) == set(BrokerConfig().as_mapping())
    for definition in BROKER_CONFIGS.values():
        assert definition.doc.endswith("."), definition.name


_PYTHON_TYPES = {
    "int": {ConfigType.INT, ConfigType.LONG, ConfigType.SHORT},
    "bool": {ConfigType.BOOLEAN},
    "float": {ConfigType.DOUBLE},
    "str": {ConfigType.STRING, ConfigType.LIST},
}


@pytest.mark.parametrize("field", fields(BrokerConfig), ids=lambda field: field.name)
def test_a_broker_key_has_the_type_of_its_setting_and_accepts_its_default(field: Any) -> None:
    definition = BROKER_CONFIGS[field.name.replace("_", ".")]
    assert definition.type in _PYTHON_TYPES[str(field.type).removesuffix(" | None")]
    if field.default is not None:
        text = to_text(field.default)
        assert text is not None
        assert to_text(definition.parse(text)) == text


def test_a_log_of_a_topic_without_settings_is_configured_as_by_default() -> None:
    assert log_config(Node().configs, "orders") == LogConfig()


def test_a_log_is_configured_by_its_topic() -> None:
    node = Node().set(2, "orders", "cleanup.policy", "compact").set(2, "orders", "internal.segment.bytes", "100")
    assert log_config(node.configs, "orders") == LogConfig(cleanup_policy=("compact",), segment_bytes=100)
