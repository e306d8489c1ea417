"""Members leave a group.

Versions:

    0  the member that asks
    1  throttle time
    2  the broker answers before it throttles (KIP-219)
    3  many members, also static ones by their instance id (KIP-345)
    4  flexible
    5  the reason for leaving (KIP-800)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i16, i32


class MemberIdentity(Struct):
    """A member that leaves; a static one may be named without its member id."""

    member_id: str = field("3+")
    group_instance_id: str | None = field("3+", default=None)
    reason: str | None = field("5+", default=None, ignorable=True)


class LeaveGroupRequest(Request, key=13, versions="0-5", flexible="4+"):
    """Leave a group."""

    group_id: str = ""
    member_id: str = field("0-2")
    members: list[MemberIdentity] = field("3+")


class MemberResponse(Struct):
    """Whether one member could be removed."""

    member_id: str = field("3+")
    group_instance_id: str | None = field("3+")
    error_code: i16 = field("3+")


class LeaveGroupResponse(Response, key=13, versions="0-5", flexible="4+"):
    """The result for each member."""

    throttle_time_ms: i32 = field("1+", ignorable=True)
    error_code: i16 = 0
    members: list[MemberResponse] = field("3+")
