"""The producer against our own broker."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ottla.client import AdminClient, AsyncKafkaProducer, KafkaProducer, TopicPartition
from ottla.client.admin import OffsetSpec
from ottla.client.config import ClientConfig
from ottla.client.engine import Engine
from ottla.embedded import EmbeddedKafka
from ottla.errors import (
    BufferExhausted,
    ClientClosed,
    MessageTooLarge,
    NoAnswer,
    SendError,
    SerializationError,
    UnknownTopicOrPartition,
)
from ottla.send import SendFuture, gather

NewTopicFixture = Callable[..., str]


@pytest.fixture
def producer(bootstrap_servers: str) -> Iterator[KafkaProducer]:
    with KafkaProducer(bootstrap_servers=bootstrap_servers) as made:
        yield made


def cause(future: SendFuture) -> BaseException | None:
    error = future.exception(20)
    assert isinstance(error, SendError)
    return error.__cause__


def test_records_are_stored_in_order_and_each_future_knows_its_place(
    producer: KafkaProducer, new_topic: NewTopicFixture, admin: AdminClient
) -> None:
    topic = new_topic()
    futures = [producer.send(topic, b"%d" % number, timestamp_ms=1000 + number) for number in range(2000)]
    results = [future.result(20) for future in futures]
    assert [result.offset for result in results] == list(range(2000))
    assert results[7].timestamp_ms == 1007
    assert results[7].record.value == b"7"
    ends = admin.list_offsets({TopicPartition(topic, 0): OffsetSpec.LATEST})
    assert ends[TopicPartition(topic, 0)].offset == 2000


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_every_codec_is_taken_by_the_broker(bootstrap_servers: str, new_topic: NewTopicFixture, codec: str) -> None:
    topic = new_topic()
    with KafkaProducer(bootstrap_servers=bootstrap_servers, compression_type=codec) as producer:
        futures = [producer.send(topic, b"the same text again and again" * 5) for _ in range(200)]
        producer.flush(20)
        assert [future.result(0).offset for future in futures] == list(range(200))


@pytest.mark.parametrize("acks", [0, 1, "all"])
def test_every_kind_of_acknowledgement(
    bootstrap_servers: str, new_topic: NewTopicFixture, admin: AdminClient, acks: Any
) -> None:
    topic = new_topic()
    with KafkaProducer(bootstrap_servers=bootstrap_servers, acks=acks) as producer:
        result = producer.send(topic, b"x").result(20)
        assert result.offset == (-1 if acks == 0 else 0)
    place = TopicPartition(topic, 0)
    while admin.list_offsets({place: OffsetSpec.LATEST})[place].offset == 0:
        assert acks == 0, "an acknowledged record is there at once; only acks=0 may take a moment"


def test_text_models_and_headers_arrive_as_bytes(producer: KafkaProducer, new_topic: NewTopicFixture) -> None:
    topic = new_topic(4)
    result = producer.send(topic, {"id": 1}, key="k", headers={"source": "test"}).result(20)
    assert result.record.value == {"id": 1}
    assert result.metadata.serialized_value_size == len(b'{"id":1}')


def test_the_same_key_reaches_the_same_partition(producer: KafkaProducer, new_topic: NewTopicFixture) -> None:
    topic = new_topic(8)
    futures = [producer.send(topic, b"v", key="customer-1") for _ in range(50)]
    assert len({future.result(20).partition for future in futures}) == 1


def test_every_failure_reaches_the_future(producer: KafkaProducer, new_topic: NewTopicFixture) -> None:
    topic = new_topic(1, max_message_bytes=2000)
    assert isinstance(cause(producer.send(topic, object())), SerializationError)
    assert isinstance(cause(producer.send(topic, b"v", key=5)), SerializationError)
    assert isinstance(cause(producer.send(topic, "\ud800")), SerializationError)
    assert isinstance(cause(producer.send(topic, b"v", headers=[("h", 5)])), SerializationError)  # type: ignore[list-item]
    assert isinstance(cause(producer.send(topic, b"v", headers=[("\ud800", b"h")])), SerializationError)
    assert isinstance(cause(producer.send(topic, b"v", headers={"h": "\ud800"})), SerializationError)
    assert isinstance(cause(producer.send(topic, b"x" * 3000)), MessageTooLarge)
    assert isinstance(cause(producer.send(topic, b"x" * 2_000_000)), MessageTooLarge)
    assert producer.send(topic, b"the next one is not harmed").result(20).offset == 0


def test_wrong_use_is_raised_at_once(producer: KafkaProducer) -> None:
    for arguments, error in (
        ((b"topic", b"v"), TypeError),
        (("", b"v"), ValueError),
        (("t", b"v", None, "0"), TypeError),
        (("t", b"v", None, -1), ValueError),
        (("t", b"v", None, 0, 1.5), TypeError),
        (("t", b"v", None, 0, -5), ValueError),
    ):
        with pytest.raises(error):
            producer.send(*arguments)  # type: ignore[arg-type]


def test_a_batch_above_the_topics_limit_is_split_and_all_its_records_are_stored(
    bootstrap_servers: str, new_topic: NewTopicFixture
) -> None:
    topic = new_topic(1, max_message_bytes=2000)
    with KafkaProducer(bootstrap_servers=bootstrap_servers, linger_ms=200) as producer:
        futures = [producer.send(topic, b"x" * 150) for _ in range(60)]
        producer.flush(20)
        assert [future.result(0).offset for future in futures] == list(range(60))
        assert producer.metrics()["batches_split"] >= 1


def test_a_partition_that_does_not_exist_is_waited_for_and_then_named(
    bootstrap_servers: str, new_topic: NewTopicFixture, admin: AdminClient
) -> None:
    topic = new_topic(1)
    with KafkaProducer(bootstrap_servers=bootstrap_servers, max_block_ms=400) as producer:
        assert isinstance(cause(producer.send(topic, b"v", partition=5)), UnknownTopicOrPartition)
        waiting = producer.send(topic, b"v", partition=2)
        admin.create_partitions({topic: 3})
        assert waiting.result(20).partition == 2


def test_flush_waits_for_what_lingers(bootstrap_servers: str, new_topic: NewTopicFixture) -> None:
    topic = new_topic()
    with KafkaProducer(bootstrap_servers=bootstrap_servers, linger_ms=100_000, delivery_timeout_ms=200_000) as producer:
        future = producer.send(topic, b"v")
        producer.flush(20)
        assert future.done()


def test_many_threads_share_one_producer(producer: KafkaProducer, new_topic: NewTopicFixture) -> None:
    topic = new_topic(3)
    futures: list[list[SendFuture]] = [[] for _ in range(4)]

    def work(mine: list[SendFuture], partition: int) -> None:
        mine.extend(producer.send(topic, b"%d" % number, partition=partition) for number in range(500))

    threads = [threading.Thread(target=work, args=(futures[n], n % 3)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    producer.flush(20)
    for mine in futures:
        offsets = [future.result(0).offset for future in mine]
        assert offsets == sorted(offsets), "one thread's records of one partition keep their order"
    taken = [(f.result(0).partition, f.result(0).offset) for mine in futures for f in mine]
    assert len(set(taken)) == 2000


def test_a_thread_waits_for_memory_and_goes_on(bootstrap_servers: str, new_topic: NewTopicFixture) -> None:
    topic = new_topic()
    with KafkaProducer(bootstrap_servers=bootstrap_servers, buffer_memory=40_000, batch_size=8000) as producer:
        futures = [producer.send(topic, b"x" * 500) for _ in range(1000)]
        assert [future.result(20).offset for future in futures] == list(range(1000))
        assert producer.metrics()["waiting_senders"] == 0


@pytest.mark.slow
def test_without_room_in_time_the_record_fails_and_says_what_is_full() -> None:
    with EmbeddedKafka(topics={"t": 1}) as kafka:
        producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, buffer_memory=20_000, max_block_ms=1500)
        producer.send("t", b"v").result(20)
    futures = [producer.send("t", b"x" * 9000) for _ in range(3)]
    error = cause(futures[-1])
    assert isinstance(error, BufferExhausted)
    assert "20000" in str(error)
    producer.close(0)
    assert all(future.done() for future in futures)


def test_a_record_to_nowhere_expires() -> None:
    with KafkaProducer(bootstrap_servers="127.0.0.1:1", max_block_ms=50) as producer:
        error = cause(producer.send("t", b"v"))
    assert isinstance(error, NoAnswer)
    assert re.search(
        r"no metadata of topic 't' within 50 ms; the last attempt: .*127\.0\.0\.1:1.* cannot be reached", str(error)
    )


def test_callbacks_run_on_the_io_thread_and_may_send(producer: KafkaProducer, new_topic: NewTopicFixture) -> None:
    topic = new_topic()
    done = threading.Event()
    seen: list[Any] = []

    def again(result: Any) -> None:
        seen.append(threading.current_thread().name)
        producer.send(topic, b"second").add_callback(lambda later: (seen.append(later.offset), done.set()))

    producer.send(topic, b"first").add_callback(again)
    assert done.wait(20)
    assert seen == [producer.client_id, 1]


def test_closing_sends_what_waits_and_then_refuses(bootstrap_servers: str, new_topic: NewTopicFixture) -> None:
    topic = new_topic()
    producer = KafkaProducer(bootstrap_servers=bootstrap_servers, linger_ms=100_000, delivery_timeout_ms=200_000)
    future = producer.send(topic, b"v")
    producer.close(20)
    assert future.result(0).offset == 0
    producer.close(20)
    with pytest.raises(ClientClosed):
        producer.send(topic, b"v")


def test_closing_without_patience_fails_what_is_left() -> None:
    producer = KafkaProducer(bootstrap_servers="127.0.0.1:1")
    future = producer.send("t", b"v")
    producer.close(0)
    assert isinstance(cause(future), ClientClosed)


def test_closing_in_a_callback_does_not_hang(bootstrap_servers: str, new_topic: NewTopicFixture) -> None:
    topic = new_topic()
    producer = KafkaProducer(bootstrap_servers=bootstrap_servers)
    closed = threading.Event()
    producer.send(topic, b"v").add_callback(lambda result: (producer.close(), closed.set()))
    assert closed.wait(20)


def test_partitions_for_asks_the_brokers(producer: KafkaProducer, new_topic: NewTopicFixture) -> None:
    topic = new_topic(3)
    assert [partition.index for partition in producer.partitions_for(topic)] == [0, 1, 2]


def test_a_blocking_call_on_an_event_loop_names_the_async_form(
    producer: KafkaProducer, new_topic: NewTopicFixture
) -> None:
    topic = new_topic()

    async def scenario() -> None:
        with pytest.raises(RuntimeError, match="AsyncKafkaProducer"):
            producer.partitions_for(topic)
        assert (await producer.send(topic, b"send itself is for everybody")).offset == 0

    asyncio.run(scenario())


def test_the_async_face_does_the_same_awaited(bootstrap_servers: str, new_topic: NewTopicFixture) -> None:
    topic = new_topic(2)

    async def scenario() -> None:
        async with AsyncKafkaProducer(bootstrap_servers=bootstrap_servers) as producer:
            assert len(await producer.partitions_for(topic)) == 2
            futures = [producer.send(topic, b"v", partition=0) for _ in range(100)]
            await producer.flush(20)
            assert all(future.done() for future in futures)
            results = await gather([producer.send(topic, b"v", partition=1) for _ in range(100)])
            assert [result.offset for result in results] == list(range(100))

    asyncio.run(scenario())


def test_an_event_loop_is_never_blocked_by_a_full_buffer_and_room_is_awaited(
    bootstrap_servers: str, new_topic: NewTopicFixture
) -> None:
    topic = new_topic()

    async def scenario() -> None:
        async with AsyncKafkaProducer(
            bootstrap_servers=bootstrap_servers, buffer_memory=20_000, batch_size=4000
        ) as producer:
            stored = refused = 0
            while stored < 300:
                future = producer.send(topic, b"x" * 1000)
                if future.done() and isinstance(future.exception(0), SendError):
                    assert isinstance(cause(future), BufferExhausted)
                    refused += 1
                    await producer.room()
                else:
                    stored += 1
            await producer.flush(20)
            assert refused > 0

    asyncio.run(scenario())


def test_producers_and_admin_share_an_engine(bootstrap_servers: str, new_topic: NewTopicFixture) -> None:
    topic = new_topic()
    engine = Engine(ClientConfig(bootstrap_servers=bootstrap_servers))
    before = set(threading.enumerate())
    with (
        KafkaProducer(engine=engine) as first,
        KafkaProducer(engine=engine) as second,
        AdminClient(engine=engine) as admin,
    ):
        first.send(topic, b"1").result(20)
        second.send(topic, b"2").result(20)
        assert topic in admin.list_topics()
        # The embedded broker of these tests may have made its disk thread meanwhile.
        names = [thread.name for thread in set(threading.enumerate()) - before]
        assert [name for name in names if not name.startswith("ottla-disk")] == ["ottla-client"]
    assert not engine.is_closed, "a client does not close what is not its own"
    engine.close(5)


def test_unfinished_sends_are_flushed_at_interpreter_exit(
    bootstrap_servers: str, new_topic: NewTopicFixture, admin: AdminClient
) -> None:
    topic = new_topic()
    program = f"""
