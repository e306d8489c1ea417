"""A controller over a log in memory, spoken to in the words of the domain."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ottla_broker.controller.controller import Controller, Registration
from ottla_broker.controller.image import ConfigResource, Endpoint, MetadataDelta, MetadataImage, ResourceType
from ottla_broker.controller.metadata_log import MemoryMetadataLog
from ottla_broker.controller.records import RegisterBrokerRecord
from ottla_broker.shell.config import BrokerConfig
from ottla_wire.messages import alter_configs as legacy
from ottla_wire.messages import incremental_alter_configs as incremental
from ottla_wire.messages.create_partitions import (
    CreatePartitionsAssignment,
    CreatePartitionsRequest,
    CreatePartitionsTopic,
)
from ottla_wire.messages.create_topics import (
    CreatableReplicaAssignment,
    CreatableTopic,
    CreatableTopicConfig,
    CreateTopicsRequest,
)
from ottla_wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from ottla_wire.schema import Uuid

# the file system that can crash is kept beside the tests of the log
sys.path.insert(0, str(Path(__file__).parents[1] / "log"))

CLUSTER_ID = "a-cluster-of-our-tests"


def topic(
    name: str,
    partitions: int = 1,
    replicas: int = 1,
    assignments: dict[int, list[int]] | Sequence[tuple[int, list[int]]] = (),
    configs: dict[str, str | None] | None = None,
) -> CreatableTopic:
    """A topic to create; with assignments, counts are left open."""
    pairs = assignments.items() if isinstance(assignments, dict) else assignments
    assigned = [CreatableReplicaAssignment(partition_index=index, broker_ids=brokers) for index, brokers in pairs]
    return CreatableTopic(
        name=name,
        num_partitions=-1 if assigned and partitions == 1 else partitions,
        replication_factor=-1 if assigned and replicas == 1 else replicas,
        assignments=assigned,
        configs=[CreatableTopicConfig(name=key, value=value) for key, value in (configs or {}).items()],
    )


class Cluster:
    """A controller with one broker, number 1."""

    topic = staticmethod(topic)

    def __init__(self, log: MemoryMetadataLog | None = None, seed: int = 1, **config: Any) -> None:
        self.log = log or MemoryMetadataLog()
        self.rng = random.Random(seed)
        self.config = BrokerConfig(**config)
        self.controller = Controller(self.log, cluster_id=CLUSTER_ID, config=self.config, rng=self.rng)
        self.deltas: list[MetadataDelta] = []
        self.controller.on_change(self.deltas.append)

    def start(self, *, clean_shutdown: bool = True) -> Cluster:
        self.controller.load()
        endpoint = Endpoint("PLAINTEXT", "broker.example", 9092)
        registration = Registration(endpoint, Uuid.random(self.rng), Uuid(bytes(15) + b"\x64"))
        self.controller.register(registration, clean_shutdown=clean_shutdown)
        return self

    def restarted(self, *, clean_shutdown: bool = True) -> Cluster:
        """The cluster after a restart of its only node; what was not committed is lost."""
        return Cluster(self.log.reopened(), seed=self.rng.randrange(1000)).start(clean_shutdown=clean_shutdown)

    @property
    def image(self) -> MetadataImage:
        return self.controller.image

    def add_broker(self, broker_id: int, *, fenced: bool = False) -> None:
        """Another broker registers (the quorum will do this)."""
        record = RegisterBrokerRecord(
            broker_id=broker_id,
            incarnation_id=Uuid.random(self.rng),
            broker_epoch=self.log.end_offset,
            end_points=[],
            features=[],
            fenced=fenced,
        )
        self.controller._append([record])

    def create(self, *topics: CreatableTopic, validate_only: bool = False) -> dict[str, Any]:
        request = CreateTopicsRequest(topics=list(topics), validate_only=validate_only)
        return {result.name: result for result in self.controller.create_topics(request).result().topics}

    def create_one(self, name: str, partitions: int = 1, **configs: str) -> Uuid:
        result = self.create(topic(name, partitions, configs={k.replace("_", "."): v for k, v in configs.items()}))
        assert result[name].error_code == 0, result[name].error_message
        topic_id = result[name].topic_id
        assert isinstance(topic_id, Uuid)
        return topic_id

    def delete(self, *names: str, ids: Sequence[Uuid] = (), states: Sequence[DeleteTopicState] = ()) -> list[Any]:
        topics = [DeleteTopicState(name=name) for name in names]
        topics += [DeleteTopicState(name=None, topic_id=topic_id) for topic_id in ids]
        request = DeleteTopicsRequest(topics=topics + list(states), timeout_ms=1000)
        return list(self.controller.delete_topics(request).result().responses)

    def grow(
        self, name: str, count: int, assignments: list[list[int]] | None = None, *, validate_only: bool = False
    ) -> Any:
        assigned = None
        if assignments is not None:
            assigned = [CreatePartitionsAssignment(broker_ids=brokers) for brokers in assignments]
        growing = CreatePartitionsTopic(name=name, count=count, assignments=assigned)
        request = CreatePartitionsRequest(topics=[growing], timeout_ms=1000, validate_only=validate_only)
        return self.controller.create_partitions(request).result().results[0]

    def alter(
        self, resource: ConfigResource | str, *changes: tuple[str, int, str | None], validate_only: bool = False
    ) -> Any:
        """Change a topic's, or another resource's, configuration; the answer for it."""
        kind, name = resource if isinstance(resource, ConfigResource) else (ResourceType.TOPIC, resource)
        configs = [incremental.AlterableConfig(name=n, config_operation=o, value=v) for n, o, v in changes]
        entry = incremental.AlterConfigsResource(resource_type=int(kind), resource_name=name, configs=configs)
        request = incremental.IncrementalAlterConfigsRequest(resources=[entry], validate_only=validate_only)
        return self.controller.incremental_alter_configs(request).result().responses[0]

    def replace(self, resource: ConfigResource | str, configs: dict[str, str | None]) -> Any:
        """The legacy AlterConfigs."""
        kind, name = resource if isinstance(resource, ConfigResource) else (ResourceType.TOPIC, resource)
        entries = [legacy.AlterableConfig(name=n, value=v) for n, v in configs.items()]
        entry = legacy.AlterConfigsResource(resource_type=int(kind), resource_name=name, configs=entries)
        request = legacy.AlterConfigsRequest(resources=[entry], validate_only=False)
        return self.controller.alter_configs(request).result().responses[0]


@pytest.fixture(scope="session")
def make_cluster() -> Callable[..., Cluster]:
    return Cluster


@pytest.fixture
def cluster() -> Cluster:
    return Cluster().start()


def snapshot(image: MetadataImage) -> dict[str, Any]:
    """Everything an image says, for comparison; the leader's epoch differs from run to run."""
    return {
        "brokers": dict(image.brokers),
        "topics": {t.name: (t.id, dict(t.partitions)) for t in image},
        "ids": {topic_id: t.name for topic_id, t in image.topics_by_id.items()},
        "configs": {resource: dict(values) for resource, values in image.configs.items()},
        "features": dict(image.features),
        "producer id": image.next_producer_id,
        "colliding": dict(image._colliding),
    }


@pytest.fixture(scope="session")
def snapshot_of() -> Callable[[MetadataImage], dict[str, Any]]:
    return snapshot
