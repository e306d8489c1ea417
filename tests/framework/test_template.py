"""KafkaTemplate: Spring's ways of sending."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from ottla import ConsumerFactory, KafkaTemplate, Message, ProducerFactory, ProducerRecord, gather
from ottla.errors import ConfigError, SendError
from ottla.testing import wait_for


@pytest.fixture
def factory(kafka: Any) -> Iterator[ProducerFactory]:
    with ProducerFactory({"bootstrap.servers": kafka.bootstrap_servers}) as factory:
        yield factory


@pytest.fixture
def make_template(factory: ProducerFactory, kafka: Any) -> Callable[..., KafkaTemplate]:
    consumers = ConsumerFactory(bootstrap_servers=kafka.bootstrap_servers)
    return lambda **arguments: KafkaTemplate(factory, consumer_factory=consumers, **arguments)


def test_what_was_sent_can_be_received_by_its_place(make_template: Any, kafka_topic: str) -> None:
    template = make_template()
    result = template.send(kafka_topic, "value", key="key", headers={"h": "1"}).result(timeout=5)
    record = template.receive(kafka_topic, result.partition, result.offset)
    assert record is not None
    assert (record.key, record.value, list(record.headers)) == (b"key", b"value", [("h", b"1")])
    assert template.receive(kafka_topic, result.partition, result.offset + 1, timeout=0.2) is None


def test_receive_takes_an_absolute_offset(make_template: Any, kafka_topic: str) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        make_template().receive(kafka_topic, 0, -1)


def test_a_result_knows_record_and_metadata(make_template: Any, kafka_topic: str) -> None:
    record = ProducerRecord(kafka_topic, "value", key="key", partition=0, timestamp_ms=1234)
    result = make_template().send_record(record).result(timeout=5)
    assert result.record == record
    assert (result.topic, result.partition, result.timestamp_ms) == (kafka_topic, 0, 1234)
    assert result.metadata.offset == result.offset


def test_send_default_needs_a_default_topic(make_template: Any, kafka_topic: str) -> None:
    assert make_template(default_topic=kafka_topic).send_default("x").result(timeout=5).topic == kafka_topic
    with pytest.raises(ConfigError, match="default_topic"):
        make_template().send_default("x")


def test_a_message_says_all_about_its_sending(make_template: Any, kafka_topic: str) -> None:
    template = make_template(default_topic=kafka_topic)
    message = Message("value", key="key", headers={"h": b"1"}, topic=kafka_topic, partition=0)
    place = template.send(message).result(timeout=5)
    record = template.receive(kafka_topic, 0, place.offset)
    assert (record.key, record.value, list(record.headers)) == (b"key", b"value", [("h", b"1")])
    assert template.send(Message(None, key="key")).result(timeout=5).topic == kafka_topic
    with pytest.raises(ConfigError, match="default_topic"):
        make_template().send(Message("x"))
    with pytest.raises(TypeError, match="or a Message"):
        template.send(kafka_topic)
    with pytest.raises(TypeError, match="the message's own"):
        template.send(Message("x"), key="k")


def test_interceptors_may_replace_the_record_in_their_order(make_template: Any, kafka_topic: str) -> None:
    def shout(record: ProducerRecord) -> ProducerRecord:
        return replace(record, value=record.value.upper())

    def mark(record: ProducerRecord) -> ProducerRecord:
        return replace(record, value=record.value + "!")

    template = make_template(interceptors=[shout, mark])
    result = template.send(kafka_topic, "hello").result(timeout=5)
    received = template.receive(kafka_topic, result.partition, result.offset)
    assert received is not None
    assert received.value == b"HELLO!"


def test_listeners_of_a_template_hear_of_every_send(make_template: Any, kafka_topic: str) -> None:
    stored: list[Any] = []
    failed: list[Any] = []
    template = make_template(on_success=stored.append, on_error=failed.append)
    template.send(kafka_topic, "x")
    template.send(kafka_topic, object())
    wait_for(lambda: stored and failed)
    assert stored[0].topic == kafka_topic
    assert isinstance(failed[0], SendError)


def test_a_value_that_cannot_be_serialized_fails_the_future_with_the_record(
    make_template: Any, kafka_topic: str
) -> None:
    value = object()
    with pytest.raises(SendError) as caught:
        make_template().send(kafka_topic, value).result(timeout=5)
    assert caught.value.record.value is value
    assert caught.value.__cause__ is not None


def test_overrides_make_a_template_with_a_producer_of_its_own(make_template: Any, kafka_topic: str) -> None:
    template = make_template()
    other = template.with_overrides(
        value_serializer=lambda topic, headers, value: str(value).encode(), compression_type="gzip"
    )
    try:
        result = other.send(kafka_topic, 12.5).result(timeout=5)
        received = template.receive(kafka_topic, result.partition, result.offset)
        assert received is not None
        assert received.value == b"12.5"
    finally:
        other.close()


def test_after_a_reset_the_next_send_makes_a_new_producer(
    factory: ProducerFactory, make_template: Any, kafka_topic: str
) -> None:
    template = make_template()
    template.send(kafka_topic, "1").result(timeout=5)
    before = factory.producer()
    factory.reset()
    assert template.send(kafka_topic, "2").result(timeout=5).offset == 1
    assert factory.producer() is not before


def test_a_closed_factory_refuses_to_send(factory: ProducerFactory, make_template: Any, kafka_topic: str) -> None:
    factory.close()
    with pytest.raises(RuntimeError, match="closed"):
        make_template().send(kafka_topic, "x")


def test_sends_are_awaited_gathered_and_flushed_on_an_event_loop(make_template: Any, kafka_topic: str) -> None:
    template = make_template()

    async def main() -> None:
        first = await template.send(kafka_topic, "0")
        results = await gather([template.send(kafka_topic, str(number)) for number in range(1, 100)])
        assert [result.offset for result in (first, *results)] == list(range(100))
        future = template.send(kafka_topic, "x")
        await template.flush_async(timeout=5)
        assert future.done()
        await template.room()

    asyncio.run(main())


def test_blocking_on_an_event_loop_names_the_awaited_form(make_template: Any, kafka_topic: str) -> None:
    template = make_template()

    async def main() -> None:
        future = template.send(kafka_topic, "x")
        with pytest.raises(RuntimeError, match="await"):
            future.result(timeout=5)
        await future

    asyncio.run(main())
