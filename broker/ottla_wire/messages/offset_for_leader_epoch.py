"""Where a leader epoch ends in a log: how a consumer or a follower finds out that its log diverges (KIP-101).

Versions:

    2  current leader epoch (KIP-320)
    3  replica id, -2 for a debugging consumer
    4  flexible
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i16, i32, i64


class OffsetForLeaderPartition(Struct):
    """The leader epoch that is asked about."""

    partition: i32 = 0
    current_leader_epoch: i32 = -1
    leader_epoch: i32 = 0


class OffsetForLeaderTopic(Struct):
    """The partitions of one topic."""

    topic: str = ""
    partitions: list[OffsetForLeaderPartition] = field()


class OffsetForLeaderEpochRequest(Request, key=23, versions="2-4", flexible="4+"):
    """Ask where epochs end. `replica_id` is -1 for consumers."""

    replica_id: i32 = field("3+", default=-2, ignorable=True)
    topics: list[OffsetForLeaderTopic] = field()


class EpochEndOffset(Struct):
    """The largest epoch up to the one asked about, and the offset after its last record."""

    error_code: i16 = 0
    partition: i32 = 0
    leader_epoch: i32 = -1
    end_offset: i64 = -1


class OffsetForLeaderTopicResult(Struct):
    """The results for one topic."""

    topic: str = ""
    partitions: list[EpochEndOffset] = field()


class OffsetForLeaderEpochResponse(Response, key=23, versions="2-4", flexible="4+"):
    """The ends of the epochs."""

    throttle_time_ms: i32 = 0
    topics: list[OffsetForLeaderTopicResult] = field()
