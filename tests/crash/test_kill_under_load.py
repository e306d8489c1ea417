"""`kill -9` of a broker in the midst of its work, again and again.

`OTTLA_CRASH_ROUNDS` is how often it is killed (5), `OTTLA_CRASH_SEED` picks the moments.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import pytest

from ottla.client import AdminClient, KafkaConsumer, TopicPartition
from ottla.client.admin import NewTopic
from support.broker_process import BrokerProcess

pytestmark = [pytest.mark.slow, pytest.mark.crash]
TOPIC, GROUP, PARTITIONS = "load", "readers", 3


def create_topic(broker: BrokerProcess) -> None:
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        admin.create_topics([NewTopic(TOPIC, partitions=PARTITIONS, replication_factor=1)])


def committed(broker: BrokerProcess) -> dict[int, int]:
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        found = admin.list_group_offsets(GROUP)
    return {partition.partition: offset.offset for partition, offset in found.items() if offset is not None}


@pytest.mark.timeout(900)
def test_what_was_acknowledged_is_there_once_and_where_it_was_said_to_be(
    broker: BrokerProcess,
    slow_answers: Any,
    rng: random.Random,
    kill_rounds: int,
    make_writer: Any,
    make_reader: Any,
    read_all: Any,
) -> None:
    create_topic(broker)
    as_clients_see_it = f"127.0.0.1:{slow_answers.port}"
    writer = make_writer(as_clients_see_it, TOPIC)
    reader = make_reader(as_clients_see_it, TOPIC, GROUP)
    writer.start()
    reader.start()
    progress = []
    for _ in range(kill_rounds):
        time.sleep(rng.uniform(0.3, 2.0))
        before = len(writer.acknowledged)
        broker.kill()
        time.sleep(rng.uniform(0, 0.5))
        broker.start()
        await_progress(writer, before)
        progress.append((before, len(writer.acknowledged)))
    writer.finish()
    reader.finish()
    print(f"{writer.sent} sent, {len(writer.acknowledged)} acknowledged, {len(reader.read)} read, {progress}")
    print(f"{slow_answers.lost_bytes} bytes of answers lost, {reader.refused_commits} commits failed")

    assert slow_answers.lost_bytes, "no answer was lost: the kills tested nothing"
    assert not writer.failures, f"{len(writer.failures)} records failed, such as {writer.failures[0]}"
    assert not writer.repeated, "two records were acknowledged at one offset"
    assert len(writer.acknowledged) == writer.sent
    stored = read_all(broker.bootstrap_servers, TOPIC)
    misplaced = {place for place, value in writer.acknowledged.items() if stored.get(place) != value}
    assert not misplaced, f"{len(misplaced)} acknowledged records are not at their offset, such as {min(misplaced)}"
    numbers = Counter(value.partition(b":")[0] for value in stored.values())
    assert max(numbers.values()) == 1, f"stored more than once: {numbers.most_common(3)}"

    assert not reader.changed, "a record that was read changed"
    assert not reader.went_back, f"the group went back behind its commit: {reader.went_back[:3]}"
    assert all(stored[place] == value for place, value in reader.read.items())
    at_the_end = committed(broker)
    assert all(at_the_end[partition] >= offset for partition, offset in reader.committed.items())
    check_that_the_group_goes_on(broker, at_the_end, stored)


def await_progress(writer: Any, before: int) -> None:
    """Wait until records are acknowledged again, and the load is back."""
    deadline = time.monotonic() + 30
    while len(writer.acknowledged) < before + 300:
        assert time.monotonic() < deadline, "records are not acknowledged again 30 s after the restart"
        assert writer.is_alive()
        time.sleep(0.02)


def check_that_the_group_goes_on(
    broker: BrokerProcess, at: dict[int, int], stored: dict[tuple[int, int], bytes]
) -> None:
    """After one more kill a new member reads the rest and nothing else."""
    broker.kill()
    broker.start()
    rest = {place for place in stored if place[1] >= at.get(place[0], 0)}
    found: set[tuple[int, int]] = set()
    with KafkaConsumer(
        bootstrap_servers=broker.bootstrap_servers,
        group_id=GROUP,
        auto_offset_reset="none",
        enable_auto_commit=False,
        partition_assignment_strategy=["range"],
    ) as consumer:
        consumer.subscribe([TOPIC])
        deadline = time.monotonic() + 60
        while len(consumer.assignment()) < PARTITIONS or found != rest:
            assert time.monotonic() < deadline, f"{len(found)} of {len(rest)} records"
            found |= {(record.partition, record.offset) for record in consumer.poll(0.2)}
            assert found <= rest
        for index in range(PARTITIONS):
            partition = TopicPartition(TOPIC, index)
            assert consumer.position(partition, 10) == consumer.end_offsets([partition])[partition]
