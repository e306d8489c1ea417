"""Answers to AlterConfigs and IncrementalAlterConfigs: one result per resource, alike in both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from ottla_broker.controller.image import ConfigResource
from ottla_wire.errors import KafkaError, NoError, error_for
from ottla_wire.messages import alter_configs, incremental_alter_configs

Result = TypeVar(
    "Result", alter_configs.AlterConfigsResourceResponse, incremental_alter_configs.AlterConfigsResourceResponse
)


def alter_results(kind: type[Result], outcomes: Iterable[tuple[ConfigResource, KafkaError | None]]) -> list[Result]:
    """The results as the class of either API, for resources and what went wrong with them."""
    return [
        kind(
            error_code=error.code if error else NoError,
            error_message=error.message if error else None,
            resource_type=resource.type,
            resource_name=resource.name,
        )
        for resource, error in outcomes
    ]


def all_refused(kind: type[Result], request: Any, code: int, message: str | None) -> list[Result]:
    """The results of a request that failed as a whole: every resource carries the error."""
    error = error_for(code, message)
    return alter_results(
        kind, ((ConfigResource(asked.resource_type, asked.resource_name), error) for asked in request.resources)
    )
