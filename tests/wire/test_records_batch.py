"""Building, reading and patching record batches, on both twins."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottla_wire.errors import CorruptMessage, InvalidRecord, UnsupportedCompressionType
from support.record_twins import TWINS, twin


@pytest.fixture(params=TWINS)
def records(request: pytest.FixtureRequest) -> ModuleType:
    return twin(request.param)


def one(records: ModuleType, buffer: Any) -> Any:
    (batch,) = records.iter_batches(buffer, strict=True)
    return batch


def some(records: ModuleType, count: int = 3, **fields: Any) -> bytes:
    batch: bytes = records.build_batch([(1000 + i, b"k%d" % i, b"v%d" % i, ()) for i in range(count)], **fields)
    return batch


# Round trips

int64 = st.integers(-(2**63), 2**63 - 1)
timestamps = st.integers(-1, 2**53)
maybe_bytes = st.none() | st.binary(max_size=200)
headers = st.lists(st.tuples(st.text(max_size=20), maybe_bytes), max_size=4)
record_lists = st.lists(st.tuples(timestamps, maybe_bytes, maybe_bytes, headers), min_size=1, max_size=30)


@pytest.mark.parametrize("name", TWINS)
@given(given_records=record_lists, codec=st.integers(0, 4), base_offset=st.integers(0, 2**62))
def test_what_was_appended_is_read(name: str, given_records: list[Any], codec: int, base_offset: int) -> None:
    records = twin(name)
    buffer = records.build_batch(given_records, compression=records.Compression(codec), base_offset=base_offset)
    batch = one(records, buffer)
    batch.verify()
    assert [(r.timestamp_ms, r.key, r.value, list(r.headers)) for r in batch.records()] == given_records
    assert [r.offset for r in batch.records()] == [base_offset + i for i in range(len(given_records))]
    assert batch.max_timestamp_ms == max(r[0] for r in given_records)


@given(given_records=record_lists, codec=st.integers(0, 4), sequence=st.integers(-1, 2**31 - 1))
def test_both_twins_write_the_same_bytes(given_records: list[Any], codec: int, sequence: int) -> None:
    built = []
    for records in map(twin, TWINS):
        builder = records.RecordBatchBuilder(1 << 20, compression=records.Compression(codec))
        for record in given_records:
            builder.append(*record)
        sizes = (builder.size_bytes, builder.count, builder.is_full, builder.max_timestamp_ms, builder.payload())
        built.append((sizes, builder.build(base_sequence=sequence, producer_id=7, producer_epoch=1)))
    assert built[0] == built[1]


@given(first=int64, second=int64, base=int64)
def test_both_twins_agree_at_the_ends_of_the_ranges(first: int, second: int, base: int) -> None:
    decoded = []
    for records in map(twin, TWINS):
        batch = one(records, records.build_batch([(first, b"", b"", ()), (second, None, None, ())], base_offset=base))
        decoded.append([(r.offset, r.timestamp_ms) for r in batch.records()])
        assert [timestamp for _, timestamp in decoded[-1]] == [first, second]
    assert decoded[0] == decoded[1]


def test_all_fields_of_a_batch(records: ModuleType) -> None:
    buffer = records.build_batch(
        [(5, b"k", b"v", ()), (9, b"k", b"v", ()), (7, b"k", b"v", ())],
        base_offset=100,
        producer_id=2**40,
        producer_epoch=32767,
        base_sequence=2**31 - 2,
        transactional=True,
        leader_epoch=6,
    )
    batch = one(records, buffer)
    assert (batch.base_offset, batch.last_offset, batch.next_offset, batch.last_offset_delta) == (100, 102, 103, 2)
    assert (batch.base_timestamp_ms, batch.max_timestamp_ms) == (5, 9)
    assert (batch.producer_id, batch.producer_epoch) == (2**40, 32767)
    assert (batch.base_sequence, batch.last_sequence, batch.has_producer_id) == (2**31 - 2, 0, True)
    assert (batch.magic, batch.leader_epoch, batch.count, batch.size_bytes) == (2, 6, 3, len(buffer))
    assert (batch.is_transactional, batch.is_control, batch.attributes) == (True, False, 0x10)
    assert batch.timestamp_type is records.TimestampType.CREATE_TIME
    assert batch.compression is records.Compression.NONE
    assert batch.delete_horizon_ms is None
    assert (bytes(batch.data), batch.position, batch.buffer) == (buffer, 0, buffer)
    assert batch.crc == records.crc32c(buffer[21:])


def test_a_batch_without_a_producer_has_no_sequence(records: ModuleType) -> None:
    batch = one(records, some(records))
    assert (batch.producer_id, batch.base_sequence, batch.last_sequence, batch.has_producer_id) == (-1, -1, -1, False)


# Building


def test_a_batch_ends_where_the_next_record_would_cross_the_limit(records: ModuleType) -> None:
    builder = records.RecordBatchBuilder(200)
    count = 0
    while builder.append(1000, b"key", b"x" * 20, [("a", b"b")]):
        count += 1
        assert not builder.closed
    assert count > 1
    assert builder.is_full
    assert builder.count == count
    size = builder.size_bytes
    assert size <= 200 < size + 35
    assert len(builder.build()) == size


def test_a_record_that_fits_exactly_is_taken_and_fills_the_batch(records: ModuleType) -> None:
    size = len(records.build_batch([(1, b"k", b"v", ()), (1, b"k", b"v", ())]))
    for limit, taken in ((size, True), (size - 1, False)):
        builder = records.RecordBatchBuilder(limit)
        assert builder.append(1, b"k", b"v", None)
        assert not builder.is_full
        assert builder.append(1, b"k", b"v", None) is taken
        assert builder.is_full


def test_the_first_record_fits_whatever_its_size(records: ModuleType) -> None:
    builder = records.RecordBatchBuilder(100)
    assert builder.append(1, None, b"x" * 100_000, None)
    assert builder.is_full
    assert not builder.append(1, None, b"", None)
    assert one(records, builder.build()).records()[0].value == b"x" * 100_000


def test_a_compressed_batch_is_bounded_by_what_it_holds_uncompressed(records: ModuleType) -> None:
    builder = records.RecordBatchBuilder(10_000, compression=records.Compression.ZSTD)
    while builder.append(1, None, b"x" * 100, None):
        pass
    assert builder.size_bytes <= 10_000
    built = builder.build()
    assert len(built) < 500
    assert len(one(records, built).records()) == builder.count


def test_a_refused_record_leaves_the_batch_as_it_was(records: ModuleType) -> None:
    builder = records.RecordBatchBuilder(1000)
    builder.append(1, b"k", b"v", None)
    size = builder.size_bytes
    for arguments in (
        (1, "text", b"v", None),
        (1, b"k", 5, None),
        (1, b"k", b"v", [("h", 5)]),
        (1, b"k", b"v", [(5, b"h")]),
        (1, b"k", b"v", [("h",)]),
        (1, b"k", b"v", [("lone surrogate \ud800", b"")]),
        ("soon", b"k", b"v", None),
    ):
        with pytest.raises((TypeError, ValueError)):
            builder.append(*arguments)
        assert (builder.size_bytes, builder.count, builder.closed) == (size, 1, False)
    assert builder.append(1, b"k", b"v", None)
    assert len(one(records, builder.build()).records()) == 2


def test_bytes_may_come_in_any_form_and_header_values_as_text(records: ModuleType) -> None:
    builder = records.RecordBatchBuilder(1000)
    builder.append(1, bytearray(b"k"), memoryview(b"value")[1:], (["h", bytearray(b"1")], ("ü", "ü"), ("n", None)))
    (record,) = one(records, builder.build()).records()
    assert (record.key, record.value) == (b"k", b"alue")
    assert record.headers == (("h", b"1"), ("ü", "ü".encode()), ("n", None))


def test_a_batch_can_be_built_again_with_another_epoch_and_sequence(records: ModuleType) -> None:
    builder = records.RecordBatchBuilder(1000, compression=records.Compression.GZIP)
    builder.append(1, b"k", b"v", None)
    first = builder.build(producer_id=1, producer_epoch=1, base_sequence=5)
    assert not builder.append(1, b"k", b"v", None)
    assert builder.is_full
    second = builder.build(producer_id=2, producer_epoch=0, base_sequence=0, transactional=True)
    assert first[61:] == second[61:]
    batch = one(records, second)
    batch.verify()
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence, batch.is_transactional) == (2, 0, 0, True)


def test_an_empty_batch_is_only_built_for_compaction(records: ModuleType) -> None:
    with pytest.raises(ValueError, match="at least one record"):
        records.RecordBatchBuilder(1000).build()
    batch = one(
        records, records.RecordBatchBuilder(1000, compression=records.Compression.ZSTD).build(last_offset_delta=9)
    )
    batch.verify()
    assert (batch.count, batch.last_offset, batch.records(), batch.attributes) == (0, 9, [], 0)


def test_offsets_with_gaps_must_ascend(records: ModuleType) -> None:
    builder = records.RecordBatchBuilder(1000)
    builder.append(1, b"a", b"", None, offset_delta=4)
    with pytest.raises(ValueError, match="does not follow"):
        builder.append(1, b"b", b"", None, offset_delta=4)
    builder.append(1, b"b", b"", None)
    assert [record.offset for record in one(records, builder.build()).records()] == [4, 5]


# Reading


def test_batches_follow_each_other_and_an_incomplete_one_is_the_end(records: ModuleType) -> None:
    first, second = some(records), some(records, 2, base_offset=3)
    for cut in range(len(first), len(first + second)):
        assert [batch.base_offset for batch in records.iter_batches((first + second)[:cut])] == [0]
        if cut > len(first):
            with pytest.raises(CorruptMessage, match="ends inside"):
                list(records.iter_batches((first + second)[:cut], strict=True))
    found = list(records.iter_batches(first + second, strict=True))
    assert [(batch.base_offset, batch.position) for batch in found] == [(0, 0), (3, len(first))]
    assert [batch.base_offset for batch in records.iter_batches(first + second, position=len(first))] == [3]
    assert list(records.iter_batches(b"")) == []


def test_good_batches_are_given_before_a_broken_one_is_reported(records: ModuleType) -> None:
    broken = bytearray(some(records) * 2)
    broken[len(broken) // 2 + 16] = 9
    batches = records.iter_batches(broken)
    assert next(batches).count == 3
    with pytest.raises(CorruptMessage, match="magic 9"):
        next(batches)


@pytest.mark.parametrize("length", [-(2**31), -1, 0, 13, 48])
def test_an_impossible_length_is_corrupt(records: ModuleType, length: int) -> None:
    buffer = bytearray(some(records))
    buffer[8:12] = length.to_bytes(4, "big", signed=True)
    with pytest.raises(CorruptMessage, match="length"):
        list(records.iter_batches(buffer))
    with pytest.raises(CorruptMessage, match="length"):
        records.RecordBatch(buffer)


@pytest.mark.parametrize("magic", [0, 1])
def test_an_old_batch_is_recognized_and_not_read(records: ModuleType, magic: int) -> None:
    old = (77).to_bytes(8, "big") + (22).to_bytes(4, "big") + b"\1\2\3\4" + bytes([magic]) + bytes(17)
    batch = one(records, old)
    assert (batch.magic, batch.base_offset, batch.size_bytes, batch.count) == (magic, 77, 34, 0)
    for act in (batch.verify, batch.records, lambda: records.decode_batch(batch, "t", 0)):
        with pytest.raises(InvalidRecord, match=f"magic {magic}"):
            act()


def test_every_flipped_bit_behind_the_crc_is_found(records: ModuleType) -> None:
    good = some(records, 2)
    for position in range(17, len(good)):
        broken = bytearray(good)
        broken[position] ^= 0x10
        with pytest.raises(CorruptMessage):
            one(records, broken).verify()


@pytest.mark.parametrize("codec", [5, 6, 7])
def test_a_codec_that_does_not_exist_is_refused(records: ModuleType, codec: int) -> None:
    buffer = bytearray(some(records))
    buffer[22] |= codec
    with pytest.raises(UnsupportedCompressionType, match=f"codec {codec}"):
        one(records, buffer).records()


@pytest.mark.parametrize("count", [-1, 0, 2, 4, 2**31 - 1])
def test_a_count_that_is_not_the_number_of_records_is_refused(records: ModuleType, count: int) -> None:
    buffer = bytearray(some(records))
    buffer[57:61] = count.to_bytes(4, "big", signed=True)
    with pytest.raises(InvalidRecord):
        one(records, buffer).records()


def test_buffers_of_all_kinds_are_read(records: ModuleType) -> None:
    built = some(records)
    for buffer in (built, bytearray(built), memoryview(built), memoryview(b"x" + built)[1:]):
        assert one(records, buffer).records() == one(records, built).records()


def test_records_compare_and_print(records: ModuleType) -> None:
    first, second = one(records, some(records, 2)).records()
    assert first == one(records, some(records, 2)).records()[0]
    assert first != second
    assert first != "other"
    assert "key=b'k0'" in repr(first)
    assert "offsets 0 to 1" in repr(one(records, some(records, 2)))


# Patching


def test_offset_and_leader_epoch_are_patched_outside_the_crc(records: ModuleType) -> None:
    buffer = bytearray(b"before" + some(records) + b"after")
    batch = records.RecordBatch(buffer, 6)
    crc = batch.crc
    batch.set_base_offset(2**50)
    batch.set_leader_epoch(12)
    again = records.RecordBatch(buffer, 6)
    for seen in (batch, again):
        seen.verify()
        assert (seen.base_offset, seen.leader_epoch, seen.crc) == (2**50, 12, crc)
        assert [record.offset for record in seen.records()] == [2**50, 2**50 + 1, 2**50 + 2]
    assert (buffer[:6], buffer[-5:]) == (b"before", b"after")


def test_the_append_time_becomes_every_record_s_and_the_crc_fits(records: ModuleType) -> None:
    buffer = bytearray(some(records))
    batch = one(records, buffer)
    batch.set_max_timestamp(99, records.TimestampType.LOG_APPEND_TIME)
    again = one(records, bytes(buffer))
    again.verify()
    assert again.timestamp_type is records.TimestampType.LOG_APPEND_TIME
    assert [record.timestamp_ms for record in again.records()] == [99, 99, 99]
    assert {r.timestamp_type for r in records.decode_batch(again, "t", 0)} == {records.TimestampType.LOG_APPEND_TIME}
    batch.set_max_timestamp(1002, records.TimestampType.CREATE_TIME)
    assert buffer == some(records)


def test_a_read_only_buffer_cannot_be_patched(records: ModuleType) -> None:
    batch = one(records, some(records))
    with pytest.raises(TypeError, match="read-only"):
        batch.set_base_offset(1)


# What a consumer gets


def test_a_consumer_s_records_have_all_their_fields(records: ModuleType) -> None:
    buffer = records.build_batch(
        [(5, b"k", None, [("h", b"1"), ("h", b"2"), ("n", None)]), (6, None, b"v", ())], base_offset=40, leader_epoch=3
    )
    first, second = records.decode_batch(one(records, buffer), "orders", 2)
    assert (first.topic, first.partition, first.offset, first.timestamp_ms) == ("orders", 2, 40, 5)
    assert (first.key, first.value, first.leader_epoch, first.delivery_attempt) == (b"k", None, 3, None)
    assert first.headers == (("h", b"1"), ("h", b"2"), ("n", None))
    assert (first.header("h"), first.header("n"), first.header("other")) == (b"2", None, None)
    assert (second.key, second.value, second.headers, second.offset) == (None, b"v", (), 41)
    assert first.timestamp_type is records.TimestampType.CREATE_TIME


def test_a_consumer_s_records_begin_where_it_asks(records: ModuleType) -> None:
    batch = one(records, some(records, 5, base_offset=10, leader_epoch=-1))
    assert [record.offset for record in records.decode_batch(batch, "t", 0, from_offset=13)] == [13, 14]
    assert records.decode_batch(batch, "t", 0, from_offset=15) == []
    assert records.decode_batch(batch, "t", 0)[0].leader_epoch is None


def taken(records: ModuleType, buffer: Any, most: int = 100, **options: Any) -> tuple[list[int], int, int, int]:
    """What `decode_batches` takes from the start: the records' offsets, and what is behind them."""
    options = {"from_offset": 0, "check_crcs": True, **options}
    found, *behind = records.decode_batches(buffer, 0, most, "t", 1, options["from_offset"], options["check_crcs"])
    position, next_offset, leader_epoch = behind
    return [record.offset for record in found], position, next_offset, leader_epoch