from ottla.client import KafkaProducer
producer = KafkaProducer(bootstrap_servers={bootstrap_servers!r}, linger_ms=50000)
for _ in range(10):
    producer.send({topic!r}, b"v")
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert admin.list_offsets({TopicPartition(topic, 0): OffsetSpec.LATEST})[TopicPartition(topic, 0)].offset == 10


class Order:
    """A callback that goes on when the test lets it, and notes when it returns."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.called, self.go_on = threading.Event(), threading.Event()

    def on_success(self, _: object) -> None:
        self.called.set()
        assert self.go_on.wait(20)
        self.events.append("callback")


def test_flush_returns_when_callbacks_have_returned(producer: KafkaProducer, new_topic: NewTopicFixture) -> None:
    order = Order()
    future = producer.send(new_topic(), b"v").add_callback(order.on_success)

    def flush() -> None:
        producer.flush(20)
        order.events.append("flush")

    thread = threading.Thread(target=flush)
    thread.start()
    assert order.called.wait(20)
    assert future.result(20).offset == 0, "it is stored, and its callback has not returned"
    second = threading.Thread(target=flush)
    second.start()  # this one finds nothing unfinished
    second.join(0.1)
    order.go_on.set()
    thread.join(20)
    second.join(20)
    assert order.events == ["callback", "flush", "flush"]


def test_an_awaited_flush_returns_when_callbacks_have_returned(
    bootstrap_servers: str, new_topic: NewTopicFixture
) -> None:
    order = Order()
    topic = new_topic()

    async def main() -> None:
        async with AsyncKafkaProducer(bootstrap_servers=bootstrap_servers) as producer:
            producer.send(topic, b"v").add_callback(order.on_success)
            flushing = asyncio.create_task(producer.flush(20))
            assert await asyncio.to_thread(order.called.wait, 20)
            await asyncio.wait([flushing], timeout=0.1)
            order.events.append("still flushing" if not flushing.done() else "flush")
            order.go_on.set()
            await flushing
            order.events.append("flush")

    asyncio.run(main())
    assert order.events == ["still flushing", "callback", "flush"]


def test_a_flush_gives_up_on_callbacks_that_do_not_return(producer: KafkaProducer, new_topic: NewTopicFixture) -> None:
    order = Order()
    producer.send(new_topic(), b"v").add_callback(order.on_success).result(20)
    assert order.called.wait(20)
    try:
        with pytest.raises(NoAnswer, match="callbacks did not return"):
            producer.flush(0.2)
    finally:
        order.go_on.set()


def test_a_callback_may_flush_what_is_done(producer: KafkaProducer, new_topic: NewTopicFixture) -> None:
    """It runs on the thread that calls back, and would wait for itself."""
    flushed = threading.Event()

    def on_success(_: object) -> None:
        producer.flush(20)
        flushed.set()

    producer.send(new_topic(), b"v").add_callback(on_success)
    assert flushed.wait(20)


@pytest.mark.slow
def test_many_threads_send_and_every_record_is_stored_once_and_in_its_threads_order(
    bootstrap_servers: str, new_topic: NewTopicFixture
) -> None:
    topic = new_topic(3)
    results: dict[str, list[SendFuture]] = {}

    with KafkaProducer(bootstrap_servers=bootstrap_servers, linger_ms=1, batch_size=2000) as producer:

        def send(name: str) -> None:
            results[name] = [producer.send(topic, f"{name}:{n}", partition=n % 3) for n in range(3000)]

        threads = [threading.Thread(target=send, args=(f"thread-{name}",)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        producer.flush(60)
        figures = producer.metrics()
        places = {
            name: [(future.result(0).partition, future.result(0).offset) for future in futures]
            for name, futures in results.items()
        }
    assert figures["buffer_available_bytes"] == figures["buffer_total_bytes"]
    assert figures["batches_unfinished"] == 0
    assert sorted(place for found in places.values() for place in found) == [
        (partition, offset) for partition in range(3) for offset in range(6000)
    ]
    for found in places.values():
        for partition in range(3):
            offsets = [offset for at, offset in found if at == partition]
            assert offsets == sorted(offsets)
