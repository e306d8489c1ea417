"""The clusters that one suite runs on, ours and Apache Kafka in several versions, behind one face.

A suite takes its cluster from the session's `clusters` fixture, and the choice of clusters from `cluster_params`:

    def pytest_generate_tests(metafunc):
        if "cluster" in metafunc.fixturenames:
            metafunc.parametrize("cluster", cluster_params(metafunc.definition), indirect=True, scope="session")

    @pytest.fixture(scope="session")
    def cluster(request, clusters):
        with clusters.lease(request.param) as started:
            yield started

The scope brings all tests of one cluster together, whatever the order of the tests is.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ottla.client import AdminClient, TopicPartition
from ottla.client.admin import NewTopic, OffsetSpec
from ottla_wire.messages.api_versions import ApiVersionsRequest
from ottla_wire.messages.find_coordinator import FindCoordinatorRequest
from ottla_wire.messages.init_producer_id import InitProducerIdRequest
from ottla_wire.messages.offset_fetch import OffsetFetchRequest, OffsetFetchRequestGroup
from ottla_wire.schema import Request
from support.apache_kafka import DEFAULT, VERSIONS, ApacheKafka
from support.broker_process import BrokerProcess
from support.peers import APACHE_ADDRESS, APACHE_IMAGE, docker_is_there, missing
from support.wire_client import WireClient

SETTINGS = {
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
}
READY_SECONDS = 30
EVERY_VERSION = "every_version"  # the mark of tests of our client: they run on each Apache Kafka that is in VERSIONS


class ClusterUnderTest:
    """A running cluster of one node: its address, topics of fresh names, raw connections.

    `release` is the Kafka version whose behaviour it must have ("4.3"), or None where that is not known.
    """

    def __init__(self, name: str, bootstrap_servers: str, release: str | None = DEFAULT) -> None:
        self.name = name
        self.release = release
        self.bootstrap_servers = bootstrap_servers
        self.admin = AdminClient(bootstrap_servers=bootstrap_servers, retry_backoff_ms=20)

    def close(self) -> None:
        self.admin.close()

    def connect(self) -> WireClient:
        return WireClient(self.bootstrap_servers)

    @functools.cached_property
    def versions(self) -> dict[int, tuple[int, int]]:
        """The lowest and highest version of each API that the broker has."""
        client = self.connect()
        try:
            return {
                api.api_key: (api.min_version, api.max_version) for api in client.ask(ApiVersionsRequest(), 0).api_keys
            }
        finally:
            client.close()

    def newest(self, request: type[Request], at_most: int) -> int:
        """The newest version of a kind of request that the broker has, up to one."""
        return min(self.versions[request.api_key][1], at_most)

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
        yield from _serving("apache", address, release=None)
    elif missing(f"apache-{DEFAULT}") is None or not docker_is_there():
        with ApacheKafka(config=SETTINGS, quick=True) as kafka:
            yield from _serving("apache", kafka.bootstrap_servers)
    else:
        from testcontainers.community.kafka import KafkaContainer

        container = KafkaContainer(os.environ.get(APACHE_IMAGE, "confluentinc/cp-kafka:8.3.0")).with_kraft()
        for name, value in SETTINGS.items():
            container = container.with_env("KAFKA_" + name.replace(".", "_").upper(), value)
        with container as kafka:
            yield from _serving("apache", kafka.get_bootstrap_server(), release=None)


@contextlib.contextmanager
def apache_release(release: str) -> Iterator[ClusterUnderTest]:
    """One version of Apache Kafka, from Maven."""
    with ApacheKafka(VERSIONS[release], config=SETTINGS, heap="512m", quick=True) as kafka:
        yield from _serving(f"apache-{release}", kafka.bootstrap_servers, release)


Starter = Callable[[], contextlib.AbstractContextManager[Any]]
CLUSTERS: dict[str, Starter] = {
    "ottla": ottla_cluster,
    "apache": apache_cluster,
} | {f"apache-{release}": functools.partial(apache_release, release) for release in VERSIONS if release != DEFAULT}


def cluster_params(test: pytest.Item | pytest.Function) -> list[Any]:
    """The clusters that a test is meant for: ours and Apache Kafka, and its other versions with the mark for that."""
    names = CLUSTERS if test.get_closest_marker(EVERY_VERSION) else ("ottla", "apache")
    return [pytest.param(name, marks=[] if name == "ottla" else pytest.mark.peer(name)) for name in names]


class Clusters:
    """The clusters of a test session, each started when it is first asked for.

    One that nobody has on lease is stopped before another is started: there is never more than one JVM per lease.
    """

    def __init__(self) -> None:
        self._running: dict[str, tuple[ClusterUnderTest, contextlib.ExitStack]] = {}
        self._leases: Counter[str] = Counter()

    @contextlib.contextmanager
    def lease(self, name: str) -> Iterator[ClusterUnderTest]:
        """The cluster of a name in CLUSTERS, running until the end of the block at least."""
        if name not in self._running:
            self._stop([other for other in self._running if not self._leases[other]])
            stack = contextlib.ExitStack()
            self._running[name] = stack.enter_context(CLUSTERS[name]()), stack
        self._leases[name] += 1
        try:
            yield self._running[name][0]
        finally:
            self._leases[name] -= 1

    def close(self) -> None:
        """Stop all of them."""
        self._stop(list(self._running))

    def _stop(self, names: list[str]) -> None:
        with contextlib.ExitStack() as stopping:  # one that fails does not keep the others
            for name in reversed(names):
                stopping.callback(self._running.pop(name)[1].close)


def _serving(name: str, address: str, release: str | None = DEFAULT) -> Iterator[ClusterUnderTest]:
    cluster = ClusterUnderTest(name, address, release)
    try:
        cluster.await_ready()
        yield cluster
    finally:
        cluster.close()
