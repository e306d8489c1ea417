"""The records of `__transaction_state`, in Kafka's own format.

A key starts with its record type, a value with its version, both i16; the classes are named as in Kafka's
`kafka-transaction-coordinator` JSON. Apache Kafka's `dump-log --transaction-log-decoder` reads what is written here,
and what Kafka has written is read here. One field is ours: why the last epoch ended, as a tagged field that other
readers pass over.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from ottla_broker.coordinator.decision import CoordinatorRecord
from ottla_wire.schema import PRIVATE_TAG, Data, Struct, field, i8, i16, i32, i64

TRANSACTION_LOG: Final = 0
"""The type of all records of the topic."""

_FLEXIBLE_SINCE: Final = 1
_LATEST_VERSION: Final = 1


class TransactionLogKey(Data, versions="0", flexible="none"):
    """Which transactional id."""

    transactional_id: str


class PartitionsSchema(Struct):
    """Partitions of one topic that belong to a transaction."""

    topic: str
    partition_ids: list[i32]


class EpochEndSchema(Struct):
    """Why and by whom an epoch of the id ended (no field of Kafka's)."""

    reason: i8 = 0
    producer_epoch: i16 = -1
    client_id: str = ""
    client_host: str = ""
    at_ms: i64 = -1


class TransactionLogValue(Data, versions="0-1", flexible="1+"):
    """A transactional id after one of its changes.

    Version 1 is flexible (KIP-890): the producer ids before and after an overflow of the epoch, and the version of the
    protocol that the client ended the transaction with.
    """

    producer_id: i64
    previous_producer_id: i64 = field("1+", tag=0, default=-1, ignorable=True)
    next_producer_id: i64 = field("1+", tag=1, default=-1, ignorable=True)
    producer_epoch: i16
    next_producer_epoch: i16 = field("1+", tag=3, default=-1, ignorable=True)
    transaction_timeout_ms: i32
    transaction_status: i8
    transaction_partitions: list[PartitionsSchema] | None = field("0+", nullable="0+")
    transaction_last_update_timestamp_ms: i64
    transaction_start_timestamp_ms: i64
    client_transaction_version: i16 = field("1+", tag=2, default=0, ignorable=True)
    epoch_end: EpochEndSchema = field("1+", tag=PRIVATE_TAG, ignorable=True)


def transaction_record(
    transactional_id: str, value: TransactionLogValue, transaction_version: int
) -> CoordinatorRecord:
    """The record that says what a transactional id is, as a cluster of that `transaction.version` writes it."""
    version = _LATEST_VERSION if transaction_version >= _FLEXIBLE_SINCE else 0
    return CoordinatorRecord(_key(transactional_id), value.encode_with_version(version))


def transaction_tombstone(transactional_id: str) -> CoordinatorRecord:
    """The record that forgets a transactional id."""
    return CoordinatorRecord(_key(transactional_id), None)


def read_transaction(record: CoordinatorRecord) -> tuple[str, TransactionLogValue | None] | None:
    """Id and value of a record; None for a type or a version that is not known here (of an aborted upgrade, say).

    Raises:
        DecodeError: the bytes are not what type and version say.
    """
    if int.from_bytes(record.key[:2], "big", signed=True) != TRANSACTION_LOG:
        return None
    transactional_id = TransactionLogKey.decode_with_version(record.key).transactional_id
    if record.value is None:
        return transactional_id, None
    if not 0 <= int.from_bytes(record.value[:2], "big", signed=True) <= _LATEST_VERSION:
        return None
    return transactional_id, TransactionLogValue.decode_with_version(record.value)


@lru_cache(maxsize=8192)
@lru_cache(maxsize=4096)
def _key(transactional_id: str) -> bytes:
    return TransactionLogKey(transactional_id=transactional_id).encode_with_version(TRANSACTION_LOG)
