"""A group's stored positions are read.

A partition without one is answered with offset -1 and no error.

Versions:

     1  offsets from the offsets topic
     2  null means all topics; an error code for the group (KIP-88)
     3  throttle time
     4  the broker answers before it throttles (KIP-219)
     5  leader epochs (KIP-320)
     6  flexible
     7  offsets of open transactions can be waited for: UNSTABLE_OFFSET_COMMIT (KIP-447)
     8  many groups at once (KIP-709)
     9  members of the consumer protocol, with their member epoch (KIP-848)
    10  topic ids instead of names (KIP-848)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, Uuid, field, i16, i32, i64


class OffsetFetchRequestTopic(Struct):
    """Partitions of one topic (before version 8)."""

    name: str = field("0-7")
    partition_indexes: list[i32] = field("0-7")


class OffsetFetchRequestTopics(Struct):
    """Partitions of one topic."""

    name: str = field("8-9", ignorable=True)
    topic_id: Uuid = field("10+", ignorable=True)
    partition_indexes: list[i32] = field("8+")


class OffsetFetchRequestGroup(Struct):
    """A group, and the topics that are asked about; null means all."""

    group_id: str = field("8+")
    member_id: str | None = field("9+", default=None, ignorable=True)
    member_epoch: i32 = field("9+", default=-1, ignorable=True)
    topics: list[OffsetFetchRequestTopics] | None = field("8+")


class OffsetFetchRequest(Request, key=9, versions="1-10", flexible="6+"):
    """Ask for the offsets of one group (before version 8) or of many."""

    group_id: str = field("0-7")
    topics: list[OffsetFetchRequestTopic] | None = field("0-7", nullable="2-7")
    groups: list[OffsetFetchRequestGroup] = field("8+")
    require_stable: bool = field("7+")


class OffsetFetchResponsePartition(Struct):
    """The stored offset of one partition (before version 8)."""

    partition_index: i32 = field("0-7")
    committed_offset: i64 = field("0-7")
    committed_leader_epoch: i32 = field("5-7", default=-1, ignorable=True)
    metadata: str | None = field("0-7")
    error_code: i16 = field("0-7")


class OffsetFetchResponseTopic(Struct):
    """The partitions of one topic (before version 8)."""

    name: str = field("0-7")
    partitions: list[OffsetFetchResponsePartition] = field("0-7")


class OffsetFetchResponsePartitions(Struct):
    """The stored offset of one partition, -1 if there is none."""

    partition_index: i32 = field("8+")
    committed_offset: i64 = field("8+")
    committed_leader_epoch: i32 = field("8+", default=-1, ignorable=True)
    metadata: str | None = field("8+")
    error_code: i16 = field("8+")


class OffsetFetchResponseTopics(Struct):
    """The partitions of one topic."""

    name: str = field("8-9", ignorable=True)
    topic_id: Uuid = field("10+", ignorable=True)
    partitions: list[OffsetFetchResponsePartitions] = field("8+")


class OffsetFetchResponseGroup(Struct):
    """The offsets of one group."""

    group_id: str = field("8+")
    topics: list[OffsetFetchResponseTopics] = field("8+")
    error_code: i16 = field("8+")


class OffsetFetchResponse(Response, key=9, versions="1-10", flexible="6+"):
    """The stored offsets."""

    throttle_time_ms: i32 = field("3+", ignorable=True)
    topics: list[OffsetFetchResponseTopic] = field("0-7")
    error_code: i16 = field("2-7", ignorable=True)
    groups: list[OffsetFetchResponseGroup] = field("8+")
