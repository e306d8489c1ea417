"""The transactional ids that a broker coordinates (KIP-664).

Versions:

    0  flexible from the start
    1  a filter by duration (KIP-994)
    2  a filter by a regular expression over the ids (KIP-1152)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i16, i32, i64


class ListTransactionsRequest(Request, key=66, versions="0-2", flexible="0+"):
    """Ask for transactional ids; empty filters let all pass."""

    state_filters: list[str] = field()
    producer_id_filters: list[i64] = field()
    duration_filter: i64 = field("1+", default=-1)
    transactional_id_pattern: str | None = field("2+", default=None)


class TransactionState(Struct):
    """A transactional id."""

    transactional_id: str = ""
    producer_id: i64 = 0
    transaction_state: str = ""


class ListTransactionsResponse(Response, key=66, versions="0-2", flexible="0+"):
    """The transactional ids."""

    throttle_time_ms: i32 = 0
    error_code: i16 = 0
    unknown_state_filters: list[str] = field()
    transaction_states: list[TransactionState] = field()
