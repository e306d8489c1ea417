"""The relay: every row once, in order, whatever happens between its steps."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, create_engine, func, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from ottla import Ottla, ProducerFactory
from ottla.client import AdminClient
from ottla.client.admin import NewTopic
from ottla.errors import ConfigError, MessageTooLarge, NoAnswer, OutboxStopped, UnknownTopicOrPartition
from ottla.transaction import Outbox, Relay, RelayState
from ottla.transaction.outbox_store import OutboxStore
from ottla.transaction.relay_kafka import RelayKafka


def eventually(satisfied: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := satisfied()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)
    return answer


@pytest.fixture
def outbox(engine: Engine, metadata: MetaData) -> Outbox:
    outbox = Outbox(metadata)
    metadata.create_all(engine)
    return outbox


@pytest.fixture
def factory(kafka: Any) -> Iterator[ProducerFactory]:
    with ProducerFactory(bootstrap_servers=kafka.bootstrap_servers, linger_ms=0, max_block_ms=2_000) as factory:
        yield factory


@pytest.fixture
def make_relay(outbox: Outbox, engine: Engine, factory: ProducerFactory) -> Iterator[Callable[..., Relay]]:
    made: list[Relay] = []

    def make(**arguments: Any) -> Relay:
        made.append(outbox.relay(engine, factory, **{"poll_interval": 0.05, "lease": 3.0, **arguments}))
        return made[-1]

    yield make
    for relay in made:
        relay._abandoned = True
        relay.stop(10)


def write(outbox: Outbox, engine: Engine, topic: str, *values: str) -> None:
    with engine.begin() as connection:
        for value in values:
            outbox.send(connection, topic, value)


def count(outbox: Outbox, engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(outbox.table)).scalar_one()


# -- what it does ------------------------------------------------------------------------------------------------------


def test_rows_become_records_as_they_were_written(
    make_relay: Callable[..., Relay], outbox: Outbox, engine: Engine, reader: Any, kafka_topic: str
) -> None:
    with engine.begin() as connection:
        outbox.send(connection, kafka_topic, "a", key="k", headers={"h": "v"}, timestamp_ms=1_700_000_000_123)
        outbox.send(connection, kafka_topic, None, key="k", partition=0)
    with make_relay():
        eventually(lambda: count(outbox, engine) == 0)
    first, second = reader.records(kafka_topic)
    assert (first.key, first.value, first.header("h"), first.timestamp_ms) == (b"k", b"a", b"v", 1_700_000_000_123)
    assert (second.key, second.value) == (b"k", None)


def test_many_rows_are_sent_in_order_in_batches(
    make_relay: Callable[..., Relay], outbox: Outbox, engine: Engine, reader: Any, kafka_topic: str
) -> None:
    values = [str(number) for number in range(250)]
    write(outbox, engine, kafka_topic, *values)
    relay = make_relay(batch_rows=20)
    with relay:
        pass  # a stop sends what is there
    assert reader.values(kafka_topic) == values
    assert relay.relayed == 250
    assert count(outbox, engine) == 0


def test_a_batch_ends_where_it_has_enough_bytes(outbox: Outbox, engine: Engine) -> None:
    write(outbox, engine, "t", *["x" * 400] * 5)
    store = OutboxStore(outbox, engine)
    store.settled(0)
    settled = store.settled(0)
    assert len(store.batch(0, settled, 100, 1_000)) == 3
    assert len(store.batch(0, settled, 100, 1)) == 1
    assert len(store.batch(0, settled, 2, 1_000_000)) == 2


@pytest.mark.parametrize("way", ["session", "connection"])
def test_what_this_process_writes_is_looked_for_at_once(
    make_relay: Callable[..., Relay], outbox: Outbox, engine: Engine, reader: Any, kafka_topic: str, way: str
) -> None:
    relay = make_relay(poll_interval=60.0)
    with relay:
        eventually(lambda: relay.state is RelayState.ACTIVE)
        if way == "session":
            with Session(engine) as session, session.begin():
                outbox.send(session, kafka_topic, "a")
        else:
            write(outbox, engine, kafka_topic, "a")
        eventually(lambda: relay.relayed == 1)


def test_relayed_rows_are_kept_as_long_as_wanted(
    outbox: Outbox, engine: Engine, make_relay: Any, kafka_topic: str
) -> None:
    write(outbox, engine, kafka_topic, "a", "b")
    relay = make_relay(retention=3600.0)
    with relay:
        eventually(lambda: relay.relayed == 2)
    assert count(outbox, engine) == 2
    store = OutboxStore(outbox, engine)
    assert store.purge(store.state().position, 0) == 0
    assert store.purge(1, time.time_ns() // 1_000_000 + 10_000) == 1, "what was not relayed stays, however old"
    again = make_relay(retention=3600.0)
    with again:
        eventually(lambda: again.state is RelayState.ACTIVE)
    assert again.relayed == 0, "a row that is kept is not sent again"


def test_a_relay_runs_with_an_application_and_sends_what_its_listeners_wrote_last(
    outbox: Outbox, engine: Engine, kafka: Any, reader: Any, kafka_topic: str
) -> None:
    app = Ottla(kafka.bootstrap_servers, name=f"app-{kafka_topic}")
    relay = outbox.relay(engine)
    app.include(relay)
    with app:
        eventually(lambda: relay.state is RelayState.ACTIVE)
        write(outbox, engine, kafka_topic, "a")
    assert relay.state is RelayState.STOPPED
    assert reader.values(kafka_topic) == ["a"]


def test_an_application_ends_with_the_reason_of_its_relay(
    outbox: Outbox, engine: Engine, kafka: Any, kafka_topic: str
) -> None:
    app = Ottla(kafka.bootstrap_servers, name=f"app-{kafka_topic}", producer={"max_request_size": 1_000})
    app.include(outbox.relay(engine))
    app.use_broker_process = lambda: None  # type: ignore[method-assign]
    write(outbox, engine, kafka_topic, "x" * 2_000)
    with pytest.raises(OutboxStopped, match="row 1"):
        app.run()


# -- the position ------------------------------------------------------------------------------------------------------


def test_a_crash_after_kafkas_commit_and_before_the_database_hears_of_it_doubles_nothing(
    make_relay: Callable[..., Relay],
    outbox: Outbox,
    engine: Engine,
    reader: Any,
    kafka_topic: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(outbox, engine, kafka_topic, "a", "b")

    def lost(*_: Any, **__: Any) -> None:
        raise OperationalError("UPDATE", {}, Exception("the connection is gone"))

    relay = make_relay()
    with monkeypatch.context() as patch:
        patch.setattr(relay._store, "advance", lambda position, forget: None if position == 0 else lost())
        with relay:
            eventually(lambda: relay.relayed == 2)
    assert count(outbox, engine) == 2
    assert OutboxStore(outbox, engine).state().position == 0
    write(outbox, engine, kafka_topic, "c")
    with make_relay():
        eventually(lambda: count(outbox, engine) == 0)
    assert reader.values(kafka_topic) == ["a", "b", "c"]


def test_a_crash_before_kafkas_commit_loses_nothing(
    make_relay: Callable[..., Relay],
    outbox: Outbox,
    engine: Engine,
    reader: Any,
    kafka_topic: str,
    factory: ProducerFactory,
) -> None:
    write(outbox, engine, kafka_topic, "a", "b")
    store = OutboxStore(outbox, engine)
    dying = RelayKafka(store.state().outbox_id, factory)
    assert dying.open() is None
    producer = dying._producer
    producer.begin_transaction()
    producer.send(kafka_topic, b"a").result(10)
    producer.send(dying.topic, b'{"position": 1}', partition=0).result(10)
    with make_relay():
        eventually(lambda: count(outbox, engine) == 0)
    dying.close()
    assert reader.values(kafka_topic) == ["a", "b"]


def test_a_commit_of_unknown_outcome_is_settled_by_the_position(
    make_relay: Callable[..., Relay],
    outbox: Outbox,
    engine: Engine,
    reader: Any,
    kafka_topic: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twice: once the commit has happened and its answer was lost, once it has not."""
    from ottla.client import KafkaProducer

    real = KafkaProducer.commit_transaction
    faults = ["after", "before"]

    def commit(producer: Any, *args: Any, **kwargs: Any) -> None:
        fault = faults.pop(0) if faults else None
        if fault != "before":
            real(producer, *args, **kwargs)
        if fault is not None:
            raise NoAnswer("nobody answers")

    monkeypatch.setattr(KafkaProducer, "commit_transaction", commit)
    write(outbox, engine, kafka_topic, *"abcdef")
    relay = make_relay(batch_rows=2)
    with relay:
        eventually(lambda: count(outbox, engine) == 0)
    assert faults == []
    assert reader.values(kafka_topic) == list("abcdef")


