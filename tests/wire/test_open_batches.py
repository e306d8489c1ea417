"""The shortest way of a record into its batch, on both twins."""

from __future__ import annotations

import gc
import sys
import threading
import time
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.record_twins import TWINS, twin

TOPIC = "orders"


@pytest.fixture(params=TWINS)
def records(request: pytest.FixtureRequest) -> ModuleType:
    return twin(request.param)


class Topic:
    """One topic that is open to senders, with one open batch for each partition."""

    def __init__(self, records: ModuleType, partitions: int = 3, limit: int = 10_000) -> None:
        self.records = records
        self.batches = records.OpenBatches()
        self.batches.count = partitions
        self.topics = {TOPIC: self.batches}
        self.open = records.OpenTopics(self.topics)
        self.builders = [records.RecordBatchBuilder(limit) for _ in range(partitions)]
        for partition, builder in enumerate(self.builders):
            self.batches.begin(partition, builder)

    def counts(self) -> list[int]:
        return [builder.count for builder in self.builders]

    def stored(self, partition: int) -> list[Any]:
        (batch,) = self.records.iter_batches(self.builders[partition].build())
        found: list[Any] = batch.records()
        return found


def test_a_record_gets_time_partition_bytes_and_future_in_one_call(records: ModuleType) -> None:
    topic = Topic(records)
    before = time.time_ns() // 1_000_000
    future = topic.open.send(TOPIC, "värde", "key")
    after = time.time_ns() // 1_000_000
    partition = records.partition_for_key(b"key", 3)
    assert list(topic.builders[partition].futures) == [future]
    (stored,) = topic.stored(partition)
    assert (stored.key, stored.value, stored.headers) == (b"key", "värde".encode(), ())
    assert before <= stored.timestamp_ms <= after
    assert (future.record.value, future.record.key) == ("värde", "key")
    assert (future.record.partition, future.record.timestamp_ms) == (None, None)
    records.complete_batch([future], TOPIC, partition, 5)
    metadata = future.result(0).metadata
    assert (metadata.serialized_key_size, metadata.serialized_value_size) == (3, 6)
    assert metadata.timestamp_ms == stored.timestamp_ms


def test_the_partition_and_the_time_that_were_asked_for_are_taken(records: ModuleType) -> None:
    topic = Topic(records)
    future = topic.open.send(TOPIC, b"v", b"key", 2, 77)
    assert topic.counts() == [0, 0, 1]
    assert topic.stored(2)[0].timestamp_ms == 77
    assert (future.record.partition, future.record.timestamp_ms) == (2, 77)


def test_keys_decide_as_they_do_in_java(records: ModuleType) -> None:
    topic = Topic(records, partitions=5)
    keys = [f"key-{number}".encode() for number in range(100)]
    for key in keys:
        topic.open.send(TOPIC, None, key)
    for partition in range(5):
        expected = [key for key in keys if records.partition_for_key(key, 5) == partition]
        assert [record.key for record in topic.stored(partition)] == expected


def test_without_a_key_the_sticky_partition_is_taken_and_none_if_there_is_none(records: ModuleType) -> None:
    topic = Topic(records)
    assert topic.open.send(TOPIC, b"v") is None
    topic.batches.sticky = 1
    assert topic.open.send(TOPIC, b"v") is not None
    assert topic.open.append(TOPIC, b"v", None, None, b"v", "a key whose serializer made nothing of it") is not None
    assert topic.counts() == [0, 2, 0]


@pytest.mark.parametrize(
    "arguments",
    [
        ("unknown", b"v", b"k"),
        (b"orders", b"v", b"k"),
        (TOPIC, {"a": 1}, b"k"),
        (TOPIC, bytearray(b"v"), b"k"),
        (TOPIC, "\ud800", b"k"),
        (TOPIC, b"v", 5),
        (TOPIC, b"v", "\ud800"),
        (TOPIC, b"v", b"k", "1"),
        (TOPIC, b"v", b"k", True),
        (TOPIC, b"v", b"k", -1),
        (TOPIC, b"v", b"k", 3),
        (TOPIC, b"v", b"k", 1 << 32),
        (TOPIC, b"v", b"k", 1 << 80),
        (TOPIC, b"v", b"k", 1, -1),
        (TOPIC, b"v", b"k", 1, 1.5),
        (TOPIC, b"v", b"k", 1, 1 << 63),
        (TOPIC, b"v", b"k", 1, 1, {}),
        (TOPIC, b"v", b"k", 1, 1, [("a",)]),
        (TOPIC, b"v", b"k", 1, 1, [["a", b"1"]]),
        (TOPIC, b"v", b"k", 1, 1, [(b"a", b"1")]),
        (TOPIC, b"v", b"k", 1, 1, [("a", 1)]),
        (TOPIC, b"v", b"k", 1, 1, [("a", bytearray(b"1"))]),
        (TOPIC, b"v", b"k", 1, 1, [("a", "\ud800")]),
        (TOPIC, b"v", b"k", 1, 1, [("a", b"1"), ("\ud800", b"1")]),
        (type("Topic", (str,), {})(TOPIC), b"v", b"k"),
    ],
)
def test_what_is_not_plain_goes_another_way_and_leaves_nothing(records: ModuleType, arguments: tuple[Any, ...]) -> None:
    topic = Topic(records)
    assert topic.open.send(*arguments) is None
    assert topic.counts() == [0, 0, 0]
    assert all(list(builder.futures) == [] for builder in topic.builders)


