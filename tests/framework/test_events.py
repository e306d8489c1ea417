"""app.events: what an application hears of its listeners."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ottla import ContainerState, ErrorHandler, Ottla, Retry, TopicPartition, listener, stop_container
from ottla.errors import ConfigError
from ottla.events import (
    STREAM_EVENTS,
    ConcurrentContainerStoppedEvent,
    ConsumerPartitionPausedEvent,
    ConsumerPartitionResumedEvent,
    ConsumerPausedEvent,
    ConsumerResumedEvent,
    ConsumerStartedEvent,
    ConsumerStartingEvent,
    ConsumerStoppedEvent,
    ConsumerStoppingEvent,
    Events,
    ListenerContainerIdleEvent,
    ListenerContainerNoLongerIdleEvent,
    ListenerContainerPartitionIdleEvent,
    ListenerEvent,
    StopReason,
)
from ottla.testing import wait_for


@pytest.fixture
def make_app(kafka: Any) -> Callable[..., Ottla]:
    return lambda **arguments: Ottla(kafka.bootstrap_servers, name="test", **arguments)


def started(number: int = 0) -> ConsumerStartedEvent:
    container: Any = None
    return ConsumerStartedEvent(container=container, container_id="bill", consumer=f"bill-{number}")


def stopped() -> ConcurrentContainerStoppedEvent:
    container: Any = None
    return ConcurrentContainerStoppedEvent(container=container, container_id="bill", reason=StopReason.NORMAL)


def no_loop() -> asyncio.AbstractEventLoop:
    raise AssertionError("no function is async")


def test_functions_hear_of_the_types_they_name_and_of_all_if_they_name_none() -> None:
    events, some, all_of_them = Events(no_loop), [], []
    events.on(ConsumerStartedEvent)(some.append)
    events.on()(all_of_them.append)
    events.publish(started())
    events.publish(stopped())
    assert some == [started()]
    assert all_of_them == [started(), stopped()]


def test_a_function_that_fails_harms_neither_the_others_nor_the_container(caplog: Any) -> None:
    events, heard = Events(no_loop), []

    @events.on()
    def broken(event: ListenerEvent) -> None:
        raise LookupError("no")

    events.on()(heard.append)
    events.publish(started())
    assert heard == [started()]
    assert "LookupError" in caplog.text


def test_async_functions_run_on_the_applications_loop(caplog: Any) -> None:
    async def main() -> None:
        loop, heard, done = asyncio.get_running_loop(), [], asyncio.Event()
        events = Events(lambda: loop)

        @events.on(ConsumerStartedEvent)
        async def note(event: ConsumerStartedEvent) -> None:
            heard.append(threading.current_thread())
            loop.call_soon(done.set)
            raise LookupError("after all")

        await asyncio.to_thread(events.publish, started())
        await asyncio.wait_for(done.wait(), 10)
        assert heard == [threading.current_thread()]

    asyncio.run(main())
    assert "after all" in caplog.text


def test_a_stream_has_the_events_from_its_beginning_on() -> None:
    async def main() -> list[Any]:
        events = Events(no_loop)
        events.publish(started(0))
        stream = events.stream(ConsumerStartedEvent)
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        await asyncio.to_thread(events.publish, started(1))
        events.publish(stopped())
        events.publish(started(2))
        found = [await first, await anext(stream)]
        await stream.aclose()
        events.publish(started(3))
        return found

    assert asyncio.run(main()) == [started(1), started(2)]


def test_a_reader_that_falls_behind_loses_the_oldest_and_the_log_says_so(caplog: Any) -> None:
    async def main() -> Any:
        events = Events(no_loop)
        stream = events.stream()
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        events.publish(started(0))
        await first
        for number in range(1, STREAM_EVENTS + 2):
            events.publish(started(number))
        await asyncio.sleep(0)
        return await anext(stream)

    assert asyncio.run(main()) == started(2)
    assert "the oldest is dropped" in caplog.text


def test_the_life_of_a_container_is_told_in_order(make_app: Any, kafka_topic: str) -> None:
    app, heard = make_app(), []
    app.events.on()(heard.append)

    @app.listener(kafka_topic, id="note")
    def note(value: str) -> None: ...

    with app:
        wait_for(lambda: app.listeners["note"].assigned_partitions)
        app.listeners["note"].pause()
        wait_for(lambda: app.listeners["note"].is_paused)
        app.listeners["note"].resume()
        wait_for(lambda: isinstance(heard[-1], ConsumerResumedEvent))
    assert [type(event) for event in heard] == [
        ConsumerStartingEvent,
        ConsumerStartedEvent,
        ConsumerPausedEvent,
        ConsumerResumedEvent,
        ConsumerStoppingEvent,
        ConsumerStoppedEvent,
        ConcurrentContainerStoppedEvent,
    ]
    assert {event.container_id for event in heard} == {"note"}
    assert heard[2].partitions == (TopicPartition(kafka_topic, 0),)
    assert heard[5].reason is StopReason.NORMAL
    assert heard[5].consumer == "note-0"


def test_a_container_is_stopped_when_its_last_consumer_is(make_app: Any, kafka_topic: str) -> None:
    app, heard = make_app(), []
    app.topic(kafka_topic, partitions=3)
    app.events.on(ConsumerStoppedEvent, ConcurrentContainerStoppedEvent)(heard.append)

    @app.listener(kafka_topic, concurrency=3)
    def note(value: str) -> None: ...

    with app:
        pass
    assert [type(event) for event in heard] == [ConsumerStoppedEvent] * 3 + [ConcurrentContainerStoppedEvent]


def test_the_reason_of_a_stop_tells_an_error_handler_that_wanted_it(make_app: Any, kafka_topic: str) -> None:
    app, heard = make_app(), []
    app.events.on(ConsumerStoppedEvent, ConcurrentContainerStoppedEvent)(heard.append)

    @app.listener(kafka_topic, on_error=ErrorHandler(retry=Retry.never(), recover=stop_container))
    def note(value: str) -> None:
        raise ZeroDivisionError

    with app:
        app.template.send(kafka_topic, "x")
        wait_for(lambda: len(heard) == 2)
    assert [event.reason for event in heard] == [StopReason.ABNORMAL] * 2
    assert f"{kafka_topic}-0@0" in str(heard[0].error)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_consumer_that_fails_for_good_stops_the_others_and_none_of_them_gets_its_record(
    make_app: Any, kafka_topic: str, is_async: bool
) -> None:
    app, heard, seen = make_app(), [], []
    app.topic(kafka_topic, partitions=3)
    app.events.on(ConsumerStoppedEvent, ConcurrentContainerStoppedEvent)(heard.append)

    def work(value: str) -> None:
        seen.append(value)
        raise ZeroDivisionError

    async def work_async(value: str) -> None:
        work(value)

    errors = ErrorHandler(retry=Retry.never(), recover=stop_container)
    app.listener(kafka_topic, id="note", concurrency=3, on_error=errors)(work_async if is_async else work)
    with app:
        wait_for(lambda: len(app.listeners["note"].assigned_partitions) == 3)
        app.template.send(kafka_topic, "x")
        wait_for(lambda: len(heard) == 4)
        assert app.listeners["note"].state is ContainerState.FAILED
    assert seen == ["x"]
    reasons = [event.reason for event in heard]
    assert sorted(reasons[:3], key=str) == [StopReason.ABNORMAL, StopReason.NORMAL, StopReason.NORMAL]
    assert reasons[3] is StopReason.ABNORMAL


def test_pauses_of_partitions_are_told(make_app: Any, kafka_topic: str) -> None:
    app, heard = make_app(), []
    app.events.on(ConsumerPartitionPausedEvent, ConsumerPartitionResumedEvent)(heard.append)

    @app.listener(kafka_topic, id="note")
    def note(value: str) -> None: ...

    partition = TopicPartition(kafka_topic, 0)
    with app:
        wait_for(lambda: app.listeners["note"].assigned_partitions)
        app.listeners["note"].pause_partitions([partition])
        app.listeners["note"].resume_partitions([partition])
        wait_for(lambda: len(heard) == 2)
    assert [(type(event), event.partition) for event in heard] == [
        (ConsumerPartitionPausedEvent, partition),
        (ConsumerPartitionResumedEvent, partition),
    ]


def test_an_idle_container_says_so_until_a_record_comes(make_app: Any, kafka_topic: str) -> None:
    app, heard = make_app(), []
    app.events.on(ListenerContainerIdleEvent, ListenerContainerNoLongerIdleEvent)(heard.append)
    app.events.on(ListenerContainerPartitionIdleEvent)(lambda event: of_partitions.append(event.partition))
    of_partitions: list[TopicPartition] = []
    settings = {
        "idle_event_interval": 0.05,
        "idle_partition_event_interval": 0.05,
        "idle_before_data_multiplier": 1.0,
    }

    @app.listener(kafka_topic, container=settings)
    def note(value: str) -> None: ...

    with app:
        wait_for(lambda: len(heard) >= 2 and of_partitions)
        app.template.send(kafka_topic, "x")
        wait_for(lambda: any(isinstance(event, ListenerContainerNoLongerIdleEvent) for event in heard))
    assert heard[0].idle_time >= 0.05
    assert heard[1].idle_time > heard[0].idle_time
    assert set(of_partitions) == {TopicPartition(kafka_topic, 0)}


def test_a_container_setting_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean ack_count"):
        listener("orders", container={"ack_cuont": 3})(lambda value: None)
