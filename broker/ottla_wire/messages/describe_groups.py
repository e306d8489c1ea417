"""Groups of the classic protocol with their members.

Versions:

    0  the first
    1  throttle time
    2  the broker answers before it throttles (KIP-219)
    3  authorized operations on request (KIP-430)
    4  static members (KIP-345)
    5  flexible
    6  a group that is not there is GROUP_ID_NOT_FOUND, no longer a dead one (KIP-1043)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i16, i32


class DescribeGroupsRequest(Request, key=15, versions="0-6", flexible="5+"):
    """Ask about groups."""

    groups: list[str] = field()
    include_authorized_operations: bool = field("3+")


class DescribedGroupMember(Struct):
    """A member with its subscription and assignment."""

    member_id: str = ""
    group_instance_id: str | None = field("4+", default=None, ignorable=True)
    client_id: str = ""
    client_host: str = ""
    member_metadata: bytes = field()
    member_assignment: bytes = field()


class DescribedGroup(Struct):
    """A group with its members."""

    error_code: i16 = 0
    error_message: str | None = field("6+", default=None)
    group_id: str = ""
    group_state: str = ""
    protocol_type: str = ""
    protocol_data: str = ""
    members: list[DescribedGroupMember] = field()
    authorized_operations: i32 = field("3+", default=-2147483648)


class DescribeGroupsResponse(Response, key=15, versions="0-6", flexible="5+"):
    """The groups."""

    throttle_time_ms: i32 = field("1+", ignorable=True)
    groups: list[DescribedGroup] = field()
