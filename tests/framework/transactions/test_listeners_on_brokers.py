"""Transactional listeners on our broker and on Apache Kafka: outputs and offsets are seen together, or not at all."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ottla import (
    AckMode,
    Acknowledgment,
    AssignmentCommit,
    BatchListenerFailed,
    ConcurrentMessageListenerContainer,
    ConsumerFactory,
    ConsumerRecord,
    ContainerProperties,
    ContainerState,
    ErrorHandler,
    KafkaTemplate,
    KafkaTransactionManager,
    Ottla,
    ProducerFactory,
    RecordInterceptor,
    Retry,
    TopicPartition,
    Transactional,
    current_transaction,
)
from ottla.client import KafkaConsumer
from ottla.errors import ConfigError, ProducerFenced, TransactionTimedOut
from support.clusters import ClusterUnderTest, eventually


@pytest.fixture
def fill(cluster: ClusterUnderTest) -> Callable[..., None]:
    """Write values to a topic, each in a transaction of its own or all outside of any."""

    def write(topic: str, *values: str, partition: int = 0) -> None:
        with ProducerFactory(bootstrap_servers=cluster.bootstrap_servers, linger_ms=0) as factory:
            for value in values:
                factory.producer().send(topic, value, partition=partition).result(10)

    return write


def test_outputs_and_offsets_become_visible_together_and_nothing_is_committed_by_the_consumer(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], fill: Any, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = cluster.create_topic(), cluster.create_topic()
    app = make_app()
    seen: list[tuple[bool, int | None]] = []

    @app.listener(source, group=app.name, transactional=True)
    def work(value: str) -> None:
        seen.append((app.template.in_transaction, reader.committed(app.name).get(0)))
        app.template.send(target, value.upper())

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a consumer-side commit")

    monkeypatch.setattr(KafkaConsumer, "commit", forbidden)
    monkeypatch.setattr(KafkaConsumer, "commit_async", forbidden)
    fill(source, "a", "b", "c")
    with app:
        eventually(lambda: reader.values(target) == ["A", "B", "C"])
        reader.assert_committed(app.name, {0: 3})
    assert seen == [(True, None)] * 3


def test_the_output_of_a_failed_attempt_is_never_seen(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], fill: Any, reader: Any
) -> None:
    source, target = cluster.create_topic(), cluster.create_topic()
    app, attempts = make_app(), []

    @app.listener(source, group=app.name, transactional=True)
    def work(record: ConsumerRecord) -> None:
        attempt = record.delivery_attempt or 1
        attempts.append((record.value, attempt))
        app.template.send(target, f"{record.value.decode()} {attempt}")
        if record.value == b"b" and attempt < 3:
            app.template.flush()
            raise ValueError

    fill(source, "a", "b", "c")
    with app:
        eventually(lambda: len(reader.values(target)) == 3)
    assert [value[0] for value in reader.values(target)] == ["a", "b", "c"]
    assert "b 3" in reader.values(target)
    assert "b 1" in reader.all_values(target), "it was written, and aborted"
    assert (b"b", 3) in attempts


def test_a_dead_letter_and_the_offset_are_one_transaction(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], fill: Any, reader: Any
) -> None:
    source, target, dead = (cluster.create_topic() for _ in range(3))
    app, recoveries = make_app(), []

    def to_dead_letters(record: ConsumerRecord, error: BaseException) -> None:
        recoveries.append(record.offset)
        app.template.send(dead, record.value).result(10)
        if len(recoveries) == 1:
            raise OSError("not today")

    retry = Retry.fixed(0, attempts=2)

    @app.listener(
        source, group=app.name, transactional=True, on_error=ErrorHandler(retry=retry, recover=to_dead_letters)
    )
    def work(value: str) -> None:
        app.template.send(target, value)
        if value == "poison":
            raise ValueError

    fill(source, "a", "poison", "b")
    with app:
        eventually(lambda: reader.values(target) == ["a", "b"])
        eventually(lambda: reader.values(dead) == ["poison"])
        eventually(lambda: reader.committed(app.name).get(0, 0) >= 3)
    assert recoveries == [1, 1]
    assert reader.all_values(dead) == ["poison", "poison"], "the first one was aborted with its transaction"


def test_async_listeners_are_the_same(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], fill: Any, reader: Any
) -> None:
    source, target = cluster.create_topic(), cluster.create_topic()
    app, failed = make_app(), []

    @app.listener(source, group=app.name, transactional=Transactional.per_record())
    async def work(value: str) -> None:
        await asyncio.gather(*[send(value, mark) for mark in "12"])
        await asyncio.to_thread(app.template.send, target, value)
        if value == "b" and not failed:
            failed.append(value)
            raise ValueError

    async def send(value: str, mark: str) -> None:
        await asyncio.sleep(0)
        await app.template.send(target, value + mark)

    async def main() -> None:
        async with app:
            await asyncio.to_thread(eventually, lambda: len(reader.values(target)) == 9)

    fill(source, "a", "b", "c")
    asyncio.run(main())
    assert sorted(reader.values(target)) == sorted(value + mark for value in "abc" for mark in ("", "1", "2"))


def test_a_batch_is_one_transaction_and_the_record_it_points_at_is_isolated(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], fill: Any, reader: Any
) -> None:
    source, target = cluster.create_topic(), cluster.create_topic()
    app, batches = make_app(), []

    @app.listener(source, group=app.name, transactional=True, on_error=ErrorHandler(retry=Retry.never()))
    def work(values: list[str]) -> None:
        batches.append(values)
        for index, value in enumerate(values):
            app.template.send(target, value)
            if value == "poison":
                raise BatchListenerFailed(index)

    fill(source, "a", "b", "poison", "c")
    with app:
        eventually(lambda: reader.values(target) == ["a", "b", "c"])
        eventually(lambda: reader.committed(app.name).get(0, 0) >= 4)


@pytest.mark.slow
def test_the_committed_offset_goes_past_the_marker_when_there_is_nothing_to_do_and_the_lag_is_0(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], reader: Any
) -> None:
    source = cluster.create_topic(2)
    app, attempts = make_app(), []

    @app.listener(source, group=app.name, transactional=True, consumer={"fetch_max_wait_ms": 50})
    def work(record: ConsumerRecord) -> None:
        attempts.append(record.delivery_attempt or 1)
        if len(attempts) == 1:
            raise ValueError

    with app:
        with app.template.transaction():
            app.template.send(source, "x", partition=0)
        eventually(lambda: reader.committed(app.name) == {0: 2})
    assert attempts == [1, 2]
    assert reader.committed(app.name) == {0: 2}, "and the other partition has none"
    place = cluster.admin.list_group_offsets(app.name)[TopicPartition(source, 0)]
    assert place is not None
    assert place.leader_epoch is not None, "the epoch of what was read goes with it"
    with KafkaConsumer(
        bootstrap_servers=cluster.bootstrap_servers, group_id=app.name, isolation_level="read_committed"
    ) as next_one:
        next_one.subscribe([source])
        eventually(lambda: next_one.poll(0.1) or next_one.assignment())
        assert next_one.position(TopicPartition(source, 0)) == 2


@pytest.mark.slow
def test_a_listener_without_transactions_goes_past_markers_too(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], reader: Any
) -> None:
    source = cluster.create_topic()
    app, seen = make_app(), []

    @app.listener(source, group=app.name, consumer={"fetch_max_wait_ms": 50})
    def work(value: str) -> None:
        seen.append(value)

    with app:
        with app.template.transaction():
            app.template.send(source, "x")
        with pytest.raises(KeyError), app.template.transaction():
            app.template.send(source, "aborted").result(10)
            raise KeyError
        eventually(lambda: reader.committed(app.name) == {0: 4})
    assert seen == ["x"]


@pytest.mark.slow
@pytest.mark.parametrize(("reset", "committed"), [("latest", {0: 2}), ("earliest", {})])
def test_the_start_at_the_end_of_a_partition_is_committed_so_that_it_is_not_lost(
    cluster: ClusterUnderTest,
    make_app: Callable[..., Ottla],
    fill: Any,
    reader: Any,
    reset: str,
    committed: dict[int, int],
) -> None:
    source = cluster.create_topic()
    app, done = make_app(), threading.Event()
    if reset == "latest":
        fill(source, "before", "before, too")

    @app.listener(
        source, group=app.name, transactional=True, consumer={"auto_offset_reset": reset, "fetch_max_wait_ms": 50}
    )
    def work(value: str) -> None:
        done.set()

    with app:
        container = app.listeners[app.name]
        eventually(lambda: container.assigned_partitions)
        if committed:
            eventually(lambda: reader.committed(app.name) == committed)
        else:
            assert not done.wait(2.5), "two idle polls"
    assert reader.committed(app.name) == committed


def test_manual_acknowledgment_says_which_offsets_are_in_the_transaction(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], fill: Any, reader: Any
) -> None:
    source, target = cluster.create_topic(), cluster.create_topic()
    app = make_app()

    @app.listener(source, group=app.name, transactional=True, ack=AckMode.MANUAL)
    def work(value: str, acknowledgment: Acknowledgment) -> None:
        app.template.send(target, value)
        if value == "b":
            acknowledgment.acknowledge()

    fill(source, "a", "b", "c")
    with app:
        eventually(lambda: reader.values(target) == ["a", "b", "c"])
        reader.assert_committed(app.name, {0: 2})


def test_a_fenced_producer_stops_the_container_with_its_reason(
    cluster: ClusterUnderTest,
    make_live_factory: Callable[..., ProducerFactory],
    fill: Any,
    reader: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target, prefix = cluster.create_topic(), cluster.create_topic(), f"{cluster.fresh('tx')}-"
    factory = make_live_factory(transaction_id_prefix=prefix)
    template = KafkaTemplate(factory)
    rival = make_live_factory(transaction_id_prefix=prefix, client_id="rival")

    def work(value: str) -> None:
        template.send(target, value).result(10)
        monkeypatch.setenv("OTTLA_STATE_DIR", str(tmp_path / "another host"))
        with KafkaTemplate(rival).transaction():
            pass

    container = ConcurrentMessageListenerContainer(
        ConsumerFactory(bootstrap_servers=cluster.bootstrap_servers),
        [source],
        work,
        properties=ContainerProperties(
            group=cluster.fresh("group"), transactional=Transactional(manager=KafkaTransactionManager(factory))
        ),
    )
    fill(source, "a")
    container.start()
    eventually(lambda: container.state is ContainerState.FAILED)
    assert isinstance(container.reason, ProducerFenced)
    assert reader.values(target) == []


def test_a_transaction_that_takes_too_long_goes_to_the_retry_policy_and_the_container_goes_on(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], fill: Any, reader: Any
) -> None:
    source, target = cluster.create_topic(), cluster.create_topic()
    app, errors = make_app(), []

    @app.listener(
        source,
        group=app.name,
        transactional=Transactional(timeout=0.3),
        on_error=ErrorHandler(on_retry=lambda record, error, failures: errors.append(error)),
    )
    def work(record: ConsumerRecord) -> None:
        attempt = record.delivery_attempt or 1
        app.template.send(target, f"attempt {attempt}").result(10)
        if attempt == 1:
            eventually(lambda: not app.template.in_transaction)

    fill(source, "a")
    with app:
        eventually(lambda: reader.values(target) == ["attempt 2"])
        assert app.listeners[app.name].state is ContainerState.RUNNING
    assert [type(error) for error in errors] == [TransactionTimedOut]


@pytest.mark.slow
def test_a_listener_whose_member_was_replaced_aborts_rejoins_and_delivers_again(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], fill: Any, reader: Any
) -> None:
    """It was thought dead while it handled its record: what it sent under its old membership does not count."""
    source, target = cluster.create_topic(), cluster.create_topic()
    app, deliveries = make_app(), []

    @app.listener(
        source,
        group=app.name,
        transactional=True,
        consumer={"max_poll_interval_ms": 1_000, "session_timeout_ms": 1_000, "heartbeat_interval_ms": 200},
    )
    def work(value: str) -> None:
        deliveries.append(value)
        app.template.send(target, f"{value} {len(deliveries)}").result(10)
        if len(deliveries) == 1:
            eventually(lambda: not cluster.admin.describe_groups([app.name])[app.name].members)

    fill(source, "a")
    with app:
        eventually(lambda: reader.values(target) == ["a 2"])
        reader.assert_committed(app.name, {0: 1})
    assert deliveries == ["a", "a"]


CRASH = """
import os, signal, sys
from ottla import Ottla
servers, name, source, target, how = sys.argv[1:]
app = Ottla(servers, name=name, producer={"linger_ms": 0, "transaction_timeout_ms": 600_000})

