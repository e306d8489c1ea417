"""Segment: one `.log` file of a partition with its indexes.

Reads find their place by a hint (where the previous read of this stretch ended) or by the offset index and a walk over
batch headers; what they return always starts and ends on batch boundaries.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ottla_broker.log.batch import HEADER_BYTES, LOG_OVERHEAD, NO_TIMESTAMP, BatchHeader, read_header, walk
from ottla_broker.log.config import LogConfig
from ottla_broker.log.files import Buffer, Files, LogFile, SyncTarget, UnmadeFile
from ottla_broker.log.indexes import (
    MAX_RELATIVE_OFFSET,
    OFFSET_ENTRY_BYTES,
    AbortedTxn,
    CorruptIndex,
    OffsetIndex,
    TimeIndex,
    TransactionIndex,
)
from ottla_wire.errors import CorruptMessage

logger = logging.getLogger(__name__)

LOG_SUFFIX = ".log"
INDEX_SUFFIX = ".index"
TIME_INDEX_SUFFIX = ".timeindex"
TXN_INDEX_SUFFIX = ".txnindex"
DELETED_SUFFIX = ".deleted"
CLEANED_SUFFIX = ".cleaned"
SWAP_SUFFIX = ".swap"
SEGMENT_SUFFIXES = (LOG_SUFFIX, INDEX_SUFFIX, TIME_INDEX_SUFFIX, TXN_INDEX_SUFFIX)

_BASE_OFFSET = struct.Struct(">q")
_HINTS_KEPT = 16
_LOCATE_BYTES = 8192
_SCAN_BYTES = 1 << 20


def file_path(folder: Path, offset: int, suffix: str) -> Path:
    """The file of a segment or snapshot."""
    return folder / f"{offset:020d}{suffix}"


class Piece(NamedTuple):
    """What one read of a segment found. `next_offset` is where the read after it continues."""

    data: bytes
    position: int
    next_offset: int


class Segment:
    """A segment that is open. Only the last one of a log, the active one, is appended to."""

    def __init__(
        self, files: Files, folder: Path, base_offset: int, config: LogConfig, now_ms: int, *, is_made: bool = True
    ) -> None:
        self._files = files
        self.folder = folder
        self.base_offset = base_offset
        self.log: LogFile = (
            files.open(file_path(folder, base_offset, LOG_SUFFIX), create=True) if is_made else UnmadeFile(folder)
        )
        self.offset_index = OffsetIndex(base_offset, config.segment_index_bytes)
        self.time_index = TimeIndex(base_offset, config.segment_index_bytes)
        self.txn_index = TransactionIndex(file_path(folder, base_offset, TXN_INDEX_SUFFIX))
        self.index_interval_bytes = config.index_interval_bytes
        self.created_ms = now_ms
        self.next_offset = base_offset
        self.max_timestamp_ms = NO_TIMESTAMP
        self._max_timestamp_offset = base_offset
        self._first_timestamp_ms: int | None = None
        self._bytes_since_entry = 0
        self._has_indexes = True
        self.is_durable = False  # sealed, and fsynced with all indexes
        self._hints: dict[int, int] = {}

    # ---- state

    @property
    def size(self) -> int:
        """Bytes of the `.log` file."""
        return self.log.size

    @property
    def largest_timestamp_ms(self) -> int:
        """Largest timestamp of a record, or the time of the last write if no record has one."""
        return self.max_timestamp_ms if self.max_timestamp_ms >= 0 else self._files.modified_ms(self.log.path)

    def can_hold(self, offset: int) -> bool:
        """Whether the offset can be written relative to the base offset."""
        return 0 <= offset - self.base_offset <= MAX_RELATIVE_OFFSET

    def age_ms(self, now_ms: int, timestamp_ms: int) -> int:
        """How long the segment has been growing, in the time of its records if they have one."""
        first = self._first_batch_timestamp()
        return timestamp_ms - first if first >= 0 else now_ms - self.created_ms

    def _first_batch_timestamp(self) -> int:
        if self._first_timestamp_ms is None:
            if self.log.size < HEADER_BYTES:
                return NO_TIMESTAMP
            self._first_timestamp_ms = read_header(self.log.read(HEADER_BYTES, 0)).max_timestamp_ms
        return self._first_timestamp_ms

    # ---- append

    def append(self, data: Buffer, batches: list[BatchHeader]) -> None:
        """Write batches that have their offsets. Raises OSError, and is then as before."""
        position = self.log.size
        self.log.append(data)
        for header in batches:
            self.note(header, position)
            position += LOG_OVERHEAD + header.length

    def note(self, header: BatchHeader, position: int) -> None:
        """Take a batch that is in the file into the indexes."""
        last_offset = header.base_offset + header.last_offset_delta
        timestamp_ms = header.max_timestamp_ms
        if timestamp_ms > self.max_timestamp_ms:
            self.max_timestamp_ms = timestamp_ms
            self._max_timestamp_offset = last_offset
        if self._first_timestamp_ms is None:
            self._first_timestamp_ms = timestamp_ms
        if self._bytes_since_entry > self.index_interval_bytes:
            self.offset_index.append(last_offset, position)
            self.time_index.append(self.max_timestamp_ms, self._max_timestamp_offset)
            self._bytes_since_entry = 0
        self._bytes_since_entry += LOG_OVERHEAD + header.length
        self.next_offset = last_offset + 1

    # ---- read

    def read(self, offset: int, max_bytes: int, upper_offset: int, *, at_least_one: bool) -> Piece | None:
        """Whole batches from the one that holds `offset` on, below `upper_offset`.

        None if there is no such batch in this segment; empty if the first batch is larger than `max_bytes` and is not
        asked for regardless.
        """
        position = self.position_of(offset)
        end = self.log.size if upper_offset >= self.next_offset else self.position_of(upper_offset)
        if position >= end:
            return None
        size = min(max_bytes, end - position)
        data = self.log.read(size, position) if size >= HEADER_BYTES else b""
        if position + len(data) == end:
            # the limit may lie inside a batch, which then is not returned
            following = self.next_offset if end == self.log.size else min(upper_offset, self._base_offset_at(end))
        else:
            cut, following = self._last_boundary(data, position)
            if cut == 0:
                if not at_least_one:
                    return Piece(b"", position, offset)
                data, following = self._one_batch(position)
            elif cut < len(data):
                data = data[:cut]
        self._remember(following, position + len(data))
        return Piece(data, position, following)

    def position_of(self, offset: int) -> int:
        """Position of the first batch that reaches `offset`; the size of the file if there is none."""
        if offset <= self.base_offset:
            return 0
        if offset >= self.next_offset:
            return self.log.size
        known = self._hints.get(offset)
        if known is not None:
            return known
        self.need_indexes()
        position = self._walk_to(offset, self.offset_index.position_before(offset))
        self._remember(offset, position)
        return position

    def _walk_to(self, offset: int, position: int) -> int:
        for at, header in self.headers(position, chunk=_LOCATE_BYTES):
            if header.base_offset + header.last_offset_delta >= offset:
                return at
        return self.log.size

    def headers(self, position: int, *, chunk: int = _SCAN_BYTES) -> Iterator[tuple[int, BatchHeader]]:
        """(position, header) of each whole batch from a batch boundary on, reading `chunk` bytes at a time."""
        end = self.log.size
        while end - position >= HEADER_BYTES:
            data = self.log.read(min(chunk, end - position), position)
            at, length = 0, len(data)
            if length < HEADER_BYTES:
                return
            while length - at >= HEADER_BYTES:
                header = read_header(data, at)
                size = LOG_OVERHEAD + header.length
                if size < HEADER_BYTES:
                    raise CorruptMessage(f"{self.log.path} has no batch at position {position + at}")
                if position + at + size > end:
                    return
                yield position + at, header
                at += size
            position += at

    def batch_bytes(self, position: int, header: BatchHeader) -> bytes:
        """The whole of one batch."""
        return self.log.read(header.size_bytes, position)

    def _last_boundary(self, data: bytes, position: int) -> tuple[int, int]:
        """(bytes of whole batches, offset behind the last of them) in a piece that starts at `position`."""
        self.need_indexes()
        start = max(0, self.offset_index.boundary_before(position + len(data)) - position)
        cut, following = 0, 0
        for at, size, last_offset in walk(data, start):
            cut, following = at + size, last_offset + 1
        if cut == 0 and start > 0:
            # the index knows the very batch that is cut off: all before it is whole
            cut = start
            following = self._base_offset_at(position + start)
        return cut, following

    def _base_offset_at(self, position: int) -> int:
        base_offset: int = _BASE_OFFSET.unpack(self.log.read(_BASE_OFFSET.size, position))[0]
        return base_offset

    def _one_batch(self, position: int) -> tuple[bytes, int]:
        header = read_header(self.log.read(HEADER_BYTES, position))
        return self.batch_bytes(position, header), header.last_offset + 1

    def _remember(self, offset: int, position: int) -> None:
        hints = self._hints
        if offset not in hints and len(hints) >= _HINTS_KEPT:
            del hints[next(iter(hints))]
        hints[offset] = position

    # ---- time

    def first_position_at(self, timestamp_ms: int, from_offset: int) -> int:
        """A position such that no batch before it, from `from_offset` on, has a record of `timestamp_ms` or later."""
        self.need_indexes()
        return self.offset_index.position_before(max(self.time_index.offset_before(timestamp_ms), from_offset))

    def aborted_transactions(self, fetch_offset: int, upper_offset: int, into: list[AbortedTxn]) -> bool:
        """Add aborted transactions of this segment that overlap the range; True if no later segment can have one."""
        return self.txn_index.collect(fetch_offset, upper_offset, into)

    # ---- indexes

    @property
    def is_loaded(self) -> bool:
        """Whether offset and time index are in memory."""
        return self._has_indexes

    def need_indexes(self) -> None:
        """Read offset and time index of a sealed segment if they were let go; damaged ones are built anew."""
        if self._has_indexes:
            return
        try:
            self.load_indexes()
        except (CorruptIndex, FileNotFoundError) as error:
            logger.warning("the indexes of %s are rebuilt: %s", self.log.path, error)
            next_offset = self.next_offset
            self.reset_indexes()
            for position, header in self.headers(0):
                self.note(header, position)
            self.next_offset = next_offset
            self.seal()

    def load_indexes(self) -> None:
        """Read offset and time index. Raises CorruptIndex, FileNotFoundError."""
        self.offset_index.load(self._files, file_path(self.folder, self.base_offset, INDEX_SUFFIX))
        self.time_index.load(self._files, file_path(self.folder, self.base_offset, TIME_INDEX_SUFFIX))
        self._has_indexes = True

    def drop_indexes(self) -> None:
        """Let go of the memory of a sealed segment's indexes, which are in their files."""
        self.save_indexes()
        self.offset_index.forget()
        self.time_index.forget()
        self._has_indexes = False

    def save_indexes(self) -> None:
        """Write the index entries that are only in memory."""
        if self._has_indexes:
            self.offset_index.save(self._files, file_path(self.folder, self.base_offset, INDEX_SUFFIX))
            self.time_index.save(self._files, file_path(self.folder, self.base_offset, TIME_INDEX_SUFFIX))

    def seal(self) -> None:
        """The segment grows no more: its last timestamp goes into the time index."""
        self.finish_time_index()
        self.save_indexes()

    def finish_time_index(self) -> None:
        """Note the largest timestamp so far, even if no entry is due."""
        self.time_index.append(self.max_timestamp_ms, self._max_timestamp_offset)

    def restore(self) -> int:
        """Take state from the files of a segment closed in good order; returns where its last whole batch ends.

        Raises CorruptIndex, FileNotFoundError, CorruptMessage.
        """
        self.load_indexes()
        self.txn_index.load(self._files)
        self.max_timestamp_ms, self._max_timestamp_offset = self.time_index.last
        end = position = self.offset_index.last_position()
        self.next_offset = self.base_offset
        for at, header in self.headers(position):
            end = at + header.size_bytes
            self.next_offset = header.last_offset + 1
            if header.max_timestamp_ms > self.max_timestamp_ms:
                self.max_timestamp_ms, self._max_timestamp_offset = header.max_timestamp_ms, header.last_offset
        self._bytes_since_entry = end - position
        return end

    def restore_sealed(self, next_base_offset: int) -> None:
        """Take the little state that a sealed segment needs; its indexes are read when somebody looks something up.

        Raises CorruptIndex, FileNotFoundError.
        """
        if self._files.size(file_path(self.folder, self.base_offset, INDEX_SUFFIX)) % OFFSET_ENTRY_BYTES:
            raise CorruptIndex(f"the offset index of segment {self.base_offset} holds no whole entries")
        self.max_timestamp_ms, self._max_timestamp_offset = self.time_index.peek_last(
            self._files, file_path(self.folder, self.base_offset, TIME_INDEX_SUFFIX)
        )
        self.txn_index.load(self._files)
        self.next_offset = next_base_offset
        self._has_indexes = False

    def reset_indexes(self) -> None:
        """Forget all index entries; `note` builds them anew."""
        self.offset_index.truncate(self.base_offset)
        self.time_index.truncate(self.base_offset)
        self.max_timestamp_ms, self._max_timestamp_offset = NO_TIMESTAMP, self.base_offset
        self._first_timestamp_ms = None
        self._bytes_since_entry = 0
        self.next_offset = self.base_offset
        self._has_indexes = True
        self._hints.clear()

    # ---- the end of it

    def truncate(self, offset: int) -> None:
        """Cut off everything from the batch that reaches `offset` on. Durable on return."""
        self.is_durable = False
        self.need_indexes()
        position = self.position_of(offset)
        self._hints.clear()
        if position < self.log.size:
            self.log.truncate(position)
            self._files.sync_target(self.log.path).sync()
        self.offset_index.truncate(offset)
        self.time_index.truncate(offset)
        self.txn_index.truncate(self._files, offset)
        self.max_timestamp_ms, self._max_timestamp_offset = self.time_index.last
        self._first_timestamp_ms = None
        self._bytes_since_entry = 0
        self.next_offset = self.base_offset
        for _, header in self.headers(self.offset_index.last_position()):
            self.next_offset = header.last_offset + 1
            if header.max_timestamp_ms > self.max_timestamp_ms:
                self.max_timestamp_ms, self._max_timestamp_offset = header.max_timestamp_ms, header.last_offset
        self.save_indexes()

    def sync_targets(self) -> list[SyncTarget]:
        """What has to be fsynced for a sealed segment to be durable, indexes and all."""
        targets = [self.log_sync_target()]
        for suffix in (INDEX_SUFFIX, TIME_INDEX_SUFFIX, TXN_INDEX_SUFFIX):
            path = file_path(self.folder, self.base_offset, suffix)
            if self._files.exists(path):
                targets.append(self._files.sync_target(path))
        return targets

    def log_sync_target(self) -> SyncTarget:
        """What has to be fsynced for the batches to be durable."""
        return self._files.sync_target(self.log.path)

    def mark_deleted(self) -> list[Path]:
        """Rename the segment's files so that a restart removes them; returns the new names."""
        self.log.close()
        doomed = []
        for suffix in SEGMENT_SUFFIXES:
            path = file_path(self.folder, self.base_offset, suffix)
            if self._files.exists(path):
                target = path.with_name(path.name + DELETED_SUFFIX)
                self._files.rename(path, target)
                doomed.append(target)
        return doomed