def test_serialized_records_carry_their_headers(records: ModuleType) -> None:
    topic = Topic(records)
    headers = [("a", b"1"), ("b", None)]
    future = topic.open.append(TOPIC, b"[]", b"k", headers, [], "k", 0, 5)
    (stored,) = topic.stored(0)
    assert stored.headers == (("a", b"1"), ("b", None))
    assert future.record == records.ProducerRecord(TOPIC, [], "k", 0, 5, headers)


@pytest.mark.parametrize("kind", [list, tuple])
def test_plain_headers_need_no_serializer(records: ModuleType, kind: Any) -> None:
    topic = Topic(records)
    headers = kind([("a", b"1"), ("ä", "ö"), ("none", None)])
    future = topic.open.send(TOPIC, b"v", None, 0, 5, headers)
    assert topic.stored(0)[0].headers == (("a", b"1"), ("ä", "ö".encode()), ("none", None))
    assert future.record.headers is headers


def test_a_closed_batch_refuses_what_comes_later(records: ModuleType) -> None:
    topic = Topic(records)
    topic.open.send(TOPIC, b"v", None, 0)
    topic.builders[0].close()
    assert topic.open.send(TOPIC, b"v", None, 0) is None
    assert topic.counts() == [1, 0, 0]


def test_after_a_record_that_did_not_fit_no_smaller_one_overtakes_it(records: ModuleType) -> None:
    topic = Topic(records, limit=200)
    topic.open.send(TOPIC, b"v", None, 0)
    assert topic.open.send(TOPIC, b"x" * 200, None, 0) is None
    assert topic.open.send(TOPIC, b"v", None, 0) is None


def test_where_no_batch_is_open_nothing_is_taken(records: ModuleType) -> None:
    topic = Topic(records)
    topic.batches.end(0)
    topic.batches.end(99)
    assert topic.open.send(TOPIC, b"v", None, 0) is None
    topic.batches.count = 1
    assert topic.open.send(TOPIC, b"v", None, 1) is None, "the topic was made again with fewer partitions"
    topic.topics.clear()
    topic.batches.begin(0, topic.builders[0])
    assert topic.open.send(TOPIC, b"v", None, 0) is None, "the topic is not open to senders"
    with pytest.raises(ValueError, match="-1"):
        topic.batches.begin(-1, topic.builders[0])


def test_a_topic_without_partitions_takes_nothing(records: ModuleType) -> None:
    topic = Topic(records, partitions=0)
    assert topic.open.send(TOPIC, b"v", b"k") is None


plain = st.none() | st.binary(max_size=40) | st.text(max_size=20)
header = st.tuples(st.text(max_size=3) | st.just("\ud800"), st.none() | st.binary(max_size=3) | st.text(max_size=2))
sends = st.tuples(
    st.just("send"),
    plain | st.just("\ud800"),
    plain,
    st.none() | st.integers(-1, 4),
    st.none() | st.integers(-1, 1 << 63),
    st.none() | st.lists(header, max_size=2),
)
appends = st.tuples(
    st.just("append"),
    st.none() | st.binary(max_size=40),
    st.none() | st.binary(max_size=40),
    st.none() | st.integers(0, 3),
    st.integers(0, 1 << 62),
    st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=3)), max_size=2),
)
changes = st.tuples(st.sampled_from(["begin", "end", "close", "stick", "count"]), st.integers(0, 3))


@given(st.lists(sends | appends | changes, max_size=60), st.integers(61, 400))
def test_both_twins_decide_and_write_the_same(steps: list[Any], limit: int) -> None:
    both = [Topic(twin(name), limit=limit) for name in ("native", "pure")]
    begun: list[list[Any]] = [list(topic.builders) for topic in both]
    for step in steps:
        outcomes = []
        for topic, made in zip(both, begun, strict=True):
            if step[0] in ("send", "append"):
                outcomes.append(_append(topic, step))
            else:
                _change(topic, made, limit, *step)
        assert len(set(outcomes)) <= 1, step
    for native, pure in zip(*begun, strict=True):
        assert [(f.record, f.topic) for f in native.futures] == [_as_native(f) for f in pure.futures]
        assert (native.count, native.size_bytes, native.closed) == (pure.count, pure.size_bytes, pure.closed)
        if native.count:
            assert native.build() == pure.build()


