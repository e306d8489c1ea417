"""OffsetCheckpoint: a file with one offset per partition.

It is written on the disk thread, or at once where an append must not come before it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ottla_broker.log.checkpoints import (
    CorruptCheckpoint,
    OrderedWrites,
    read_offset_checkpoint,
    write_offset_checkpoint,
)
from ottla_broker.log.files import Files

logger = logging.getLogger(__name__)

Partition = tuple[str, int]


class OffsetCheckpoint:
    """A checkpoint file. Offsets of partitions that nobody has opened yet are kept as they were read."""

    def __init__(self, files: Files, path: Path) -> None:
        self._files = files
        self._path = path
        self._offsets: dict[Partition, int] = {}
        self._written: dict[Partition, int] = {}
        self._writes = OrderedWrites()

    def load(self) -> None:
        """Read the file. A damaged one counts as empty: recovery then starts from the beginning of each log."""
        try:
            self._offsets = read_offset_checkpoint(self._files, self._path)
        except (CorruptCheckpoint, ValueError) as error:
            logger.warning("%s is ignored: %s", self._path, error)
        self._written = dict(self._offsets)

    def get(self, partition: Partition) -> int:
        """The offset of a partition, 0 if it is unknown."""
        return self._offsets.get(partition, 0)

    def forget(self, partition: Partition) -> bool:
        """The partition is deleted. True if the file may still give a later one of its name an offset."""
        return self._offsets.pop(partition, 0) > 0

    def partitions(self) -> list[Partition]:
        """Those that have an offset."""
        return list(self._offsets)

    def update(self, offsets: Mapping[Partition, int]) -> Callable[[], None] | None:
        """Take over current offsets; what then is to be run, on any thread, to store them. None if nothing changed."""
        self._offsets.update(offsets)
        if self._offsets == self._written:
            return None
        return self.rewrite()

    def rewrite(self) -> Callable[[], None]:
        """What is to be run to store the offsets as they are now, changed or not."""
        self._written = dict(self._offsets)
        return self._writes.next(partial(write_offset_checkpoint, self._files, self._path, self._written))
