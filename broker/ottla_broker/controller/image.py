"""MetadataImage: what the cluster knows, as of one offset of the metadata log.

`replay(record, offset)` is the only code that changes an image. Everything else reads it: the mappings are read-only
by type, and their values (partitions, brokers) are immutable and replaced as a whole, so that a reader may keep one.
A `MetadataDelta` says what a batch of records changed, for those who act on it (partition logs, coordinators).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from ottla_broker.controller.records import (
    NO_LEADER,
    NO_LEADER_CHANGE,
    BeginTransactionRecord,
    BrokerRegistrationChangeRecord,
    ConfigRecord,
    EndTransactionRecord,
    FeatureLevelRecord,
    MetadataRecord,
    NoOpRecord,
    PartitionChangeRecord,
    PartitionRecord,
    ProducerIdsRecord,
    RegisterBrokerRecord,
    RemoveTopicRecord,
    TopicRecord,
    UnregisterBrokerRecord,
)
from ottla_broker.controller.topic_names import collision_key, is_internal
from ottla_wire.schema import Uuid

_EMPTY: Final[Mapping[str, str]] = MappingProxyType({})


class ResourceType(IntEnum):
    """What a configuration belongs to; Kafka's ConfigResource.Type."""

    UNKNOWN = 0
    TOPIC = 2
    BROKER = 4
    BROKER_LOGGER = 8
    CLIENT_METRICS = 16
    GROUP = 32


class ConfigResource(NamedTuple):
    """One bearer of configuration. A broker named "" stands for the default of all brokers."""

    type: int
    name: str


CLUSTER_DEFAULT: Final = ConfigResource(ResourceType.BROKER, "")


class PartitionImage(NamedTuple):
    """Leadership and replicas of one partition."""

    id: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    leader: int
    leader_epoch: int
    partition_epoch: int
    directories: tuple[Uuid, ...] = ()
    adding: tuple[int, ...] = ()
    removing: tuple[int, ...] = ()
    leader_recovery_state: int = 0


class TopicImage:
    """One topic. `partitions` is by index; a topic that was deleted keeps its last state for whoever holds it."""

    __slots__ = ("_partitions", "id", "name", "partitions")

    def __init__(self, name: str, topic_id: Uuid) -> None:
        self.name = name
        self.id = topic_id
        self._partitions: dict[int, PartitionImage] = {}
        self.partitions: Mapping[int, PartitionImage] = MappingProxyType(self._partitions)

    @property
    def is_internal(self) -> bool:
        """Whether the broker keeps its own state in it."""
        return is_internal(self.name)

    def __repr__(self) -> str:
        return f"<TopicImage {self.name} {self.id} with {len(self.partitions)} partition(s)>"


class Endpoint(NamedTuple):
    """An address that clients can connect to."""

    name: str
    host: str
    port: int
    security_protocol: int = 0


@dataclass(frozen=True, slots=True)
class BrokerImage:
    """A registered broker. `epoch` is the offset of its registration."""

    id: int
    epoch: int
    incarnation_id: Uuid
    endpoints: tuple[Endpoint, ...]
    rack: str | None
    fenced: bool
    in_controlled_shutdown: bool
    directories: tuple[Uuid, ...] = ()

    @property
    def is_active(self) -> bool:
        """Whether it may lead partitions and be in an ISR."""
        return not self.fenced and not self.in_controlled_shutdown


@dataclass(slots=True)
class MetadataDelta:
    """What the records up to (and without) `end_offset` changed.

    A topic created and deleted in one delta is in neither list. `changed_partitions` holds every new or changed
    partition, those of created topics too.
    """

    end_offset: int = 0
    created_topics: dict[Uuid, TopicImage] = field(default_factory=dict)
    deleted_topics: dict[Uuid, TopicImage] = field(default_factory=dict)
    changed_partitions: dict[Uuid, set[int]] = field(default_factory=dict)
    changed_configs: set[ConfigResource] = field(default_factory=set)
    changed_brokers: set[int] = field(default_factory=set)
    changed_features: set[str] = field(default_factory=set)


