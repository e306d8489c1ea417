"""Brokers that append batches as Kafka does, and a network that loses what it likes, for a producer in virtual time.

The brokers keep the rules of idempotence faithfully (a window of five batches per producer and partition, sequences
without gaps, epochs), so that what a producer gets wrong shows in their logs. Nothing here waits: the test decides when
a request is worked on, when its answer arrives, and when a connection breaks.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ottla.client.backoff import Backoff
from ottla.client.config import ProducerConfig
from ottla.client.metadata import Metadata
from ottla.client.producer.record_accumulator import RecordAccumulator
from ottla.client.producer.sender import ProduceAttempt, Sender
from ottla.client.producer.transaction_manager import TransactionManager
from ottla.client.producer.transaction_requests import TransactionRequest
from ottla.errors import Disconnected
from ottla_wire.messages.init_producer_id import InitProducerIdResponse
from ottla_wire.messages.metadata import (
    MetadataResponse,
    MetadataResponseBroker,
    MetadataResponsePartition,
    MetadataResponseTopic,
)
from ottla_wire.messages.produce import (
    BatchIndexAndErrorMessage,
    LeaderIdAndEpoch,
    NodeEndpoint,
    PartitionProduceResponse,
    ProduceResponse,
    TopicProduceResponse,
)
from ottla_wire.records import SendFuture, iter_batches
from ottla_wire.schema import Uuid

TOPIC = "orders"
TOPIC_ID = Uuid(b"orders".ljust(16, b"."))
SEQUENCES = 1 << 31


@dataclass
class ProducerState:
    """What a partition knows of a producer."""

    epoch: int
    last_sequence: int = -1
    window: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=5))


@dataclass
class PartitionModel:
    """A partition's log, as values, and its producers."""

    leader: int
    leader_epoch: int = 0
    log: list[bytes] = field(default_factory=list)
    producers: dict[int, ProducerState] = field(default_factory=dict)

    def append(self, batch: Any) -> tuple[int, int]:
        """Append a batch; returns (error code, base offset)."""
        values = [record.value for record in batch.records()]
        if batch.producer_id < 0:
            return self._store(values)
        known = self.producers.get(batch.producer_id)
        if known is None:
            known = self.producers[batch.producer_id] = ProducerState(batch.producer_epoch)
            return self._take(known, batch, values)
        if batch.producer_epoch < known.epoch:
            return 47, -1
        if batch.producer_epoch > known.epoch:
            if batch.base_sequence != 0:
                return 45, -1
            known = self.producers[batch.producer_id] = ProducerState(batch.producer_epoch)
            return self._take(known, batch, values)
        for first, last, offset in known.window:
            if (first, last) == (batch.base_sequence, batch.last_sequence):
                return 0, offset
        if batch.base_sequence != (known.last_sequence + 1) % SEQUENCES:
            return 45, -1
        return self._take(known, batch, values)

    def _take(self, known: ProducerState, batch: Any, values: list[bytes]) -> tuple[int, int]:
        error, offset = self._store(values)
        known.last_sequence = batch.last_sequence
        known.window.append((batch.base_sequence, batch.last_sequence, offset))
        return error, offset

    def _store(self, values: list[bytes]) -> tuple[int, int]:
        offset = len(self.log)
        self.log.extend(values)
        return 0, offset


@dataclass
class Fault:
    """What a broker does with a batch in place of the right thing: `stores` it or not, and answers `error_code`."""

    error_code: int
    stores: bool = False
    guilty: tuple[int, ...] = ()


@dataclass
class Exchange:
    """A Produce request on its way: as it was sent, and its answer once the broker has worked on it."""

    attempt: ProduceAttempt
    request: Any
    answer: Any = None


