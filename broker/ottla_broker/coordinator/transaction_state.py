"""What a transactional id can be, and the pure functions that say what it becomes.

Theory of operation
===================

A transactional id is always in one of the states below, and moves along the arrows of `LEGAL_SOURCES` only. Each
`prepare_*` function takes the metadata as it is and returns it as it shall be; nothing is changed. The shard makes a
record of that, and replaying the record is what changes the id.

    Empty -> Ongoing -> PrepareCommit -> CompleteCommit -> Ongoing ...
                     -> PrepareAbort  -> CompleteAbort  -> Ongoing ...

*Prepare* is the decision: when its record is committed the outcome is certain, whatever dies. *Complete* says that
every partition has its marker. PrepareEpochFence is on the way from Ongoing to PrepareAbort when it is not the
producer itself that ends its transaction; it lives for one step and is never written, and neither is Dead.

Transactions version 2 (KIP-890): every end takes the epoch one up, so that nothing that was sent in one transaction
can mean the next one. An exhausted epoch takes the next producer id instead, with the completion.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from ottla_broker.coordinator.transaction_epoch_end import EpochEnd, EpochEndReason
from ottla_broker.coordinator.transaction_records import EpochEndSchema, PartitionsSchema, TransactionLogValue
from ottla_wire.errors import ProducerFenced

NO_PRODUCER_ID: Final = -1
NO_PRODUCER_EPOCH: Final = -1
NO_START: Final = -1

MAX_EPOCH: Final = 2**15 - 1
"""Kept for the coordinator: it must always be able to fence whoever has the epoch before."""
LAST_CLIENT_EPOCH: Final = MAX_EPOCH - 1
"""The last epoch that a producer is given; with it the producer id is exhausted."""

NO_TIMEOUT_MS: Final = 2**31 - 1
"""The time-out of a transaction that an outer coordinator decides (KIP-939)."""

TRANSACTIONS_V1: Final = 0
"""Of clients that add partitions themselves. (`transaction.version` 1 has changed nothing but the records.)"""
TRANSACTIONS_V2: Final = 2

TopicPartition = tuple[str, int]


class TransactionState(enum.IntEnum):
    """Kafka's states; the numbers are those of the records."""

    EMPTY = 0
    ONGOING = 1
    PREPARE_COMMIT = 2
    PREPARE_ABORT = 3
    COMPLETE_COMMIT = 4
    COMPLETE_ABORT = 5
    DEAD = 6
    PREPARE_EPOCH_FENCE = 7

    @property
    def kafka_name(self) -> str:
        """`CompleteCommit`, as clients are told and as they filter."""
        return _KAFKA_NAMES[self]


_KAFKA_NAMES: Final = {state: state.name.title().replace("_", "") for state in TransactionState}
STATES_BY_NAME: Final = {name: state for state, name in _KAFKA_NAMES.items()}

_S = TransactionState
RESTING: Final = frozenset({_S.EMPTY, _S.COMPLETE_COMMIT, _S.COMPLETE_ABORT})
PREPARED: Final = frozenset({_S.PREPARE_COMMIT, _S.PREPARE_ABORT})

LEGAL_SOURCES: Final[dict[TransactionState, frozenset[TransactionState]]] = {
    _S.EMPTY: RESTING,
    _S.ONGOING: RESTING | {_S.ONGOING},
    _S.PREPARE_COMMIT: frozenset({_S.ONGOING}),
    _S.PREPARE_ABORT: RESTING | {_S.ONGOING, _S.PREPARE_EPOCH_FENCE},
    _S.COMPLETE_COMMIT: frozenset({_S.PREPARE_COMMIT}),
    _S.COMPLETE_ABORT: frozenset({_S.PREPARE_ABORT}),
    _S.DEAD: RESTING,
    _S.PREPARE_EPOCH_FENCE: frozenset({_S.ONGOING}),
}
"""From which states a state may be reached. To PrepareAbort from a resting state only version 2 goes."""


class TransactionMetadata(NamedTuple):
    """A transactional id as its record says it.

    `last_producer_epoch` is what the producer has if it did not get the answer to the change that made
    `producer_epoch`. Kafka does not write it; it is found again where version 2 makes it certain.
    """

    producer_id: int
    producer_epoch: int
    timeout_ms: int
    state: TransactionState
    partitions: frozenset[TopicPartition]
    start_ms: int
    last_update_ms: int
    transaction_version: int
    previous_producer_id: int
    next_producer_id: int
    last_producer_epoch: int
    epoch_end: EpochEnd | None

    @property
    def is_epoch_exhausted(self) -> bool:
        """Whether the producer id has no epoch left that a producer may have."""
        return self.producer_epoch >= LAST_CLIENT_EPOCH


