"""A transaction coordinator under the tests' control: its log, its partitions' leaders and its time are theirs.

Requests go the whole way: encoded and decoded in the version asked for, through the handler, and the answer back the
same way. So a test sees what a client would.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from ottla_broker import api
from ottla_broker.broker import AllowAll
from ottla_broker.context import ANONYMOUS, RequestContext
from ottla_broker.coordinator.group_coordinator import java_abs, java_hash
from ottla_broker.coordinator.transaction_config import TransactionConfig
from ottla_broker.coordinator.transaction_coordinator import TransactionCoordinator
from ottla_broker.coordinator.transaction_records import TransactionLogValue, read_transaction
from ottla_broker.coordinator.transaction_state import TransactionMetadata, metadata_of
from ottla_broker.pending import Pending
from ottla_wire.errors import error_class
from ottla_wire.messages import request_class
from ottla_wire.messages.add_offsets_to_txn import AddOffsetsToTxnRequest
from ottla_wire.messages.add_partitions_to_txn import (
    AddPartitionsToTxnRequest,
    AddPartitionsToTxnTopic,
    AddPartitionsToTxnTransaction,
)
from ottla_wire.messages.describe_transactions import DescribeTransactionsRequest
from ottla_wire.messages.end_txn import EndTxnRequest
from ottla_wire.messages.init_producer_id import InitProducerIdRequest
from ottla_wire.messages.list_transactions import ListTransactionsRequest
from ottla_wire.messages.write_txn_markers import (
    WritableTxnMarker,
    WritableTxnMarkerPartitionResult,
    WritableTxnMarkerResult,
    WritableTxnMarkerTopicResult,
    WriteTxnMarkersRequest,
    WriteTxnMarkersResponse,
)
from ottla_wire.schema import Request
from support.groups import FakeCoordinatorLog

ID = "tx"
T0, T1, T2 = ("t", 0), ("t", 1), ("t", 2)
TIMEOUT_MS = 60_000
WALL_START_MS = 1_700_000_000_000

TopicIndex = tuple[str, int]


class Marker(NamedTuple):
    """One marker that a partition has taken."""

    partition: TopicIndex
    producer_id: int
    producer_epoch: int
    committed: bool
    coordinator_epoch: int
    transaction_version: int


class FakeLeaders:
    """The leaders of all partitions, as far as markers are concerned.

    They keep Kafka's rules: a coordinator that is older than one they have heard of is fenced, and so is a marker with
    an older epoch than the last one's.

    Attributes:
        markers: those that were written, in their order.
        requests: (node, request) in their order.
        leaders: by partition; -1 while there is none, None if it was deleted; others are led by node 1.
        codes: error codes that a partition says before it takes a marker.
        holds: whether requests wait until `answer` is called.
    """

    def __init__(self) -> None:
        self.markers: list[Marker] = []
        self.requests: list[tuple[int, WriteTxnMarkersRequest]] = []
        self.leaders: dict[TopicIndex, int | None] = {}
        self.codes: dict[TopicIndex, deque[int]] = {}
        self.failure: Exception | None = None
        self.holds = False
        self._held: deque[tuple[WriteTxnMarkersRequest, Pending[WriteTxnMarkersResponse]]] = deque()
        self._newest: dict[tuple[TopicIndex, int], tuple[int, int]] = {}

    def leader_of(self, partition: TopicIndex) -> int | None:
        return self.leaders.get(partition, 1)

    def send(self, node_id: int, request: WriteTxnMarkersRequest, now_ms: int) -> Pending[WriteTxnMarkersResponse]:
        received = WriteTxnMarkersRequest.decode(bytearray(request.encode(2)), 2)
        self.requests.append((node_id, received))
        if self.failure is not None:
            return Pending.failed(self.failure)
        if self.holds:
            answer: Pending[WriteTxnMarkersResponse] = Pending()
            self._held.append((received, answer))
            return answer
        return Pending.completed(self._write(received))

    def answer(self, *, lost: bool = False) -> None:
        """Write and answer the oldest request that is held; or write it and lose the answer."""
        request, answer = self._held.popleft()
        response = self._write(request)
        if lost:
            answer.fail(ConnectionError("the answer is lost"))
        else:
            answer.complete(response)

    @property
    def is_holding(self) -> bool:
        return bool(self._held)

    def _write(self, request: WriteTxnMarkersRequest) -> WriteTxnMarkersResponse:
        results = [
            WritableTxnMarkerResult(
                producer_id=marker.producer_id,
                topics=[
                    WritableTxnMarkerTopicResult(
                        name=topic.name,
                        partitions=[
                            WritableTxnMarkerPartitionResult(
                                partition_index=index, error_code=self._take((topic.name, index), marker)
                            )
                            for index in topic.partition_indexes
                        ],
                    )
                    for topic in marker.topics
                ],
            )
            for marker in request.markers
        ]
        return WriteTxnMarkersResponse(markers=results)

    def _take(self, partition: TopicIndex, marker: WritableTxnMarker) -> int:
        scripted = self.codes.get(partition)
        if scripted:
            return scripted.popleft()
        key = (partition, marker.producer_id)
        coordinator_epoch, producer_epoch = self._newest.get(key, (-1, -1))
        if marker.coordinator_epoch < coordinator_epoch:
            return 52
        if marker.producer_epoch < producer_epoch:
            return 47
        self._newest[key] = (marker.coordinator_epoch, marker.producer_epoch)
        self.markers.append(
            Marker(
                partition,
                marker.producer_id,
                marker.producer_epoch,
                marker.transaction_result,
                marker.coordinator_epoch,
                marker.transaction_version,
            )
        )
        return 0


class Transactions:
    """A coordinator of all partitions of `__transaction_state`, and clients that talk to it.

    Attributes:
        transaction_version: the cluster's.
        fresh_ids: producer ids that wait for `give_id`, while `holds_ids`.
    """

    def __init__(
        self,
        *,
        log: FakeCoordinatorLog | None = None,
        leaders: FakeLeaders | None = None,
        epoch: int = 1,
        now_ms: int = 1_000,
        **settings: int,
    ) -> None:
        self.config = TransactionConfig(**{"transaction_state_log_num_partitions": 4} | settings)
        self.log = log or FakeCoordinatorLog()
        self.leaders = leaders or FakeLeaders()
        self.now_ms = now_ms
        self.transaction_version = 2
        self.holds_ids = False
        self.fresh_ids: deque[Pending[int]] = deque()
        self._next_id = 100
        self.restart(epoch)

    # the world

    def restart(self, epoch: int | None = None) -> None:
        """Another process takes over: everything but the log is gone."""
        self.epoch = self.epoch + 1 if epoch is None else epoch
        self.coordinator = TransactionCoordinator(
            self.log,
            self.config,
            new_producer_id=self._new_producer_id,
            leader_of=lambda partition: self.leaders.leader_of(partition),
            transaction_version=lambda: self.transaction_version,
            wall_ms=self.wall_ms,
        )
        self.coordinator.markers.channel = self.leaders
        image = SimpleNamespace(partition=lambda topic, index: None if topic == "missing" else object())
        self._broker: Any = SimpleNamespace(
            transactions=self.coordinator,
            controller=SimpleNamespace(image=image, producer_ids=SimpleNamespace(next=lambda: self._new_producer_id())),
            groups=SimpleNamespace(partition_for=lambda group: java_abs(java_hash(group)) % 50),
            authorizer=AllowAll(),
        )
        for partition in range(self.config.transaction_state_log_num_partitions):
            self.coordinator.load(partition, self.epoch, self.now_ms)
        self.advance(0)

    def wall_ms(self) -> int:
        return WALL_START_MS + self.now_ms

    def _new_producer_id(self) -> Pending[int]:
        fresh: Pending[int] = Pending()
        self.fresh_ids.append(fresh)
        if not self.holds_ids:
            self.give_id()
        return fresh

    def give_id(self, failure: Exception | None = None) -> None:
        """Answer whoever waits for a producer id the longest."""
        fresh = self.fresh_ids.popleft()
        if failure is not None:
            fresh.fail(failure)
            return
        self._next_id += 1
        fresh.complete(self._next_id)

    def advance(self, by_ms: int) -> None:
        """Let time go by; what becomes due runs at its time."""
        until = self.now_ms + by_ms
        while (deadline := self.coordinator.deadline_ms()) is not None and deadline <= until:
            self.now_ms = max(self.now_ms, deadline)
            self.coordinator.tick(self.now_ms)
            self.settle()
        self.now_ms = until

    def settle(self) -> None:
        self.coordinator.settle(self.now_ms)

    def replicate(self, name: str = ID, up_to: int | None = None) -> None:
        """The followers have fetched what the id's partition holds."""
        partition = self.partition(name)
        self.coordinator.high_watermark_moved(partition, self.log.replicate(partition, up_to), self.now_ms)
        self.settle()

    def answer_markers(self, *, lost: bool = False) -> None:
        """The oldest held request for markers is answered."""
        self.leaders.answer(lost=lost)
        self.settle()

    # looking inside

    def partition(self, name: str = ID) -> int:
        return self.coordinator.partition_for(name)

    def known(self, name: str = ID) -> Any:
        return self.coordinator.runtime.read(self.partition(name), lambda shard: shard.ids.get(name))

    def metadata(self, name: str = ID) -> TransactionMetadata:
        metadata = self.known(name).metadata
        assert isinstance(metadata, TransactionMetadata)
        return metadata

    def state(self, name: str = ID) -> str:
        known = self.known(name)
        return "none" if known is None else str(known.metadata.state.kafka_name)

    def pending(self, name: str = ID) -> str | None:
        pending = self.known(name).pending
        return None if pending is None else str(pending.kafka_name)

    def values(self, name: str = ID) -> list[TransactionLogValue | None]:
        """What the records of an id say, in their order."""
        read = [read_transaction(record) for record in self.log.records(self.partition(name))]
        return [each[1] for each in read if each is not None and each[0] == name]

    def history(self, name: str = ID) -> list[str]:
        """The states that were written."""
        return ["-" if each is None else metadata_of(each).state.kafka_name for each in self.values(name)]

    # requests

    def ask(
        self, request: Request, version: int, *, client_id: str = "c", host: str = "192.0.2.1", settle: bool = True
    ) -> Pending[Any]:
        """Send a request; the answer as the client decodes it, perhaps later."""
        received = request_class(request.api_key).decode(bytearray(request.encode(version)), version)
        context = RequestContext(1, request.api_key, version, client_id, host, ANONYMOUS, self.now_ms)
        answer = api.dispatch(self._broker, context, received)
        if settle:
            self.settle()
        pending = answer if isinstance(answer, Pending) else Pending.completed(answer)
        return pending.then(lambda response: type(response).decode(response.encode(version), version))

    def init(
        self,
        name: str | None = ID,
        *,
        expected: tuple[int, int] = (-1, -1),
        timeout_ms: int = TIMEOUT_MS,
        version: int = 5,
        fences_only: bool = False,
        **options: Any,
    ) -> Pending[Any]:
        request = InitProducerIdRequest(
            transactional_id=name,
            transaction_timeout_ms=timeout_ms,
            producer_id=expected[0],
            producer_epoch=expected[1],
            fences_only=fences_only,
        )
        return self.ask(request, version, **options)

    def started(self, name: str = ID, **options: Any) -> tuple[int, int]:
        """InitProducerId that succeeds: producer id and epoch."""
        response = self.init(name, **options).result()
        assert response.error_code == 0, error_name(response.error_code)
        return response.producer_id, response.producer_epoch

    def add(
        self,
        producer: tuple[int, int],
        *partitions: TopicIndex,
        name: str = ID,
        version: int = 5,
        verify_only: bool = False,
        settle: bool = True,
    ) -> Pending[Any]:
        """AddPartitionsToTxn: the error names by partition."""
        topics = [AddPartitionsToTxnTopic(name=topic, partitions=[index]) for topic, index in partitions or [T0]]
        request = add_partitions_request(name, producer, topics, version, verify_only=verify_only)
        return self.ask(request, version, settle=settle).then(lambda response: _added(response, version))

    def added(self, producer: tuple[int, int], *partitions: TopicIndex, **options: Any) -> str:
        """The one error name of adding partitions at once."""
        (only,) = set(self.add(producer, *partitions, **options).result().values())
        return str(only)

    def verify(self, producer: tuple[int, int], *partitions: TopicIndex, **options: Any) -> dict[TopicIndex, str]:
        found = self.add(producer, *partitions, verify_only=True, **options).result()
        assert isinstance(found, dict)
        return found

    def add_offsets(self, producer: tuple[int, int], group: str = "g", *, name: str = ID, version: int = 4) -> str:
        request = AddOffsetsToTxnRequest(
            transactional_id=name, producer_id=producer[0], producer_epoch=producer[1], group_id=group
        )
        return error_name(self.ask(request, version).result().error_code)

    def end(
        self,
        producer: tuple[int, int],
        *,
        commit: bool = True,
        name: str = ID,
        version: int = 5,
        settle: bool = True,
    ) -> Pending[Any]:
        request = EndTxnRequest(
            transactional_id=name, producer_id=producer[0], producer_epoch=producer[1], committed=commit
        )
        return self.ask(request, version, settle=settle)

    def ended(self, producer: tuple[int, int], **options: Any) -> str | tuple[int, int]:
        """EndTxn that is answered at once: what comes next, or the name of the error."""
        response = self.end(producer, **options).result()
        if response.error_code:
            assert (response.producer_id, response.producer_epoch) == (-1, -1)
            return error_name(response.error_code)
        return response.producer_id, response.producer_epoch

    def describe(self, name: str = ID, *, epoch_end: bool = True) -> Any:
        request = DescribeTransactionsRequest(transactional_ids=[name], describe_epoch_end=epoch_end)
        (described,) = self.ask(request, 0).result().transaction_states
        return described

    def list(self, version: int = 2, **filters: Any) -> Any:
        return self.ask(ListTransactionsRequest(**filters), version).result()

    def listed(self, version: int = 2, **filters: Any) -> list[str]:
        """The names of the ids, sorted."""
        response = self.list(version, **filters)
        assert response.error_code == 0, error_name(response.error_code)
        return sorted(each.transactional_id for each in response.transaction_states)

    # whole stretches

    def begun(self, *partitions: TopicIndex, name: str = ID, version: int = 5) -> tuple[int, int]:
        """A producer with an open transaction."""
        producer = self.started(name)
        assert self.added(producer, *partitions, name=name, version=version) == ""
        return producer


