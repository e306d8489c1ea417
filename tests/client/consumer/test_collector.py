from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from ottla.client.consumer.collector import Collector, FetchBuffer
from ottla.client.consumer.completed_fetch import CompletedFetch
from ottla.client.consumer.reset_policy import ResetPolicy
from ottla.client.consumer.subscription_state import FetchState, SubscriptionState
from ottla.client.topic_partition import TopicPartition
from ottla.errors import (
    DeserializationError,
    OffsetOutOfRange,
    OffsetsOutOfRange,
    RecordCorrupt,
    TopicAuthorizationFailed,
)

A0, A1 = TopicPartition("a", 0), TopicPartition("a", 1)


class Bench:
    """A collector with two partitions at offset 0."""

    def __init__(
        self,
        log: SimpleNamespace,
        policy: ResetPolicy = ResetPolicy.LATEST,
        answer_bytes: int = 1 << 20,
        **options: Any,
    ) -> None:
        self.log = log
        self.subscription = SubscriptionState(policy)
        self.subscription.assign_by_user([A0, A1])
        self.subscription.seek(A0, 0)
        self.subscription.seek(A1, 0)
        self.buffer = FetchBuffer(answer_bytes)
        self.gave_way = 0
        self.collector = Collector(threading.Lock(), self.subscription, self.buffer, give_way=self._give_way, **options)

    def _give_way(self) -> None:
        self.gave_way += 1

    def fetched(self, partition: TopicPartition, offset: int, count: int, **batch: Any) -> CompletedFetch:
        data = bytearray(self.log.batch(offset, [b"v"] * count, **batch))
        fetch = CompletedFetch(partition, self.subscription.require(partition).version, offset, memoryview(data))
        self.buffer.add(fetch)
        return fetch

    def failed(self, partition: TopicPartition, offset: int, error: Any) -> None:
        version = self.subscription.require(partition).version
        self.buffer.add(CompletedFetch(partition, version, offset, None, error=error))

    def collect(self, limit: int = 100) -> list[tuple[int, int]]:
        return [(record.partition, record.offset) for record in self.collector.collect(limit)]


def test_the_io_loop_may_go_first_each_time_records_are_decoded(log: SimpleNamespace) -> None:
    bench = Bench(log)
    bench.collect()
    assert bench.gave_way == 0
    bench.fetched(A0, 0, 3)
    bench.collect(2)
    assert bench.gave_way == 1


def test_records_come_in_the_order_of_the_fetches_up_to_the_limit(log: SimpleNamespace) -> None:
    bench = Bench(log)
    bench.fetched(A0, 0, 3)
    bench.fetched(A1, 0, 2)
    bench.fetched(A0, 3, 2)
    assert bench.collect(4) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert bench.collect(10) == [(1, 1), (0, 3), (0, 4)]
    assert bench.subscription.require(A0).offset == 5
    assert bench.subscription.require(A1).offset == 2


def test_positions_cover_exactly_what_was_returned(log: SimpleNamespace) -> None:
    bench = Bench(log)
    bench.fetched(A0, 0, 5, leader_epoch=4)
    bench.collect(2)
    state = bench.subscription.require(A0)
    assert (state.offset, state.offset_epoch) == (2, 4)


def test_the_list_that_is_returned_is_the_callers_own(log: SimpleNamespace) -> None:
    bench = Bench(log)
    bench.fetched(A0, 0, 2)
    bench.fetched(A0, 2, 2)
    bench.collector.collect(2).clear()
    assert bench.collect() == [(0, 2), (0, 3)]


def test_records_from_before_a_seek_are_dropped(log: SimpleNamespace) -> None:
    bench = Bench(log)
    bench.fetched(A0, 0, 5)
    bench.collect(2)
    bench.subscription.seek(A0, 100)
    bench.fetched(A1, 0, 1)
    assert bench.collect() == [(1, 0)]
    assert bench.subscription.require(A0).offset == 100
    assert bench.buffer.bytes_of(A0) == 0


def test_records_of_a_revoked_partition_are_dropped(log: SimpleNamespace) -> None:
    bench = Bench(log)
    bench.fetched(A0, 0, 5)
    bench.subscription.assign_by_user([A1])
    assert bench.collect() == []
    assert len(bench.buffer) == 0


def test_paused_partitions_keep_their_records_and_do_not_hold_up_others(log: SimpleNamespace) -> None:
    bench = Bench(log)
    bench.fetched(A0, 0, 2)
    bench.fetched(A1, 0, 1)
    bench.subscription.pause([A0], paused=True)
    assert bench.collect() == [(1, 0)]
    bench.subscription.pause([A0], paused=False)
    assert bench.collect() == [(0, 0), (0, 1)]


