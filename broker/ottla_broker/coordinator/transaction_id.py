"""One transactional id in memory, and what a request has to know to be about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ottla_broker.coordinator.decision import CoordinatorRecord
from ottla_broker.coordinator.transaction_state import (
    NO_PRODUCER_EPOCH,
    NO_PRODUCER_ID,
    PREPARED,
    TransactionMetadata,
    TransactionState,
)
from ottla_wire.errors import ConcurrentTransactions, InvalidProducerIdMapping, ProducerFenced

if TYPE_CHECKING:
    from ottla_broker.coordinator.transaction_markers import EndedTransaction


class ProducerIdAndEpoch(NamedTuple):
    """What a producer writes with."""

    producer_id: int
    producer_epoch: int


NOTHING: Final = ProducerIdAndEpoch(NO_PRODUCER_ID, NO_PRODUCER_EPOCH)


class DecidedRecord(CoordinatorRecord):
    """A record that was made here, with what it says: replaying it need not read what was written a moment ago."""

    transactional_id: str
    metadata: TransactionMetadata


class TransactionalId:
    """One id.

    Attributes:
        metadata: what its newest record says.
        pending: the state of a change that is decided and not committed, or whose markers are on the way.
        ended: its transaction on the way to the partitions.
    """

    __slots__ = ("ended", "metadata", "name", "pending")

    def __init__(self, name: str, metadata: TransactionMetadata) -> None:
        self.name = name
        self.metadata = metadata
        self.pending: TransactionState | None = None
        self.ended: EndedTransaction | None = None

    def check_not_pending(self) -> None:
        """Raise ConcurrentTransactions while a change is under way."""
        if self.pending is not None:
            raise ConcurrentTransactions(f"{self.name} is on its way to {self.pending.kafka_name}")

    def check_producer(self, producer: ProducerIdAndEpoch) -> None:
        """Raise unless this is the producer, and its transaction is not being ended."""
        if self.metadata.producer_id != producer.producer_id:
            raise self.wrong_producer_id(producer)
        if self.metadata.producer_epoch != producer.producer_epoch:
            raise self.fenced(producer)
        if self.metadata.state in PREPARED:
            raise self.being_ended()

    def wrong_producer_id(self, producer: ProducerIdAndEpoch) -> InvalidProducerIdMapping:
        """The error for a producer id that is not the id's."""
        return InvalidProducerIdMapping(
            f"transactional id {self.name} has producer id {self.metadata.producer_id}, not {producer.producer_id}"
        )

    def fenced(self, producer: ProducerIdAndEpoch) -> ProducerFenced:
        """The error for an epoch that is not the id's."""
        return ProducerFenced(
            f"transactional id {self.name} is at epoch {self.metadata.producer_epoch}, not {producer.producer_epoch}"
        )

    def being_ended(self) -> ConcurrentTransactions:
        """The error while the transaction has its outcome and not all of its markers."""
        return ConcurrentTransactions(f"the transaction of {self.name} is being ended")
