"""CRC-32C and murmur2 in plain Python; a part of `_pure`."""

from __future__ import annotations

import struct

Buffer = bytes | bytearray | memoryview


def crc32c(data: Buffer, value: int = 0) -> int:
    """CRC-32C (Castagnoli) of `data`, continued from `value`."""
    from crc32c import crc32c as checksum

    result: int = checksum(data, value)
    return result


def murmur2(data: Buffer) -> int:
    """The 32-bit Murmur2 hash with the seed of Kafka's Java client, signed as Java has it."""
    length = len(data)
    words = length // 4
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ length
    for k in struct.unpack_from(f"<{words}I", data):
        k = k * m & mask
        k = (k ^ k >> 24) * m & mask
        h = h * m & mask ^ k
    tail = bytes(data[words * 4 :])
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    h ^= h >> 15
    return h - 0x100000000 if h & 0x80000000 else h


def partition_for_key(key: Buffer, partitions: int) -> int:
    """The partition that Java's default partitioner gives a key."""
    if partitions <= 0:
        raise ValueError(f"a topic has at least one partition, not {partitions}")
    return (murmur2(key) & 0x7FFFFFFF) % partitions
