"""A transaction coordinator, a group's offsets and partitions as Kafka keeps them, for a producer in virtual time.

It keeps the rules that clients rest on, of both versions of transactions: epochs and who may have them, CONCURRENT_
TRANSACTIONS while markers are being written, the table of EndTxn (version 2), partitions that have to be added before
they are written to (version 1) or are added by the write (version 2). So what a producer gets wrong shows in what a
read_committed reader sees: `committed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ottla.client.producer.producer_batch import ProducerBatch
from ottla.client.producer.transaction_operation import Operation
from ottla.client.producer.transaction_requests import TransactionRequest
from ottla.client.producer.transaction_tables import RequestKind
from ottla.client.topic_partition import ConsumerGroupMetadata, OffsetAndMetadata, TopicPartition
from ottla.errors import Disconnected, OttlaError
from ottla_wire.messages.add_offsets_to_txn import AddOffsetsToTxnResponse
from ottla_wire.messages.add_partitions_to_txn import (
    AddPartitionsToTxnPartitionResult,
    AddPartitionsToTxnResponse,
    AddPartitionsToTxnTopicResult,
)
from ottla_wire.messages.describe_transactions import DescribeTransactionsResponse, EpochEnd, TransactionState
from ottla_wire.messages.end_txn import EndTxnResponse
from ottla_wire.messages.init_producer_id import InitProducerIdResponse
from ottla_wire.messages.txn_offset_commit import (
    TxnOffsetCommitResponse,
    TxnOffsetCommitResponsePartition,
    TxnOffsetCommitResponseTopic,
)
from ottla_wire.records import SendFuture
from support.produce_model import TOPIC, PartitionModel, ProducerWorld

OUT_OF_ORDER = 45
NONE, CONCURRENT, INVALID_EPOCH, INVALID_STATE, WRONG_ID, FENCED = 0, 51, 47, 48, 49, 90
GROUP = ConsumerGroupMetadata("billing", 3, "member-1")


class TransactionalPartition(PartitionModel):
    """A partition's log, and which of its records readers of committed ones see."""

    def __init__(self, leader: int, coordinator: Coordinator, index: int) -> None:
        super().__init__(leader)
        self.coordinator = coordinator
        self.index = index
        self.open: dict[int, list[int]] = {}
        self.outcomes: dict[int, bool] = {}

    def append(self, batch: Any) -> tuple[int, int]:
        assert batch.is_transactional, "every batch of this producer belongs to a transaction"
        stored_before = len(self.log)
        known = self.producers.get(batch.producer_id)
        if known is not None and batch.producer_epoch < known.epoch:
            return INVALID_EPOCH, -1
        takes_part = batch.producer_id in self.open and known is not None and known.epoch == batch.producer_epoch
        if not takes_part and not self._is_duplicate(known, batch):
            refusal = self.coordinator.verify(self.index, batch.producer_id, batch.producer_epoch)
            if refusal:
                return refusal, -1
            if known is None and self.coordinator.produce_version == 2 and batch.base_sequence != 0:
                return OUT_OF_ORDER, -1
        error, offset = super().append(batch)
        if len(self.log) > stored_before:
            self.open.setdefault(batch.producer_id, []).extend(range(stored_before, len(self.log)))
        return error, offset

    @staticmethod
    def _is_duplicate(known: Any, batch: Any) -> bool:
        if known is None or known.epoch != batch.producer_epoch:
            return False
        return any((first, last) == (batch.base_sequence, batch.last_sequence) for first, last, _ in known.window)

    def write_marker(self, producer_id: int, epoch: int, committed: bool) -> None:
        """The end of a transaction; one with the same epoch (version 1) leaves the sequences as they are."""
        for offset in self.open.pop(producer_id, ()):
            self.outcomes[offset] = committed
        known = self.producers.get(producer_id)
        if known is not None and known.epoch != epoch:
            known.epoch = epoch
            known.last_sequence = -1
            known.window.clear()

    @property
    def committed(self) -> list[bytes]:
        """What a read_committed reader sees, up to the last stable offset."""
        stable = min((offsets[0] for offsets in self.open.values()), default=len(self.log))
        return [value for offset, value in enumerate(self.log[:stable]) if self.outcomes.get(offset)]


