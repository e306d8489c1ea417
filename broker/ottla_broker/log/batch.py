"""The header of a record batch (magic 2), read without touching its records.

The log works on headers: it walks over batches to find an offset or the end of a range, and decodes records only where
Kafka has to.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ottla_broker.log.files import Buffer
from ottla_wire.errors import CorruptMessage

HEADER_BYTES = 61
LOG_OVERHEAD = 12  # base offset and length, which the length does not count
CRC_START = 21  # the CRC covers everything from the attributes on
CURRENT_MAGIC = 2

COMPRESSION_MASK = 0x07
TIMESTAMP_TYPE_BIT = 0x08
TRANSACTIONAL_BIT = 0x10
CONTROL_BIT = 0x20

NO_PRODUCER_ID = -1
NO_SEQUENCE = -1
NO_TIMESTAMP = -1
MAX_SEQUENCE = 2**31 - 1

_HEADER = struct.Struct(">qiibIhiqqqhii")
_unpack_header = _HEADER.unpack_from
_new_header = tuple.__new__  # of what has as many fields: half the time of `_make`, which counts them
_OFFSET_AND_EPOCH = struct.Struct(">qii")
_LENGTH_AT_8 = struct.Struct(">i")
_WALK = struct.Struct(">qi11xi")  # base offset, length, last offset delta


class BatchHeader(NamedTuple):
    """The 61 bytes in front of the records, as they are in the batch."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole batch."""
        return LOG_OVERHEAD + self.length

    @property
    def last_offset(self) -> int:
        """Offset of the last record (kept by compaction even if that record is gone)."""
        return self.base_offset + self.last_offset_delta

    @property
    def last_sequence(self) -> int:
        """Sequence of the last record, which wraps from 2^31-1 to 0; -1 if the batch has none."""
        if self.base_sequence == NO_SEQUENCE:
            return NO_SEQUENCE
        return advance_sequence(self.base_sequence, self.last_offset_delta)

    @property
    def is_transactional(self) -> bool:
        """Whether the batch belongs to a transaction."""
        return self.attributes & TRANSACTIONAL_BIT != 0

    @property
    def is_control(self) -> bool:
        """Whether the batch holds a marker instead of records of an application."""
        return self.attributes & CONTROL_BIT != 0


def advance_sequence(sequence: int, by: int) -> int:
    """The sequence `by` steps on: 0 follows 2^31-1."""
    following = sequence + by
    return following if following <= MAX_SEQUENCE else following - MAX_SEQUENCE - 1


def rewind_sequence(sequence: int, by: int) -> int:
    """The sequence `by` steps back: 2^31-1 comes before 0."""
    preceding = sequence - by
    return preceding if preceding >= 0 else preceding + MAX_SEQUENCE + 1


def read_header(buffer: Buffer, position: int = 0) -> BatchHeader:
    """The header of the batch at a position that is known to hold one."""
    return _new_header(BatchHeader, _unpack_header(buffer, position))


def assign(buffer: bytearray | memoryview, position: int, base_offset: int, length: int, leader_epoch: int) -> None:
    """Write base offset and leader epoch, the two fields a broker owns and the CRC does not cover."""
    _OFFSET_AND_EPOCH.pack_into(buffer, position, base_offset, length, leader_epoch)


def whole_batch_at(records: Buffer, position: int) -> BatchHeader | None:
    """The header of the batch that begins at a position; None if less than a whole batch is left.

    Raises CorruptMessage if the length cannot be that of a batch.
    """
    left = len(records) - position
    if left <= LOG_OVERHEAD:
        return None
    (length,) = _LENGTH_AT_8.unpack_from(records, position + 8)
    if length < HEADER_BYTES - LOG_OVERHEAD:
        raise CorruptMessage(f"a record batch of {length + LOG_OVERHEAD} bytes is shorter than its own header")
    if length > left - LOG_OVERHEAD:
        return None
    return _new_header(BatchHeader, _unpack_header(records, position))


def split(records: Buffer) -> Iterator[tuple[int, BatchHeader]]:
    """Position and header of each whole batch; what is cut off at the end is left out.

    Raises CorruptMessage if a length cannot be that of a batch.
    """
    position = 0
    while (header := whole_batch_at(records, position)) is not None:
        yield position, header
        position += LOG_OVERHEAD + header.length


def walk(data: Buffer, position: int) -> Iterator[tuple[int, int, int]]:
    """(position, size, last offset) of each whole batch of a piece of log, from a batch boundary on."""
    end = len(data)
    unpack = _WALK.unpack_from
    while end - position >= HEADER_BYTES:
        base_offset, length, last_offset_delta = unpack(data, position)
        size = LOG_OVERHEAD + length
        if size < HEADER_BYTES:
            raise CorruptMessage(f"a record batch at offset {base_offset} claims {size} bytes, less than its header")
        if size > end - position:
            return
        yield position, size, base_offset + last_offset_delta
        position += size