def test_the_position_is_found_behind_many_aborted_attempts(
    outbox: Outbox, engine: Engine, kafka_topic: str, factory: ProducerFactory, make_relay: Any
) -> None:
    write(outbox, engine, kafka_topic, "a")
    with make_relay() as relay:
        eventually(lambda: relay.relayed == 1)
    kafka = RelayKafka(OutboxStore(outbox, engine).state().outbox_id, factory)
    assert kafka.open() == 1
    for _ in range(110):
        kafka._producer.begin_transaction()
        kafka._producer.send(kafka.topic, json.dumps({"position": 99}).encode(), partition=0)
        kafka._producer.flush(10)
        kafka._producer.abort_transaction()
    kafka.close(5)
    again = RelayKafka(OutboxStore(outbox, engine).state().outbox_id, factory)
    assert again.open() == 1
    again.close(5)


def test_a_database_that_was_restored_to_an_earlier_state_stops_the_relay(
    make_relay: Callable[..., Relay], outbox: Outbox, engine: Engine, metadata: MetaData, kafka_topic: str
) -> None:
    write(outbox, engine, kafka_topic, "a", "b")
    with make_relay() as relay:
        eventually(lambda: relay.relayed == 2)
    outbox.table.drop(engine)
    metadata.create_all(engine)
    write(outbox, engine, kafka_topic, "c")
    relay = make_relay()
    relay.start()
    eventually(lambda: relay.state is RelayState.FAILED)
    assert "restored" in str(relay.reason)


