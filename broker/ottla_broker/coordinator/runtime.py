"""The coordinator runtime: decide, append, replay, answer.

Theory of operation
===================

A coordinator (groups today, transactions next) keeps its state in the partitions of an internal topic. Each partition
this broker leads has a *shard*, a state machine in memory. Everything that happens to a shard is a *verb*::

    verb(shard, now_ms) -> Decision(records, response, ...)        or raises a KafkaError

1. **Decide.** The verb checks the request against the newest state. It changes nothing that the records are meant to
   change. A verb without records may change what is not durable (timers, parked requests) itself.
2. **Append.** The runtime appends the records as one batch. If that fails nothing has happened: the request is
   answered with the error that Kafka's clients know (`coordinator_error`), and `Decision.refused` runs.
3. **Replay.** `shard.replay` gets each record with its offset. It is the only code that changes durable state, and
   what a restart runs, so that a restart is a replay. Then `Decision.applied` runs: non-durable consequences.
4. **Answer.** The response leaves when the high watermark has passed the records. A response without records waits
   for everything appended before it, because it may be based on it (a failover must not take back what was told).
   Then `Decision.committed` runs. If it does not come in time, the answer is COORDINATOR_NOT_AVAILABLE and
   `Decision.timed_out` runs; the records stay where they are, and `committed` may still run later where the decision
   asks for that. A response that is a `Pending` belongs to the machine (a parked JoinGroup): the machine answers it,
   in `refused` too.

Answers are *effects*: machine and runtime put them into the `Outbox`, and they leave when the shard is consistent
again. So whoever is woken by an answer may call `run` at once.

Records of a transaction (`run_transactional`) are appended as a batch of their producer, and replayed with its id; the
marker that ends the transaction (`complete_transaction`) is appended like records, and replayed by
`shard.replay_end_marker`.

`run_coalesced` is for verbs that do not depend on each other's records (offset commits): their records wait until
`flush`, the next `run` on the partition, or the size limit, and are appended as one batch.

A partition is LOADING from `load` until its log has been replayed (in steps, `tick` goes on), then ACTIVE.
Elsewhere it is NOT_COORDINATOR's. Timers are verbs that nobody waits for.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from ottla_broker.coordinator.decision import (
    CoordinatorLog,
    CoordinatorRecord,
    Decision,
    Outbox,
    Shard,
    TransactionalProducer,
    TransactionEnd,
    Verb,
)
from ottla_broker.coordinator.timers import Key, Timers
from ottla_broker.pending import Pending
from ottla_wire.errors import (
    CoordinatorLoadInProgress,
    CoordinatorNotAvailable,
    InvalidFetchSize,
    KafkaError,
    KafkaStorageError,
    MessageTooLarge,
    NotCoordinator,
    NotEnoughReplicas,
    NotEnoughReplicasAfterAppend,
    NotLeaderOrFollower,
    RecordListTooLarge,
    RequestTimedOut,
    UnknownServerError,
    UnknownTopicOrPartition,
)
from ottla_wire.records import ControlType, RecordBatch, control_type

__all__ = [
    "CoordinatorLog",
    "CoordinatorRecord",
    "CoordinatorRuntime",
    "Decision",
    "Outbox",
    "Shard",
    "TransactionEnd",
    "TransactionalProducer",
    "Verb",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S", bound=Shard)

NO_PRODUCER: Final = -1
WRITE_TIMEOUT_MS: Final = 5_000
"""Kafka's offsets.commit.timeout.ms: how long an answer waits for the high watermark."""
LOAD_STEP_RECORDS: Final = 10_000
"""Records replayed before the event loop gets its turn again."""
COALESCED_BYTES: Final = 256 * 1024
"""Size at which coalesced records are appended without waiting for more; well below max.message.bytes."""
CHUNK_BYTES: Final = 512 * 1024
"""Size of one append of a decision that need not be atomic."""


@dataclass(slots=True)
class _Deferred:
    """A decision whose records, or whose predecessors' records, are above the high watermark."""

    offset: int
    deadline_ms: int
    decision: Decision[Any]
    pending: Pending[Any]


