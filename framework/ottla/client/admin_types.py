"""What the admin client is asked with, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Final, Generic, TypeVar

from ottla.client.metadata import Node
from ottla.client.producer.epoch_end import EpochEndReason
from ottla.client.topic_partition import TopicPartition
from ottla.errors import KafkaError, OttlaError
from ottla_wire.schema import Uuid

K = TypeVar("K")
V = TypeVar("V")


class SomeFailed(OttlaError, Generic[K, V]):
    """Some items of a call failed. `errors` says which and why, `results` holds what came of the others.

    Where one item only was asked for, its own error is raised in place of this.
    """

    def __init__(self, what: str, errors: Mapping[K, KafkaError], results: Mapping[K, V]) -> None:
        listed = "; ".join(f"{item}: {type(error).__name__}: {error}" for item, error in errors.items())
        super().__init__(f"{what}: {len(errors)} of {len(errors) + len(results)} failed: {listed}")
        self.errors = dict(errors)
        self.results = dict(results)


def outcome(what: str, results: dict[K, V], errors: dict[K, KafkaError]) -> dict[K, V]:
    """The results, unless something failed.

    Raises:
        SomeFailed: several items were asked for and some failed.
        KafkaError: one item was asked for and failed.
    """
    if not errors:
        return results
    item, first = next(iter(errors.items()))
    if len(errors) == 1 and not results:
        raise type(first)(f"{what}: {item}: {first}") from first
    raise SomeFailed(what, errors, results) from first


@dataclass(frozen=True, slots=True)
class NewTopic:
    """A topic to be created. Counts that are not given are the broker's defaults.

    `replica_assignments` names the brokers of each partition, and then takes the place of both counts.
    """

    name: str
    partitions: int | None = None
    replication_factor: int | None = None
    configs: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    replica_assignments: Mapping[int, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CreatedTopic:
    """A topic that was created; counts are -1 where the broker does not tell."""

    name: str
    topic_id: Uuid
    partitions: int
    replication_factor: int


@dataclass(frozen=True, slots=True)
class TopicListing:
    """A topic that exists."""

    name: str
    topic_id: Uuid
    is_internal: bool


@dataclass(frozen=True, slots=True)
class PartitionDescription:
    """A partition, its leader (None: none at the moment) and its replicas."""

    index: int
    leader: Node | None
    leader_epoch: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    offline_replicas: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """A topic with its partitions in ascending order."""

    name: str
    topic_id: Uuid
    is_internal: bool
    partitions: tuple[PartitionDescription, ...]


@dataclass(frozen=True, slots=True)
class ClusterDescription:
    """The cluster: its id, its brokers, and the one that takes what is meant for the controller."""

    cluster_id: str
    controller: Node | None
    nodes: tuple[Node, ...]


class ConfigKind(IntEnum):
    """What a configuration belongs to; the numbers are the protocol's."""

    TOPIC = 2
    BROKER = 4
    BROKER_LOGGER = 8
    CLIENT_METRICS = 16
    GROUP = 32


@dataclass(frozen=True, slots=True)
class ConfigResource:
    """The owner of a configuration. A broker's name is its id; "" stands for all brokers' common defaults."""

    kind: ConfigKind
    name: str

    @classmethod
    def topic(cls, name: str) -> ConfigResource:
        """A topic."""
        return cls(ConfigKind.TOPIC, name)

    @classmethod
    def broker(cls, node_id: int | None = None) -> ConfigResource:
        """A broker, or what all brokers have in common."""
        return cls(ConfigKind.BROKER, "" if node_id is None else str(node_id))

    @classmethod
    def group(cls, name: str) -> ConfigResource:
        """A group."""
        return cls(ConfigKind.GROUP, name)

    def __str__(self) -> str:
        return f"{self.kind.name.lower()} {self.name or '(default)'}"


