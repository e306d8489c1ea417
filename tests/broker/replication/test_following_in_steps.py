"""Following the metadata a few partitions at a time, while it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ottla_broker.controller.image import MetadataDelta
from ottla_broker.replication.replica_manager import PARTITIONS_PER_STEP
from ottla_wire.errors import NotLeaderOrFollower
from ottla_wire.messages.create_topics import CreatableTopic, CreateTopicsRequest
from ottla_wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from ottla_wire.messages.metadata import MetadataRequest

MANY = PARTITIONS_PER_STEP * 2 + 5


class SteppingBench:
    """A broker on the bench whose replicas follow in steps."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.controller = bench.controller
        self.replicas = bench.replicas

    def create(self, *names: str, partitions: int) -> Any:
        topics = [CreatableTopic(name=name, num_partitions=partitions, replication_factor=1) for name in names]
        return self.controller.create_topics(CreateTopicsRequest(topics=topics, timeout_ms=1000))

    def delete(self, name: str) -> Any:
        return self.controller.delete_topics(DeleteTopicsRequest(topics=[DeleteTopicState(name=name)], timeout_ms=1000))

    def open(self, topic: str) -> int:
        return sum(partition.topic == topic for partition in self.replicas)


@pytest.fixture
def stepping(make_bench: Any, monkeypatch: pytest.MonkeyPatch) -> SteppingBench:
    def follow(bench: Any, delta: MetadataDelta) -> Iterator[None]:
        return iter(bench.replicas.apply_in_steps(delta))

    bench = make_bench()
    bench.controller._listeners[:] = [lambda delta: follow(bench, delta)]
    return SteppingBench(bench)


def test_partitions_are_opened_a_step_at_a_time_and_others_are_answered_in_between(stepping: SteppingBench) -> None:
    answer = stepping.create("orders", partitions=MANY)
    for opened in (PARTITIONS_PER_STEP, 2 * PARTITIONS_PER_STEP):
        assert stepping.open("orders") == opened
        assert not answer.done()
        assert stepping.bench.broker.deadline_ms() == 0
        topics = stepping.bench.ask(MetadataRequest(topics=None), 9).topics
        assert [len(topic.partitions) for topic in topics] == [MANY]
        with pytest.raises(NotLeaderOrFollower):  # which clients try again
            stepping.replicas.partition("orders", MANY - 1)
        stepping.bench.broker.tick(stepping.bench.clock.now_ms())
    assert stepping.open("orders") == MANY
    assert answer.result().topics[0].error_code == 0
    assert stepping.bench.broker.deadline_ms() is None


def test_partitions_are_deleted_a_step_at_a_time(stepping: SteppingBench) -> None:
    stepping.create("orders", partitions=MANY)
    stepping.controller.finish()
    answer = stepping.delete("orders")
    assert stepping.open("orders") == MANY - PARTITIONS_PER_STEP
    assert not answer.done()
    stepping.controller.finish()
    assert stepping.open("orders") == 0
    assert len(stepping.bench.storage.deleted) == MANY
    assert answer.result().responses[0].error_code == 0


def test_a_topic_that_is_deleted_before_all_its_partitions_are_open(
    stepping: SteppingBench, caplog: pytest.LogCaptureFixture
) -> None:
    creation = stepping.create("orders", "bills", partitions=MANY)
    deletion = stepping.delete("orders")
    assert not deletion.done()
    stepping.controller.finish()
    assert creation.result().topics[0].error_code == 0
    assert deletion.result().responses[0].error_code == 0
    assert stepping.open("orders") == 0
    assert stepping.open("bills") == len(stepping.bench.storage.logs) == MANY
    assert caplog.text == ""


def test_a_topic_that_is_deleted_and_made_again_before_all_its_partitions_are_open(stepping: SteppingBench) -> None:
    stepping.create("orders", partitions=MANY)
    stepping.delete("orders")
    answer = stepping.create("orders", partitions=MANY)
    stepping.controller.finish()
    topic_id = answer.result().topics[0].topic_id
    assert {(partition.index, partition.topic_id) for partition in stepping.replicas} == {
        (index, topic_id) for index in range(MANY)
    }
    assert all(partition.is_leader for partition in stepping.replicas)
