"""A member of the classic protocol is alive, and asks whether the group rebalances.

Versions:

    0  the first
    1  throttle time
    2  the broker answers before it throttles (KIP-219)
    3  static members (KIP-345)
    4  flexible
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, field, i16, i32


class HeartbeatRequest(Request, key=12, versions="0-4", flexible="4+"):
    """Show that a member is alive."""

    group_id: str = ""
    generation_id: i32 = 0
    member_id: str = ""
    group_instance_id: str | None = field("3+", default=None)


class HeartbeatResponse(Response, key=12, versions="0-4", flexible="4+"):
    """No error, or why the member must rejoin."""

    throttle_time_ms: i32 = field("1+", ignorable=True)
    error_code: i16 = 0
