"""Replies: what a listener returns is sent on, and its record is done when that is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from ottla import AckMode, ConsumerRecord, ErrorHandler, Message, SendFuture
from ottla.errors import BufferExhausted, ConversionError
from ottla.listeners.replies import Replies
from ottla_wire.records.sending import complete_batch, fail_futures
from support.listener_driver import ORDERS, drive


class Receipt(BaseModel):
    id: int


class NotedTemplate:
    """Takes sends and keeps them; each is stored at once, unless a failure was put in `failures`."""

    def __init__(self, *failures: BaseException | None) -> None:
        self.sent: list[dict[str, Any]] = []
        self.failures = list(failures)
        self.in_transaction = False
        self.rooms = 0

    def send(self, topic: str, value: Any, *, key: Any, partition: int | None, headers: Any) -> SendFuture:
        self.sent.append({"topic": topic, "value": value, "key": key, "partition": partition, "headers": headers})
        future = SendFuture(topic, value, key, partition, None, headers)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            fail_futures([future], failure)
        else:
            complete(future, topic, partition or 0)
        return future

    async def room(self) -> None:
        self.rooms += 1

    @property
    def values(self) -> list[Any]:
        return [one["value"] for one in self.sent]


def complete(future: SendFuture, topic: str, partition: int) -> None:
    complete_batch([future], topic, partition, 0, -1)


def reply(listener: Any, *records: Any, to: Any = "replies", template: NotedTemplate | None = None, **more: Any) -> Any:
    template = template or NotedTemplate()
    consumer = drive(
        listener,
        list(records),
        ack=more.pop("ack", AckMode.BATCH),
        replies=Replies(template, to),
        **more,  # type: ignore[arg-type]
    )
    return template, consumer


def test_what_the_listener_returns_is_sent_with_the_key_of_its_record(make_record: Any) -> None:
    def listener(value: bytes) -> Receipt:
        return Receipt(id=int(value))

    template, consumer = reply(listener, make_record(0, value=b"7", key=b"k"))
    assert template.sent == [
        {"topic": "replies", "value": Receipt(id=7), "key": b"k", "partition": None, "headers": []}
    ]
    assert consumer.commits == [{ORDERS: 1}]


def test_none_sends_nothing_and_a_message_with_none_a_tombstone(make_record: Any) -> None:
    def listener(value: bytes) -> Any:
        return None if value == b"nothing" else Message(None, key="gone")

    template, _ = reply(listener, make_record(0, value=b"nothing"), make_record(1, value=b"tombstone"))
    assert [(one["value"], one["key"]) for one in template.sent] == [(None, "gone")]


def test_lists_tuples_and_what_is_yielded_are_sent_one_by_one(make_record: Any) -> None:
    def listed(value: bytes) -> list[str | None]:
        return ["a", None, "b"]

    def pair(value: bytes) -> tuple[str, str]:
        return "a", "b"

    def yielded(value: bytes) -> Iterator[str]:
        yield "a"
        yield "b"

    for listener in (listed, pair, yielded):
        assert reply(listener, make_record(0))[0].values == ["a", "b"]


def test_a_message_says_where_to_and_may_hold_a_list(make_record: Any) -> None:
    def listener(value: bytes) -> Message[Any]:
        return Message([1, 2], key="k", headers={"h": b"1"}, topic="elsewhere", partition=3)

    template, _ = reply(listener, make_record(0))
    assert template.sent == [
        {"topic": "elsewhere", "value": [1, 2], "key": "k", "partition": 3, "headers": [("h", b"1")]}
    ]


def test_a_request_names_topic_partition_and_correlation_of_its_reply(make_record: Any) -> None:
    headers = [
        ("kafka_replyTopic", b"answers"),
        ("kafka_replyPartition", (5).to_bytes(4, "big")),
        ("kafka_correlationId", b"\x00\x01"),
        ("other", b"x"),
    ]
    template, _ = reply(lambda value: "yes", make_record(0, headers=headers), to=True)
    assert template.sent[0] | {"key": None} == {
        "topic": "answers",
        "value": "yes",
        "key": None,
        "partition": 5,
        "headers": [("kafka_correlationId", b"\x00\x01")],
    }


def test_a_request_that_names_no_topic_is_an_error_that_no_delivery_can_mend(make_record: Any) -> None:
    errors: list[BaseException] = []
    handler = ErrorHandler(recover=lambda record, error: errors.append(error))
    reply(lambda value: "yes", make_record(3), to=True, errors=handler)
    assert isinstance(errors[0], ConversionError)
    assert "orders-0@3" in str(errors[0])
    assert "kafka_replyTopic" in str(errors[0])


def test_a_function_chooses_the_topic_by_request_and_result(make_record: Any) -> None:
    def to(request: ConsumerRecord, result: str) -> str:
        return f"{request.topic}-{result}"

    template, _ = reply(
        lambda value: value.decode(), make_record(0, value=b"big"), make_record(1, value=b"small"), to=to
    )
    assert [one["topic"] for one in template.sent] == ["orders-big", "orders-small"]


def test_the_replies_of_a_batch_are_the_items_of_what_it_returns(make_record: Any) -> None:
    def listener(values: list[bytes]) -> list[str]:
        return [value.decode() for value in values]

    template, consumer = reply(listener, make_record(0, value=b"a", key=b"k"), make_record(1, value=b"b"))
    assert [(one["value"], one["key"]) for one in template.sent] == [("a", None), ("b", None)]
    assert consumer.commits == [{ORDERS: 2}]


def test_a_record_whose_reply_is_not_stored_is_delivered_again(make_record: Any) -> None:
    template = NotedTemplate(None, LookupError("the topic is full"))
    _, consumer = reply(
        lambda value: value.decode(), *(make_record(n, value=b"%d" % n) for n in range(3)), template=template
    )
    assert template.values == ["0", "1", "2", "1", "2"]
    assert consumer.commits[0] == {ORDERS: 1}
    assert consumer.commits[-1] == {ORDERS: 3}


def test_what_was_replied_before_a_failure_must_be_stored_as_well(make_record: Any) -> None:
    def listener(value: bytes) -> str:
        if value == b"1" and not template.failures and len(template.sent) == 1:
            raise ZeroDivisionError
        return value.decode()

    template = NotedTemplate(LookupError("no"))
    _, consumer = reply(listener, make_record(0, value=b"0"), make_record(1, value=b"1"), template=template)
    assert template.values == ["0", "0", "1"]
    assert consumer.commits[-1] == {ORDERS: 2}


def test_in_a_transaction_the_commit_waits_for_the_replies_and_not_the_listener(make_record: Any) -> None:
    template = NotedTemplate(LookupError("no"))
    template.in_transaction = True
    _, consumer = reply(lambda value: "yes", make_record(0), template=template)
    assert template.values == ["yes"]
    assert consumer.commits == [{ORDERS: 1}]


def test_an_async_listener_waits_for_room_in_the_send_buffer(make_record: Any) -> None:
    async def listener(value: bytes) -> str:
        await asyncio.sleep(0)
        return "yes"

    template = NotedTemplate(BufferExhausted("full"))
    _, consumer = reply(listener, make_record(0), template=template)
    assert template.rooms == 1
    assert template.values == ["yes", "yes"]
    assert consumer.commits == [{ORDERS: 1}]
