"""The leader hands in the assignment; every member gets its part of it.

Versions:

    0  the first
    1  throttle time
    2  the broker answers before it throttles (KIP-219)
    3  static members (KIP-345)
    4  flexible
    5  protocol type and name, checked by the broker (KIP-559)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i16, i32


class SyncGroupRequestAssignment(Struct):
    """What one member shall work on."""

    member_id: str = ""
    assignment: bytes = field()


class SyncGroupRequest(Request, key=14, versions="0-5", flexible="4+"):
    """Hand in the assignments (the leader), or just ask for one."""

    group_id: str = ""
    generation_id: i32 = 0
    member_id: str = ""
    group_instance_id: str | None = field("3+", default=None)
    protocol_type: str | None = field("5+", default=None, ignorable=True)
    protocol_name: str | None = field("5+", default=None, ignorable=True)
    assignments: list[SyncGroupRequestAssignment] = field()


class SyncGroupResponse(Response, key=14, versions="0-5", flexible="4+"):
    """The member's assignment."""

    throttle_time_ms: i32 = field("1+", ignorable=True)
    error_code: i16 = 0
    protocol_type: str | None = field("5+", default=None, ignorable=True)
    protocol_name: str | None = field("5+", default=None, ignorable=True)
    assignment: bytes = field()
