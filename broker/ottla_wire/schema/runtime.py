"""What generated codecs call for the rare cases: long counts, tagged fields, values that cannot be."""

from __future__ import annotations

from struct import pack, unpack_from
from typing import Final

from ottla_wire.errors import DecodeError, EncodeError
from ottla_wire.schema.types import Buffer

__all__ = ["pack", "unpack_from"]  # for arrays of numbers, whose layout depends on their length

COPY_BELOW: Final = 512
"""Records shorter than this are copied: another piece of a message costs more than moving them."""


def attach(parts: list[bytes | memoryview], buffer: bytearray, data: Buffer) -> bytearray:
    """Put records behind `buffer` without copying them; returns the buffer in which the message goes on."""
    if len(data) < COPY_BELOW:
        buffer += data
        return buffer
    parts.append(bytes(buffer))
    parts.append(memoryview(data) if isinstance(data, bytearray) else data)
    return bytearray()


def put_uvarint(buffer: bytearray, value: int) -> None:
    """Append an unsigned varint: seven bits a byte, the lowest first."""
    while value > 127:
        buffer.append(value & 127 | 128)
        value >>= 7
    buffer.append(value)


def put_tagged(tag: int, content: bytearray) -> bytes:
    """A tagged field: its number, its size, its content."""
    head = bytearray()
    put_uvarint(head, tag)
    put_uvarint(head, len(content))
    return bytes(head + content)


def more_uvarint(view: memoryview, offset: int, low: int) -> tuple[int, int]:
    """Go on with an unsigned varint whose first byte `low` has its top bit set; returns it and the offset after it."""
    value = low & 127
    for shift in (7, 14, 21, 28):
        byte = view[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
    raise DecodeError("a compact length or tag has more than five bytes")


def get_uvarint(view: memoryview, offset: int) -> tuple[int, int]:
    """Read an unsigned varint; returns it and the offset after it."""
    low = view[offset]
    return (low, offset + 1) if low < 128 else more_uvarint(view, offset + 1, low)


def skip_tagged(view: memoryview, offset: int, count: int) -> int:
    """Pass over the tagged fields of a structure that has none in this version; returns the offset after them.

    A newer peer may send some: they are meant to be ignorable (KIP-482).
    """
    if count > 127:
        count, offset = more_uvarint(view, offset, count)
    for _ in range(count):
        _, offset = get_uvarint(view, offset)
        size, offset = get_uvarint(view, offset)
        offset += size
    return offset


def not_expressible(structure: str, field: str, version: int) -> EncodeError:
    """The error for a value that would be lost."""
    return EncodeError(f"{structure}.{field} has a value, but version {version} has no such field")


def missing(structure: str, field: str) -> DecodeError:
    """The error for a null where the protocol allows none."""
    return DecodeError(f"{structure}.{field} is null, which this version does not allow")


def too_many(structure: str, field: str, count: int, left: int) -> DecodeError:
    """The error for an array that cannot be in the bytes that are left."""
    return DecodeError(f"{structure}.{field} announces {count} elements with {left} bytes left")


def wrong_size(structure: str, field: str) -> DecodeError:
    """The error for a tagged field whose content does not fill its size."""
    return DecodeError(f"{structure}.{field} does not have the size that its tag announces")
