"""A broker whose transaction coordinator is the test, and producers that write in transactions."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from ottla_broker.coordinator.group_config import GroupConfig
from ottla_broker.coordinator.group_coordinator import GroupCoordinator
from ottla_broker.pending import Pending
from ottla_broker.replication.coordinator_log import ReplicaCoordinatorLog
from ottla_wire.messages.describe_producers import DescribeProducersRequest, TopicRequest
from ottla_wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from ottla_wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.messages.write_txn_markers import WritableTxnMarker, WritableTxnMarkerTopic, WriteTxnMarkersRequest
from ottla_wire.records import build_batch
from support.fake_transactions import FakeTransactions
from support.read_committed import delivered

OFFSETS_TOPIC = "__consumer_offsets"
FIRST_VERSION_OF_TRANSACTIONS_2 = 12


class Producer:
    """A transactional producer; it keeps its sequences as a client does."""

    def __init__(self, stage: Stage, transactional_id: str, producer_id: int, epoch: int, version: int) -> None:
        self.transactional_id = transactional_id
        self.id = producer_id
        self.epoch = epoch
        self.version = version
        self._stage = stage
        self._sequences: Counter[int] = Counter()

    def batch(self, *values: bytes, sequence: int = 0, transactional: bool = True, **fields: Any) -> bytes:
        return build_batch(
            [(self._stage.bench.clock.wall_ms(), b"k", value, ()) for value in values],
            **{
                "producer_id": self.id,
                "producer_epoch": self.epoch,
                "base_sequence": sequence,
                "transactional": transactional,
                **fields,
            },
        )

    def sends(self, *values: bytes, partition: int = 0, sequence: int | None = None, **options: Any) -> Any:
        """Produce one batch; its entry in the answer, or a Pending of the answer."""
        first = self._sequences[partition] if sequence is None else sequence
        acks = options.pop("acks", -1)
        answer = self.requests({partition: self.batch(*values, sequence=first, **options)}, acks=acks)
        if sequence is None:
            self._sequences[partition] += len(values)
        return answer if answer is None or isinstance(answer, Pending) else only(answer)

    def requests(
        self, data: dict[int, bytes], *, acks: int = -1, transactional_id: str | None = "own", topic: str = "t"
    ) -> Any:
        """A produce request with given batches; the whole answer."""
        request = ProduceRequest(
            transactional_id=self.transactional_id if transactional_id == "own" else transactional_id,
            acks=acks,
            timeout_ms=1000,
            topic_data=[
                TopicProduceData(
                    name=topic, partition_data=[PartitionProduceData(index=i, records=r) for i, r in data.items()]
                )
            ],
        )
        return self._stage.bench.ask(request, self.version)

    def ends(self, *, commit: bool, partitions: tuple[int, ...] = (0,), **options: Any) -> list[int]:
        """The coordinator ends the transaction: the error codes. A client of transactions v2 has a new epoch then."""
        self._stage.coordinator.end(self.transactional_id)
        is_2 = self.version >= FIRST_VERSION_OF_TRANSACTIONS_2
        options = {"epoch": self.epoch + 1 if is_2 else self.epoch, "transaction_version": 2 if is_2 else 1} | options
        codes = self._stage.writes_marker(self.id, commit=commit, partitions=partitions, **options)
        assert isinstance(codes, list)
        if is_2:
            self.epoch = options["epoch"]
            self._sequences.clear()
        return codes


class Stage:
    """The broker: topic `t` of three partitions, and a coordinator that the test scripts."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.coordinator = FakeTransactions()
        bench.broker.transactions = self.coordinator
        bench.create_topic("t", 3)

    def producer(
        self, transactional_id: str = "tx", producer_id: int = 9, *, epoch: int = 0, version: int = 12
    ) -> Producer:
        return Producer(self, transactional_id, producer_id, epoch, version)

    def writes_marker(
        self,
        producer_id: int,
        *,
        commit: bool,
        epoch: int,
        partitions: tuple[int, ...] = (0,),
        topic: str = "t",
        coordinator_epoch: int = 0,
        transaction_version: int = 2,
    ) -> Any:
        """WriteTxnMarkers for one transaction: the error codes, or a Pending of the answer."""
        answer = self.bench.ask(
            WriteTxnMarkersRequest(
                markers=[
                    WritableTxnMarker(
                        producer_id=producer_id,
                        producer_epoch=epoch,
                        transaction_result=commit,
                        topics=[WritableTxnMarkerTopic(name=topic, partition_indexes=[*partitions])],
                        coordinator_epoch=coordinator_epoch,
                        transaction_version=transaction_version,
                    )
                ]
            ),
            2,
        )
        return answer if isinstance(answer, Pending) else codes(answer)

    def fetch(self, offset: int = 0, *, partition: int = 0, isolation: int = 1, **options: Any) -> Any:
        """The entry of one partition, or a Pending of the answer."""
        limits = {"max_wait_ms": 0, "min_bytes": 1, "max_bytes": 1 << 25} | options
        wanted = FetchPartition(partition=partition, fetch_offset=offset, partition_max_bytes=1 << 20)
        request = FetchRequest(
            topics=[FetchTopic(topic="t", partitions=[wanted])],
            session_id=0,
            session_epoch=-1,
            isolation_level=isolation,
            **limits,
        )
        answer = self.bench.ask(request, 12)
        return answer if isinstance(answer, Pending) else answer.responses[0].partitions[0]

    def values(self, offset: int = 0, *, partition: int = 0) -> list[bytes | None]:
        """What a read-committed client delivers."""
        entry = self.fetch(offset, partition=partition)
        aborted = [(found.producer_id, found.first_offset) for found in entry.aborted_transactions]
        return [record.value for record in delivered(entry.records, aborted, offset)]

    def latest(self, *, isolation: int, partition: int = 0, timestamp: int = -1) -> int:
        """ListOffsets."""
        request = ListOffsetsRequest(
            replica_id=-1,
            isolation_level=isolation,
            topics=[
                ListOffsetsTopic(
                    name="t", partitions=[ListOffsetsPartition(partition_index=partition, timestamp=timestamp)]
                )
            ],
        )
        entry = self.bench.ask(request, 11).topics[0].partitions[0]
        assert entry.error_code == 0
        return int(entry.offset)

    def described(self, *, topic: str = "t", partition: int = 0) -> list[Any]:
        """DescribeProducers of one partition."""
        request = DescribeProducersRequest(topics=[TopicRequest(name=topic, partition_indexes=[partition])])
        entry = self.bench.ask(request, 0).topics[0].partitions[0]
        assert entry.error_code == 0
        return list(entry.active_producers)

    def crashes(self, partition: int = 0) -> None:
        """The process is killed and comes back: of the partition there is what its files say."""
        replica = self.bench.partition("t", partition)
        replica.log.abandon()
        replica.log = self.bench.storage.open_log("t", partition, replica.topic_id, replica.log.config)
        replica.advance_high_watermark()

    def stops_replicating(self, partition: int = 0, topic: str = "t") -> Callable[[], None]:
        """From now on the high watermark waits for followers; the returned function lets them catch up."""
        replica = self.bench.partition(topic, partition)
        advance = replica.advance_high_watermark
        replica.advance_high_watermark = lambda: False

        def catch_up() -> None:
            replica.advance_high_watermark = advance
            advance()
            self.bench.broker.settle(self.bench.clock.now_ms())

        return catch_up

    def with_groups(self) -> GroupCoordinator:
        """Have groups, in two partitions of `__consumer_offsets` over real logs."""
        bench = self.bench
        groups = GroupCoordinator(
            ReplicaCoordinatorLog(bench.replicas, OFFSETS_TOPIC, wall_ms=bench.clock.wall_ms),
            GroupConfig(offsets_topic_num_partitions=2, group_initial_rebalance_delay_ms=0),
            wall_ms=bench.clock.wall_ms,
            rng=random.Random(5),
        )
        bench.broker.groups = groups
        bench.create_topic(OFFSETS_TOPIC, 2)
        bench.replicas.listen(OFFSETS_TOPIC, _Follower(groups, bench.clock))
        return groups


class _Follower:
    def __init__(self, groups: GroupCoordinator, clock: Any) -> None:
        self._groups = groups
        self._clock = clock

    def became_leader(self, index: int, leader_epoch: int) -> None:
        self._groups.load(index, leader_epoch, self._clock.now_ms())

    def resigned(self, index: int, leader_epoch: int) -> None:
        self._groups.unload(index)

    def high_watermark_moved(self, index: int, offset: int) -> None:
        self._groups.high_watermark_moved(index, offset, self._clock.now_ms())


def only(answer: Any) -> Any:
    """The only entry of a produce answer."""
    (topic,) = answer.responses
    (entry,) = topic.partition_responses
    return entry


def codes(answer: Any) -> list[int]:
    """The error codes of a WriteTxnMarkers answer."""
    return [entry.error_code for marker in answer.markers for topic in marker.topics for entry in topic.partitions]


@pytest.fixture
def stage(bench: Any) -> Stage:
    return Stage(bench)


@pytest.fixture
def stage_of() -> Callable[[Any], Stage]:
    return Stage
