"""`sticky`: balanced, and as it was before, for members that give everything up while they rejoin (KIP-54)."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from typing import ClassVar

from ottla.client.consumer.assignors.assignor import NO_GENERATION, Assignment, Assignor, MemberSubscription
from ottla.client.consumer.assignors.balancing import Claim, assign_sticky
from ottla.client.consumer.subscription_state import by_topic
from ottla.client.topic_partition import TopicPartition

_INT32 = struct.Struct(">i")
_INT16 = struct.Struct(">h")


class StickyAssignor(Assignor):
    """Eager members own nothing when they join: what they had travels in the user data, as Java's does."""

    name: ClassVar[str] = "sticky"

    def __init__(self) -> None:
        self._last: tuple[Collection[TopicPartition], int] | None = None

    def assign(self, partition_counts: Mapping[str, int], members: Mapping[str, MemberSubscription]) -> Assignment:
        """Distribute with what the members had in mind."""
        claims = {member_id: decode_previous(member.user_data) for member_id, member in members.items()}
        return assign_sticky(partition_counts, members, claims)

    def user_data(self, topics: Collection[str]) -> bytes | None:
        """What this member had last, and in which generation."""
        return None if self._last is None else encode_previous(*self._last)

    def on_assignment(self, partitions: Collection[TopicPartition], generation: int) -> None:
        """Remember it for the next rebalance."""
        self._last = (tuple(partitions), generation)


def encode_previous(partitions: Collection[TopicPartition], generation: int) -> bytes:
    """Java's StickyAssignorUserData, version 1: [topic, [partition]], generation."""
    topics = by_topic(partitions)
    parts = [_INT32.pack(len(topics))]
    for topic, numbers in topics.items():
        name = topic.encode()
        parts += [_INT16.pack(len(name)), name, _INT32.pack(len(numbers)), struct.pack(f">{len(numbers)}i", *numbers)]
    return b"".join([*parts, _INT32.pack(generation)])


def decode_previous(user_data: bytes | None) -> Claim:
    """What a member had. Data that cannot be read counts as nothing; version 0 has no generation."""
    if not user_data:
        return Claim((), NO_GENERATION)
    try:
        return _decode_previous(user_data)
    except (struct.error, UnicodeDecodeError, ValueError):
        return Claim((), NO_GENERATION)


def _decode_previous(user_data: bytes) -> Claim:
    partitions: list[TopicPartition] = []
    (topic_count,) = _INT32.unpack_from(user_data)
    at = _INT32.size
    for _ in range(topic_count):
        (length,) = _INT16.unpack_from(user_data, at)
        at += _INT16.size
        topic = bytes(user_data[at : at + length]).decode()
        at += length
        (count,) = _INT32.unpack_from(user_data, at)
        at += _INT32.size
        if not 0 <= count <= len(user_data) // _INT32.size:
            raise ValueError(f"{count} partitions do not fit into {len(user_data)} bytes")
        partitions += [TopicPartition(topic, number) for number in struct.unpack_from(f">{count}i", user_data, at)]
        at += count * _INT32.size
    has_generation = len(user_data) >= at + _INT32.size
    return Claim(partitions, _INT32.unpack_from(user_data, at)[0] if has_generation else NO_GENERATION)
