"""What members tell each other, against the bytes of the Java client 4.3.1."""

from __future__ import annotations

import pytest

from ottla.client.consumer.membership import GroupMember
from ottla.client.consumer.subscription_protocol import (
    decode_assignment,
    decode_subscription,
    encode_assignment,
    encode_subscription,
)
from ottla.client.topic_partition import TopicPartition
from ottla.errors import DecodeError

JAVA_SUBSCRIPTION = bytes.fromhex(
    "00030000000200066f726465727300037061790000000201020000000200066f7264657273000000020000000000000002"
    "000370617900000001000000010000000700027231"
)
JAVA_ASSIGNMENT = bytes.fromhex(
    "00030000000200066f726465727300000002000000000000000200037061790000000100000001ffffffff"
)
OWNED = [TopicPartition("orders", 0), TopicPartition("orders", 2), TopicPartition("pay", 1)]


def test_a_subscription_is_encoded_as_java_does() -> None:
    assert encode_subscription(["pay", "orders"], OWNED, 7, b"\x01\x02", "r1") == JAVA_SUBSCRIPTION


def test_a_subscription_of_java_is_read() -> None:
    member = decode_subscription(GroupMember("m", "i", JAVA_SUBSCRIPTION))
    assert (set(member.topics), list(member.owned), member.generation) == ({"orders", "pay"}, OWNED, 7)
    assert (member.user_data, member.rack, member.group_instance_id) == (b"\x01\x02", "r1", "i")


def test_a_subscription_of_version_0_owns_nothing() -> None:
    version_0 = b"\x00\x00" + JAVA_SUBSCRIPTION[2 : 2 + 4 + 8 + 5 + 4 + 2]
    member = decode_subscription(GroupMember("m", None, version_0))
    assert (set(member.topics), member.owned, member.generation) == ({"orders", "pay"}, (), -1)


def test_an_assignment_is_encoded_and_read_as_java_does() -> None:
    assert encode_assignment(OWNED) == JAVA_ASSIGNMENT
    assert decode_assignment(JAVA_ASSIGNMENT) == OWNED


def test_no_bytes_at_all_are_an_empty_assignment() -> None:
    assert decode_assignment(b"") == []


def test_half_an_assignment_is_an_error() -> None:
    with pytest.raises(DecodeError):
        decode_assignment(JAVA_ASSIGNMENT[:9])
