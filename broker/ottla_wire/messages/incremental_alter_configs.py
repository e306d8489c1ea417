"""Single configuration values are set, removed, extended or shortened (KIP-339).

Operations: 0 set, 1 delete, 2 append, 3 subtract. Resource types as in DescribeConfigs.

Versions:

    0  the first
    1  flexible
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i8, i16, i32


class AlterableConfig(Struct):
    """A change of one configuration."""

    name: str = ""
    config_operation: i8 = 0
    value: str | None = ""


class AlterConfigsResource(Struct):
    """The changes of one resource."""

    resource_type: i8 = 0
    resource_name: str = ""
    configs: list[AlterableConfig] = field()


class IncrementalAlterConfigsRequest(Request, key=44, versions="0-1", flexible="1+"):
    """Change configurations, or only check whether that would work."""

    resources: list[AlterConfigsResource] = field()
    validate_only: bool = False


class AlterConfigsResourceResponse(Struct):
    """The result for one resource."""

    error_code: i16 = 0
    error_message: str | None = ""
    resource_type: i8 = 0
    resource_name: str = ""


class IncrementalAlterConfigsResponse(Response, key=44, versions="0-1", flexible="1+"):
    """The result for each resource."""

    throttle_time_ms: i32 = 0
    responses: list[AlterConfigsResourceResponse] = field()