quick = {"session_timeout_ms": 1500, "heartbeat_interval_ms": 300}

@app.listener(source, group=name, transactional=True, consumer=quick)
def work(value: str) -> None:
    app.template.send(target, value)
    if how == "killed" and value == "c":
        app.template.flush()
        os.kill(os.getpid(), signal.SIGKILL)

app.run(until_idle=4.0)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_in_a_listener_has_each_record_exactly_once_after_its_restart(
    cluster: ClusterUnderTest, fill: Any, reader: Any
) -> None:
    source, target, name = cluster.create_topic(), cluster.create_topic(), cluster.fresh("app")
    fill(source, *"abcde")
    servers = cluster.bootstrap_servers
    for how, code in (("killed", -signal.SIGKILL), ("ends", 0)):
        command = [sys.executable, "-c", textwrap.dedent(CRASH), servers, name, source, target, how]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == code, done.stderr
    reader.assert_sees(target, *"abcde")
    assert len(reader.all_values(target)) > 5, "those of the dead process are there, and aborted"


def test_each_consumer_of_a_container_has_transactions_of_its_own(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], fill: Any, reader: Any
) -> None:
    source, target = cluster.create_topic(4), cluster.create_topic(4)
    app, ids = make_app(), set()

    @app.listener(source, group=app.name, transactional=Transactional.per_record(), concurrency=4)
    def work(record: ConsumerRecord) -> None:
        tx = current_transaction()
        assert tx is not None
        ids.add(tx.transactional_id)
        app.template.send(target, record.value, partition=record.partition)

    for partition in range(4):
        fill(source, *[f"{partition}{number}" for number in range(5)], partition=partition)
    with app:
        eventually(lambda: len(reader.values(target, partitions=4)) == 20)
        reader.assert_committed(app.name, dict.fromkeys(range(4), 5))
    assert reader.values(target, partitions=4) == [
        f"{partition}{number}" for partition in range(4) for number in range(5)
    ]
    assert ids <= {f"{app.producer_factory.default_prefix()}{number}" for number in range(4)}