def add_partitions_request(
    name: str,
    producer: tuple[int, int],
    topics: list[AddPartitionsToTxnTopic],
    version: int,
    *,
    verify_only: bool = False,
) -> AddPartitionsToTxnRequest:
    """The request of one transaction, in the shape of its version: clients' own up to 3, from 4 on brokers'."""
    if version < 4:
        return AddPartitionsToTxnRequest(
            v3_and_below_transactional_id=name,
            v3_and_below_producer_id=producer[0],
            v3_and_below_producer_epoch=producer[1],
            v3_and_below_topics=topics,
        )
    transaction = AddPartitionsToTxnTransaction(
        transactional_id=name,
        producer_id=producer[0],
        producer_epoch=producer[1],
        verify_only=verify_only,
        topics=topics,
    )
    return AddPartitionsToTxnRequest(transactions=[transaction])


def error_name(code: int) -> str:
    """The name of an error's class, "" for none."""
    return "" if code == 0 else error_class(code).__name__


def error(pending: Pending[Any]) -> str:
    """The error of a finished answer by its name, "" for none."""
    assert pending.done(), "the answer is still waited for"
    return error_name(pending.result().error_code)


def metadata_sequence(values: Sequence[TransactionLogValue | None]) -> list[TransactionMetadata | None]:
    """What records say, as metadata."""
    return [None if value is None else metadata_of(value) for value in values]


def _added(response: Any, version: int) -> dict[TopicIndex, str]:
    topics = response.results_by_topic_v3_and_below
    if version >= 4:
        (only,) = response.results_by_transaction
        topics = only.topic_results
    return {
        (topic.name, result.partition_index): error_name(result.partition_error_code)
        for topic in topics
        for result in topic.results_by_partition
    }