class MetadataImage:
    """The state of the cluster; see the module's text.

    Attributes:
        cluster_id: the id the storage was formatted with.
        controller_id, controller_epoch: who leads the metadata log, and since which epoch.
        end_offset: the offset after the last record seen.
        next_producer_id: the first producer id of no block yet.
    """

    def __init__(self, cluster_id: str) -> None:
        self.cluster_id = cluster_id
        self.controller_id = NO_LEADER
        self.controller_epoch = -1
        self.end_offset = 0
        self.next_producer_id = 0
        self._brokers: dict[int, BrokerImage] = {}
        self._by_name: dict[str, TopicImage] = {}
        self._by_id: dict[Uuid, TopicImage] = {}
        self._configs: dict[ConfigResource, dict[str, str]] = {}
        self._features: dict[str, int] = {}
        self._colliding: dict[str, list[str]] = {}
        self.brokers: Mapping[int, BrokerImage] = MappingProxyType(self._brokers)
        self.topics_by_name: Mapping[str, TopicImage] = MappingProxyType(self._by_name)
        self.topics_by_id: Mapping[Uuid, TopicImage] = MappingProxyType(self._by_id)
        self.configs: Mapping[ConfigResource, Mapping[str, str]] = MappingProxyType(self._configs)
        self.features: Mapping[str, int] = MappingProxyType(self._features)

    # -- reading ---------------------------------------------------------------------------------------------------

    def partition(self, topic: str, index: int) -> PartitionImage | None:
        """A partition by its topic's name, or None."""
        image = self._by_name.get(topic)
        return None if image is None else image.partitions.get(index)

    def live_leader(self, topic: str, index: int) -> int | None:
        """The node that leads a partition; NO_LEADER while no live one does, None if there is no such partition."""
        partition = self.partition(topic, index)
        if partition is None:
            return None
        leader = self._brokers.get(partition.leader)
        return leader.id if leader is not None and leader.is_active else NO_LEADER

    def config(self, resource: ConfigResource) -> Mapping[str, str]:
        """What was set on a resource; empty if nothing was."""
        return self._configs.get(resource, _EMPTY)

    def topic_config(self, topic: str) -> Mapping[str, str]:
        """What was set on a topic; empty if nothing was."""
        return self._configs.get(ConfigResource(ResourceType.TOPIC, topic), _EMPTY)

    def active_brokers(self) -> list[BrokerImage]:
        """The brokers that may lead, in ascending order of their ids."""
        return [broker for _, broker in sorted(self._brokers.items()) if broker.is_active]

    def topic_colliding_with(self, name: str) -> str | None:
        """An existing topic whose name is the same once '.' is read as '_' (the topic itself, too), or None."""
        key = collision_key(name)
        names = self._colliding.get(key) if key is not None else None
        return names[0] if names else None

    def everything(self) -> MetadataDelta:
        """The delta that leads from nothing to here: for a listener that comes late."""
        return MetadataDelta(
            end_offset=self.end_offset,
            created_topics=dict(self._by_id),
            changed_partitions={topic_id: set(topic.partitions) for topic_id, topic in self._by_id.items()},
            changed_configs=set(self._configs),
            changed_brokers=set(self._brokers),
            changed_features=set(self._features),
        )

    def __iter__(self) -> Iterator[TopicImage]:
        return iter(self._by_name.values())

    # -- changing --------------------------------------------------------------------------------------------------

    def replay(self, record: MetadataRecord, offset: int, delta: MetadataDelta) -> None:
        """Apply one record of the log. The only code that changes the image."""
        _REPLAY[type(record)](self, record, delta)
        self.end_offset = delta.end_offset = offset + 1

    def leader_changed(self, node_id: int, epoch: int) -> None:
        """Take over who leads the metadata log (it is in control records, not in metadata records)."""
        assert epoch >= self.controller_epoch, "the epoch of the metadata log never falls"
        self.controller_id, self.controller_epoch = node_id, epoch

    def _replay_register_broker(self, record: RegisterBrokerRecord, delta: MetadataDelta) -> None:
        self._brokers[record.broker_id] = BrokerImage(
            id=record.broker_id,
            epoch=record.broker_epoch,
            incarnation_id=record.incarnation_id,
            endpoints=tuple(Endpoint(e.name, e.host, e.port, e.security_protocol) for e in record.end_points),
            rack=record.rack,
            fenced=record.fenced,
            in_controlled_shutdown=record.in_controlled_shutdown,
            directories=tuple(record.log_dirs),
        )
        delta.changed_brokers.add(record.broker_id)

    def _replay_unregister_broker(self, record: UnregisterBrokerRecord, delta: MetadataDelta) -> None:
        assert self._brokers[record.broker_id].epoch == record.broker_epoch, "unregistered with a wrong broker epoch"
        del self._brokers[record.broker_id]
        delta.changed_brokers.add(record.broker_id)

    def _replay_broker_change(self, record: BrokerRegistrationChangeRecord, delta: MetadataDelta) -> None:
        broker = self._brokers[record.broker_id]
        assert broker.epoch == record.broker_epoch, "registration changed with a wrong broker epoch"
        self._brokers[record.broker_id] = replace(
            broker,
            fenced=broker.fenced if record.fenced == 0 else record.fenced > 0,
            in_controlled_shutdown=broker.in_controlled_shutdown or record.in_controlled_shutdown > 0,
            directories=tuple(record.log_dirs) or broker.directories,
        )
        delta.changed_brokers.add(record.broker_id)

    def _replay_topic(self, record: TopicRecord, delta: MetadataDelta) -> None:
        assert record.name not in self._by_name, f"topic {record.name} is created while it exists"
        topic = TopicImage(record.name, record.topic_id)
        self._by_name[record.name] = self._by_id[record.topic_id] = topic
        key = collision_key(record.name)
        if key is not None:
            self._colliding.setdefault(key, []).append(record.name)
        delta.created_topics[record.topic_id] = topic

    def _replay_partition(self, record: PartitionRecord, delta: MetadataDelta) -> None:
        topic = self._by_id[record.topic_id]
        topic._partitions[record.partition_id] = PartitionImage(
            record.partition_id,
            tuple(record.replicas),
            tuple(record.isr),
            record.leader,
            record.leader_epoch,
            record.partition_epoch,
            tuple(record.directories),
            tuple(record.adding_replicas),
            tuple(record.removing_replicas),
            record.leader_recovery_state,
        )
        delta.changed_partitions.setdefault(record.topic_id, set()).add(record.partition_id)

    def _replay_partition_change(self, record: PartitionChangeRecord, delta: MetadataDelta) -> None:
        topic = self._by_id[record.topic_id]
        old = topic._partitions[record.partition_id]
        new_leader = record.leader != NO_LEADER_CHANGE
        topic._partitions[record.partition_id] = PartitionImage(
            old.id,
            _changed(record.replicas, old.replicas),
            _changed(record.isr, old.isr),
            record.leader if new_leader else old.leader,
            old.leader_epoch + 1 if new_leader else old.leader_epoch,
            old.partition_epoch + 1,
            _changed(record.directories, old.directories),
            _changed(record.adding_replicas, old.adding),
            _changed(record.removing_replicas, old.removing),
            old.leader_recovery_state if record.leader_recovery_state < 0 else record.leader_recovery_state,
        )
        delta.changed_partitions.setdefault(record.topic_id, set()).add(record.partition_id)

    def _replay_remove_topic(self, record: RemoveTopicRecord, delta: MetadataDelta) -> None:
        topic = self._by_id.pop(record.topic_id)
        del self._by_name[topic.name]
        key = collision_key(topic.name)
        if key is not None:
            self._colliding[key].remove(topic.name)
            if not self._colliding[key]:
                del self._colliding[key]
        resource = ConfigResource(ResourceType.TOPIC, topic.name)
        if self._configs.pop(resource, None) is not None:
            delta.changed_configs.add(resource)
        delta.changed_partitions.pop(topic.id, None)
        if delta.created_topics.pop(topic.id, None) is None:
            delta.deleted_topics[topic.id] = topic

    def _replay_config(self, record: ConfigRecord, delta: MetadataDelta) -> None:
        resource = ConfigResource(record.resource_type, record.resource_name)
        values = self._configs.setdefault(resource, {})
        if record.value is None:
            values.pop(record.name, None)
        else:
            values[record.name] = record.value
        if not values:
            del self._configs[resource]
        delta.changed_configs.add(resource)

    def _replay_feature_level(self, record: FeatureLevelRecord, delta: MetadataDelta) -> None:
        if record.feature_level:
            self._features[record.name] = record.feature_level
        else:
            self._features.pop(record.name, None)
        delta.changed_features.add(record.name)

    def _replay_producer_ids(self, record: ProducerIdsRecord, delta: MetadataDelta) -> None:
        assert record.next_producer_id > self.next_producer_id, "producer ids are given once"
        self.next_producer_id = record.next_producer_id

    def _replay_nothing(self, record: MetadataRecord, delta: MetadataDelta) -> None:
        # Metadata transactions (23-25) only group what a snapshot must not cut; one process writes them whole.
        pass


def _changed(new: list[Any] | None, old: tuple[Any, ...]) -> tuple[Any, ...]:
    return old if new is None else tuple(new)


_REPLAY: Final[dict[type, Callable[[MetadataImage, Any, MetadataDelta], None]]] = {
    RegisterBrokerRecord: MetadataImage._replay_register_broker,
    UnregisterBrokerRecord: MetadataImage._replay_unregister_broker,
    BrokerRegistrationChangeRecord: MetadataImage._replay_broker_change,
    TopicRecord: MetadataImage._replay_topic,
    PartitionRecord: MetadataImage._replay_partition,
    PartitionChangeRecord: MetadataImage._replay_partition_change,
    RemoveTopicRecord: MetadataImage._replay_remove_topic,
    ConfigRecord: MetadataImage._replay_config,
    FeatureLevelRecord: MetadataImage._replay_feature_level,
    ProducerIdsRecord: MetadataImage._replay_producer_ids,
    NoOpRecord: MetadataImage._replay_nothing,
    BeginTransactionRecord: MetadataImage._replay_nothing,
    EndTransactionRecord: MetadataImage._replay_nothing,
}
