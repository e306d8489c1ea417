"""Consumers as members of groups, against a broker of our own."""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ottla.client import AdminClient, AsyncKafkaConsumer, KafkaConsumer, KafkaProducer, TopicPartition
from ottla.client.backoff import Backoff
from ottla.client.config import ConsumerConfig
from ottla.client.consumer import RebalanceListener
from ottla.client.consumer.coordinator_client import CoordinatorClient
from ottla.client.engine import Engine
from ottla.client.topic_partition import ConsumerGroupMetadata, OffsetAndMetadata
from ottla.errors import (
    CommitFailed,
    FencedInstanceId,
    RebalanceInProgress,
    RebalanceListenerFailed,
    UnknownMemberId,
)

NewTopic = Callable[..., str]
FAST = {"heartbeat_interval_ms": 100, "session_timeout_ms": 6_000, "auto_offset_reset": "earliest"}


@pytest.fixture
def group() -> str:
    return f"group-{uuid.uuid4().hex[:8]}"


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


class Recorder(RebalanceListener):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, list[int]]] = []

    def _note(self, event: str, partitions: Any) -> None:
        self.events.append((event, [partition.partition for partition in partitions]))

    def on_partitions_assigned(self, partitions: Any) -> None:
        self._note("assigned", partitions)

    def on_partitions_revoked(self, partitions: Any) -> None:
        self._note("revoked", partitions)

    def on_partitions_lost(self, partitions: Any) -> None:
        self._note("lost", partitions)


class Member:
    """A consumer that polls in a thread of its own."""

    def __init__(self, broker: str, group: str, topics: list[str], **settings: Any) -> None:
        self.listener = Recorder()
        self.records: list[tuple[int, int]] = []
        self.errors: list[BaseException] = []
        self.consumer = KafkaConsumer(bootstrap_servers=broker, group_id=group, **{**FAST, **settings})
        self.consumer.subscribe(topics, listener=self.listener)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.records += [(record.partition, record.offset) for record in self.consumer.poll(0.05)]
            except Exception as error:  # noqa: BLE001 - shown by the test
                self.errors.append(error)
        self.consumer.close(10)

    def owns(self) -> set[int]:
        return {partition.partition for partition in self.consumer.assignment()}

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def members(broker: str, group: str) -> Iterator[Callable[..., Member]]:
    made: list[Member] = []

    def make(topics: list[str], **settings: Any) -> Member:
        made.append(Member(broker, group, topics, **settings))
        return made[-1]

    yield make
    for member in made:
        member.stop()


def fill(producer: KafkaProducer, topic: str, count: int, partition: int = 0) -> None:
    [producer.send(topic, b"v%d" % number, partition=partition) for number in range(count)][-1].result(10)


def joined(broker: str, group: str, topic: str, **settings: Any) -> KafkaConsumer:
    """A member that has its assignment."""
    consumer = KafkaConsumer(bootstrap_servers=broker, group_id=group, **{**FAST, **settings})
    consumer.subscribe([topic], listener=settings.get("listener"))
    deadline = time.monotonic() + 20
    while not consumer.assignment():
        assert time.monotonic() < deadline
        consumer.poll(0.05, max_records=1)
        consumer.seek_to_beginning()
    return consumer


def remove(broker: str, group: str, member_id: str) -> None:
    """Take a member out of its group behind its back, as an administrator may."""
    engine = Engine(ConsumerConfig(bootstrap_servers=broker))

    async def leave() -> None:
        coordinator = CoordinatorClient(engine.cluster, group, None, "admin", Backoff(100, 1_000, random.Random(1)))
        await coordinator.leave(member_id, "removed by a test")

    engine.run(leave(), 10)
    engine.close(5)


# --- offsets


