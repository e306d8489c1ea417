"""Classes as listeners of an application on a broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from ottla import Ottla, handler, listener
from ottla.listeners.endpoint import BARE_LISTENERS
from ottla.testing import wait_for


class Placed(BaseModel):
    order: int


class Paid(BaseModel):
    payment: int


@pytest.fixture
def make_app(kafka: Any) -> Callable[..., Ottla]:
    return lambda **arguments: Ottla(kafka.bootstrap_servers, name="test", **arguments)


def send_both(app: Ottla, topic: str) -> None:
    app.template.send(topic, Placed(order=1))
    app.template.send(topic, Paid(payment=2))


def test_an_application_makes_the_instance_of_a_class_and_keeps_it(make_app: Any, kafka_topic: str) -> None:
    app, logs = make_app(), []

    @app.listener(kafka_topic, reply_to=f"{kafka_topic}-out")
    class Audit:
        def __init__(self) -> None:
            self.log: list[Any] = []
            logs.append(self.log)

        @handler
        def placed(self, order: Placed) -> str:
            self.log.append(order)
            return "placed"

        @handler
        def paid(self, payment: Paid) -> None:
            self.log.append(payment)

    replies: list[str] = []

    @app.listener(f"{kafka_topic}-out")
    def note(text: str) -> None:
        replies.append(text)

    for count in (2, 4):
        with app:
            send_both(app, kafka_topic)
            wait_for(lambda count=count: len(logs[0]) == count and len(replies) == count // 2)
    assert logs == [[Placed(order=1), Paid(payment=2)] * 2]
    assert set(replies) == {"placed"}


def test_an_instance_that_was_given_is_the_one_that_is_called(make_app: Any, kafka_topic: str) -> None:
    @listener(kafka_topic)
    class Audit:
        def __init__(self, log: list[Any]) -> None:
            self.log = log

        @handler
        def placed(self, order: Placed) -> None:
            self.log.append(order)

        @handler(default=True)
        def other(self, value: bytes) -> None:
            self.log.append(value)

    app, other_app, log = make_app(), make_app(), []
    try:
        app.include(Audit(log))
        with app, other_app:
            send_both(app, kafka_topic)
            wait_for(lambda: len(log) == 2)
    finally:
        BARE_LISTENERS.pop()
    assert log == [Placed(order=1), b'{"payment":2}']
