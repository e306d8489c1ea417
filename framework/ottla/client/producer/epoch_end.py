"""Why an epoch is over: timed out, fenced by another instance, or ended by an administrator. A decision without state.

A broker that refuses a producer's epoch says only that it is over. Three things tell more: our own broker keeps the
reason and tells those who ask (a tagged field of DescribeTransactions); any broker tells the present epoch, which the
coordinator's time-out raises by exactly one; and a transaction cannot have timed out before its time-out has passed on
our own clock, which began before the coordinator's.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum, IntEnum
from typing import Any, Final, NamedTuple

from ottla.client.producer.producer_sequences import ProducerIdAndEpoch
from ottla.errors import (
    FenceReason,
    OttlaError,
    ProducerFenced,
    TransactionTimedOut,
)


class EpochEndReason(IntEnum):
    """What our brokers answer; the numbers are the protocol's."""

    UNKNOWN = 0
    TIMED_OUT = 1
    FENCED = 2
    ADMIN_ABORTED = 3


class EpochFate(Enum):
    """What the end of its epoch means for a producer."""

    ENDED = "the coordinator ended the transaction; after an abort the producer goes on"
    FENCED = "another instance has the transactional id; this one is of no more use"
    UNEXPLAINED = "the coordinator has the same epoch, or does not tell"


class EpochEnd(NamedTuple):
    """The fate, the error that tells the application, and the producer whose next epoch is to be asked for."""

    fate: EpochFate
    error: OttlaError
    expected: ProducerIdAndEpoch


_ABORTED_STATES: Final = ("CompleteAbort", "PrepareAbort")


def explain_epoch_end(
    transactional_id: str,
    producer: ProducerIdAndEpoch,
    refusal: OttlaError,
    described: Any,
    *,
    open_ms: int | None,
    timeout_ms: int,
) -> EpochEnd:
    """Decide what has become of a producer's epoch.

    Args:
        transactional_id: whose it is.
        producer: id and epoch that were refused.
        refusal: what they were refused with.
        described: the coordinator's description of the transactional id; None if it gave none.
        open_ms: how long the transaction has been open on our clock; None if it has not begun.
        timeout_ms: how long it may be.
    """
    told = _told_by_broker(transactional_id, producer, described, timeout_ms)
    if told is not None:
        return told
    after_timeout = ProducerIdAndEpoch(producer.producer_id, producer.epoch + 1)
    overdue = open_ms is not None and open_ms >= timeout_ms
    if described is None:
        if overdue:
            return EpochEnd(EpochFate.ENDED, _timed_out(transactional_id, open_ms, timeout_ms), after_timeout)
        if not isinstance(refusal, ProducerFenced):
            return EpochEnd(EpochFate.UNEXPLAINED, refusal, producer)
        return EpochEnd(EpochFate.FENCED, _fenced(transactional_id, None), producer)
    now = ProducerIdAndEpoch(described.producer_id, described.producer_epoch)
    if now == producer and not isinstance(refusal, ProducerFenced):
        return EpochEnd(EpochFate.UNEXPLAINED, refusal, producer)
    if overdue and now == after_timeout and described.transaction_state in _ABORTED_STATES:
        return EpochEnd(EpochFate.ENDED, _timed_out(transactional_id, open_ms, timeout_ms), now)
    return EpochEnd(EpochFate.FENCED, _fenced(transactional_id, None), producer)


def _told_by_broker(
    transactional_id: str, producer: ProducerIdAndEpoch, described: Any, timeout_ms: int
) -> EpochEnd | None:
    """What our own broker says, if it is about this epoch."""
    if described is None or described.epoch_end.reason == EpochEndReason.UNKNOWN:
        return None
    end = described.epoch_end
    now = ProducerIdAndEpoch(described.producer_id, described.producer_epoch)
    if end.reason == EpochEndReason.TIMED_OUT:
        if end.producer_epoch != producer.epoch:
            return None  # a later epoch has timed out, and whoever had it has fenced this one
        return EpochEnd(EpochFate.ENDED, _timed_out(transactional_id, None, timeout_ms), now)
    if now.producer_id == producer.producer_id and end.producer_epoch < producer.epoch:
        return None  # that is how this producer got its own epoch
    by_administrator = end.reason == EpochEndReason.ADMIN_ABORTED
    reason = FenceReason(end.client_id, end.client_host, end.at_ms, by_administrator)
    return EpochEnd(EpochFate.FENCED, _fenced(transactional_id, reason), producer)


def _timed_out(transactional_id: str, open_ms: int | None, timeout_ms: int) -> TransactionTimedOut:
    was_open = "" if open_ms is None else f" after {open_ms} ms"
    return TransactionTimedOut(
        f"the coordinator aborted the transaction of transactional id {transactional_id!r}{was_open}: it was open for "
        f"longer than transaction_timeout_ms ({timeout_ms}). abort_transaction(), then try again, with less in one "
        "transaction or a higher transaction_timeout_ms"
    )


def _fenced(transactional_id: str, reason: FenceReason | None) -> ProducerFenced:
    by = "another producer"
    if reason is not None:
        when = datetime.fromtimestamp(reason.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
        by = f"{reason.client_id!r} on {reason.client_host}, at {when},"
        if reason.by_administrator:
            return ProducerFenced(
                f"an administrator's client {by} has fenced the transactional id {transactional_id!r} and aborted what "
                "was open. Close this producer",
                reason,
            )
        by = f"the producer {by}"
    return ProducerFenced(
        f"{by} has taken over the transactional id {transactional_id!r}: no two producers may use one at the same "
        "time. Close this one",
        reason,
    )
