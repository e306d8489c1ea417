"""Topics go, with all they hold.

Versions:

    1  throttle time
    2  the broker answers before it throttles (KIP-219)
    3  TOPIC_DELETION_DISABLED may be answered (KIP-322)
    4  flexible
    5  error messages; THROTTLING_QUOTA_EXCEEDED may be answered (KIP-599)
    6  by name or by topic id (KIP-516)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, Uuid, field, i16, i32


class DeleteTopicState(Struct):
    """A topic to delete, by name or by id."""

    name: str | None = field("6+", default=None)
    topic_id: Uuid = field("6+")


class DeleteTopicsRequest(Request, key=20, versions="1-6", flexible="4+"):
    """Delete topics."""

    topics: list[DeleteTopicState] = field("6+")
    topic_names: list[str] = field("0-5", ignorable=True)
    timeout_ms: i32 = 0


class DeletableTopicResult(Struct):
    """The result for one topic."""

    name: str | None = field(nullable="6+")
    topic_id: Uuid = field("6+", ignorable=True)
    error_code: i16 = 0
    error_message: str | None = field("5+", default=None, ignorable=True)


class DeleteTopicsResponse(Response, key=20, versions="1-6", flexible="4+"):
    """The result for each topic."""

    throttle_time_ms: i32 = 0
    responses: list[DeletableTopicResult] = field()
