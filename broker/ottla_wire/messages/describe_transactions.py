"""The state of transactional ids (KIP-664).

Versions:

    0  flexible from the start

Tag 10000 is ours: whoever asks for it is told why the last epoch of an id ended. Without the question the answer has
Kafka's bytes, and Apache Kafka passes over the question.
"""

from __future__ import annotations

from ottla_wire.schema import PRIVATE_TAG, Request, Response, Struct, field, i8, i16, i32, i64


class DescribeTransactionsRequest(Request, key=65, versions="0", flexible="0+"):
    """Ask about transactional ids."""

    transactional_ids: list[str] = field()
    describe_epoch_end: bool = field(tag=PRIVATE_TAG)


class TopicData(Struct):
    """Partitions of one topic that belong to the transaction."""

    topic: str = ""
    partitions: list[i32] = field()


class EpochEnd(Struct):
    """Why an epoch ended although its producer had not wanted it: 1 time-out, 2 fenced by a newer producer, 3 fenced by
    an administrator; and by whom. Reason 0: it never happened."""

    reason: i8 = 0
    client_id: str = ""
    client_host: str = ""
    at_ms: i64 = -1
    producer_epoch: i16 = -1


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
    epoch_end: EpochEnd = field(tag=PRIVATE_TAG)


class DescribeTransactionsResponse(Response, key=65, versions="0", flexible="0+"):
    """The transactional ids."""

    throttle_time_ms: i32 = 0
    transaction_states: list[TransactionState] = field()
