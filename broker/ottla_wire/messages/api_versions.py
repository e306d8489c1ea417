"""What a broker speaks: its APIs with their versions, and its features. The first request on a connection.

The answer's header never has a tagged section, for the client does not know yet what the broker speaks. A version the
broker does not know is answered in version 0, with UNSUPPORTED_VERSION and the entry of this API (KIP-511).

Versions:

    0  keys and versions
    1  throttle time
    2  the broker answers before it throttles (KIP-219)
    3  flexible; the request names the client software (KIP-511); the answer carries features (KIP-584)
    4  features with a minimum of 0 may be named (KAFKA-17011)
    5  the request says which cluster and node it means; the broker may answer REBOOTSTRAP_REQUIRED (KIP-1242)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i16, i32, i64


class ApiVersionsRequest(Request, key=18, versions="0-5", flexible="3+"):
    """Ask a broker what it speaks."""

    client_software_name: str = field("3+", ignorable=True)
    client_software_version: str = field("3+", ignorable=True)
    cluster_id: str | None = field("5+", default=None, ignorable=True)
    node_id: i32 = field("5+", default=-1, ignorable=True)


class ApiVersion(Struct):
    """The versions of one API that the broker takes."""

    api_key: i16 = 0
    min_version: i16 = 0
    max_version: i16 = 0


class SupportedFeatureKey(Struct):
    """A feature with the levels that the broker supports."""

    name: str = field("3+")
    min_version: i16 = field("3+")
    max_version: i16 = field("3+")


class FinalizedFeatureKey(Struct):
    """A feature with the levels that the cluster has agreed on."""

    name: str = field("3+")
    max_version_level: i16 = field("3+")
    min_version_level: i16 = field("3+")


class ApiVersionsResponse(Response, key=18, versions="0-5", flexible="3+"):
    """The APIs and features of a broker."""

    error_code: i16 = 0
    api_keys: list[ApiVersion] = field()
    throttle_time_ms: i32 = field("1+", ignorable=True)
    supported_features: list[SupportedFeatureKey] = field("3+", tag=0, ignorable=True)
    finalized_features_epoch: i64 = field("3+", default=-1, tag=1, ignorable=True)
    finalized_features: list[FinalizedFeatureKey] = field("3+", tag=2, ignorable=True)
    zk_migration_ready: bool = field("3+", tag=3, ignorable=True)
