"""Empty groups go, with their offsets (KIP-229).

Versions:

    0  the first
    1  the broker answers before it throttles (KIP-219)
    2  flexible
    3  error messages
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i16, i32


class DeleteGroupsRequest(Request, key=42, versions="0-3", flexible="2+"):
    """Delete groups."""

    groups_names: list[str] = field()


class DeletableGroupResult(Struct):
    """The result for one group."""

    group_id: str = ""
    error_code: i16 = 0
    error_message: str | None = field("3+", default=None, ignorable=True)


class DeleteGroupsResponse(Response, key=42, versions="0-3", flexible="2+"):
    """The result for each group."""

    throttle_time_ms: i32 = 0
    results: list[DeletableGroupResult] = field()
