"""Why an epoch of a transactional id ended although its producer had not wanted it: remembered, written and told.

Kafka's clients know only that they are fenced. Ours can ask the coordinator (DescribeTransactions), and the broker's
log has one sentence for each.
"""

from __future__ import annotations

import enum
import logging
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from ottla_broker.coordinator.transaction_state import TransactionMetadata

logger = logging.getLogger(__name__)


class EpochEndReason(enum.IntEnum):
    """The numbers are those of the records and messages."""

    TIMED_OUT = 1
    FENCED = 2
    ADMIN_ABORTED = 3


class EpochEnd(NamedTuple):
    """The last end: of which epoch, why, and by whom (the coordinator itself has no name)."""

    reason: EpochEndReason
    producer_epoch: int
    client_id: str
    client_host: str
    at_ms: int


class Peer(NamedTuple):
    """Who asks, and whether it only wants others fenced."""

    client_id: str
    client_host: str
    fences_only: bool = False

    def ends(self, producer_epoch: int, now_ms: int) -> EpochEnd:
        """The end of an epoch because this one comes."""
        reason = EpochEndReason.ADMIN_ABORTED if self.fences_only else EpochEndReason.FENCED
        return EpochEnd(reason, producer_epoch, self.client_id, self.client_host, now_ms)


def timed_out(producer_epoch: int, now_ms: int) -> EpochEnd:
    """The end of an epoch because its transaction was open for too long."""
    return EpochEnd(EpochEndReason.TIMED_OUT, producer_epoch, "", "", now_ms)


def log_begin(transactional_id: str, producer_id: int, peer: Peer) -> None:
    """An id is used for the first time."""
    logger.info(
        "transactional id %s begins with producer id %d, for client %s at %s",
        transactional_id,
        producer_id,
        peer.client_id,
        peer.client_host,
    )


def log_next(transactional_id: str, before: TransactionMetadata, after: TransactionMetadata, peer: Peer) -> None:
    """An id has another epoch, and nothing was open."""
    logger.info(
        "transactional id %s goes from epoch %d of producer id %d to epoch %d of producer id %d, for client %s at %s "
        "%s",
        transactional_id,
        before.producer_epoch,
        before.producer_id,
        after.producer_epoch,
        after.producer_id,
        peer.client_id,
        peer.client_host,
        "has fenced it for an administrator" if peer.fences_only else "has started with it",
    )


_WHY: Final = {
    EpochEndReason.TIMED_OUT: "it was open for longer than its timeout of {timeout_ms} ms",
    EpochEndReason.FENCED: "client {client_id} at {client_host} has started with the same id",
    EpochEndReason.ADMIN_ABORTED: "client {client_id} at {client_host} has fenced it for an administrator",
}


def log_fence(transactional_id: str, metadata: TransactionMetadata, end: EpochEnd) -> None:
    """An open transaction is aborted over its producer's head."""
    logger.warning(
        "transactional id %s: the transaction is aborted and epoch %d of producer id %d ends, for %s",
        transactional_id,
        end.producer_epoch,
        metadata.producer_id,
        _WHY[end.reason].format(timeout_ms=metadata.timeout_ms, client_id=end.client_id, client_host=end.client_host),
    )
