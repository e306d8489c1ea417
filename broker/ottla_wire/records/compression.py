"""The codecs of record batches, to Kafka's taste.

cramjam does the work, but not with its defaults: Kafka refuses LZ4 frames with linked blocks, and what Java calls
snappy is raw blocks in the frame of the xerial library, not the snappy framing format. Levels follow KIP-390. No
decompression writes more than its caller allows: a batch of a few kilobytes can announce gigabytes.
"""

from __future__ import annotations

import struct
from typing import Any

from ottla_wire.errors import CorruptMessage
from ottla_wire.records.model import Compression

MAX_DECOMPRESSED_BYTES = 128 * 1024 * 1024
"""What one batch may hold decompressed where the caller gives no bound of its own."""

_LEVELS = {Compression.GZIP: (1, 9, -1), Compression.LZ4: (1, 17, 9), Compression.ZSTD: (-131072, 22, 3)}
"""Least, greatest and default level (KIP-390); gzip's default, -1, lies outside its range."""

_XERIAL_MAGIC = b"\x82SNAPPY\x00"
_XERIAL_HEADER = _XERIAL_MAGIC + struct.pack(">ii", 1, 1)
_XERIAL_BLOCK_BYTES = 32 * 1024

_LZ4_MAGIC = b"\x04\x22\x4d\x18"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_BLOCK_BYTES = 128 * 1024

Buffer = bytes | bytearray | memoryview


def check_level(compression: Compression, level: int | None) -> None:
    """Raise ValueError if the codec has no such level; None is the codec's default."""
    if level is None:
        return
    if compression not in _LEVELS:
        raise ValueError(f"{compression.name.lower()} has no compression levels; leave the level out")
    least, greatest, default = _LEVELS[compression]
    if not least <= level <= greatest and level != default:
        raise ValueError(f"{compression.name.lower()} has levels {least} to {greatest}, not {level}")


def compress(data: Buffer, compression: Compression, level: int | None = None) -> bytes:
    """Compress what follows a batch's header."""
    check_level(compression, level)
    if compression is Compression.NONE:
        return bytes(data)
    import cramjam

    if level is None and compression in _LEVELS:
        level = _LEVELS[compression][2]
    if compression is Compression.GZIP:
        return bytes(cramjam.gzip.compress(data, level=6 if level == -1 else level))
    if compression is Compression.SNAPPY:
        return _compress_xerial(data)
    if compression is Compression.LZ4:
        # Java takes the fast compressor at the default level and the high compressor at any other; the frame API
        # has the fast one below 3 and ends at 12.
        frame = cramjam.lz4.Compressor(
            level=1 if level == 9 else max(3, min(level or 0, 12)), content_checksum=False, block_linked=False
        )
        frame.compress(data)
        return bytes(frame.finish())
    return bytes(cramjam.zstd.compress(data, level=level))


def decompress(data: Buffer, compression: Compression, *, max_bytes: int = MAX_DECOMPRESSED_BYTES) -> bytes:
    """Decompress what follows a batch's header.

    Raises:
        CorruptMessage: the data are not of this codec, or hold more than `max_bytes`.
    """
    if compression is Compression.NONE:
        return bytes(data)
    if compression is Compression.GZIP:
        return _decompress_gzip(data, max_bytes)
    import cramjam

    try:
        if compression is Compression.SNAPPY:
            return _decompress_snappy(data, max_bytes)
        if compression is Compression.LZ4:
            return _decompress_frame(cramjam.lz4, data, _most_lz4_bytes(data), max_bytes)
        return _decompress_frame(cramjam.zstd, data, _most_zstd_bytes(data), max_bytes)
    except (cramjam.DecompressionError, struct.error) as error:
        raise CorruptMessage(f"a batch does not decompress as {compression.name.lower()}: {error}") from error


def _too_large(compression: Compression, max_bytes: int) -> CorruptMessage:
    return CorruptMessage(f"a batch holds more than {max_bytes} bytes when decompressed ({compression.name.lower()})")


