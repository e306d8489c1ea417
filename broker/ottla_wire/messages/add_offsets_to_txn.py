"""A group's offsets join a transaction (KIP-98). Needless from transaction version 2 on.

Versions:

    0  the first
    1  the broker answers before it throttles (KIP-219)
    2  PRODUCER_FENCED may be answered (KIP-588)
    3  flexible
    4  TRANSACTION_ABORTABLE may be answered (KIP-890)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, i16, i32, i64


class AddOffsetsToTxnRequest(Request, key=25, versions="0-4", flexible="3+"):
    """Add the offsets of a group to a transaction."""

    transactional_id: str = ""
    producer_id: i64 = 0
    producer_epoch: i16 = 0
    group_id: str = ""


class AddOffsetsToTxnResponse(Response, key=25, versions="0-4", flexible="3+"):
    """The result."""

    throttle_time_ms: i32 = 0
    error_code: i16 = 0
