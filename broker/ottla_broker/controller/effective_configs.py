"""What is in force for a broker and for a topic: settings in layers, the nearest one wins.

    topic:  set on the topic > what the broker gives
    broker: set on this broker while running > set for all brokers while running > started with > default

Within a layer a key's synonyms go in order (`log.retention.ms` before `.minutes` before `.hours`); a nearer layer wins
even with a lesser synonym.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from ottla_broker.controller.config_defs import BROKER_CONFIGS, TOPIC_CONFIGS
from ottla_broker.controller.config_types import LONG_MAX, ConfigDef, ConfigValue, to_text
from ottla_broker.controller.image import CLUSTER_DEFAULT, ConfigResource, MetadataImage, ResourceType
from ottla_wire.errors import InvalidConfig


class ConfigSource(IntEnum):
    """Where a value comes from, as DescribeConfigs numbers it."""

    UNKNOWN = 0
    DYNAMIC_TOPIC = 1
    DYNAMIC_BROKER = 2
    DYNAMIC_DEFAULT_BROKER = 3
    STATIC_BROKER = 4
    DEFAULT = 5


class Setting(NamedTuple):
    """One value of one key in one layer."""

    name: str
    value: str
    source: ConfigSource


class EffectiveConfigs:
    """Reads settings of this node and its topics.

    Args:
        image: what was set while running.
        node_id: this broker.
        started_with: all broker settings under Kafka's names.
        defaults: their defaults; a setting that differs from its default counts as written by the operator.
    """

    def __init__(
        self, image: MetadataImage, node_id: int, started_with: Mapping[str, object], defaults: Mapping[str, object]
    ) -> None:
        self._image = image
        self._this_broker = ConfigResource(ResourceType.BROKER, str(node_id))
        self._defaults = _texts(defaults)
        self._static = {
            name: value for name, value in _texts(started_with).items() if self._defaults.get(name) != value
        }
        self._topic_defaults: dict[str, ConfigValue] | None = None

    def forget(self) -> None:
        """Broker settings changed: read them again."""
        self._topic_defaults = None

    # -- brokers -----------------------------------------------------------------------------------------------------

    def broker_settings(self, *names: str) -> list[Setting]:
        """All values under these names, the one in force first."""
        layers = (
            (self._image.config(self._this_broker), ConfigSource.DYNAMIC_BROKER),
            (self._image.config(CLUSTER_DEFAULT), ConfigSource.DYNAMIC_DEFAULT_BROKER),
            (self._static, ConfigSource.STATIC_BROKER),
            (self._defaults, ConfigSource.DEFAULT),
        )
        return [Setting(name, layer[name], source) for layer, source in layers for name in names if name in layer]

    def broker_synonyms(self, definition: ConfigDef) -> list[Setting]:
        """Where a broker key's value comes from, the value in force first; `topic_settings` says what is left out."""
        return _from_name(definition.name, self.broker_settings(*(name for name, _ in definition.synonyms)))

    def broker_value(self, name: str) -> ConfigValue:
        """The value of a broker key that is in force; None if it has none."""
        settings = self.broker_settings(name)
        return BROKER_CONFIGS[name].parse(settings[0].value) if settings else None

    # -- topics ------------------------------------------------------------------------------------------------------

    def topic(self, topic: str) -> dict[str, ConfigValue]:
        """All topic keys with the values in force for one topic, existing or not."""
        values = dict(self.topic_defaults())
        for name, text in self._image.topic_config(topic).items():
            if name in TOPIC_CONFIGS:
                values[name] = TOPIC_CONFIGS[name].parse(text)
        return values

    def topic_defaults(self) -> Mapping[str, ConfigValue]:
        """What a topic gets on which nothing is set."""
        if self._topic_defaults is None:
            self._topic_defaults = {d.name: self._topic_default(d) for d in TOPIC_CONFIGS.values()}
        return self._topic_defaults

    def _topic_default(self, definition: ConfigDef) -> ConfigValue:
        settings = self.broker_settings(*(name for name, _ in definition.synonyms))
        if not settings:
            return definition.default
        factor = dict(definition.synonyms)[settings[0].name]
        if factor == 1:
            return definition.parse(settings[0].value)
        units = int(settings[0].value)
        return -1 if units < 0 else min(units * factor, LONG_MAX)

    def topic_settings(self, definition: ConfigDef, overrides: Mapping[str, str]) -> list[Setting]:
        """Where a topic key's value comes from, the value in force first; empty if it is Kafka's own default.

        As in Kafka, what stands before the first synonym's own entry is left out: a topic's retention that comes from
        log.retention.hours is shown without origin.
        """
        settings: list[Setting] = []
        if definition.synonyms:
            name = definition.synonyms[0][0]
            settings = self.broker_synonyms(BROKER_CONFIGS[name]) if name in BROKER_CONFIGS else []
        if definition.name in overrides:
            value = to_text(definition.parse(overrides[definition.name])) or ""
            settings.insert(0, Setting(definition.name, value, ConfigSource.DYNAMIC_TOPIC))
        return settings

    # -- checks ------------------------------------------------------------------------------------------------------

    def validate_topic(self, overrides: Mapping[str, str]) -> None:
        """Check what shall be set on a topic, as a whole.

        Raises:
            InvalidConfig: an unknown key, a value that cannot be, or values that contradict each other.
        """
        for name in overrides:
            if name not in TOPIC_CONFIGS:
                raise InvalidConfig(f"Unknown topic config name: {name}")
        values = dict(self.topic_defaults()) | {n: TOPIC_CONFIGS[n].parse(text) for n, text in overrides.items()}
        shortest, longest = values["min.compaction.lag.ms"], values["max.compaction.lag.ms"]
        assert isinstance(shortest, int)
        assert isinstance(longest, int)
        if shortest > longest:
            raise InvalidConfig(
                f"conflict topic config setting min.compaction.lag.ms ({shortest}) > max.compaction.lag.ms ({longest})"
            )
        if values["remote.storage.enable"]:
            raise InvalidConfig(
                "Tiered Storage functionality is disabled in the broker. "
                "Topic cannot be configured with remote log storage."
            )


def _from_name(name: str, settings: list[Setting]) -> list[Setting]:
    start = next((i for i, setting in enumerate(settings) if setting.name == name), len(settings))
    return settings[start:]


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    texts = {name: to_text(value) for name, value in values.items()}  # type: ignore[arg-type]
    return {name: text for name, text in texts.items() if text is not None}
