"""Producer snapshots: Kafka's `.snapshot` files, the producers of a partition as of one offset.

Only the last batch of each producer is kept, so the window for duplicates is one batch deep until the log behind the
snapshot was replayed.
"""

from __future__ import annotations

import logging
import struct
from bisect import insort
from collections.abc import Iterable
from pathlib import Path

from ottla_broker.log.files import Files
from ottla_broker.log.producer_state import ProducerState, snapshot_range
from ottla_wire.records import crc32c

logger = logging.getLogger(__name__)

SNAPSHOT_SUFFIX = ".snapshot"
_PREFIX = struct.Struct(">hII")  # version, CRC-32C of everything behind it, number of entries
_CRC_END = 6
_ENTRY = struct.Struct(">qhiqiqiq")
_VERSION = 1


class CorruptSnapshot(Exception):
    """A snapshot is not what was written; the next older one is used."""


def encode_snapshot(entries: Iterable[ProducerState]) -> bytes:
    """The content of a `.snapshot` file."""
    packed = []
    for entry in entries:
        last = entry.batches[-1] if entry.batches else None
        packed.append(
            _ENTRY.pack(
                entry.producer_id,
                entry.epoch,
                -1 if last is None else last.last_sequence,
                -1 if last is None else last.last_offset,
                0 if last is None else last.last_offset - last.first_offset,
                entry.last_timestamp_ms,
                entry.coordinator_epoch,
                entry.current_txn_first_offset,
            )
        )
    body = struct.pack(">I", len(packed)) + b"".join(packed)
    return struct.pack(">hI", _VERSION, crc32c(body)) + body


def decode_snapshot(data: bytes) -> list[ProducerState]:
    """The producers in a `.snapshot` file. Raises CorruptSnapshot."""
    if len(data) < _PREFIX.size:
        raise CorruptSnapshot(f"{len(data)} bytes are too short")
    version, crc, count = _PREFIX.unpack_from(data)
    if version != _VERSION:
        raise CorruptSnapshot(f"version {version} is not known")
    if crc32c(memoryview(data)[_CRC_END:]) != crc:
        raise CorruptSnapshot("its CRC is wrong")
    if len(data) != _PREFIX.size + count * _ENTRY.size:
        raise CorruptSnapshot(f"it does not hold the {count} entries it announces")
    states = []
    for fields in _ENTRY.iter_unpack(memoryview(data)[_PREFIX.size :]):
        producer_id, epoch, last_sequence, last_offset, offset_delta, timestamp_ms, coordinator_epoch, txn = fields
        state = ProducerState(producer_id, epoch, coordinator_epoch, timestamp_ms, txn)
        if last_offset >= 0:
            state.batches.append(snapshot_range(last_sequence, last_offset, offset_delta, timestamp_ms))
        states.append(state)
    return states


class Snapshots:
    """The `.snapshot` files of a partition: at segment bases, and one where it was closed in good order."""

    def __init__(self, files: Files, folder: Path) -> None:
        self._files = files
        self._folder = folder
        self.offsets: list[int] = []

    def list_files(self) -> None:
        """Find what is there."""
        names = [
            name.removesuffix(SNAPSHOT_SUFFIX)
            for name in self._files.list(self._folder)
            if name.endswith(SNAPSHOT_SUFFIX)
        ]
        self.offsets = sorted(int(name) for name in names if name.isdecimal())

    def path(self, offset: int) -> Path:
        """The file of the snapshot as of an offset."""
        return self._folder / f"{offset:020d}{SNAPSHOT_SUFFIX}"

    def take(self, offset: int, states: Iterable[ProducerState]) -> None:
        """Write the producers as of `offset`, without making it durable."""
        self._files.write(self.path(offset), encode_snapshot(states))
        if offset not in self.offsets:
            insort(self.offsets, offset)

    def load_latest(self, upto_offset: int) -> tuple[int, list[ProducerState]] | None:
        """The latest usable snapshot at or before an offset.

        A corrupt one is removed, and the next older one tried.
        """
        for offset in reversed(self.offsets.copy()):
            if offset > upto_offset:
                continue
            try:
                return offset, decode_snapshot(self._files.read(self.path(offset)))
            except CorruptSnapshot as error:
                logger.warning("%s is removed: %s", self.path(offset), error)
                self.remove(offset)
        return None

    def remove(self, offset: int) -> None:
        """Remove one, if it is there."""
        if offset in self.offsets:
            self.offsets.remove(offset)
            self._files.remove(self.path(offset))

    def keep_between(self, first_offset: int, last_offset: int) -> None:
        """Remove those before the first segment, and those that know more than the log holds."""
        for offset in self.offsets.copy():
            if not first_offset <= offset <= last_offset:
                self.remove(offset)

    def clear(self) -> None:
        """Remove all."""
        self.keep_between(0, -1)

    def remove_strays(self, segment_bases: Iterable[int]) -> None:
        """Remove those that belong to no segment, but for the last one of all (a close in good order)."""
        bases = set(segment_bases)
        newest = max(bases, default=-1)
        strays = [offset for offset in self.offsets if offset not in bases]
        for offset in strays:
            if offset != strays[-1] or offset < newest:
                self.remove(offset)
