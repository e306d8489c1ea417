"""The records of `__consumer_offsets`, in Kafka's own format.

A key starts with its record type, a value with its version, both i16; the classes are named as in Kafka's
`kafka-group-coordinator` JSON. Apache Kafka's `dump-log --offsets-decoder` reads what is written here, and what Kafka
has written is read here, except for groups of types that are not served yet: their records are skipped.
"""

from __future__ import annotations

from typing import Final

from ottla_broker.coordinator.decision import CoordinatorRecord
from ottla_wire.schema import Data, Struct, Uuid, field, i32, i64

CONSUMER_OFFSETS_TOPIC: Final = "__consumer_offsets"

OFFSET_COMMIT: Final = 1
GROUP_METADATA: Final = 2
_LEGACY_OFFSET_COMMIT: Final = 0

# What Kafka 4.3 writes. An offset with an expiry of its own (OffsetCommit versions 2-4) needs version 1.
_OFFSET_COMMIT_VERSION: Final = 4
_OFFSET_COMMIT_WITH_EXPIRY_VERSION: Final = 1
_GROUP_METADATA_VERSION: Final = 3


# The int16 before a key is the record's type, so the "version" of a key class is its type.


class OffsetCommitKey(Data, versions="0-1", flexible="none"):
    """Which offset; record types 0 (from before Kafka 0.9) and 1 have the same key."""

    group: str
    topic: str
    partition: i32


class LegacyOffsetCommitValue(Data, versions="0", flexible="none"):
    """A committed offset under a key of type 0."""

    offset: i64
    metadata: str
    commit_timestamp: i64


class OffsetCommitValue(Data, versions="0-4", flexible="4+"):
    """A committed offset.

    Version 1 has an expiry of its own, version 3 the leader epoch of the last consumed record, version 4 the id of
    the topic (KIP-848).
    """

    offset: i64
    leader_epoch: i32 = field("3+", default=-1, ignorable=True)
    metadata: str
    commit_timestamp: i64
    expire_timestamp: i64 = field("1", default=-1, ignorable=True)
    topic_id: Uuid = field("4+", tag=0, tagged="4+", default=Uuid.ZERO, ignorable=True)


class GroupMetadataKey(Data, versions="2", flexible="none"):
    """Which group."""

    group: str


class MemberMetadata(Struct):
    """A member of a classic group, with what its leader assigned to it."""

    member_id: str
    group_instance_id: str | None = field("3+", nullable="3+", default=None, ignorable=True)
    client_id: str
    client_host: str
    rebalance_timeout: i32 = field("1+", default=-1, ignorable=True)
    session_timeout: i32
    subscription: bytes
    assignment: bytes


class GroupMetadataValue(Data, versions="0-4", flexible="4+"):
    """A classic group as of a generation whose assignment is known, or without members.

    Version 2 has the time of the last change of state, version 3 static members (KIP-345).
    """

    protocol_type: str
    generation: i32
    protocol: str | None = field("0+", nullable="0+")
    leader: str | None = field("0+", nullable="0+")
    current_state_timestamp: i64 = field("2+", default=-1, ignorable=True)
    members: list[MemberMetadata]


def offset_commit_record(group: str, topic: str, partition: int, value: OffsetCommitValue) -> CoordinatorRecord:
    """The record that commits an offset."""
    version = _OFFSET_COMMIT_VERSION if value.expire_timestamp == -1 else _OFFSET_COMMIT_WITH_EXPIRY_VERSION
    return CoordinatorRecord(_offset_key(group, topic, partition), value.encode_with_version(version))


def offset_tombstone(group: str, topic: str, partition: int) -> CoordinatorRecord:
    """The record that deletes a committed offset."""
    return CoordinatorRecord(_offset_key(group, topic, partition), None)


def group_metadata_record(group: str, value: GroupMetadataValue) -> CoordinatorRecord:
    """The record that says what a classic group is."""
    return CoordinatorRecord(_group_key(group), value.encode_with_version(_GROUP_METADATA_VERSION))


def group_tombstone(group: str) -> CoordinatorRecord:
    """The record that deletes a classic group."""
    return CoordinatorRecord(_group_key(group), None)


def record_type(record: CoordinatorRecord) -> int:
    """The type of a record: OFFSET_COMMIT, GROUP_METADATA, or one that is not known here."""
    kind = int.from_bytes(record.key[:2], "big", signed=True)
    return OFFSET_COMMIT if kind == _LEGACY_OFFSET_COMMIT else kind


def read_offset_commit(record: CoordinatorRecord) -> tuple[OffsetCommitKey, OffsetCommitValue | None]:
    """Key and value of an OFFSET_COMMIT record.

    Raises:
        DecodeError: the bytes are not what type and version say, or the version is newer than this program.
    """
    key = OffsetCommitKey.decode_with_version(record.key)
    if record.value is None:
        return key, None
    if record.key[1] != _LEGACY_OFFSET_COMMIT:
        return key, OffsetCommitValue.decode_with_version(record.value)
    old = LegacyOffsetCommitValue.decode_with_version(record.value)
    return key, OffsetCommitValue(offset=old.offset, metadata=old.metadata, commit_timestamp=old.commit_timestamp)


def read_group_metadata(record: CoordinatorRecord) -> tuple[GroupMetadataKey, GroupMetadataValue | None]:
    """Key and value of a GROUP_METADATA record.

    Raises:
        DecodeError: as for `read_offset_commit`.
    """
    key = GroupMetadataKey.decode_with_version(record.key)
    return key, None if record.value is None else GroupMetadataValue.decode_with_version(record.value)


def _offset_key(group: str, topic: str, partition: int) -> bytes:
    return OffsetCommitKey(group=group, topic=topic, partition=partition).encode_with_version(OFFSET_COMMIT)


def _group_key(group: str) -> bytes:
    return GroupMetadataKey(group=group).encode_with_version(GROUP_METADATA)
