"""Acknowledgments in any order, from other threads, on a broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ottla import AckMode, Acknowledgment, Ottla, TopicPartition
from ottla.client import AdminClient
from ottla.testing import wait_for


@pytest.fixture
def make_app(kafka: Any) -> Callable[..., Ottla]:
    return lambda **arguments: Ottla(kafka.bootstrap_servers, name="test", **arguments)


def committed(kafka: Any, group: str) -> int | None:
    with AdminClient(bootstrap_servers=kafka.bootstrap_servers) as admin:
        offset = admin.list_group_offsets(group).get(TopicPartition(group, 0))
        return offset.offset if offset else None


@pytest.mark.parametrize("mode", [AckMode.MANUAL, AckMode.MANUAL_IMMEDIATE])
def test_what_is_missing_is_delivered_again_after_a_restart_and_nothing_else(
    make_app: Any, kafka: Any, kafka_topic: str, mode: AckMode
) -> None:
    app, given = make_app(), dict[int, Acknowledgment]()

    @app.listener(kafka_topic, group=kafka_topic, ack=mode, container={"async_acks": True})
    def keep(number: int, ack: Acknowledgment) -> None:
        given[number] = ack

    with app:
        for number in range(10):
            app.template.send(kafka_topic, str(number))
        wait_for(lambda: len(given) == 10)
        for number in (9, 1, 8, 3, 0, 2):
            given[number].acknowledge()
        wait_for(lambda: committed(kafka, kafka_topic) == 4)
    given.clear()
    with app:
        wait_for(lambda: len(given) == 6)
        for number in reversed(given):
            given[number].acknowledge()
        wait_for(lambda: committed(kafka, kafka_topic) == 10)
    assert list(given) == [4, 5, 6, 7, 8, 9]


def test_a_consumer_takes_no_more_than_its_limit_and_goes_on_when_some_are_acknowledged(
    make_app: Any, kafka: Any, kafka_topic: str
) -> None:
    app, given = make_app(), list[Acknowledgment]()

    @app.listener(
        kafka_topic,
        group=kafka_topic,
        ack=AckMode.MANUAL,
        container={"async_acks": True, "max_pending_acks": 20},
        consumer={"max_poll_records": 10},
    )
    def keep(number: int, ack: Acknowledgment) -> None:
        given.append(ack)
        most.append(len(given))

    most: list[int] = []
    with app:
        for number in range(100):
            app.template.send(kafka_topic, str(number))
        app.template.flush(10)
        wait_for(lambda: len(given) == 20)
        while len(most) < 100 or given:
            wait_for(lambda: given)
            given.pop().acknowledge()
        wait_for(lambda: committed(kafka, kafka_topic) == 100)
    assert max(most) < 30  # a poll that has begun is delivered whole
