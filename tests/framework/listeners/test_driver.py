"""The driver around a consumer that plays a script: acknowledgments and the poll they may interrupt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ottla import AckMode, Acknowledgment, BatchListenerFailed, ErrorHandler
from ottla.client.consumer.faces import run_blocking
from ottla.errors import GroupAuthorizationFailed, RebalanceInProgress, WakeupError
from ottla.listeners.ack import AckTracker
from ottla.listeners.binding import bind
from ottla.listeners.driver import Driver
from ottla.listeners.listener_loop import ListenerLoop, LoopControl
from ottla.listeners.unit_of_work import COMMIT_CHECK_SECONDS, AcknowledgedWork
from support.listener_driver import ORDERS, ScriptedConsumer, drive


def test_acknowledging_inside_the_listener_wakes_no_poll(make_record: Any) -> None:
    def listener(value: bytes, ack: Acknowledgment) -> None:
        ack.acknowledge()

    consumer = drive(listener, [make_record(0), make_record(1)])
    assert consumer.commits == [{ORDERS: 1}, {ORDERS: 2}]
    assert consumer.wakeups == 0


def test_acknowledging_inside_an_async_listener_wakes_no_poll(make_record: Any) -> None:
    async def listener(value: bytes, ack: Acknowledgment) -> None:
        await asyncio.sleep(0)
        ack.acknowledge()

    consumer = drive(listener, [make_record(0), make_record(1)])
    assert consumer.commits == [{ORDERS: 1}, {ORDERS: 2}]
    assert consumer.wakeups == 0


def test_an_acknowledgment_that_comes_during_a_poll_ends_it(make_record: Any) -> None:
    kept: list[Acknowledgment] = []

    def listener(value: bytes, ack: Acknowledgment) -> None:
        kept.append(ack)

    def acknowledged_elsewhere(consumer: ScriptedConsumer) -> list[Any]:
        kept[0].acknowledge()
        assert consumer.wakeups == 1
        raise WakeupError

    consumer = drive(listener, [make_record(0)], acknowledged_elsewhere)
    assert consumer.commits == [{ORDERS: 1}]


def test_in_manual_mode_an_acknowledgment_during_a_poll_waits_for_its_end(make_record: Any) -> None:
    kept: list[Acknowledgment] = []

    def listener(value: bytes, ack: Acknowledgment) -> None:
        kept.append(ack)

    def acknowledged_elsewhere(_: ScriptedConsumer) -> list[Any]:
        kept[0].acknowledge()
        return []

    consumer = drive(listener, [make_record(0)], acknowledged_elsewhere, ack=AckMode.MANUAL)
    assert consumer.wakeups == 0
    assert consumer.commits == [{ORDERS: 1}]


def test_an_acknowledgment_just_before_a_poll_shortens_it(make_record: Any) -> None:
    # What comes between the loop's look at what is due and the poll finds no poll to wake.
    kept: list[Acknowledgment] = []
    acks = AckTracker(AckMode.MANUAL_IMMEDIATE)
    control = LoopControl()

    class Between(AcknowledgedWork):
        def poll_timeout(self, timeout: float) -> float:
            found = super().poll_timeout(timeout)
            if kept:
                kept.pop().acknowledge()
            return found

    loop = ListenerLoop(
        is_batch=False, work=Between(acks, lambda: 0), errors=ErrorHandler(), control=control, now_ms=lambda: 0
    )
    consumer = ScriptedConsumer(control, [make_record(0)])
    driver = Driver(loop, control, bind(lambda ack: None), acks, ErrorHandler().recover, consumer)  # type: ignore[arg-type]
    kept.append(Acknowledgment(acks, [make_record(4)], driver._acknowledged))
    run_blocking(driver.run())
    assert consumer.timeouts[0] == COMMIT_CHECK_SECONDS
    assert consumer.wakeups == 0


def test_a_wake_up_that_meets_a_commit_does_not_undo_it(make_record: Any) -> None:
    consumer = drive(lambda value: None, [make_record(0)], ack=AckMode.RECORD, failures=[WakeupError()])
    assert consumer.commits == [{ORDERS: 1}]


def test_a_commit_during_a_rebalance_is_tried_again(make_record: Any) -> None:
    consumer = drive(lambda value: None, [make_record(0)], ack=AckMode.RECORD, failures=[RebalanceInProgress("wait")])
    assert consumer.commits == [{ORDERS: 1}]


def test_a_commit_that_is_not_allowed_ends_the_driver(make_record: Any) -> None:
    with pytest.raises(GroupAuthorizationFailed):
        drive(lambda value: None, [make_record(0)], ack=AckMode.RECORD, failures=[GroupAuthorizationFailed("no")])


def test_a_plain_listener_may_return_something_awaitable_and_nobody_awaits_it(make_record: Any) -> None:
    class Awaitable:
        def __await__(self) -> Any:
            raise AssertionError("awaited")

    consumer = drive(lambda value: Awaitable(), [make_record(0)], ack=AckMode.BATCH)
    assert consumer.commits == [{ORDERS: 1}]


def test_of_a_batch_that_fails_at_a_record_what_comes_before_it_is_done(make_record: Any) -> None:
    batches: list[int] = []

    def listener(values: list[bytes]) -> None:
        batches.append(len(values))
        if len(values) == 3:
            raise BatchListenerFailed(2)

    assert drive(listener, [make_record(n) for n in range(3)], ack=AckMode.BATCH).commits[0] == {ORDERS: 2}
    assert batches == [3, 1]


def test_a_batch_with_a_record_that_does_not_fit_is_delivered_around_it(make_record: Any) -> None:
    batches: list[list[int]] = []

    def listener(numbers: list[int]) -> None:
        batches.append(numbers)

    records = [make_record(n, value=value) for n, value in enumerate((b"10", b"11", b"twelve", b"13"))]
    consumer = drive(listener, records, ack=AckMode.BATCH)
    assert batches == [[10, 11], [13]]
    assert consumer.commits[-1] == {ORDERS: 4}
