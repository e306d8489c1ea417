"""Reading without a group, against a broker of our own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from ottla.client import AsyncKafkaConsumer, KafkaConsumer, KafkaProducer, TopicPartition
from ottla.client.topic_partition import OffsetAndMetadata, OffsetAndTimestamp
from ottla.errors import (
    ClientClosed,
    ConcurrentUse,
    ConfigError,
    InvalidGroupId,
    NoOffsetForPartition,
    OffsetsOutOfRange,
    UnknownTopicOrPartition,
    WakeupError,
)
from ottla_wire.records import ConsumerRecord

NewTopic = Callable[..., str]


def fill(producer: KafkaProducer, topic: str, count: int, partition: int = 0, first: int = 0) -> None:
    futures = [
        producer.send(topic, b"v%d" % number, key=b"k", partition=partition, timestamp_ms=1_000 + number)
        for number in range(first, first + count)
    ]
    futures[-1].result(10)


def read(consumer: KafkaConsumer, count: int, seconds: float = 20.0) -> list[ConsumerRecord]:
    """Poll until there are so many records."""
    deadline = time.monotonic() + seconds
    records: list[ConsumerRecord] = []
    while len(records) < count and time.monotonic() < deadline:
        records += consumer.poll(0.5)
    return records


def assigned(broker: str, topic: str, partitions: int = 1, **settings: object) -> KafkaConsumer:
    consumer = KafkaConsumer(bootstrap_servers=broker, **{"auto_offset_reset": "earliest", **settings})
    consumer.assign([TopicPartition(topic, number) for number in range(partitions)])
    return consumer


def test_records_of_all_partitions_are_read_in_the_order_of_each(
    broker: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = new_topic(3)
    for partition in range(3):
        fill(producer, topic, 40, partition)
    with assigned(broker, topic, 3) as consumer:
        records = read(consumer, 120)
        for partition in range(3):
            mine = [(r.offset, r.key, r.value, r.timestamp_ms) for r in records if r.partition == partition]
            assert mine == [(n, b"k", b"v%d" % n, 1_000 + n) for n in range(40)]
            assert consumer.position(TopicPartition(topic, partition)) == 40
            assert consumer.current_lag(TopicPartition(topic, partition)) == 0


def test_a_poll_returns_no_more_than_it_is_asked_for(broker: str, new_topic: NewTopic, producer: KafkaProducer) -> None:
    topic = new_topic()
    fill(producer, topic, 25)
    with assigned(broker, topic, max_poll_records=10) as consumer:
        sizes = []
        while sum(sizes) < 25:
            sizes.append(len(consumer.poll(5)))
        assert max(sizes) <= 10
        consumer.seek_to_beginning()
        assert len(consumer.poll(5, max_records=3)) == 3


def test_a_waiting_poll_is_woken_by_the_next_record(broker: str, new_topic: NewTopic, producer: KafkaProducer) -> None:
    topic = new_topic()
    with assigned(broker, topic) as consumer:
        assert consumer.poll(0.3) == []
        timer = threading.Timer(0.3, fill, (producer, topic, 1))
        timer.start()
        assert [record.offset for record in consumer.poll(30)] == [0]
        timer.join()


def test_a_poll_without_time_never_waits(broker: str, new_topic: NewTopic) -> None:
    with assigned(broker, new_topic()) as consumer:
        assert consumer.poll(0) == []


def test_seeking_goes_anywhere_and_drops_what_was_fetched(
    broker: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = new_topic()
    fill(producer, topic, 100)
    partition = TopicPartition(topic, 0)
    with assigned(broker, topic) as consumer:
        consumer.poll(10, max_records=5)
        consumer.seek(partition, 60)
        assert consumer.poll(10, max_records=1)[0].offset == 60
        consumer.seek(partition, OffsetAndMetadata(10))
        assert consumer.poll(10, max_records=1)[0].offset == 10
        consumer.seek_to_end([partition])
        assert consumer.position(partition) == 100
        assert consumer.poll(0.2) == []
        consumer.seek_to_beginning([partition])
        assert consumer.position(partition) == 0
        with pytest.raises(ValueError, match="not assigned"):
            consumer.seek(TopicPartition(topic, 7), 0)
        with pytest.raises(ValueError, match="negative"):
            consumer.seek(partition, -1)


def test_latest_begins_behind_what_is_there(broker: str, new_topic: NewTopic, producer: KafkaProducer) -> None:
    topic = new_topic()
    fill(producer, topic, 5)
    with assigned(broker, topic, auto_offset_reset="latest") as consumer:
        assert consumer.position(TopicPartition(topic, 0)) == 5
        fill(producer, topic, 1, first=5)
        assert [record.value for record in read(consumer, 1)] == [b"v5"]


def test_by_duration_begins_so_far_back_or_at_the_end(
    broker: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = new_topic()
    fill(producer, topic, 5)
    producer.send(topic, b"young").result(10)
    with assigned(broker, topic, auto_offset_reset="by_duration:PT1H") as consumer:
        assert consumer.position(TopicPartition(topic, 0)) == 5
    old = new_topic()
    fill(producer, old, 5)
    with assigned(broker, old, auto_offset_reset="by_duration:PT1H") as consumer:
        assert consumer.position(TopicPartition(old, 0)) == 5


def test_without_a_policy_the_application_has_to_decide_where_to_begin(
    broker: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = new_topic()
    fill(producer, topic, 5)
    partition = TopicPartition(topic, 0)
    with assigned(broker, topic, auto_offset_reset="none") as consumer:
        for _ in range(2):
            with pytest.raises(NoOffsetForPartition) as caught:
                consumer.poll(10)
            assert caught.value.partitions == (partition,)
        consumer.seek(partition, 3)
        assert [record.offset for record in read(consumer, 2)] == [3, 4]
        consumer.seek(partition, 1_000)
        with pytest.raises(OffsetsOutOfRange) as out_of_range:
            read(consumer, 1)
        assert out_of_range.value.positions == {partition: 1_000}


def test_an_offset_out_of_range_goes_by_the_policy(broker: str, new_topic: NewTopic, producer: KafkaProducer) -> None:
    topic = new_topic()
    fill(producer, topic, 5)
    with assigned(broker, topic) as consumer:
        consumer.seek(TopicPartition(topic, 0), 1_000)
        assert [record.offset for record in read(consumer, 5)] == [0, 1, 2, 3, 4]


def test_paused_partitions_are_kept_back_and_go_on_where_they_were(
    broker: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = new_topic(2)
    fill(producer, topic, 20, 0)
    fill(producer, topic, 20, 1)
    first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
    with assigned(broker, topic, 2) as consumer:
        consumer.pause([first])
        assert consumer.paused() == [first]
        assert {record.partition for record in read(consumer, 20)} == {1}
        assert consumer.poll(0.2) == []
        consumer.resume([first])
        consumer.pause([second])
        assert [record.offset for record in read(consumer, 20)] == list(range(20))


def test_offsets_are_found_by_time_and_at_both_ends(broker: str, new_topic: NewTopic, producer: KafkaProducer) -> None:
    topic = new_topic(2)
    fill(producer, topic, 10)
    here, empty = TopicPartition(topic, 0), TopicPartition(topic, 1)
    with KafkaConsumer(bootstrap_servers=broker) as consumer:
        assert consumer.beginning_offsets([here, empty]) == {here: 0, empty: 0}
        assert consumer.end_offsets([here, empty]) == {here: 10, empty: 0}
        found = consumer.offsets_for_times({here: 1_004, empty: 1_004})
        assert found == {here: OffsetAndTimestamp(4, 1_004, 0), empty: None}
        assert consumer.offsets_for_times({here: 5_000}) == {here: None}
        assert [partition.index for partition in consumer.partitions_for(topic)] == [0, 1]
        with pytest.raises(UnknownTopicOrPartition, match="has 2 partitions"):
            consumer.end_offsets([TopicPartition(topic, 9)])
        with pytest.raises(ValueError, match="not negative"):
            consumer.offsets_for_times({here: -1})


def test_iterating_moves_the_position_with_each_record(
    broker: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = new_topic()
    fill(producer, topic, 10)
    partition = TopicPartition(topic, 0)
    with assigned(broker, topic) as consumer:
        for record in consumer:
            assert consumer.position(partition) == record.offset + 1
            if record.offset == 3:
                break
        assert consumer.position(partition) == 4
        for record in consumer:
            if record.offset == 9:
                consumer.close()
        assert record.offset == 9


def test_whatever_polls_while_a_loop_iterates_begins_with_what_the_loop_has_not_handed_out(
    broker: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = new_topic(2)
    fill(producer, topic, 10)
    fill(producer, topic, 10, 1)
    with assigned(broker, topic, 2) as consumer:
        seen: list[tuple[int, int]] = []
        for record in consumer:
            seen.append((record.partition, record.offset))
            if len(seen) == 3:
                seen += [(other.partition, other.offset) for other in consumer.poll(10, max_records=4)]
            if len(seen) >= 20:
                break
        for partition in (0, 1):
            assert [offset for number, offset in seen if number == partition] == list(range(10))


def test_a_seek_inside_a_loop_takes_effect_with_the_next_record(
    broker: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = new_topic()
    fill(producer, topic, 10)
    with assigned(broker, topic) as consumer:
        seen = []
        for record in consumer:
            seen.append(record.offset)
            if seen == [0, 1]:
                consumer.seek(TopicPartition(topic, 0), 8)
            if record.offset == 9:
                break
        assert seen == [0, 1, 8, 9]


def test_deserializers_replace_keys_and_values(broker: str, new_topic: NewTopic, producer: KafkaProducer) -> None:
    topic = new_topic()
    fill(producer, topic, 3)
    with assigned(broker, topic, value_deserializer=lambda topic, headers, data: data.decode()) as consumer:
        assert [(record.key, record.value) for record in read(consumer, 3)] == [(b"k", f"v{n}") for n in range(3)]


def test_a_batch_larger_than_the_fetch_limits_is_read_all_the_same(
    broker: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = new_topic(2)
    producer.send(topic, b"x" * 500_000, partition=0).result(10)
    fill(producer, topic, 3, 1)
    with assigned(broker, topic, 2, max_partition_fetch_bytes=1_000, fetch_max_bytes=1_000) as consumer:
        assert sorted((record.partition, record.offset) for record in read(consumer, 4)) == [
            (0, 0), (1, 0), (1, 1), (1, 2),
        ]  # fmt: skip


def test_wakeup_ends_the_poll_that_waits_or_the_next_one(broker: str, new_topic: NewTopic) -> None:
    with assigned(broker, new_topic()) as consumer:
        timer = threading.Timer(0.2, consumer.wakeup)
        timer.start()
        with pytest.raises(WakeupError):
            consumer.poll(30)
        timer.join()
        consumer.wakeup()
        with pytest.raises(WakeupError):
            consumer.poll(0)
        assert consumer.poll(0) == []


def test_a_second_thread_is_refused_while_the_first_polls(broker: str, new_topic: NewTopic) -> None:
    with assigned(broker, new_topic()) as consumer:
        caught: list[BaseException] = []

        def intrude() -> None:
            try:
                consumer.poll(0)
            except ConcurrentUse as error:
                caught.append(error)
            consumer.wakeup()

        timer = threading.Timer(0.2, intrude)
        timer.start()
        with pytest.raises(WakeupError):
            consumer.poll(30)
        timer.join()
        assert len(caught) == 1


def test_a_topic_that_is_made_later_is_read_when_it_is_there(
    broker: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = f"later-{time.monotonic_ns()}"
    with assigned(broker, topic, allow_auto_create_topics=False) as consumer:
        assert consumer.poll(0.3) == []
        new_topic(1, topic)
        fill(producer, topic, 2)
        assert len(read(consumer, 2)) == 2


def test_a_closed_consumer_refuses_everything_and_closes_twice(broker: str, new_topic: NewTopic) -> None:
    consumer = assigned(broker, new_topic())
    consumer.close()
    consumer.close()
    with pytest.raises(ClientClosed):
        consumer.poll(0)
    with pytest.raises(ClientClosed):
        consumer.assign([])


def test_wrong_use_is_told_what_to_do(broker: str) -> None:
    with KafkaConsumer(bootstrap_servers=broker) as consumer:
        with pytest.raises(ValueError, match="subscribe"):
            consumer.poll(0)
        with pytest.raises(InvalidGroupId, match="group_id"):
            consumer.subscribe(["a"])
        consumer.assign([TopicPartition("a", 0)])
        with pytest.raises(InvalidGroupId, match="group_id"):
            consumer.commit({TopicPartition("a", 0): OffsetAndMetadata(1)})
        with pytest.raises(ValueError, match="max_records"):
            consumer.poll(0, max_records=0)
    with pytest.raises(ConfigError, match="KIP-848"):
        KafkaConsumer(bootstrap_servers=broker, group_protocol="consumer")
    with pytest.raises(ConfigError, match="earliest"):
        KafkaConsumer(bootstrap_servers=broker, auto_offset_reset="by_duration:soon")


def test_blocking_calls_on_a_thread_with_an_event_loop_name_the_async_form(broker: str, new_topic: NewTopic) -> None:
    consumer = assigned(broker, new_topic())

    async def misuse() -> None:
        with pytest.raises(RuntimeError, match=r"AsyncKafkaConsumer and `await consumer\.poll\(\)`"):
            consumer.poll(0)

    asyncio.run(misuse())
    consumer.close()


def test_the_async_face_reads_seeks_and_iterates(broker: str, new_topic: NewTopic, producer: KafkaProducer) -> None:
    topic = new_topic()
    fill(producer, topic, 10)
    partition = TopicPartition(topic, 0)

    async def run() -> None:
        async with AsyncKafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest") as consumer:
            consumer.assign([partition])
            assert await consumer.end_offsets([partition]) == {partition: 10}
            records = await consumer.poll(10, max_records=4)
            assert [record.offset for record in records] == [0, 1, 2, 3]
            consumer.seek(partition, 8)
            seen = []
            async for record in consumer:
                seen.append(record.offset)
                if record.offset == 9:
                    break
            assert seen == [8, 9]
            assert await consumer.position(partition) == 10
            waiting = asyncio.create_task(consumer.poll(30))
            await asyncio.sleep(0.1)
            with pytest.raises(ConcurrentUse):
                await consumer.poll(0)
            consumer.wakeup()
            with pytest.raises(WakeupError):
                await waiting

    asyncio.run(run())


def test_a_cancelled_poll_leaves_the_consumer_as_it_was(
    broker: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = new_topic()

    async def run() -> None:
        async with AsyncKafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest") as consumer:
            consumer.assign([TopicPartition(topic, 0)])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await consumer.poll(30)
            producer.send(topic, b"x", partition=0)
            assert [record.value for record in await consumer.poll(10)] == [b"x"]

    asyncio.run(run())
