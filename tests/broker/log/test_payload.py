"""A payload that does not begin like its codec says is refused, with what a real broker answers (see *_like_kafka)."""

from __future__ import annotations

import struct

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_batches import NOW, append, batch, open_log, read_all
from log_simulated_files import SimulatedFiles

from ottla_broker.log.batch import HEADER_BYTES
from ottla_broker.log.payload import check_payload
from ottla_broker.log.producer_state import AppendOrigin
from ottla_wire.errors import InvalidRecord, InvalidTimestamp, KafkaError, UnknownServerError
from ottla_wire.records import Compression, RecordBatchBuilder, crc32c

INT64_MIN = -(2**63)


def sealed(records: bytearray) -> bytearray:
    """With the length and the CRC that belong to it."""
    struct.pack_into(">i", records, 8, len(records) - 12)
    struct.pack_into(">I", records, 17, crc32c(memoryview(records)[21:]))
    return records


def claiming(codec: int, records: bytearray) -> bytearray:
    records[22] = records[22] & ~0x07 | codec
    return sealed(records)


def with_payload(records: bytearray, payload: bytes) -> bytearray:
    return sealed(records[:HEADER_BYTES] + payload)


def refusal(records: bytearray) -> type[KafkaError]:
    log = open_log(SimulatedFiles())
    with pytest.raises(KafkaError) as raised:
        append(log, records)
    assert log.size_bytes == 0
    return type(raised.value)


@pytest.mark.parametrize("count", [1, 3, 200])
@pytest.mark.parametrize("value", [b"", b"hello world " * 10, bytes(1000)])
@pytest.mark.parametrize("claimed", list(Compression))
@pytest.mark.parametrize("real", list(Compression))
def test_a_codec_that_is_not_that_of_the_payload_is_refused(
    real: Compression, claimed: Compression, value: bytes, count: int
) -> None:
    records = claiming(claimed, batch(count, value=value, compression=real))
    if real == claimed:
        assert append(open_log(SimulatedFiles()), records).last_offset == count - 1
    else:
        assert refusal(records) is (InvalidRecord if claimed == Compression.NONE else UnknownServerError)


@pytest.mark.parametrize("codec", list(Compression)[1:])
@pytest.mark.parametrize("kept", [1, 6])
def test_a_compressed_payload_that_is_hardly_there_is_refused(codec: Compression, kept: int) -> None:
    records = batch(3, compression=codec)
    assert refusal(with_payload(records, bytes(records[HEADER_BYTES : HEADER_BYTES + kept]))) is UnknownServerError
    assert refusal(with_payload(records, bytes(100))) is UnknownServerError


@pytest.mark.parametrize("payload", [b"", b"\x10", bytes(100), b"\x80" * 100])
def test_a_payload_without_a_record_is_refused(payload: bytes) -> None:
    assert refusal(with_payload(batch(3), payload)) is InvalidRecord


def test_a_record_that_is_cut_off_or_followed_by_something_is_refused() -> None:
    records = batch(1, value=bytes(50))
    payload = bytes(records[HEADER_BYTES:])
    assert refusal(with_payload(records, payload[:-1])) is InvalidRecord
    assert refusal(with_payload(records, payload + b"\0")) is InvalidRecord


@given(
    st.sampled_from(list(Compression)),
    st.lists(
        st.tuples(
            st.integers(0, 10**13),
            st.none() | st.binary(max_size=70),
            st.none() | st.binary(max_size=300),
            st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=9)), max_size=3),
        ),
        min_size=1,
        max_size=30,
    ),
)
def test_no_good_batch_is_refused(codec: Compression, records: list[tuple]) -> None:
    builder = RecordBatchBuilder(1 << 20, compression=codec)
    for timestamp_ms, key, value, headers in records:
        builder.append(timestamp_ms, key, value, headers)
    payload = memoryview(builder.build())[HEADER_BYTES:]
    check_payload(codec, payload, builder.count, "orders-0")


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.none() | st.just(b"") | st.just(bytes(9)), st.none() | st.binary(max_size=99)),
        min_size=1,
        max_size=30,
    )
)
def test_snappy_without_a_frame_is_taken_as_librdkafka_writes_it(records: list[tuple]) -> None:
    builder = RecordBatchBuilder(1 << 20)
    for timestamp_ms, key, value in records:
        builder.append(timestamp_ms, key, value, None)
    block = bytes(cramjam.snappy.compress_raw(builder.build()[HEADER_BYTES:]))
    check_payload(Compression.SNAPPY, block, builder.count, "orders-0")


def test_a_coordinators_batches_are_not_looked_into() -> None:
    log = open_log(SimulatedFiles())
    append(log, claiming(Compression.GZIP, batch()), origin=AppendOrigin.COORDINATOR)
    assert len(read_all(log)) == 1


@pytest.mark.parametrize("codec", [Compression.NONE, Compression.GZIP])
@pytest.mark.parametrize(
    ("base_ms", "is_taken"),
    [
        (2**63 - 1, False),
        (NOW + 2 * 3_600_000, False),
        (NOW + 1_800_000, True),
        (0, True),
        (-1, True),
        (-2, True),
        (NOW - (2**63 - 1), True),
        (NOW - 2**63, False),
        (INT64_MIN, False),
    ],
)
def test_a_first_timestamp_out_of_all_bounds_is_refused_though_the_largest_is_fine(
    codec: Compression, base_ms: int, is_taken: bool
) -> None:
    records = batch(3, compression=codec)
    struct.pack_into(">q", records, 27, base_ms)
    sealed(records)
    if is_taken:
        append(open_log(SimulatedFiles()), records)
    else:
        assert refusal(records) is InvalidTimestamp