@dataclass(frozen=True, slots=True)
class ConfigEntry:
    """One setting. `source` is where its value comes from, in the protocol's numbers: 1 the topic's own, 5 the default.

    `value` is None if it is sensitive, or not set.
    """

    name: str
    value: str | None
    source: int
    is_sensitive: bool
    is_read_only: bool
    documentation: str | None = None

    @property
    def is_default(self) -> bool:
        """Whether nobody has set it."""
        return self.source == DEFAULT_CONFIG


DEFAULT_CONFIG: Final = 5


class ConfigOperation(IntEnum):
    """What is done to a setting; APPEND and SUBTRACT are for lists (KIP-339)."""

    SET = 0
    DELETE = 1
    APPEND = 2
    SUBTRACT = 3


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """A change of one setting; `value` is not needed to DELETE, which brings the default back."""

    value: str | int | float | bool | None
    operation: ConfigOperation = ConfigOperation.SET


@dataclass(frozen=True, slots=True)
class GroupListing:
    """A group, with its state and type where the brokers tell (Kafka 2.6 and 3.8)."""

    group_id: str
    protocol_type: str
    state: str | None
    type: str | None


@dataclass(frozen=True, slots=True)
class MemberDescription:
    """A member of a group, and what it is assigned."""

    member_id: str
    group_instance_id: str | None
    client_id: str
    host: str
    assignment: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class GroupDescription:
    """A group with its members."""

    group_id: str
    state: str
    protocol_type: str
    assignor: str
    coordinator: Node | None
    members: tuple[MemberDescription, ...]


class OffsetSpec(Enum):
    """Which offset of a partition is asked for, beside a timestamp in milliseconds."""

    LATEST = -1
    EARLIEST = -2
    MAX_TIMESTAMP = -3


@dataclass(frozen=True, slots=True)
class OffsetInfo:
    """An offset that was asked for; it is -1 if there is no record at or after the timestamp that was given."""

    offset: int
    timestamp_ms: int
    leader_epoch: int | None


@dataclass(frozen=True, slots=True)
class TransactionListing:
    """A transactional id, its coordinator and its state ("Empty", "Ongoing", "PrepareCommit", "CompleteAbort", ...)."""

    transactional_id: str
    coordinator: Node
    producer_id: int
    state: str


@dataclass(frozen=True, slots=True)
class EpochEndDescription:
    """Why an epoch of a transactional id ended although its producer did not want it, by whom, and when (ms).

    Only our own brokers tell. The client is the one that fenced the producer; a time-out has none.
    """

    reason: EpochEndReason
    producer_epoch: int
    client_id: str
    client_host: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class TransactionDescription:
    """A transactional id with its transaction, if one is open or its markers are not all written yet."""

    transactional_id: str
    coordinator: Node | None
    state: str
    producer_id: int
    producer_epoch: int
    timeout_ms: int
    started_ms: int | None
    partitions: tuple[TopicPartition, ...]
    epoch_end: EpochEndDescription | None = None


@dataclass(frozen=True, slots=True)
class ProducerDescription:
    """A producer as a partition remembers it.

    `transaction_start_offset` is where its open transaction begins here, None without one. `coordinator_epoch` is that
    of the last marker, None before the first.
    """

    producer_id: int
    producer_epoch: int
    last_sequence: int
    last_timestamp_ms: int
    coordinator_epoch: int | None
    transaction_start_offset: int | None


@dataclass(frozen=True, slots=True)
class AbortTransactionSpec:
    """Whose transaction is to be aborted in which partition."""

    partition: TopicPartition
    producer_id: int
    producer_epoch: int
    coordinator_epoch: int = 0

    @classmethod
    def of(cls, partition: TopicPartition, producer: ProducerDescription) -> AbortTransactionSpec:
        """For a producer as the partition describes it."""
        return cls(partition, producer.producer_id, producer.producer_epoch, producer.coordinator_epoch or 0)


@dataclass(frozen=True, slots=True)
class HangingTransaction:
    """A transaction that is open in a partition, and unknown to every coordinator."""

    partition: TopicPartition
    producer: ProducerDescription

    @property
    def spec(self) -> AbortTransactionSpec:
        """What `abort_transaction` takes."""
        return AbortTransactionSpec.of(self.partition, self.producer)
