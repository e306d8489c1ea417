"""A group's positions are stored as part of a transaction (KIP-98).

Versions:

    0  the first
    1  the broker answers before it throttles (KIP-219)
    2  leader epochs (KIP-320)
    3  flexible; generation, member and instance id, so that a zombie is fenced (KIP-447)
    4  TRANSACTION_ABORTABLE may be answered (KIP-890)
    5  adds the group to the transaction implicitly (KIP-890, transaction version 2)
    6  topic ids instead of names, member epochs (KIP-1319)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, Uuid, field, i16, i32, i64


class TxnOffsetCommitRequestPartition(Struct):
    """The position in one partition: the offset of the next record to read."""

    partition_index: i32 = 0
    committed_offset: i64 = 0
    committed_leader_epoch: i32 = field("2+", default=-1, ignorable=True)
    committed_metadata: str | None = ""


class TxnOffsetCommitRequestTopic(Struct):
    """The partitions of one topic."""

    name: str = field("0-5", ignorable=True)
    topic_id: Uuid = field("6+", ignorable=True)
    partitions: list[TxnOffsetCommitRequestPartition] = field()


class TxnOffsetCommitRequest(Request, key=28, versions="0-6", flexible="3+"):
    """Store offsets for a group when the transaction commits."""

    transactional_id: str = ""
    group_id: str = ""
    producer_id: i64 = 0
    producer_epoch: i16 = 0
    generation_id_or_member_epoch: i32 = field("3+", default=-1)
    member_id: str = field("3+")
    group_instance_id: str | None = field("3+", default=None)
    topics: list[TxnOffsetCommitRequestTopic] = field()


class TxnOffsetCommitResponsePartition(Struct):
    """The result for one partition."""

    partition_index: i32 = 0
    error_code: i16 = 0


class TxnOffsetCommitResponseTopic(Struct):
    """The results for one topic."""

    name: str = field("0-5", ignorable=True)
    topic_id: Uuid = field("6+", ignorable=True)
    partitions: list[TxnOffsetCommitResponsePartition] = field()


class TxnOffsetCommitResponse(Response, key=28, versions="0-6", flexible="3+"):
    """The result for each partition."""

    throttle_time_ms: i32 = 0
    topics: list[TxnOffsetCommitResponseTopic] = field()
