from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottla.client.consumer.completed_fetch import AbortedTransaction, CompletedFetch
from ottla.client.topic_partition import TopicPartition
from ottla.errors import RecordCorrupt
from ottla_wire.records import Compression, build_batch

A0 = TopicPartition("a", 0)


def fetched(data: bytes, offset: int = 0, aborted: list[AbortedTransaction] | None = None) -> CompletedFetch:
    return CompletedFetch(A0, 1, offset, memoryview(bytearray(data)), aborted=aborted)


def drained(fetch: CompletedFetch, limit: int = 1000) -> list[int]:
    offsets = []
    while records := fetch.take(limit):
        offsets += [record.offset for record in records]
    return offsets


def test_records_are_handed_out_in_slices_and_the_position_follows(log: SimpleNamespace) -> None:
    fetch = fetched(log.batch(0, [b"x"] * 5, leader_epoch=3) + log.batch(5, [b"y"] * 2, leader_epoch=4))
    assert fetch.position == (0, None)
    assert [record.offset for record in fetch.take(3)] == [0, 1, 2]
    assert fetch.position == (3, 3)
    assert [record.offset for record in fetch.take(3)] == [3, 4]
    assert fetch.position == (5, 3)
    assert [record.offset for record in fetch.take(3)] == [5, 6]
    assert fetch.position == (7, 4)
    assert not fetch.exhausted
    assert fetch.take(3) == []
    assert fetch.exhausted


def test_a_fetch_that_begins_inside_a_batch_skips_its_head(log: SimpleNamespace) -> None:
    fetch = fetched(log.batch(10, [b"x"] * 5), offset=13)
    assert drained(fetch) == [13, 14]
    assert fetch.position[0] == 15


def test_a_batch_cut_off_at_the_end_is_left_for_the_next_fetch(log: SimpleNamespace) -> None:
    whole, cut = log.batch(0, [b"x"] * 3), log.batch(3, [b"y"] * 3)
    fetch = fetched(whole + cut[:-1])
    assert fetch.next_fetch_offset == 3
    assert drained(fetch) == [0, 1, 2]
    assert fetch.position[0] == 3


def test_the_next_fetch_begins_behind_the_last_whole_batch(log: SimpleNamespace) -> None:
    data = log.batch(0, [b"x"] * 3) + log.batch(7, [b"y"] * 2)
    assert fetched(data).next_fetch_offset == 9
    assert fetched(data[:30], offset=42).next_fetch_offset == 42