def test_whole_batches_are_decoded_until_there_are_enough_records(records: ModuleType) -> None:
    first = some(records, 3, base_offset=10, leader_epoch=4)
    second = some(records, 2, base_offset=13, leader_epoch=5)
    assert taken(records, first + second) == ([10, 11, 12, 13, 14], len(first + second), 15, 5)
    assert taken(records, first + second, most=3) == ([10, 11, 12], len(first), 13, 4)
    assert taken(records, first + second, most=4)[0] == [10, 11, 12, 13, 14]
    assert taken(records, first + second, most=0) == ([], 0, -1, -1)
    assert taken(records, first + second, from_offset=12)[0] == [12, 13, 14]
    assert taken(records, first + second, from_offset=13, most=1) == ([13, 14], len(first + second), 15, 5)
    assert records.decode_batches(first + second, len(first), 9, "t", 1, 0, True)[0][0].offset == 13


def test_they_are_those_that_each_batch_has_alone(records: ModuleType) -> None:
    append_time = records.RecordBatchBuilder(1000, timestamp_type=records.TimestampType.LOG_APPEND_TIME)
    append_time.append(5, b"k", None, [("h", None)])
    buffer = some(records, 2) + append_time.build(base_offset=2, leader_epoch=7) + some(records, 1, base_offset=3)
    alone = [
        record
        for batch in records.iter_batches(buffer)
        for record in records.decode_batch(batch, "t", 1, from_offset=1)
    ]
    assert records.decode_batches(buffer, 0, 100, "t", 1, 1, True)[0] == alone


