"""The records of `__consumer_offsets`, against those that Apache Kafka 4.3.1 wrote in the same conversation."""

from __future__ import annotations

import pytest

from ottla_broker.coordinator.decision import CoordinatorRecord
from ottla_broker.coordinator.records import (
    OFFSET_COMMIT,
    group_metadata_record,
    group_tombstone,
    offset_commit_record,
    offset_tombstone,
    read_group_metadata,
    read_offset_commit,
    record_type,
)
from ottla_wire.errors import DecodeError
from ottla_wire.schema import Uuid
from support.groups import Groups, error

# A static member joins and syncs, commits with version 9 and with version 3 (a retention time of its own), is removed,
# and the group is deleted.
KAFKA = [
    ("00020006676f6c64656e", "0003000000000000ffffffff000001a20ffbd25500000000"),
    (
        "00020006676f6c64656e",
        "00030008636f6e73756d657200000001000572616e6765002769312d65653163346336622d393135622d346133322d383466322d38633836"
        "3061623934666633000001a20ffbd27e00000001002769312d65653163346336622d393135622d346133322d383466322d38633836306162"
        "393466663300026931000163000a2f3132372e302e302e310000ea6000002710000000046d657461000000057368617265",
    ),
    (
        "00010006676f6c64656e0002743100000000",
        "0004000000000000002a00000003056e6f7465000001a20ffbd3d2010010621c2c4e8cb047dbbcbb136e0ac37372",
    ),
    ("00010006676f6c64656e0002743100000001", "0001000000000000002b0000000001a20ffbd3ec000001a20ffcbe4c"),
    ("00020006676f6c64656e", "00030008636f6e73756d657200000002ffffffff000001a20ffbd3fa00000000"),
    ("00010006676f6c64656e0002743100000000", None),
    ("00010006676f6c64656e0002743100000001", None),
    ("00020006676f6c64656e", None),
]
RECORDS = [
    CoordinatorRecord(bytes.fromhex(key), None if value is None else bytes.fromhex(value)) for key, value in KAFKA
]


def written_again(record: CoordinatorRecord) -> CoordinatorRecord:
    if record_type(record) == OFFSET_COMMIT:
        key, value = read_offset_commit(record)
        if value is None:
            return offset_tombstone(key.group, key.topic, key.partition)
        return offset_commit_record(key.group, key.topic, key.partition, value)
    group, metadata = read_group_metadata(record)
    return group_tombstone(group.group) if metadata is None else group_metadata_record(group.group, metadata)


def without_chance(record: CoordinatorRecord) -> object:
    """What a record says, but for times and random ids."""
    if record_type(record) == OFFSET_COMMIT:
        key, value = read_offset_commit(record)
        if value is not None:
            kept_ms = value.expire_timestamp - value.commit_timestamp if value.expire_timestamp != -1 else None
            value.commit_timestamp, value.expire_timestamp, value.topic_id = 0, kept_ms or 0, Uuid.ZERO
        return key, value
    group, metadata = read_group_metadata(record)
    if metadata is not None:
        assert metadata.current_state_timestamp > 1_600_000_000_000
        metadata.current_state_timestamp = 0
        metadata.leader = metadata.leader and metadata.leader[:3]
        for member in metadata.members:
            member.member_id = member.member_id[:3]
    return group, metadata


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_of_kafka_is_written_again_to_the_byte(record: CoordinatorRecord) -> None:
    assert written_again(record) == record


def test_the_same_conversation_makes_the_same_records() -> None:
    groups = Groups(offsets_topic_num_partitions=1)
    name = "golden"
    join = groups.join(group=name, instance="i1", protocols={"range": b"meta"})
    groups.advance(0)
    member_id = join.result().member_id
    groups.sync(member_id, 1, {member_id: b"share"}, group=name, instance="i1")
    groups.commit(42, member_id, 1, group=name, instance="i1", metadata="note", leader_epoch=3)
    groups.commit(43, member_id, 1, group=name, version=3, partition=1, retention_ms=60_000)
    assert error(groups.leave("", group=name, instance="i1")) == ""
    assert groups.delete(name) == ""
    assert [without_chance(record) for record in groups.log.records(0)] == [
        without_chance(record) for record in RECORDS
    ]


def test_a_value_from_a_newer_broker_is_not_guessed_at() -> None:
    key, _ = KAFKA[2]
    with pytest.raises(DecodeError):
        read_offset_commit(CoordinatorRecord(bytes.fromhex(key), b"\x00\x09rest"))
