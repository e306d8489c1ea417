"""One broker without sockets: real metadata, real logs in a temporary folder, a clock that the test moves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ottla_broker.broker import Broker
from ottla_broker.context import ANONYMOUS, RequestContext
from ottla_broker.controller.controller import Controller, Registration
from ottla_broker.controller.features import TRANSACTION_VERSION
from ottla_broker.controller.image import Endpoint, MetadataDelta
from ottla_broker.controller.metadata_log import MemoryMetadataLog
from ottla_broker.controller.topic_names import TRANSACTION_STATE_TOPIC
from ottla_broker.coordinator.transaction_config import TransactionConfig
from ottla_broker.coordinator.transaction_coordinator import TransactionCoordinator
from ottla_broker.log.config import LogConfig
from ottla_broker.log.files import OsFiles
from ottla_broker.log.partition_log import PartitionLog
from ottla_broker.pending import Pending
from ottla_broker.replication.coordinated_partitions import CoordinatedPartitions
from ottla_broker.replication.coordinator_log import ReplicaCoordinatorLog
from ottla_broker.replication.partition import Partition
from ottla_broker.replication.replica_manager import ReplicaManager
from ottla_broker.shell.config import BrokerConfig
from ottla_broker.shell.topic_settings import log_config
from ottla_wire.messages.create_topics import CreatableTopic, CreatableTopicConfig, CreateTopicsRequest
from ottla_wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from ottla_wire.records import build_batch
from ottla_wire.schema import Uuid
from support.wire_client import WireClient


class VirtualClock:
    """Both clocks of a broker; they move when the test says so."""

    def __init__(self) -> None:
        self.ms = 10_000

    def now_ms(self) -> int:
        return self.ms

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + self.ms


class FolderStorage:
    """Partition logs in a folder: what `LogDirectory` does, without checkpoints and locks."""

    def __init__(self, folder: Path, clock: VirtualClock, *, verify_transactions: bool = True) -> None:
        self.folder = folder
        self._verify_transactions = verify_transactions
        self.files = OsFiles()
        self.logs: dict[tuple[str, int], PartitionLog] = {}
        self.deleted: list[tuple[str, int]] = []
        self._clock = clock

    def open_log(self, topic: str, index: int, topic_id: Uuid, config: LogConfig) -> PartitionLog:
        folder = self.folder / f"{topic}-{index}"
        log = PartitionLog.open(
            self.files,
            folder,
            topic,
            index,
            topic_id,
            config,
            now_ms=self._clock.wall_ms(),
            verify_transactions=self._verify_transactions,
        )
        self.logs[topic, index] = log
        return log

    def delete_log(self, topic: str, index: int) -> None:
        log = self.logs.pop((topic, index))
        log.delete(self.folder / f"{topic}-{index}.{len(self.deleted)}-delete")
        self.deleted.append((topic, index))


class NoGroups:
    """A group coordinator that nobody asks."""

    def settle(self, now_ms: int) -> None:
        pass

    def tick(self, now_ms: int) -> None:
        pass

    def deadline_ms(self) -> int | None:
        return None


class BrokerBench:
    """A broker on the bench: `ask` it, move its clock, look inside."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.clock = VirtualClock()
        self.config = BrokerConfig(**{"node_id": 1, **config})
        self.storage = FolderStorage(
            folder, self.clock, verify_transactions=self.config.transaction_partition_verification_enable
        )
        rng = random.Random(7)
        self.controller = Controller(
            MemoryMetadataLog(node_id=self.config.node_id), cluster_id="bench", config=self.config, rng=rng
        )
        self.replicas = ReplicaManager(
            self.config.node_id,
            self.controller.image,
            self.storage,
            lambda topic: log_config(self.controller.configs, topic),
            rng=rng,
            max_fetch_sessions=self.config.max_incremental_fetch_session_cache_slots,
        )
        self.transactions = TransactionCoordinator(
            ReplicaCoordinatorLog(self.replicas, TRANSACTION_STATE_TOPIC, wall_ms=self.clock.wall_ms),
            TransactionConfig.of(self.config),
            new_producer_id=self.controller.producer_ids.next,
            leader_of=lambda partition: self.controller.image.live_leader(*partition),
            transaction_version=lambda: self.controller.image.features[TRANSACTION_VERSION],
            wall_ms=self.clock.wall_ms,
        )
        self.replicas.listen(TRANSACTION_STATE_TOPIC, CoordinatedPartitions(self.transactions, self.clock))
        self.controller.on_change(self._follow)
        self.controller.load()
        self.controller.register(
            Registration(Endpoint("PLAINTEXT", "bench.example", 9092), Uuid.random(rng), Uuid.random(rng)),
            clean_shutdown=True,
        )
        self.broker = Broker(
            self.config,
            clock=self.clock,
            controller=self.controller,
            replicas=self.replicas,
            groups=NoGroups(),  # type: ignore[arg-type]
            transactions=self.transactions,
            host="bench.example",
            port=9092,
        )

    def _follow(self, delta: MetadataDelta) -> None:
        self.replicas.apply(delta)

    def create_topic(self, name: str, partitions: int = 1, **config: str) -> Uuid:
        """Create a topic; configuration names with underscores. Returns its id."""
        topic = CreatableTopic(
            name=name,
            num_partitions=partitions,
            replication_factor=1,
            configs=[CreatableTopicConfig(name=key.replace("_", "."), value=value) for key, value in config.items()],
        )
        response = self.controller.create_topics(CreateTopicsRequest(topics=[topic], timeout_ms=1000)).result()
        assert response.topics[0].error_code == 0, response.topics[0].error_message
        return response.topics[0].topic_id

    def delete_topic(self, name: str) -> None:
        request = DeleteTopicsRequest(topics=[DeleteTopicState(name=name)], timeout_ms=1000)
        assert self.controller.delete_topics(request).result().responses[0].error_code == 0

    def partition(self, topic: str, index: int = 0) -> Partition:
        return self.replicas.partition(topic, index)

    def ask(self, request: Any, version: int, *, client_id: str | None = "bench", connection: int = 1) -> Any:
        """Hand over one request, as if it had come over the wire, and settle: the response, or a Pending of it."""
        decoded = type(request).decode(bytearray(request.encode(version)), version)
        context = RequestContext(
            connection, request.api_key, version, client_id, "192.0.2.1", ANONYMOUS, self.clock.now_ms()
        )
        answer = self.broker.handle(context, decoded)
        self.broker.settle(self.clock.now_ms())
        if isinstance(answer, Pending):
            return answer.result() if answer.done() else answer.then(lambda a: self._over_the_wire(a, version))
        return self._over_the_wire(answer, version)

    def advance(self, ms: int) -> None:
        """Let time pass, ticking at each deadline."""
        end = self.clock.ms + ms
        while (deadline := self.broker.deadline_ms()) is not None and deadline <= end:
            self.clock.ms = max(self.clock.ms, deadline)
            self.broker.tick(self.clock.ms)
        self.clock.ms = end

    @staticmethod
    def _over_the_wire(answer: Any, version: int) -> Any:
        return None if answer is None else type(answer).decode(answer.encode(version), version)


@pytest.fixture
def connect() -> Iterator[Callable[[str], WireClient]]:
    """Open wire clients, which are closed at the end of the test."""
    clients: list[WireClient] = []

    def open_client(address: str) -> WireClient:
        clients.append(WireClient(address))
        return clients[-1]

    yield open_client
    for client in clients:
        client.close()


def records(*values: bytes | None, timestamp_ms: int = 1_700_000_000_000, **fields: Any) -> bytes:
    """One batch with a record per value; `fields` are those of `build_batch`."""
    return build_batch([(timestamp_ms, b"k", value, ()) for value in values], **fields)


@pytest.fixture
def make_records() -> Callable[..., bytes]:
    return records


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., BrokerBench]]:
    benches: list[BrokerBench] = []

    def make(**config: Any) -> BrokerBench:
        bench = BrokerBench(tmp_path / f"bench-{len(benches)}", **config)
        bench.storage.folder.mkdir()
        benches.append(bench)
        return bench

    yield make
    for bench in benches:
        for log in bench.storage.logs.values():
            log.abandon()


@pytest.fixture
def bench(make_bench: Callable[..., BrokerBench]) -> BrokerBench:
    return make_bench()
