"""Kafka's checkpoint files: a version line, the number of entries, one entry per line. Replaced as a whole, durably."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ottla_broker.log.files import Files

_VERSION = "0"
_NEVER = 2**63


class CorruptCheckpoint(Exception):
    """A checkpoint file is not what was written; the message names it."""


def read_checkpoint(files: Files, path: Path, *, columns: int) -> list[Sequence[str]]:
    """The entries of a checkpoint, [] if there is no file. Raises CorruptCheckpoint."""
    if not files.exists(path):
        return []
    lines = files.read(path).decode("utf-8", "replace").splitlines()
    if len(lines) < 2 or lines[0].strip() != _VERSION:
        raise CorruptCheckpoint(f"{path} is no checkpoint of version {_VERSION}")
    entries: list[Sequence[str]] = [line.split() for line in lines[2:]]
    if lines[1].strip() != str(len(entries)) or any(len(entry) != columns for entry in entries):
        raise CorruptCheckpoint(f"{path} does not hold the {lines[1].strip()} entries it announces")
    return entries


def write_checkpoint(files: Files, path: Path, entries: Iterable[Sequence[object]]) -> None:
    """Replace a checkpoint."""
    lines = [" ".join(map(str, entry)) for entry in entries]
    files.replace(path, "\n".join([_VERSION, str(len(lines)), *lines, ""]).encode())


class OrderedWrites:
    """Writes of one file that are decided in an order and done on any thread: an older one never replaces a newer."""

    __slots__ = ("_decided", "_done", "_lock")

    def __init__(self) -> None:
        self._decided = 0
        self._done = 0
        self._lock = threading.Lock()

    def next(self, write: Callable[[], None]) -> Callable[[], None]:
        """`write`, to be called once; it does nothing if one that was decided later is done already."""
        self._decided = number = self._decided + 1

        def in_order() -> None:
            with self._lock:
                if number > self._done:
                    write()
                    self._done = number

        return in_order

    def stop(self) -> None:
        """Let none of those that are left be done any more; the one that is under way is waited for."""
        with self._lock:
            self._done = _NEVER


def read_offset_checkpoint(files: Files, path: Path) -> dict[tuple[str, int], int]:
    """A checkpoint of one offset per partition. Raises CorruptCheckpoint."""
    return {
        (topic, int(partition)): int(offset) for topic, partition, offset in read_checkpoint(files, path, columns=3)
    }


def write_offset_checkpoint(files: Files, path: Path, offsets: Mapping[tuple[str, int], int]) -> None:
    """Replace a checkpoint of one offset per partition."""
    write_checkpoint(
        files, path, ((topic, partition, offset) for (topic, partition), offset in sorted(offsets.items()))
    )
