"""Metadata records: what `__cluster_metadata-0` holds, in Kafka's own format.

Everything the cluster knows (brokers, topics, partitions, configurations, features, producer-id blocks) is the sum of
these records. A record's value in the log is framed as

    unsigned varint 1 (frame version) | unsigned varint api key | unsigned varint version | body

so Apache Kafka's `dump-log --cluster-metadata-decoder` reads our file. The classes are named as in Kafka's
`common/metadata/*.json`. Records of parts that Ottla does not have (quotas, ACLs, SCRAM, delegation tokens) are added
with those parts: reading one here is an error that names it, for state that is skipped would be lost state.
"""

from __future__ import annotations

from typing import Any, Final

from ottla_wire.errors import DecodeError
from ottla_wire.schema import Data, Struct, Uuid, field, i8, i16, i32, i64, u16

FRAME_VERSION: Final = 1
CLUSTER_METADATA_TOPIC: Final = "__cluster_metadata"
CLUSTER_METADATA_TOPIC_ID: Final = Uuid(bytes(15) + b"\x01")

NO_LEADER: Final = -1
NO_LEADER_CHANGE: Final = -2


class BrokerEndpoint(Struct):
    """An address of a broker."""

    name: str
    host: str
    port: u16
    security_protocol: i16


class BrokerFeature(Struct):
    """A feature that a broker supports, with its range of levels."""

    name: str
    min_supported_version: i16
    max_supported_version: i16


class RegisterBrokerRecord(Data, versions="0-4", flexible="0+"):
    """A process registered as broker `broker_id`; its epoch is the offset of this record."""

    broker_id: i32
    is_migrating_zk_broker: bool = field("2+")
    incarnation_id: Uuid
    broker_epoch: i64
    end_points: list[BrokerEndpoint]
    features: list[BrokerFeature]
    rack: str | None = field("0+", nullable="0+")
    fenced: bool = field("0+", default=True)
    in_controlled_shutdown: bool = field("1+")
    log_dirs: list[Uuid] = field("3+", tag=0, tagged="3+")
    cordoned_log_dirs: list[Uuid] | None = field("4+", nullable="4+", default=None, tag=1, tagged="4+")


class UnregisterBrokerRecord(Data, versions="0", flexible="0+"):
    """A broker is gone for good."""

    broker_id: i32
    broker_epoch: i64


class TopicRecord(Data, versions="0", flexible="0+"):
    """A topic exists; its partitions follow as `PartitionRecord`s."""

    name: str
    topic_id: Uuid


class PartitionRecord(Data, versions="0-2", flexible="0+"):
    """A partition exists; version 1 adds directories, version 2 eligible leader replicas (KIP-966)."""

    partition_id: i32 = field("0+", default=-1)
    topic_id: Uuid
    replicas: list[i32]
    isr: list[i32]
    removing_replicas: list[i32] = field()
    adding_replicas: list[i32] = field()
    leader: i32 = field("0+", default=-1)
    leader_recovery_state: i8 = field("0+", default=0, tag=0, tagged="0+")
    leader_epoch: i32 = field("0+", default=-1)
    partition_epoch: i32 = field("0+", default=-1)
    directories: list[Uuid] = field("1+")
    eligible_leader_replicas: list[i32] | None = field("2+", nullable="2+", default=None, tag=1, tagged="2+")
    last_known_elr: list[i32] | None = field("2+", nullable="2+", default=None, tag=2, tagged="2+")


class ConfigRecord(Data, versions="0", flexible="0+"):
    """A configuration key of a resource; a null value removes it."""

    resource_type: i8
    resource_name: str
    name: str
    value: str | None = field("0+", nullable="0+")


class PartitionChangeRecord(Data, versions="0-2", flexible="0+"):
    """What changed in a partition: it raises the partition epoch, and with a leader the leader epoch too."""

    partition_id: i32 = field("0+", default=-1)
    topic_id: Uuid
    isr: list[i32] | None = field("0+", nullable="0+", default=None, tag=0, tagged="0+")
    leader: i32 = field("0+", default=NO_LEADER_CHANGE, tag=1, tagged="0+")
    replicas: list[i32] | None = field("0+", nullable="0+", default=None, tag=2, tagged="0+")
    removing_replicas: list[i32] | None = field("0+", nullable="0+", default=None, tag=3, tagged="0+")
    adding_replicas: list[i32] | None = field("0+", nullable="0+", default=None, tag=4, tagged="0+")
    leader_recovery_state: i8 = field("0+", default=-1, tag=5, tagged="0+")
    directories: list[Uuid] | None = field("1+", nullable="1+", default=None, tag=8, tagged="1+")
    eligible_leader_replicas: list[i32] | None = field("2+", nullable="2+", default=None, tag=6, tagged="2+")
    last_known_elr: list[i32] | None = field("2+", nullable="2+", default=None, tag=7, tagged="2+")


