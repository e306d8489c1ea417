"""`cooperative-sticky`: balanced, as it was before, and without a stop for everybody (KIP-429)."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from typing import ClassVar

from ottla.client.consumer.assignors.assignor import (
    NO_GENERATION,
    Assignment,
    Assignor,
    MemberSubscription,
    RebalanceProtocol,
)
from ottla.client.consumer.assignors.balancing import Claim, assign_sticky
from ottla.client.topic_partition import TopicPartition

_GENERATION = struct.Struct(">i")


class CooperativeStickyAssignor(Assignor):
    """Members keep reading while they rejoin, so a partition must not get a new owner before its old one let it go.

    A partition that is to move is left out of the first assignment; its owner sees that it is missing, gives it up and
    rejoins, and in that second round it goes to its new owner.
    """

    name: ClassVar[str] = "cooperative-sticky"
    protocols: ClassVar[frozenset[RebalanceProtocol]] = frozenset(RebalanceProtocol)

    def __init__(self) -> None:
        self._generation = NO_GENERATION

    def assign(self, partition_counts: Mapping[str, int], members: Mapping[str, MemberSubscription]) -> Assignment:
        """Distribute, then take back what somebody else still reads."""
        claims = {member_id: Claim(member.owned, _generation(member)) for member_id, member in members.items()}
        assignment = assign_sticky(partition_counts, members, claims)
        # every claim counts, also an outdated one: that member reads the partition until it sees the new assignment
        readers: dict[TopicPartition, set[str]] = {}
        for member_id, member in members.items():
            for partition in member.owned:
                readers.setdefault(partition, set()).add(member_id)
        return {
            member_id: [partition for partition in mine if readers.get(partition, {member_id}) == {member_id}]
            for member_id, mine in assignment.items()
        }

    def user_data(self, topics: Collection[str]) -> bytes | None:
        """The generation, for leaders that do not look into the subscription's own field (before version 2)."""
        return _GENERATION.pack(self._generation)

    def on_assignment(self, partitions: Collection[TopicPartition], generation: int) -> None:
        """Remember the generation for the next rebalance."""
        self._generation = generation


def _generation(member: MemberSubscription) -> int:
    if member.generation != NO_GENERATION or not member.user_data:
        return member.generation
    try:
        return int(_GENERATION.unpack_from(member.user_data)[0])
    except struct.error:
        return NO_GENERATION
