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
from operator import le, lt
from pathlib import Path
from typing import ClassVar, NamedTuple

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


class _SparseIndex:
    """Entries of two columns, one of which is an offset relative to the base; both ascend.

    Encoding and decoding are done by whole columns: a segment of 1 GiB has a quarter of a million entries.
    """

    __slots__ = ("_in_file", "_written", "base_offset", "max_entries", "offsets")

    entry_bytes: ClassVar[int]

    def __init__(self, base_offset: int, max_bytes: int) -> None:
        self.base_offset = base_offset
        self.max_entries = max_bytes // self.entry_bytes
        self.forget()

    def forget(self) -> None:
        """Let go of all entries in memory; the file is as it is."""
        self.offsets = array("i")
        self._written = 0  # leading entries that are in the file as they are here
        self._in_file = -1  # entries in the file, -1 if there is none that this index knows

    def truncate(self, offset: int) -> None:
        """Drop entries of batches that reach `offset` or beyond."""
        keep = bisect_left(self.offsets, offset - self.base_offset)
        self._cut(keep)
        # what is in the file beyond is cut off by the next save
        self._written = min(self._written, keep)

    def save(self, files: Files, path: Path) -> None:
        """Bring the file up to date, without making it durable."""
        if self._written == len(self.offsets) == self._in_file:
            return
        start = self._written * self.entry_bytes
        data = self._encode(self._written)
        file = files.open(path, create=True)
        if file.size > start:
            file.truncate(start)
        if data:
            file.append(data)
        file.close()
        self._written = self._in_file = len(self.offsets)

    def load(self, files: Files, path: Path) -> None:
        """Read the file. Raises FileNotFoundError, CorruptIndex."""
        data = files.read(path)
        if len(data) % self.entry_bytes:
            raise CorruptIndex(f"{path.name} holds {len(data)} bytes, which are no whole entries")
        self._decode(data)
        self._written = self._in_file = len(self.offsets)
        if not self._ascends():
            raise CorruptIndex(f"{path.name} is not in ascending order")

    def _cut(self, keep: int) -> None:
        del self.offsets[keep:]

    def _encode(self, start: int) -> bytes:
        raise NotImplementedError

    def _decode(self, data: bytes) -> None:
        raise NotImplementedError

    def _ascends(self) -> bool:
        raise NotImplementedError


class OffsetIndex(_SparseIndex):
    """(last offset of a batch, position of its first byte)."""

    __slots__ = ("positions",)

    entry_bytes = OFFSET_ENTRY_BYTES

    def forget(self) -> None:
        """Let go of all entries in memory; the file is as it is."""
        super().forget()
        self.positions = array("i")

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

    def _cut(self, keep: int) -> None:
        super()._cut(keep)
        del self.positions[keep:]

    def _encode(self, start: int) -> bytes:
        count = len(self.offsets) - start
        words = array("i", bytes(count * OFFSET_ENTRY_BYTES))
        words[0::2] = self.offsets[start:]
        words[1::2] = self.positions[start:]
        return _big_endian(words).tobytes()

    def _decode(self, data: bytes) -> None:
        words = _big_endian(array("i", data))
        self.offsets, self.positions = words[0::2], words[1::2]

    def _ascends(self) -> bool:
        return all(not column or (column[0] >= 0 and _rises(column)) for column in (self.offsets, self.positions))


class TimeIndex(_SparseIndex):
    """(largest timestamp so far, last offset of the batch that has it)."""

    __slots__ = ("timestamps",)

    entry_bytes = TIME_ENTRY_BYTES

    def forget(self) -> None:
        """Let go of all entries in memory; the file is as it is."""
        super().forget()
        self.timestamps = array("q")

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

    def _cut(self, keep: int) -> None:
        super()._cut(keep)
        del self.timestamps[keep:]

    def _encode(self, start: int) -> bytes:
        count = len(self.offsets) - start
        halves = array("i", _big_endian(self.timestamps[start:]).tobytes())
        words = array("i", bytes(count * TIME_ENTRY_BYTES))
        words[0::3], words[1::3] = halves[0::2], halves[1::2]
        words[2::3] = _big_endian(self.offsets[start:])
        return words.tobytes()

    def _decode(self, data: bytes) -> None:
        words = array("i", data)
        halves = array("i", bytes(len(words) // 3 * 8))
        halves[0::2], halves[1::2] = words[0::3], words[1::3]
        self.timestamps = _big_endian(array("q", halves.tobytes()))
        self.offsets = _big_endian(words[2::3])

    def _ascends(self) -> bool:
        return _rises(self.timestamps) and all(map(le, self.offsets, self.offsets[1:]))


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


def _big_endian(values: array[int]) -> array[int]:
    """From this machine's order of bytes to that of the files, or back; in place."""
    if sys.byteorder == "little":
        values.byteswap()
    return values


def _rises(column: array[int]) -> bool:
    return all(map(lt, column, column[1:]))
