"""What a Spring user counts on when transactional listeners fail, on our broker and on Apache Kafka."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ottla import (
    AckMode,
    Acknowledgment,
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
    Retry,
    Transactional,
)
from ottla.errors import ProducerFenced
from support.clusters import ClusterUnderTest, eventually


@pytest.fixture
def fill(cluster: ClusterUnderTest, make_live_factory: Callable[..., ProducerFactory]) -> Callable[..., None]:
    """Write `name + partition` to each of the partitions, all in one transaction, so that one poll may bring them."""

    def write(topic: str, *names: str, partitions: int = 1) -> None:
        template = KafkaTemplate(make_live_factory())
        with template.transaction():
            for partition in range(partitions):
                for name in names:
                    template.send(topic, f"{name}{partition}", partition=partition)

    return write


def test_by_default_a_record_is_delivered_ten_times_and_then_passed_over_with_its_offset(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], fill: Any, reader: Any
) -> None:
    source, target = cluster.create_topic(), cluster.create_topic()
    app, attempts = make_app(), []

    @app.listener(source, group=app.name, transactional=Transactional.per_record())
    def work(record: ConsumerRecord) -> None:
        app.template.send(target, record.value)
        if record.value == b"poison0":
            attempts.append(record.delivery_attempt or 1)
            raise ValueError("poison")

    fill(source, "a", "poison", "b")
    with app:
        eventually(lambda: reader.values(target) == ["a0", "b0"])
        eventually(lambda: reader.committed(app.name).get(0, 0) >= 3)
    assert attempts == list(range(1, 11))


def test_each_partitions_part_of_a_batch_is_a_transaction_and_a_failed_one_does_not_hold_the_others_up(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], fill: Any, reader: Any
) -> None:
    source, target = cluster.create_topic(3), cluster.create_topic()
    app, failures = make_app(), []

    @app.listener(
        source,
        group=app.name,
        transactional=True,
        container={"sub_batch_per_partition": True},
        on_error=ErrorHandler(retry=Retry.fixed(0.5, attempts=20)),
    )
    def work(records: list[ConsumerRecord]) -> None:
        assert len({record.partition for record in records}) == 1
        for record in records:
            app.template.send(target, record.value)
        if records[0].partition == 1 and not reader.committed(app.name).keys() >= {0, 2}:
            failures.append(len(records))
            raise ValueError("not before the others")

    fill(source, "a", "b", partitions=3)
    with app:
        eventually(lambda: len(reader.values(target)) == 6)
        eventually(lambda: all(reader.committed(app.name).get(index, 0) >= 2 for index in range(3)))
    assert failures
    assert sorted(reader.values(target)) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert reader.values(target)[-2:] == ["a1", "b1"]


def test_a_batch_that_always_fails_is_recovered_record_by_record_and_its_offsets_are_committed(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], fill: Any, reader: Any
) -> None:
    """Spring repeats it for ever by default."""
    source, target, dead = (cluster.create_topic() for _ in range(3))
    app = make_app()

    def to_dead_letters(record: ConsumerRecord, error: BaseException) -> None:
        app.template.send(dead, record.value)

    @app.listener(
        source,
        group=app.name,
        transactional=True,
        on_error=ErrorHandler(retry=Retry.fixed(0, attempts=2), recover=to_dead_letters),
    )
    def work(values: list[str]) -> None:
        for value in values:
            app.template.send(target, value)
        if "poison0" in values:
            app.template.flush()
            raise ValueError("poison")

    fill(source, "poison", "a")
    with app:
        eventually(lambda: "poison0" in reader.values(dead))
        eventually(lambda: len(reader.values(dead)) + len(reader.values(target)) == 2)
        eventually(lambda: reader.committed(app.name).get(0, 0) >= 2)
    assert "poison0" in reader.all_values(target)
    assert "poison0" not in reader.values(target)


def test_a_nack_in_a_batch_commits_the_offsets_before_it_and_the_sends_and_the_rest_comes_again(
    cluster: ClusterUnderTest, make_app: Callable[..., Ottla], fill: Any, reader: Any
) -> None:
    source, target = cluster.create_topic(), cluster.create_topic()
    app, committed = make_app(), []

    @app.listener(source, group=app.name, transactional=True, ack=AckMode.MANUAL)
    def work(values: list[str], acknowledgment: Acknowledgment) -> None:
        committed.append(reader.committed(app.name).get(0))
        app.template.send(target, "+".join(values))
        if len(values) > 1:
            acknowledgment.nack(1)
        else:
            acknowledgment.acknowledge()

    fill(source, "a", "b", "c")
    with app:
        eventually(lambda: reader.values(target)[-1:] == ["c0"])
        eventually(lambda: reader.committed(app.name).get(0, 0) >= 3)
    assert reader.values(target) == ["a0+b0+c0", "b0+c0", "c0"]
    assert committed[0] is None
    if cluster.name == "ottla":
        assert committed == [None, 1, 2]


def test_a_fence_in_one_consumer_of_a_container_stops_the_whole_container(
    cluster: ClusterUnderTest,
    make_live_factory: Callable[..., ProducerFactory],
    fill: Any,
    reader: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target, prefix = cluster.create_topic(2), cluster.create_topic(), f"{cluster.fresh('tx')}-"
    factory = make_live_factory(transaction_id_prefix=prefix)
    template = KafkaTemplate(factory)
    rival = KafkaTemplate(make_live_factory(transaction_id_prefix=prefix, client_id="rival"))

    def work(value: str) -> None:
        template.send(target, value).result(10)
        monkeypatch.setenv("OTTLA_STATE_DIR", str(tmp_path / "another host"))
        with rival.transaction():
            pass

    container = ConcurrentMessageListenerContainer(
        ConsumerFactory(bootstrap_servers=cluster.bootstrap_servers),
        [source],
        work,
        concurrency=2,
        properties=ContainerProperties(
            group=cluster.fresh("group"), transactional=Transactional(manager=KafkaTransactionManager(factory))
        ),
    )
    fill(source, "a")
    container.start()
    eventually(lambda: container.state is ContainerState.FAILED)
    assert isinstance(container.reason, ProducerFenced)
    assert reader.values(target) == []