@dataclass
class Coordinator:
    """The coordinator of one transactional id, and of one group."""

    produce_version: int = 2
    state: str = "none"
    producer_id: int = 7000
    epoch: int = -1
    last_epoch: int = -1
    members: set[Any] = field(default_factory=set)
    pending_offsets: dict[Any, int] = field(default_factory=dict)
    committed_offsets: dict[Any, int] = field(default_factory=dict)
    partitions: list[TransactionalPartition] = field(default_factory=list)
    markers: tuple[int, int, bool] | None = None
    epoch_end: EpochEnd = field(default_factory=EpochEnd)
    writes_markers_at_once: bool = True
    ended: list[tuple[int, bool]] = field(default_factory=list)

    # --- requests of the producer

    def init(self, request: Any) -> InitProducerIdResponse:
        if self.markers is not None:
            return InitProducerIdResponse(error_code=CONCURRENT)
        expected = request.producer_epoch
        if request.producer_id >= 0 and (request.producer_id, expected) == (self.producer_id, self.last_epoch):
            return InitProducerIdResponse(producer_id=self.producer_id, producer_epoch=self.epoch)
        if request.producer_id >= 0 and (request.producer_id, expected) != (self.producer_id, self.epoch):
            return InitProducerIdResponse(error_code=FENCED)
        if self.state == "Ongoing":
            self.abort_over_its_head()
            return InitProducerIdResponse(error_code=CONCURRENT)
        self.last_epoch = self.epoch if request.producer_id >= 0 else -1
        self.epoch += 1
        self.state = "Empty"
        return InitProducerIdResponse(producer_id=self.producer_id, producer_epoch=self.epoch)

    def add(self, members: list[Any], producer_id: int, epoch: int) -> int:
        if self.markers is not None:
            return CONCURRENT
        if producer_id != self.producer_id:
            return WRONG_ID
        if epoch != self.epoch:
            return FENCED
        self.state = "Ongoing"
        self.members.update(members)
        return NONE

    def verify(self, index: int, producer_id: int, epoch: int) -> int:
        """A partition asks before the first batch of a transaction."""
        if self.produce_version == 2:
            refusal = self.add([index], producer_id, epoch)
            return INVALID_EPOCH if refusal == FENCED else refusal
        known = index in self.members and (producer_id, epoch) == (self.producer_id, self.epoch)
        return NONE if known and self.state == "Ongoing" else INVALID_STATE

    def commit_offsets(self, request: Any, version: int) -> int:
        if version == 2:
            refusal = self.add(["offsets"], request.producer_id, request.producer_epoch)
            if refusal:
                return refusal
        elif "offsets" not in self.members or request.producer_epoch != self.epoch:
            return FENCED if request.producer_epoch != self.epoch else INVALID_STATE
        for topic in request.topics:
            for partition in topic.partitions:
                self.pending_offsets[topic.name, partition.partition_index] = partition.committed_offset
        return NONE

    def end(self, request: Any, version: int) -> EndTxnResponse:
        if self.markers is not None:
            return EndTxnResponse(error_code=CONCURRENT)
        if request.producer_id != self.producer_id:
            return EndTxnResponse(error_code=WRONG_ID)
        same_end = {True: "CompleteCommit", False: "CompleteAbort"}[request.committed]
        return self._end_2(request, same_end) if version == 2 else self._end_1(request, same_end)

    def _end_1(self, request: Any, same_end: str) -> EndTxnResponse:
        if request.producer_epoch != self.epoch:
            return EndTxnResponse(error_code=FENCED)
        if self.state == "Ongoing":
            self._prepare(request.committed, bumps=False)
        elif self.state != same_end:
            return EndTxnResponse(error_code=INVALID_STATE)
        return EndTxnResponse()

    def _end_2(self, request: Any, same_end: str) -> EndTxnResponse:
        retry, current = request.producer_epoch == self.epoch - 1, request.producer_epoch == self.epoch
        if self.state.startswith("Complete") and retry:
            error = NONE if self.state == same_end else INVALID_STATE
        elif not current:
            error = FENCED
        elif self.state == "Ongoing" or not request.committed:
            self._prepare(request.committed, bumps=True)
            error = NONE
        else:
            error = INVALID_STATE
        if error:
            return EndTxnResponse(error_code=error)
        return EndTxnResponse(producer_id=self.producer_id, producer_epoch=self.epoch)

    def describe(self) -> DescribeTransactionsResponse:
        described = TransactionState(
            transaction_state=self.state, producer_id=self.producer_id, producer_epoch=self.epoch,
            epoch_end=self.epoch_end,
        )  # fmt: skip
        return DescribeTransactionsResponse(transaction_states=[described])

    # --- what happens by itself

    def _prepare(self, committed: bool, *, bumps: bool) -> None:
        if bumps:
            self.last_epoch, self.epoch = self.epoch, self.epoch + 1
        self.markers = (self.producer_id, self.epoch, committed)
        self.state = "CompleteCommit" if committed else "CompleteAbort"
        if self.writes_markers_at_once:
            self.write_markers()

    def write_markers(self) -> None:
        if self.markers is None:
            return
        producer_id, epoch, committed = self.markers
        for index in self.members:
            if index == "offsets":
                if committed:
                    self.committed_offsets.update(self.pending_offsets)
                self.pending_offsets.clear()
            else:
                self.partitions[index].write_marker(producer_id, epoch, committed)
        self.members.clear()
        self.ended.append((epoch, committed))
        self.markers = None

    def abort_over_its_head(self) -> None:
        """A time-out, or another instance: the epoch grows, nobody has the new one."""
        self.epoch += 1
        self.last_epoch = -1
        self._prepare(committed=False, bumps=False)

    def time_out(self, *, tells: bool = False) -> None:
        ended = self.epoch
        self.abort_over_its_head()
        if tells:
            self.epoch_end = EpochEnd(reason=1, producer_epoch=ended, at_ms=1)

    def another_instance_takes_over(self, *, tells: bool = False) -> None:
        if self.state == "Ongoing":
            self.abort_over_its_head()
            self.write_markers()
        ended = self.epoch
        self.epoch += 1
        self.last_epoch = -1
        self.state = "Empty"
        if tells:
            self.epoch_end = EpochEnd(
                reason=2, client_id="other", client_host="10.0.0.7", at_ms=1_700_000_000_000, producer_epoch=ended
            )


