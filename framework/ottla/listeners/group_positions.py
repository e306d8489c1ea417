"""What a group has committed, and where reading has led beyond it: so that a lag goes to 0, and no start is lost.

Two things are committed although no record was handled for them:

- *Past markers.* A transaction ends with a marker, which nobody is given. A group that has handled the last record of a
  topic has committed the offset of the marker, and shows a lag of 1 for ever. When there is nothing to do, the position
  is committed in its place (Spring: fixTxOffsets); never the position of a partition that was sought.
- *The start of a partition.* A group that starts at the end of a partition, and has committed nothing when it is
  started again, would begin at the new end and miss what came in between (Spring: assignmentCommitOption).

This is the bookkeeping; what it has to be told it asks for by effects. Per partition it knows the last record that came
and the offset that was committed last; only when they meet is nothing of the partition under way, so that the position
may be committed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from ottla.client import OffsetAndMetadata, TopicPartition
from ottla.errors import OttlaError
from ottla.listeners.effects import Effects, Perform
from ottla_wire.records import ConsumerRecord

if TYPE_CHECKING:
    from ottla.transaction.sides import Side

logger = logging.getLogger("ottla.listener")

LOOK_UP_SECONDS = 5.0

Offsets = dict[TopicPartition, OffsetAndMetadata]


class AssignmentCommit(Enum):
    """When the position of a partition is committed that the group has no committed offset for (Spring:
    AssignmentCommitOption)."""

    LATEST_ONLY_NO_TX = "latest_only_no_tx"
    """Where `auto_offset_reset` is "latest", and never in a transaction."""
    LATEST_ONLY = "latest_only"
    """The same; in a transaction, if the listener has them."""
    ALWAYS = "always"
    """Whatever the reset policy."""
    NEVER = "never"
    """Not before a record was handled."""


class GroupPositions:
    """The bookkeeping of one consumer."""

    def __init__(self, *, commits_start: bool = False) -> None:
        self._commits_start = commits_start
        self._last_seen: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int | None] = {}

    def seen(self, records: Sequence[ConsumerRecord]) -> None:
        """These records came; they are under way until their offset is committed."""
        last: tuple[str, int] | None = None
        for record in reversed(records):  # in the order of their partitions: the first one met is the last of it
            if (record.topic, record.partition) != last:
                last = (record.topic, record.partition)
                partition = TopicPartition(*last)
                self._last_seen[partition] = max(record.offset, self._last_seen.get(partition, -1))

    def committed(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """These offsets are committed."""
        for partition, place in offsets.items():
            self._committed[partition] = place.offset

    def looked_up(self, offsets: Mapping[TopicPartition, OffsetAndMetadata | None]) -> None:
        """What the group's coordinator says; None: nothing."""
        for partition, place in offsets.items():
            self._committed.setdefault(partition, None if place is None else place.offset)

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """They were given up, or sought."""
        for partition in partitions:
            self._last_seen.pop(partition, None)
            self._committed.pop(partition, None)

    def left_to_commit(self) -> Effects[tuple[Offsets, Offsets]]:
        """There is nothing to do: the positions that lie behind committed offsets, and the starts without one."""
        read_past: Offsets = yield Perform(_read_past)
        unknown = [partition for partition in read_past if partition not in self._committed]
        if unknown:
            self.looked_up((yield Perform(lambda consumer, _: _looked_up(consumer, unknown))))
        return self.behind(read_past), self.starts(read_past)

    def behind(self, read_past: Mapping[TopicPartition, OffsetAndMetadata]) -> Offsets:
        """What is to be committed so that nothing that was read is left, of partitions with a committed offset."""
        return {
            partition: place
            for partition, place in read_past.items()
            if (known := self._committed.get(partition)) is not None
            and known < place.offset
            and self._last_seen.get(partition, -1) < known
        }

    def starts(self, read_past: Mapping[TopicPartition, OffsetAndMetadata]) -> Offsets:
        """What is to be committed so that a start is not lost, of partitions without a committed offset."""
        if not self._commits_start:
            return {}
        return {
            partition: place
            for partition, place in read_past.items()
            if self._committed.get(partition, 0) is None and partition not in self._last_seen
        }


async def _read_past(consumer: Any, _: Side) -> Offsets:
    found: Offsets = consumer.read_past()
    return found


async def _looked_up(consumer: Any, partitions: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata | None]:
    try:
        result = consumer.committed(partitions, timeout=LOOK_UP_SECONDS)
        return dict(await result if hasattr(result, "__await__") else result)
    except (OttlaError, TimeoutError) as error:
        logger.info("what the group has committed is not known yet: %s", error)
        return {}