def test_more_is_wanted_once_a_partition_has_room(log: SimpleNamespace) -> None:
    bench = Bench(log, answer_bytes=200)
    first = bench.fetched(A0, 0, 10)
    bench.fetched(A0, 10, 1)
    assert bench.buffer.bytes_of(A0) > 200 > bench.buffer.bytes_of(A0) - first.remaining_bytes
    bench.collect(1)
    assert bench.collector.wants_fetch
    bench.collector.wants_fetch = False
    bench.collect(5)
    assert not bench.collector.wants_fetch, "nothing new: the partition had room before"


def test_an_error_in_the_middle_costs_none_of_the_records_before_it(log: SimpleNamespace) -> None:
    bench = Bench(log)
    bench.fetched(A0, 0, 2)
    bench.failed(A1, 0, TopicAuthorizationFailed("a"))
    bench.fetched(A0, 2, 1)
    assert bench.collect() == [(0, 0), (0, 1)]
    with pytest.raises(TopicAuthorizationFailed):
        bench.collect()
    assert bench.collect() == [(0, 2)]


def test_an_offset_out_of_range_resets_by_policy(log: SimpleNamespace) -> None:
    bench = Bench(log, ResetPolicy.EARLIEST)
    bench.failed(A0, 0, OffsetOutOfRange())
    assert bench.collect() == []
    state = bench.subscription.require(A0)
    assert (state.state, state.reset_policy) == (FetchState.AWAIT_RESET, ResetPolicy.EARLIEST)


def test_an_offset_out_of_range_is_raised_without_a_policy(log: SimpleNamespace) -> None:
    bench = Bench(log, ResetPolicy.NONE)
    bench.failed(A0, 0, OffsetOutOfRange())
    with pytest.raises(OffsetsOutOfRange, match="a-0 at 0") as caught:
        bench.collect()
    assert caught.value.positions == {A0: 0}
    assert bench.subscription.require(A0).state is FetchState.FETCHING


def test_an_error_from_before_a_seek_is_dropped(log: SimpleNamespace) -> None:
    bench = Bench(log, ResetPolicy.NONE)
    bench.failed(A0, 0, OffsetOutOfRange())
    bench.subscription.seek(A0, 5)
    assert bench.collect() == []


def test_a_corrupt_batch_is_raised_until_the_application_seeks_past_it(log: SimpleNamespace) -> None:
    bench = Bench(log)
    data = bytearray(log.batch(0, [b"v"]) + log.batch(1, [b"v"]))
    data[-1] ^= 0xFF
    bench.buffer.add(CompletedFetch(A0, bench.subscription.require(A0).version, 0, memoryview(data)))
    assert bench.collect() == [(0, 0)]
    for _ in range(2):
        with pytest.raises(RecordCorrupt):
            bench.collect()
    bench.subscription.seek(A0, 2)
    assert bench.collect() == []


def test_deserializers_get_topic_headers_and_bytes_and_are_not_asked_about_none(log: SimpleNamespace) -> None:
    asked = []

    def deserialize(topic: str, headers: Any, data: bytes) -> str:
        asked.append((topic, tuple(headers), data))
        return data.decode()

    bench = Bench(log, deserialize_value=deserialize)
    version = bench.subscription.require(A0).version
    data = memoryview(bytearray(log.batch(0, [b"x", None])))
    bench.buffer.add(CompletedFetch(A0, version, 0, data))
    records = bench.collector.collect(10)
    assert [(record.key, record.value) for record in records] == [(b"k0", "x"), (b"k1", None)]
    assert asked == [("a", (), b"x")]


def test_a_poison_record_returns_what_is_before_it_then_raises_until_sought_past(log: SimpleNamespace) -> None:
    def deserialize(topic: str, headers: Any, data: bytes) -> bytes:
        if data == b"k2":
            raise ZeroDivisionError
        return data

    bench = Bench(log, deserialize_key=deserialize)
    bench.fetched(A0, 0, 4)
    assert bench.collect() == [(0, 0), (0, 1)]
    assert bench.subscription.require(A0).offset == 2
    for _ in range(2):
        with pytest.raises(DeserializationError, match="the key of a-0 at offset 2") as caught:
            bench.collect()
        assert (caught.value.record.offset, caught.value.part) == (2, "key")
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    bench.subscription.seek(A0, 3)
    bench.fetched(A0, 3, 1)
    assert bench.collect() == [(0, 3)]


def test_a_validation_that_begins_while_records_are_decoded_keeps_them_back(log: SimpleNamespace) -> None:
    """The I/O loop sees a newer leader between the collector's two looks at the partition."""
    bench = Bench(log)
    bench.subscription.seek(A0, 0, offset_epoch=0)
    state = bench.subscription.require(A0)
    fetch = bench.fetched(A0, 0, 2)
    take = fetch.take

    def take_while_the_leader_changes(limit: int) -> Any:
        bench.subscription.leader_seen(state, 9)
        return take(limit)

    fetch.take = take_while_the_leader_changes  # type: ignore[method-assign]
    assert bench.collect() == []
    assert state.offset == 0
