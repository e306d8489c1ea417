"""A listener with much to do: its steps are done one by one, and nothing overtakes anything."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from ottla_broker.controller.image import MetadataDelta
from ottla_wire.messages.create_topics import CreateTopicsRequest


class SlowFollower:
    """Takes three steps for each new topic, and notes what it does."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def __call__(self, delta: MetadataDelta) -> Iterator[None]:
        for topic in delta.created_topics.values():
            for step in range(3):
                self.done.append(f"{topic.name} {step}")
                yield


@pytest.fixture
def slow(cluster: Any) -> SlowFollower:
    follower = SlowFollower()
    cluster.controller.on_change(follower)
    return follower


def create(cluster: Any, name: str) -> Any:
    return cluster.controller.create_topics(CreateTopicsRequest(topics=[cluster.topic(name)]))


def test_the_first_step_is_done_at_once_and_each_further_one_by_a_tick(cluster: Any, slow: SlowFollower) -> None:
    controller = cluster.controller
    assert controller.deadline_ms() is None
    answer = create(cluster, "orders")
    assert slow.done == ["orders 0"]
    assert "orders" in cluster.image.topics_by_name
    for done in (["orders 0", "orders 1"], ["orders 0", "orders 1", "orders 2"]):
        assert controller.deadline_ms() == 0
        assert not answer.done()
        controller.tick(1)
        assert slow.done == done
    controller.tick(1)
    assert answer.result().topics[0].error_code == 0
    assert controller.deadline_ms() is None
    controller.tick(1)
    assert len(slow.done) == 3


def test_a_change_is_announced_when_the_one_before_it_is_through(cluster: Any, slow: SlowFollower) -> None:
    heard: list[list[str]] = []
    cluster.controller.on_change(lambda delta: heard.append([t.name for t in delta.created_topics.values()]))
    first, second = create(cluster, "orders"), create(cluster, "bills")
    assert set(cluster.image.topics_by_name) == {"orders", "bills"}  # decided and written, both
    while not second.done():
        assert heard == ([["orders"]] if first.done() else [])
        cluster.controller.tick(1)
    assert slow.done == [f"{name} {step}" for name in ("orders", "bills") for step in range(3)]
    assert heard == [["orders"], ["bills"]]
    assert first.done()


def test_a_change_without_steps_waits_its_turn_too(cluster: Any, slow: SlowFollower) -> None:
    creation = create(cluster, "orders")
    refusal = create(cluster, "orders")
    assert not refusal.done()
    cluster.controller.finish()
    assert (creation.result().topics[0].error_code, refusal.result().topics[0].error_code) == (0, 36)


def test_all_steps_can_be_done_at_once(cluster: Any, slow: SlowFollower) -> None:
    answers = [create(cluster, name) for name in ("orders", "bills")]
    cluster.controller.finish()
    assert all(answer.done() for answer in answers)
    assert cluster.controller.deadline_ms() is None


def test_a_listener_that_fails_in_a_later_step_keeps_neither_the_others_nor_the_answer(
    cluster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[MetadataDelta] = []

    def fail(delta: MetadataDelta) -> Iterator[None]:
        yield
        raise RuntimeError("it cannot be done")

    cluster.controller.on_change(fail)
    cluster.controller.on_change(heard.append)
    with caplog.at_level(logging.ERROR):
        answer = create(cluster, "orders")
        assert not heard
        cluster.controller.tick(1)
    assert answer.done()
    assert len(heard) == 1
    assert "a listener failed" in caplog.text


def test_a_start_does_all_steps(make_cluster: Any) -> None:
    first = make_cluster().start()
    for name in ("orders", "bills"):
        first.create_one(name)
    second = make_cluster(first.log.reopened())
    slow = SlowFollower()
    second.controller.on_change(slow)
    second.start(clean_shutdown=False)
    assert len(slow.done) == 6
    assert second.controller.deadline_ms() is None