def test_ids_of_deleted_rows_never_come_again(
    make_relay: Any, outbox: Outbox, engine: Engine, reader: Any, kafka_topic: str
) -> None:
    for value in "abc":
        write(outbox, engine, kafka_topic, value)
        with make_relay():
            eventually(lambda: count(outbox, engine) == 0)
    assert reader.values(kafka_topic) == ["a", "b", "c"]


# -- several relays ----------------------------------------------------------------------------------------------------


def test_a_second_relay_stands_by_and_takes_over_when_the_first_stops(
    make_relay: Callable[..., Relay], outbox: Outbox, engine: Engine, reader: Any, kafka_topic: str
) -> None:
    first, second = make_relay(), make_relay()
    first.start()
    eventually(lambda: first.state is RelayState.ACTIVE)
    second.start()
    eventually(lambda: second.state is RelayState.STANDBY)
    write(outbox, engine, kafka_topic, "a")
    eventually(lambda: first.relayed == 1)
    first.stop()
    write(outbox, engine, kafka_topic, "b")
    eventually(lambda: second.relayed == 1)
    assert reader.values(kafka_topic) == ["a", "b"]


def test_a_relay_that_has_lost_its_lease_without_noticing_is_fenced(
    outbox: Outbox, engine: Engine, reader: Any, kafka_topic: str, factory: ProducerFactory
) -> None:
    write(outbox, engine, kafka_topic, "a", "b")
    store = OutboxStore(outbox, engine)
    store.settled(0)
    rows = store.batch(0, store.settled(0), 10, 1_000_000)
    frozen = RelayKafka(store.state().outbox_id, factory)
    frozen.open()
    taking_over = RelayKafka(store.state().outbox_id, factory)
    taking_over.open()
    taking_over.relay(rows)
    with pytest.raises(Exception, match=r"(?i)fenced|epoch") as caught:
        frozen.relay(rows)
    assert not isinstance(caught.value, AssertionError)
    frozen.close()
    taking_over.close(5)
    assert reader.values(kafka_topic) == ["a", "b"]


