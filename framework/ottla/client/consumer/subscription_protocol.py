"""What members and their leader send each other through the coordinator, which does not look into it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ottla.client.consumer.assignors.assignor import MemberSubscription
from ottla.client.consumer.membership import GroupMember
from ottla.client.consumer.subscription_state import by_topic
from ottla.client.topic_partition import TopicPartition
from ottla_wire.messages import consumer_protocol as protocol

PROTOCOL_TYPE = "consumer"
_VERSION = 3


def encode_subscription(
    topics: Iterable[str],
    owned: Collection[TopicPartition],
    generation: int,
    user_data: bytes | None,
    rack: str | None,
) -> bytes:
    """A member's subscription, with what it owns and since when (KIP-429, KIP-792)."""
    return protocol.ConsumerProtocolSubscription(
        topics=sorted(topics),
        user_data=user_data,
        owned_partitions=[
            protocol.TopicPartition(topic=topic, partitions=sorted(numbers))
            for topic, numbers in sorted(by_topic(owned).items())
        ],
        generation_id=generation,
        rack_id=rack,
    ).encode_with_version(_VERSION)


def decode_subscription(member: GroupMember) -> MemberSubscription:
    """A member's subscription, of any version and from any client."""
    subscription = protocol.ConsumerProtocolSubscription.decode_with_version(member.metadata)
    return MemberSubscription(
        topics=frozenset(subscription.topics),
        owned=tuple(
            TopicPartition(owned.topic, number)
            for owned in subscription.owned_partitions
            for number in owned.partitions
        ),
        generation=subscription.generation_id,
        user_data=None if subscription.user_data is None else bytes(subscription.user_data),
        group_instance_id=member.group_instance_id,
        rack=subscription.rack_id,
    )


def encode_assignment(partitions: Iterable[TopicPartition]) -> bytes:
    """What one member gets."""
    return protocol.ConsumerProtocolAssignment(
        assigned_partitions=[
            protocol.TopicPartition(topic=topic, partitions=numbers) for topic, numbers in by_topic(partitions).items()
        ]
    ).encode_with_version(_VERSION)


def decode_assignment(assignment: bytes | memoryview) -> list[TopicPartition]:
    """What this member got. No bytes at all: the leader did not think of it, so it got nothing."""
    if not assignment:
        return []
    decoded = protocol.ConsumerProtocolAssignment.decode_with_version(assignment)
    return [
        TopicPartition(assigned.topic, number)
        for assigned in decoded.assigned_partitions
        for number in assigned.partitions
    ]
