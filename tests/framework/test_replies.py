"""Replies and interceptors of an application on a broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from ottla import ConsumerRecord, ErrorHandler, Header, Key, Ottla, RecordInterceptor, Retry
from ottla.errors import ConfigError
from ottla.testing import wait_for


class Order(BaseModel):
    id: int


class Invoice(BaseModel):
    order: int


@pytest.fixture
def make_app(kafka: Any) -> Callable[..., Ottla]:
    return lambda **arguments: Ottla(kafka.bootstrap_servers, name="test", **arguments)


def test_what_a_listener_returns_reaches_the_listener_of_the_reply_topic(make_app: Any, kafka_topic: str) -> None:
    app, seen = make_app(), []

    @app.listener(kafka_topic, reply_to=f"{kafka_topic}-invoices")
    def bill(order: Order) -> Invoice:
        return Invoice(order=order.id)

    @app.listener(f"{kafka_topic}-invoices")
    def note(invoice: Invoice, key: Annotated[str, Key]) -> None:
        seen.append((invoice.order, key))

    with app:
        for number in range(20):
            app.template.send(kafka_topic, Order(id=number), key=f"k{number}")
        wait_for(lambda: len(seen) == 20)
    assert sorted(seen) == sorted((number, f"k{number}") for number in range(20))


def test_an_async_listener_answers_where_the_request_says(make_app: Any, kafka_topic: str) -> None:
    app, seen = make_app(), []

    @app.listener(kafka_topic, reply_to=True)
    async def add(numbers: str) -> str:
        return str(sum(map(int, numbers.split())))

    @app.listener(f"{kafka_topic}-answers")
    def note(answer: str, correlation: Annotated[bytes, Header("kafka_correlationId")]) -> None:
        seen.append((answer, correlation))

    with app:
        headers = {"kafka_replyTopic": f"{kafka_topic}-answers", "kafka_correlationId": b"\x07"}
        app.template.send(kafka_topic, "1 2 3", headers=headers)
        wait_for(lambda: seen)
    assert seen == [("6", b"\x07")]


def test_of_a_transactional_listener_each_reply_is_committed_once(make_app: Any, kafka_topic: str) -> None:
    app, seen, failures = make_app(), [], iter([True])

    @app.listener(
        kafka_topic,
        transactional=True,
        reply_to=f"{kafka_topic}-out",
        on_error=ErrorHandler(retry=Retry.fixed(0, attempts=3)),
    )
    def double(number: int) -> int:
        if number == 2 and next(failures, False):
            raise ZeroDivisionError
        return number * 2

    @app.listener(f"{kafka_topic}-out")
    def note(number: int) -> None:
        seen.append(number)

    with app:
        for number in range(4):
            app.template.send(kafka_topic, str(number), partition=0)
        wait_for(lambda: len(seen) >= 4)
    assert sorted(seen) == [0, 2, 4, 6]


class Counting(RecordInterceptor):
    def __init__(self) -> None:
        self.topics: list[str] = []

    def success(self, record: ConsumerRecord, consumer: Any) -> None:
        self.topics.append(record.topic)


def test_an_applications_interceptors_surround_all_its_listeners(make_app: Any, kafka_topic: str) -> None:
    app, everywhere, here = make_app(), Counting(), Counting()
    app.interceptors.append(everywhere)

    @app.listener(kafka_topic, reply_to=f"{kafka_topic}-out", interceptors=[here])
    def double(number: int) -> int:
        return number * 2

    @app.listener(f"{kafka_topic}-out")
    def note(numbers: list[int]) -> None: ...

    @app.listener(f"{kafka_topic}-out", group=f"{kafka_topic}-one")
    def note_one(number: int) -> None: ...

    with app:
        app.template.send(kafka_topic, "4")
        wait_for(lambda: len(everywhere.topics) == 2)
    assert everywhere.topics == [kafka_topic, f"{kafka_topic}-out"]
    assert here.topics == [kafka_topic]


def test_an_interceptor_of_the_other_kind_is_refused_at_start(make_app: Any, kafka_topic: str) -> None:
    app = make_app()

    @app.listener(kafka_topic, interceptors=[Counting()])
    def note(numbers: list[int]) -> None: ...

    with pytest.raises(ConfigError, match="BatchInterceptor"):
        app.start()


def test_a_generator_without_a_reply_topic_and_an_async_one_are_refused_at_start(
    make_app: Any, kafka_topic: str
) -> None:
    def plain(number: int) -> Any:
        yield number

    async def waiting(number: int) -> Any:
        yield number

    for listener, arguments, reason in ((plain, {}, "reply_to="), (waiting, {"reply_to": "out"}, "async generator")):
        app = make_app()
        app.listener(kafka_topic, **arguments)(listener)
        with pytest.raises(ConfigError, match=reason):
            app.start()
