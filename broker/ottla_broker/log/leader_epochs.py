"""LeaderEpochs: which leader wrote from which offset on (KIP-101, KIP-279), kept in `leader-epoch-checkpoint`.

An entry (epoch, start offset) says that the leader of this epoch appended from there on. A new leader notes its epoch
even before its first append, so that a follower with later, empty epochs is truncated right. Adding is durable at once,
but for an empty log;
entries that are dropped may come back after a crash, which does no harm: they describe offsets that are cut off again
at start.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ottla_broker.log.checkpoints import CorruptCheckpoint, read_checkpoint, write_checkpoint
from ottla_broker.log.files import Files

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "leader-epoch-checkpoint"


class EpochEntry(NamedTuple):
    """The leader of `epoch` appended from `start_offset` on."""

    epoch: int
    start_offset: int


class EpochEnd(NamedTuple):
    """Where an epoch ends: the answer to OffsetForLeaderEpoch. The epoch may be an earlier one than was asked for."""

    epoch: int
    end_offset: int


class LeaderEpochs:
    """The epochs of one partition, ascending in epoch and start offset."""

    def __init__(self, files: Files, folder: Path) -> None:
        self._files = files
        self._path = folder / CHECKPOINT_NAME
        self._epochs: list[int] = []
        self._starts: list[int] = []
        self._is_stale = False
        self._has_folder = True

    def wait_for_folder(self) -> None:
        """There is no folder yet: keep everything in memory until `folder_made`."""
        self._has_folder = False

    def folder_made(self) -> None:
        """Write what there is, without fsync: nothing in the folder is durable yet."""
        self._has_folder = True
        if self._is_stale:
            self._write(durable=False)

    def load(self) -> None:
        """Read the checkpoint; a missing or damaged one is empty, and recovery fills it from the log."""
        try:
            lines = read_checkpoint(self._files, self._path, columns=2)
            self._set(EpochEntry(int(epoch), int(start)) for epoch, start in lines)
        except (CorruptCheckpoint, ValueError) as error:
            logger.warning("%s is rebuilt from the log: %s", self._path, error)
            self._set([])

    @property
    def entries(self) -> list[EpochEntry]:
        """All entries, ascending."""
        return [EpochEntry(epoch, start) for epoch, start in zip(self._epochs, self._starts, strict=True)]

    @property
    def latest(self) -> int | None:
        """The newest epoch, None in a log that never had a leader."""
        return self._epochs[-1] if self._epochs else None

    @property
    def earliest(self) -> EpochEntry | None:
        """The oldest entry."""
        return EpochEntry(self._epochs[0], self._starts[0]) if self._epochs else None

    def assign(self, epoch: int, start_offset: int) -> None:
        """Note that the leader of `epoch` appends from `start_offset` on; durable on return.

        Entries that contradict this give way. At offset 0 it may be lost: what there was before is of no use to a log
        that is empty, and as soon as it is not, recovery finds the epoch in its records.
        """
        if self.note(epoch, start_offset):
            self._write(durable=start_offset > 0)

    def note(self, epoch: int, start_offset: int) -> bool:
        """`assign` without writing: True if `save` has something to write."""
        if self._epochs and epoch == self._epochs[-1] and start_offset >= self._starts[-1]:
            return False
        assert min(epoch, start_offset) >= 0, f"leader epoch {epoch} at offset {start_offset}"
        keep = min(bisect_left(self._epochs, epoch), bisect_left(self._starts, start_offset))
        self._set([*self.entries[:keep], EpochEntry(epoch, start_offset)])
        self._is_stale = True
        return True

    def end_offset_for(self, epoch: int, log_end_offset: int) -> EpochEnd | None:
        """The end of the newest epoch not above `epoch`; None if the log has not heard of so new an epoch."""
        if not self._epochs or epoch < 0 or epoch > self._epochs[-1]:
            return None
        if epoch == self._epochs[-1]:
            return EpochEnd(epoch, log_end_offset)
        following = bisect_right(self._epochs, epoch)
        if following == 0:
            return EpochEnd(epoch, self._starts[0])
        return EpochEnd(self._epochs[following - 1], self._starts[following])

    def epoch_for_offset(self, offset: int) -> int | None:
        """The epoch whose leader appended this offset."""
        at = bisect_right(self._starts, offset) - 1
        return self._epochs[at] if at >= 0 else None

    def truncate_from_end(self, end_offset: int) -> None:
        """Drop epochs that start at `end_offset` or beyond."""
        keep = bisect_left(self._starts, end_offset)
        if keep < len(self._starts):
            self._set(self.entries[:keep])
            self._is_stale = True

    def truncate_from_start(self, start_offset: int) -> None:
        """Drop epochs that ended before `start_offset`; the one it falls into starts there."""
        before = bisect_right(self._starts, start_offset) - 1
        if before > 0 or (before == 0 and self._starts[0] < start_offset):
            self._set([EpochEntry(self._epochs[before], start_offset), *self.entries[before + 1 :]])
            self._is_stale = True

    def prepend(self, entries: list[EpochEntry]) -> None:
        """Put entries that were found in the log before those that are here."""
        earliest = self._epochs[0] if self._epochs else 2**31
        found = [entry for entry in entries if entry.epoch < earliest]
        same = [entry for entry in entries if entry.epoch == earliest]
        if found or same:
            self._set([*found, *same, *self.entries[1 if same else 0 :]])
            self._is_stale = True

    def clear(self) -> None:
        """Forget all epochs. Durable on return."""
        if self._epochs or self._is_stale:
            self._set([])
            self._write()

    def save(self) -> None:
        """Write what truncation left behind, if anything changed. Durable on return."""
        if self._is_stale:
            self._write()

    def _set(self, entries: Iterable[EpochEntry]) -> None:
        entries = list(entries)
        self._epochs = [entry.epoch for entry in entries]
        self._starts = [entry.start_offset for entry in entries]

    def _write(self, *, durable: bool = True) -> None:
        if not self._has_folder:
            return
        write_checkpoint(self._files, self._path, self.entries, durable=durable)
        self._is_stale = False
