"""Whether a batch's payload begins like what its codec says, without decompressing it.

A real broker decompresses and reads every record that is produced. Ours reads no record on the common path, so it looks
at the frame in front: a batch whose codec bits are not those of its payload is refused. Deliberately not looked at is
everything behind: a payload that is cut off or damaged further on, records inside that contradict each other or the
header. Who writes such a batch, with a right CRC, harms the readers of that batch, and the broker never.
"""

from __future__ import annotations

from ottla_broker.log.files import Buffer
from ottla_wire.errors import InvalidRecord, UnknownServerError
from ottla_wire.records import Compression

SMALLEST_RECORD_BYTES = 7  # length, attributes, two deltas, two absent fields, number of headers

_GZIP_MAGIC = b"\x1f\x8b\x08"  # with the only method there is
_GZIP_SMALLEST_BYTES = 18
_XERIAL_MAGIC = b"\x82SNAPPY\x00"
_XERIAL_SMALLEST_BYTES = 16
_LZ4_MAGIC = b"\x04\x22\x4d\x18"
_LZ4_SMALLEST_BYTES = 11
_LZ4_VERSION = 1
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SMALLEST_BYTES = 9
_LOOKED_AT_BYTES = 16
_LONGEST_VARINT_BYTES = 5


def check_payload(codec: int, payload: Buffer, record_count: int, name: str) -> None:
    """Raise unless the payload begins like one of `codec`.

    Raises what a real broker answers: UnknownServerError where it cannot decompress, InvalidRecord where it finds no
    records.
    """
    size = len(payload)
    start = bytes(payload[:_LOOKED_AT_BYTES])
    if codec == Compression.NONE:
        if not _begins_with_a_record(start, size, record_count):
            raise InvalidRecord(f"the payload of a batch for {name} does not begin with a record")
    elif not _BEGINS_LIKE[codec](start, size, record_count):
        raise UnknownServerError(f"the payload of a batch for {name} is not compressed with {Compression(codec).name}")


def _begins_with_a_record(start: bytes, size: int, record_count: int) -> bool:
    if size < SMALLEST_RECORD_BYTES * record_count or start.startswith((_ZSTD_MAGIC, _XERIAL_MAGIC)):
        return False
    zigzag, used = _varint(start)
    length = zigzag >> 1
    if used == 0 or zigzag & 1 or length < SMALLEST_RECORD_BYTES - 1:
        return False
    rest = size - used - length
    # what the other records need at least; nothing may follow the only one
    return rest >= SMALLEST_RECORD_BYTES * (record_count - 1) if record_count > 1 else rest == 0


def _is_gzip(start: bytes, size: int, record_count: int) -> bool:
    return size >= _GZIP_SMALLEST_BYTES and start.startswith(_GZIP_MAGIC)


def _is_snappy(start: bytes, size: int, record_count: int) -> bool:
    """Xerial's framing, which Java writes, or one raw block, which librdkafka writes."""
    if start.startswith(_XERIAL_MAGIC):
        return size >= _XERIAL_SMALLEST_BYTES
    length, used = _varint(start)
    if used == 0 or used >= len(start) or length < SMALLEST_RECORD_BYTES * record_count:
        return False
    tag = start[used]
    # A block begins with a literal. One of a single byte would be followed by a copy of that byte alone, which is not
    # how a record begins; a payload that is not compressed has a record's attributes here, which are 0.
    return tag & 0x03 == 0 and tag != 0 and (tag >> 2 >= 60 or (tag >> 2) + 1 <= length)


def _is_lz4(start: bytes, size: int, record_count: int) -> bool:
    return size >= _LZ4_SMALLEST_BYTES and start.startswith(_LZ4_MAGIC) and start[4] >> 6 == _LZ4_VERSION


def _is_zstd(start: bytes, size: int, record_count: int) -> bool:
    return size >= _ZSTD_SMALLEST_BYTES and start.startswith(_ZSTD_MAGIC)


_BEGINS_LIKE = {
    Compression.GZIP.value: _is_gzip,
    Compression.SNAPPY.value: _is_snappy,
    Compression.LZ4.value: _is_lz4,
    Compression.ZSTD.value: _is_zstd,
}


def _varint(data: bytes) -> tuple[int, int]:
    """An unsigned varint and the bytes it took; 0 bytes if there is none."""
    value = 0
    for index, byte in enumerate(data[:_LONGEST_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, index + 1
    return 0, 0
