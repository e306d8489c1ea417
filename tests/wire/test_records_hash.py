"""CRC-32C and murmur2, against published values and each other."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.record_twins import TWINS, twin


@pytest.fixture(params=TWINS)
def records(request: pytest.FixtureRequest) -> ModuleType:
    return twin(request.param)


# RFC 3720, B.4
@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_checksums(records: ModuleType, data: bytes, crc: int) -> None:
    assert records.crc32c(data) == crc


@given(
    data=st.binary(max_size=100) | st.integers(0, 200_000).map(lambda n: (bytes(range(251)) * (n // 251 + 1))[:n]),
    cut=st.integers(0, 100) | st.integers(3000, 3200),
)
def test_all_ways_to_a_checksum_agree(data: bytes, cut: int) -> None:
    native = twin("native")
    expected = twin("pure").crc32c(data)
    assert native.crc32c(data) == expected
    assert native.crc32c(data, by_tables=True) == expected
    assert native.crc32c(data[cut:], native.crc32c(data[:cut])) == expected
    assert native.crc32c(memoryview(bytearray(data))) == expected


# Values of Kafka's own test of its Utils
@pytest.mark.parametrize(
    ("key", "hash_"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_java_s_hashes(records: ModuleType, key: bytes, hash_: int) -> None:
    assert records.murmur2(key) == hash_
    assert records.partition_for_key(key, 7) == (hash_ & 0x7FFFFFFF) % 7


@given(key=st.binary(max_size=70), partitions=st.integers(1, 2**31 - 1))
def test_both_twins_choose_the_same_partition(key: bytes, partitions: int) -> None:
    native, pure = twin("native"), twin("pure")
    assert native.murmur2(key) == pure.murmur2(key) == native.murmur2(memoryview(key))
    assert native.partition_for_key(key, partitions) == pure.partition_for_key(key, partitions) < partitions


@pytest.mark.parametrize("partitions", [0, -1])
def test_a_topic_without_partitions_has_no_partition_for_a_key(records: ModuleType, partitions: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        records.partition_for_key(b"k", partitions)
