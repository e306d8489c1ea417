"""A producer id and epoch, for idempotence; with a transactional id, the end of its older producers.

Versions:

    0  the first
    1  the broker answers before it throttles (KIP-219)
    2  flexible
    3  a producer that has an id asks for the next epoch of it (KIP-360)
    4  PRODUCER_FENCED may be answered (KIP-588)
    5  TRANSACTION_ABORTABLE may be answered (KIP-890)
    6  two-phase commit (KIP-939); unstable, not offered unless asked for

Tag 10000 is ours: who asks is no producer, but wants the older ones fenced. Apache Kafka passes over it.
"""

from __future__ import annotations

from ottla_wire.schema import PRIVATE_TAG, Request, Response, field, i16, i32, i64


class InitProducerIdRequest(Request, key=22, versions="0-6", flexible="2+", latest_version_unstable=True):
    """Ask for a producer id; with one, for its next epoch."""

    transactional_id: str | None = ""
    transaction_timeout_ms: i32 = 0
    producer_id: i64 = field("3+", default=-1)
    producer_epoch: i16 = field("3+", default=-1)
    enable2_pc: bool = field("6+")
    keep_prepared_txn: bool = field("6+")
    fences_only: bool = field("2+", tag=PRIVATE_TAG, ignorable=True)


class InitProducerIdResponse(Response, key=22, versions="0-6", flexible="2+"):
    """The producer id and epoch to write with."""

    throttle_time_ms: i32 = 0
    error_code: i16 = 0
    producer_id: i64 = -1
    producer_epoch: i16 = 0
    ongoing_txn_producer_id: i64 = field("6+", default=-1)
    ongoing_txn_producer_epoch: i16 = field("6+", default=-1)
