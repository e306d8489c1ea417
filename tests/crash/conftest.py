"""A broker that is killed and comes back, and the load that goes on meanwhile."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ottla.client import KafkaConsumer, KafkaProducer, TopicPartition
from ottla.errors import KafkaError
from support.apache_kafka import free_port
from support.broker_process import BrokerProcess
from support.slow_answers import SlowAnswers

PARTITIONS = 3
SETTINGS = {
    "group.initial.rebalance.delay.ms": "0",
    "offsets.topic.num.partitions": "3",
    "log.segment.bytes": "1048576",  # so that kills meet segments that roll
    "log.flush.interval.messages": "9223372036854775807",
}


def rounds() -> int:
    """How often the broker is killed; `OTTLA_CRASH_ROUNDS` says so."""
    return int(os.environ.get("OTTLA_CRASH_ROUNDS", "5"))


def seed() -> int:
    return int(os.environ.get("OTTLA_CRASH_SEED", "20"))


class Writer(threading.Thread):
    """Sends numbered values without a pause, and notes where each was acknowledged."""

    def __init__(self, bootstrap_servers: str, topic: str, **settings: Any) -> None:
        super().__init__(name="writer", daemon=True)
        self.acknowledged: dict[tuple[int, int], bytes] = {}  # (partition, offset) -> value
        self.repeated: list[tuple[int, int]] = []
        self.failures: list[tuple[bytes, BaseException]] = []
        self.sent = 0
        self._topic = topic
        self._stopping = threading.Event()
        settings = {"acks": "all", "linger_ms": 2, "delivery_timeout_ms": 120_000} | settings
        self._producer = KafkaProducer(bootstrap_servers=bootstrap_servers, **settings)

    def run(self) -> None:
        while not self._stopping.is_set():
            for _ in range(20):
                self._send()
            time.sleep(0.01)

    def _send(self) -> None:
        value = b"%d:" % self.sent + b"x" * (self.sent % 300)
        self.sent += 1
        self._producer.send(self._topic, value, partition=self.sent % PARTITIONS).add_callback(
            lambda result: self._note((result.partition, result.offset), value),
            lambda error: self.failures.append((value, error)),
        )

    def _note(self, place: tuple[int, int], value: bytes) -> None:
        if place in self.acknowledged:
            self.repeated.append(place)
        self.acknowledged[place] = value

    def finish(self) -> None:
        """Stop sending, and wait for what is under way."""
        self._stopping.set()
        self.join(30)
        assert not self.is_alive()
        self._producer.flush(120)
        self._producer.close(10)


class Reader(threading.Thread):
    """A member of a group that commits what it has read, and notes both."""

    def __init__(self, bootstrap_servers: str, topic: str, group: str) -> None:
        super().__init__(name="reader", daemon=True)
        self.read: dict[tuple[int, int], bytes] = {}
        self.changed: list[tuple[int, int]] = []
        self.committed: dict[int, int] = {}  # partition -> highest offset whose commit was acknowledged
        self.went_back: list[tuple[int, int, int]] = []  # (partition, committed, where it went on)
        self.refused_commits = 0
        self.crash: BaseException | None = None
        self._stopping = threading.Event()
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap_servers,
            group_id=group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=10_000,
            heartbeat_interval_ms=500,
        )
        self._consumer.subscribe([topic])

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self.turn()
        except BaseException as error:  # noqa: BLE001 - the test raises it
            self.crash = error

    def turn(self) -> None:
        records = self._consumer.poll(0.1)
        if not records:
            return
        for record in records:
            self._note(record)
        ends = {record.partition: record.offset + 1 for record in records}
        try:
            self._consumer.commit(timeout=20)
        except KafkaError:  # the broker died under it: whether it was stored is not known
            self.refused_commits += 1
            return
        self.committed.update(
            {partition: max(end, self.committed.get(partition, 0)) for partition, end in ends.items()}
        )

    def _note(self, record: Any) -> None:
        place = (record.partition, record.offset)
        if record.offset < self.committed.get(record.partition, 0):
            self.went_back.append((record.partition, self.committed[record.partition], record.offset))
        if self.read.setdefault(place, record.value) != record.value:
            self.changed.append(place)

    def finish(self) -> None:
        self._stopping.set()
        self.join(60)
        assert not self.is_alive()
        if self.crash is not None:
            raise self.crash
        self._consumer.close(10)


def read_everything(bootstrap_servers: str, topic: str) -> dict[tuple[int, int], bytes]:
    """All records of the topic; a place that comes twice is an error."""
    found: dict[tuple[int, int], bytes] = {}
    with KafkaConsumer(bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest") as consumer:
        partitions = [TopicPartition(topic, index) for index in range(PARTITIONS)]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions, 30)
        deadline = time.monotonic() + 60
        while any(consumer.position(partition, 30) < end for partition, end in ends.items()):
            assert time.monotonic() < deadline, f"{len(found)} records in 60 s of {ends}"
            for record in consumer.poll(0.5):
                place = (record.partition, record.offset)
                assert place not in found, f"{place} was read twice"
                found[place] = record.value
    return found


@pytest.fixture
def slow_answers(rng: random.Random) -> Iterator[SlowAnswers]:
    """What clients see of the broker: its answers come late, or never if it is killed before."""
    proxy = SlowAnswers(random.Random(rng.random()))
    yield proxy
    proxy.close()


@pytest.fixture
def broker(tmp_path: Path, slow_answers: SlowAnswers) -> Iterator[BrokerProcess]:
    advertised = {"advertised.listeners": f"PLAINTEXT://127.0.0.1:{slow_answers.port}"}
    with BrokerProcess(tmp_path / "data", SETTINGS | advertised, port=free_port()) as started:
        slow_answers.target_port = started.port
        yield started


@pytest.fixture
def rng() -> random.Random:
    return random.Random(seed())


@pytest.fixture
def kill_rounds() -> int:
    return rounds()


@pytest.fixture
def make_writer() -> Any:
    return Writer


@pytest.fixture
def make_reader() -> Any:
    return Reader


@pytest.fixture
def read_all() -> Any:
    return read_everything
