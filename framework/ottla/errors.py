"""Every error an application meets, in one place.

The wire's tree is re-exported whole (`ottla_wire.errors` draws it): one class per Kafka error code under `Retriable`,
`Abortable` and `Fatal`. What the client and the framework add:

    OttlaError
     ├── ConfigError               a setting is unknown or wrong; the message names the nearest right one
     ├── SerializationError        a key, value or header could not be turned into bytes
     ├── ConversionError           bytes could not be turned into what a listener's hint asks for
     ├── SendError                 what a send's future fails with: .record, and the reason as .__cause__
     ├── BufferExhausted           buffer_memory is used up
     ├── DeliveryTimedOut          the record was not acknowledged within delivery_timeout_ms; it may be stored
     ├── ClientClosed              the client was closed, or belongs to another process
     ├── ListenerError             a listener failed
     ├── DeserializationError      a consumer's deserializer raised: .record, .part, and the reason as .__cause__
     ├── WakeupError               poll() was left because of wakeup()
     ├── ConcurrentUse             two threads or tasks use one consumer at the same time
     ├── RebalanceListenerFailed   a rebalance listener raised; the rebalance itself has gone on
     ├── IllegalTransactionState   a transaction method at the wrong moment; the message names what to call
     │    ├── NotInTransaction     a send, commit or abort outside of a transaction
     │    └── AlreadyInTransaction     a block that must be outside of a transaction is inside of one
     ├── TransactionEnded          a send in a context whose transaction has ended
     ├── CannotBeginTransaction    a transaction did not begin; the reason as .__cause__
     │    └── NoProducerAvailable  all producers of the pool were in use
     ├── OutboxStopped             a relay has stopped at a row, or cannot go on; nothing behind it was sent
     ├── UnexpectedRollback        the block went well, and its transaction was aborted: an inner block had failed
     └── TransactionOutcomeUnknown     a commit was not answered: it is committed or aborted, never in part
    Abortable
     ├── TransactionAborted        what a send fails with whose transaction ended without it
     ├── TransactionTimedOut       the coordinator ended the transaction because it took longer than it may
     ├── CommitFailed              offsets were not committed: the group has moved on without this member
     ├── InvalidOffset             .partitions have no position from which reading can go on
     │    ├── NoOffsetForPartition       no committed offset, and auto_offset_reset is 'none'
     │    ├── OffsetsOutOfRange          the log does not hold the position, and auto_offset_reset is 'none'
     │    └── LogTruncation              the log lost records that were read: .divergent_offsets
     └── RecordCorrupt             a batch does not match its checksum: .partition, .offset
    NetworkError
     └── Disconnected              the connection failed with the request on it; whether it was carried out is unknown
    RequestTimedOut
     └── NoAnswer                  nothing came within the time a request or call has
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ottla_wire.errors import *  # noqa: F403
from ottla_wire.errors import Abortable, KafkaError, NetworkError, OttlaError, RequestTimedOut
from ottla_wire.records.sending import SendError as SendError

if TYPE_CHECKING:
    from ottla.client.topic_partition import OffsetAndMetadata, TopicPartition
    from ottla_wire.records import ConsumerRecord


class ConfigError(OttlaError, ValueError):
    """A setting is unknown, has a value it cannot have, or contradicts another one."""


class SerializationError(OttlaError):
    """A key, a value or a header could not be turned into bytes."""


class ConversionError(OttlaError):
    """What a record holds could not be turned into what a listener asks for."""


class BufferExhausted(OttlaError):
    """The producer's `buffer_memory` is used up: records are sent faster than the brokers acknowledge them."""


class DeliveryTimedOut(OttlaError, TimeoutError):
    """A record was not acknowledged within `delivery_timeout_ms`; it may have been written all the same."""


class ClientClosed(OttlaError, RuntimeError):
    """The client was closed before or during the call, or it was made in another process, before a fork."""


class ListenerError(OttlaError):
    """A listener failed; the cause is what it raised."""


class CommitFailed(Abortable):
    """Offsets were not committed, because the group has gone on without this member: its partitions are others' now.

    `__cause__` is the coordinator's error, if it was asked.
    """

    @classmethod
    def because_of(cls, error: KafkaError | None) -> CommitFailed:
        """The error with its cause; None where the member knew without asking."""
        failed = cls(
            "the offsets were not committed: the group has given this consumer's partitions to others, and records "
            "since the last commit will be read again. If handling them takes longer than max_poll_interval_ms, "
            "raise it or lower max_poll_records; the next poll() rejoins the group"
        )
        failed.__cause__ = error
        return failed


class InvalidOffset(Abortable):
    """Some partitions have no position from which reading can go on; `seek`, or set `auto_offset_reset`."""

    def __init__(self, message: str, partitions: Iterable[TopicPartition]) -> None:
        super().__init__(message)
        self.partitions = tuple(partitions)


