"""A group's offsets of single partitions go (KIP-496). Never became flexible.

Versions:

    0  the first
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i16, i32


class OffsetDeleteRequestPartition(Struct):
    """A partition whose offset goes."""

    partition_index: i32 = 0


class OffsetDeleteRequestTopic(Struct):
    """The partitions of one topic."""

    name: str = ""
    partitions: list[OffsetDeleteRequestPartition] = field()


class OffsetDeleteRequest(Request, key=47, versions="0"):
    """Delete offsets of a group."""

    group_id: str = ""
    topics: list[OffsetDeleteRequestTopic] = field()


class OffsetDeleteResponsePartition(Struct):
    """The result for one partition."""

    partition_index: i32 = 0
    error_code: i16 = 0


class OffsetDeleteResponseTopic(Struct):
    """The results for one topic."""

    name: str = ""
    partitions: list[OffsetDeleteResponsePartition] = field()


class OffsetDeleteResponse(Response, key=47, versions="0"):
    """The result for each partition."""

    error_code: i16 = 0
    throttle_time_ms: i32 = 0
    topics: list[OffsetDeleteResponseTopic] = field()