@pytest.mark.parametrize(
    "left",
    [
        lambda records: some(records, 2, base_offset=3, compression=records.Compression.GZIP),
        lambda records: records.end_transaction_marker(
            commit=True, producer_id=1, producer_epoch=0, coordinator_epoch=0, timestamp_ms=1
        ),
        lambda records: some(records)[:-1],
        lambda records: some(records)[:16],
        lambda records: some(records)[:-1] + b"?",
        lambda records: some(records)[:16] + b"\x01" + some(records)[17:],
        lambda records: some(records)[:16] + b"\x03" + some(records)[17:],
        lambda records: some(records)[:8] + b"\x00\x00\x00\x01" + some(records)[12:],
        lambda records: some(records)[:8] + b"\xff\xff\xff\xff" + some(records)[12:],
        lambda _: b"",
    ],
    ids=["compressed", "control", "cut", "header cut", "CRC", "magic 1", "magic 3", "too short", "negative", "none"],
)
def test_what_is_not_plain_data_is_left_to_others(records: ModuleType, left: Any) -> None:
    plain = some(records, 3, leader_epoch=2)
    assert taken(records, plain + left(records)) == ([0, 1, 2], len(plain), 3, 2)
    assert taken(records, left(records)) == ([], 0, -1, -1)


def test_what_is_behind_a_batch_that_is_left_is_left_too(records: ModuleType) -> None:
    plain, left = some(records, 3), some(records, 2, base_offset=3, compression=records.Compression.GZIP)
    assert taken(records, plain + left + plain)[0] == [0, 1, 2]


