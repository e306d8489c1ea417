"""`kill -9` of a broker in the midst of transactions: each is there as a whole or not at all, and none stays open.

`OTTLA_CRASH_ROUNDS` is how often it is killed (5), `OTTLA_CRASH_SEED` picks the moments.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from typing import Any

import pytest

from ottla.client import AdminClient, ConsumerGroupMetadata, KafkaConsumer, KafkaProducer, TopicPartition
from ottla.client.admin import NewTopic
from ottla.errors import Abortable, NoAnswer, OttlaError
from support.broker_process import BrokerProcess
from support.clusters import eventually

pytestmark = [pytest.mark.slow, pytest.mark.crash]
TOPIC, SOURCE, GROUP, PARTITIONS, WRITERS = "ledger", "source", "workers", 3, 3
WHOLE = 5  # records of a transaction


class Worker(threading.Thread):
    """Writes transactions one after the other: some records over all partitions, and its position in a source.

    Attributes:
        outcomes: what became of each transaction: True committed, False aborted, None not known.
    """

    def __init__(self, bootstrap_servers: str, number: int, seed: int) -> None:
        super().__init__(name=f"worker-{number}", daemon=True)
        self.number = number
        self.outcomes: list[bool | None] = []
        self.crash: BaseException | None = None
        self.new_producers = 0
        self._bootstrap_servers = bootstrap_servers
        self._rng = random.Random(seed)
        self._stopping = threading.Event()
        self._producer = self._make_producer()

    def _make_producer(self) -> KafkaProducer:
        producer = KafkaProducer(
            bootstrap_servers=self._bootstrap_servers,
            transactional_id=f"worker-{self.number}",
            linger_ms=1,
            retry_backoff_ms=20,
        )
        producer.init_transactions(60)
        return producer

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self.outcomes.append(None)
                self.outcomes[-1] = self._transaction()
        except BaseException as error:  # noqa: BLE001 - the test raises it
            self.crash = error

    def _transaction(self) -> bool | None:
        number = len(self.outcomes) - 1
        try:
            self._producer.begin_transaction()
            for part in range(WHOLE):
                value = b"%d:%d:%d" % (self.number, number, part)
                self._producer.send(TOPIC, value, partition=(number + part) % PARTITIONS)
            self._producer.send_offsets_to_transaction(
                {TopicPartition(SOURCE, self.number): number + 1}, ConsumerGroupMetadata(GROUP), 60
            )
            if self._rng.random() < 0.3:
                self._producer.abort_transaction(60)
                return False
            return self._commit()
        except Abortable:
            self._producer.abort_transaction(60)
            return False
        except OttlaError:
            self._producer.close(5)
            self._producer = self._make_producer()  # ends what the one before has left
            self.new_producers += 1
            return None

    def _commit(self) -> bool:
        while True:
            try:
                self._producer.commit_transaction(1)
                return True
            except NoAnswer:
                continue  # not known yet; this call tells

    def finish(self) -> None:
        self._stopping.set()
        self.join(120)
        assert not self.is_alive()
        if self.crash is not None:
            raise self.crash
        self._producer.close(10)


class Watcher(threading.Thread):
    """Reads what is committed all the while, and notes it; what it was told must not be taken back."""

    def __init__(self, bootstrap_servers: str) -> None:
        super().__init__(name="watcher", daemon=True)
        self.read: dict[tuple[int, int], bytes] = {}
        self.crash: BaseException | None = None
        self._stopping = threading.Event()
        self._consumer = reader(bootstrap_servers)

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                for record in self._consumer.poll(0.1):
                    assert (record.partition, record.offset) not in self.read
                    self.read[record.partition, record.offset] = record.value
        except BaseException as error:  # noqa: BLE001 - the test raises it
            self.crash = error

    def finish(self) -> None:
        self._stopping.set()
        self.join(60)
        if self.crash is not None:
            raise self.crash
        self._consumer.close(10)


def reader(bootstrap_servers: str) -> KafkaConsumer:
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    consumer.assign([TopicPartition(TOPIC, index) for index in range(PARTITIONS)])
    return consumer


def read_committed(bootstrap_servers: str) -> dict[tuple[int, int], bytes]:
    """All that is committed; first every transaction must have ended: both ends of each partition meet."""
    partitions = [TopicPartition(TOPIC, index) for index in range(PARTITIONS)]
    with reader(bootstrap_servers) as consumer, KafkaConsumer(bootstrap_servers=bootstrap_servers) as plain:
        eventually(lambda: consumer.end_offsets(partitions, 30) == plain.end_offsets(partitions, 30))
        ends = consumer.end_offsets(partitions, 30)
        found: dict[tuple[int, int], bytes] = {}
        deadline = time.monotonic() + 60
        while any(consumer.position(partition, 30) < end for partition, end in ends.items()):
            assert time.monotonic() < deadline
            found |= {(record.partition, record.offset): record.value for record in consumer.poll(0.5)}
    return found


@pytest.mark.timeout(900)
def test_transactions_are_whole_or_not_there(
    broker: BrokerProcess, slow_answers: Any, rng: random.Random, kill_rounds: int
) -> None:
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        admin.create_topics([NewTopic(TOPIC, partitions=PARTITIONS, replication_factor=1)])
        admin.create_topics([NewTopic(SOURCE, partitions=WRITERS, replication_factor=1)])
    as_clients_see_it = f"127.0.0.1:{slow_answers.port}"
    workers = [Worker(as_clients_see_it, number, rng.randrange(1 << 30)) for number in range(WRITERS)]
    watcher = Watcher(as_clients_see_it)
    for thread in (*workers, watcher):
        thread.start()
    for _ in range(kill_rounds):
        time.sleep(rng.uniform(0.3, 2.0))
        before = [len(worker.outcomes) for worker in workers]
        broker.kill()
        time.sleep(rng.uniform(0, 0.5))
        broker.start()
        eventually(lambda: all(len(w.outcomes) > b + 10 for w, b in zip(workers, before, strict=True)), 60)  # noqa: B023
    for worker in workers:
        worker.finish()
    watcher.finish()
    tally = [(worker.outcomes.count(True), worker.outcomes.count(False), worker.new_producers) for worker in workers]
    print(f"committed, aborted, producers replaced: {tally}; {slow_answers.lost_bytes} bytes of answers lost")

    stored = read_committed(broker.bootstrap_servers)
    parts: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place in sorted(stored):
        number, transaction, part = map(int, stored[place].split(b":"))
        parts[number, transaction].append(part)
    for worker in workers:
        for transaction, outcome in enumerate(worker.outcomes):
            found = sorted(parts[worker.number, transaction])
            assert found in ([], list(range(WHOLE))), f"{worker.name} {transaction} is torn: {found}"
            if outcome is not None:
                assert bool(found) is outcome, f"{worker.name} {transaction}: {outcome} was told"
    assert watcher.read.items() <= stored.items()
    check_offsets(broker, workers, parts)


def check_offsets(broker: BrokerProcess, workers: list[Worker], parts: dict[tuple[int, int], list[int]]) -> None:
    """The group's positions are those of each worker's last transaction that is there."""
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        found = admin.list_group_offsets(GROUP)
    for worker in workers:
        last = max(t for number, t in parts if number == worker.number and parts[number, t])
        at = found[TopicPartition(SOURCE, worker.number)]
        assert at is not None
        assert at.offset == last + 1