def new_id(producer_id: int, timeout_ms: int) -> TransactionMetadata:
    """What an id is before its first record: Empty, without an epoch."""
    return TransactionMetadata(
        producer_id=producer_id,
        producer_epoch=NO_PRODUCER_EPOCH,
        timeout_ms=timeout_ms,
        state=TransactionState.EMPTY,
        partitions=frozenset(),
        start_ms=NO_START,
        last_update_ms=-1,
        transaction_version=TRANSACTIONS_V1,
        previous_producer_id=NO_PRODUCER_ID,
        next_producer_id=NO_PRODUCER_ID,
        last_producer_epoch=NO_PRODUCER_EPOCH,
        epoch_end=None,
    )


# what an id becomes


def prepare_next_epoch(
    metadata: TransactionMetadata, timeout_ms: int, expected_epoch: int | None, now_ms: int
) -> TransactionMetadata:
    """A producer starts: the next epoch, or the same once more if the answer to it was lost (KIP-360).

    Raises:
        ProducerFenced: it expects an epoch that others have left behind.
    """
    epoch, last_epoch = metadata.producer_epoch, metadata.last_producer_epoch
    if expected_epoch is None or epoch in (NO_PRODUCER_EPOCH, expected_epoch):
        assert not metadata.is_epoch_exhausted
        last_epoch = NO_PRODUCER_EPOCH if expected_epoch is None else epoch
        epoch += 1
    elif expected_epoch != last_epoch:
        raise ProducerFenced(f"the producer has epoch {expected_epoch}; by now it is {epoch}")
    return _started(metadata, metadata.producer_id, epoch, last_epoch, timeout_ms, now_ms)


def prepare_next_producer_id(
    metadata: TransactionMetadata, producer_id: int, timeout_ms: int, expected_epoch: int | None, now_ms: int
) -> TransactionMetadata:
    """A producer starts, and the epochs are exhausted: a fresh producer id, from epoch 0."""
    last_epoch = NO_PRODUCER_EPOCH if expected_epoch is None else metadata.producer_epoch
    return _started(metadata, producer_id, 0, last_epoch, timeout_ms, now_ms)


def prepare_add_partitions(
    metadata: TransactionMetadata, partitions: Iterable[TopicPartition], transaction_version: int, now_ms: int
) -> TransactionMetadata:
    """Partitions join the transaction; the first ones start it."""
    starts = metadata.state is not TransactionState.ONGOING
    return _transition(
        metadata,
        TransactionState.ONGOING,
        partitions=metadata.partitions.union(partitions),
        start_ms=now_ms if starts else metadata.start_ms,
        last_update_ms=now_ms,
        transaction_version=transaction_version,
    )


def prepare_end(
    metadata: TransactionMetadata,
    *,
    committed: bool,
    transaction_version: int,
    next_producer_id: int,
    now_ms: int,
) -> TransactionMetadata:
    """The outcome is decided.

    In version 2 the epoch goes one up, and an exhausted one needs the producer id that follows. A transaction that
    has not begun (version 2 may abort it all the same) has begun now.
    """
    resting = metadata.state in RESTING
    assert not resting or (transaction_version >= TRANSACTIONS_V2 and not committed)
    epoch, last_epoch = metadata.producer_epoch, metadata.last_producer_epoch
    if transaction_version >= TRANSACTIONS_V2:
        # 32767 can only be found here after a fence by a coordinator of version 1. It stays, and the id gets on.
        epoch, last_epoch = min(epoch + 1, MAX_EPOCH), epoch
    return _transition(
        metadata,
        TransactionState.PREPARE_COMMIT if committed else TransactionState.PREPARE_ABORT,
        producer_epoch=epoch,
        last_producer_epoch=last_epoch,
        next_producer_id=next_producer_id,
        start_ms=now_ms if resting else metadata.start_ms,
        last_update_ms=now_ms,
        transaction_version=transaction_version,
    )


def prepare_fence(
    metadata: TransactionMetadata,
    epoch_end: EpochEnd,
    *,
    transaction_version: int,
    next_producer_id: int,
    now_ms: int,
) -> TransactionMetadata:
    """A transaction is aborted over its producer's head, and the producer's epoch with it.

    The bumped epoch is given to nobody: whoever comes next is given one beyond it.
    """
    fenced = _transition(metadata, TransactionState.PREPARE_EPOCH_FENCE, epoch_end=epoch_end)
    if transaction_version < TRANSACTIONS_V2:
        bumped = min(metadata.producer_epoch + 1, MAX_EPOCH)
        fenced = fenced._replace(producer_epoch=bumped, last_producer_epoch=NO_PRODUCER_EPOCH)
    return prepare_end(
        fenced,
        committed=False,
        transaction_version=transaction_version,
        next_producer_id=next_producer_id,
        now_ms=now_ms,
    )


def prepare_complete(metadata: TransactionMetadata, now_ms: int) -> TransactionMetadata:
    """All markers are written."""
    commits = metadata.state is TransactionState.PREPARE_COMMIT
    rotates = metadata.transaction_version >= TRANSACTIONS_V2 and metadata.next_producer_id != NO_PRODUCER_ID
    return _transition(
        metadata,
        TransactionState.COMPLETE_COMMIT if commits else TransactionState.COMPLETE_ABORT,
        producer_id=metadata.next_producer_id if rotates else metadata.producer_id,
        producer_epoch=0 if rotates else metadata.producer_epoch,
        next_producer_id=NO_PRODUCER_ID,
        partitions=frozenset(),
        last_update_ms=now_ms,
    )


