"""Partitions join a transaction before the first write to them (KIP-98).

Versions 0 to 3 are a producer's and speak of one transaction; 4 and 5 are spoken between brokers and speak of many.

Versions:

    0  the first
    1  the broker answers before it throttles (KIP-219)
    2  PRODUCER_FENCED may be answered (KIP-588)
    3  flexible
    4  many transactions, which may be merely verified (KIP-890)
    5  TRANSACTION_ABORTABLE may be answered (KIP-890)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i16, i32, i64


class AddPartitionsToTxnTopic(Struct):
    """The partitions of one topic."""

    name: str = ""
    partitions: list[i32] = field()


class AddPartitionsToTxnTransaction(Struct):
    """The partitions of one transaction."""

    transactional_id: str = field("4+")
    producer_id: i64 = field("4+")
    producer_epoch: i16 = field("4+")
    verify_only: bool = field("4+")
    topics: list[AddPartitionsToTxnTopic] = field("4+")


class AddPartitionsToTxnRequest(Request, key=24, versions="0-5", flexible="3+"):
    """Add partitions to a transaction (up to version 3) or to several."""

    transactions: list[AddPartitionsToTxnTransaction] = field("4+")
    v3_and_below_transactional_id: str = field("0-3")
    v3_and_below_producer_id: i64 = field("0-3")
    v3_and_below_producer_epoch: i16 = field("0-3")
    v3_and_below_topics: list[AddPartitionsToTxnTopic] = field("0-3")


class AddPartitionsToTxnTopicResult(Struct):
    """The results for one topic."""

    name: str = ""
    results_by_partition: list[AddPartitionsToTxnPartitionResult] = field()


class AddPartitionsToTxnPartitionResult(Struct):
    """The result for one partition."""

    partition_index: i32 = 0
    partition_error_code: i16 = 0


class AddPartitionsToTxnResult(Struct):
    """The results for one transaction."""

    transactional_id: str = field("4+")
    topic_results: list[AddPartitionsToTxnTopicResult] = field("4+")


class AddPartitionsToTxnResponse(Response, key=24, versions="0-5", flexible="3+"):
    """The result for each partition."""

    throttle_time_ms: i32 = 0
    error_code: i16 = field("4+", ignorable=True)
    results_by_transaction: list[AddPartitionsToTxnResult] = field("4+")
    results_by_topic_v3_and_below: list[AddPartitionsToTxnTopicResult] = field("0-3")