def test_the_lease_is_one_relays_until_it_is_over_or_given_up(outbox: Outbox, engine: Engine) -> None:
    store = OutboxStore(outbox, engine)
    store.state()
    assert store.lease("one", 30)
    assert store.lease("one", 30)
    assert not store.lease("two", 30)
    store.release("two")
    assert not store.lease("two", 30)
    store.release("one")
    assert store.lease("two", -1)
    assert store.lease("one", 30), "the other one's is over"


def test_two_databases_have_outboxes_of_different_names(engine: Engine, outbox: Outbox, metadata: MetaData) -> None:
    other = create_engine("sqlite://")
    metadata.create_all(other)
    assert OutboxStore(outbox, engine).state() == OutboxStore(outbox, engine).state()
    assert OutboxStore(outbox, engine).state() != OutboxStore(outbox, other).state()
    other.dispose()


# -- rows that Kafka refuses -------------------------------------------------------------------------------------------


@pytest.fixture
def narrow_topic(kafka: Any, kafka_topic: str) -> str:
    """Takes no record above 1,000 bytes."""
    with AdminClient(bootstrap_servers=kafka.bootstrap_servers) as admin:
        name = f"{kafka_topic}-narrow"[-200:]
        admin.create_topics([NewTopic(name, partitions=1, configs={"max.message.bytes": 1_000})])
    return name


def test_a_row_that_is_refused_stops_the_relay_with_a_reason_and_the_rows_before_it_are_sent(
    make_relay: Callable[..., Relay], outbox: Outbox, engine: Engine, reader: Any, kafka_topic: str, narrow_topic: str
) -> None:
    write(outbox, engine, kafka_topic, "a", "b")
    write(outbox, engine, narrow_topic, "x" * 5_000)
    write(outbox, engine, kafka_topic, "c")
    relay = make_relay()
    relay.start()
    eventually(lambda: relay.state is RelayState.FAILED)
    assert isinstance(relay.reason, OutboxStopped)
    assert "row 3" in str(relay.reason)
    assert isinstance(relay.reason.__cause__, MessageTooLarge) or "TooLarge" in str(relay.reason)
    assert reader.values(kafka_topic) == ["a", "b"]
    with engine.begin() as connection:
        connection.execute(update(outbox.table).where(outbox.table.c.id == 3).values(record_value=b"short"))
    relay.start()
    eventually(lambda: count(outbox, engine) == 0)
    assert reader.values(kafka_topic) == ["a", "b", "c"]
    assert reader.values(narrow_topic) == ["short"]


def test_a_row_that_is_refused_may_be_parked_and_tried_again(
    make_relay: Callable[..., Relay], outbox: Outbox, engine: Engine, reader: Any, kafka_topic: str, narrow_topic: str
) -> None:
    for topic, value in ((kafka_topic, "a"), (narrow_topic, "x" * 5_000), (kafka_topic, "b")):
        write(outbox, engine, topic, value)
    with make_relay(on_refused="park") as relay:
        eventually(lambda: relay.relayed == 2)
        with Session(engine) as session, session.begin():
            (parked,) = outbox.parked(session)
            assert parked.topic == narrow_topic
            assert "TooLarge" in str(parked.error)
            session.execute(update(outbox.table).values(record_value=b"short"))
            assert outbox.retry_parked(session, [parked.id + 1000]) == 0
            assert outbox.retry_parked(session) == 1
        eventually(lambda: count(outbox, engine) == 0)
    assert reader.values(kafka_topic) == ["a", "b"]
    assert reader.values(narrow_topic) == ["short"]


