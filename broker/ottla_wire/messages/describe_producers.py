"""The producers that a partition remembers, with their sequences and open transactions (KIP-664).

Versions:

    0  flexible from the start
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i16, i32, i64


class TopicRequest(Struct):
    """The partitions of one topic."""

    name: str = ""
    partition_indexes: list[i32] = field()


class DescribeProducersRequest(Request, key=61, versions="0", flexible="0+"):
    """Ask which producers partitions remember."""

    topics: list[TopicRequest] = field()


class ProducerState(Struct):
    """A producer as the partition remembers it; `current_txn_start_offset` is -1 outside of a transaction."""

    producer_id: i64 = 0
    producer_epoch: i32 = 0
    last_sequence: i32 = -1
    last_timestamp: i64 = -1
    coordinator_epoch: i32 = 0
    current_txn_start_offset: i64 = -1


class PartitionResponse(Struct):
    """The producers of one partition."""

    partition_index: i32 = 0
    error_code: i16 = 0
    error_message: str | None = None
    active_producers: list[ProducerState] = field()


class TopicResponse(Struct):
    """The partitions of one topic."""

    name: str = ""
    partitions: list[PartitionResponse] = field()


class DescribeProducersResponse(Response, key=61, versions="0", flexible="0+"):
    """The producers of all partitions."""

    throttle_time_ms: i32 = 0
    topics: list[TopicResponse] = field()