class ProducerWorld:
    """A producer, its brokers and the network between them. `now_ms` only moves when told to."""

    def __init__(self, partitions: int = 1, nodes: int = 2, seed: int = 0, **settings: Any) -> None:
        self.now_ms = 1_000_000
        self.rng = random.Random(seed)
        self.config = ProducerConfig(
            **{"batch_size": 400, "linger_ms": 0, "buffer_memory": 1 << 20, "delivery_timeout_ms": 60_000, **settings}
        )
        self.partitions = [PartitionModel(leader=index % nodes) for index in range(partitions)]
        self.nodes = nodes
        self.metadata = Metadata()
        backoff = Backoff(self.config.retry_backoff_ms, self.config.retry_backoff_max_ms, self.rng)
        self.transactions = (
            TransactionManager(
                backoff,
                max_in_flight=self.config.max_in_flight_requests_per_connection,
                transactional_id=self.config.transactional_id,
                transaction_timeout_ms=self.config.transaction_timeout_ms,
            )
            if self.config.idempotent
            else None
        )
        self.accumulator = RecordAccumulator(self.config, self.rng, self.transactions)
        self.sender = Sender(self.config, self.accumulator, self.metadata, self, self.transactions)
        self.in_flight: dict[int, deque[Exchange]] = {node: deque() for node in range(nodes)}
        self.unreachable: set[int] = set()
        self.faults: deque[Fault | None] = deque()
        self.size_limit = 1 << 20
        self.metadata_wanted = True
        self.asked: deque[TransactionRequest] = deque()
        self.next_producer_id = 7000
        self.completions: dict[SendFuture, int] = {}
        self.values: dict[SendFuture, bytes] = {}
        self.sent = 0

    # --- the application

    def send(self, partition: int | None = 0, value: bytes | None = None, key: bytes | None = None) -> SendFuture:
        """Send a record whose value is its number, so that order can be read off a log."""
        value = b"%08d" % self.sent if value is None else value
        self.sent += 1
        future = self.accumulator.append(self.now_ms, TOPIC, partition, 1, key, value, None, value, key, None)
        assert future is not None, "no memory"
        self.completions[future] = 0
        self.values[future] = value

        def done(_: object) -> None:
            self.completions[future] += 1

        future.add_callback(done, done)
        return future

    # --- the sender's network

    def is_ready(self, node_id: int) -> bool:
        return node_id not in self.unreachable

    def produce(self, attempt: ProduceAttempt) -> None:
        request = attempt.build(self.config.required_acks(), self.config.request_timeout_ms)
        self.in_flight[attempt.node_id].append(Exchange(attempt, request))

    def ask(self, request: TransactionRequest) -> None:
        self.asked.append(request)

    def refresh_metadata(self, topics: Iterable[str]) -> None:
        self.metadata_wanted = True

    # --- time and events

    def run(self, elapsed_ms: int = 0) -> int:
        """Let time pass and the sender look."""
        self.now_ms += elapsed_ms
        return self.sender.run_once(self.now_ms)

    def bring_metadata(self) -> None:
        """The answer to a metadata request arrives."""
        self.metadata_wanted = False
        partitions = [
            MetadataResponsePartition(
                partition_index=index, leader_id=model.leader, leader_epoch=model.leader_epoch,
                replica_nodes=[model.leader], isr_nodes=[model.leader],
            )
            for index, model in enumerate(self.partitions)
        ]  # fmt: skip
        brokers = [MetadataResponseBroker(node_id=node, host="h", port=9092 + node) for node in range(self.nodes)]
        topic = MetadataResponseTopic(name=TOPIC, topic_id=TOPIC_ID, partitions=partitions)
        self.metadata.update(MetadataResponse(brokers=brokers, topics=[topic]))

    def bring_producer_id(self, error_code: int = 0) -> None:
        """The answer to InitProducerId arrives."""
        request = self.asked.popleft()
        answer = InitProducerIdResponse(error_code=error_code, producer_id=self.next_producer_id, producer_epoch=0)
        if not error_code:
            self.next_producer_id += 1
        self.sender.request_answered(request, answer, None, self.now_ms)

    def work(self, node: int) -> bool:
        """The broker works on the oldest request that it has not answered yet; false if there is none."""
        for exchange in self.in_flight[node]:
            if exchange.answer is None:
                exchange.answer = self._handled(node, exchange.request)
                return True
        return False

    def deliver(self, node: int) -> bool:
        """The oldest answer arrives; false if there is none."""
        waiting = self.in_flight[node]
        if not waiting or waiting[0].answer is None:
            return False
        exchange = waiting.popleft()
        self.sender.answered(exchange.attempt, exchange.answer, None, self.now_ms)
        return True

    def disconnect(self, node: int, *, worked_on: int = 0) -> None:
        """The connection breaks: so many more requests reach the broker, no answer comes back."""
        for _ in range(worked_on):
            self.work(node)
        lost, self.in_flight[node] = self.in_flight[node], deque()
        for exchange in lost:
            self.sender.answered(exchange.attempt, None, Disconnected("the connection broke"), self.now_ms)

    def move_leader(self, partition: int) -> None:
        """Another broker leads a partition, with the same log."""
        model = self.partitions[partition]
        model.leader = (model.leader + 1) % self.nodes
        model.leader_epoch += 1

    def settle(self, limit: int = 4000) -> None:
        """Everything works, until all records are done."""
        self.faults.clear()
        self.unreachable.clear()
        for _ in range(limit):
            self.run(elapsed_ms=50)
            if self.metadata_wanted:
                self.bring_metadata()
            if self.asked:
                self.bring_producer_id()
            for node in self.in_flight:
                while self.work(node):
                    pass
                while self.deliver(node):
                    pass
            if all(future.done() for future in self.completions) and not any(self.in_flight.values()):
                return
        raise AssertionError("some records never finish")

    def _handled(self, node: int, request: Any) -> ProduceResponse:
        topics = []
        moved: set[int] = set()
        for topic in request.topic_data:
            answers = [self._answer(node, partition, moved) for partition in topic.partition_data]
            topics.append(TopicProduceResponse(name=topic.name, topic_id=topic.topic_id, partition_responses=answers))
        endpoints = [NodeEndpoint(node_id=leader, host="h", port=9092 + leader) for leader in sorted(moved)]
        return ProduceResponse(responses=topics, node_endpoints=endpoints)

    def _answer(self, node: int, partition: Any, moved: set[int]) -> PartitionProduceResponse:
        model = self.partitions[partition.index]
        if model.leader != node:
            moved.add(model.leader)
            hint = LeaderIdAndEpoch(leader_id=model.leader, leader_epoch=model.leader_epoch)
            return PartitionProduceResponse(index=partition.index, error_code=6, base_offset=-1, current_leader=hint)
        (batch,) = iter_batches(bytearray(partition.records), strict=True)
        batch.verify()
        fault = self.faults.popleft() if self.faults else None
        if batch.size_bytes > self.size_limit:
            return PartitionProduceResponse(index=partition.index, error_code=10, base_offset=-1)
        if fault is not None and not (fault.error_code == 10 and batch.count == 1):
            if fault.stores:
                model.append(batch)
            errors = [BatchIndexAndErrorMessage(batch_index=index) for index in fault.guilty if index < batch.count]
            return PartitionProduceResponse(
                index=partition.index, error_code=fault.error_code, base_offset=-1, record_errors=errors
            )
        error_code, offset = model.append(batch)
        return PartitionProduceResponse(index=partition.index, error_code=error_code, base_offset=offset)

    # --- what must hold

    def check(self) -> None:
        """Every record finished once; what is acknowledged is where the answer says; no log has one twice, or late."""
        for future, times in self.completions.items():
            assert future.done(), "a record never finished"
            assert times == 1, f"a record finished {times} times"
            if future.exception() is None:
                result = future.result()
                log = self.partitions[result.partition].log
                assert log[result.offset] == self.values[future], "the acknowledged offset holds another record"
        for index, model in enumerate(self.partitions):
            for earlier, later in zip(model.log, model.log[1:], strict=False):
                assert earlier < later, f"partition {index}: {later!r} follows {earlier!r}"
        assert self.accumulator.free_bytes == self.config.buffer_memory, "memory was lost"
        assert not self.accumulator.incomplete
