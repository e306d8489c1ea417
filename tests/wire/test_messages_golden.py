"""A dozen messages byte by byte, written out by hand from the protocol's description: what holds without any jar."""

from __future__ import annotations

from typing import Any

import pytest

from ottla_wire.errors import DecodeError, EncodeError, UnsupportedVersion
from ottla_wire.messages import (
    PRODUCE_ADVERTISED_MIN_VERSION,
    ApiKey,
    flexible_versions,
    request_class,
    response_class,
)
from ottla_wire.messages.api_versions import (
    ApiVersion,
    ApiVersionsRequest,
    ApiVersionsResponse,
    FinalizedFeatureKey,
    SupportedFeatureKey,
)
from ottla_wire.messages.consumer_protocol import (
    ConsumerProtocolAssignment,
    ConsumerProtocolSubscription,
    TopicPartition,
)
from ottla_wire.messages.control_records import ControlRecordTypeSchema, EndTxnMarker, LeaderChangeMessage, Voter
from ottla_wire.messages.fetch import (
    AbortedTransaction,
    EpochEndOffset,
    FetchableTopicResponse,
    FetchResponse,
    PartitionData,
)
from ottla_wire.messages.find_coordinator import FindCoordinatorRequest
from ottla_wire.messages.init_producer_id import InitProducerIdRequest, InitProducerIdResponse
from ottla_wire.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from ottla_wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from ottla_wire.messages.metadata import MetadataRequest, MetadataRequestTopic
from ottla_wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from ottla_wire.messages.offset_delete import OffsetDeleteRequest
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.schema import Message, Uuid

ID = Uuid(bytes.fromhex("00112233445566778899aabbccddeeff"))

PRODUCE = ProduceRequest(
    transactional_id="tx",
    acks=-1,
    timeout_ms=30_000,
    topic_data=[
        TopicProduceData(name="orders", partition_data=[PartitionProduceData(index=1, records=b"\xca\xfe\xba\xbe")])
    ],
)
FETCHED = FetchResponse(
    session_id=9,
    responses=[
        FetchableTopicResponse(
            topic="t",
            partitions=[
                PartitionData(
                    partition_index=2,
                    high_watermark=16,
                    last_stable_offset=15,
                    log_start_offset=1,
                    aborted_transactions=[AbortedTransaction(producer_id=7, first_offset=3)],
                    records=b"\x01\x02\x03",
                ),
                PartitionData(
                    partition_index=3,
                    error_code=6,
                    high_watermark=-1,
                    log_start_offset=-1,
                    diverging_epoch=EpochEndOffset(epoch=4, end_offset=5),
                    aborted_transactions=None,
                ),
            ],
        )
    ],
)

