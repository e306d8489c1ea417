"""A partition's name, a place in it, and a group's identity: what producer, consumer and admin client pass around."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class TopicPartition(NamedTuple):
    """One partition of a topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}"


@dataclass(frozen=True, slots=True)
class OffsetAndMetadata:
    """A committed position: the offset of the next record to read, not of the last one that was read.

    `leader_epoch` is the epoch of the record before it, if known: it lets a consumer notice that a log was truncated
    (KIP-320). `metadata` is a text of the application's own, stored beside the offset.
    """

    offset: int
    leader_epoch: int | None = None
    metadata: str = ""

    def __post_init__(self) -> None:
        if self.offset < 0:
            raise ValueError(f"an offset is never negative, got {self.offset}")


class OffsetAndTimestamp(NamedTuple):
    """Where the first record at or after a time is: its offset and its own timestamp."""

    offset: int
    timestamp_ms: int
    leader_epoch: int | None = None


@dataclass(frozen=True, slots=True)
class ConsumerGroupMetadata:
    """A consumer's membership at one moment, for `send_offsets_to_transaction` (KIP-447).

    A transaction that carries the offsets of a member which has been replaced since is refused by the coordinator.
    """

    group_id: str
    generation_id: int = -1
    member_id: str = ""
    group_instance_id: str | None = None