def test_replies_and_what_interceptors_send_are_part_of_the_transaction(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], fill: Any, reader: Any
) -> None:
    source, replies, audit = (cluster.create_topic() for _ in range(3))
    app, failed = make_app(), []

    class Audit(RecordInterceptor):
        def intercept(self, record: ConsumerRecord, consumer: Any) -> ConsumerRecord:
            app.template.send(audit, record.value).result(10)
            return record

    @app.listener(source, group=app.name, transactional=True, reply_to=replies, interceptors=[Audit()])
    def work(value: str) -> str:
        if not failed:
            failed.append(value)
            raise ValueError
        return value.upper()

    fill(source, "a")
    with app:
        eventually(lambda: (reader.values(replies), reader.values(audit)) == (["A"], ["a"]))
    assert reader.all_values(audit) == ["a", "a"]


def test_a_listener_that_deals_with_its_error_itself_commits(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], fill: Any, reader: Any
) -> None:
    source, target = cluster.create_topic(), cluster.create_topic()
    app = make_app()

    @app.listener(source, group=app.name, transactional=True)
    def work(value: str) -> None:
        try:
            raise ValueError
        except ValueError:
            app.template.send(target, "dealt with")

    fill(source, "a")
    with app:
        eventually(lambda: reader.values(target) == ["dealt with"])
        reader.assert_committed(app.name, {0: 1})


