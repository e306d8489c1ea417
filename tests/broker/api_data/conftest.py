"""Produce and fetch in a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ottla_broker.pending import Pending
from ottla_wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic, ForgottenTopic
from ottla_wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.records import build_batch, iter_batches
from ottla_wire.schema import Uuid

VERSION = 12


def batch(*values: bytes | None, timestamp_ms: int = 1_700_000_000_000, **fields: Any) -> bytes:
    return build_batch([(timestamp_ms, b"k", value, ()) for value in values], **fields)


def values(records: Any) -> list[bytes]:
    return [record.value for batch in iter_batches(records) for record in batch.records()]


class DataApi:
    """The data APIs of one bench, for a client that has one topic in mind."""

    def __init__(self, bench: Any, topic: str = "t") -> None:
        self.bench = bench
        self.topic = topic
        self.session = (0, -1)

    def produce(
        self, data: bytes | dict[int, bytes | None] | None, *, acks: int = -1, version: int = VERSION, **options: Any
    ) -> Any:
        """Produce to partition 0, or to each partition of a dict; returns the only result, or all by index."""
        by_index = data if isinstance(data, dict) else {0: data}
        client = {"client_id": options.pop("client_id")} if "client_id" in options else {}
        topic = options.pop("topic", self.topic)
        topic_id = options.pop("topic_id", Uuid.ZERO)
        request = ProduceRequest(
            acks=acks,
            timeout_ms=options.pop("timeout_ms", 1000),
            topic_data=[
                TopicProduceData(
                    name=topic,
                    topic_id=topic_id,
                    partition_data=[PartitionProduceData(index=i, records=r) for i, r in by_index.items()],
                )
            ],
            **options,
        )
        response = self.bench.ask(request, version, **client)
        if response is None or isinstance(response, Pending):
            return response
        results = {result.index: result for result in response.responses[0].partition_responses}
        return results if isinstance(data, dict) else results[0]

    def fetch_request(self, offsets: dict[int, int], **options: Any) -> FetchRequest:
        partition_options = {
            key: options.pop(key)
            for key in ("current_leader_epoch", "last_fetched_epoch", "partition_max_bytes")
            if key in options
        }
        partition_options.setdefault("partition_max_bytes", 1 << 20)
        forgotten = options.pop("forgotten", ())
        topic_id = options.pop("topic_id", Uuid.ZERO)
        session_id, session_epoch = options.pop("session", (0, -1))
        settings = {"max_wait_ms": 0, "min_bytes": 1, "max_bytes": 1 << 25} | options
        return FetchRequest(
            topics=[
                FetchTopic(
                    topic=self.topic,
                    topic_id=topic_id,
                    partitions=[
                        FetchPartition(partition=index, fetch_offset=offset, **partition_options)
                        for index, offset in offsets.items()
                    ],
                )
            ]
            if offsets
            else [],
            forgotten_topics_data=[ForgottenTopic(topic=self.topic, topic_id=topic_id, partitions=list(forgotten))]
            if forgotten
            else [],
            session_id=session_id,
            session_epoch=session_epoch,
            **settings,
        )

    def fetch(self, offsets: dict[int, int] | int = 0, *, version: int = VERSION, **options: Any) -> Any:
        """Fetch from partition 0 at an offset, or from several; the response, or a Pending of it."""
        by_index = offsets if isinstance(offsets, dict) else {0: offsets}
        return self.bench.ask(self.fetch_request(by_index, **options), version)

    def fetch_one(self, offset: int = 0, **options: Any) -> Any:
        """Fetch from partition 0; its entry in the response."""
        return self.fetch(offset, **options).responses[0].partitions[0]

    def list_offset(self, timestamp: int, *, version: int = 11, **options: Any) -> Any:
        epoch = (
            {"current_leader_epoch": options.pop("current_leader_epoch")} if "current_leader_epoch" in options else {}
        )
        request = ListOffsetsRequest(
            topics=[
                ListOffsetsTopic(
                    name=options.pop("topic", self.topic),
                    partitions=[ListOffsetsPartition(partition_index=0, timestamp=timestamp, **epoch)],
                )
            ],
            **({"replica_id": -1} | options),
        )
        return self.bench.ask(request, version).topics[0].partitions[0]

    @staticmethod
    def told(response: Any) -> list[int]:
        """The partitions in a fetch response, in order."""
        return [entry.partition_index for topic in response.responses for entry in topic.partitions]

    values = staticmethod(values)


@pytest.fixture
def make_batch() -> Callable[..., bytes]:
    return batch


@pytest.fixture
def api(bench: Any) -> DataApi:
    """A broker with the topic `t` of three partitions."""
    bench.create_topic("t", 3)
    return DataApi(bench)


@pytest.fixture
def api_of() -> Callable[..., DataApi]:
    return DataApi
