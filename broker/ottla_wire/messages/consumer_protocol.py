"""What the members of a classic consumer group tell each other: subscriptions, and the leader's assignments.

The broker passes both on as bytes (it looks into subscriptions only to know which topics a group uses). Both start with
their version. Newer versions only add fields at the end, so a version from a newer client is read as the newest known
one, and what follows is left alone.

Versions:

    0  topics and user data
    1  the partitions that the member owns, for cooperative rebalancing (KIP-429)
    2  the generation in which it owned them (KIP-792)
    3  the member's rack (KIP-881)
"""

from __future__ import annotations

from typing import Self

from ottla_wire.errors import DecodeError
from ottla_wire.schema import Buffer, Data, Struct, field, i32


class _Extensible(Data):
    @classmethod
    def decode_with_version(cls, buffer: Buffer) -> Self:
        """Read the version, and the message in that version or the newest one that is known."""
        if len(buffer) < 2:
            raise DecodeError(f"{cls.__name__} cannot be read: it ends before its version")
        version = int.from_bytes(buffer[:2], "big", signed=True)
        return cls.decode_prefix(buffer, min(version, cls.versions.max), 2)[0]


class TopicPartition(Struct):
    """Partitions of one topic."""

    topic: str = ""
    partitions: list[i32] = field()


class ConsumerProtocolSubscription(_Extensible, versions="0-3"):
    """What a member wants to read, and what it holds."""

    topics: list[str] = field()
    user_data: bytes | None = None
    owned_partitions: list[TopicPartition] = field("1+", ignorable=True)
    generation_id: i32 = field("2+", default=-1, ignorable=True)
    rack_id: str | None = field("3+", default=None, ignorable=True)


class ConsumerProtocolAssignment(_Extensible, versions="0-3"):
    """What a member is given to read."""

    assigned_partitions: list[TopicPartition] = field()
    user_data: bytes | None = None
