"""Metadata: what is known of the cluster. Brokers, topics, and who leads which partition in which epoch.

Theory of operation. Answers to Metadata requests are merged in, and so are the hints that Produce and Fetch answers
carry (KIP-951). Answers come from different brokers and may be older than what is known, so a partition's entry is
replaced only by one whose leader epoch is not lower; a topic that was deleted and made again has another topic id, and
then what was known of the old one counts for nothing (KIP-320, KIP-516). Brokers without epochs (before 2.4 they were
unreliable) answer -1, which always replaces.

No I/O here: the cluster fetches, this remembers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ottla.errors import KafkaError, error_for
from ottla_wire.schema import Uuid

NO_LEADER = -1
NO_EPOCH = -1


class Node(NamedTuple):
    """A broker's address. Addresses from `bootstrap_servers` have negative ids until the cluster names its brokers."""

    id: int
    host: str
    port: int
    rack: str | None = None

    def __str__(self) -> str:
        name = f"broker {self.id}" if self.id >= 0 else "bootstrap server"
        return f"{name} ({self.host}:{self.port})"


@dataclass(frozen=True, slots=True)
class PartitionMetadata:
    """A partition: its leader (-1: none at the moment), the epoch of that leadership (-1: unknown), its replicas."""

    index: int
    leader: int = NO_LEADER
    leader_epoch: int = NO_EPOCH
    replicas: tuple[int, ...] = ()
    isr: tuple[int, ...] = ()
    offline_replicas: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TopicMetadata:
    """A topic and its partitions by index. `topic_id` is zero where the broker has none (before 2.8)."""

    name: str
    topic_id: Uuid
    is_internal: bool = False
    partitions: Mapping[int, PartitionMetadata] = field(default_factory=dict)

    @property
    def partition_count(self) -> int:
        """How many partitions the topic has."""
        return len(self.partitions)


class Metadata:
    """The cache. `version` grows with every change, so that users need not compare."""

    def __init__(self) -> None:
        self.version = 0
        self.cluster_id: str | None = None
        self.controller_id: int = -1
        self.last_failure: Exception | None = None  # why the last attempt to refresh it failed; None after a success
        self._nodes: dict[int, Node] = {}
        self._topics: dict[str, TopicMetadata] = {}
        self._names: dict[Uuid, str] = {}
        self._errors: dict[str, KafkaError] = {}

    # --- questions

    @property
    def trouble(self) -> str:
        """The end of a sentence about a time-out: what the last attempt to ask failed with, or nothing."""
        return f"; the last attempt: {self.last_failure}" if self.last_failure is not None else ""

    def node(self, node_id: int) -> Node | None:
        """The address of a broker, or None if it is not known."""
        return self._nodes.get(node_id)

    def nodes(self) -> list[Node]:
        """All brokers of the cluster, as far as known."""
        return list(self._nodes.values())

    def topic(self, name: str) -> TopicMetadata | None:
        """What is known of a topic; None if nothing is, or if the last answer said that there is no such topic."""
        return self._topics.get(name)

    def topics(self) -> Iterator[TopicMetadata]:
        """All topics that are known."""
        return iter(list(self._topics.values()))

    def topic_error(self, name: str) -> KafkaError | None:
        """What the last answer said against this topic: it does not exist (yet), may not be read, has no valid name."""
        return self._errors.get(name)

    def topic_name(self, topic_id: Uuid) -> str | None:
        """The name of the topic with this id, or None."""
        return self._names.get(topic_id)

    def partition(self, topic: str, index: int) -> PartitionMetadata | None:
        """What is known of a partition, or None."""
        known = self._topics.get(topic)
        return None if known is None else known.partitions.get(index)

    def leader(self, topic: str, index: int) -> int | None:
        """The broker that leads a partition; None if it has no leader, or none that is known."""
        partition = self.partition(topic, index)
        return None if partition is None or partition.leader == NO_LEADER else partition.leader

    # --- what is learnt

    def update(self, answer: Any, *, whole: bool = False) -> None:
        """Merge a MetadataResponse. `whole`: it was about all topics, so what it does not name is gone."""
        self._nodes = {b.node_id: Node(b.node_id, b.host, b.port, b.rack) for b in answer.brokers}
        if answer.cluster_id is not None:
            self.cluster_id = answer.cluster_id
        self.controller_id = answer.controller_id
        if whole:
            gone = self._topics.keys() - {topic.name for topic in answer.topics}
            self.forget(gone)
        for topic in answer.topics:
            self._update_topic(topic)
        self.version += 1

    def update_leader(self, topic: str, index: int, leader: int, leader_epoch: int, nodes: Iterable[Node] = ()) -> bool:
        """Take over who leads a partition from a Produce or Fetch answer (KIP-951), if its epoch is newer.

        Returns:
            Whether anything was learnt.
        """
        known = self._topics.get(topic)
        partition = None if known is None else known.partitions.get(index)
        if known is None or partition is None or leader < 0 or leader_epoch <= partition.leader_epoch:
            return False
        self._nodes.update({node.id: node for node in nodes})
        if leader not in self._nodes:
            return False
        changed = replace(partition, leader=leader, leader_epoch=leader_epoch)
        self._topics[topic] = replace(known, partitions={**known.partitions, index: changed})
        self.version += 1
        return True

    def learn_node(self, node: Node) -> None:
        """A FindCoordinator answer named a broker, which metadata may not have shown yet."""
        self._nodes[node.id] = node

    def forget(self, topics: Iterable[str]) -> None:
        """Drop topics that nobody is interested in any more, or that are gone."""
        for name in list(topics):
            topic = self._topics.pop(name, None)
            self._errors.pop(name, None)
            if topic is not None:
                self._names.pop(topic.topic_id, None)

    def rebootstrap(self) -> None:
        """Forget everything: the brokers known are out of reach, the cluster may be another one (KIP-899)."""
        self._nodes.clear()
        self._topics.clear()
        self._names.clear()
        self._errors.clear()
        self.controller_id = -1
        self.version += 1

    def _update_topic(self, answer: Any) -> None:
        name = answer.name
        if name is None:
            return  # asked by an id that the broker does not know
        error = error_for(answer.error_code)
        if error is not None and not answer.partitions:
            self.forget([name])
            self._errors[name] = error
            return
        self._errors.pop(name, None)
        known = self._topics.get(name)
        if known is not None and known.topic_id != answer.topic_id:
            self._names.pop(known.topic_id, None)
            known = None
        partitions = {
            partition.partition_index: self._newer(known, partition)
            for partition in sorted(answer.partitions, key=lambda partition: int(partition.partition_index))
        }
        self._topics[name] = TopicMetadata(name, answer.topic_id, answer.is_internal, partitions)
        if answer.topic_id != Uuid.ZERO:
            self._names[answer.topic_id] = name

    @staticmethod
    def _newer(known: TopicMetadata | None, answer: Any) -> PartitionMetadata:
        cached = None if known is None else known.partitions.get(answer.partition_index)
        if cached is not None and NO_EPOCH < answer.leader_epoch < cached.leader_epoch:
            return cached
        return PartitionMetadata(
            index=answer.partition_index,
            leader=answer.leader_id,
            leader_epoch=answer.leader_epoch,
            replicas=tuple(answer.replica_nodes),
            isr=tuple(answer.isr_nodes),
            offline_replicas=tuple(answer.offline_replicas),
        )
