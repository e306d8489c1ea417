"""A node whose data folder fails under it: who is told what, and what is there afterwards."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ottla_broker.shell.config import BrokerConfig
from ottla_broker.shell.node import BrokerStartError, Node
from ottla_wire.errors import KafkaStorageError, NotCoordinator
from ottla_wire.messages.api_versions import ApiVersionsRequest
from ottla_wire.messages.create_topics import CreatableTopic, CreatableTopicConfig, CreateTopicsRequest
from ottla_wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from ottla_wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from ottla_wire.messages.find_coordinator import FindCoordinatorRequest
from ottla_wire.messages.metadata import MetadataRequest
from ottla_wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.records import build_batch, iter_batches
from support.faulty_files import FaultyFiles

STORAGE_ERROR = KafkaStorageError.code
PATIENCE_SECONDS = 20


class FailingNode:
    """A node on files that can fail; `stopped` is set when it asks to be stopped."""

    def __init__(self, data: Path, connect: Callable[[str], Any]) -> None:
        self.data = data
        self.files = FaultyFiles()
        self.config = BrokerConfig(
            log_dirs=str(data), listeners="PLAINTEXT://127.0.0.1:0", offsets_topic_num_partitions=1
        )
        self.asked_to_stop = asyncio.Event()
        self._connect = connect
        self._node: Node | None = None

    async def start(self) -> None:
        assert self._node is None
        self.asked_to_stop.clear()
        self._node = Node(self.config, files=self.files, on_failure=self.asked_to_stop.set)
        await self._node.start()

    async def connect(self) -> Any:
        assert self._node is not None
        return await asyncio.to_thread(self._connect, f"127.0.0.1:{self._node.port}")

    async def fails(self) -> str:
        """Wait until it asks to be stopped, and stop it; why it failed."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.asked_to_stop.wait()
        return await self.stop()

    async def stop(self) -> str:
        node, self._node = self._node, None
        assert node is not None
        await node.stop()
        return node.failure or ""

    def was_closed_in_good_order(self) -> bool:
        return (self.data / ".kafka_cleanshutdown").exists()


@pytest.fixture
def scenario(tmp_path: Path, connect: Callable[[str], Any]) -> Callable[[Callable[..., Any]], None]:
    """Runs a coroutine function on a new node."""

    def run(play: Callable[..., Any]) -> None:
        async def whole() -> None:
            node = FailingNode(tmp_path / "data", connect)
            await node.start()
            try:
                await play(node, await node.connect())
            finally:
                if node._node is not None:
                    await node.stop()

        asyncio.run(whole())

    return run


async def ask(client: Any, request: Any, version: int) -> Any:
    return await asyncio.to_thread(client.ask, request, version)


async def create(client: Any, topic: str, partitions: int = 1, **settings: str) -> int:
    configs = [CreatableTopicConfig(name=name.replace("_", "."), value=value) for name, value in settings.items()]
    topics = [CreatableTopic(name=topic, num_partitions=partitions, replication_factor=1, configs=configs)]
    answer = await ask(client, CreateTopicsRequest(topics=topics, timeout_ms=10_000), 7)
    return int(answer.topics[0].error_code)


def produce_request(topic: str, value: bytes, index: int = 0) -> ProduceRequest:
    records = build_batch([(1_700_000_000_000, None, value, ())])
    data = TopicProduceData(name=topic, partition_data=[PartitionProduceData(index=index, records=records)])
    return ProduceRequest(acks=-1, timeout_ms=10_000, topic_data=[data])


async def produce(client: Any, topic: str, value: bytes = b"value", index: int = 0) -> int:
    answer = await ask(client, produce_request(topic, value, index), 9)
    return int(answer.responses[0].partition_responses[0].error_code)


def fetch_request(topic: str, offset: int = 0, *, index: int = 0, max_wait_ms: int = 0) -> FetchRequest:
    partition = FetchPartition(partition=index, fetch_offset=offset, partition_max_bytes=1 << 20)
    topics = [FetchTopic(topic=topic, partitions=[partition])]
    return FetchRequest(max_bytes=1 << 20, min_bytes=1, max_wait_ms=max_wait_ms, topics=topics)


async def values(client: Any, topic: str) -> list[bytes]:
    found = (await ask(client, fetch_request(topic), 12)).responses[0].partitions[0]
    assert found.error_code == 0
    return [record.value for batch in iter_batches(found.records, strict=True) for record in batch.records()]


def test_the_first_failed_write_fails_the_whole_folder(scenario: Any) -> None:
    async def play(node: FailingNode, client: Any) -> None:
        assert await create(client, "orders", 2) == 0
        assert await produce(client, "orders") == 0
        parked = await node.connect()
        parked_fetch = fetch_request("orders", index=1, max_wait_ms=60_000)
        await asyncio.to_thread(parked.send, parked_fetch, 12)
        assert await asyncio.to_thread(parked.is_silent, 0.1)
        node.files.fail("append", "orders-0/00000000000000000000.log", errno.ENOSPC)
        assert await produce(client, "orders") == STORAGE_ERROR
        assert await produce(client, "orders", index=1) == STORAGE_ERROR
        _, answer = await asyncio.to_thread(parked.receive, parked_fetch, 12)
        assert answer.responses[0].partitions[0].error_code == STORAGE_ERROR
        assert (await ask(client, ApiVersionsRequest(), 2)).error_code == 0
        sentence = await node.fails()
        assert sentence.startswith(f"data directory {node.data} cannot be used (")
        assert "orders-0/00000000000000000000.log: No space left on device (errno 28); make room there" in sentence
        assert client.is_closed_by_peer()
        assert not node.was_closed_in_good_order()

        node.files.heal()
        await node.start()
        client = await node.connect()
        assert await values(client, "orders") == [b"value"]
        assert await produce(client, "orders", b"again") == 0
        assert await node.stop() == ""
        assert node.was_closed_in_good_order()

    scenario(play)