def test_a_group_goes_on_where_it_committed(
    broker: str, group: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = new_topic()
    fill(producer, topic, 10)
    partition = TopicPartition(topic, 0)
    with KafkaConsumer(bootstrap_servers=broker, group_id=group, enable_auto_commit=False, **FAST) as consumer:
        consumer.subscribe([topic])
        assert consumer.committed([partition]) == {partition: None}
        assert len(consumer.poll(10, max_records=4)) == 4
        consumer.commit()
        assert consumer.committed([partition]) == {partition: OffsetAndMetadata(4, 0)}
        consumer.poll(10, max_records=4)
    with KafkaConsumer(bootstrap_servers=broker, group_id=group, enable_auto_commit=False, **FAST) as consumer:
        consumer.subscribe([topic])
        assert [record.offset for record in consumer.poll(10)] == [4, 5, 6, 7, 8, 9]


def test_offsets_are_committed_with_their_metadata_and_outside_of_a_membership(
    broker: str, group: str, new_topic: NewTopic
) -> None:
    topic = new_topic()
    partition = TopicPartition(topic, 0)
    with KafkaConsumer(bootstrap_servers=broker, group_id=group, enable_auto_commit=False) as consumer:
        consumer.assign([partition])
        consumer.commit({partition: OffsetAndMetadata(7, metadata="a note")})
        assert consumer.committed([partition]) == {partition: OffsetAndMetadata(7, metadata="a note")}
        assert consumer.position(partition) == 7


def test_auto_commit_commits_what_was_returned_when_the_consumer_is_closed(
    broker: str, group: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = new_topic()
    fill(producer, topic, 10)
    with KafkaConsumer(bootstrap_servers=broker, group_id=group, **FAST) as consumer:
        consumer.subscribe([topic])
        assert len(consumer.poll(10, max_records=3)) == 3
    with KafkaConsumer(bootstrap_servers=broker, group_id=group) as consumer:
        partition = TopicPartition(topic, 0)
        assert consumer.committed([partition]) == {partition: OffsetAndMetadata(3, 0)}


def test_auto_commit_never_commits_records_of_the_poll_before_it_was_asked_for_more(
    broker: str, group: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    """With an interval of 0 every poll commits: what the polls before it returned, not what it returns itself."""
    topic = new_topic()
    fill(producer, topic, 10)
    partition = TopicPartition(topic, 0)
    with (
        KafkaConsumer(bootstrap_servers=broker, group_id=group, auto_commit_interval_ms=0, **FAST) as consumer,
        KafkaConsumer(bootstrap_servers=broker, group_id=group) as watcher,
    ):
        consumer.subscribe([topic])
        consumer.poll(10, max_records=3)
        time.sleep(0.3)
        before = watcher.committed([partition])[partition]
        assert before is None or before.offset == 0
        consumer.poll(10, max_records=4)
        eventually(lambda: watcher.committed([partition]) == {partition: OffsetAndMetadata(3, 0)})


def test_asynchronous_commits_report_in_the_polling_thread_and_come_before_a_later_commit(
    broker: str, group: str, new_topic: NewTopic
) -> None:
    topic = new_topic()
    partition = TopicPartition(topic, 0)
    reports: list[tuple[Any, Any, int]] = []
    with KafkaConsumer(bootstrap_servers=broker, group_id=group, enable_auto_commit=False) as consumer:
        consumer.assign([partition])
        for offset in (1, 2, 3):
            consumer.commit_async(
                {partition: OffsetAndMetadata(offset)},
                lambda offsets, error: reports.append((offsets, error, threading.get_ident())),
            )
        consumer.commit({partition: OffsetAndMetadata(4)})
        assert [offsets[partition].offset for offsets, _, _ in reports] == [1, 2, 3]
        assert all(error is None and thread == threading.get_ident() for _, error, thread in reports)
        assert consumer.committed([partition]) == {partition: OffsetAndMetadata(4)}


# --- membership


def test_members_share_the_partitions_and_take_over_what_one_leaves_behind(
    new_topic: NewTopic, producer: KafkaProducer, members: Callable[..., Member]
) -> None:
    topic = new_topic(4)
    for partition in range(4):
        fill(producer, topic, 50, partition)
    first = members([topic])
    eventually(lambda: first.owns() == {0, 1, 2, 3})
    second = members([topic])
    eventually(lambda: len(first.owns()) == len(second.owns()) == 2)
    assert first.owns() | second.owns() == {0, 1, 2, 3}
    first.stop()
    eventually(lambda: second.owns() == {0, 1, 2, 3})
    eventually(lambda: len(set(first.records + second.records)) == 200)
    assert len(first.records + second.records) == 200, "committed before each rebalance: nothing is read twice"
    assert not first.errors
    assert not second.errors


def test_eager_members_give_up_everything_and_cooperative_ones_only_what_moves(
    new_topic: NewTopic, members: Callable[..., Member]
) -> None:
    topic = new_topic(4)
    first = members([topic], partition_assignment_strategy="cooperative-sticky")
    eventually(lambda: first.owns() == {0, 1, 2, 3})
    second = members([topic], partition_assignment_strategy="cooperative-sticky")
    eventually(lambda: len(first.owns()) == len(second.owns()) == 2)
    assert first.listener.events[0] == ("assigned", [0, 1, 2, 3])
    (given_up,) = [partitions for event, partitions in first.listener.events if event == "revoked"]
    assert set(given_up) == second.owns()


def test_members_on_one_engine_do_not_wait_for_each_other(broker: str, group: str, new_topic: NewTopic) -> None:
    """Parked on one connection, the first member's JoinGroup would hold up the second's, which it waits for."""
    topic = new_topic(2)
    engine = Engine(ConsumerConfig(bootstrap_servers=broker))
    consumers = [KafkaConsumer(bootstrap_servers=broker, group_id=group, engine=engine, **FAST) for _ in range(2)]
    try:
        for consumer in consumers:
            consumer.subscribe([topic])
        deadline = time.monotonic() + 20
        while [len(consumer.assignment()) for consumer in consumers] != [1, 1]:
            assert time.monotonic() < deadline
            for consumer in consumers:
                consumer.poll(0.02)
    finally:
        for consumer in consumers:
            consumer.close(5)
        engine.close(5)


def test_a_member_that_does_not_poll_loses_its_partitions_and_cannot_commit_them(
    broker: str, group: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = new_topic()
    fill(producer, topic, 3)
    listener = Recorder()
    consumer = joined(broker, group, topic, enable_auto_commit=False, max_poll_interval_ms=700)
    consumer.subscribe([topic], listener=listener)
    partition, metadata = TopicPartition(topic, 0), consumer.group_metadata()

    def is_refused() -> bool:
        try:
            consumer.commit({partition: OffsetAndMetadata(1)})
        except CommitFailed as error:
            return "max_poll_interval_ms" in str(error)
        return False

    eventually(is_refused)
    assert consumer.group_metadata() == metadata, "so that a transaction with its offsets is refused, too"
    eventually(lambda: consumer.poll(0.05) or ("assigned", [0]) in listener.events)
    assert listener.events == [("lost", [0]), ("assigned", [0])]
    consumer.close()


def test_a_commit_of_a_member_that_the_group_has_dropped_says_so_and_the_next_poll_rejoins(
    broker: str, group: str, new_topic: NewTopic
) -> None:
    topic = new_topic()
    consumer = joined(broker, group, topic, enable_auto_commit=False, heartbeat_interval_ms=5_000)
    partition = TopicPartition(topic, 0)
    remove(broker, group, consumer.group_metadata().member_id)
    with pytest.raises(CommitFailed) as caught:
        consumer.commit({partition: OffsetAndMetadata(1)})
    assert isinstance(caught.value.__cause__, UnknownMemberId)
    eventually(lambda: consumer.poll(0.05) or consumer.group_metadata().generation_id > 0)
    eventually(lambda: consumer.poll(0.05) or consumer.assignment())
    consumer.commit({partition: OffsetAndMetadata(1)})
    consumer.close()


def test_a_commit_while_joining_is_told_to_poll_first(
    broker: str, group: str, new_topic: NewTopic, members: Callable[..., Member]
) -> None:
    topic = new_topic(2)
    consumer = joined(broker, group, topic, enable_auto_commit=False)
    other = KafkaConsumer(bootstrap_servers=broker, group_id=group, **FAST)
    other.subscribe([topic])
    eventually(lambda: consumer.poll(0.02) or other.poll(0.02) or len(other.assignment()) == 1)
    consumer.enforce_rebalance()
    consumer.poll(0.1)  # from here on the group waits for the other, which does not poll
    with pytest.raises(RebalanceInProgress, match="poll"):
        consumer.commit({TopicPartition(topic, 0): OffsetAndMetadata(1)})
    other.close(5)
    consumer.close(5)


def test_a_member_whose_join_waits_for_others_can_still_ask_and_leave(
    broker: str, group: str, new_topic: NewTopic
) -> None:
    """On one connection everything else would wait behind the JoinGroup that waits for the other member."""
    topic = new_topic(2)
    patient = {"enable_auto_commit": False, "session_timeout_ms": 30_000}
    consumer = joined(broker, group, topic, **patient)
    other = KafkaConsumer(bootstrap_servers=broker, group_id=group, **{**FAST, **patient})
    other.subscribe([topic])
    eventually(lambda: consumer.poll(0.02) or other.poll(0.02) or len(other.assignment()) == 1)
    consumer.enforce_rebalance()
    consumer.poll(0.1)
    partition = TopicPartition(topic, 0)
    assert consumer.committed([partition], timeout=5) == {partition: None}
    consumer.close(5)
    eventually(lambda: other.poll(0.05) or len(other.assignment()) == 2, seconds=15)
    other.close()


def test_a_static_member_comes_back_to_its_partitions_without_a_rebalance(
    broker: str, group: str, new_topic: NewTopic, members: Callable[..., Member]
) -> None:
    topic = new_topic(2)
    stays = members([topic], group_instance_id="stays")
    goes = members([topic], group_instance_id="goes")
    eventually(lambda: len(stays.owns()) == len(goes.owns()) == 1)
    owned, generation = goes.owns(), stays.consumer.group_metadata().generation_id
    events = list(stays.listener.events)
    goes.stop()
    back = members([topic], group_instance_id="goes")
    eventually(lambda: back.owns() == owned)
    assert back.consumer.group_metadata().generation_id == generation
    assert stays.listener.events == events


def test_a_static_member_that_was_replaced_is_fenced_for_good(
    broker: str, group: str, new_topic: NewTopic, members: Callable[..., Member]
) -> None:
    topic = new_topic()
    first = members([topic], group_instance_id="one")
    eventually(lambda: first.owns() == {0})
    second = members([topic], group_instance_id="one")
    eventually(lambda: second.owns() == {0})
    eventually(lambda: len(first.errors) > 3)
    assert all(isinstance(error, FencedInstanceId) for error in first.errors)
    assert not second.errors


def test_a_listener_may_use_the_consumer_and_its_commit_counts(
    broker: str, group: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = new_topic()
    fill(producer, topic, 10)
    partition = TopicPartition(topic, 0)
    consumer = KafkaConsumer(bootstrap_servers=broker, group_id=group, enable_auto_commit=False, **FAST)

    class Seeking(RebalanceListener):
        def on_partitions_assigned(self, partitions: Any) -> None:
            for assigned in partitions:
                consumer.seek(assigned, 6)
                assert consumer.position(assigned) == 6

        def on_partitions_revoked(self, partitions: Any) -> None:
            consumer.commit({assigned: OffsetAndMetadata(9) for assigned in partitions})

    consumer.subscribe([topic], listener=Seeking())
    assert [record.offset for record in consumer.poll(20)] == [6, 7, 8, 9]
    consumer.close()
    with KafkaConsumer(bootstrap_servers=broker, group_id=group) as watcher:
        assert watcher.committed([partition]) == {partition: OffsetAndMetadata(9)}


def test_what_a_listener_raises_comes_out_of_poll_and_the_assignment_stands(
    broker: str, group: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = new_topic()
    fill(producer, topic, 1)

    class Failing:
        def on_partitions_assigned(self, partitions: Any) -> None:
            raise ZeroDivisionError

    with KafkaConsumer(bootstrap_servers=broker, group_id=group, **FAST) as consumer:
        consumer.subscribe([topic], listener=Failing())
        with pytest.raises(RebalanceListenerFailed) as caught:
            consumer.poll(20)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert len(consumer.poll(20)) == 1


def test_an_async_listener_is_awaited_where_the_application_polls(
    broker: str, group: str, new_topic: NewTopic, producer: KafkaProducer
) -> None:
    topic = new_topic()
    fill(producer, topic, 5)
    events: list[object] = []

    async def run() -> None:
        consumer = AsyncKafkaConsumer(bootstrap_servers=broker, group_id=group, enable_auto_commit=False, **FAST)

        class Listener:
            async def on_partitions_assigned(self, partitions: Any) -> None:
                await asyncio.sleep(0.01)
                events.append(("assigned", asyncio.current_task()))

            async def on_partitions_revoked(self, partitions: Any) -> None:
                await consumer.commit()
                events.append("committed")

        consumer.subscribe([topic], listener=Listener())
        assert len(await consumer.poll(20)) == 5
        assert events == [("assigned", asyncio.current_task())]
        await consumer.close()
        assert events[1:] == ["committed"]

    asyncio.run(run())


def test_a_plain_consumer_refuses_an_async_listener(broker: str, group: str, new_topic: NewTopic) -> None:
    class Listener:
        async def on_partitions_assigned(self, partitions: Any) -> None: ...

    with KafkaConsumer(bootstrap_servers=broker, group_id=group, **FAST) as consumer:
        consumer.subscribe([new_topic()], listener=Listener())
        with pytest.raises(RebalanceListenerFailed, match="async"):
            consumer.poll(20)


def test_a_pattern_takes_in_topics_that_come_later(
    broker: str, group: str, new_topic: NewTopic, members: Callable[..., Member]
) -> None:
    stem = f"p{uuid.uuid4().hex[:6]}"
    new_topic(1, f"{stem}-a")
    new_topic(1, f"x{stem}-a")
    with KafkaConsumer(bootstrap_servers=broker, group_id=group, metadata_max_age_ms=200, **FAST) as consumer:
        consumer.subscribe(pattern=re.compile(f"{stem}-.*"))
        eventually(lambda: consumer.poll(0.05) or consumer.assignment() == [TopicPartition(f"{stem}-a", 0)])
        new_topic(1, f"{stem}-b")
        eventually(lambda: consumer.poll(0.05) or len(consumer.assignment()) == 2)
        assert consumer.subscription() == {f"{stem}-a", f"{stem}-b"}


def test_the_leader_sees_a_topic_appear_and_get_more_partitions(broker: str, group: str, new_topic: NewTopic) -> None:
    topic = f"later-{uuid.uuid4().hex[:6]}"
    settings = {**FAST, "metadata_max_age_ms": 200, "allow_auto_create_topics": False}
    with (
        KafkaConsumer(bootstrap_servers=broker, group_id=group, **settings) as consumer,
        AdminClient(bootstrap_servers=broker) as admin,
    ):
        consumer.subscribe([topic])
        assert consumer.poll(0.5) == []
        new_topic(1, topic)
        eventually(lambda: consumer.poll(0.05) or len(consumer.assignment()) == 1)
        admin.create_partitions({topic: 3})
        eventually(lambda: consumer.poll(0.05) or len(consumer.assignment()) == 3)


def test_a_changed_subscription_and_enforce_rebalance_take_effect_with_the_next_poll(
    broker: str, group: str, new_topic: NewTopic
) -> None:
    first, second = new_topic(), new_topic()
    consumer = joined(broker, group, first)
    generation = consumer.group_metadata().generation_id
    consumer.subscribe([first, second])
    eventually(lambda: consumer.poll(0.05) or len(consumer.assignment()) == 2)
    consumer.enforce_rebalance("why not")
    eventually(lambda: consumer.poll(0.05) or consumer.group_metadata().generation_id == generation + 2)
    consumer.close()


def test_unsubscribing_leaves_the_group_at_once(broker: str, group: str, new_topic: NewTopic) -> None:
    topic = new_topic()
    consumer = joined(broker, group, topic)
    metadata = consumer.group_metadata()
    assert (metadata.group_id, metadata.generation_id) == (group, 1)
    assert metadata.member_id
    consumer.unsubscribe()
    assert consumer.assignment() == []
    assert consumer.group_metadata() == ConsumerGroupMetadata(group)
    other = joined(broker, group, topic)  # would wait for a session timeout if the first were still a member
    other.close()
    consumer.subscribe([topic])
    eventually(lambda: consumer.poll(0.05) or consumer.assignment())
    consumer.close()
