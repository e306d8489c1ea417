"""Applications on a broker: start, listeners of each kind, pause, errors, stop."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from ottla import (
    AckMode,
    Acknowledgment,
    ContainerState,
    ErrorHandler,
    Header,
    Key,
    Ottla,
    RecordMetadata,
    Retry,
    TopicPartition,
    stop_container,
)
from ottla.client import AdminClient
from ottla.client.admin import NewTopic
from ottla.errors import ConfigError
from ottla.events import ConsumerPartitionResumedEvent
from ottla.testing import wait_for


class Order(BaseModel):
    id: int


@pytest.fixture
def make_app(kafka: Any) -> Callable[..., Ottla]:
    return lambda **arguments: Ottla(kafka.bootstrap_servers, name="test", **arguments)


def committed(kafka: Any, group: str, topic: str, partition: int = 0) -> int | None:
    with AdminClient(bootstrap_servers=kafka.bootstrap_servers) as admin:
        offset = admin.list_group_offsets(group).get(TopicPartition(topic, partition))
        return offset.offset if offset else None


def test_a_record_goes_from_send_to_listener(make_app: Any, kafka_topic: str) -> None:
    app, seen = make_app(), []

    @app.listener(kafka_topic)
    def bill(
        order: Order, key: Annotated[str, Key], source: Annotated[str, Header("source")], metadata: RecordMetadata
    ) -> None:
        seen.append((order.id, key, source, metadata.offset, metadata.delivery_attempt))

    with app:
        result = app.template.send(kafka_topic, Order(id=7), key="k", headers={"source": "test"}).result(timeout=5)
        wait_for(lambda: seen)
    assert seen == [(7, "k", "test", result.offset, 1)]


def test_stopping_commits_what_was_handled_and_a_restart_goes_on_from_there(
    make_app: Any, kafka: Any, kafka_topic: str
) -> None:
    app, seen = make_app(), []

    @app.listener(kafka_topic, group=kafka_topic)
    def note(order: Order) -> None:
        seen.append(order.id)

    for start in (0, 3):
        with app:
            for number in range(start, start + 3):
                app.template.send(kafka_topic, Order(id=number))
            wait_for(lambda start=start: len(seen) == start + 3)
        assert committed(kafka, kafka_topic, kafka_topic) == start + 3
    assert seen == list(range(6))


def test_async_listeners_run_on_the_applications_loop(make_app: Any, kafka_topic: str) -> None:
    async def main() -> None:
        app, seen = make_app(), asyncio.Event()
        loops = []

        @app.listener(kafka_topic)
        async def note(order: Order) -> None:
            await asyncio.sleep(0)
            loops.append(asyncio.get_running_loop())
            seen.set()

        async with app:
            result = await app.template.send(kafka_topic, Order(id=1))
            assert result.offset == 0
            await asyncio.wait_for(seen.wait(), 10)
        assert loops == [asyncio.get_running_loop()]

    asyncio.run(main())


def test_async_listeners_of_a_sync_application_run_on_a_loop_of_its_own(make_app: Any, kafka_topic: str) -> None:
    app, threads = make_app(), []

    @app.listener(kafka_topic)
    async def note(order: Order) -> None:
        await asyncio.sleep(0)
        threads.append(threading.current_thread().name)

    with app:
        app.template.send(kafka_topic, Order(id=1))
        wait_for(lambda: threads)
    assert threads == ["test-listeners"]


def test_concurrency_shares_the_partitions_and_keeps_the_order_of_each(make_app: Any, kafka_topic: str) -> None:
    app = make_app()
    app.topic(kafka_topic, partitions=4)
    seen: dict[int, list[int]] = {}
    threads = set()

    @app.listener(kafka_topic, id="note", concurrency=2)
    def note(order: Order, metadata: RecordMetadata) -> None:
        seen.setdefault(metadata.partition, []).append(order.id)
        threads.add(threading.current_thread().name)

    with app:
        wait_for(lambda: [len(share) for share in app.listeners["note"].assignments()] == [2, 2])
        for number in range(400):
            app.template.send(kafka_topic, Order(id=number), partition=number % 4)
        wait_for(lambda: sum(map(len, seen.values())) == 400)
    assert all(numbers == sorted(numbers) for numbers in seen.values())
    assert len(threads) == 2


def test_a_batch_listener_gets_the_records_of_a_poll(make_app: Any, kafka_topic: str) -> None:
    app, batches = make_app(), []

    @app.listener(kafka_topic)
    def note(orders: list[Order]) -> None:
        batches.append([order.id for order in orders])

    with app:
        for number in range(50):
            app.template.send(kafka_topic, Order(id=number))
        wait_for(lambda: sum(map(len, batches)) == 50)
    assert [number for batch in batches for number in batch] == list(range(50))


def test_a_payload_that_does_not_fit_stops_nobody(make_app: Any, kafka_topic: str, caplog: Any) -> None:
    app, seen = make_app(), []

    @app.listener(kafka_topic)
    def note(order: Order) -> None:
        seen.append(order.id)

    with app:
        app.template.send(kafka_topic, b"not json")
        app.template.send(kafka_topic, Order(id=2))
        wait_for(lambda: seen)
        assert app.listeners["note"].state is ContainerState.RUNNING
    assert seen == [2]
    assert f"{kafka_topic}-0@0" in caplog.text


def test_a_failing_record_is_delivered_again_and_then_recovered(make_app: Any, kafka: Any, kafka_topic: str) -> None:
    recovered: list[int] = []
    errors = ErrorHandler(
        retry=Retry.fixed(0.01, attempts=3), recover=lambda record, _: recovered.append(record.offset)
    )
    app, attempts = make_app(), []

    @app.listener(kafka_topic, group=kafka_topic, on_error=errors)
    def note(order: Order, metadata: RecordMetadata) -> None:
        attempts.append((order.id, metadata.delivery_attempt))
        if order.id == 1:
            raise RuntimeError("no")

    with app:
        for number in range(3):
            app.template.send(kafka_topic, Order(id=number))
        wait_for(lambda: (2, 1) in attempts)
    assert attempts == [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1)]
    assert recovered == [1]
    assert committed(kafka, kafka_topic, kafka_topic) == 3


def test_manual_acknowledgment_commits_only_what_was_acknowledged(make_app: Any, kafka: Any, kafka_topic: str) -> None:
    app, seen = make_app(), []

    @app.listener(kafka_topic, group=kafka_topic, ack=AckMode.MANUAL_IMMEDIATE)
    def note(order: Order, ack: Acknowledgment) -> None:
        if order.id < 2:
            ack.acknowledge()
        seen.append(order.id)

    with app:
        for number in range(4):
            app.template.send(kafka_topic, Order(id=number))
        wait_for(lambda: len(seen) == 4)
        assert committed(kafka, kafka_topic, kafka_topic) == 2
    assert committed(kafka, kafka_topic, kafka_topic) == 2


def test_a_paused_container_gets_nothing_until_it_is_resumed(make_app: Any, kafka_topic: str) -> None:
    app, seen = make_app(), []

    @app.listener(kafka_topic, id="note")
    def note(order: Order) -> None:
        seen.append(order.id)

    with app:
        app.template.send(kafka_topic, Order(id=0))
        wait_for(lambda: seen == [0])
        container = app.listeners["note"]
        container.pause()
        wait_for(lambda: container.is_paused)
        app.template.send(kafka_topic, Order(id=1)).result(timeout=5)
        assert seen == [0]
        container.resume()
        wait_for(lambda: seen == [0, 1])


def test_seek_delivers_again_from_an_offset(make_app: Any, kafka_topic: str) -> None:
    app, seen = make_app(), []

    @app.listener(kafka_topic, id="note")
    def note(order: Order) -> None:
        seen.append(order.id)

    with app:
        for number in range(3):
            app.template.send(kafka_topic, Order(id=number))
        wait_for(lambda: seen == [0, 1, 2])
        app.listeners["note"].seek(TopicPartition(kafka_topic, 0), 1)
        wait_for(lambda: seen == [0, 1, 2, 1, 2])


def test_explicit_partitions_need_no_group_and_start_where_told(make_app: Any, kafka_topic: str) -> None:
    app, seen = make_app(), []
    app.admin.create_topics([NewTopic(kafka_topic, partitions=2)])
    for number in range(4):
        app.template.send(kafka_topic, Order(id=number), partition=number % 2)
    app.template.flush(timeout=5)

    @app.listener(partitions={kafka_topic: {0: 1, 1: "earliest"}})
    def note(order: Order) -> None:
        seen.append(order.id)

    with app:
        wait_for(lambda: sorted(seen) == [1, 2, 3])


def test_a_pattern_finds_topics_that_come_later(make_app: Any, kafka_topic: str) -> None:
    app, seen = make_app(consumer={"metadata_max_age_ms": 100}), []

    @app.listener(pattern=f"{kafka_topic}-.*")
    def note(order: Order) -> None:
        seen.append(order.id)

    with app:
        app.template.send(f"{kafka_topic}-later", Order(id=1)).result(timeout=5)
        wait_for(lambda: seen == [1])


def test_a_stopping_error_handler_leaves_the_container_failed_with_its_reason(make_app: Any, kafka_topic: str) -> None:
    app = make_app()

    @app.listener(kafka_topic, id="note", on_error=ErrorHandler(retry=Retry.never(), recover=stop_container))
    def note(order: Order) -> None:
        raise RuntimeError("no")

    with app:
        app.template.send(kafka_topic, Order(id=1))
        wait_for(lambda: app.listeners["note"].state is ContainerState.FAILED)
        assert f"{kafka_topic}-0@0" in str(app.listeners["note"].reason)


def test_a_handler_that_does_not_return_makes_stop_time_out_and_name_it(make_app: Any, kafka_topic: str) -> None:
    app, entered, leave = make_app(), threading.Event(), threading.Event()

    @app.listener(kafka_topic, id="slow")
    def slow(order: Order) -> None:
        entered.set()
        leave.wait(20)

    app.start()
    app.template.send(kafka_topic, Order(id=1))
    assert entered.wait(10)
    with pytest.raises(TimeoutError, match="slow-0"):
        app.stop(timeout=0.2)
    leave.set()


def test_starting_on_a_thread_with_an_event_loop_names_the_async_form(make_app: Any) -> None:
    app = make_app()

    async def main() -> None:
        with pytest.raises(RuntimeError, match="async with app"):
            app.start()

    asyncio.run(main())


def test_two_listeners_with_one_id_are_refused_at_start(make_app: Any, kafka_topic: str) -> None:
    app = make_app()
    for _ in range(2):
        app.listener(kafka_topic, id="same")(lambda order: None)
    with pytest.raises(ConfigError, match="'same'"):
        app.start()


def test_a_listener_included_in_a_running_application_starts_at_once(make_app: Any, kafka_topic: str) -> None:
    from ottla.listeners import endpoint

    app, seen = make_app(), []
    before = len(endpoint.BARE_LISTENERS)

    @endpoint.listener(kafka_topic)
    def note(order: Order) -> None:
        seen.append(order.id)

    del endpoint.BARE_LISTENERS[before:]
    with app:
        app.include(note)
        app.template.send(kafka_topic, Order(id=1))
        wait_for(lambda: seen == [1])


def test_declared_topics_grow_to_the_partitions_they_are_declared_with(
    make_app: Any, kafka: Any, kafka_topic: str
) -> None:
    for partitions in (2, 4, 3):
        app = make_app()
        app.topic(kafka_topic, partitions=partitions)
        with app:
            pass
    with AdminClient(bootstrap_servers=kafka.bootstrap_servers) as admin:
        assert len(admin.describe_topics([kafka_topic])[kafka_topic].partitions) == 4


def test_a_hook_that_hangs_or_fails_does_not_keep_the_application_running(make_app: Any, kafka_topic: str) -> None:
    app, cancelled = make_app(), threading.Event()

    @app.listener(kafka_topic)
    def handle(value: bytes) -> None: ...

    @app.on_stopping
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    app.start()
    container = next(iter(app.listeners.values()))
    with pytest.raises(TimeoutError, match="hang"):
        app.stop(timeout=0.2)
    assert cancelled.wait(5)
    assert container.state is ContainerState.STOPPED


def test_a_failing_hook_of_an_async_application_is_raised_after_the_stop(make_app: Any, kafka_topic: str) -> None:
    app = make_app()

    @app.listener(kafka_topic)
    async def handle(value: bytes) -> None: ...

    @app.on_stopping
    def fail() -> None:
        raise ValueError("the hook's own")

    async def main() -> ContainerState:
        await app.start_async()
        container = next(iter(app.listeners.values()))
        with pytest.raises(ValueError, match="the hook's own"):
            await app.stop_async()
        return container.state

    assert asyncio.run(main()) is ContainerState.STOPPED


def test_run_tunes_the_interpreter_for_its_time_and_puts_all_back(make_app: Any, kafka_topic: str) -> None:
    app, seen = make_app(), []
    before = sys.getswitchinterval()

    @app.listener(kafka_topic)
    def note(order: Order) -> None: ...

    @app.on_stopping
    def look() -> None:
        seen.append((sys.getswitchinterval(), gc.get_freeze_count() > 0))

    app.run(until_idle=0.2)
    assert seen == [(pytest.approx(0.0005), True)]
    assert (sys.getswitchinterval(), gc.get_freeze_count()) == (before, 0)


def test_resuming_a_partition_does_not_undo_the_pause_of_its_container(make_app: Any, kafka_topic: str) -> None:
    app, seen, resumed = make_app(), [], []
    app.events.on(ConsumerPartitionResumedEvent)(resumed.append)

    @app.listener(kafka_topic, id="note")
    def note(order: Order) -> None:
        seen.append(order.id)

    with app:
        container = app.listeners["note"]
        wait_for(lambda: container.assigned_partitions)
        container.pause()
        wait_for(lambda: container.is_paused)
        container.pause_partitions([TopicPartition(kafka_topic, 0)])
        container.resume_partitions([TopicPartition(kafka_topic, 0)])
        wait_for(lambda: resumed)
        assert container._children[0]._consumer.paused() == [TopicPartition(kafka_topic, 0)]
        container.resume()
        app.template.send(kafka_topic, Order(id=1))
        wait_for(lambda: seen)


def test_a_container_tells_how_far_it_is_behind(make_app: Any, kafka_topic: str) -> None:
    app, first, go_on = make_app(), threading.Event(), threading.Event()

    @app.listener(kafka_topic, id="note", auto_start=False, consumer={"max_poll_records": 1})
    def note(order: Order) -> None:
        first.set()
        assert go_on.wait(10)

    with app:
        container, partition = app.listeners["note"], TopicPartition(kafka_topic, 0)
        for number in range(3):
            app.template.send(kafka_topic, Order(id=number)).result(5)
        assert container.lag == {}
        container.start()
        assert first.wait(10)
        assert container.lag == {partition: 2}
        go_on.set()
        wait_for(lambda: container.lag == {partition: 0})
