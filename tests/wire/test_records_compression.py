"""The codecs: both directions, what other writers write, levels, and bounds."""

from __future__ import annotations

import gzip
import random
import struct
import subprocess
import sys
import zlib

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottla_wire.errors import CorruptMessage
from ottla_wire.records import Compression, RecordBatch, build_batch, compress, decompress

CODECS = [codec for codec in Compression if codec is not Compression.NONE]
codecs = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name.lower())


@pytest.mark.parametrize("codec", list(Compression))
@given(data=st.binary(max_size=2000) | st.integers(0, 300_000).map(bytes))
def test_what_was_compressed_comes_back(codec: Compression, data: bytes) -> None:
    compressed = compress(data, codec)
    assert decompress(compressed, codec) == data
    assert decompress(memoryview(compressed), codec, max_bytes=len(data)) == data


@codecs
@pytest.mark.parametrize("size", [32 * 1024, 64 * 1024, 65537, 128 * 1024 + 1, 1_000_003])
def test_blocks_and_their_borders(codec: Compression, size: int) -> None:
    data = random.Random(size).randbytes(size // 2) * 2 + b"x" * (size % 2)
    assert decompress(compress(data, codec), codec, max_bytes=len(data)) == data


@codecs
def test_more_than_allowed_is_refused_and_exactly_as_much_is_not(codec: Compression) -> None:
    for data in (bytes(1_000_000), random.Random(1).randbytes(300_000)):
        compressed = compress(data, codec)
        assert decompress(compressed, codec, max_bytes=len(data)) == data
        with pytest.raises(CorruptMessage):
            decompress(compressed, codec, max_bytes=len(data) - 1)


# In a process of its own: the peak of this one may be anything already.
BOMB = """
import resource, sys
from ottla_wire.errors import CorruptMessage
from ottla_wire.records import Compression, compress, decompress
codec, bomb = Compression(int(sys.argv[1])), sys.stdin.buffer.read()
decompress(compress(b"x", codec), codec)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decompress(bomb, codec, max_bytes=1_000_000)
except CorruptMessage:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@codecs
def test_a_bomb_is_refused_before_it_takes_memory(codec: Compression) -> None:
    bomb = compress(bytes(100_000_000), codec)
    command = [sys.executable, "-c", BOMB, str(int(codec))]
    done = subprocess.run(command, input=bomb, capture_output=True, timeout=60, check=True)
    assert int(done.stdout) < 20_000, "kilobytes"


def test_a_bomb_in_a_batch_is_refused() -> None:
    batch = RecordBatch(build_batch([(1, None, bytes(1_000_000), ())], compression=Compression.ZSTD))
    assert len(batch.records(max_bytes=2_000_000)) == 1
    with pytest.raises(CorruptMessage):
        batch.records(max_bytes=1_000_000)


@codecs
def test_every_cut_and_every_flipped_bit_is_an_error_or_harmless(codec: Compression) -> None:
    # No other exception than ours, and no hang; what comes back is for the record decoder to judge.
    data = b"".join(b"record %d, " % i for i in range(60))
    compressed = compress(data, codec)
    for cut in range(len(compressed)):
        try:
            assert decompress(compressed[:cut], codec, max_bytes=10_000) != data or cut > len(compressed) - 9
        except CorruptMessage:
            pass
    for position in range(len(compressed)):
        for bit in range(8):
            broken = bytearray(compressed)
            broken[position] ^= 1 << bit
            try:
                decompress(broken, codec, max_bytes=10_000)
            except CorruptMessage:
                pass


@given(codec=st.sampled_from(CODECS), data=st.binary(max_size=300))
def test_any_bytes_are_an_error_or_something(codec: Compression, data: bytes) -> None:
    prefix = {1: b"\x1f\x8b\x08", 2: b"\x82SNAPPY\0\0\0\0\1\0\0\0\1", 3: b"\x04\x22\x4d\x18", 4: b"\x28\xb5\x2f\xfd"}[
        codec
    ]
    for candidate in (data, prefix + data):
        try:
            assert len(decompress(candidate, codec, max_bytes=10_000)) <= 10_000
        except CorruptMessage:
            pass


# What other writers write


def test_raw_snappy_is_read_as_librdkafka_writes_it() -> None:
    data = b"librdkafka " * 500
    assert decompress(bytes(cramjam.snappy.compress_raw(data)), Compression.SNAPPY) == data


def test_xerial_streams_may_follow_each_other() -> None:
    data = b"x" * 70_000
    assert decompress(compress(data, Compression.SNAPPY) * 2, Compression.SNAPPY) == data * 2


def test_a_xerial_block_that_reaches_too_far_is_corrupt() -> None:
    compressed = bytearray(compress(b"x" * 100, Compression.SNAPPY))
    for size in (-1, 2**31 - 1, len(compressed)):
        compressed[16:20] = struct.pack(">i", size)
        with pytest.raises(CorruptMessage, match="snappy block"):
            decompress(compressed, Compression.SNAPPY)


def test_gzip_members_may_follow_each_other() -> None:
    members = gzip.compress(b"one") + gzip.compress(b"two")
    assert decompress(members, Compression.GZIP) == b"onetwo"
    with pytest.raises(CorruptMessage):
        decompress(members, Compression.GZIP, max_bytes=5)


def test_lz4_with_linked_blocks_checksum_and_content_size_is_read() -> None:
    data = b"linked " * 50_000
    frame = cramjam.lz4.Compressor(level=3, content_checksum=True, block_linked=True)
    frame.compress(data)
    assert decompress(bytes(frame.finish()), Compression.LZ4, max_bytes=len(data)) == data
    assert decompress(bytes(cramjam.lz4.compress(data)), Compression.LZ4, max_bytes=len(data)) == data


def test_our_lz4_has_independent_blocks_and_no_content_checksum_or_size() -> None:
    flags = compress(b"x" * 300_000, Compression.LZ4)[4]
    assert flags >> 6 == 1, "version"
    assert flags & 0x20, "independent blocks"
    assert not flags & 0x0C, "content size or checksum"


def test_zstd_frames_may_follow_each_other_within_the_bound() -> None:
    frames = bytes(cramjam.zstd.compress(b"a" * 1000)) + bytes(cramjam.zstd.compress(b"b" * 1000))
    assert decompress(frames, Compression.ZSTD, max_bytes=2000) == b"a" * 1000 + b"b" * 1000
    with pytest.raises(CorruptMessage):
        decompress(frames, Compression.ZSTD, max_bytes=1999)


# Levels


@pytest.mark.parametrize(
    ("codec", "levels"),
    [
        (Compression.GZIP, [-1, 1, 9]),
        (Compression.LZ4, [1, 2, 3, 9, 12, 17]),
        (Compression.ZSTD, [-131072, -1, 0, 1, 3, 22]),
    ],
)
def test_all_levels_of_kip_390_work(codec: Compression, levels: list[int]) -> None:
    data = b"".join(b"%d squared is %d, " % (i, i * i) for i in range(2000))
    for level in levels:
        assert decompress(compress(data, codec, level), codec) == data


@pytest.mark.parametrize(
    ("codec", "level"),
    [
        (Compression.GZIP, 0),
        (Compression.GZIP, 10),
        (Compression.LZ4, 0),
        (Compression.LZ4, 18),
        (Compression.ZSTD, 23),
        (Compression.ZSTD, -131073),
        (Compression.SNAPPY, 1),
        (Compression.NONE, 1),
    ],
)
def test_a_level_that_a_codec_does_not_have_is_refused(codec: Compression, level: int) -> None:
    with pytest.raises(ValueError, match="level"):
        compress(b"", codec, level)


def test_levels_reach_the_codec() -> None:
    rng = random.Random(3)
    words = [rng.randbytes(rng.randint(2, 9)).hex().encode() for _ in range(400)]
    data = b" ".join(rng.choice(words) for _ in range(20_000))
    for codec, low, high in ((Compression.GZIP, 1, 9), (Compression.ZSTD, 1, 22), (Compression.LZ4, 9, 17)):
        assert len(compress(data, codec, high)) < len(compress(data, codec, low))
    assert len(compress(data, Compression.GZIP, -1)) < len(compress(data, Compression.GZIP, 1))
    assert zlib.decompress(compress(data, Compression.GZIP), wbits=31) == data
