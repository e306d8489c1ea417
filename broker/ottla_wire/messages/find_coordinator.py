"""Which broker coordinates a group or a transactional id.

Versions:

    0  groups only
    1  key types: 0 group, 1 transactional id; throttle time and error message (KIP-98)
    2  the broker answers before it throttles (KIP-219)
    3  flexible
    4  many keys at once (KIP-699)
    5  TRANSACTION_ABORTABLE may be answered (KIP-890)
    6  key type 2: share partitions, "group:topic id:partition" (KIP-932)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i8, i16, i32


class FindCoordinatorRequest(Request, key=10, versions="0-6", flexible="3+"):
    """Ask for coordinators."""

    key: str = field("0-3")
    key_type: i8 = field("1+")
    coordinator_keys: list[str] = field("4+")


class Coordinator(Struct):
    """The coordinator of one key, or why there is none."""

    key: str = field("4+")
    node_id: i32 = field("4+")
    host: str = field("4+")
    port: i32 = field("4+")
    error_code: i16 = field("4+")
    error_message: str | None = field("4+", ignorable=True)


class FindCoordinatorResponse(Response, key=10, versions="0-6", flexible="3+"):
    """The coordinators, or (below version 4) the one coordinator."""

    throttle_time_ms: i32 = field("1+", ignorable=True)
    error_code: i16 = field("0-3")
    error_message: str | None = field("1-3", ignorable=True)
    node_id: i32 = field("0-3")
    host: str = field("0-3")
    port: i32 = field("0-3")
    coordinators: list[Coordinator] = field("4+")
