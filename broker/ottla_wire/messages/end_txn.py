"""A transaction is committed or aborted (KIP-98).

Versions:

    0  the first
    1  the broker answers before it throttles (KIP-219)
    2  PRODUCER_FENCED may be answered (KIP-588)
    3  flexible
    4  TRANSACTION_ABORTABLE may be answered (KIP-890)
    5  every transaction has its own epoch: the answer carries producer id and epoch of the next (KIP-890)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, field, i16, i32, i64


class EndTxnRequest(Request, key=26, versions="0-5", flexible="3+"):
    """Commit (`committed`) or abort a transaction."""

    transactional_id: str = ""
    producer_id: i64 = 0
    producer_epoch: i16 = 0
    committed: bool = False


class EndTxnResponse(Response, key=26, versions="0-5", flexible="3+"):
    """The result, and what the next transaction is written with."""

    throttle_time_ms: i32 = 0
    error_code: i16 = 0
    producer_id: i64 = field("5+", default=-1, ignorable=True)
    producer_epoch: i16 = field("5+", default=-1, ignorable=True)