@dataclass(slots=True)
class _Partition(Generic[S]):
    """One partition this broker coordinates."""

    index: int
    epoch: int
    shard: S
    loading: Iterator[RecordBatch] | None
    end_offset: int = 0
    high_watermark: int = 0
    deferred: deque[_Deferred] = field(default_factory=deque)
    late: deque[_Deferred] = field(default_factory=deque)  # given up by whoever asked, not by the machine
    coalesced: list[tuple[Decision[Any], Pending[Any]]] = field(default_factory=list)
    coalesced_bytes: int = 0
    changing: bool = False


class CoordinatorRuntime(Generic[S]):
    """Shards of one internal topic, and the only way to get at them.

    Args:
        log: the topic's partitions.
        make_shard: makes the empty shard of a partition, given its index, the timers and the outbox.
    """

    def __init__(
        self,
        log: CoordinatorLog,
        make_shard: Callable[[int, Timers[Verb[S, Any]], Outbox], S],
        *,
        write_timeout_ms: int = WRITE_TIMEOUT_MS,
    ) -> None:
        self._log = log
        self._make_shard = make_shard
        self._write_timeout_ms = write_timeout_ms
        self._partitions: dict[int, _Partition[S]] = {}
        self._timers: Timers[Verb[S, Any]] = Timers()
        self._outbox = Outbox()
        self._due_now: dict[int, int] = {}  # partitions that are loading or hold coalesced records -> since when
        self._waiting: dict[int, _Partition[S]] = {}  # partitions with deferred answers

    # leadership

    def load(self, partition: int, epoch: int, now_ms: int) -> None:
        """Become the coordinator of a partition: replay its log. An epoch not newer than the known one is ignored."""
        known = self._partitions.get(partition)
        if known is not None:
            if epoch <= known.epoch:
                return
            self._drop(known)
        shard = self._make_shard(partition, self._timers, self._outbox)
        loading = iter(self._log.read(partition))
        self._partitions[partition] = loaded = _Partition(partition, epoch, shard, loading)
        loaded.high_watermark = self._log.high_watermark(partition)
        shard.high_watermark_moved(loaded.high_watermark)
        self._load_step(loaded, now_ms)
        self._outbox.send()

    def unload(self, partition: int, epoch: int | None = None) -> None:
        """Stop being the coordinator of a partition. An epoch older than the known one is ignored."""
        known = self._partitions.get(partition)
        if known is None or (epoch is not None and epoch < known.epoch):
            return
        self._drop(known)
        self._outbox.send()

    def partitions(self) -> list[int]:
        """The partitions this broker coordinates, loading or active."""
        return sorted(self._partitions)

    @property
    def has_partitions(self) -> bool:
        """Whether there are any."""
        return bool(self._partitions)

    # verbs and reads

    def run(self, partition: int, verb: Verb[S, T], now_ms: int) -> Pending[T]:
        """Execute a verb; the answer comes as the module's text says, an error as the Pending's failure."""
        return self._run(partition, verb, now_ms, None)

    def run_transactional(
        self, partition: int, producer: TransactionalProducer, verb: Verb[S, T], now_ms: int
    ) -> Pending[T]:
        """Execute a verb whose records are part of a transaction."""
        return self._run(partition, verb, now_ms, producer)

    def complete_transaction(self, partition: int, end: TransactionEnd, now_ms: int) -> Pending[None]:
        """Write the marker that ends a transaction; answered when the marker is replicated.

        An append that is refused fails the Pending with the append's own error: it is the transaction coordinator that
        asks, not a client.
        """
        try:
            active = self._active(partition)
            self._flush(active, now_ms)
            end_offset = self._log.append_marker(partition, end, now_ms)
        except KafkaError as error:
            self._outbox.send()
            return Pending.failed(error)
        self._replay_marker(active, end, end_offset)
        pending: Pending[None] = Pending()
        deferred = _Deferred(end_offset, now_ms + self._write_timeout_ms, Decision(None), pending)
        active.deferred.append(deferred)
        self._advance(active, self._log.high_watermark(partition), now_ms)
        self._outbox.send()
        return pending

    def _run(self, partition: int, verb: Verb[S, T], now_ms: int, producer: TransactionalProducer | None) -> Pending[T]:
        try:
            active = self._active(partition)
            self._flush(active, now_ms)
            decision = self._decide(active, verb, now_ms)
        except KafkaError as error:
            self._outbox.send()
            return Pending.failed(error)
        pending = _pending_of(decision)
        self._append(active, [(decision, pending)], now_ms, producer)
        self._outbox.send()
        return pending

    def run_coalesced(self, partition: int, verb: Verb[S, T], now_ms: int) -> Pending[T]:
        """Execute a verb whose records may be appended together with those of others.

        Only for verbs that decide the same whether or not the records of other coalesced verbs are replayed.
        """
        try:
            active = self._active(partition)
            decision = self._decide(active, verb, now_ms)
        except KafkaError as error:
            self._outbox.send()
            return Pending.failed(error)
        pending = _pending_of(decision)
        active.coalesced.append((decision, pending))
        active.coalesced_bytes += _size(decision.records)
        self._due_now.setdefault(partition, now_ms)
        if active.coalesced_bytes >= COALESCED_BYTES:
            self._flush(active, now_ms)
        self._outbox.send()
        return pending

    def read(self, partition: int, query: Callable[[S], T]) -> T:
        """Ask a shard. What is durable should be read as of the high watermark.

        Raises:
            NotCoordinator, CoordinatorLoadInProgress, and what the query raises.
        """
        return query(self._active(partition).shard)

    @property
    def has_coalesced(self) -> bool:
        """Whether `flush` has something to append."""
        return any(self._partitions[partition].loading is None for partition in self._due_now)

    def flush(self, now_ms: int) -> None:
        """Append what `run_coalesced` has collected; to be called at the end of a loop turn."""
        if not self._due_now:
            return
        for partition in list(self._due_now):
            held = self._partitions[partition]
            if held.loading is None:
                self._flush(held, now_ms)
        self._outbox.send()

    def high_watermark_moved(self, partition: int, offset: int, now_ms: int) -> None:
        """The partition is replicated up to `offset`: answer what waited for that."""
        held = self._partitions.get(partition)
        if held is None or held.changing:  # a change in progress looks at the high watermark when it is through
            return
        self._advance(held, offset, now_ms)
        self._outbox.send()

    # time

    def tick(self, now_ms: int) -> None:
        """Run everything that is due: loading, coalesced records, timers, answers that have waited too long."""
        for partition in list(self._due_now):
            held = self._partitions[partition]
            if held.loading is not None:
                self._load_step(held, now_ms)
            else:
                self._flush(held, now_ms)
        self._outbox.send()
        for held in list(self._waiting.values()):
            self._time_out(held, now_ms)
        for key, verb in self._timers.pop_due(now_ms):
            self._run_timer(key, verb, now_ms)

    def deadline_ms(self) -> int | None:
        """When `tick` has something to do, or None."""
        timer = self._timers.deadline_ms()
        if not self._waiting and not self._due_now:  # after nearly every turn
            return timer
        deadlines = [held.deferred[0].deadline_ms for held in self._waiting.values()]
        deadlines.extend(self._due_now.values())
        if timer is not None:
            deadlines.append(timer)
        return min(deadlines)

    # inside

    def _active(self, partition: int) -> _Partition[S]:
        held = self._partitions.get(partition)
        if held is None:
            raise NotCoordinator
        if held.loading is not None:
            raise CoordinatorLoadInProgress
        assert not held.changing, "a shard was called from inside one of its own changes"
        return held

    def _decide(self, held: _Partition[S], verb: Verb[S, T], now_ms: int) -> Decision[T]:
        held.changing = True
        try:
            return verb(held.shard, now_ms)
        finally:
            held.changing = False

    def _flush(self, held: _Partition[S], now_ms: int) -> None:
        self._due_now.pop(held.index, None)
        if held.coalesced:
            collected, held.coalesced, held.coalesced_bytes = held.coalesced, [], 0
            self._append(held, collected, now_ms)

    def _append(
        self,
        held: _Partition[S],
        decided: list[tuple[Decision[Any], Pending[Any]]],
        now_ms: int,
        producer: TransactionalProducer | None = None,
    ) -> None:
        """Append and replay the records of decisions, as one batch if there are several; then answer or defer."""
        held.changing = True
        try:
            for records in _batches(decided):
                end_offset = self._log.append(held.index, records, now_ms, producer)
                self._replay(held, records, end_offset, producer)
        except KafkaError as error:
            self._refuse(decided, error, now_ms)
            return
        except OSError as error:
            self._refuse(decided, KafkaStorageError(str(error)), now_ms)
            return
        finally:
            held.changing = False
        for decision, pending in decided:
            if decision.applied is not None:
                decision.applied()
            held.deferred.append(_Deferred(held.end_offset, now_ms + self._write_timeout_ms, decision, pending))
        self._advance(held, self._log.high_watermark(held.index), now_ms)

    def _replay(
        self,
        held: _Partition[S],
        records: Sequence[CoordinatorRecord],
        end_offset: int,
        producer: TransactionalProducer | None,
    ) -> None:
        held.end_offset = end_offset
        held.shard.high_watermark_moved(self._log.high_watermark(held.index))
        producer_id, epoch = (NO_PRODUCER, NO_PRODUCER) if producer is None else producer[:2]
        for offset, record in enumerate(records, end_offset - len(records)):
            held.shard.replay(offset, record, producer_id, epoch)

    def _replay_marker(self, held: _Partition[S], end: TransactionEnd, end_offset: int) -> None:
        held.changing = True
        try:
            held.end_offset = end_offset
            held.shard.high_watermark_moved(self._log.high_watermark(held.index))
            held.shard.replay_end_marker(end_offset - 1, end.producer_id, end.producer_epoch, committed=end.committed)
        finally:
            held.changing = False

    def _refuse(self, decided: list[tuple[Decision[Any], Pending[Any]]], error: KafkaError, now_ms: int) -> None:
        logger.warning("a coordinator's append failed: %s: %s", type(error).__name__, error)
        answer = coordinator_error(error)
        for decision, pending in decided:
            self._fail(decision, pending, answer)
            if decision.refused is not None:
                decision.refused(answer, now_ms)

    def _fail(self, decision: Decision[Any], pending: Pending[Any], error: KafkaError) -> None:
        if decision.response is not pending:
            self._outbox.fail(pending, error)

    def _advance(self, held: _Partition[S], offset: int, now_ms: int) -> None:
        if offset > held.high_watermark:
            held.high_watermark = offset
            held.shard.high_watermark_moved(offset)
        elif not held.deferred and not held.late:
            return
        while held.late and held.late[0].offset <= held.high_watermark:
            if (committed := held.late.popleft().decision.committed) is not None:
                committed(now_ms)
        while held.deferred and held.deferred[0].offset <= held.high_watermark:
            decision, pending = (deferred := held.deferred.popleft()).decision, deferred.pending
            if decision.response is not pending:
                self._outbox.complete(pending, decision.response)
            if decision.committed is not None:
                decision.committed(now_ms)
        if held.deferred:
            self._waiting[held.index] = held
        else:
            self._waiting.pop(held.index, None)

    def _time_out(self, held: _Partition[S], now_ms: int) -> None:
        error = coordinator_error(RequestTimedOut("the coordinator's partition is not replicated in time"))
        while held.deferred and held.deferred[0].deadline_ms <= now_ms:
            deferred = held.deferred.popleft()
            self._fail(deferred.decision, deferred.pending, error)
            if deferred.decision.outlives_time_out:
                held.late.append(deferred)
            elif deferred.decision.timed_out is not None:
                deferred.decision.timed_out(error, now_ms)
        if not held.deferred:
            self._waiting.pop(held.index, None)
        self._outbox.send()

    def _run_timer(self, key: Key, verb: Verb[S, Any], now_ms: int) -> None:
        partition = key[0]
        assert isinstance(partition, int)
        try:
            self.run(partition, verb, now_ms)
        except Exception:
            # One broken timer must not stop the other groups' timers.
            logger.exception("timer %s failed", key)
            self._outbox.send()

    def _load_step(self, held: _Partition[S], now_ms: int) -> None:
        assert held.loading is not None
        replayed = 0
        try:
            for batch in held.loading:
                self._replay_batch(held.shard, batch)
                held.end_offset = batch.next_offset
                replayed += batch.count
                if replayed >= LOAD_STEP_RECORDS:
                    self._due_now[held.index] = now_ms
                    return
        except Exception:
            # One partition that cannot be read must not take the broker along. Whoever asks for its groups is sent
            # away; the other partitions go on.
            logger.exception("partition %s cannot be loaded at offset %s", held.index, held.end_offset)
            self._drop(held)
            return
        held.loading = None
        self._due_now.pop(held.index, None)
        held.shard.loaded(now_ms)
        self._advance(held, self._log.high_watermark(held.index), now_ms)

    def _replay_batch(self, shard: S, batch: RecordBatch) -> None:
        if batch.is_control:
            kind = control_type(batch)
            if kind in (ControlType.COMMIT, ControlType.ABORT):
                committed = kind is ControlType.COMMIT
                shard.replay_end_marker(batch.base_offset, batch.producer_id, batch.producer_epoch, committed=committed)
            return
        producer_id = batch.producer_id if batch.is_transactional else NO_PRODUCER
        for record in batch.records():
            if record.key is not None:
                value = CoordinatorRecord(record.key, record.value)
                shard.replay(record.offset, value, producer_id, batch.producer_epoch)

    def _drop(self, held: _Partition[S]) -> None:
        del self._partitions[held.index]
        self._due_now.pop(held.index, None)
        self._waiting.pop(held.index, None)
        self._timers.cancel_partition(held.index)
        for decision, pending in held.coalesced:
            self._fail(decision, pending, NotCoordinator())
        for deferred in held.deferred:
            self._fail(deferred.decision, deferred.pending, NotCoordinator())
        held.shard.unloaded(NotCoordinator())


