"""A member enters a group of the classic protocol, and waits for the others.

The leader's answer names all members with their metadata; it distributes the partitions and sends them by SyncGroup.

Versions:

    0  one timeout for session and rebalance
    1  rebalance timeout (KIP-62)
    2  throttle time
    3  the broker answers before it throttles (KIP-219)
    4  a new member is first given an id, with MEMBER_ID_REQUIRED (KIP-394)
    5  static members (KIP-345)
    6  flexible
    7  the answer names the protocol type (KIP-559)
    8  the reason for joining (KIP-800)
    9  the leader may be told to leave the assignment as it is (KIP-814)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i16, i32


class JoinGroupRequestProtocol(Struct):
    """An assignor that the member could work with, and what it needs to know."""

    name: str = ""
    metadata: bytes = field()


class JoinGroupRequest(Request, key=11, versions="0-9", flexible="6+"):
    """Enter a group, or confirm the membership for the next generation."""

    group_id: str = ""
    session_timeout_ms: i32 = 0
    rebalance_timeout_ms: i32 = field("1+", default=-1, ignorable=True)
    member_id: str = ""
    group_instance_id: str | None = field("5+", default=None)
    protocol_type: str = ""
    protocols: list[JoinGroupRequestProtocol] = field()
    reason: str | None = field("8+", default=None, ignorable=True)


class JoinGroupResponseMember(Struct):
    """A member as the leader sees it."""

    member_id: str = ""
    group_instance_id: str | None = field("5+", default=None, ignorable=True)
    metadata: bytes = field()


class JoinGroupResponse(Response, key=11, versions="0-9", flexible="6+"):
    """The new generation. `members` is empty for all but the leader."""

    throttle_time_ms: i32 = field("2+", ignorable=True)
    error_code: i16 = 0
    generation_id: i32 = -1
    protocol_type: str | None = field("7+", default=None, ignorable=True)
    protocol_name: str | None = field(nullable="7+")
    leader: str = ""
    skip_assignment: bool = field("9+")
    member_id: str = ""
    members: list[JoinGroupResponseMember] = field()