def _decompress_gzip(data: Buffer, max_bytes: int) -> bytes:
    # zlib and not cramjam: it stops at a bound by itself, where the other would need a buffer of that size.
    import zlib

    parts: list[bytes] = []
    rest: Buffer = data
    room = max_bytes
    try:
        while rest:
            member = zlib.decompressobj(wbits=31)
            # One byte more than there is room for: to end exactly at the bound is no fault.
            part = member.decompress(rest, room + 1)
            if len(part) > room:
                raise _too_large(Compression.GZIP, max_bytes)
            if not member.eof:
                raise CorruptMessage("a gzip batch ends in the middle")
            room -= len(part)
            parts.append(part)
            rest = member.unused_data
    except zlib.error as error:
        raise CorruptMessage(f"a batch does not decompress as gzip: {error}") from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _compress_xerial(data: Buffer) -> bytes:
    import cramjam

    view = memoryview(data)
    parts: list[bytes] = [_XERIAL_HEADER]
    for start in range(0, len(view), _XERIAL_BLOCK_BYTES):
        block = bytes(cramjam.snappy.compress_raw(view[start : start + _XERIAL_BLOCK_BYTES]))
        parts += (struct.pack(">i", len(block)), block)
    return b"".join(parts)


def _decompress_snappy(data: Buffer, max_bytes: int) -> bytes:
    """Xerial's blocks, or one raw block as librdkafka and others write it."""
    view = memoryview(data)
    if bytes(view[:8]) != _XERIAL_MAGIC:
        return _decompress_snappy_block(view, max_bytes)
    parts: list[bytes] = []
    position, room = len(_XERIAL_HEADER), max_bytes
    while position < len(view):
        # Streams may be concatenated: the magic's first byte would be a negative size.
        if bytes(view[position : position + 8]) == _XERIAL_MAGIC:
            position += len(_XERIAL_HEADER)
            continue
        (size,) = struct.unpack_from(">i", view, position)
        position += 4
        if not 0 <= size <= len(view) - position:
            raise CorruptMessage(f"a snappy block of {size} bytes, where {len(view) - position} are left")
        part = _decompress_snappy_block(view[position : position + size], room)
        room -= len(part)
        position += size
        parts.append(part)
    return b"".join(parts)


def _decompress_snappy_block(block: memoryview, room: int) -> bytes:
    import cramjam

    if cramjam.snappy.decompress_raw_len(block) > room:
        raise _too_large(Compression.SNAPPY, room)
    return bytes(cramjam.snappy.decompress_raw(block))


def _decompress_frame(codec: Any, data: Buffer, most_bytes: int, max_bytes: int) -> bytes:
    from mmap import mmap

    if most_bytes <= max_bytes:
        return bytes(codec.decompress(data))
    # The blocks could hold too much; a buffer that is exactly large enough shows whether they do. It is mapped and not
    # allocated: only what is written into it takes memory, and time.
    with mmap(-1, max(max_bytes, 1)) as area, memoryview(area) as whole, whole[:max_bytes] as output:
        count = codec.decompress_into(data, output)
        return bytes(output[:count])


def _most_lz4_bytes(data: Buffer) -> int:
    """How much an LZ4 frame can hold at most: its blocks, each as large as its header allows."""
    view = memoryview(data)
    if len(view) < 7 or bytes(view[:4]) != _LZ4_MAGIC:
        raise CorruptMessage("a batch that should be an LZ4 frame has not its magic")
    flags, descriptor = view[4], view[5]
    block_bytes = 1 << (8 + 2 * (descriptor >> 4 & 7))
    position = 7 + (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0)
    most = 0
    while True:
        (size,) = struct.unpack_from("<I", view, position)
        if size == 0:
            return most
        most += block_bytes
        position += 4 + (size & 0x7FFFFFFF) + (4 if flags & 0x10 else 0)


def _most_zstd_bytes(data: Buffer) -> int:
    """How much a Zstandard frame can hold at most; frames after the first make it unbounded."""
    view = memoryview(data)
    if len(view) < 6 or bytes(view[:4]) != _ZSTD_MAGIC:
        raise CorruptMessage("a batch that should be a Zstandard frame has not its magic")
    descriptor = view[4]
    single_segment = descriptor >> 5 & 1
    content_size_bytes = (single_segment, 2, 4, 8)[descriptor >> 6]
    position = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3] + content_size_bytes
    most, last = 0, 0
    while not last:
        (low, high) = struct.unpack_from("<HB", view, position)
        block = low | high << 16
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        # raw: its size; run of one byte: its length; compressed: a block's limit.
        most += _ZSTD_BLOCK_BYTES if kind == 2 else size
        position += 3 + (1 if kind == 1 else size)
    rest = position + (4 if descriptor & 4 else 0)
    return most if rest == len(view) else 1 << 62