GOLDEN: list[tuple[str, Message, int, str]] = [
    ("ask for everything a broker speaks", ApiVersionsRequest(), 0, ""),
    (
        "name the client software",
        ApiVersionsRequest(client_software_name="ottla", client_software_version="1.0"),
        3,
        "06 6f74746c61  04 312e30  00",
    ),
    (
        "the answer to an unknown version",
        ApiVersionsResponse(error_code=35, api_keys=[ApiVersion(api_key=18, min_version=0, max_version=4)]),
        0,
        "0023  00000001  0012 0000 0004",
    ),
    (
        "features are tagged",
        ApiVersionsResponse(
            api_keys=[ApiVersion(api_key=0, min_version=0, max_version=13)],
            supported_features=[SupportedFeatureKey(name="f", min_version=1, max_version=2)],
            finalized_features_epoch=5,
            finalized_features=[FinalizedFeatureKey(name="f", max_version_level=2, min_version_level=1)],
        ),
        4,
        "0000  02 0000 0000 000d 00  00000000"
        "03  00 08 02 02 66 0001 0002 00  01 08 0000000000000005  02 08 02 02 66 0002 0001 00",
    ),
    ("all topics, when a list could only be empty", MetadataRequest(topics=[]), 0, "00000000"),
    ("all topics", MetadataRequest(topics=None), 4, "ffffffff 01"),
    (
        "a topic by its id",
        MetadataRequest(topics=[MetadataRequestTopic(topic_id=ID, name=None)], allow_auto_topic_creation=False),
        12,
        "02 00112233445566778899aabbccddeeff 00 00  00 00 00",
    ),
    (
        "a batch before flexible versions",
        PRODUCE,
        3,
        "0002 7478  ffff 00007530  00000001 0006 6f7264657273  00000001 00000001 00000004 cafebabe",
    ),
    (
        "a batch in a flexible version",
        PRODUCE,
        9,
        "03 7478  ffff 00007530  02 07 6f7264657273  02 00000001 05 cafebabe 00  00  00",
    ),
    (
        "fetched records, aborted transactions and a divergence",
        FETCHED,
        12,
        "00000000 0000 00000009  02 02 74  03"
        "00000002 0000 0000000000000010 000000000000000f 0000000000000001"
        "02 0000000000000007 0000000000000003 00  ffffffff  04 010203  00"
        "00000003 0006 ffffffffffffffff ffffffffffffffff ffffffffffffffff  00  ffffffff  00"
        "01 00 0d 00000004 0000000000000005 00"
        "00  00",
    ),
    (
        "the end of a partition",
        ListOffsetsRequest(
            replica_id=-1,
            isolation_level=1,
            topics=[ListOffsetsTopic(name="t", partitions=[ListOffsetsPartition(partition_index=3, timestamp=-1)])],
        ),
        2,
        "ffffffff 01 00000001 0001 74 00000001 00000003 ffffffffffffffff",
    ),
    ("the coordinator of a group", FindCoordinatorRequest(key="g"), 0, "0001 67"),
    (
        "the coordinators of transactional ids",
        FindCoordinatorRequest(key_type=1, coordinator_keys=["a", "b"]),
        4,
        "01 03 02 61 02 62 00",
    ),
    (
        "a static member joins",
        JoinGroupRequest(
            group_id="g",
            session_timeout_ms=10_000,
            rebalance_timeout_ms=60_000,
            member_id="",
            group_instance_id="i",
            protocol_type="consumer",
            protocols=[JoinGroupRequestProtocol(name="range", metadata=b"\0\x01")],
        ),
        5,
        "0001 67 00002710 0000ea60 0000 0001 69 0008 636f6e73756d6572 00000001 0005 72616e6765 00000002 0001",
    ),
    (
        "an offset with its leader epoch",
        OffsetCommitRequest(
            group_id="g",
            generation_id_or_member_epoch=1,
            member_id="m",
            topics=[
                OffsetCommitRequestTopic(
                    name="t",
                    partitions=[
                        OffsetCommitRequestPartition(
                            partition_index=0, committed_offset=100, committed_leader_epoch=2, committed_metadata=None
                        )
                    ],
                )
            ],
        ),
        8,
        "02 67 00000001 02 6d 00  02 02 74 02 00000000 0000000000000064 00000002 00 00  00  00",
    ),
    (
        "the next epoch of a producer id",
        InitProducerIdRequest(transactional_id="t", transaction_timeout_ms=1000, producer_id=5, producer_epoch=1),
        3,
        "02 74 000003e8 0000000000000005 0001 00",
    ),
    (
        "a producer id",
        InitProducerIdResponse(producer_id=4096, producer_epoch=0),
        1,
        "00000000 0000 0000000000001000 0000",
    ),
    ("an API that never became flexible", OffsetDeleteRequest(group_id="g"), 0, "0001 67 00000000"),
    (
        "a subscription of a cooperative member",
        ConsumerProtocolSubscription(
            topics=["t"], user_data=None, owned_partitions=[TopicPartition(topic="t", partitions=[0, 1])]
        ),
        1,
        "00000001 0001 74 ffffffff 00000001 0001 74 00000002 00000000 00000001",
    ),
    ("the epoch of the coordinator that ended a transaction", EndTxnMarker(coordinator_epoch=21), 0, "00000015"),
    ("a commit marker's key", ControlRecordTypeSchema(type=1), 0, "0001"),
    (
        "a new leader of the quorum",
        LeaderChangeMessage(version=1, leader_id=3, voters=[Voter(voter_id=3, voter_directory_id=ID)]),
        1,
        "0001 00000003 02 00000003 00112233445566778899aabbccddeeff 00 01 00",
    ),
]


@pytest.mark.parametrize(
    ("message", "version", "expected"), [row[1:] for row in GOLDEN], ids=[row[0] for row in GOLDEN]
)
def test_a_message_has_the_bytes_that_the_protocol_says(message: Message, version: int, expected: str) -> None:
    assert message.encode(version).hex() == expected.replace(" ", "")
    assert type(message).decode(bytes.fromhex(expected), version) == message


def test_keys_lead_to_their_messages() -> None:
    assert request_class(ApiKey.PRODUCE) is ProduceRequest
    assert response_class(ApiKey.FETCH) is FetchResponse
    assert flexible_versions(ApiKey.FETCH) == FetchResponse.flexible_versions
    assert ProduceRequest.api_key == ApiKey.PRODUCE == 0


@pytest.mark.parametrize("key", [-1, 4, 7, 999])
def test_a_key_without_a_message_is_an_unsupported_version(key: int) -> None:
    for lookup in (request_class, response_class):
        with pytest.raises(UnsupportedVersion, match=f"API key {key}"):
            lookup(key)
    assert flexible_versions(key) is None


def test_produce_is_advertised_from_version_0_but_spoken_from_3() -> None:
    assert PRODUCE_ADVERTISED_MIN_VERSION == 0
    assert ProduceRequest.versions.min == 3


def test_only_init_producer_id_has_a_version_that_is_not_offered() -> None:
    assert InitProducerIdRequest.latest_version_unstable
    assert not ProduceRequest.latest_version_unstable


def test_the_leader_of_a_batched_lookup_cannot_be_asked_for_by_an_old_version() -> None:
    with pytest.raises(EncodeError, match=r"FindCoordinatorRequest\.coordinator_keys .*version 3"):
        FindCoordinatorRequest(coordinator_keys=["a"]).encode(3)


@pytest.mark.parametrize("cls", [ConsumerProtocolSubscription, ConsumerProtocolAssignment])
def test_embedded_data_of_a_newer_client_is_read_as_the_newest_known_version(cls: Any) -> None:
    newest = cls().encode_with_version(3)
    newer = b"\x00\x09" + newest[2:] + b"fields of the future"
    assert cls.decode_with_version(newer) == cls.decode_with_version(newest) == cls()
    for encoded in (b"", b"\0", b"\xff\xff" + newest[2:], newest[:-1]):
        with pytest.raises(DecodeError):
            cls.decode_with_version(encoded)
