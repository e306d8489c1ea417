"""Records as applications send and receive them, through our client, on either broker."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ottla.client import TopicPartition
from ottla.errors import MessageTooLarge, SendError
from ottla_wire.records import TimestampType, iter_batches

pytestmark = pytest.mark.every_version

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]


def read(consumer: Any, count: int, seconds: float = 20) -> list[Any]:
    found: list[Any] = []
    deadline = time.monotonic() + seconds
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} records within {seconds} s"
        found += consumer.poll(0.2)
    return found


@pytest.fixture
def read_all(make_consumer: Any) -> Any:
    """Read `count` records of a topic's partition 0 from its start."""

    def read_topic(name: str, count: int) -> list[Any]:
        consumer = make_consumer()
        consumer.assign([TopicPartition(name, 0)])
        return read(consumer, count)

    return read_topic


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_there_and_back(
    cluster: Any, make_topic: Any, make_producer: Any, read_all: Any, codec: str
) -> None:
    topic = make_topic()
    producer = make_producer(compression_type=codec)
    sent = [b"%d " % number * 40 for number in range(100)]
    futures = [producer.send(topic.name, value, key=b"k%d" % index) for index, value in enumerate(sent)]
    assert [future.result(20).offset for future in futures] == list(range(100))
    found = read_all(topic.name, 100)
    assert [(record.offset, record.key, record.value) for record in found] == [
        (index, b"k%d" % index, value) for index, value in enumerate(sent)
    ]
    stored = {batch.compression.name.lower() for batch in iter_batches(topic.fetch_one(0).records)}
    assert stored == {codec}


@pytest.mark.parametrize("codec", ["uncompressed", "gzip", "snappy", "lz4", "zstd"])
def test_a_topic_with_a_codec_of_its_own_stores_what_comes_in_that_one(
    make_topic: Any, make_producer: Any, read_all: Any, codec: str
) -> None:
    topic = make_topic(compression_type=codec)
    for number, sent in enumerate(("none", "lz4")):
        value = b"%d" % number * 500
        make_producer(compression_type=sent).send(topic.name, value).result(20)
    stored = {batch.compression.name.lower() for batch in iter_batches(topic.fetch_one(0).records)}
    assert stored == {"none" if codec == "uncompressed" else codec}
    assert [record.value for record in read_all(topic.name, 2)] == [b"0" * 500, b"1" * 500]


def test_headers_null_keys_tombstones_and_empty_values(make_topic: Any, make_producer: Any, read_all: Any) -> None:
    topic = make_topic()
    producer = make_producer()
    headers = [("a", b"1"), ("a", b"2"), ("nothing", None), ("empty", b""), ("grüße", "ü".encode())]
    for key, value, with_headers in (
        (b"k", b"v", headers),
        (None, b"v", None),
        (b"k", None, None),
        (None, None, None),
        (b"", b"", None),
    ):
        producer.send(topic.name, value, key=key, headers=with_headers).result(20)
    found = read_all(topic.name, 5)
    assert [(record.key, record.value) for record in found] == [
        (b"k", b"v"),
        (None, b"v"),
        (b"k", None),
        (None, None),
        (b"", b""),
    ]
    assert [tuple(header) for header in found[0].headers] == headers
    assert [list(record.headers) for record in found[1:]] == [[], [], [], []]


def test_timestamps_are_the_senders(make_topic: Any, make_producer: Any, read_all: Any) -> None:
    topic = make_topic()
    producer = make_producer()
    result = producer.send(topic.name, b"a", timestamp_ms=1_600_000_000_123).result(20)
    before = int(time.time() * 1000)
    producer.send(topic.name, b"b").result(20)
    first, second = read_all(topic.name, 2)
    assert (result.timestamp_ms, first.timestamp_ms) == (1_600_000_000_123, 1_600_000_000_123)
    assert first.timestamp_type == TimestampType.CREATE_TIME
    assert before <= second.timestamp_ms <= int(time.time() * 1000)


def test_timestamps_are_the_brokers_where_the_topic_says_so(make_topic: Any, make_producer: Any, read_all: Any) -> None:
    topic = make_topic(message_timestamp_type="LogAppendTime")
    result = make_producer().send(topic.name, b"a", timestamp_ms=1_600_000_000_123).result(20)
    (found,) = read_all(topic.name, 1)
    assert found.timestamp_type == TimestampType.LOG_APPEND_TIME
    assert result.timestamp_ms == found.timestamp_ms > 1_600_000_000_123


@pytest.mark.parametrize("acks", [0, 1, "all"])
def test_every_kind_of_acknowledgement(make_topic: Any, make_producer: Any, read_all: Any, acks: Any) -> None:
    topic = make_topic()
    producer = make_producer(acks=acks)
    offsets = [producer.send(topic.name, b"%d" % number).result(20).offset for number in range(3)]
    assert offsets == ([-1, -1, -1] if acks == 0 else [0, 1, 2])
    assert [record.value for record in read_all(topic.name, 3)] == [b"0", b"1", b"2"]


def test_a_record_too_large_for_the_topic_fails_alone(make_topic: Any, make_producer: Any, read_all: Any) -> None:
    topic = make_topic(max_message_bytes="1000")
    producer = make_producer()
    refused = producer.send(topic.name, b"x" * 2_000)
    with pytest.raises(SendError) as caught:
        refused.result(20)
    assert isinstance(caught.value.__cause__, MessageTooLarge)
    assert producer.send(topic.name, b"small").result(20).offset == 0
    assert [record.value for record in read_all(topic.name, 1)] == [b"small"]


def test_batches_that_are_in_flight_together_are_stored_once_and_in_order(
    make_topic: Any, make_producer: Any, read_all: Any
) -> None:
    topic = make_topic()
    producer = make_producer(batch_size=1_000)
    sent = [b"%d" % number for number in range(3_000)]
    futures = [producer.send(topic.name, value) for value in sent]
    assert [future.result(20).offset for future in futures] == list(range(3_000))
    assert [record.value for record in read_all(topic.name, 3_000)] == sent
    stored = list(iter_batches(topic.fetch_one(0).records))
    assert len(stored) > 10
    assert {(batch.producer_id == stored[0].producer_id >= 0, batch.producer_epoch) for batch in stored} == {(True, 0)}
    assert [batch.base_sequence for batch in stored] == [batch.base_offset for batch in stored]


def test_keys_keep_their_partition(make_topic: Any, make_producer: Any, make_consumer: Any) -> None:
    topic = make_topic(4)
    producer = make_producer()
    sent = [producer.send(topic.name, b"v", key=b"key-%d" % (number % 10)) for number in range(60)]
    homes = {(future.result(20).record.key, future.result(20).partition) for future in sent}
    assert len(homes) == 10
    consumer = make_consumer()
    consumer.assign([TopicPartition(topic.name, index) for index in range(4)])
    assert {(record.key, record.partition) for record in read(consumer, 60)} == homes


def test_a_megabyte_in_one_record(make_topic: Any, make_producer: Any, read_all: Any) -> None:
    topic = make_topic()
    value = bytes(range(256)) * 4_000
    make_producer().send(topic.name, value).result(20)
    (found,) = read_all(topic.name, 1)
    assert found.value == value
