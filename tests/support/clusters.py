"""The clusters that one suite runs on, ours and Apache Kafka, behind one face."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ottla.client import AdminClient, TopicPartition
from ottla.client.admin import NewTopic, OffsetSpec
from ottla_wire.messages.find_coordinator import FindCoordinatorRequest
from ottla_wire.messages.init_producer_id import InitProducerIdRequest
from ottla_wire.messages.offset_fetch import OffsetFetchRequest, OffsetFetchRequestGroup
from support.apache_kafka import ApacheKafka
from support.broker_process import BrokerProcess
from support.peers import APACHE_ADDRESS, APACHE_IMAGE, docker_is_there, missing
from support.wire_client import WireClient

SETTINGS = {
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
}
READY_SECONDS = 30


class ClusterUnderTest:
    """A running cluster of one node: its address, topics of fresh names, raw connections."""

    def __init__(self, name: str, bootstrap_servers: str) -> None:
        self.name = name
        self.bootstrap_servers = bootstrap_servers
        self.admin = AdminClient(bootstrap_servers=bootstrap_servers)

    def close(self) -> None:
        self.admin.close()

    def connect(self) -> WireClient:
        return WireClient(self.bootstrap_servers)

    @staticmethod
    def fresh(prefix: str) -> str:
        """A name that nobody has used."""
        return f"{prefix}-{uuid.uuid4().hex[:12]}"

    def create_topic(self, partitions: int = 1, **configs: str) -> str:
        """A new topic, with configuration names in snake case; returns its name once all its leaders serve."""
        name = self.fresh("t")
        settings = {key.replace("_", "."): value for key, value in configs.items()}
        self.admin.create_topics([NewTopic(name, partitions=partitions, replication_factor=1, configs=settings)])
        self.admin.list_offsets({TopicPartition(name, index): OffsetSpec.LATEST for index in range(partitions)})
        return name

    def await_ready(self) -> None:
        """Wait until every partition of the offsets topic has a coordinator, and producer ids are handed out."""
        client = self.connect()
        try:
            find = FindCoordinatorRequest(key_type=0, coordinator_keys=["g"], key="")
            eventually(lambda: client.ask(find, 4).coordinators[0].error_code == 0)
            asked = [OffsetFetchRequestGroup(group_id=f"g{number}", topics=None) for number in range(40)]
            fetch = OffsetFetchRequest(groups=asked, topics=[])
            eventually(lambda: all(group.error_code == 0 for group in client.ask(fetch, 9).groups))
            identify = InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=60_000)
            eventually(lambda: client.ask(identify, 4).error_code == 0)
        finally:
            client.close()


def eventually(satisfied: Callable[[], Any], seconds: float = READY_SECONDS) -> Any:
    """Ask again until the answer is true; returns it."""
    deadline = time.monotonic() + seconds
    while not (answer := satisfied()):
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.05)
    return answer


@contextlib.contextmanager
def ottla_cluster() -> Iterator[ClusterUnderTest]:
    """Our broker, a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix="ottla-cluster-"))
    try:
        with BrokerProcess(folder, SETTINGS) as broker:
            yield from _serving("ottla", broker.bootstrap_servers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def apache_cluster() -> Iterator[ClusterUnderTest]:
    """Apache Kafka: at the address in the environment, else from Maven, else from a container."""
    if address := os.environ.get(APACHE_ADDRESS):
        yield from _serving("apache", address)
    elif missing("apache-4.3") is None or not docker_is_there():
        with ApacheKafka(config=SETTINGS) as kafka:
            yield from _serving("apache", kafka.bootstrap_servers)
    else:
        from testcontainers.community.kafka import KafkaContainer

        container = KafkaContainer(os.environ.get(APACHE_IMAGE, "confluentinc/cp-kafka:8.3.0")).with_kraft()
        for name, value in SETTINGS.items():
            container = container.with_env("KAFKA_" + name.replace(".", "_").upper(), value)
        with container as kafka:
            yield from _serving("apache", kafka.get_bootstrap_server())


def _serving(name: str, address: str) -> Iterator[ClusterUnderTest]:
    cluster = ClusterUnderTest(name, address)
    try:
        cluster.await_ready()
        yield cluster
    finally:
        cluster.close()
