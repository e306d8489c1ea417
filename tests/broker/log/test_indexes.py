"""The files of the offset and the time index are what Kafka's formats say, however they come about."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_simulated_files import SimulatedFiles

from ottla_broker.log.indexes import CorruptIndex, OffsetIndex, TimeIndex

PATH = Path("/data/index")
BASE = 1_000
steps = st.lists(st.tuples(st.integers(1, 2**20), st.integers(1, 2**20)), max_size=40)


def offset_index(moves: list[tuple[int, int]]) -> tuple[OffsetIndex, list[tuple[int, int]]]:
    """An index, and the (relative offset, position) that it must hold."""
    index, entries = OffsetIndex(BASE, 1 << 20), []
    offset = position = 0
    for further, larger in moves:
        offset, position = offset + further, position + larger
        index.append(BASE + offset, position)
        entries.append((offset, position))
    return index, entries


def time_index(moves: list[tuple[int, int]]) -> tuple[TimeIndex, list[tuple[int, int]]]:
    """An index, and the (timestamp, relative offset) that it must hold."""
    index, entries = TimeIndex(BASE, 1 << 20), []
    offset, timestamp_ms = 0, 1_700_000_000_000
    for further, later in moves:
        offset, timestamp_ms = offset + further, timestamp_ms + later
        index.append(timestamp_ms, BASE + offset)
        index.append(timestamp_ms, BASE + offset + 1)  # no later: it is left out
        entries.append((timestamp_ms, offset))
    return index, entries


def packed(entry: str, entries: list[tuple[int, int]]) -> bytes:
    return b"".join(struct.pack(entry, *values) for values in entries)


@given(steps, st.integers(0, 40))
def test_an_offset_index_is_written_in_parts_and_read_back(moves: list[tuple[int, int]], saved: int) -> None:
    files = SimulatedFiles()
    index, entries = offset_index(moves[:saved])
    index.save(files, PATH)
    whole, entries = offset_index(moves)
    for offset, position in entries[saved:]:
        index.append(BASE + offset, position)
    index.save(files, PATH)
    assert files.read(PATH) == packed(">ii", entries)
    loaded = OffsetIndex(BASE, 1 << 20)
    loaded.load(files, PATH)
    assert (loaded.offsets, loaded.positions) == (whole.offsets, whole.positions)


@given(steps, st.integers(0, 40))
def test_a_time_index_is_written_in_parts_and_read_back(moves: list[tuple[int, int]], saved: int) -> None:
    files = SimulatedFiles()
    index, entries = time_index(moves[:saved])
    index.save(files, PATH)
    whole, entries = time_index(moves)
    for timestamp_ms, offset in entries[saved:]:
        index.append(timestamp_ms, BASE + offset)
    index.save(files, PATH)
    assert files.read(PATH) == packed(">qi", entries)
    loaded = TimeIndex(BASE, 1 << 20)
    loaded.load(files, PATH)
    assert (loaded.timestamps, loaded.offsets) == (whole.timestamps, whole.offsets)
    assert loaded.last == whole.last == loaded.peek_last(files, PATH)


@given(steps.filter(bool), st.data())
def test_what_was_truncated_leaves_the_file_with_the_next_save(
    moves: list[tuple[int, int]], data: st.DataObject
) -> None:
    files = SimulatedFiles()
    keep = data.draw(st.integers(0, len(moves) - 1))
    for (index, entries), entry, column in (
        (offset_index(moves), ">ii", 0),
        (time_index(moves), ">qi", 1),
    ):
        index.save(files, PATH)
        index.truncate(BASE + entries[keep][column])
        index.save(files, PATH)
        assert files.read(PATH) == packed(entry, entries[:keep])


@pytest.mark.parametrize("kind", [OffsetIndex, TimeIndex])
def test_a_file_that_is_not_in_order_is_not_believed(kind: type[OffsetIndex] | type[TimeIndex]) -> None:
    files = SimulatedFiles()
    make, entry = (offset_index, ">ii") if kind is OffsetIndex else (time_index, ">qi")
    _, entries = make([(5, 5)] * 4)
    for wrong in (
        packed(entry, entries[::-1]),
        packed(entry, [entries[0], entries[0]]),
        packed(entry, entries)[:-1],
    ):
        files.write(PATH, wrong)
        with pytest.raises(CorruptIndex):
            kind(BASE, 1 << 20).load(files, PATH)
    files.write(PATH, packed(entry, [(-1, -1)]))
    if kind is OffsetIndex:
        with pytest.raises(CorruptIndex):
            kind(BASE, 1 << 20).load(files, PATH)


def test_an_index_that_was_forgotten_is_read_again() -> None:
    files = SimulatedFiles()
    index, entries = offset_index([(5, 7)] * 3)
    index.save(files, PATH)
    index.forget()
    assert index.position_before(BASE + 10**6) == 0
    index.load(files, PATH)
    assert index.position_before(BASE + 10**6) == entries[-1][1]
    index.append(BASE + 10**6, 10**6)
    index.save(files, PATH)
    assert files.read(PATH) == packed(">ii", [*entries, (10**6, 10**6)])