class RemoveTopicRecord(Data, versions="0", flexible="0+"):
    """A topic, its partitions and its configuration are gone."""

    topic_id: Uuid


class FeatureLevelRecord(Data, versions="0", flexible="0+"):
    """The finalized level of a feature; 0 removes it."""

    name: str
    feature_level: i16


class ProducerIdsRecord(Data, versions="0", flexible="0+"):
    """A broker was given the producer ids below `next_producer_id`."""

    broker_id: i32
    broker_epoch: i64 = field("0+", default=-1)
    next_producer_id: i64


class BrokerRegistrationChangeRecord(Data, versions="0-3", flexible="0+"):
    """A broker was fenced (1) or unfenced (-1), or is about to shut down (1)."""

    broker_id: i32
    broker_epoch: i64
    fenced: i8 = field("0+", tag=0, tagged="0+")
    in_controlled_shutdown: i8 = field("1+", tag=1, tagged="1+")
    log_dirs: list[Uuid] = field("2+", tag=2, tagged="2+")
    cordoned_log_dirs: list[Uuid] | None = field("3+", nullable="3+", default=None, tag=3, tagged="3+")


class NoOpRecord(Data, versions="0", flexible="0+"):
    """Nothing happened: keeps the end of the log moving, so that lag can be measured."""


class BeginTransactionRecord(Data, versions="0", flexible="0+"):
    """The records up to the end of the metadata transaction belong together."""

    name: str | None = field("0+", nullable="0+", default=None, tag=0, tagged="0+")


class EndTransactionRecord(Data, versions="0", flexible="0+"):
    """The metadata transaction is complete."""


MetadataRecord = (
    RegisterBrokerRecord
    | UnregisterBrokerRecord
    | TopicRecord
    | PartitionRecord
    | ConfigRecord
    | PartitionChangeRecord
    | RemoveTopicRecord
    | FeatureLevelRecord
    | ProducerIdsRecord
    | BrokerRegistrationChangeRecord
    | NoOpRecord
    | BeginTransactionRecord
    | EndTransactionRecord
)

# class -> (api key, the version that is written: Kafka's for metadata.version 4.3-IV0 without ELR)
_WRITTEN: Final[dict[type[Data], tuple[int, int]]] = {
    RegisterBrokerRecord: (0, 4),
    UnregisterBrokerRecord: (1, 0),
    TopicRecord: (2, 0),
    PartitionRecord: (3, 1),
    ConfigRecord: (4, 0),
    PartitionChangeRecord: (5, 1),
    RemoveTopicRecord: (9, 0),
    FeatureLevelRecord: (12, 0),
    ProducerIdsRecord: (15, 0),
    BrokerRegistrationChangeRecord: (17, 0),
    NoOpRecord: (20, 0),
    BeginTransactionRecord: (23, 0),
    EndTransactionRecord: (24, 0),
}
_BY_API_KEY: Final[dict[int, Any]] = {api_key: kind for kind, (api_key, _) in _WRITTEN.items()}


def encode_record(record: MetadataRecord) -> bytes:
    """The framed value of one record, as it stands in the log."""
    api_key, version = _WRITTEN[type(record)]
    assert api_key < 128, "a second byte of the varint would be needed"
    return bytes((FRAME_VERSION, api_key, version)) + record.encode(version)


def decode_record(value: bytes | memoryview) -> MetadataRecord:
    """The record of a framed value.

    Raises:
        DecodeError: the frame is broken, or holds a kind of record that this version does not know.
    """
    if len(value) < 3:
        raise DecodeError(f"a metadata record of {len(value)} bytes has no frame")
    frame_version, api_key, version = value[0], value[1], value[2]
    if frame_version != FRAME_VERSION:
        raise DecodeError(f"metadata record frame version {frame_version}; this version reads {FRAME_VERSION}")
    kind = _BY_API_KEY.get(api_key)
    if kind is None or version not in kind.versions:
        raise DecodeError(
            f"metadata record type {api_key} version {version} is not known: the log was written by a newer version, "
            "or by another program"
        )
    record: MetadataRecord = kind.decode(value, version, 3)
    return record
