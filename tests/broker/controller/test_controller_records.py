"""Metadata records: their bytes are Kafka's."""

from __future__ import annotations

import json
import re
import zipfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottla_broker.controller import records
from ottla_broker.controller.records import decode_record, encode_record
from ottla_wire.errors import DecodeError
from ottla_wire.messages.control_records import LeaderChangeMessage, Voter
from ottla_wire.schema import Data, Uuid
from support import apache_kafka
from support.kafka_schemas import kafka_fields, kafka_layout, our_layout
from support.messages import instances

DIRECTORY = "48ce2c34ecef854ece5aa40435ed4a05"
T1 = "452ad72a9a69441bbb3d18151ae6d89e"

# Record values out of the metadata log of an Apache Kafka 4.3.1 broker.
WRITTEN_BY_KAFKA = {
    "FeatureLevelRecord": "010c00116d657461646174612e76657273696f6e001e00",
    "ConfigRecord of all brokers": "0104000401146d696e2e696e73796e632e7265706c69636173023100",
    "ConfigRecord of a topic": "01040002037431146d696e2e696e73796e632e7265706c69636173023100",
    "TopicRecord": f"010200037431{T1}00",
    "RemoveTopicRecord": "0109000f46d8fca63943b4b8bfeb45c56a491c00",
    "ProducerIdsRecord": "010f0000000001000000000000000d00000000000003e800",
    "BrokerRegistrationChangeRecord": "01110000000001000000000000000d010001ff",
    "NoOpRecord": "01140000",
    "BeginTransactionRecord": "01170001001212426f6f747374726170207265636f726473",
    "EndTransactionRecord": "01180000",
    "RegisterBrokerRecord": (
        "0100040000000100c157d2fed45043cd86b1b465765cc1cc000000000000000d020a504c41494e544558540a3132372e302e302e314bc8"
        "00000008116d657461646174612e76657273696f6e0007001e0021656c696769626c652e6c65616465722e7265706c696361732e766572"
        "73696f6e0000000100147472616e73616374696f6e2e76657273696f6e00000002001073747265616d732e76657273696f6e0000000100"
        "0e67726f75702e76657273696f6e00000001000e6b726166742e76657273696f6e00000001000e73686172652e76657273696f6e000000"
        "01000001000100110248ce2c34ecef854ece5aa40435ed4a05"
    ),
}
METADATA_RECORDS = list(records._WRITTEN)


@pytest.mark.parametrize("value", WRITTEN_BY_KAFKA.values(), ids=WRITTEN_BY_KAFKA.keys())
def test_a_record_that_kafka_wrote_is_read_and_written_again_byte_for_byte(value: str) -> None:
    assert encode_record(decode_record(bytes.fromhex(value))).hex() == value


def test_a_partition_that_kafka_wrote_with_elr_is_read() -> None:
    value = f"01030200000001{T1}02000000010200000001010100000001000000000000000002{DIRECTORY}00"
    assert decode_record(bytes.fromhex(value)) == records.PartitionRecord(
        partition_id=1,
        topic_id=Uuid(bytes.fromhex(T1)),
        replicas=[1],
        isr=[1],
        leader=1,
        leader_epoch=0,
        partition_epoch=0,
        directories=[Uuid(bytes.fromhex(DIRECTORY))],
    )


def test_a_leader_change_is_written_as_kafka_writes_it() -> None:
    voters = [Voter(voter_id=1)]
    message = LeaderChangeMessage(version=0, leader_id=1, voters=voters, granting_voters=voters)
    assert message.encode(0).hex() == "00000000000102000000010002000000010000"


@given(st.data())
def test_every_record_survives_the_log(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(METADATA_RECORDS))
    record = data.draw(instances(kind, records._WRITTEN[kind][1]))
    assert decode_record(encode_record(record)) == record
    assert decode_record(memoryview(encode_record(record))) == record


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (b"", "has no frame"),
        (b"\x01\x02", "has no frame"),
        (b"\x02\x02\x00\x00", "frame version 2"),
        (b"\x01\x0e\x00\x00", "type 14 version 0 is not known"),
        (b"\x01\x02\x07\x00", "type 2 version 7 is not known"),
        (bytes.fromhex(WRITTEN_BY_KAFKA["TopicRecord"])[:-3], "TopicRecord version 0 cannot be read"),
        (bytes.fromhex(WRITTEN_BY_KAFKA["TopicRecord"]) + b"\x00", "ends 1 bytes before"),
    ],
)
def test_a_value_that_is_no_known_record_is_refused_with_its_reason(value: bytes, complaint: str) -> None:
    with pytest.raises(DecodeError, match=complaint):
        decode_record(value)


def definitions() -> dict[str, dict[str, Any]]:
    version = apache_kafka.VERSIONS["4.3"]
    found = {}
    with zipfile.ZipFile(apache_kafka.libs(version) / f"kafka-metadata-{version}.jar") as jar:
        for name in jar.namelist():
            if name.startswith("common/metadata/") and name.endswith(".json"):
                text = re.sub(r"(?m)^\s*//.*$", "", jar.read(name).decode())
                definition = json.loads(text)
                found[definition["name"]] = definition
    return found


@pytest.mark.peer("apache-4.3")
@pytest.mark.parametrize("kind", METADATA_RECORDS, ids=lambda kind: kind.__name__)
def test_every_record_has_the_fields_that_kafka_gives_it(kind: type[Data]) -> None:
    definition = definitions()[kind.__name__]
    assert definition["validVersions"] == str(kind.versions)
    assert records._WRITTEN[kind][0] == definition["apiKey"]
    fields = kafka_fields(definition)
    for version in kind.versions:
        assert kind.is_flexible(version)
        assert our_layout(kind, version) == kafka_layout(fields, version)
        defaults = {f.name: f.default for f in fields if version in f.versions}
        ours = kind()
        for name, default in defaults.items():
            assert getattr(ours, name) == (list(default) if isinstance(default, tuple) else default), name