def _append(topic: Topic, step: Any) -> Any:
    form, value, key, partition, timestamp_ms, headers = step
    if form == "send" and timestamp_ms is None:
        timestamp_ms = 4  # each twin would read its own clock
    if form == "send":
        future = topic.open.send(TOPIC, value, key, partition, timestamp_ms, headers)
    else:
        future = topic.open.append(TOPIC, value, key, headers or None, value, key, partition, timestamp_ms)
    places = [index for index, builder in enumerate(topic.builders) if future in list(builder.futures)]
    return (future is None, *places)


def _change(topic: Topic, made: list[Any], limit: int, change: str, number: int) -> None:
    index = min(number, len(topic.builders) - 1)
    if change == "begin":
        topic.builders[index] = topic.records.RecordBatchBuilder(limit)
        made.append(topic.builders[index])
        topic.batches.begin(index, topic.builders[index])
    elif change == "end":
        topic.batches.end(index)
    elif change == "close":
        topic.builders[index].close()
    elif change == "stick":
        topic.batches.sticky = number - 1
    else:
        topic.batches.count = number


def _as_native(future: Any) -> Any:
    native = twin("native")
    record = future.record
    given = (record.topic, record.value, record.key, record.partition, record.timestamp_ms, record.headers)
    return native.ProducerRecord(*given), future.topic


def test_a_finalizer_that_sends_amid_a_send_divides_no_step(records: ModuleType) -> None:
    """Where the collector runs inside of `send`, before or after, what it appends is whole."""
    topic = Topic(records, partitions=1, limit=1 << 20)

    class Sends:
        def __init__(self, name: str) -> None:
            self.name, self.cycle = name, self

        def __del__(self) -> None:
            topic.open.send(TOPIC, self.name, None, 0, 1)

    before = gc.get_threshold()
    try:
        for threshold in range(1, 60):
            gc.set_threshold(threshold, 1, 1)
            for number in range(20):
                Sends(f"{threshold}/{number}, finalizer")
                topic.open.send(TOPIC, f"{threshold}/{number}, plain", None, 0, 1)
                topic.open.append(TOPIC, b"x", None, [("name", b"value")], f"{threshold}/{number}, headers", None, 0, 1)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    futures = list(topic.builders[0].futures)
    assert len(futures) == 59 * 20 * 3
    for future, stored in zip(futures, topic.stored(0), strict=True):
        assert stored.value.decode() == ("x" if "headers" in future.record.value else future.record.value)


class Traffic:
    """Threads that append to one partition as fast as they can, while another closes its batches all the time."""

    def __init__(self, records: ModuleType, per_thread: int) -> None:
        self.topic = Topic(records, partitions=1, limit=600)
        self.all = list(self.topic.builders)
        self._per_thread = per_thread
        self._lock = threading.Lock()
        self._done = threading.Event()

    def run(self, names: list[str]) -> None:
        closer = threading.Thread(target=self._close)
        threads = [threading.Thread(target=self._send, args=(name,)) for name in names]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for thread in (closer, *threads):
                thread.start()
            for thread in threads:
                thread.join()
            self._done.set()
            closer.join()
        finally:
            sys.setswitchinterval(interval)

    def _send(self, name: str) -> None:
        for number in range(self._per_thread):
            while self.topic.open.send(TOPIC, f"{name}:{number}", None, 0, 1) is None:
                self._begin_another()

    def _begin_another(self) -> None:
        with self._lock:
            if self.topic.builders[0].closed:
                self.topic.builders[0] = self.topic.records.RecordBatchBuilder(600)
                self.topic.batches.begin(0, self.topic.builders[0])
                self.all.append(self.topic.builders[0])

    def _close(self) -> None:
        while not self._done.is_set():
            self.topic.builders[0].close()


@pytest.mark.slow
def test_threads_that_append_while_batches_are_closed_keep_their_order_and_lose_nothing(records: ModuleType) -> None:
    traffic = Traffic(records, per_thread=10_000)
    names = ["a", "b", "c", "d"]
    traffic.run(names)
    seen: dict[str, list[int]] = {name: [] for name in names}
    for builder in traffic.all:
        if builder.count:
            (batch,) = records.iter_batches(builder.build())
            stored = batch.records()
            assert [record.offset for record in stored] == list(range(batch.count))
            values = [record.value.decode() for record in stored]
            assert values == [future.record.value for future in builder.futures], (
                "a record and its future belong together"
            )
            for value in values:
                name, _, number = value.partition(":")
                seen[name].append(int(number))
    assert len(traffic.all) > 50
    assert seen == {name: list(range(10_000)) for name in names}