def coordinator_error(error: KafkaError) -> KafkaError:
    """The error a client of a coordinator understands for an error of the coordinator's own append.

    Source: Kafka's CoordinatorOperationExceptionHelper.
    """
    if isinstance(error, UnknownTopicOrPartition | NotEnoughReplicas | NotEnoughReplicasAfterAppend | RequestTimedOut):
        return CoordinatorNotAvailable(str(error))
    if isinstance(error, NotLeaderOrFollower | KafkaStorageError):
        return NotCoordinator(str(error))
    if isinstance(error, MessageTooLarge | RecordListTooLarge | InvalidFetchSize):
        return UnknownServerError(str(error))
    return error


def _pending_of(decision: Decision[T]) -> Pending[T]:
    response = decision.response
    return response if isinstance(response, Pending) else Pending()


def _size(records: Sequence[CoordinatorRecord]) -> int:
    return sum(len(record.key) + len(record.value or b"") + 16 for record in records)


def _batches(decided: list[tuple[Decision[Any], Pending[Any]]]) -> Iterator[Sequence[CoordinatorRecord]]:
    """The records of decisions, cut into what is appended at once."""
    if len(decided) == 1 and not decided[0][0].atomic:
        yield from _chunks(decided[0][0].records)
        return
    records = [record for decision, _ in decided for record in decision.records]
    if records:
        yield records


def _chunks(records: Sequence[CoordinatorRecord]) -> Iterator[Sequence[CoordinatorRecord]]:
    chunk: list[CoordinatorRecord] = []
    size = 0
    for record in records:
        chunk.append(record)
        size += _size((record,))
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
