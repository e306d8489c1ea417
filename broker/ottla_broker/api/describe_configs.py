"""DescribeConfigs (key 32): the settings in force for topics and this broker, and where they come from.

Versions: 1 has synonyms and sources, 3 types and documentation. A broker named "" shows what was set while running for
all brokers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ottla_broker.controller.config_defs import BROKER_CONFIGS, LISTED_TOPIC_CONFIGS, TOPIC_CONFIGS
from ottla_broker.controller.config_types import ConfigDef, ConfigValue, to_text
from ottla_broker.controller.effective_configs import ConfigSource, Setting
from ottla_broker.controller.image import CLUSTER_DEFAULT, ResourceType
from ottla_broker.controller.topic_names import validate_topic_name
from ottla_wire.errors import InvalidRequest, KafkaError, UnknownTopicOrPartition
from ottla_wire.messages.describe_configs import (
    DescribeConfigsRequest,
    DescribeConfigsResource,
    DescribeConfigsResourceResult,
    DescribeConfigsResponse,
    DescribeConfigsResult,
    DescribeConfigsSynonym,
)

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext


def handle(broker: Broker, context: RequestContext, request: DescribeConfigsRequest) -> DescribeConfigsResponse:
    """Describe each resource; one that cannot be described carries its error."""
    return DescribeConfigsResponse(results=[_describe(broker, request, resource) for resource in request.resources])


def error_response(request: DescribeConfigsRequest, code: int, message: str | None) -> DescribeConfigsResponse:
    """The answer to a request that failed as a whole: every resource carries the error."""
    return DescribeConfigsResponse(results=[_failed(resource, code, message) for resource in request.resources])


def _describe(
    broker: Broker, request: DescribeConfigsRequest, resource: DescribeConfigsResource
) -> DescribeConfigsResult:
    try:
        if resource.resource_type == ResourceType.TOPIC:
            configs = _topic(broker, request, resource)
        elif resource.resource_type == ResourceType.BROKER:
            configs = _broker(broker, request, resource)
        else:
            raise InvalidRequest(f"Configurations of resource type {resource.resource_type} are not kept here.")
    except KafkaError as error:
        return _failed(resource, error.code, error.message)
    return DescribeConfigsResult(
        error_code=0,
        error_message="",  # as Kafka writes it
        resource_type=resource.resource_type,
        resource_name=resource.resource_name,
        configs=configs,
    )


def _failed(resource: DescribeConfigsResource, code: int, message: str | None) -> DescribeConfigsResult:
    return DescribeConfigsResult(
        error_code=code,
        error_message=message,
        resource_type=resource.resource_type,
        resource_name=resource.resource_name,
        configs=[],
    )


def _topic(
    broker: Broker, request: DescribeConfigsRequest, resource: DescribeConfigsResource
) -> list[DescribeConfigsResourceResult]:
    name = resource.resource_name
    validate_topic_name(name)
    controller = broker.controller
    if name not in controller.image.topics_by_name:
        raise UnknownTopicOrPartition
    overrides = controller.image.topic_config(name)
    in_force = controller.configs.topic(name)
    shown = LISTED_TOPIC_CONFIGS + [TOPIC_CONFIGS[key] for key in overrides if not TOPIC_CONFIGS[key].listed]
    return [
        _entry(request, definition, in_force[definition.name], controller.configs.topic_settings(definition, overrides))
        for definition in _wanted(shown, resource)
    ]


def _broker(
    broker: Broker, request: DescribeConfigsRequest, resource: DescribeConfigsResource
) -> list[DescribeConfigsResourceResult]:
    configs = broker.controller.configs
    if not resource.resource_name:
        overrides = broker.controller.image.config(CLUSTER_DEFAULT)
        return [
            _entry(
                request,
                definition,
                overrides[definition.name],
                [Setting(definition.name, overrides[definition.name], ConfigSource.DYNAMIC_DEFAULT_BROKER)],
                read_only=not definition.dynamic,
            )
            for definition in _wanted((BROKER_CONFIGS[name] for name in sorted(overrides)), resource)
        ]
    _check_broker_id(resource.resource_name, broker.node_id)
    return [
        _entry(
            request,
            definition,
            configs.broker_value(definition.name),
            configs.broker_synonyms(definition),
            read_only=not definition.dynamic,
        )
        for definition in _wanted(BROKER_CONFIGS.values(), resource)
    ]


def _check_broker_id(name: str, node_id: int) -> None:
    try:
        broker_id = int(name)
    except ValueError:
        raise InvalidRequest(f"Broker id must be an integer, but it is: {name}") from None
    if broker_id != node_id:
        raise InvalidRequest(f"Unexpected broker id, expected {node_id} or empty string, but received {name}")


def _wanted(definitions: Iterable[ConfigDef], resource: DescribeConfigsResource) -> list[ConfigDef]:
    keys = resource.configuration_keys
    # An empty list means all, as null does: clients send either.
    return [definition for definition in definitions if not keys or definition.name in keys]


def _entry(
    request: DescribeConfigsRequest,
    definition: ConfigDef,
    value: ConfigValue,
    settings: list[Setting],
    *,
    read_only: bool = False,
) -> DescribeConfigsResourceResult:
    synonyms = settings if request.include_synonyms else []
    return DescribeConfigsResourceResult(
        name=definition.name,
        value=to_text(value),
        read_only=read_only,
        config_source=int(settings[0].source if settings else ConfigSource.DEFAULT),
        is_sensitive=False,
        synonyms=[DescribeConfigsSynonym(name=s.name, value=s.value, source=int(s.source)) for s in synonyms],
        config_type=int(definition.type),
        documentation=definition.doc if request.include_documentation else None,
    )
