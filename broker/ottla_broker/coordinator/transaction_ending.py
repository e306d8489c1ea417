"""EndTxn: what the coordinator does with it, as tables.

Version 1 of the protocol (EndTxn up to version 4) knows the producer by its epoch and nothing else: whatever comes with
the epoch in use is meant for the transaction that is there. So an EndTxn that was delayed ends the next one
(KAFKA-17754). In version 2 (EndTxn 5) the epoch changes with each end: one that is one behind is a retry of the last
end, and answered as such.

Only of an end of version 2, though. After one of version 1 the epoch before is that of a producer that was fenced;
Apache Kafka takes its abort for a retry, and gives it the epoch of the producer that is alive.
"""

from __future__ import annotations

import enum
from typing import Final

from ottla_broker.coordinator.transaction_state import (
    LAST_CLIENT_EPOCH,
    TRANSACTIONS_V2,
    TransactionMetadata,
    TransactionState,
)

_S = TransactionState


class Ending(enum.Enum):
    """What is done with an EndTxn."""

    PREPARE = "the outcome is decided and written"
    DONE = "it has been done before; nothing is written"
    IN_PROGRESS = "CONCURRENT_TRANSACTIONS: it is being done"
    FENCED = "PRODUCER_FENCED"
    INVALID = "INVALID_TXN_STATE"


ABORT: Final = False
COMMIT: Final = True

V1: Final[dict[TransactionState, dict[bool, Ending]]] = {
    _S.EMPTY:           {ABORT: Ending.INVALID,     COMMIT: Ending.INVALID},
    _S.ONGOING:         {ABORT: Ending.PREPARE,     COMMIT: Ending.PREPARE},
    _S.PREPARE_COMMIT:  {ABORT: Ending.INVALID,     COMMIT: Ending.IN_PROGRESS},
    _S.PREPARE_ABORT:   {ABORT: Ending.IN_PROGRESS, COMMIT: Ending.INVALID},
    _S.COMPLETE_COMMIT: {ABORT: Ending.INVALID,     COMMIT: Ending.DONE},
    _S.COMPLETE_ABORT:  {ABORT: Ending.DONE,        COMMIT: Ending.INVALID},
}  # fmt: skip
"""By state and result, for the epoch in use. Any other epoch is fenced."""


class Epoch(enum.Enum):
    """The epoch of an EndTxn of version 2, seen from the one in use."""

    CURRENT = "the one in use"
    RETRY = "the one before, which the last end has replaced"
    OTHER = "neither"


V2: Final[dict[TransactionState, dict[tuple[bool, Epoch], Ending]]] = {
    _S.EMPTY: {
        (ABORT, Epoch.RETRY): Ending.FENCED,       (ABORT, Epoch.CURRENT): Ending.PREPARE,
        (COMMIT, Epoch.RETRY): Ending.FENCED,      (COMMIT, Epoch.CURRENT): Ending.INVALID,
    },
    _S.ONGOING: {
        (ABORT, Epoch.RETRY): Ending.FENCED,       (ABORT, Epoch.CURRENT): Ending.PREPARE,
        (COMMIT, Epoch.RETRY): Ending.FENCED,      (COMMIT, Epoch.CURRENT): Ending.PREPARE,
    },
    _S.PREPARE_COMMIT: {
        (ABORT, Epoch.RETRY): Ending.INVALID,      (ABORT, Epoch.CURRENT): Ending.FENCED,
        (COMMIT, Epoch.RETRY): Ending.IN_PROGRESS, (COMMIT, Epoch.CURRENT): Ending.FENCED,
    },
    _S.PREPARE_ABORT: {
        (ABORT, Epoch.RETRY): Ending.IN_PROGRESS,  (ABORT, Epoch.CURRENT): Ending.FENCED,
        (COMMIT, Epoch.RETRY): Ending.INVALID,     (COMMIT, Epoch.CURRENT): Ending.FENCED,
    },
    _S.COMPLETE_COMMIT: {
        (ABORT, Epoch.RETRY): Ending.INVALID,      (ABORT, Epoch.CURRENT): Ending.PREPARE,
        (COMMIT, Epoch.RETRY): Ending.DONE,        (COMMIT, Epoch.CURRENT): Ending.INVALID,
    },
    _S.COMPLETE_ABORT: {
        (ABORT, Epoch.RETRY): Ending.DONE,         (ABORT, Epoch.CURRENT): Ending.PREPARE,
        (COMMIT, Epoch.RETRY): Ending.INVALID,     (COMMIT, Epoch.CURRENT): Ending.INVALID,
    },
}  # fmt: skip
"""By state, result and epoch. An abort where nothing is open is an end as well: a client that does not know whether
its first write arrived sends one, and must have a new epoch afterwards."""


def ending_v1(metadata: TransactionMetadata, producer_epoch: int, *, committed: bool) -> Ending:
    """What to do with an EndTxn up to version 4."""
    return V1[metadata.state][committed] if producer_epoch == metadata.producer_epoch else Ending.FENCED


def ending_v2(metadata: TransactionMetadata, producer_id: int, producer_epoch: int, *, committed: bool) -> Ending:
    """What to do with an EndTxn from version 5 on."""
    epoch = epoch_of(metadata, producer_id, producer_epoch)
    return Ending.FENCED if epoch is Epoch.OTHER else V2[metadata.state][(committed, epoch)]


def epoch_of(metadata: TransactionMetadata, producer_id: int, producer_epoch: int) -> Epoch:
    """Which epoch a request of version 2 means."""
    if is_retry_over_overflow(metadata, producer_id, producer_epoch):
        return Epoch.RETRY
    if producer_epoch == metadata.producer_epoch:
        return Epoch.CURRENT
    if metadata.transaction_version >= TRANSACTIONS_V2 and producer_epoch == metadata.producer_epoch - 1:
        return Epoch.RETRY
    return Epoch.OTHER


def is_retry_over_overflow(metadata: TransactionMetadata, producer_id: int, producer_epoch: int) -> bool:
    """Whether the producer has the last epoch of the producer id before, and the end with it has been done."""
    return (
        metadata.previous_producer_id == producer_id
        and producer_epoch == LAST_CLIENT_EPOCH
        and metadata.producer_epoch == 0
    )