def test_records_of_several_batches_come_at_once(log: SimpleNamespace) -> None:
    data = b"".join(log.batch(offset, [b"x"] * 3, leader_epoch=offset) for offset in (0, 3, 6))
    fetch = fetched(data)
    assert [record.offset for record in fetch.take(7)] == [0, 1, 2, 3, 4, 5, 6]
    assert fetch.position == (7, 6)
    fetch.give_back(3)
    assert fetch.position == (4, 3)
    assert drained(fetch) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("special", ["compressed", "control", "corrupt"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_batch_that_is_looked_at_alone_is_nowhere_in_the_way(log: SimpleNamespace, special: str, place: int) -> None:
    batches = [log.batch(offset, [b"x"] * 2) for offset in (0, 2, 4)]
    if special == "compressed":
        batches[place] = build_batch([(0, None, b"x", ())] * 2, base_offset=2 * place, compression=Compression.GZIP)
    elif special == "control":
        batches[place] = log.marker(2 * place, 7, commit=True)
    else:
        batches[place] = batches[place][:-1] + b"?"
    fetch = fetched(b"".join(batches))
    offsets = [offset for offset in range(6) if special == "compressed" or offset // 2 != place]
    if special != "corrupt":
        assert drained(fetch) == offsets
        return
    before = [offset for offset in offsets if offset < 2 * place]
    assert [record.offset for record in (fetch.take(100) if before else [])] == before
    for _ in range(2):
        with pytest.raises(RecordCorrupt, match=f"offset {2 * place}"):
            fetch.take(100)
    assert fetch.position[0] == 2 * place


def test_given_back_records_are_handed_out_again(log: SimpleNamespace) -> None:
    fetch = fetched(log.batch(0, [b"x"] * 5))
    fetch.take(4)
    fetch.give_back(3)
    assert fetch.position == (1, 0)
    assert [record.offset for record in fetch.take(2)] == [1, 2]


def test_control_batches_are_never_handed_out_and_the_position_passes_them(log: SimpleNamespace) -> None:
    data = log.batch(0, [b"x"], producer_id=7, transactional=True) + log.marker(1, 7, commit=True)
    for aborted in (None, []):
        fetch = fetched(data, aborted=aborted)
        assert drained(fetch) == [0]
        assert fetch.position[0] == 2


def test_records_of_aborted_transactions_are_skipped_with_read_committed_only(log: SimpleNamespace) -> None:
    data = (
        log.batch(0, [b"x"] * 2, producer_id=7, transactional=True)
        + log.batch(2, [b"plain"])
        + log.marker(3, 7, commit=False)
    )
    assert drained(fetched(data, aborted=[AbortedTransaction(0, 7)])) == [2]
    assert drained(fetched(data, aborted=None)) == [0, 1, 2]


def test_the_next_transaction_of_a_producer_is_delivered_after_its_abort_marker(log: SimpleNamespace) -> None:
    data = (
        log.batch(0, [b"x"], producer_id=7, transactional=True)
        + log.marker(1, 7, commit=False)
        + log.batch(2, [b"y"], producer_id=7, transactional=True)
        + log.marker(3, 7, commit=True)
    )
    assert drained(fetched(data, aborted=[AbortedTransaction(0, 7)])) == [2]


def test_a_marker_without_an_entry_is_no_reason_to_fail(log: SimpleNamespace) -> None:
    """An empty transaction, or a fetch that starts exactly at the marker."""
    data = log.marker(5, 7, commit=False) + log.batch(6, [b"y"])
    assert drained(fetched(data, offset=5, aborted=[])) == [6]


def test_an_aborted_transaction_whose_first_record_is_before_the_fetch_is_skipped(log: SimpleNamespace) -> None:
    data = log.batch(5, [b"x"], producer_id=7, transactional=True) + log.marker(6, 7, commit=False)
    fetch = fetched(data, offset=5, aborted=[AbortedTransaction(1, 7)])
    assert drained(fetch) == []
    assert fetch.position[0] == 7


def test_a_batch_that_does_not_match_its_checksum_is_reported_each_time_it_is_reached(log: SimpleNamespace) -> None:
    good, bad = log.batch(0, [b"x"] * 2), bytearray(log.batch(2, [b"y"] * 2))
    bad[-2] ^= 0xFF  # in a value: nothing but the checksum can tell
    fetch = fetched(good + bytes(bad))
    assert [record.offset for record in fetch.take(10)] == [0, 1]
    for _ in range(2):
        with pytest.raises(RecordCorrupt, match="a-0 is corrupt at offset 2"):
            fetch.take(10)
        assert fetch.position[0] == 2


def test_without_check_crcs_the_checksum_is_not_looked_at(log: SimpleNamespace) -> None:
    data = bytearray(log.batch(0, [b"yyyy"]))
    data[17] ^= 0xFF
    fetch = CompletedFetch(A0, 1, 0, memoryview(data), check_crcs=False)
    assert drained(fetch) == [0]


def test_the_remaining_bytes_shrink_batch_by_batch(log: SimpleNamespace) -> None:
    first, second = log.batch(0, [b"x"] * 5), log.batch(5, [b"y"] * 2)
    fetch = fetched(first + second)
    assert fetch.remaining_bytes == len(first) + len(second)
    fetch.take(2)
    assert fetch.remaining_bytes == len(second)
    drained(fetch)
    assert fetch.remaining_bytes == 0


# --- against a model: the log as a whole, looked at with hindsight


class Entry(NamedTuple):
    offset: int
    count: int
    producer_id: int
    kind: str  # plain, data, commit, abort


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    entries: list[Entry] = []
    open_since: dict[int, int] = {}
    offset = 0
    for _ in range(draw(st.integers(1, 14))):
        offset += draw(st.sampled_from([0, 0, 0, 1, 3]))  # holes that compaction left
        producer_id = draw(st.integers(1, 3))
        kinds = ["plain", "data", "data"] + (["commit", "abort"] if producer_id in open_since else ["abort"])
        kind = draw(st.sampled_from(kinds))
        count = draw(st.integers(1, 3)) if kind in ("plain", "data") else 1
        if kind == "data":
            open_since.setdefault(producer_id, offset)
        elif kind in ("commit", "abort"):
            open_since.pop(producer_id, None)
        entries.append(Entry(offset, count, producer_id, kind))
        offset += count
    for producer_id in sorted(open_since):
        entries.append(Entry(offset, 1, producer_id, "abort"))
        offset += 1
    return entries


def outcome_of(entries: list[Entry]) -> tuple[set[int], list[AbortedTransaction]]:
    """Offsets that read_committed may see, and all aborted transactions."""
    visible: set[int] = set()
    pending: dict[int, list[Entry]] = {}
    aborted: list[AbortedTransaction] = []
    for entry in entries:
        offsets = range(entry.offset, entry.offset + entry.count)
        if entry.kind == "plain":
            visible.update(offsets)
        elif entry.kind == "data":
            pending.setdefault(entry.producer_id, []).append(entry)
        else:
            written = pending.pop(entry.producer_id, [])
            if entry.kind == "commit":
                visible.update(o for it in written for o in range(it.offset, it.offset + it.count))
            elif written:
                aborted.append(AbortedTransaction(written[0].offset, entry.producer_id))
    return visible, aborted


@given(logs(), st.data())
def test_read_committed_sees_exactly_the_committed_records_from_every_offset(
    log: SimpleNamespace, entries: list[Entry], data: st.DataObject
) -> None:
    visible, aborted = outcome_of(entries)
    ends = {
        (it.producer_id, start.first_offset): it.offset
        for start in aborted
        for it in entries
        if it.kind == "abort" and it.producer_id == start.producer_id and it.offset > start.first_offset
        if not any(
            other.kind in ("abort", "commit")
            and other.producer_id == it.producer_id
            and start.first_offset < other.offset < it.offset
            for other in entries
        )
    }
    start = data.draw(st.integers(0, entries[-1].offset))
    limit = data.draw(st.integers(1, 4))
    parts = [entry for entry in entries if entry.offset + entry.count > start]
    raw = b"".join(
        log.batch(it.offset, [b"v"] * it.count, producer_id=it.producer_id, transactional=True)
        if it.kind == "data"
        else log.batch(it.offset, [b"v"] * it.count)
        if it.kind == "plain"
        else log.marker(it.offset, it.producer_id, commit=it.kind == "commit")
        for it in parts
    )
    # the broker lists what overlaps the fetch, and may list more
    overlapping = [it for it in aborted if ends[it.producer_id, it.first_offset] >= start]
    fetch = fetched(raw, start, aborted=data.draw(st.permutations(overlapping)))
    assert drained(fetch, limit) == sorted(offset for offset in visible if offset >= start)
    assert fetch.position[0] == parts[-1].offset + parts[-1].count


def test_a_half_read_fetch_in_a_reference_cycle_is_collected(log: SimpleNamespace) -> None:
    """The garbage collector once cleared the memoryview under the scanner that still held its buffer: a crash."""
    for _ in range(3):
        fetch = fetched(log.batch(0, [b"x"]) + log.batch(1, [b"y"]))
        fetch.take(1)
        fetch.myself = fetch  # type: ignore[attr-defined]
        del fetch
        gc.collect()