def test_writes_that_wait_for_an_fsync_are_refused_when_it_fails(scenario: Any) -> None:
    async def play(node: FailingNode, client: Any) -> None:
        assert await create(client, "orders", flush_messages="1") == 0
        assert await produce(client, "orders", b"on the disk") == 0
        node.files.fail("sync", "orders-0/00000000000000000000.log")
        assert await produce(client, "orders", b"not known to be there") == STORAGE_ERROR
        sentence = await node.fails()
        assert "Input/output error" in sentence
        assert sentence.endswith("look at the disk (its errors are in the kernel's log), and start the broker again")
        node.files.heal()
        await node.start()
        assert (await values(await node.connect(), "orders"))[0] == b"on the disk"

    scenario(play)


def test_a_metadata_log_that_cannot_be_written_stops_the_broker(scenario: Any) -> None:
    async def play(node: FailingNode, client: Any) -> None:
        assert await create(client, "orders") == 0
        node.files.fail("append", "__cluster_metadata-0/00000000000000000000.log", errno.ENOSPC)
        assert await create(client, "bills") == STORAGE_ERROR
        assert "__cluster_metadata-0" in await node.fails()
        node.files.heal()
        await node.start()
        topics = (await ask(await node.connect(), MetadataRequest(topics=None), 9)).topics
        assert [topic.name for topic in topics] == ["orders"]

    scenario(play)


def test_offsets_that_cannot_be_written_are_not_acknowledged(scenario: Any) -> None:
    async def play(node: FailingNode, client: Any) -> None:
        assert await create(client, "orders") == 0
        found = await ask(client, FindCoordinatorRequest(key="readers", key_type=0), 3)
        assert found.error_code == 0
        assert await commit(client, 1) == 0
        node.files.fail("append", "__consumer_offsets-0/00000000000000000000.log", errno.ENOSPC)
        assert await commit(client, 2) == NotCoordinator.code
        assert "__consumer_offsets-0" in await node.fails()

    scenario(play)


async def commit(client: Any, offset: int) -> int:
    partition = OffsetCommitRequestPartition(partition_index=0, committed_offset=offset)
    topics = [OffsetCommitRequestTopic(name="orders", partitions=[partition])]
    request = OffsetCommitRequest(group_id="readers", generation_id_or_member_epoch=-1, member_id="", topics=topics)
    return int((await ask(client, request, 7)).topics[0].partitions[0].error_code)


def test_a_read_that_fails_stops_the_broker(scenario: Any) -> None:
    async def play(node: FailingNode, client: Any) -> None:
        assert await create(client, "orders") == 0
        assert await produce(client, "orders") == 0
        node.files.fail("read", "orders-0/00000000000000000000.log")
        answer = await ask(client, fetch_request("orders"), 12)
        assert answer.responses[0].partitions[0].error_code == STORAGE_ERROR
        assert "Input/output error" in await node.fails()

    scenario(play)


@pytest.mark.parametrize(("operation", "name"), [("rename", "orders-0"), ("remove_tree", "-delete")])
def test_a_topic_that_cannot_be_deleted_stops_the_broker(scenario: Any, operation: str, name: str) -> None:
    async def play(node: FailingNode, client: Any) -> None:
        assert await create(client, "orders") == 0
        assert await produce(client, "orders") == 0
        node.files.fail(operation, name, errno.EROFS)
        request = DeleteTopicsRequest(topics=[DeleteTopicState(name="orders")], timeout_ms=10_000)
        assert (await ask(client, request, 6)).responses[0].error_code == 0  # the metadata says so
        assert "Read-only file system" in await node.fails()

    scenario(play)


def test_a_stop_that_cannot_write_says_so_and_leaves_no_marker(scenario: Any) -> None:
    async def play(node: FailingNode, client: Any) -> None:
        assert await create(client, "orders") == 0
        assert await produce(client, "orders") == 0
        node.files.fail("replace", "recovery-point-offset-checkpoint", errno.ENOSPC)
        assert "recovery-point-offset-checkpoint: No space left on device" in await node.stop()
        assert not node.was_closed_in_good_order()
        node.files.heal()
        await node.start()
        assert await values(await node.connect(), "orders") == [b"value"]

    scenario(play)


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        ("append", "__cluster_metadata-0/00000000000000000000.log"),
        ("replace", "quorum-state"),
        ("write", "orders-0/00000000000000000001.snapshot"),
        ("read", "orders-0/partition.metadata"),
    ],
)
def test_a_start_that_fails_says_so_and_does_no_harm(scenario: Any, operation: str, name: str) -> None:
    async def play(node: FailingNode, client: Any) -> None:
        assert await create(client, "orders") == 0
        assert await produce(client, "orders") == 0
        node.files.fail("replace", ".kafka_cleanshutdown")  # so that the next start has something to do
        await node.stop()
        node.files.heal()
        (node.data / "orders-0" / "00000000000000000001.snapshot").unlink()
        node.files.fail(operation, name, errno.ENOSPC)
        with pytest.raises(BrokerStartError, match=rf"data directory {node.data} cannot be used .* make room there"):
            await node.start()
        node._node = None
        node.files.heal()
        await node.start()
        assert await values(await node.connect(), "orders") == [b"value"]

    scenario(play)
