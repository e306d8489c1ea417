"""PendingOffsets: offsets that groups have committed inside transactions that have not ended yet.

Nobody sees them before their transaction commits; until then the partition's committed offset is not stable (KIP-447).
They belong to a producer id, since that is what a marker names. Only the newest state is kept: whoever asks about
stability asks about the end of the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ottla_wire.schema import Uuid


class TopicPartition(NamedTuple):
    """What an offset is committed for."""

    topic: str
    partition: int


class CommittedOffset(NamedTuple):
    """A committed offset. `record_offset` is where in `__consumer_offsets` it stands: the later one counts."""

    offset: int
    leader_epoch: int
    metadata: str
    commit_ms: int
    expire_ms: int
    topic_id: Uuid
    record_offset: int

    def is_of(self, topic_id: Uuid) -> bool:
        """Whether it belongs to the topic with this id, as far as both ids are known."""
        return topic_id == self.topic_id or Uuid.ZERO in (topic_id, self.topic_id)


class PendingOffsets:
    """The pending offsets of one partition's groups."""

    def __init__(self) -> None:
        self._by_producer: dict[int, dict[tuple[str, TopicPartition], CommittedOffset]] = {}
        self._producers: dict[str, dict[TopicPartition, set[int]]] = {}  # by group; nothing in it is empty

    def put(self, producer_id: int, group_id: str, key: TopicPartition, committed: CommittedOffset) -> None:
        """A transaction of this producer commits an offset, instead of the one it may have committed before."""
        self._by_producer.setdefault(producer_id, {})[group_id, key] = committed
        self._producers.setdefault(group_id, {}).setdefault(key, set()).add(producer_id)

    def forget(self, group_id: str, key: TopicPartition) -> None:
        """A tombstone: whatever was pending for this partition will not count."""
        for producer_id in self._producers.get(group_id, {}).get(key, ()):
            del self._by_producer[producer_id][group_id, key]
        self._drop(group_id, key)

    def take(self, producer_id: int) -> dict[tuple[str, TopicPartition], CommittedOffset]:
        """The producer's transaction is over: take out what it had committed, by group and partition."""
        taken = self._by_producer.pop(producer_id, {})
        for group_id, key in taken:
            producers = self._producers[group_id][key]
            producers.discard(producer_id)
            if not producers:
                self._drop(group_id, key)
        return taken

    def of_group(self, group_id: str) -> set[TopicPartition]:
        """The partitions for which the group has something pending."""
        return set(self._producers.get(group_id, ()))

    def __contains__(self, entry: tuple[str, TopicPartition]) -> bool:
        """Whether anything is pending for a group's partition."""
        group_id, key = entry
        return key in self._producers.get(group_id, ())

    def __iter__(self) -> Iterator[tuple[str, TopicPartition, CommittedOffset]]:
        """Everything that is pending."""
        for pending in self._by_producer.values():
            for (group_id, key), committed in pending.items():
                yield group_id, key, committed

    def _drop(self, group_id: str, key: TopicPartition) -> None:
        keys = self._producers.get(group_id)
        if keys is not None and keys.pop(key, None) is not None and not keys:
            del self._producers[group_id]
