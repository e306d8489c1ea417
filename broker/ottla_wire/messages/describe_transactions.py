"""The state of transactional ids (KIP-664).

Versions:

    0  flexible from the start
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i16, i32, i64


class DescribeTransactionsRequest(Request, key=65, versions="0", flexible="0+"):
    """Ask about transactional ids."""

    transactional_ids: list[str] = field()


class TopicData(Struct):
    """Partitions of one topic that belong to the transaction."""

    topic: str = ""
    partitions: list[i32] = field()


class TransactionState(Struct):
    """One transactional id, and its transaction if there is one."""

    error_code: i16 = 0
    transactional_id: str = ""
    transaction_state: str = ""
    transaction_timeout_ms: i32 = 0
    transaction_start_time_ms: i64 = 0
    producer_id: i64 = 0
    producer_epoch: i16 = 0
    topics: list[TopicData] = field()


class DescribeTransactionsResponse(Response, key=65, versions="0", flexible="0+"):
    """The transactional ids."""

    throttle_time_ms: i32 = 0
    transaction_states: list[TransactionState] = field()
