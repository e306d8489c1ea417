"""TransactionManager: who the producer is to the brokers, and what its transaction is in the middle of. Sans-I/O.

Theory of operation. One machine, two modes. Without a transactional id it gets a producer id from any broker and keeps
it (READY for its life). With one, the id comes from the transaction coordinator, and the states are these:

    UNINITIALIZED --init--> INITIALIZING --answered--> READY --begin--> IN_TRANSACTION --commit--> COMMITTING --.
                                ^                        ^                |        |                   |         |
                                |                        |      a send or |        '--abort--> ABORTING|         |
                                |                        |   offsets fail |                     ^      |         |
                                |                        |                v                     |      |         |
                                |                        |          ABORTABLE_ERROR ----abort---'      |         |
                                |                        |                ^----------------------------'         |
                                |                        '------------ EndTxn answered ----------<---------------'
                                '--- the next epoch has to be asked for before the next transaction (v1, timed out)

    and FATAL, from anywhere and for ever.

The machine performs nothing. The application's calls (`init`, `begin`, `send_offsets`, `commit`, `abort`) move it and
return an `Operation` to wait for (`transaction_operation`); `next_request` hands out what to ask next, one request at a
time (`coordinator_line`), in the order of `RequestKind`; `answered` and `unanswered` bring what came of it, and the
tables say what that means (`transaction_tables`); the sender tells of each batch. Operations that ended are handed out
by `take_finished`, so that their callers are woken when no lock is held.

Rules that everything rests on:

- EndTxn leaves when no batch is unfinished (also none that nobody waits for any more) and all offsets are stored.
- A commit goes on as a commit, whatever happens to its caller: a time-out changes nothing here.
- What fails inside of a transaction, whether or not anybody looked at its future, makes its commit fail.
- Version 1 asks the coordinator before it writes to a partition, and keeps epoch and sequences from transaction to
  transaction. Version 2 (KIP-890) writes, and gets a new epoch with every EndTxn, with which sequences begin at 0.
  Which of them it is changes between transactions only. After a change to 2 the next epoch is asked for first, so that
  nothing of version 1 is taken for a part of the new transaction.
- A request whose answer was lost is asked again, and the first one may still arrive after that, on the connection that
  is gone. Version 1 takes it for a part of the next transaction, which a late EndTxn ends in its middle: so the next
  epoch is asked for in between (KIP-360). Within one transaction no epoch helps: offsets whose answer was lost could
  arrive after newer ones, so these are not sent, and it fails.
- An epoch that is over has a reason: before it is told, the coordinator is asked for it (EXPLAIN). Timed out is not
  fenced: after an abort the producer asks for the epoch after the one that the coordinator has, which it gets only if
  no other instance has come in between.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any, Final, cast

from ottla.client.backoff import Backoff
from ottla.client.producer import transaction_requests as requests
from ottla.client.producer.coordinator_line import CoordinatorLine
from ottla.client.producer.epoch_end import EpochFate, explain_epoch_end
from ottla.client.producer.producer_sequences import (
    NO_PRODUCER,
    ProducerIdAndEpoch,
    ProducerSequences,
    SequencedBatch,
)
from ottla.client.producer.transaction_operation import Calls, Operation
from ottla.client.producer.transaction_requests import (
    GROUP,
    TRANSACTION,
    Coordinator,
    OffsetsToSend,
    TransactionRequest,
)
from ottla.client.producer.transaction_tables import (
    ANY_VERSION,
    MEMBER_IS_GONE,
    PRODUCE_VERSIONS,
    PRODUCE_VERSIONS_V1,
    PRODUCE_VERSIONS_V2,
    REQUEST_NAMES,
    TRANSITIONS,
    VERSIONS_V1,
    VERSIONS_V2,
    RequestKind,
    TransactionState,
    Verdict,
    produce_verdict,
    verdict,
)
from ottla.client.topic_partition import ConsumerGroupMetadata, OffsetAndMetadata, TopicPartition
from ottla.errors import (
    CommitFailed,
    Disconnected,
    InvalidProducerEpoch,
    InvalidTransactionTimeout,
    InvalidTxnState,
    KafkaError,
    NoAnswer,
    OttlaError,
    OutOfOrderSequenceNumber,
    Retriable,
    TransactionAborted,
    UnknownProducerId,
    error_for,
)

logger = logging.getLogger("ottla.producer")

LAST_EPOCH: Final = 32_767
EXPLAIN_TIMEOUT_MS: Final = 3_000
TRANSACTION_VERSION_2: Final = 2

OVERTAKEN: Final = (
    "offsets of group {!r} were given twice in one transaction, and the answer to the first ones was lost: these might "
    "arrive last. abort_transaction(), then try again. Offsets that are given once, at the end, are never in doubt"
)

_S = TransactionState

_MAKES_KNOWN: Final = frozenset({RequestKind.ADD_PARTITIONS, RequestKind.ADD_OFFSETS, RequestKind.COMMIT_OFFSETS})
"""After these the coordinator may know of the transaction, whatever is answered."""

_OF_A_TRANSACTION: Final = _MAKES_KNOWN | {RequestKind.END}

_GRAVITY: Final = {ruling: number for number, ruling in enumerate(Verdict)}


class TransactionManager:
    """A producer's identity, its sequences, and its transactions if it has a transactional id.

    Args:
        backoff: between attempts.
        max_in_flight: how many batches of a partition may be under way, at most 5.
        transactional_id: None: the producer is idempotent, and has no transactions.
        transaction_timeout_ms: after this the coordinator aborts a transaction that is not ended.
    """

    def __init__(
        self,
        backoff: Backoff,
        *,
        max_in_flight: int = 5,
        transactional_id: str | None = None,
        transaction_timeout_ms: int = 60_000,
    ) -> None:
        self.state = TransactionState.UNINITIALIZED
        self.transactional_id = transactional_id
        self.producer: ProducerIdAndEpoch = NO_PRODUCER
        self.error: OttlaError | None = None
        self.sequences = ProducerSequences(max_in_flight)
        self.is_version_2 = False
        self._calls = Calls(transactional_id)
        self._line = CoordinatorLine(backoff)
        self._transaction_timeout_ms = transaction_timeout_ms
        self._features = (-1, 0)  # the newest that was seen: its epoch, and the level of transaction.version
        self._features_adopted = -1
        self._expected = NO_PRODUCER  # whose next epoch InitProducerId asks for
        self._next_epoch_wanted = False
        self._doubted: OttlaError | None = None
        self._doubted_ms = 0
        self._forget_transaction()

    def _forget_transaction(self) -> None:
        """There is no transaction, or a new one."""
        self._began_ms: int | None = None  # before anything of it can be known to a broker
        self._may_be_known = False  # whether the coordinator may have heard of it, so that it has to be ended there
        self._ended_there = False  # the coordinator has ended it by itself
        self._partitions: set[Hashable] = set()  # v1: those that the coordinator knows
        self._partitions_to_add: dict[Hashable, None] = {}
        self._offsets: list[OffsetsToSend] = []
        self._offsets_in_doubt: dict[tuple[str, TopicPartition], OffsetsToSend] = {}  # sent, and the answer was lost

    # --- what the application calls

    @property
    def is_ending(self) -> bool:
        """Whether a commit or an abort is under way: nothing lingers, and nothing new is taken."""
        return self.state is _S.COMMITTING or self.state is _S.ABORTING

    @property
    def drops_unsent(self) -> bool:
        """Whether batches that have not been sent will not be."""
        return self.state is _S.ABORTABLE_ERROR or self.state is _S.ABORTING

    def init(self) -> Operation:
        """Ask the coordinator for a producer id and epoch; what an earlier instance left open is aborted there.

        Raises:
            IllegalTransactionState: it was called before.
        """
        joined = self._check("init_transactions")
        if joined is not None:
            return joined
        self._move(_S.INITIALIZING)
        self._expected = NO_PRODUCER
        return self._calls.begin("init_transactions")

    def begin(self) -> Operation | None:
        """A transaction begins, without a request; or the operation to wait for before it can.

        Raises:
            IllegalTransactionState: one is open, or the producer has no id yet.
        """
        self._check("begin_transaction")
        if self.state is _S.INITIALIZING:
            return self._calls.pending or self._calls.begin("begin_transaction")
        self._move(_S.IN_TRANSACTION)
        self._forget_transaction()
        return None

    def send_offsets(
        self,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        group: ConsumerGroupMetadata,
        now_ms: int,
    ) -> Operation:
        """Make a group's offsets part of the transaction.

        Raises:
            NotInTransaction: no transaction is open.
            OttlaError: the transaction has failed: with what it failed.
        """
        self._check("send_offsets_to_transaction")
        operation = Operation("send_offsets_to_transaction")
        if not offsets:
            operation.is_done = True
            return operation
        self._may_begin(now_ms)
        self._offsets.append(OffsetsToSend(group, dict(offsets), operation))
        return operation

    def commit(self) -> Operation:
        """Commit once everything is stored that belongs to the transaction.

        Raises:
            NotInTransaction: no transaction is open.
            OttlaError: the transaction has failed: with what it failed. Only an abort is possible then.
        """
        joined = self._check("commit_transaction")
        if joined is not None:
            return joined
        self._move(_S.COMMITTING)
        return self._calls.begin("commit_transaction")

    def abort(self) -> Operation:
        """Abort once nothing of the transaction is on the wire any more.

        Raises:
            NotInTransaction: no transaction is open.
            OttlaError: the producer is of no more use.
        """
        joined = self._check("abort_transaction")
        if joined is not None:
            return joined
        failure = self.error
        self._move(_S.ABORTING)
        self.error = None
        self._partitions_to_add.clear()
        self._drop_offsets(TransactionAborted("the transaction was aborted") if failure is None else failure)
        return self._calls.begin("abort_transaction")

    def settle(self, *, unfinished: bool) -> None:
        """End a transaction of which no broker can know at once, without a request."""
        if self.is_ending and not unfinished and self._line.asked is None and self._needs_no_end():
            self._ended()

    def abort_at_close(self) -> Operation | None:
        """The producer is to be closed: abort what is open. Returns what to wait for, if there is anything."""
        if self.state in (_S.IN_TRANSACTION, _S.ABORTABLE_ERROR):
            self._calls.abandon()
            return self.abort()
        return self._calls.pending if self.is_ending else None

    def check_send(self) -> OttlaError | None:
        """None: a record may be sent. Otherwise what its future fails with.

        Raises:
            NotInTransaction: no transaction is open.
        """
        if self.state is _S.IN_TRANSACTION or self.transactional_id is None:
            return self.error
        if self.state is _S.FATAL:
            return self.error
        if self.state is _S.ABORTABLE_ERROR:
            refusal = TransactionAborted(f"not sent, because the transaction has failed already: {self.error}")
            refusal.__cause__ = self.error
            return refusal
        self._check("send")
        return None

    def _check(self, method: str) -> Operation | None:
        return self._calls.check(method, self.state, self.error)

    def take_finished(self) -> list[Operation]:
        """The operations that have ended since the last time: their callbacks are to be called, without the lock."""
        return self._calls.take_finished()

    def waits_for(self, unfinished_batches: int) -> str:
        """What an operation that does not end is waiting for, in words."""
        line = self._line
        if line.asked is not None:
            return f"the answer to {line.asked}"
        if unfinished_batches and (self.is_ending or self.state is _S.IN_TRANSACTION):
            return f"{unfinished_batches} batches to be acknowledged"
        if line.last_refusal is not None:
            return f"another attempt, after {type(line.last_refusal).__name__}: {line.last_refusal}"
        return "the I/O thread"

    # --- features

    def features_seen(self, epoch: int, transaction_version: int) -> None:
        """A broker said which features are finalized; taken over between transactions, if it is newer."""
        if epoch > self._features[0]:
            self._features = (epoch, transaction_version)

    def _adopt_features(self) -> bool:
        """Between transactions: says whether this was the change to version 2."""
        epoch, level = self._features
        if epoch <= self._features_adopted:
            return False
        self._features_adopted = epoch
        before = self.is_version_2
        self.is_version_2 = level >= TRANSACTION_VERSION_2
        return self.is_version_2 and not before

    @property
    def produce_versions(self) -> tuple[int, int]:
        """The lowest and highest version of Produce that may be used now."""
        if self.transactional_id is None:
            return PRODUCE_VERSIONS
        return PRODUCE_VERSIONS_V2 if self.is_version_2 else PRODUCE_VERSIONS_V1

    # --- requests

    def next_request(self, now_ms: int, *, unfinished: bool = False) -> TransactionRequest | None:
        """What has to be asked of a broker now, or None. Each request must be `answered` or `unanswered`.

        `unfinished` says whether any batch or record of the producer is not done, or still on the wire.
        """
        if self._line.asked is not None:
            return None
        if self._doubted is not None and now_ms - self._doubted_ms >= EXPLAIN_TIMEOUT_MS:
            self._explained(None, now_ms)
        self.settle(unfinished=unfinished)
        kind, coordinator = self._next(unfinished)
        if kind is None or now_ms < self._line.due_ms(kind):
            return None
        if kind is RequestKind.COMMIT_OFFSETS and self._may_be_overtaken(self._offsets[0]):
            self._fail_transaction(TransactionAborted(OVERTAKEN.format(self._offsets[0].group.group_id)))
            return None
        self._line.asked = self._build(kind, coordinator)
        if kind in _MAKES_KNOWN:
            self._may_be_known = True
        return self._line.asked

    def deadline_ms(self, *, unfinished: bool = False) -> int | None:
        """When `next_request` has something again, if it is waiting for that."""
        kind = None if self._line.asked is not None else self._next(unfinished)[0]
        if kind is None:
            return None
        retry_at_ms = self._line.due_ms(kind)
        return min(retry_at_ms, self._doubted_ms + EXPLAIN_TIMEOUT_MS) if self._doubted is not None else retry_at_ms

    def _next(self, unfinished: bool) -> tuple[RequestKind | None, Coordinator | None]:
        """What comes next, which is to look for the coordinator where that is not known."""
        kind = self._wanted(unfinished)
        if kind is None or self.transactional_id is None:
            return kind, None
        coordinator = (TRANSACTION, self.transactional_id)
        if kind is RequestKind.COMMIT_OFFSETS:
            coordinator = (GROUP, self._offsets[0].group.group_id)
        found = self._line.node_of(coordinator) is not None
        return (kind if found else RequestKind.FIND_COORDINATOR), coordinator

    def _wanted(self, unfinished: bool) -> RequestKind | None:
        if self._doubted is not None:
            return RequestKind.EXPLAIN
        if self.state is _S.INITIALIZING or (self.state is _S.UNINITIALIZED and self.transactional_id is None):
            return RequestKind.INIT_PRODUCER_ID
        if self.state is _S.IN_TRANSACTION or self.state is _S.COMMITTING:
            if self._partitions_to_add:
                return RequestKind.ADD_PARTITIONS
            if self._offsets:
                added = self.is_version_2 or self._offsets[0].added
                return RequestKind.COMMIT_OFFSETS if added else RequestKind.ADD_OFFSETS
        if self.is_ending and not unfinished:
            return RequestKind.END
        return None

    def _needs_no_end(self) -> bool:
        """Whether there is nothing to end, or nothing any more."""
        if self._offsets or self._partitions_to_add:
            return False
        return self._ended_there or not self._may_be_known

    def _build(self, kind: RequestKind, coordinator: Coordinator | None) -> TransactionRequest:
        timeout_ms = EXPLAIN_TIMEOUT_MS if self._doubted is not None else None
        if kind is RequestKind.FIND_COORDINATOR:
            return TransactionRequest(kind, coordinator=coordinator, timeout_ms=timeout_ms)
        node_id = None if coordinator is None else self._line.node_of(coordinator)
        versions = (VERSIONS_V2 if self.is_version_2 else VERSIONS_V1).get(kind, ANY_VERSION)
        message, subject = self._message(kind)
        return TransactionRequest(kind, node_id, message, versions, coordinator, subject, timeout_ms)

    def _message(self, kind: RequestKind) -> tuple[Any, Any]:
        """The request itself, and what it is about."""
        name, producer = cast(str, self.transactional_id), self.producer
        if kind is RequestKind.INIT_PRODUCER_ID:
            if self.state is _S.UNINITIALIZED:
                self._move(_S.INITIALIZING)
            expected = self._expected
            return requests.init_producer_id(self.transactional_id, self._transaction_timeout_ms, expected), expected
        if kind is RequestKind.EXPLAIN:
            return requests.explain(name), None
        if kind is RequestKind.ADD_PARTITIONS:
            partitions = cast(list[TopicPartition], list(self._partitions_to_add))
            return requests.add_partitions(name, producer, partitions), partitions
        if kind is RequestKind.END:
            committed = self.state is _S.COMMITTING
            return requests.end(name, producer, committed=committed), committed
        offsets = self._offsets[0]
        if kind is RequestKind.ADD_OFFSETS:
            return requests.add_offsets(name, producer, offsets.group.group_id), offsets
        return requests.commit_offsets(name, producer, offsets.group, offsets.pending), offsets

    # --- answers

    def answered(self, request: TransactionRequest, answer: Any, now_ms: int) -> None:
        """The answer to a request is there; of FIND_COORDINATOR it is the coordinator's node id."""
        assert request is self._line.asked, "only one request is under way"
        kind = request.kind
        if kind in (RequestKind.ADD_PARTITIONS, RequestKind.COMMIT_OFFSETS):
            self._partitions_answered(request, requests.partition_errors(kind, answer), now_ms)
            return
        if kind is RequestKind.FIND_COORDINATOR:
            assert request.coordinator is not None
            self._line.found(request.coordinator, answer)
        elif kind is RequestKind.EXPLAIN:
            (described,) = answer.transaction_states
            error = error_for(described.error_code)
            if error is not None:
                self.unanswered(request, error, now_ms)
                return
            self._explained(described, now_ms)
        else:
            error = error_for(answer.error_code)
            if error is not None:
                self.unanswered(request, error, now_ms)
                return
            self._granted(request, answer, now_ms)
        self._line.answered(request)

    def _granted(self, request: TransactionRequest, answer: Any, now_ms: int) -> None:
        if request.kind is RequestKind.INIT_PRODUCER_ID:
            self._has_identity(ProducerIdAndEpoch(answer.producer_id, answer.producer_epoch))
        elif request.kind is RequestKind.ADD_OFFSETS:
            request.subject.added = True
        elif request.kind is RequestKind.END and self.is_ending:
            if answer.producer_id >= 0:
                self.producer = ProducerIdAndEpoch(answer.producer_id, answer.producer_epoch)
                self.sequences.start_over()
            self._ended()

    def _has_identity(self, producer: ProducerIdAndEpoch) -> None:
        if self.state is not _S.INITIALIZING:
            return  # FATAL meanwhile
        self.producer = producer
        self._next_epoch_wanted = False
        if self.transactional_id is not None:
            self.sequences.start_over()
            self._adopt_features()
        self._move(_S.READY)
        self._calls.finish(self._calls.pending)

    def _partitions_answered(
        self, request: TransactionRequest, errors: dict[TopicPartition, KafkaError | None], now_ms: int
    ) -> None:
        """What became of each partition: those that are well are done with, the worst error decides."""
        adds = request.kind is RequestKind.ADD_PARTITIONS
        for partition, error in errors.items():
            if error is None and adds:
                self._partitions.add(partition)
                self._partitions_to_add.pop(partition, None)
            elif error is None:
                request.subject.pending.pop(partition, None)
        failed = {partition: error for partition, error in errors.items() if error is not None}
        if failed:
            partition, error = max(failed.items(), key=lambda item: _GRAVITY[verdict(request.kind, item[1])])
            self.unanswered(request, type(error)(f"{partition}: {error}"), now_ms)
            return
        self._line.answered(request)
        if not adds and request.subject in self._offsets:
            self._offsets.remove(request.subject)
            self._calls.finish(request.subject.operation)

    def unanswered(self, request: TransactionRequest, error: OttlaError, now_ms: int) -> None:
        """A request was refused, or has no answer."""
        assert request is self._line.asked, "only one request is under way"
        self._line.asked = None
        if self.state is _S.FATAL:
            return
        kind, ruling = request.kind, verdict(request.kind, error)
        if kind in _OF_A_TRANSACTION and isinstance(error, Disconnected | NoAnswer):
            self._may_arrive_late(request)
        is_open = self.state is _S.IN_TRANSACTION or self.state is _S.COMMITTING
        if ruling is Verdict.LOOK_UP or ruling is Verdict.RETRY:
            self._line.again(request, error, now_ms, elsewhere=ruling is Verdict.LOOK_UP)
            if self.transactional_id is None:
                self._move(_S.UNINITIALIZED)
        elif self._doubted is not None:
            self._explained(None, now_ms)  # nobody tells
        elif kind is RequestKind.END and self._was_nothing_to_abort(request, error):
            self._ended()
        elif kind in _MAKES_KNOWN and not is_open:
            pass  # the transaction is being aborted anyway
        elif ruling is Verdict.DOUBT and self.transactional_id is not None:
            self.doubt(error, now_ms)
        elif ruling is Verdict.REFUSE and self.transactional_id is not None and self._expected == NO_PRODUCER:
            self._move(_S.UNINITIALIZED)
            self._calls.finish(self._calls.pending, self._named(request, error))
        elif is_open and (ruling is Verdict.ABORT or ruling is Verdict.BUMP):
            self._next_epoch_wanted |= ruling is Verdict.BUMP and not self.is_version_2
            self._fail_transaction(self._named(request, error))
        else:
            self.fail(self._named(request, error))

    def _may_arrive_late(self, request: TransactionRequest) -> None:
        """Its connection is gone; what was written to that may still be read, after what is asked instead of it."""
        if not self.is_version_2:
            self._next_epoch_wanted = True
        if request.kind is RequestKind.COMMIT_OFFSETS:
            group_id = request.subject.group.group_id
            self._offsets_in_doubt |= {(group_id, partition): request.subject for partition in request.subject.pending}

    def _may_be_overtaken(self, offsets: OffsetsToSend) -> bool:
        """Whether offsets that the application gave before these may arrive after them, and be what is committed."""
        in_doubt, group_id = self._offsets_in_doubt, offsets.group.group_id
        return any(in_doubt.get((group_id, partition), offsets) is not offsets for partition in offsets.pending)

    def _was_nothing_to_abort(self, request: TransactionRequest, error: OttlaError) -> bool:
        """Version 1: the coordinator may not have heard of a transaction whose first request was not answered."""
        return isinstance(error, InvalidTxnState) and request.subject is False and not self._partitions

    def _named(self, request: TransactionRequest, error: OttlaError) -> OttlaError:
        """The same error, saying what was asked for, and for whom."""
        where = f"{REQUEST_NAMES[request.kind]} of transactional id {self.transactional_id!r}"
        if self.transactional_id is None:
            return error
        if isinstance(error, MEMBER_IS_GONE):
            return CommitFailed.because_of(error)
        if isinstance(error, InvalidTransactionTimeout):
            return InvalidTransactionTimeout(
                f"{where}: transaction_timeout_ms is {self._transaction_timeout_ms}, above what the broker allows "
                "(transaction.max.timeout.ms)"
            )
        return type(error)(f"{where}: {error}")

    # --- the end of a transaction, good or bad

    def _ended(self) -> None:
        """The transaction is committed or aborted, or there was none."""
        committed = self.state is _S.COMMITTING
        ended_there = self._ended_there
        self._forget_transaction()
        self.error = None
        upgraded = self._adopt_features()
        if self._next_epoch_wanted or upgraded:
            if not ended_there:
                self._expected = self.producer
            self._move(_S.INITIALIZING)
        else:
            self._move(_S.READY)
        if committed or self.state is _S.READY:
            self._calls.finish(self._calls.pending)

    def send_failed(self, error: BaseException) -> None:
        """A record of the transaction could not be sent: there is nothing left but to abort it."""
        if produce_verdict(error) is Verdict.FATAL and isinstance(error, OttlaError):
            self.fail(error)
        elif self.state in (_S.IN_TRANSACTION, _S.COMMITTING):
            self._fail_transaction(error if isinstance(error, OttlaError) else TransactionAborted(repr(error)))

    def _fail_transaction(self, error: OttlaError) -> None:
        operation = self._calls.pending if self.state is _S.COMMITTING else None
        self._move(_S.ABORTABLE_ERROR)
        self.error = error
        self._partitions_to_add.clear()
        self._drop_offsets(error)
        self._calls.finish(operation, error)

    def _drop_offsets(self, error: OttlaError) -> None:
        dropped, self._offsets = self._offsets, []
        for offsets in dropped:
            self._calls.finish(offsets.operation, error)

    def fail(self, error: OttlaError) -> None:
        """Nothing can be sent any more."""
        if self.state is _S.FATAL:
            return
        self._move(_S.FATAL)
        self.error = error
        self._doubted = None
        self._partitions_to_add.clear()
        self._drop_offsets(error)
        self._calls.finish(self._calls.pending, error)

    # --- epochs that are over

    @property
    def asks_why(self) -> bool:
        """Whether the coordinator is asked why the epoch is over."""
        return self._doubted is not None

    def doubt(self, error: OttlaError, now_ms: int) -> bool:
        """The epoch is said to be over. Says whether the coordinator is asked why, which `asks_why` ends with."""
        if self.transactional_id is None or self.state is _S.FATAL or self._ended_there:
            return False
        if self._doubted is None:
            self._doubted = error
            self._doubted_ms = now_ms
        return True

    def _explained(self, described: Any, now_ms: int) -> None:
        assert self._doubted is not None
        refusal, self._doubted = self._doubted, None
        end = explain_epoch_end(
            cast(str, self.transactional_id),
            self.producer,
            refusal,
            described,
            open_ms=None if self._began_ms is None else now_ms - self._began_ms,
            timeout_ms=self._transaction_timeout_ms,
        )
        logger.warning("producer id %d, epoch %d: %s", *self.producer, end.error)
        asked_in_vain = self.state is _S.INITIALIZING and end.expected == self._expected
        # A partition that knows a newer epoch than the coordinator is put right by an abort; nothing else is.
        beyond_help = end.fate is EpochFate.UNEXPLAINED and not isinstance(refusal, InvalidProducerEpoch)
        if end.fate is EpochFate.FENCED or asked_in_vain or beyond_help:
            self.fail(end.error)
            return
        if end.fate is EpochFate.ENDED:
            self._ended_there = True
            self._next_epoch_wanted = True
            self._expected = end.expected
        else:
            self._next_epoch_wanted |= not self.is_version_2
        if self.state in (_S.IN_TRANSACTION, _S.COMMITTING):
            self._fail_transaction(end.error)

    # --- batches

    def uses(self, partition: Hashable, now_ms: int) -> bool:
        """A batch is begun for a partition. Says whether a request has to leave for that, without lingering."""
        if self.state is not _S.IN_TRANSACTION and self.state is not _S.COMMITTING:
            return False
        self._may_begin(now_ms)
        if self.is_version_2 or partition in self._partitions or partition in self._partitions_to_add:
            return False
        self._partitions_to_add[partition] = None
        return True

    def _may_begin(self, now_ms: int) -> None:
        if self._began_ms is None:
            self._began_ms = now_ms

    def may_send(self, partition: Hashable, batch: SequencedBatch) -> bool:
        """Whether the batch at the head of a partition's queue may leave now."""
        if self.transactional_id is None:
            allowed = self.state is _S.READY
        else:
            allowed = (self.state is _S.IN_TRANSACTION or self.state is _S.COMMITTING) and (
                self.is_version_2 or partition in self._partitions
            )
        return allowed and self.sequences.may_send(partition, batch, self.producer)

    def number(self, partition: Hashable, batch: SequencedBatch) -> None:
        """A batch leaves for the first time."""
        self._may_be_known = True
        self.sequences.number(partition, batch, self.producer)

    def acked(self, partition: Hashable, batch: SequencedBatch, base_offset: int) -> None:
        """A batch is stored."""
        self.sequences.acked(partition, batch, base_offset)

    def given_up(self, partition: Hashable, batch: SequencedBatch) -> None:
        """A batch that was sent is given up: whether its numbers are used is not known."""
        self.sequences.given_up(partition, batch)
        if self.transactional_id is not None and not self.is_version_2:
            self._next_epoch_wanted = True

    def refused(self, partition: Hashable, batch: SequencedBatch, error: KafkaError, log_start_offset: int) -> bool:
        """Whether a batch that a broker refused should be sent again (time and retries permitting)."""
        if isinstance(error, OutOfOrderSequenceNumber):
            missing = self._is_gap_before(partition, batch)
            if missing and self.transactional_id is None:
                self._restart(partition, batch, OutOfOrderSequenceNumber())
            # Where nothing is missing, a batch before it is still to be stored, and then this one fits.
            return self.transactional_id is None or not missing
        if isinstance(error, UnknownProducerId):
            # Only brokers before 2.4 say so: they forgot a producer with the last of its records. An unknown log
            # start (-1) is known after the next attempt.
            state = self.sequences.of(partition)
            if self.transactional_id is not None:
                return log_start_offset == -1
            if log_start_offset != -1 and state is not None and not state.restart_requested:
                self._restart(partition, batch, error)
            return True
        return isinstance(error, Retriable)

    def _is_gap_before(self, partition: Hashable, batch: SequencedBatch) -> bool:
        state = self.sequences.of(partition)
        if state is None or state.restart_requested:
            return False
        return state.is_next(batch.base_sequence) or batch.base_sequence == state.unresolved_after

    def _restart(self, partition: Hashable, batch: SequencedBatch, error: KafkaError) -> None:
        logger.warning(
            "%s: %s for the batch that begins with sequence %d of producer %d, epoch %d: numbering starts anew",
            partition,
            type(error).__name__,
            batch.base_sequence,
            *batch.producer,
        )
        self.sequences.request_restart(partition, batch)

    def resolve(self) -> None:
        """Without transactional id: settle what is in doubt, and restart the partitions for which that is due.

        With one there is nothing to settle: what is in doubt has made the transaction fail, and the next one has its
        own epoch.
        """
        if self.state is not _S.READY or self.transactional_id is not None:
            return
        due = self.sequences.due_for_restart()
        if not due:
            return
        if any(self._numbered_with(partition) == self.producer for partition in due):
            if self.producer.epoch >= LAST_EPOCH:
                self.producer = NO_PRODUCER
                self._move(_S.UNINITIALIZED)
                return
            self.producer = ProducerIdAndEpoch(self.producer.producer_id, self.producer.epoch + 1)
        for partition in due:
            self.sequences.restart(partition, self.producer)

    def _numbered_with(self, partition: Hashable) -> ProducerIdAndEpoch:
        state = self.sequences.of(partition)
        assert state is not None
        return state.producer

    def _move(self, state: TransactionState) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state
