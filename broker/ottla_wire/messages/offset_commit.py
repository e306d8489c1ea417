"""A group's positions are stored.

Versions:

     2  a retention time for the whole commit
     3  throttle time
     4  the broker answers before it throttles (KIP-219)
     5  no retention time: it is the broker's configuration (KIP-211)
     6  leader epochs (KIP-320)
     7  static members (KIP-345)
     8  flexible
     9  members of the consumer protocol, with their member epoch (KIP-848)
    10  topic ids instead of names (KIP-848)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, Uuid, field, i16, i32, i64


class OffsetCommitRequestPartition(Struct):
    """The position in one partition: the offset of the next record to read."""

    partition_index: i32 = 0
    committed_offset: i64 = 0
    committed_leader_epoch: i32 = field("6+", default=-1, ignorable=True)
    committed_metadata: str | None = ""


class OffsetCommitRequestTopic(Struct):
    """The partitions of one topic."""

    name: str = field("0-9", ignorable=True)
    topic_id: Uuid = field("10+", ignorable=True)
    partitions: list[OffsetCommitRequestPartition] = field()


class OffsetCommitRequest(Request, key=8, versions="2-10", flexible="8+"):
    """Store offsets for a group."""

    group_id: str = ""
    generation_id_or_member_epoch: i32 = -1
    member_id: str = ""
    group_instance_id: str | None = field("7+", default=None)
    retention_time_ms: i64 = field("2-4", default=-1, ignorable=True)
    topics: list[OffsetCommitRequestTopic] = field()


class OffsetCommitResponsePartition(Struct):
    """The result for one partition."""

    partition_index: i32 = 0
    error_code: i16 = 0


class OffsetCommitResponseTopic(Struct):
    """The results for one topic."""

    name: str = field("0-9", ignorable=True)
    topic_id: Uuid = field("10+", ignorable=True)
    partitions: list[OffsetCommitResponsePartition] = field()


class OffsetCommitResponse(Response, key=8, versions="2-10", flexible="8+"):
    """The result for each partition."""

    throttle_time_ms: i32 = field("3+", ignorable=True)
    topics: list[OffsetCommitResponseTopic] = field()