def test_a_batch_that_is_malformed_behind_a_right_checksum_is_left_whole(records: ModuleType) -> None:
    plain, broken = some(records, 3), bytearray(some(records, 2, base_offset=3))
    broken[-1] = 4  # the last record's number of headers, of which there are none
    broken[17:21] = records.crc32c(bytes(broken[21:])).to_bytes(4, "big")
    assert taken(records, plain + broken) == ([0, 1, 2], len(plain), 3, -1)
    with pytest.raises(InvalidRecord):
        records.decode_batch(one(records, broken), "t", 0)


def test_checksums_are_looked_at_only_where_asked(records: ModuleType) -> None:
    changed = some(records, 2)
    changed = changed[:17] + b"\x00\x00\x00\x00" + changed[21:]
    assert taken(records, changed)[0] == []
    assert taken(records, changed, check_crcs=False)[0] == [0, 1]


def test_the_end_of_the_batches_is_that_of_the_last_whole_one(records: ModuleType) -> None:
    buffer = some(records, 3) + some(records, 2, base_offset=7)
    assert records.end_of_batches(buffer, 0) == 9
    assert records.end_of_batches(buffer[:-1], 0) == 3
    assert records.end_of_batches(buffer[:40], 42) == 42
    assert records.end_of_batches(buffer[:8] + b"\xff\xff\xff\xff" + buffer[12:], 42) == 42


