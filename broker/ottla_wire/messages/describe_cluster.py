"""Cluster id, controller and brokers (KIP-700).

Endpoint types: 1 brokers, 2 controllers.

Versions:

    0  flexible from the start
    1  endpoint type (KIP-919)
    2  fenced brokers on request (KIP-1073)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i8, i16, i32


class DescribeClusterRequest(Request, key=60, versions="0-2", flexible="0+"):
    """Ask about the cluster."""

    include_cluster_authorized_operations: bool = False
    endpoint_type: i8 = field("1+", default=1)
    include_fenced_brokers: bool = field("2+")


class DescribeClusterBroker(Struct):
    """A broker, or a controller, and where it can be reached."""

    broker_id: i32 = 0
    host: str = ""
    port: i32 = 0
    rack: str | None = None
    is_fenced: bool = field("2+")


class DescribeClusterResponse(Response, key=60, versions="0-2", flexible="0+"):
    """The cluster."""

    throttle_time_ms: i32 = 0
    error_code: i16 = 0
    error_message: str | None = None
    endpoint_type: i8 = field("1+", default=1)
    cluster_id: str = ""
    controller_id: i32 = -1
    brokers: list[DescribeClusterBroker] = field()
    cluster_authorized_operations: i32 = -2147483648
