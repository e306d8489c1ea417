"""Senders that have filled a batch let the I/O thread have its turn."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from ottla.client import KafkaProducer
from ottla.client.metadata import PartitionMetadata, TopicMetadata
from ottla.client.producer import turn
from ottla.client.producer.turn import Turn
from ottla_wire.schema import Uuid

TOPIC = "orders"


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that waits for long, so that it can be seen for what it waits."""
    monkeypatch.setattr(turn, "PATIENCE_SECONDS", 20)


def test_a_sender_waits_until_the_io_thread_begins(patient: None) -> None:
    one = Turn()
    events: list[str] = []
    woken = threading.Event()

    def io_thread() -> None:
        assert woken.wait(20)
        events.append("begins")
        one.begin(10)

    thread = threading.Thread(target=io_thread)
    thread.start()
    one.offer(10, woken.set)
    events.append("goes on")
    thread.join()
    assert events == ["begins", "goes on"]


def test_a_turn_that_began_before_is_not_taken_for_the_one_that_is_waited_for(patient: None) -> None:
    one = Turn()
    one.offer(1, lambda: one.begin(1))
    one.begin(2)
    began = []
    one.offer(3, lambda: began.append(True) or one.begin(3))  # type: ignore[func-returns-value]
    assert began, "it was woken, and not only waited for"


def test_within_a_millisecond_of_a_turn_nobody_waits(patient: None) -> None:
    one = Turn()
    one.begin(7)
    one.offer(7, lambda: pytest.fail("it has just had one"))
    one.offer(8, lambda: one.begin(8))


def test_a_sender_does_not_wait_for_long() -> None:
    start = time.monotonic()
    Turn().offer(1, lambda: None)
    assert time.monotonic() - start < 10


def test_nobody_waits_again_for_an_io_thread_that_did_not_come() -> None:
    one = Turn()
    woken: list[int] = []
    one.offer(1, lambda: woken.append(1))
    one.offer(2, lambda: woken.append(2))
    one.begin(3)
    one.offer(4, lambda: woken.append(4))
    assert woken == [1, 4]


class Task:
    """In place of the sender's task: notes who is let go first."""

    next_look_ms = 1 << 62

    def __init__(self) -> None:
        self.turn = self
        self.woken = 0
        self.offered = 0

    def wake(self) -> None:
        self.woken += 1

    def offer(self, now_ms: int, wake: Any) -> None:
        assert now_ms > 0
        assert wake == self.wake
        self.offered += 1


def test_a_batch_that_begins_while_another_waits_offers_the_turn() -> None:
    producer = KafkaProducer(bootstrap_servers="127.0.0.1:1", batch_size=200, linger_ms=1000)
    task = Task()
    producer._task = task  # type: ignore[assignment]
    known = TopicMetadata(TOPIC, Uuid.ZERO, False, {0: PartitionMetadata(0, leader=1, leader_epoch=1)})
    offered = []
    with producer._lock:
        producer._accumulator.append(1, TOPIC, 0, 1, None, b"", None, b"", None, None)
        producer._accumulator.update_topic(known, 1)
    for size in (1, 1, 120, 1, 120):
        producer.send(TOPIC, b"x" * size, partition=0)
        offered.append(task.offered)
    assert offered == [0, 0, 1, 1, 2]
    producer._task = None
    producer._accumulator.take_all_queued()
    producer.close(0)
