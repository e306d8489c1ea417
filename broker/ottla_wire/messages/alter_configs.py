"""The whole dynamic configuration of a resource is replaced (KIP-133); IncrementalAlterConfigs is its successor.

Versions:

    0  the first
    1  the broker answers before it throttles (KIP-219)
    2  flexible
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i8, i16, i32


class AlterableConfig(Struct):
    """A configuration and its new value."""

    name: str = ""
    value: str | None = ""


class AlterConfigsResource(Struct):
    """A resource with all the configurations it shall have."""

    resource_type: i8 = 0
    resource_name: str = ""
    configs: list[AlterableConfig] = field()


class AlterConfigsRequest(Request, key=33, versions="0-2", flexible="2+"):
    """Replace configurations, or only check whether that would work."""

    resources: list[AlterConfigsResource] = field()
    validate_only: bool = False


class AlterConfigsResourceResponse(Struct):
    """The result for one resource."""

    error_code: i16 = 0
    error_message: str | None = ""
    resource_type: i8 = 0
    resource_name: str = ""


class AlterConfigsResponse(Response, key=33, versions="0-2", flexible="2+"):
    """The result for each resource."""

    throttle_time_ms: i32 = 0
    responses: list[AlterConfigsResourceResponse] = field()
