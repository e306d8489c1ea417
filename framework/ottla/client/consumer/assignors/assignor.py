"""What an assignor is given and what it must give back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from ottla.client.topic_partition import TopicPartition

Assignment = dict[str, list[TopicPartition]]
"""Member id -> partitions. Every member has an entry."""

NO_GENERATION = -1


class RebalanceProtocol(Enum):
    """What members do with their partitions while they rejoin (KIP-429)."""

    EAGER = "eager"
    """They give all of them up first."""
    COOPERATIVE = "cooperative"
    """They keep them, and give up only what the new assignment takes from them."""


@dataclass(frozen=True, slots=True)
class MemberSubscription:
    """What one member told the leader as it joined."""

    topics: Collection[str]
    owned: Collection[TopicPartition] = ()
    generation: int = NO_GENERATION
    """The generation in which it got what it owns; of two that claim the same, the later one is right (KIP-792)."""
    user_data: bytes | None = None
    group_instance_id: str | None = None
    rack: str | None = None


class Assignor(ABC):
    """Distributes a group's partitions; only the leader's is asked.

    `name` is what members agree on, so that one in another language may lead with its own implementation.
    """

    name: ClassVar[str]
    protocols: ClassVar[frozenset[RebalanceProtocol]] = frozenset({RebalanceProtocol.EAGER})

    @abstractmethod
    def assign(self, partition_counts: Mapping[str, int], members: Mapping[str, MemberSubscription]) -> Assignment:
        """Distribute all partitions of the topics in `partition_counts` among the members subscribed to them."""

    def user_data(self, topics: Collection[str]) -> bytes | None:
        """What this member tells the leader's assignor beside its subscription."""
        return None

    def on_assignment(self, partitions: Collection[TopicPartition], generation: int) -> None:
        """This member got an assignment; most assignors have nothing to remember."""
        return


def in_member_order(members: Mapping[str, MemberSubscription]) -> list[str]:
    """Member ids in the order of all assignors: static members by instance id, then dynamic ones by member id.

    A static member keeps its place when it comes back under a new member id.
    """

    def key(member_id: str) -> tuple[bool, str]:
        instance = members[member_id].group_instance_id
        return (instance is None, member_id if instance is None else instance)

    return sorted(members, key=key)
