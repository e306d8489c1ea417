"""The indexes of a segment: by offset, by time, of aborted transactions (Kafka's .index, .timeindex, .txnindex).

Entries live in arrays. New ones are added in memory, one per `index.interval.bytes`, and reach their files when the
segment is flushed, rolled or closed: after a crash the indexes of every segment at or above the recovery point are
rebuilt from the log, so nothing depends on them before. Aborted transactions are rare and written at once.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ottla_broker.log.batch import NO_TIMESTAMP
from ottla_broker.log.files import Files

OFFSET_ENTRY_BYTES = 8
TIME_ENTRY_BYTES = 12
ABORTED_ENTRY_BYTES = 34
MAX_RELATIVE_OFFSET = 2**31 - 1

_TIME_ENTRY = struct.Struct(">qi")
_ABORTED_ENTRY = struct.Struct(">hqqqq")
_ABORTED_VERSION = 0


class CorruptIndex(Exception):
    """An index file is not what the log can have written; it is rebuilt."""


class OffsetIndex:
    """(last offset of a batch, position of its first byte), ascending in both."""

    def __init__(self, base_offset: int, max_bytes: int) -> None:
        self.base_offset = base_offset
        self.max_entries = max_bytes // OFFSET_ENTRY_BYTES
        self.offsets = array("i")
        self.positions = array("i")
        self._written = 0  # leading entries that are in the file as they are here
        self._in_file = -1  # entries in the file, -1 if there is none that this index knows

    @property
    def is_full(self) -> bool:
        """Whether the segment must be rolled before the next entry."""
        return len(self.offsets) >= self.max_entries

    def append(self, last_offset: int, position: int) -> None:
        """Add an entry behind the others."""
        self.offsets.append(last_offset - self.base_offset)
        self.positions.append(position)

    def position_before(self, offset: int) -> int:
        """A position at or before the batch that holds `offset`: the nearest one known."""
        at = bisect_right(self.offsets, offset - self.base_offset) - 1
        return self.positions[at] if at >= 0 else 0

    def boundary_before(self, position: int) -> int:
        """The last known batch boundary at or before a position."""
        at = bisect_right(self.positions, position) - 1
        return self.positions[at] if at >= 0 else 0

    def last_position(self) -> int:
        """Position of the last entry, 0 without one."""
        return self.positions[-1] if self.positions else 0

    def truncate(self, offset: int) -> None:
        """Drop entries of batches that reach `offset` or beyond."""
        keep = bisect_left(self.offsets, offset - self.base_offset)
        del self.offsets[keep:]
        del self.positions[keep:]
        # what is in the file beyond is cut off by the next save
        self._written = min(self._written, keep)

    def save(self, files: Files, path: Path) -> None:
        """Bring the file up to date, without making it durable."""
        if self._written == len(self.offsets) == self._in_file:
            return
        interleaved = array("i")
        for offset, position in zip(self.offsets[self._written :], self.positions[self._written :], strict=True):
            interleaved.append(offset)
            interleaved.append(position)
        _save(files, path, self._written * OFFSET_ENTRY_BYTES, _big_endian(interleaved))
        self._written = self._in_file = len(self.offsets)

    def load(self, files: Files, path: Path) -> None:
        """Read the file. Raises FileNotFoundError, CorruptIndex."""
        data = files.read(path)
        if len(data) % OFFSET_ENTRY_BYTES:
            raise CorruptIndex(f"{path.name} holds {len(data)} bytes, which are no whole entries")
        interleaved = array("i", data)
        if sys.byteorder == "little":
            interleaved.byteswap()
        self.offsets, self.positions = interleaved[0::2], interleaved[1::2]
        self._written = self._in_file = len(self.offsets)
        for column in (self.offsets, self.positions):
            if column and (column[0] < 0 or any(a >= b for a, b in pairwise(column))):
                raise CorruptIndex(f"{path.name} is not in ascending order")


class TimeIndex:
    """(largest timestamp so far, last offset of the batch that has it), ascending in both."""

    def __init__(self, base_offset: int, max_bytes: int) -> None:
        self.base_offset = base_offset
        self.max_entries = max_bytes // TIME_ENTRY_BYTES
        self.timestamps = array("q")
        self.offsets = array("i")
        self._written = 0  # leading entries that are in the file as they are here
        self._in_file = -1  # entries in the file, -1 if there is none that this index knows

    @property
    def is_full(self) -> bool:
        """Whether the segment must be rolled; one entry is kept free for the end of the segment."""
        return len(self.offsets) >= self.max_entries - 1

    @property
    def last(self) -> tuple[int, int]:
        """The last entry; (-1, base offset) without one."""
        if not self.timestamps:
            return NO_TIMESTAMP, self.base_offset
        return self.timestamps[-1], self.base_offset + self.offsets[-1]

    def append(self, timestamp_ms: int, offset: int) -> None:
        """Add an entry if the timestamp is above all before it."""
        if timestamp_ms > (self.timestamps[-1] if self.timestamps else NO_TIMESTAMP):
            self.timestamps.append(timestamp_ms)
            self.offsets.append(offset - self.base_offset)

    def offset_before(self, timestamp_ms: int) -> int:
        """An offset such that no record before it has a timestamp of `timestamp_ms` or later."""
        at = bisect_left(self.timestamps, timestamp_ms) - 1
        return self.base_offset + self.offsets[at] if at >= 0 else self.base_offset

    def truncate(self, offset: int) -> None:
        """Drop entries of batches that reach `offset` or beyond."""
        keep = bisect_left(self.offsets, offset - self.base_offset)
        del self.timestamps[keep:]
        del self.offsets[keep:]
        self._written = min(self._written, keep)

    def save(self, files: Files, path: Path) -> None:
        """Bring the file up to date, without making it durable."""
        if self._written == len(self.offsets) == self._in_file:
            return
        pack = _TIME_ENTRY.pack
        fresh = zip(self.timestamps[self._written :], self.offsets[self._written :], strict=True)
        _save(files, path, self._written * TIME_ENTRY_BYTES, b"".join(pack(time, offset) for time, offset in fresh))
        self._written = self._in_file = len(self.offsets)

    def load(self, files: Files, path: Path) -> None:
        """Read the file. Raises FileNotFoundError, CorruptIndex."""
        data = files.read(path)
        if len(data) % TIME_ENTRY_BYTES:
            raise CorruptIndex(f"{path.name} holds {len(data)} bytes, which are no whole entries")
        entries = list(_TIME_ENTRY.iter_unpack(data))
        self.timestamps = array("q", [entry[0] for entry in entries])
        self.offsets = array("i", [entry[1] for entry in entries])
        self._written = self._in_file = len(entries)
        if any(a[0] >= b[0] or a[1] > b[1] for a, b in pairwise(entries)):
            raise CorruptIndex(f"{path.name} is not in ascending order")

    def peek_last(self, files: Files, path: Path) -> tuple[int, int]:
        """The last entry in the file, without reading the others. Raises FileNotFoundError, CorruptIndex."""
        size = files.size(path)
        if size % TIME_ENTRY_BYTES:
            raise CorruptIndex(f"{path.name} holds {size} bytes, which are no whole entries")
        if not size:
            return NO_TIMESTAMP, self.base_offset
        file = files.open(path)
        timestamp_ms, offset = _TIME_ENTRY.unpack(file.read(TIME_ENTRY_BYTES, size - TIME_ENTRY_BYTES))
        file.close()
        return timestamp_ms, self.base_offset + offset


class AbortedTxn(NamedTuple):
    """One aborted transaction: its first record, its marker, and what was stable when the marker was written."""

    producer_id: int
    first_offset: int
    last_offset: int
    last_stable_offset: int


class TransactionIndex:
    """The aborted transactions whose marker is in this segment, by marker."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[AbortedTxn] = []

    def append(self, files: Files, aborted: AbortedTxn) -> None:
        """Add an entry and write it."""
        file = files.open(self.path, create=True)
        file.append(_ABORTED_ENTRY.pack(_ABORTED_VERSION, *aborted))
        file.close()
        self.entries.append(aborted)

    def rewrite(self, files: Files, entries: Iterable[AbortedTxn]) -> None:
        """Put these entries in the place of all others (recovery, truncation). Without any, there is no file."""
        self.entries = list(entries)
        if self.entries:
            files.write(self.path, b"".join(_ABORTED_ENTRY.pack(_ABORTED_VERSION, *entry) for entry in self.entries))
        else:
            files.remove(self.path)

    def truncate(self, files: Files, offset: int) -> None:
        """Drop the transactions whose marker is at `offset` or beyond."""
        if self.entries and self.entries[-1].last_offset >= offset:
            self.rewrite(files, [entry for entry in self.entries if entry.last_offset < offset])

    def load(self, files: Files) -> None:
        """Read the file if there is one. Raises CorruptIndex."""
        self.entries = []
        if not files.exists(self.path):
            return
        data = files.read(self.path)
        if len(data) % ABORTED_ENTRY_BYTES:
            raise CorruptIndex(f"{self.path.name} holds {len(data)} bytes, which are no whole entries")
        for version, *fields in _ABORTED_ENTRY.iter_unpack(data):
            if version != _ABORTED_VERSION:
                raise CorruptIndex(f"{self.path.name} has an entry of the unknown version {version}")
            self.entries.append(AbortedTxn(*fields))

    def collect(self, fetch_offset: int, upper_offset: int, into: list[AbortedTxn]) -> bool:
        """Add those that overlap [fetch_offset, upper_offset); True if no later entry or segment can have another."""
        start = bisect_left(self.entries, fetch_offset, key=lambda entry: entry.last_offset)
        for entry in self.entries[start:]:
            if entry.first_offset < upper_offset:
                into.append(entry)
            if entry.last_stable_offset >= upper_offset:
                return True
        return False


def _big_endian(values: array[int]) -> bytes:
    if sys.byteorder == "little":
        values.byteswap()
    return values.tobytes()


def _save(files: Files, path: Path, start: int, data: bytes) -> None:
    file = files.open(path, create=True)
    if file.size > start:
        file.truncate(start)
    if data:
        file.append(data)
    file.close()
