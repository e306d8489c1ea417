"""The contract of a broker, asked of ours and of Apache Kafka: each test runs on both, with the same assertions.

Tests that are marked `every_version` are about our client: they run on every version of Apache Kafka that it must
work with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ottla.client import KafkaConsumer, KafkaProducer
from ottla_wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic, ForgottenTopic
from ottla_wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.records import build_batch, iter_batches
from ottla_wire.schema import Uuid
from support.clusters import Clusters, ClusterUnderTest, cluster_params
from support.wire_client import WireClient

NOW_MS = 1_700_000_000_000


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cluster" in metafunc.fixturenames:
        metafunc.parametrize("cluster", cluster_params(metafunc.definition), indirect=True, scope="session")


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, clusters: Clusters) -> Iterator[ClusterUnderTest]:
    with clusters.lease(request.param) as started:
        yield started


class RawTopic:
    """A topic that is written and read with single requests."""

    def __init__(self, cluster: ClusterUnderTest, client: WireClient, name: str) -> None:
        self.name = name
        self.cluster = cluster
        self.client = client
        self.id = cluster.admin.describe_topics([name])[name].topic_id if name else Uuid.ZERO

    def produce_request(
        self, data: bytes | dict[int, bytes | None] | None, *, acks: int = -1, topic_id: Uuid | None = None
    ) -> ProduceRequest:
        by_index = data if isinstance(data, dict) else {0: data}
        partitions = [PartitionProduceData(index=index, records=records) for index, records in by_index.items()]
        topic = TopicProduceData(name=self.name, topic_id=topic_id or self.id, partition_data=partitions)
        return ProduceRequest(acks=acks, timeout_ms=5_000, topic_data=[topic])

    def produce(self, data: Any, *, version: int | None = None, **options: Any) -> Any:
        """Produce to partition 0, or to each partition of a dict; the only result, or all by index."""
        if version is None:
            version = self.cluster.newest(ProduceRequest, at_most=12)  # 13 names topics by id
        response = self.client.ask(self.produce_request(data, **options), version)
        results = {result.index: result for result in response.responses[0].partition_responses}
        return results if isinstance(data, dict) else results[0]

    def fetch_request(self, offsets: dict[int, int], **options: Any) -> FetchRequest:
        names = ("current_leader_epoch", "last_fetched_epoch", "partition_max_bytes")
        of_partition = {"partition_max_bytes": 1 << 20} | {name: options.pop(name) for name in names if name in options}
        topic_id = options.pop("topic_id", None) or self.id
        forgotten = options.pop("forgotten", ())
        session_id, session_epoch = options.pop("session", (0, -1))
        partitions = [FetchPartition(partition=i, fetch_offset=offset, **of_partition) for i, offset in offsets.items()]
        return FetchRequest(
            topics=[FetchTopic(topic=self.name, topic_id=topic_id, partitions=partitions)] if offsets else [],
            forgotten_topics_data=[ForgottenTopic(topic=self.name, topic_id=topic_id, partitions=list(forgotten))]
            if forgotten
            else [],
            session_id=session_id,
            session_epoch=session_epoch,
            **({"max_wait_ms": 0, "min_bytes": 1, "max_bytes": 1 << 25} | options),
        )

    def fetch(self, offsets: dict[int, int] | int = 0, *, version: int = 12, **options: Any) -> Any:
        """Fetch from partition 0 at an offset, or from several; the whole response."""
        by_index = offsets if isinstance(offsets, dict) else {0: offsets}
        return self.client.ask(self.fetch_request(by_index, **options), version)

    def fetch_one(self, offset: int = 0, **options: Any) -> Any:
        """Fetch from partition 0; its entry in the response."""
        return self.fetch(offset, **options).responses[0].partitions[0]

    def list_offset(self, timestamp: int, *, partition: int = 0, version: int | None = None, epoch: int = -1) -> Any:
        if version is None:
            version = self.cluster.newest(ListOffsetsRequest, at_most=11)
        asked = ListOffsetsPartition(partition_index=partition, timestamp=timestamp, current_leader_epoch=epoch)
        topics = [ListOffsetsTopic(name=self.name, partitions=[asked])]
        request = ListOffsetsRequest(replica_id=-1, topics=topics, timeout_ms=5_000)
        return self.client.ask(request, version).topics[0].partitions[0]

    def end(self, partition: int = 0) -> int:
        return int(self.list_offset(-1, partition=partition).offset)


def batch(*values: bytes | None, timestamp_ms: int = NOW_MS, **fields: Any) -> bytes:
    """One batch with a record per value, with the key `k`; `fields` are those of `build_batch`."""
    return build_batch([(timestamp_ms, b"k", value, ()) for value in values], **fields)


def values(partition: Any) -> list[bytes | None]:
    """The values in one partition's entry of a fetch response."""
    return [record.value for found in iter_batches(partition.records or b"") for record in found.records()]


@pytest.fixture
def make_batch() -> Callable[..., bytes]:
    return batch


@pytest.fixture
def values_of() -> Callable[[Any], list[bytes | None]]:
    return values


@pytest.fixture
def connect(cluster: ClusterUnderTest) -> Iterator[Callable[[], WireClient]]:
    """Open raw connections, which are closed at the end of the test."""
    opened: list[WireClient] = []

    def open_client() -> WireClient:
        opened.append(cluster.connect())
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()


@pytest.fixture
def make_topic(cluster: ClusterUnderTest, connect: Callable[[], WireClient]) -> Callable[..., RawTopic]:
    """A new topic for raw requests, with configuration names in snake case."""

    def make(partitions: int = 1, **configs: str) -> RawTopic:
        return RawTopic(cluster, connect(), cluster.create_topic(partitions, **configs))

    return make


@pytest.fixture
def topic(make_topic: Callable[..., RawTopic]) -> RawTopic:
    """A topic of three partitions."""
    return make_topic(3)


@pytest.fixture
def make_producer(cluster: ClusterUnderTest) -> Iterator[Callable[..., KafkaProducer]]:
    made: list[KafkaProducer] = []

    def make(**settings: Any) -> KafkaProducer:
        made.append(KafkaProducer(bootstrap_servers=cluster.bootstrap_servers, linger_ms=0, **settings))
        return made[-1]

    yield make
    for producer in made:
        producer.close(10)


@pytest.fixture
def make_consumer(cluster: ClusterUnderTest) -> Iterator[Callable[..., KafkaConsumer]]:
    made: list[KafkaConsumer] = []

    def make(**settings: Any) -> KafkaConsumer:
        settings = {"auto_offset_reset": "earliest", "enable_auto_commit": False} | settings
        made.append(KafkaConsumer(bootstrap_servers=cluster.bootstrap_servers, **settings))
        return made[-1]

    yield make
    for consumer in made:
        consumer.close(10)
