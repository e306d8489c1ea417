"""Everything before an offset goes (KIP-107).

Versions:

    0  the first
    1  the broker answers before it throttles (KIP-219)
    2  flexible
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i16, i32, i64


class DeleteRecordsPartition(Struct):
    """The offset before which all goes; -1 for the high watermark."""

    partition_index: i32 = 0
    offset: i64 = 0


class DeleteRecordsTopic(Struct):
    """The partitions of one topic."""

    name: str = ""
    partitions: list[DeleteRecordsPartition] = field()


class DeleteRecordsRequest(Request, key=21, versions="0-2", flexible="2+"):
    """Delete records."""

    topics: list[DeleteRecordsTopic] = field()
    timeout_ms: i32 = 0


class DeleteRecordsPartitionResult(Struct):
    """The new low watermark of one partition."""

    partition_index: i32 = 0
    low_watermark: i64 = 0
    error_code: i16 = 0


class DeleteRecordsTopicResult(Struct):
    """The results for one topic."""

    name: str = ""
    partitions: list[DeleteRecordsPartitionResult] = field()


class DeleteRecordsResponse(Response, key=21, versions="0-2", flexible="2+"):
    """The result for each partition."""

    throttle_time_ms: i32 = 0
    topics: list[DeleteRecordsTopicResult] = field()
