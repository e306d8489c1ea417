"""A whole broker on a port: what is changed over the wire acts at once, and is still there after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ottla_broker.shell.config import BrokerConfig
from ottla_broker.shell.node import Node
from ottla_wire.messages.create_topics import CreatableTopic, CreateTopicsRequest
from ottla_wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from ottla_wire.messages.incremental_alter_configs import (
    AlterableConfig,
    AlterConfigsResource,
    IncrementalAlterConfigsRequest,
)
from ottla_wire.messages.init_producer_id import InitProducerIdRequest
from ottla_wire.messages.metadata import MetadataRequest
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData

TOPIC, BROKER, SET, DELETE = 2, 4, 0, 1
MESSAGE_TOO_LARGE = 10


def with_broker(data: Path, steps: Callable[[str], None]) -> None:
    """Run a broker on the data folder while `steps`, given its address, talk to it."""

    async def run() -> None:
        node = Node(BrokerConfig(listeners="PLAINTEXT://127.0.0.1:0", log_dirs=str(data)))
        await node.start()
        try:
            await asyncio.to_thread(steps, f"{node.host}:{node.port}")
        finally:
            await node.stop()

    asyncio.run(run())


def produce(client: Any, batch: bytes) -> int:
    """Produce to `orders`; the error code."""
    partition = PartitionProduceData(index=0, records=batch)
    request = ProduceRequest(
        acks=-1, timeout_ms=5000, topic_data=[TopicProduceData(name="orders", partition_data=[partition])]
    )
    response = client.ask(request, 9)
    return int(response.responses[0].partition_responses[0].error_code)


def change(client: Any, kind: int, name: str, key: str, operation: int, value: str | None) -> None:
    config = AlterableConfig(name=key, config_operation=operation, value=value)
    resource = AlterConfigsResource(resource_type=kind, resource_name=name, configs=[config])
    request = IncrementalAlterConfigsRequest(resources=[resource], validate_only=False)
    assert client.ask(request, 1).responses[0].error_code == 0


def create(client: Any, name: str) -> None:
    topic = CreatableTopic(name=name, num_partitions=1, replication_factor=1)
    assert client.ask(CreateTopicsRequest(topics=[topic]), 7).topics[0].error_code == 0


def test_a_changed_setting_reaches_open_logs_and_logs_opened_later(
    tmp_path: Path, connect: Callable[[str], Any], make_records: Callable[..., bytes]
) -> None:
    large = make_records(b"x" * 500)

    def change_settings(address: str) -> None:
        client = connect(address)
        create(client, "orders")
        assert produce(client, large) == 0
        change(client, TOPIC, "orders", "max.message.bytes", SET, "300")
        assert produce(client, large) == MESSAGE_TOO_LARGE
        change(client, TOPIC, "orders", "max.message.bytes", DELETE, None)
        assert produce(client, large) == 0
        change(client, BROKER, "", "message.max.bytes", SET, "300")
        assert produce(client, large) == MESSAGE_TOO_LARGE
        change(client, BROKER, "1", "message.max.bytes", SET, "3000")
        assert produce(client, large) == 0
        change(client, BROKER, "1", "message.max.bytes", DELETE, None)

    def still_changed(address: str) -> None:
        client = connect(address)
        assert produce(client, large) == MESSAGE_TOO_LARGE
        change(client, TOPIC, "orders", "max.message.bytes", SET, "1000")
        assert produce(client, large) == 0

    with_broker(tmp_path, change_settings)
    with_broker(tmp_path, still_changed)


def test_topics_ids_epochs_and_producer_ids_survive_a_restart(tmp_path: Path, connect: Callable[[str], Any]) -> None:
    seen: dict[str, Any] = {}
    ids = InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=1)

    def live(address: str) -> None:
        client = connect(address)
        create(client, "orders")
        create(client, "payments")
        deletion = DeleteTopicsRequest(topics=[DeleteTopicState(name="payments")], timeout_ms=1)
        assert client.ask(deletion, 6).responses[0].error_code == 0
        seen["cluster"] = client.ask(MetadataRequest(topics=None), 12)
        seen["producer id"] = client.ask(ids, 4).producer_id

    def live_again(address: str) -> None:
        client = connect(address)
        cluster = client.ask(MetadataRequest(topics=None), 12)
        assert (cluster.cluster_id, cluster.topics) == (seen["cluster"].cluster_id, seen["cluster"].topics)
        assert [topic.name for topic in cluster.topics] == ["orders"]
        assert client.ask(ids, 4).producer_id > seen["producer id"]

    with_broker(tmp_path, live)
    with_broker(tmp_path, live_again)