class TransactionWorld(ProducerWorld):
    """A transactional producer and its brokers; `init`, `begin` and so on are the application's calls."""

    def __init__(self, partitions: int = 1, version: int = 2, seed: int = 0, **settings: Any) -> None:
        super().__init__(partitions, nodes=1, seed=seed, transactional_id="tx", **settings)
        self.coordinator = Coordinator()
        self.coordinator.partitions = [
            TransactionalPartition(0, self.coordinator, index) for index in range(partitions)
        ]
        self.partitions = list(self.coordinator.partitions)
        self.finalize(version, epoch=1)
        self.sent_kinds: list[RequestKind] = []
        self.on_their_way: list[TransactionRequest] = []
        self.produce_versions: dict[int, int] = {}
        self.bring_metadata()

    @property
    def machine(self) -> Any:
        assert self.transactions is not None
        return self.transactions

    def finalize(self, version: int, epoch: int) -> None:
        """The cluster says which transaction.version it has."""
        self.sender.features_seen(epoch, version)

    # --- the application

    def init(self) -> Operation:
        return self.called(self.machine.init())

    def begin(self) -> None:
        operation = self.machine.begin()
        if operation is not None:
            self.finish(operation)
            operation.acknowledged = True
            assert self.machine.begin() is None

    def commit(self) -> Operation:
        return self.called(self.machine.commit())

    def abort(self) -> Operation:
        return self.called(self.machine.abort())

    def send_offsets(self, offset: int, group: ConsumerGroupMetadata = GROUP, partition: int = 0) -> Operation:
        offsets = {TopicPartition("input", partition): OffsetAndMetadata(offset)}
        operation: Operation = self.machine.send_offsets(offsets, group, self.now_ms)
        self.run()
        return operation

    def called(self, operation: Operation) -> Operation:
        """What the faces do once the machine has been told."""
        if self.machine.is_ending:
            self.accumulator.end_batches()
            self.machine.settle(unfinished=self.accumulator.has_unfinished)
        self.run()
        return operation

    def send(self, partition: int | None = 0, value: bytes | None = None, key: bytes | None = None) -> SendFuture:
        refusal = self.machine.check_send()
        assert refusal is None, refusal
        return super().send(partition, value, key)

    def finish(self, operation: Operation, error: type[BaseException] | None = None) -> OttlaError | None:
        """All goes on until an operation has ended, as it should."""
        for _ in range(400):
            if operation.is_done:
                break
            self.step()
        assert operation.is_done, f"{operation} never ends: {self.machine.waits_for(len(self.accumulator.incomplete))}"
        operation.acknowledged = True
        assert (operation.error is None) == (error is None), operation.error
        assert error is None or isinstance(operation.error, error), repr(operation.error)
        return operation.error

    def started(self) -> TransactionWorld:
        """Initialised, in its first transaction."""
        self.finish(self.init())
        self.begin()
        return self

    def step(self) -> None:
        """Everything that is under way comes to its end; some time passes."""
        self.tick()
        while self.asked:
            self.answer()
        self.tick(0)

    def tick(self, elapsed_ms: int = 30) -> None:
        """The same for all but the request to a coordinator."""
        self.run(elapsed_ms=elapsed_ms)
        self.coordinator.write_markers()
        while self.work(0):
            pass
        while self.deliver(0):
            pass

    # --- the coordinator's connection

    def ask(self, request: TransactionRequest) -> None:
        assert not self.asked, "one request at a time"
        if request.kind is RequestKind.END:
            assert not any(self.in_flight.values()), "EndTxn was sent with a Produce request in flight"
        self.sent_kinds.append(request.kind)
        super().ask(request)

    def answer(self, error_code: int = 0, *, lost: bool = False, works: bool = True, arrives: bool = False) -> None:
        """The request under way is worked on and answered; or refused; or lost, before or after that.

        One that is lost and `arrives` does so when `late_request_arrives` says so, on a connection that is gone.
        """
        request = self.asked.popleft()
        if lost:
            if arrives:
                self.on_their_way.append(request)
            elif works:
                self._worked(request)
            self.sender.request_answered(request, None, Disconnected("the connection broke"), self.now_ms)
        else:
            answer = self._refused(request, error_code) if error_code else self._worked(request)
            self.sender.request_answered(request, answer, None, self.now_ms)
        self.run()

    def late_request_arrives(self) -> None:
        """The oldest that was on its way is worked on; nobody is there to be answered."""
        self._worked(self.on_their_way.pop(0))

    def produce(self, attempt: Any) -> None:
        assert attempt.transactional_id == "tx"
        super().produce(attempt)
        self.produce_versions[id(self.in_flight[0][-1].request)] = 2 if attempt.versions[0] >= 12 else 1

    def _handled(self, node: int, request: Any) -> Any:
        self.coordinator.produce_version = self.produce_versions[id(request)]
        return super()._handled(node, request)

    def _worked(self, request: TransactionRequest) -> Any:
        coordinator, message = self.coordinator, request.message
        version = 2 if request.versions[0] >= 5 else 1
        if request.kind is RequestKind.FIND_COORDINATOR:
            return 0
        if request.kind is RequestKind.INIT_PRODUCER_ID:
            return coordinator.init(message)
        if request.kind is RequestKind.END:
            return coordinator.end(message, version)
        if request.kind is RequestKind.EXPLAIN:
            return coordinator.describe()
        if request.kind is RequestKind.ADD_OFFSETS:
            return AddOffsetsToTxnResponse(error_code=coordinator.add(["offsets"], *_identity(message)))
        if request.kind is RequestKind.ADD_PARTITIONS:
            indexes = [index for topic in message.v3_and_below_topics for index in topic.partitions]
            return _partition_results(indexes, coordinator.add(indexes, *_identity(message)))
        return _offset_results(message, coordinator.commit_offsets(message, version))

    def _refused(self, request: TransactionRequest, error_code: int) -> Any:
        if request.kind is RequestKind.ADD_PARTITIONS:
            message: Any = request.message
            return _partition_results(
                [index for topic in message.v3_and_below_topics for index in topic.partitions], error_code
            )
        if request.kind is RequestKind.COMMIT_OFFSETS:
            return _offset_results(request.message, error_code)
        classes: Mapping[RequestKind, Any] = {
            RequestKind.INIT_PRODUCER_ID: InitProducerIdResponse,
            RequestKind.END: EndTxnResponse,
            RequestKind.ADD_OFFSETS: AddOffsetsToTxnResponse,
        }
        return classes[request.kind](error_code=error_code)

    # --- what readers see

    def committed(self, partition: int = 0) -> list[bytes]:
        model = self.partitions[partition]
        assert isinstance(model, TransactionalPartition)
        return model.committed

    @property
    def batches(self) -> list[ProducerBatch]:
        return list(self.accumulator.incomplete)


def _identity(message: Any) -> tuple[int, int]:
    if hasattr(message, "v3_and_below_producer_id") and not hasattr(message, "group_id"):
        return message.v3_and_below_producer_id, message.v3_and_below_producer_epoch
    return message.producer_id, message.producer_epoch


def _partition_results(indexes: list[int], error_code: int) -> AddPartitionsToTxnResponse:
    results = [AddPartitionsToTxnPartitionResult(partition_index=i, partition_error_code=error_code) for i in indexes]
    topic = AddPartitionsToTxnTopicResult(name=TOPIC, results_by_partition=results)
    return AddPartitionsToTxnResponse(results_by_topic_v3_and_below=[topic])


def _offset_results(message: Any, error_code: int) -> TxnOffsetCommitResponse:
    topics = []
    for topic in message.topics:
        results = [
            TxnOffsetCommitResponsePartition(partition_index=p.partition_index, error_code=error_code)
            for p in topic.partitions
        ]
        topics.append(TxnOffsetCommitResponseTopic(name=topic.name, partitions=results))
    return TxnOffsetCommitResponse(topics=topics)
