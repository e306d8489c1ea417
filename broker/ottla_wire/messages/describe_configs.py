"""The configuration of topics, brokers and others: each value, where it comes from, and what it covers up (KIP-133).

Resource types: 2 topic, 4 broker, 8 broker logger, 16 client metrics, 32 group.

Versions:

    1  sources and synonyms (KIP-226)
    2  the broker answers before it throttles (KIP-219)
    3  types and documentation (KIP-569)
    4  flexible
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i8, i16, i32


class DescribeConfigsResource(Struct):
    """A resource, and the keys that are asked about; null means all."""

    resource_type: i8 = 0
    resource_name: str = ""
    configuration_keys: list[str] | None = field()


class DescribeConfigsRequest(Request, key=32, versions="1-4", flexible="4+"):
    """Ask for configurations."""

    resources: list[DescribeConfigsResource] = field()
    include_synonyms: bool = False
    include_documentation: bool = field("3+")


class DescribeConfigsSynonym(Struct):
    """A value that would count if the ones before it were removed."""

    name: str = ""
    value: str | None = ""
    source: i8 = 0


class DescribeConfigsResourceResult(Struct):
    """One configuration of a resource."""

    name: str = ""
    value: str | None = ""
    read_only: bool = False
    config_source: i8 = -1
    is_sensitive: bool = False
    synonyms: list[DescribeConfigsSynonym] = field()
    config_type: i8 = field("3+", ignorable=True)
    documentation: str | None = field("3+", ignorable=True)


class DescribeConfigsResult(Struct):
    """The configurations of one resource."""

    error_code: i16 = 0
    error_message: str | None = ""
    resource_type: i8 = 0
    resource_name: str = ""
    configs: list[DescribeConfigsResourceResult] = field()


class DescribeConfigsResponse(Response, key=32, versions="1-4", flexible="4+"):
    """The configurations of all resources."""

    throttle_time_ms: i32 = 0
    results: list[DescribeConfigsResult] = field()