def test_an_unknown_topic_is_waited_for_and_then_refused(outbox: Outbox, engine: Engine, reader: Any) -> None:
    from ottla.embedded import EmbeddedKafka

    write(outbox, engine, "known", "a")
    write(outbox, engine, "unknown", "b")
    config = {"auto.create.topics.enable": "false"}
    with EmbeddedKafka(topics={"known": 1}, config=config) as kafka:
        servers = kafka.bootstrap_servers
        with ProducerFactory(bootstrap_servers=servers, linger_ms=0, max_block_ms=300) as factory:
            relay = outbox.relay(engine, factory, poll_interval=0.05)
            relay.start()
            eventually(lambda: relay.state is RelayState.FAILED)
            assert isinstance(relay.reason, OutboxStopped)
            assert "'unknown'" in str(relay.reason)
            assert isinstance(relay.reason.__cause__, (UnknownTopicOrPartition, NoAnswer))
            assert type(reader)(servers).values("known") == ["a"]
            with AdminClient(bootstrap_servers=servers) as admin:
                admin.create_topics([NewTopic("unknown", partitions=1)])
            with relay:
                eventually(lambda: count(outbox, engine) == 0)
            assert type(reader)(servers).values("unknown") == ["b"]


def test_a_relay_has_failed_once_its_lease_is_given_up_and_may_be_started_again_at_once(
    outbox: Outbox,
    engine: Engine,
    make_relay: Callable[..., Relay],
    kafka_topic: str,
    narrow_topic: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its thread may take seconds to end, when producer and lease are given up: a start in between is not lost."""
    ending, go_on = threading.Event(), threading.Event()
    release = OutboxStore.release

    def slowly(store: OutboxStore, owner: str) -> None:
        ending.set()
        assert go_on.wait(20)
        release(store, owner)

    monkeypatch.setattr(OutboxStore, "release", slowly)
    write(outbox, engine, narrow_topic, "x" * 5_000)
    relay = make_relay()
    relay.start()
    assert ending.wait(20)
    assert relay.state is not RelayState.FAILED
    go_on.set()
    eventually(lambda: relay.state is RelayState.FAILED)
    with engine.begin() as connection:
        connection.execute(outbox.table.delete())
    write(outbox, engine, kafka_topic, "a")
    with relay:
        eventually(lambda: count(outbox, engine) == 0)


def test_kafka_being_away_is_waited_for(
    make_relay: Callable[..., Relay],
    outbox: Outbox,
    engine: Engine,
    reader: Any,
    kafka_topic: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, tries = RelayKafka.open, []

    def away(kafka: RelayKafka) -> int | None:
        tries.append(1)
        if len(tries) < 3:
            raise NoAnswer("nobody there")
        return real(kafka)

    monkeypatch.setattr(RelayKafka, "open", away)
    write(outbox, engine, kafka_topic, "a")
    with make_relay() as relay:
        eventually(lambda: relay.relayed == 1)
    assert reader.values(kafka_topic) == ["a"]


def test_stopping_does_not_wait_for_a_kafka_that_is_away(
    make_relay: Callable[..., Relay], outbox: Outbox, engine: Engine, kafka_topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = threading.Event()

    def away(_: RelayKafka) -> int | None:
        tried.set()
        raise NoAnswer("nobody there")

    monkeypatch.setattr(RelayKafka, "open", away)
    write(outbox, engine, kafka_topic, "a")
    relay = make_relay()
    relay.start()
    assert tried.wait(10)
    relay.stop(1.0)
    assert relay.state is RelayState.STOPPED
    assert count(outbox, engine) == 1, "it is there for the next start"


def test_wrong_use_is_said_before_anything_runs(outbox: Outbox, engine: Engine, async_url: str, factory: Any) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    with pytest.raises(ConfigError, match="on_refused"):
        outbox.relay(engine, factory, on_refused="skip")
    with pytest.raises(ConfigError, match="batch_rows"):
        outbox.relay(engine, factory, batch_rows=0)
    with pytest.raises(ConfigError, match="plain engine"):
        outbox.relay(create_async_engine(async_url), factory)
    with pytest.raises(ConfigError, match="client settings"):
        outbox.relay(engine).start()
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE ottla_outbox_state"))
    with pytest.raises(ConfigError, match="create_all"):
        outbox.relay(engine, factory).start()
