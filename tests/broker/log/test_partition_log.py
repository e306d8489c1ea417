"""Append, read, find by time, roll segments: one partition."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_batches import NOW, SMALL, append, batch, end_transaction, filled, open_log, read_all
from log_simulated_files import SimulatedFiles

from ottla_broker.log.config import LogConfig
from ottla_wire.errors import OffsetOutOfRange
from ottla_wire.records import Compression, build_batch, iter_batches

# ---- read


def test_a_log_can_be_read_from_every_offset() -> None:
    log = filled()
    stored = read_all(log)
    for offset in range(log.log_end_offset):
        piece = log.read(offset, 1, at_least_one=True)
        (found,) = iter_batches(piece.records, strict=True)
        assert found.base_offset <= offset <= found.last_offset
        assert piece.next_offset == found.next_offset
        assert found in stored or any(found.base_offset == other.base_offset for other in stored)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 5),
    reads=st.lists(st.tuples(st.integers(0, 130), st.integers(0, 5000), st.integers(0, 140), st.booleans())),
)
def test_a_read_returns_whole_batches_within_its_limits(seed: int, reads: list[tuple[int, int, int, bool]]) -> None:
    log = filled(seed=seed)
    stored = read_all(log)
    for wanted, max_bytes, upper, at_least_one in reads:
        offset = min(wanted, log.log_end_offset)
        piece = log.read(offset, max_bytes, upper_offset=upper, at_least_one=at_least_one)
        found = list(iter_batches(piece.records, strict=True))
        expected = [other for other in stored if other.last_offset >= offset and other.next_offset <= upper]
        if not found:
            too_large = expected and expected[0].size_bytes > max_bytes and not at_least_one
            assert not expected or offset >= upper or too_large
            assert piece.first_batch_too_large == bool(too_large and offset < upper)
            continue
        assert [other.base_offset for other in found] == [other.base_offset for other in expected[: len(found)]]
        assert len(piece.records) <= max_bytes or (at_least_one and len(found) == 1)
        assert piece.next_offset == found[-1].next_offset
        following = expected[len(found) : len(found) + 1]
        is_cut_for_size = bool(following) and len(piece.records) + following[0].size_bytes > max_bytes
        is_last_of_segment = bool(following) and following[0].base_offset in log._bases
        assert not following or is_cut_for_size or is_last_of_segment


def test_reading_at_the_end_is_empty_and_beyond_it_an_error() -> None:
    log = filled()
    piece = log.read(log.log_end_offset, 1000)
    assert (piece.records, piece.next_offset, piece.first_batch_too_large) == (b"", log.log_end_offset, False)
    for offset in (-1, log.log_end_offset + 1):
        with pytest.raises(OffsetOutOfRange):
            log.read(offset, 1000)


def test_reading_below_the_start_is_an_error() -> None:
    log = filled()
    log.increment_log_start_offset(10)
    with pytest.raises(OffsetOutOfRange):
        log.read(9, 1000)
    assert log.read(10, 1000).records


def test_a_first_batch_that_is_too_large_is_told_from_the_end() -> None:
    log = open_log(SimulatedFiles())
    append(log, batch(value=bytes(5000)))
    piece = log.read(0, 1000)
    assert piece.first_batch_too_large
    assert (piece.records, piece.next_offset) == (b"", 0)
    assert len(log.read(0, 1000, at_least_one=True).records) > 5000


def test_what_is_at_or_above_the_upper_offset_is_not_returned() -> None:
    log = open_log(SimulatedFiles())
    for _ in range(5):
        append(log, batch(2))
    piece = log.read(0, 100_000, upper_offset=6)
    assert piece.next_offset == 6
    assert log.read(6, 100_000, upper_offset=6).records == b""
    assert [found.base_offset for found in iter_batches(log.read(6, 100_000, upper_offset=8).records)] == [6]


def test_a_reader_in_a_hole_between_segments_gets_the_next_batch() -> None:
    leader = open_log(SimulatedFiles())
    for _ in range(3):
        append(leader, batch(1))
    follower = open_log(SimulatedFiles())
    follower.append_as_follower(leader.read(0, 1, at_least_one=True).records, leader_epoch=0, now_ms=NOW)
    follower.roll(NOW)
    follower.append_as_follower(leader.read(2, 1, at_least_one=True).records, leader_epoch=0, now_ms=NOW)
    piece = follower.read(1, 1000)
    assert [found.base_offset for found in iter_batches(piece.records)] == [2]
    assert piece.next_offset == 3


def test_sealed_segments_keep_only_a_few_indexes_in_memory() -> None:
    log = filled(200)
    read_all(log)
    assert log.segment_count > 8
    assert sum(segment.is_loaded for segment in log._segments[:-1]) <= 4
    assert len(read_all(log)) == 200


# ---- time


def test_the_first_record_of_a_time_is_found() -> None:
    log = open_log(SimulatedFiles(), config=SMALL)
    for index in range(30):
        append(log, batch(3, timestamp_ms=NOW + index * 100, step_ms=10, value=bytes(60)))
    found = log.offset_for_timestamp(NOW + 1211)
    assert found is not None
    assert (found.timestamp_ms, found.offset, found.leader_epoch) == (NOW + 1220, 38, 0)
    assert log.offset_for_timestamp(NOW + 2921) is None
    assert log.offset_for_timestamp(NOW + 1211, upper_offset=38) is None
    assert log.offset_for_timestamp(0).offset == 0


times = st.lists(st.lists(st.integers(-40, 40), min_size=1, max_size=4), min_size=1, max_size=25)


@given(times=times, wanted=st.integers(-45, 45), start=st.integers(0, 30), upper=st.integers(0, 100))
def test_searching_by_time_is_a_linear_search(times: list[list[int]], wanted: int, start: int, upper: int) -> None:
    log = open_log(SimulatedFiles(), config=LogConfig(segment_bytes=700, index_interval_bytes=100))
    records: list[tuple[int, int]] = []
    for group in times:
        append(log, build_batch([(NOW + time, None, b"value", None) for time in group]))
        records += [(len(records) + index, NOW + time) for index, time in enumerate(group)]
    log.high_watermark_moved(log.log_end_offset)
    log.increment_log_start_offset(min(start, log.log_end_offset))
    expected = [entry for entry in records if entry[1] >= NOW + wanted and entry[0] >= log.log_start_offset]
    found = log.offset_for_timestamp(NOW + wanted, upper)
    if not expected or expected[0][0] >= upper:
        assert found is None
    else:
        assert found is not None
        assert (found.offset, found.timestamp_ms) == expected[0]
    if log.log_start_offset == 0:
        largest = max(time for _, time in records)
        first = next(offset for offset, time in records if time == largest)
        assert log.offset_of_max_timestamp().offset == first


def test_a_log_without_timestamps_has_no_largest() -> None:
    log = open_log(SimulatedFiles())
    assert log.offset_of_max_timestamp() is None
    append(log, batch(timestamp_ms=-1))
    assert log.offset_of_max_timestamp() is None


# ---- segments


def test_a_segment_is_rolled_when_the_next_batch_would_not_fit() -> None:
    records = batch(value=bytes(100))
    log = open_log(SimulatedFiles(), config=LogConfig(segment_bytes=len(records) * 3))
    for _ in range(7):
        append(log, batch(value=bytes(100)))
    assert log._bases == [0, 3, 6]


def test_a_segment_is_rolled_by_the_time_of_its_records() -> None:
    log = open_log(SimulatedFiles(), config=LogConfig(segment_ms=1000))
    append(log, batch(timestamp_ms=NOW))
    append(log, batch(timestamp_ms=NOW + 1000), now_ms=NOW + 5000)
    assert log.segment_count == 1
    append(log, batch(timestamp_ms=NOW + 1001), now_ms=NOW)
    assert log._bases == [0, 2]


def test_a_segment_without_timestamps_is_rolled_by_its_age() -> None:
    log = open_log(SimulatedFiles(), config=LogConfig(segment_ms=1000))
    append(log, batch(timestamp_ms=-1))
    append(log, batch(timestamp_ms=-1), now_ms=NOW + 1000)
    append(log, batch(timestamp_ms=-1), now_ms=NOW + 1001)
    assert log._bases == [0, 2]


def test_a_segment_is_rolled_when_an_index_is_full() -> None:
    log = open_log(SimulatedFiles(), config=LogConfig(index_interval_bytes=0, segment_index_bytes=40))
    for _ in range(12):
        append(log, batch())
    assert log.segment_count > 1
    assert all(len(segment.offset_index.offsets) <= 5 for segment in log._segments)


def replicated(base_offset: int, count: int = 1) -> bytes:
    return build_batch([(NOW, b"key", b"value", None)] * count, base_offset=base_offset, leader_epoch=0)


@pytest.mark.parametrize(("far", "base"), [(2**31 + 5, 11), (2**32, 2**32)])
def test_an_offset_too_far_from_the_base_rolls_the_segment(far: int, base: int) -> None:
    """The new segment begins where the log ends, unless even from there the offset is too far (KAFKA-6264)."""
    files = SimulatedFiles()
    log = open_log(files)
    for base_offset in (0, 10, far, far + 1):
        log.append_as_follower(replicated(base_offset), leader_epoch=0, now_ms=NOW)
    assert log._bases == [0, base]
    log.abandon()
    log = open_log(files)
    assert [found.base_offset for found in read_all(log)] == [0, 10, far, far + 1]


def test_a_follower_rolls_where_its_log_ends_so_that_no_hole_is_between_segments() -> None:
    log = open_log(SimulatedFiles(), config=LogConfig(segment_bytes=100))
    log.append_as_follower(replicated(0), leader_epoch=0, now_ms=NOW)
    log.append_as_follower(replicated(7), leader_epoch=0, now_ms=NOW)
    assert log._bases == [0, 1]
    assert log.read(1, 100).next_offset == 8


def test_a_follower_refuses_what_it_has_already() -> None:
    log = open_log(SimulatedFiles())
    log.append_as_follower(replicated(5, 3), leader_epoch=0, now_ms=NOW)
    with pytest.raises(OffsetOutOfRange):
        log.append_as_follower(replicated(7), leader_epoch=0, now_ms=NOW)


def test_a_changed_configuration_holds_from_the_next_append_on() -> None:
    log = open_log(SimulatedFiles())
    append(log, batch())
    log.update_config(LogConfig(segment_bytes=100, compression_type="zstd", max_message_bytes=1000))
    append(log, batch())
    assert log._bases == [0, 1]
    assert [found.compression for found in read_all(log)] == [Compression.NONE, Compression.ZSTD]


# ---- aborted transactions


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30)
def test_aborted_transactions_are_found_from_every_offset(seed: int) -> None:
    """One that is missing would hand aborted records to a read_committed consumer (pitfall 27)."""
    rng = random.Random(seed)
    log = open_log(SimulatedFiles(), config=LogConfig(segment_bytes=400, index_interval_bytes=100))
    opened: dict[int, int] = {}
    aborted: list[tuple[int, int, int]] = []
    sequences: dict[int, int] = {}
    for _ in range(60):
        producer_id = rng.randrange(5)
        if producer_id in opened and rng.random() < 0.4:
            commit = rng.random() < 0.4
            marker = end_transaction(log, producer_id, 0, commit=commit).first_offset
            first = opened.pop(producer_id)
            if not commit:
                aborted.append((producer_id, first, marker))
        else:
            sequence = sequences.get(producer_id, 0)
            sequences[producer_id] = sequence + 1
            info = append(log, batch(producer=(producer_id, 0, sequence), transactional=True))
            opened.setdefault(producer_id, info.first_offset)
    end = log.log_end_offset
    for start in range(end):
        for upper in (start + 1, start + 3, end):
            found = {entry[:3] for entry in log.aborted_transactions(start, upper)}
            expected = {entry for entry in aborted if entry[2] >= start and entry[1] < upper}
            assert expected <= found
            assert all(last >= start and first < upper for _, first, last in found)
