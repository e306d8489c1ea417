"""The coordinator has the end of transactions written into their partitions (KIP-98). Spoken between brokers.

Versions:

    1  flexible
    2  the transaction's protocol version (KIP-1228)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i8, i16, i32, i64


class WritableTxnMarkerTopic(Struct):
    """The partitions of one topic."""

    name: str = ""
    partition_indexes: list[i32] = field()


class WritableTxnMarker(Struct):
    """The end of one transaction."""

    producer_id: i64 = 0
    producer_epoch: i16 = 0
    transaction_result: bool = False
    topics: list[WritableTxnMarkerTopic] = field()
    coordinator_epoch: i32 = 0
    transaction_version: i8 = field("2+", ignorable=True)


class WriteTxnMarkersRequest(Request, key=27, versions="1-2", flexible="1+"):
    """Write markers."""

    markers: list[WritableTxnMarker] = field()


class WritableTxnMarkerPartitionResult(Struct):
    """The result for one partition."""

    partition_index: i32 = 0
    error_code: i16 = 0


class WritableTxnMarkerTopicResult(Struct):
    """The results for one topic."""

    name: str = ""
    partitions: list[WritableTxnMarkerPartitionResult] = field()


class WritableTxnMarkerResult(Struct):
    """The results for one producer."""

    producer_id: i64 = 0
    topics: list[WritableTxnMarkerTopicResult] = field()


class WriteTxnMarkersResponse(Response, key=27, versions="1-2", flexible="1+"):
    """The result for each partition."""

    markers: list[WritableTxnMarkerResult] = field()
