"""The groups that a broker coordinates.

Versions:

    0  the first
    1  throttle time
    2  the broker answers before it throttles (KIP-219)
    3  flexible
    4  states, and a filter by them (KIP-518)
    5  group types, and a filter by them (KIP-848)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i16, i32


class ListGroupsRequest(Request, key=16, versions="0-5", flexible="3+"):
    """Ask for groups; empty filters let all pass."""

    states_filter: list[str] = field("4+")
    types_filter: list[str] = field("5+")


class ListedGroup(Struct):
    """A group."""

    group_id: str = ""
    protocol_type: str = ""
    group_state: str = field("4+", ignorable=True)
    group_type: str = field("5+", ignorable=True)


class ListGroupsResponse(Response, key=16, versions="0-5", flexible="3+"):
    """The groups."""

    throttle_time_ms: i32 = field("1+", ignorable=True)
    error_code: i16 = 0
    groups: list[ListedGroup] = field()