def prepare_dead(metadata: TransactionMetadata) -> TransactionMetadata:
    """The id is forgotten: what is written is a tombstone."""
    return _transition(metadata, TransactionState.DEAD, partitions=frozenset())


def _started(
    metadata: TransactionMetadata, producer_id: int, epoch: int, last_epoch: int, timeout_ms: int, now_ms: int
) -> TransactionMetadata:
    return _transition(
        metadata,
        TransactionState.EMPTY,
        producer_id=producer_id,
        producer_epoch=epoch,
        last_producer_epoch=last_epoch,
        timeout_ms=timeout_ms,
        partitions=frozenset(),
        start_ms=NO_START,
        last_update_ms=now_ms,
    )


def _transition(metadata: TransactionMetadata, target: TransactionState, **changes: Any) -> TransactionMetadata:
    assert metadata.state in LEGAL_SOURCES[target], f"{metadata.state.kafka_name} -> {target.kafka_name}"
    # Whatever is written names the producer id before it, which is how a retry over an overflow is recognised.
    return metadata._replace(state=target, previous_producer_id=metadata.producer_id, **changes)


# records

_NO_EPOCH_END: Final = EpochEndSchema()  # nobody changes what is made to be written


def value_of(metadata: TransactionMetadata) -> TransactionLogValue:
    """The record's value. An Empty id has no list of partitions, any other state has one."""
    end = metadata.epoch_end
    return TransactionLogValue(
        producer_id=metadata.producer_id,
        previous_producer_id=metadata.previous_producer_id,
        next_producer_id=metadata.next_producer_id,
        producer_epoch=metadata.producer_epoch,
        transaction_timeout_ms=metadata.timeout_ms,
        transaction_status=metadata.state,
        transaction_partitions=None if metadata.state is _S.EMPTY else _by_topic(metadata.partitions),
        transaction_last_update_timestamp_ms=metadata.last_update_ms,
        transaction_start_timestamp_ms=metadata.start_ms,
        client_transaction_version=metadata.transaction_version,
        epoch_end=_NO_EPOCH_END if end is None else EpochEndSchema(
            reason=end.reason,
            producer_epoch=end.producer_epoch,
            client_id=end.client_id,
            client_host=end.client_host,
            at_ms=end.at_ms,
        ),
    )  # fmt: skip


def metadata_of(value: TransactionLogValue) -> TransactionMetadata:
    """What a record says. Raises ValueError for a state that does not exist."""
    state = TransactionState(value.transaction_status)
    end = value.epoch_end
    return TransactionMetadata(
        producer_id=value.producer_id,
        producer_epoch=value.producer_epoch,
        timeout_ms=value.transaction_timeout_ms,
        state=state,
        partitions=frozenset(
            (topic.topic, index) for topic in value.transaction_partitions or () for index in topic.partition_ids
        ),
        start_ms=value.transaction_start_timestamp_ms,
        last_update_ms=value.transaction_last_update_timestamp_ms,
        transaction_version=value.client_transaction_version,
        previous_producer_id=value.previous_producer_id,
        next_producer_id=value.next_producer_id,
        last_producer_epoch=_last_epoch(state, value),
        epoch_end=None if end.reason == 0 else EpochEnd(
            EpochEndReason(end.reason), end.producer_epoch, end.client_id, end.client_host, end.at_ms
        ),
    )  # fmt: skip


def next_producer(ended: TransactionMetadata) -> tuple[int, int]:
    """Producer id and epoch that the next transaction is written with, known before this one is complete."""
    if ended.next_producer_id != NO_PRODUCER_ID:
        return ended.next_producer_id, 0
    return ended.producer_id, ended.producer_epoch


def _last_epoch(state: TransactionState, value: TransactionLogValue) -> int:
    """The epoch before, where a record of version 2 makes it certain: every end takes the epoch one up."""
    if value.client_transaction_version < TRANSACTIONS_V2 or state in (_S.EMPTY, _S.ONGOING):
        return NO_PRODUCER_EPOCH
    return LAST_CLIENT_EPOCH if value.producer_epoch == 0 else value.producer_epoch - 1


def _by_topic(partitions: frozenset[TopicPartition]) -> list[PartitionsSchema]:
    if len(partitions) == 1:  # as of most transactions
        ((topic, index),) = partitions
        return [PartitionsSchema(topic=topic, partition_ids=[index])]
    topics: dict[str, list[int]] = {}
    for topic, index in sorted(partitions):
        topics.setdefault(topic, []).append(index)
    return [PartitionsSchema(topic=topic, partition_ids=indexes) for topic, indexes in topics.items()]
