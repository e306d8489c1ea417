"""Decisions about configuration: what IncrementalAlterConfigs and AlterConfigs change, as records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from ottla_broker.controller.config_defs import BROKER_CONFIGS, TOPIC_CONFIGS
from ottla_broker.controller.config_types import ConfigDef, ConfigType, to_text
from ottla_broker.controller.effective_configs import EffectiveConfigs
from ottla_broker.controller.image import ConfigResource, MetadataImage, ResourceType
from ottla_broker.controller.records import ConfigRecord
from ottla_broker.controller.topic_names import validate_topic_name
from ottla_wire.errors import InvalidConfig, InvalidRequest, KafkaError, UnknownTopicOrPartition

MAX_VALUE_LENGTH: Final = 32_767


class Operation(IntEnum):
    """What IncrementalAlterConfigs does to a key."""

    SET = 0
    DELETE = 1
    APPEND = 2
    SUBTRACT = 3


class Change(NamedTuple):
    """One change of one key."""

    name: str
    operation: int
    value: str | None


class ConfigControl:
    """Turns requested changes into records; see the module's text. Reads the image, never changes it."""

    def __init__(self, image: MetadataImage, configs: EffectiveConfigs, node_id: int) -> None:
        self._image = image
        self._configs = configs
        self._node_id = node_id

    def change(self, resource: ConfigResource, changes: Sequence[Change]) -> list[ConfigRecord]:
        """Records of an incremental change.

        Raises:
            KafkaError: nothing of it may be done.
        """
        _refuse_malformed(changes)
        self._check_resource(resource)
        before = self._image.config(resource)
        after = dict(before)
        for change in changes:
            value = self._changed_value(resource, change, before.get(change.name))
            if value is None:
                after.pop(change.name, None)
            else:
                after[change.name] = value
        return self._records(resource, after)

    def replace(self, resource: ConfigResource, values: Mapping[str, str | None]) -> list[ConfigRecord]:
        """Records that make `values` all that is set on the resource (the legacy AlterConfigs).

        Raises:
            KafkaError: nothing of it may be done.
        """
        _refuse_nulls((name for name, value in values.items() if value is None))
        self._check_resource(resource)
        return self._records(resource, {name: value for name, value in values.items() if value is not None})

    def for_new_topic(self, topic: str, values: Mapping[str, str]) -> list[ConfigRecord]:
        """Records of what is set on a topic that is just created.

        Raises:
            InvalidConfig: unknown key or wrong value.
        """
        resource = ConfigResource(ResourceType.TOPIC, topic)
        self._configs.validate_topic(_checked_length(values))
        return [_record(resource, name, value) for name, value in values.items()]

    def _records(self, resource: ConfigResource, after: Mapping[str, str]) -> list[ConfigRecord]:
        before = self._image.config(resource)
        _checked_length({name: value for name, value in after.items() if before.get(name) != value})
        self._validate(resource, after)
        changed = [_record(resource, name, value) for name, value in after.items() if before.get(name) != value]
        removed = [_record(resource, name, None) for name in before if name not in after]
        return changed + removed

    def _check_resource(self, resource: ConfigResource) -> None:
        if resource.type == ResourceType.TOPIC:
            if not resource.name:
                raise InvalidRequest("Default topic resources are not allowed.")
            validate_topic_name(resource.name)
        elif resource.type == ResourceType.BROKER:
            self._check_broker(resource.name)
        elif resource.type in (ResourceType.BROKER_LOGGER, ResourceType.CLIENT_METRICS, ResourceType.GROUP):
            kind = ResourceType(resource.type).name.lower().replace("_", " ")
            raise InvalidRequest(f"Configurations of a {kind} cannot be changed on this broker.")
        else:
            raise InvalidRequest(f"Unknown resource type {resource.type}")

    def _check_broker(self, name: str) -> None:
        if not name:
            return
        try:
            broker_id = int(name)
        except ValueError:
            raise InvalidRequest(f"Node id must be an integer, but it is: {name}") from None
        if broker_id != self._node_id:
            raise InvalidRequest(f"Unexpected broker id, expected {self._node_id}, but received {name}")

    def _changed_value(self, resource: ConfigResource, change: Change, before: str | None) -> str | None:
        if change.operation == Operation.SET:
            return change.value
        if change.operation == Operation.DELETE:
            return None
        definition = self._definition(resource, change.name)
        if change.operation not in (Operation.APPEND, Operation.SUBTRACT):
            raise InvalidRequest(f"Unknown operations type {change.operation}")
        if definition is None or definition.type != ConfigType.LIST:
            operation = Operation(change.operation).name
            if resource.type == ResourceType.BROKER:
                raise InvalidConfig(f"Config value {operation.lower()} is not allowed for config key: {change.name}")
            raise InvalidConfig(f"Can't {operation} to key {change.name} because its type is not LIST.")
        if before is None:
            before = self._default(resource, definition)
        values = [value for value in before.split(",") if value]
        for value in (change.value or "").split(","):
            if change.operation == Operation.APPEND and value not in values:
                values.append(value)
            elif change.operation == Operation.SUBTRACT and value in values:
                values.remove(value)
        return ",".join(values)

    def _definition(self, resource: ConfigResource, name: str) -> ConfigDef | None:
        return (TOPIC_CONFIGS if resource.type == ResourceType.TOPIC else BROKER_CONFIGS).get(name)

    def _default(self, resource: ConfigResource, definition: ConfigDef) -> str:
        if resource.type == ResourceType.TOPIC:
            return to_text(definition.default) or ""
        settings = self._configs.broker_settings(definition.name)
        return settings[-1].value if settings else ""

    def _validate(self, resource: ConfigResource, after: Mapping[str, str]) -> None:
        if resource.type == ResourceType.BROKER:
            _validate_broker(after)
            return
        self._configs.validate_topic(after)
        if resource.name not in self._image.topics_by_name:
            raise UnknownTopicOrPartition(f"The topic '{resource.name}' does not exist.")


def _validate_broker(values: Mapping[str, str]) -> None:
    unknown = sorted(name for name in values if name not in BROKER_CONFIGS)
    if unknown:
        raise InvalidRequest(f"Unknown broker configs: {', '.join(unknown)}")
    fixed = sorted(name for name in values if not BROKER_CONFIGS[name].dynamic)
    if fixed:
        raise InvalidRequest(f"Cannot update these configs dynamically: [{', '.join(fixed)}]")
    for name, text in values.items():
        try:
            BROKER_CONFIGS[name].parse(text)
        except KafkaError as error:
            # Kafka answers INVALID_REQUEST where a broker's value is wrong, INVALID_CONFIG where a topic's is.
            raise InvalidRequest(error.message) from error


def _refuse_malformed(changes: Sequence[Change]) -> None:
    if len({change.name for change in changes}) != len(changes):
        raise InvalidRequest("Error due to duplicate config keys")
    _refuse_nulls(c.name for c in changes if c.operation != Operation.DELETE and c.value is None)


def _refuse_nulls(names: Iterable[str]) -> None:
    found = list(names)
    if found:
        raise InvalidRequest(f"Null value not supported for : {', '.join(found)}")


def _checked_length(values: Mapping[str, str]) -> Mapping[str, str]:
    if any(len(value) > MAX_VALUE_LENGTH for value in values.values()):
        raise InvalidConfig(
            "The configuration value cannot be added because it exceeds the maximum value size of "
            f"{MAX_VALUE_LENGTH} bytes."
        )
    return values


def _record(resource: ConfigResource, name: str, value: str | None) -> ConfigRecord:
    return ConfigRecord(resource_type=int(resource.type), resource_name=resource.name, name=name, value=value)