# -- wrong use ---------------------------------------------------------------------------------------------------------


def test_modes_that_commit_by_count_or_time_do_not_go_with_transactions() -> None:
    app = Ottla("localhost:1")
    with pytest.raises(ConfigError, match="max_records"):

        @app.listener("orders", transactional=True, ack=AckMode.COUNT)
        def work(value: str) -> None: ...


@pytest.mark.parametrize("wrong", ["yes", 7, object()])
def test_what_is_no_policy_is_refused_with_what_is(wrong: Any) -> None:
    app = Ottla("localhost:1")
    with pytest.raises(ConfigError, match="KafkaTransactionManager"):
        app.listener("orders", transactional=wrong)(lambda value: None)


@pytest.mark.parametrize("wrong", [{"max_records": 0}, {"max_time": 0.0}])
def test_bounds_are_positive(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Transactional(**wrong)


def test_a_container_built_by_hand_needs_a_manager_and_a_group(make_factory: Callable[..., Any]) -> None:
    consumers = ConsumerFactory(bootstrap_servers="localhost:1")

    def work(value: str) -> None: ...

    with pytest.raises(ConfigError, match="manager=KafkaTransactionManager"):
        ConcurrentMessageListenerContainer(
            consumers, ["t"], work, properties=ContainerProperties(group="g", transactional=Transactional())
        )
    manager = KafkaTransactionManager(make_factory())
    with pytest.raises(ConfigError, match="group"):
        ConcurrentMessageListenerContainer(
            consumers, ["t"], work, properties=ContainerProperties(transactional=Transactional(manager=manager))
        )


@pytest.mark.parametrize(
    ("wanted", "reset", "commits"),
    [
        (AssignmentCommit.LATEST_ONLY_NO_TX, "latest", True),
        (AssignmentCommit.LATEST_ONLY_NO_TX, "earliest", False),
        (AssignmentCommit.LATEST_ONLY, "latest", True),
        (AssignmentCommit.ALWAYS, "earliest", True),
        (AssignmentCommit.NEVER, "latest", False),
    ],
)
def test_when_the_start_of_a_partition_is_committed(wanted: AssignmentCommit, reset: str, commits: bool) -> None:
    container = ConcurrentMessageListenerContainer(
        ConsumerFactory(bootstrap_servers="localhost:1"),
        ["t"],
        lambda value: None,
        properties=ContainerProperties(group="g", assignment_commit=wanted, consumer={"auto.offset.reset": reset}),
    )
    assert container._commits_start() is commits
