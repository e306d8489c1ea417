"""Kafka's checkpoint files: a version line, the number of entries, one entry per line. Replaced as a whole, durably."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ottla_broker.log.files import Files

_VERSION = "0"


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


def write_checkpoint(files: Files, path: Path, entries: Iterable[Sequence[object]], *, durable: bool = True) -> None:
    """Replace a checkpoint. One that is not `durable` may be damaged after a crash."""
    lines = [" ".join(map(str, entry)) for entry in entries]
    write = files.replace if durable else files.write
    write(path, "\n".join([_VERSION, str(len(lines)), *lines, ""]).encode())


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
