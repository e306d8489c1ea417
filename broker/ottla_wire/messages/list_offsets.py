"""The offset at a timestamp, or one of the special places in a log.

Timestamps below zero ask for a place: -1 the end, -2 the start, -3 the record with the highest timestamp, -4 the start
of what is on local disk, -5 the end of what is in tiered storage, -6 the first offset that waits to be uploaded.

Versions:

     1  one offset per partition, with its timestamp (KIP-79)
     2  isolation level (KIP-98)
     3  the broker answers before it throttles (KIP-219)
     4  leader epochs (KIP-320)
     5  OFFSET_NOT_AVAILABLE may be answered (KIP-207)
     6  flexible
     7  -3 (KIP-734)
     8  -4 (KIP-405)
     9  -5 (KIP-1005)
    10  a timeout for offsets that are looked up in tiered storage (KIP-1075)
    11  -6 (KIP-1023)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i8, i16, i32, i64


class ListOffsetsPartition(Struct):
    """A timestamp, or a special place, of one partition."""

    partition_index: i32 = 0
    current_leader_epoch: i32 = field("4+", default=-1, ignorable=True)
    timestamp: i64 = 0


class ListOffsetsTopic(Struct):
    """The partitions of one topic."""

    name: str = ""
    partitions: list[ListOffsetsPartition] = field()


class ListOffsetsRequest(Request, key=2, versions="1-11", flexible="6+"):
    """Ask for offsets. `replica_id` is -1 for clients; `isolation_level` is 0 (uncommitted) or 1 (committed)."""

    replica_id: i32 = 0
    isolation_level: i8 = field("2+")
    topics: list[ListOffsetsTopic] = field()
    timeout_ms: i32 = field("10+", ignorable=True)


class ListOffsetsPartitionResponse(Struct):
    """The offset found, -1 if there is none."""

    partition_index: i32 = 0
    error_code: i16 = 0
    timestamp: i64 = -1
    offset: i64 = -1
    leader_epoch: i32 = field("4+", default=-1)


class ListOffsetsTopicResponse(Struct):
    """The results for one topic."""

    name: str = ""
    partitions: list[ListOffsetsPartitionResponse] = field()


class ListOffsetsResponse(Response, key=2, versions="1-11", flexible="6+"):
    """The offsets found."""

    throttle_time_ms: i32 = field("2+", ignorable=True)
    topics: list[ListOffsetsTopicResponse] = field()