class NoOffsetForPartition(InvalidOffset):
    """The group has no committed offset for these partitions, and `auto_offset_reset` is 'none'."""

    def __init__(self, partitions: Iterable[TopicPartition]) -> None:
        named = tuple(partitions)
        listed = ", ".join(map(str, named))
        super().__init__(
            f"no offset is committed for {listed} and auto_offset_reset is 'none': seek() to where to start", named
        )


class OffsetsOutOfRange(InvalidOffset):
    """The position is before the log's start or behind its end, and `auto_offset_reset` is 'none'."""

    def __init__(self, positions: Mapping[TopicPartition, int]) -> None:
        listed = ", ".join(f"{partition} at {offset}" for partition, offset in positions.items())
        super().__init__(
            f"the log does not hold the position ({listed}) and auto_offset_reset is 'none': seek() to where to go on",
            positions,
        )
        self.positions = dict(positions)


class LogTruncation(InvalidOffset):
    """Records that were read are no longer in the log: an unclean election chose a leader that never had them.

    `divergent_offsets` says where the log differs for the first time, as far as the leader could tell.
    """

    def __init__(
        self, positions: Mapping[TopicPartition, int], divergent: Mapping[TopicPartition, OffsetAndMetadata]
    ) -> None:
        listed = ", ".join(
            f"{partition} was read up to {offset}"
            + (f" but diverges from {divergent[partition].offset}" if partition in divergent else "")
            for partition, offset in positions.items()
        )
        super().__init__(f"the log was truncated: {listed}; seek() to where to go on", positions)
        self.positions = dict(positions)
        self.divergent_offsets = dict(divergent)


class RecordCorrupt(Abortable):
    """A batch does not match its checksum, or cannot be read; seek past it to go on without it."""

    def __init__(self, partition: TopicPartition, offset: int, reason: object) -> None:
        super().__init__(f"{partition} is corrupt at offset {offset} ({reason}); seek past it to go on without it")
        self.partition = partition
        self.offset = offset


class DeserializationError(OttlaError):
    """A deserializer raised; `record` holds the bytes. Seek past the record to go on without it."""

    def __init__(self, record: ConsumerRecord, part: str, error: BaseException) -> None:
        where = f"{record.topic}-{record.partition} at offset {record.offset}"
        super().__init__(
            f"the {part} of {where} cannot be deserialized ({type(error).__name__}: {error}); "
            "seek past it to go on without it"
        )
        self.record = record
        self.part = part


class ConcurrentUse(OttlaError, RuntimeError):
    """Two threads or tasks use one consumer at the same time; only `wakeup()` may be called from elsewhere."""


class RebalanceListenerFailed(OttlaError):
    """A rebalance listener raised; `__cause__` is its exception. The rebalance itself has gone on."""


class WakeupError(OttlaError):
    """A blocked `poll` was left because somebody called `wakeup`."""


class IllegalTransactionState(OttlaError, RuntimeError):
    """A producer's transaction method was called at a moment when it cannot be; the message names what to call."""


class NotInTransaction(IllegalTransactionState):
    """What is only allowed inside a transaction (a send, a commit, an abort) was done outside of one."""


class TransactionEnded(OttlaError):
    """A send was made in a context whose transaction has ended."""


class AlreadyInTransaction(IllegalTransactionState):
    """A block with `propagation="never"` was entered inside of a transaction."""


class CannotBeginTransaction(OttlaError):
    """A transaction did not begin, and the block was not run; `__cause__` is the client's error."""


class NoProducerAvailable(CannotBeginTransaction, TimeoutError):
    """All producers that the pool may have were in use for as long as a transaction waits for one."""


class UnexpectedRollback(OttlaError):
    """A transaction was aborted although its block went well: a block inside had failed, or had asked for it.

    `__cause__` is the inner block's error, if it had one (Spring: UnexpectedRollbackException).
    """


class OutboxStopped(OttlaError):
    """An outbox's relay has stopped for a reason that waiting does not remove; `__cause__` is Kafka's error."""


class TransactionOutcomeUnknown(OttlaError, TimeoutError):
    """The coordinator did not answer a commit in time: the transaction is committed or aborted, never in part.

    Which of the two it is can be seen by reading what was to be written, or the committed offsets.
    """


class TransactionAborted(Abortable):
    """The transaction was aborted, and what this error belongs to is not part of what others read."""


class TransactionTimedOut(Abortable, TimeoutError):
    """A transaction was open for longer than its timeout and was, or will be, aborted.

    The producer is not fenced: `abort_transaction()`, then the same work may be tried again.
    """


class Disconnected(NetworkError):
    """The connection to a broker failed, and the requests on it with it: whether they were carried out is unknown."""


class NoAnswer(RequestTimedOut, TimeoutError):
    """A broker, or any broker, did not answer within the time the request has; it may have carried it out."""
