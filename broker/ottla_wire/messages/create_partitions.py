"""More partitions for a topic (KIP-195).

Versions:

    0  the first
    1  the broker answers before it throttles (KIP-219)
    2  flexible
    3  THROTTLING_QUOTA_EXCEEDED may be answered (KIP-599)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i16, i32


class CreatePartitionsAssignment(Struct):
    """The brokers that shall hold one new partition."""

    broker_ids: list[i32] = field()


class CreatePartitionsTopic(Struct):
    """A topic, and how many partitions it shall have in the end."""

    name: str = ""
    count: i32 = 0
    assignments: list[CreatePartitionsAssignment] | None = field()


class CreatePartitionsRequest(Request, key=37, versions="0-3", flexible="2+"):
    """Add partitions, or only check whether that would work."""

    topics: list[CreatePartitionsTopic] = field()
    timeout_ms: i32 = 0
    validate_only: bool = False


class CreatePartitionsTopicResult(Struct):
    """The result for one topic."""

    name: str = ""
    error_code: i16 = 0
    error_message: str | None = None


class CreatePartitionsResponse(Response, key=37, versions="0-3", flexible="2+"):
    """The result for each topic."""

    throttle_time_ms: i32 = 0
    results: list[CreatePartitionsTopicResult] = field()
