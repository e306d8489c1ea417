"""What administrators ask about transactional ids: one, or those that pass a filter."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from ottla_broker.coordinator.transaction_state import PREPARED, STATES_BY_NAME, TransactionState
from ottla_wire.errors import TransactionalIdNotFound
from ottla_wire.messages.describe_transactions import EpochEnd, TopicData
from ottla_wire.messages.describe_transactions import TransactionState as DescribedTransaction
from ottla_wire.messages.list_transactions import TransactionState as ListedTransaction

if TYPE_CHECKING:
    from ottla_broker.coordinator.transaction_id import TransactionalId
    from ottla_broker.coordinator.transaction_shard import TransactionShard
    from ottla_broker.coordinator.transaction_state import TransactionMetadata
    from ottla_broker.linear_pattern import LinearPattern


class TransactionFilter(NamedTuple):
    """Which ids to list; what is None or empty lets all pass.

    Attributes:
        states: None for all, an empty set for none (only names that do not exist were asked for).
        longer_than_ms: transactions that were open for longer; -1 for all.
        pattern: the whole id has to match.
    """

    states: Collection[TransactionState] | None
    producer_ids: Collection[int]
    longer_than_ms: int
    pattern: LinearPattern | None

    def matches(self, transactional_id: str, metadata: TransactionMetadata, wall_ms: int) -> bool:
        """Whether an id is to be listed."""
        if self.producer_ids and metadata.producer_id not in self.producer_ids:
            return False
        if self.states is not None and metadata.state not in self.states:
            return False
        if self.longer_than_ms >= 0 and wall_ms - metadata.start_ms <= self.longer_than_ms:
            return False
        return self.pattern is None or self.pattern.matches(transactional_id)


def states_named(names: Collection[str]) -> tuple[Collection[TransactionState] | None, list[str]]:
    """The states of these names (None if there are no names), and the names that are none."""
    unknown = [name for name in names if name not in STATES_BY_NAME]
    return ({STATES_BY_NAME[name] for name in names if name in STATES_BY_NAME} if names else None), unknown


def described(shard: TransactionShard, transactional_id: str, *, with_epoch_end: bool) -> DescribedTransaction:
    """An id with the partitions of its transaction; on its way to the end only those that await their marker.

    Raises:
        TransactionalIdNotFound.
    """
    known = shard.ids.get(transactional_id)
    if known is None:
        raise TransactionalIdNotFound(f"there is no transactional id {transactional_id} here")
    metadata = known.metadata
    return DescribedTransaction(
        transactional_id=transactional_id,
        transaction_state=metadata.state.kafka_name,
        transaction_timeout_ms=metadata.timeout_ms,
        transaction_start_time_ms=metadata.start_ms,
        producer_id=metadata.producer_id,
        producer_epoch=metadata.producer_epoch,
        topics=_topics(known),
        epoch_end=_epoch_end(metadata) if with_epoch_end else EpochEnd(),
    )


def listed(shard: TransactionShard, wanted: TransactionFilter, wall_ms: int) -> list[ListedTransaction]:
    """The ids of a shard that pass the filter."""
    return [
        ListedTransaction(
            transactional_id=transactional_id,
            producer_id=known.metadata.producer_id,
            transaction_state=known.metadata.state.kafka_name,
        )
        for transactional_id, known in shard.ids.items()
        if wanted.matches(transactional_id, known.metadata, wall_ms)
    ]


def _topics(known: TransactionalId) -> list[TopicData]:
    metadata = known.metadata
    is_on_the_way = metadata.state in PREPARED and known.ended is not None
    partitions = known.ended.awaiting if is_on_the_way and known.ended is not None else metadata.partitions
    topics: dict[str, list[int]] = {}
    for topic, index in sorted(partitions):
        topics.setdefault(topic, []).append(index)
    return [TopicData(topic=topic, partitions=indexes) for topic, indexes in topics.items()]


def _epoch_end(metadata: TransactionMetadata) -> EpochEnd:
    end = metadata.epoch_end
    if end is None:
        return EpochEnd()
    return EpochEnd(
        reason=end.reason,
        client_id=end.client_id,
        client_host=end.client_host,
        at_ms=end.at_ms,
        producer_epoch=end.producer_epoch,
    )
