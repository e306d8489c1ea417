"""LeaderEpochs: which leader wrote from which offset on (KIP-101, KIP-279), kept in `leader-epoch-checkpoint`.

An entry (epoch, start offset) says that the leader of this epoch appended from there on. A new leader notes its epoch
even before its first append, so that a follower with later, empty epochs is truncated right. Adding is durable at once.
Two changes are not, and are left to a later `save`. An epoch that begins at offset 0: what there was before is of no
use to a log that is empty, and as soon as it is not, recovery finds the epoch in its records. Entries that are dropped:
they may come back after a crash, but describe offsets that are cut off again at start.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ottla_broker.log.checkpoints import CorruptCheckpoint, OrderedWrites, read_checkpoint, write_checkpoint
from ottla_broker.log.files import Files

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "leader-epoch-checkpoint"


Store = Callable[[Callable[[], None]], None]


class EpochEntry(NamedTuple):
    """The leader of `epoch` appended from `start_offset` on."""

    epoch: int
    start_offset: int


class EpochEnd(NamedTuple):
    """Where an epoch ends: the answer to OffsetForLeaderEpoch. The epoch may be an earlier one than was asked for."""

    epoch: int
    end_offset: int


class LeaderEpochs:
    """The epochs of one partition, ascending in epoch and start offset.

    Args:
        store: does a write that makes a change durable; a broker that starts may put it off until it serves.

    Attributes:
        is_stale: whether `save` has something to write.
    """

    def __init__(self, files: Files, folder: Path, store: Store | None = None) -> None:
        self._files = files
        self._folder = folder
        self._epochs: list[int] = []
        self._starts: list[int] = []
        self.is_stale = False
        self._writes = OrderedWrites()
        self._store: Store = store or _at_once

    def load(self) -> None:
        """Read the checkpoint; a missing or damaged one is empty, and recovery fills it from the log."""
        try:
            lines = read_checkpoint(self._files, self._folder / CHECKPOINT_NAME, columns=2)
            self._set(EpochEntry(int(epoch), int(start)) for epoch, start in lines)
        except (CorruptCheckpoint, ValueError) as error:
            logger.warning("%s is rebuilt from the log: %s", self._folder / CHECKPOINT_NAME, error)
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
        """Note that the leader of `epoch` appends from `start_offset` on; durable on return, but at offset 0.

        Entries that contradict this give way.
        """
        if self.note(epoch, start_offset) and start_offset > 0:
            self.save()

    def note(self, epoch: int, start_offset: int) -> bool:
        """`assign` without writing: True if `save` has something to write."""
        if self._epochs and epoch == self._epochs[-1] and start_offset >= self._starts[-1]:
            return False
        assert min(epoch, start_offset) >= 0, f"leader epoch {epoch} at offset {start_offset}"
        keep = min(bisect_left(self._epochs, epoch), bisect_left(self._starts, start_offset))
        self._epochs = [*self._epochs[:keep], epoch]
        self._starts = [*self._starts[:keep], start_offset]
        self.is_stale = True
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
            self.is_stale = True

    def truncate_from_start(self, start_offset: int) -> None:
        """Drop epochs that ended before `start_offset`; the one it falls into starts there."""
        before = bisect_right(self._starts, start_offset) - 1
        if before > 0 or (before == 0 and self._starts[0] < start_offset):
            self._set([EpochEntry(self._epochs[before], start_offset), *self.entries[before + 1 :]])
            self.is_stale = True

    def prepend(self, entries: list[EpochEntry]) -> None:
        """Put entries that were found in the log before those that are here."""
        earliest = self._epochs[0] if self._epochs else 2**31
        found = [entry for entry in entries if entry.epoch < earliest]
        same = [entry for entry in entries if entry.epoch == earliest]
        if found or same:
            self._set([*found, *same, *self.entries[1 if same else 0 :]])
            self.is_stale = True

    def clear(self) -> None:
        """Forget all epochs. Durable on return."""
        if self._epochs:
            self._set([])
            self.is_stale = True
        self.save()

    def save(self) -> None:
        """Write what is not in the file yet. Durable on return."""
        write = self.prepare_save()
        if write is not None:
            self._store(write)

    def prepare_save(self) -> Callable[[], None] | None:
        """`save` for another thread: what is to be called there; None if there is nothing to write."""
        if not self.is_stale:
            return None
        self.is_stale = False
        path = self._folder / CHECKPOINT_NAME
        return self._writes.next(partial(write_checkpoint, self._files, path, self.entries))

    def stop(self) -> None:
        """Write nothing any more: the folder is about to be another's."""
        self._writes.stop()

    def _set(self, entries: Iterable[EpochEntry]) -> None:
        entries = list(entries)
        self._epochs = [entry.epoch for entry in entries]
        self._starts = [entry.start_offset for entry in entries]


def _at_once(write: Callable[[], None]) -> None:
    write()
