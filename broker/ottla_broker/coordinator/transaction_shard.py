"""TransactionShard: the transactional ids of one partition of `__transaction_state`, under the `CoordinatorRuntime`.

Theory of operation
===================

An id is its metadata, which only `replay` changes, and what is not durable: the state that it is on the way to
(`pending`), and the partitions that still want a marker. While there is a pending state nearly every request about the
id is told CONCURRENT_TRANSACTIONS. It is set when a change is decided, and gone when its record is committed; but
*Prepare* leads straight on: with its record committed the pending state is *Complete*, until that is committed too.

The client is told as soon as *Prepare* is committed. Then the markers go out (`transaction_markers`), and when the
last one is written `complete` writes the rest. At load each id that is prepared is brought to its end in the same way,
with the coordinator epoch of now; what lies above the high watermark is not acted upon before it is committed, for
another leader may not have it.

A change that cannot be appended has not happened, so fencing a producer again takes the same epoch again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ottla_broker.coordinator.decision import CoordinatorRecord, Decision, Outbox, Verb
from ottla_broker.coordinator.timers import Timers
from ottla_broker.coordinator.transaction_ending import Ending, ending_v1, ending_v2, is_retry_over_overflow
from ottla_broker.coordinator.transaction_epoch_end import EpochEnd, Peer, log_begin, log_fence, log_next, timed_out
from ottla_broker.coordinator.transaction_id import NOTHING, DecidedRecord, ProducerIdAndEpoch, TransactionalId
from ottla_broker.coordinator.transaction_markers import EndedTransaction, MarkerSender
from ottla_broker.coordinator.transaction_records import read_transaction, transaction_record, transaction_tombstone
from ottla_broker.coordinator.transaction_state import (
    LAST_CLIENT_EPOCH,
    NO_PRODUCER_EPOCH,
    NO_PRODUCER_ID,
    NO_TIMEOUT_MS,
    PREPARED,
    RESTING,
    TRANSACTIONS_V1,
    TRANSACTIONS_V2,
    TopicPartition,
    TransactionMetadata,
    TransactionState,
    metadata_of,
    new_id,
    next_producer,
    prepare_add_partitions,
    prepare_complete,
    prepare_dead,
    prepare_end,
    prepare_fence,
    prepare_next_epoch,
    prepare_next_producer_id,
    value_of,
)
from ottla_wire.errors import (
    InvalidProducerIdMapping,
    InvalidTxnState,
    KafkaError,
    NotCoordinator,
    ProducerFenced,
    TransactionAbortable,
)

if TYPE_CHECKING:
    from ottla_broker.coordinator.transaction_config import TransactionConfig

logger = logging.getLogger(__name__)


class TransactionShard:
    """The ids of one partition.

    Attributes:
        ids: by transactional id; to be read only.
        coordinator_epoch: the leader epoch in which this broker has them.

    Args:
        transaction_version: the finalized `transaction.version` of the cluster.
        wall_ms: the wall clock, which the times in records are of.
    """

    def __init__(
        self,
        partition: int,
        coordinator_epoch: int,
        config: TransactionConfig,
        *,
        timers: Timers[Verb[Any, Any]],
        outbox: Outbox,
        markers: MarkerSender,
        transaction_version: Callable[[], int],
        wall_ms: Callable[[], int],
    ) -> None:
        self.coordinator_epoch = coordinator_epoch
        self.ids: dict[str, TransactionalId] = {}
        self._partition = partition
        self._config = config
        self._timers = timers
        self._markers = markers
        self._transaction_version = transaction_version
        self._wall_ms = wall_ms
        self._ongoing: set[str] = set()

    # a producer starts

    def wants_producer_id_to_start(self, transactional_id: str, expected: ProducerIdAndEpoch | None) -> bool:
        """Whether `start_producer` needs a fresh producer id."""
        known = self.ids.get(transactional_id)
        if known is None:
            return True
        metadata = known.metadata
        if known.pending is not None or not metadata.is_epoch_exhausted:
            return False
        if metadata.state is TransactionState.ONGOING:
            return self._transaction_version() >= TRANSACTIONS_V2
        return expected is None or expected.producer_epoch == metadata.producer_epoch

    def start_producer(
        self,
        transactional_id: str,
        timeout_ms: int,
        expected: ProducerIdAndEpoch | None,
        fresh_producer_id: int | None,
        peer: Peer,
    ) -> Decision[ProducerIdAndEpoch | None]:
        """InitProducerId. None as the answer is CONCURRENT_TRANSACTIONS: a live transaction is aborted first.

        Raises:
            ConcurrentTransactions, ProducerFenced.
        """
        known = self.ids.get(transactional_id)
        if known is None:
            assert fresh_producer_id is not None
            metadata = new_id(fresh_producer_id, timeout_ms)
        else:
            metadata = known.metadata
            _check_may_start(known, expected)
        now_ms = self._wall_ms()
        if metadata.state is TransactionState.ONGOING:
            return self._fence(
                transactional_id, metadata, peer.ends(metadata.producer_epoch, now_ms), fresh_producer_id
            )
        expected_epoch = None if expected is None else expected.producer_epoch
        if metadata.is_epoch_exhausted and expected_epoch in (None, metadata.producer_epoch):
            assert fresh_producer_id is not None
            started = prepare_next_producer_id(metadata, fresh_producer_id, timeout_ms, expected_epoch, now_ms)
        else:
            started = prepare_next_epoch(metadata, timeout_ms, expected_epoch, now_ms)
        if expected is None and metadata.producer_epoch != NO_PRODUCER_EPOCH:
            started = started._replace(epoch_end=peer.ends(metadata.producer_epoch, now_ms))

        def log(_now_ms: int) -> None:
            if known is None:
                log_begin(transactional_id, started.producer_id, peer)
            else:
                log_next(transactional_id, metadata, started, peer)

        answer = ProducerIdAndEpoch(started.producer_id, started.producer_epoch)
        return self._change(transactional_id, started, answer, log)

    # partitions

    def add_partitions(
        self,
        transactional_id: str,
        producer: ProducerIdAndEpoch,
        partitions: Sequence[TopicPartition],
        transaction_version: int,
    ) -> Decision[dict[TopicPartition, int]]:
        """Partitions join the transaction of the id: error code 0 for each.

        Raises:
            InvalidProducerIdMapping, ProducerFenced, ConcurrentTransactions.
        """
        known = self._known(transactional_id)
        # First of all: over an overflow the pending change may be the one that makes the producer id right.
        known.check_not_pending()
        known.check_producer(producer)
        metadata = known.metadata
        if metadata.state is TransactionState.ONGOING and metadata.partitions.issuperset(partitions):
            return Decision(dict.fromkeys(partitions, 0))
        added = prepare_add_partitions(metadata, partitions, transaction_version, self._wall_ms())
        return self._change(transactional_id, added, dict.fromkeys(partitions, 0))

    def verify_partitions(
        self, transactional_id: str, producer: ProducerIdAndEpoch, partitions: Sequence[TopicPartition]
    ) -> Decision[dict[TopicPartition, int]]:
        """Say which partitions are in the transaction: 0, or TRANSACTION_ABORTABLE.

        A pending change does not matter: the partition looks once more when it appends.

        Raises:
            InvalidProducerIdMapping, ProducerFenced, ConcurrentTransactions.
        """
        known = self._known(transactional_id)
        known.check_producer(producer)
        held = known.metadata.partitions
        return Decision({each: 0 if each in held else TransactionAbortable.code for each in partitions})

    # the end

    def wants_producer_id_to_end(self, transactional_id: str, producer: ProducerIdAndEpoch, *, committed: bool) -> bool:
        """Whether `end_v2` needs a fresh producer id."""
        known = self.ids.get(transactional_id)
        return (
            known is not None
            and known.pending is None
            and known.metadata.is_epoch_exhausted
            and known.metadata.producer_id == producer.producer_id
            and ending_v2(known.metadata, *producer, committed=committed) is Ending.PREPARE
        )

    def end_v1(
        self, transactional_id: str, producer: ProducerIdAndEpoch, *, committed: bool
    ) -> Decision[ProducerIdAndEpoch]:
        """EndTxn up to version 4; the answer has no producer id and epoch.

        Raises:
            InvalidProducerIdMapping, ProducerFenced, ConcurrentTransactions, InvalidTxnState.
        """
        known = self._known(transactional_id)
        metadata = known.metadata
        if metadata.producer_id != producer.producer_id:
            raise known.wrong_producer_id(producer)
        if metadata.producer_epoch != producer.producer_epoch:
            raise known.fenced(producer)
        known.check_not_pending()
        ending = ending_v1(metadata, producer.producer_epoch, committed=committed)
        if ending is not Ending.PREPARE:
            return _answer_to(ending, known, producer, NOTHING)
        ended = prepare_end(
            metadata,
            committed=committed,
            transaction_version=TRANSACTIONS_V1,
            next_producer_id=NO_PRODUCER_ID,
            now_ms=self._wall_ms(),
        )
        return self._prepare(transactional_id, ended, NOTHING)

    def end_v2(
        self,
        transactional_id: str,
        producer: ProducerIdAndEpoch,
        fresh_producer_id: int | None,
        *,
        committed: bool,
    ) -> Decision[ProducerIdAndEpoch]:
        """EndTxn from version 5 on; the answer has what the next transaction is written with.

        Raises:
            InvalidProducerIdMapping, ProducerFenced, ConcurrentTransactions, InvalidTxnState.
        """
        known = self._known(transactional_id)
        known.check_not_pending()
        metadata = known.metadata
        if metadata.producer_id != producer.producer_id and not is_retry_over_overflow(metadata, *producer):
            raise known.wrong_producer_id(producer)
        ending = ending_v2(metadata, *producer, committed=committed)
        if ending is not Ending.PREPARE:
            current = ProducerIdAndEpoch(metadata.producer_id, metadata.producer_epoch)
            return _answer_to(ending, known, producer, current)
        ended = prepare_end(
            metadata,
            committed=committed,
            transaction_version=TRANSACTIONS_V2,
            next_producer_id=_next_producer_id(metadata, fresh_producer_id),
            now_ms=self._wall_ms(),
        )
        return self._prepare(transactional_id, ended, ProducerIdAndEpoch(*next_producer(ended)))

    # an end that the producer does not want

    def timed_out(self) -> list[str]:
        """The ids whose transaction has been open for longer than its time-out."""
        now_ms = self._wall_ms()
        return [each for each in self._ongoing if _is_timed_out(self.ids[each], now_ms)]

    def time_out(self, transactional_id: str, fresh_producer_id: int | None) -> Decision[None]:
        """Abort the transaction, if that is still due."""
        known = self.ids.get(transactional_id)
        now_ms = self._wall_ms()
        if known is None or not _is_timed_out(known, now_ms):
            return Decision(None)
        end = timed_out(known.metadata.producer_epoch, now_ms)
        return self._fence(transactional_id, known.metadata, end, fresh_producer_id)

    def wants_producer_id_to_fence(self, transactional_id: str) -> bool:
        """Whether `time_out` needs a fresh producer id."""
        return self._transaction_version() >= TRANSACTIONS_V2 and self.ids[transactional_id].metadata.is_epoch_exhausted

    def _fence(
        self, transactional_id: str, metadata: TransactionMetadata, end: EpochEnd, fresh_producer_id: int | None
    ) -> Decision[Any]:
        version = self._transaction_version()
        uses_v2 = version >= TRANSACTIONS_V2
        fenced = prepare_fence(
            metadata,
            end,
            transaction_version=version if uses_v2 else TRANSACTIONS_V1,
            next_producer_id=_next_producer_id(metadata, fresh_producer_id) if uses_v2 else NO_PRODUCER_ID,
            now_ms=end.at_ms,
        )
        return self._prepare(transactional_id, fenced, None, lambda: log_fence(transactional_id, metadata, end))

    # the rest of the way

    def complete(self, ended: EndedTransaction) -> Decision[None]:
        """Every partition has its marker: write *Complete*."""
        known = self.ids.get(ended.transactional_id)
        if known is None or known.ended is not ended:
            return Decision(None)
        completed = prepare_complete(known.metadata, self._wall_ms())
        decision: Decision[None] = self._change(ended.transactional_id, completed, None, self._completed(known, ended))

        def refused(error: KafkaError, now_ms: int) -> None:
            known.pending = completed.state  # nothing but this comes after Prepare
            if isinstance(error, NotCoordinator):
                logger.warning("the end of %s cannot be written: %s", ended.transactional_id, error)
            else:
                self._markers.retry_completion(ended, now_ms)

        decision.refused = refused
        return decision

    def _completed(self, known: TransactionalId, ended: EndedTransaction) -> Callable[[int], None]:
        def completed(_now_ms: int) -> None:
            self._markers.forget(ended)
            known.ended = None

        return completed

    def expire(self) -> Decision[None]:
        """Forget the ids that have not been used for `transactional.id.expiration.ms`."""
        before_ms = self._wall_ms() - self._config.transactional_id_expiration_ms
        tombstones = []
        for transactional_id, known in self.ids.items():
            metadata = known.metadata
            if known.pending is None and metadata.last_update_ms <= before_ms and metadata.state in RESTING:
                prepare_dead(metadata)
                tombstones.append(transaction_tombstone(transactional_id))
        if tombstones:
            logger.info("%d transactional ids have not been used for long and are forgotten", len(tombstones))
        return Decision(None, tombstones, atomic=False)

    def recover(self) -> Decision[None]:
        """Bring to its end whatever was prepared when the partition was loaded."""
        prepared = [name for name, known in self.ids.items() if known.metadata.state in PREPARED]

        def committed(_now_ms: int) -> None:
            for name in prepared:
                known = self.ids[name]
                if known.ended is None:
                    logger.info("transactional id %s: its %s is finished", name, known.metadata.state.kafka_name)
                    self._send_markers(name, known)

        return Decision(None, committed=committed, outlives_time_out=True)

    # the runtime's side

    def replay(self, offset: int, record: CoordinatorRecord, producer_id: int, producer_epoch: int) -> None:
        """Change an id as a record says; records of types and versions not known here are skipped."""
        if type(record) is DecidedRecord:
            self._replay(record.transactional_id, record.metadata)
            return
        read = read_transaction(record)
        if read is None:
            logger.warning("the record at offset %d is of a kind that is not known here, it is skipped", offset)
            return
        transactional_id, value = read
        self._replay(transactional_id, None if value is None else metadata_of(value))

    def _replay(self, transactional_id: str, metadata: TransactionMetadata | None) -> None:
        if metadata is None:
            self.ids.pop(transactional_id, None)
            self._ongoing.discard(transactional_id)
            return
        known = self.ids.get(transactional_id)
        if known is None:
            self.ids[transactional_id] = TransactionalId(transactional_id, metadata)
        else:
            known.metadata = metadata
        if metadata.state is TransactionState.ONGOING:
            self._ongoing.add(transactional_id)
        else:
            self._ongoing.discard(transactional_id)

    def replay_end_marker(self, offset: int, producer_id: int, producer_epoch: int, *, committed: bool) -> None:
        """Nobody writes into this topic in transactions."""

    def high_watermark_moved(self, high_watermark: int) -> None:
        """What is told waits for its records in the runtime."""

    def loaded(self, now_ms: int) -> None:
        """Finish what was prepared, as soon as it is committed."""
        self._timers.schedule((self._partition, "recover"), now_ms, lambda _shard, _now: self.recover())

    def unloaded(self, error: KafkaError) -> None:
        """Another broker has the ids now, and finishes what is prepared."""
        self._markers.cancel_shard(self._partition)

    # inside

    def _known(self, transactional_id: str) -> TransactionalId:
        known = self.ids.get(transactional_id)
        if known is None:
            raise InvalidProducerIdMapping(f"transactional id {transactional_id} is not known; it may have expired")
        return known

    def _change(
        self,
        transactional_id: str,
        metadata: TransactionMetadata,
        answer: Any,
        committed: Callable[[int], None] | None = None,
    ) -> Decision[Any]:
        known = self.ids.get(transactional_id)
        if known is not None:
            known.pending = metadata.state

        def applied() -> None:
            self.ids[transactional_id].pending = metadata.state

        def is_committed(now_ms: int) -> None:
            self.ids[transactional_id].pending = None
            if committed is not None:
                committed(now_ms)

        def refused(_error: KafkaError, _now_ms: int) -> None:
            if known is not None:
                known.pending = None

        record = DecidedRecord(*transaction_record(transactional_id, value_of(metadata), self._transaction_version()))
        record.transactional_id, record.metadata = transactional_id, metadata
        return Decision(
            answer, (record,), applied=applied, committed=is_committed, refused=refused, outlives_time_out=True
        )

    def _prepare(
        self,
        transactional_id: str,
        metadata: TransactionMetadata,
        answer: Any,
        log: Callable[[], None] | None = None,
    ) -> Decision[Any]:
        def committed(_now_ms: int) -> None:
            if log is not None:
                log()
            self._send_markers(transactional_id, self.ids[transactional_id])

        return self._change(transactional_id, metadata, answer, committed)

    def _send_markers(self, transactional_id: str, known: TransactionalId) -> None:
        metadata = known.metadata
        commits = metadata.state is TransactionState.PREPARE_COMMIT
        known.pending = TransactionState.COMPLETE_COMMIT if commits else TransactionState.COMPLETE_ABORT
        known.ended = EndedTransaction(
            self._partition,
            self.coordinator_epoch,
            transactional_id,
            producer_id=metadata.producer_id,
            producer_epoch=metadata.producer_epoch,
            committed=commits,
            transaction_version=metadata.transaction_version,
            partitions=metadata.partitions,
        )
        self._markers.add(known.ended)


def _check_may_start(known: TransactionalId, expected: ProducerIdAndEpoch | None) -> None:
    known.check_not_pending()
    metadata = known.metadata
    if (
        expected is not None
        and expected.producer_id != metadata.producer_id
        # Unless the answer that told the producer of its next id was lost.
        and not (expected.producer_id == metadata.previous_producer_id and expected.producer_epoch >= LAST_CLIENT_EPOCH)
    ):
        raise ProducerFenced(
            f"transactional id {known.name} has producer id {metadata.producer_id} by now, not {expected.producer_id}"
        )
    if metadata.state in PREPARED:
        raise known.being_ended()


def _answer_to(
    ending: Ending, known: TransactionalId, producer: ProducerIdAndEpoch, done: ProducerIdAndEpoch
) -> Decision[ProducerIdAndEpoch]:
    if ending is Ending.DONE:
        return Decision(done)
    if ending is Ending.IN_PROGRESS:
        raise known.being_ended()
    if ending is Ending.FENCED:
        raise known.fenced(producer)
    state = known.metadata.state.kafka_name
    raise InvalidTxnState(f"transactional id {known.name} is in state {state}, which cannot be ended so")


def _is_timed_out(known: TransactionalId, now_ms: int) -> bool:
    metadata = known.metadata
    return (
        known.pending is None
        and metadata.state is TransactionState.ONGOING
        and metadata.timeout_ms != NO_TIMEOUT_MS
        and metadata.start_ms + metadata.timeout_ms < now_ms
    )


def _next_producer_id(metadata: TransactionMetadata, fresh_producer_id: int | None) -> int:
    if not metadata.is_epoch_exhausted:
        return NO_PRODUCER_ID
    assert fresh_producer_id is not None
    return fresh_producer_id