def test_control_records_reach_no_consumer(records: ModuleType) -> None:
    marker = records.end_transaction_marker(
        commit=True, producer_id=1, producer_epoch=0, coordinator_epoch=0, timestamp_ms=1
    )
    assert records.decode_batch(one(records, marker), "t", 0) == []


def test_deserializers_and_error_handlers_assign(records: ModuleType) -> None:
    record = records.ConsumerRecord("t", 0, 7, 1, key=b"k", value=b"v")
    record.key, record.value, record.delivery_attempt, record.headers = 5, {"a": 1}, 2, [("x", b"y")]
    assert (record.key, record.value, record.delivery_attempt, record.header("x")) == (5, {"a": 1}, 2, b"y")
    same = records.ConsumerRecord("t", 0, 7, 1, key=5, value={"a": 1}, headers=[("x", b"y")], delivery_attempt=2)
    assert record == same
    assert record != records.ConsumerRecord("t", 0, 8, 1)
    assert record != 5
    assert "value={'a': 1}" in repr(record)


def test_a_record_in_a_cycle_is_collected(records: ModuleType) -> None:
    # Decoded records are unknown to the garbage collector, until something is assigned that it has to know.
    import gc
    import weakref

    class Value:
        pass

    def cycle() -> weakref.ref[Value]:
        (record,) = records.decode_batch(one(records, some(records, 1)), "t", 0)
        value = Value()
        value.record = record  # type: ignore[attr-defined]
        record.value = value
        return weakref.ref(value)

    seen = cycle()
    gc.collect()
    assert seen() is None


def test_a_header_name_that_is_not_utf8_does_not_stop_a_consumer(records: ModuleType) -> None:
    buffer = records.build_batch([(1, b"k", b"v", [("name", b"x")])]).replace(b"name", b"n\xffme")
    assert one(records, buffer).records()[0].headers == (("n\ufffdme", b"x"),)


# Choosing the twin


@pytest.mark.parametrize(("setting", "expected"), [("1", "False"), ("", None)])
def test_the_environment_can_force_the_pure_twin(setting: str, expected: str | None) -> None:
    code = "from ottla_wire.records import native, crc32c; print(native, crc32c(b'123456789') == 0xe3069283)"
    environment = dict(os.environ, OTTLA_PURE=setting)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    native, right = done.stdout.split()
    assert right == "True"
    if expected is not None:
        assert native == expected


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, ottla_wire.records; "
        "print([m for m in ('asyncio', 'cramjam', 'logging', 'crc32c', 'zlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
