"""`kill -9` of our broker under Java's and librdkafka's exactly-once copiers: each record is in the output once."""

from __future__ import annotations

import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ottla.client import KafkaProducer, TopicPartition
from ottla.client.admin import OffsetSpec
from support.apache_kafka import free_port
from support.broker_process import BrokerProcess
from support.clusters import SETTINGS, ClusterUnderTest, eventually
from support.foreign_clients import WAIT_SECONDS, Ottla
from support.foreign_java_transactions import copier_command, copier_result

pytestmark = [
    pytest.mark.slow,
    pytest.mark.crash,
    pytest.mark.timeout(180),
    pytest.mark.peer("java", "apache-4.3", "confluent"),
]
EACH, SIZE, PARTITIONS = 1200, 10, 3
KILLS_AT = (0.15, 0.4, 0.7)  # of the records that are to be written
COPYING_SECONDS = 90


class ConfluentCopier(threading.Thread):
    """Copies one partition in transactions of some records, its position with them, until all is copied."""

    def __init__(self, servers: str, source: str, partition: int, target: str, group: str) -> None:
        super().__init__(name="confluent-copier", daemon=True)
        self.crash: BaseException | None = None
        self.aborted = 0
        self._servers = servers
        self._source = source
        self._partition = partition
        self._target = target
        self._group = group

    def run(self) -> None:
        from confluent_kafka import Consumer

        settings = {"bootstrap.servers": self._servers, "group.id": self._group, "enable.auto.commit": False}
        consumer = Consumer({**settings, "auto.offset.reset": "earliest", "isolation.level": "read_committed"})
        try:
            producer = self._make_producer()
            at = self._start_from(consumer)
            while at < EACH:
                records = [message for message in consumer.consume(SIZE, 0.5) if message.error() is None]
                if not records:
                    continue
                producer, copied = self._copy(producer, consumer, records)
                at = records[-1].offset() + 1 if copied else self._start_from(consumer)
        except BaseException as error:  # noqa: BLE001 - the test raises it
            self.crash = error
        finally:
            consumer.close()

    def _make_producer(self) -> Any:
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self._servers, "transactional.id": "confluent", "linger.ms": 1})
        producer.init_transactions(WAIT_SECONDS)
        return producer

    def _start_from(self, consumer: Any) -> int:
        """Read on from the position that is committed; returns it."""
        from confluent_kafka import TopicPartition as Position

        (found,) = consumer.committed([Position(self._source, self._partition)], WAIT_SECONDS)
        at = max(found.offset, 0)
        consumer.assign([Position(self._source, self._partition, at)])
        return at

    def _copy(self, producer: Any, consumer: Any, records: list[Any]) -> tuple[Any, bool]:
        """One transaction; the producer for the next one, and whether this one was committed."""
        from confluent_kafka import KafkaException
        from confluent_kafka import TopicPartition as Position

        position = Position(self._source, self._partition, records[-1].offset() + 1)
        try:
            producer.begin_transaction()
            for record in records:
                producer.produce(self._target, value=record.value(), partition=self._partition)
            producer.send_offsets_to_transaction([position], consumer.consumer_group_metadata(), WAIT_SECONDS)
            self._commit(producer)
        except KafkaException as failed:
            self.aborted += 1
            if not failed.args[0].txn_requires_abort():
                return self._make_producer(), False
            producer.abort_transaction(WAIT_SECONDS)
            return producer, False
        return producer, True

    @staticmethod
    def _commit(producer: Any) -> None:
        from confluent_kafka import KafkaException

        while True:
            try:
                return producer.commit_transaction(WAIT_SECONDS)
            except KafkaException as failed:
                if not failed.args[0].retriable():
                    raise

    def finish(self) -> None:
        self.join(COPYING_SECONDS)
        assert not self.is_alive(), "the copier did not end"
        if self.crash is not None:
            raise self.crash


class JavaCopier:
    """A TransactionalMessageCopier at work."""

    def __init__(self, servers: str, source: str, partition: int, target: str, group: str, output: Path) -> None:
        self._output = output
        command = copier_command(
            servers, source, partition, target, group=group, transactional_id=f"java-{partition}", size=SIZE
        )
        with output.open("wb") as out:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def finish(self) -> None:
        code = self._process.wait(COPYING_SECONDS)
        said = self._output.read_text()
        assert code == 0, said[-2000:]
        assert copier_result(said)["stage"] == "ShutdownComplete", said[-2000:]

    def close(self) -> None:
        self._process.kill()
        self._process.wait(WAIT_SECONDS)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path / "data", SETTINGS, port=free_port()) as started:
        yield started


@pytest.fixture
def cluster(broker: BrokerProcess) -> Iterator[ClusterUnderTest]:
    made = ClusterUnderTest("ottla", broker.bootstrap_servers)
    made.await_ready()
    yield made
    made.close()


def ends(cluster: ClusterUnderTest, topic: str, *, read_committed: bool) -> list[int]:
    partitions = {TopicPartition(topic, index): OffsetSpec.LATEST for index in range(PARTITIONS)}
    found = cluster.admin.list_offsets(partitions, read_committed=read_committed)
    return [found[partition].offset for partition in partitions]


def test_foreign_copiers_write_each_record_once_though_the_broker_is_killed_under_them(
    broker: BrokerProcess, cluster: ClusterUnderTest, tmp_path: Path
) -> None:
    servers, group = cluster.bootstrap_servers, cluster.fresh("copiers")
    source, target = cluster.create_topic(PARTITIONS), cluster.create_topic(PARTITIONS)
    with KafkaProducer(bootstrap_servers=servers) as producer:
        for number in range(EACH * PARTITIONS):
            producer.send(source, str(number), partition=number % PARTITIONS)
        producer.flush(30)

    python = ConfluentCopier(servers, source, 2, target, group)
    java = [JavaCopier(servers, source, index, target, f"{group}-{index}", tmp_path / f"{index}") for index in (0, 1)]
    try:
        python.start()
        for share in KILLS_AT:
            wanted = int(EACH * 2 * share)
            eventually(lambda wanted=wanted: sum(ends(cluster, target, read_committed=False)[:2]) > wanted)
            broker.kill()
            broker.start()
        for copier in [*java, python]:
            copier.finish()
    finally:
        for copier in java:
            copier.close()

    eventually(lambda: ends(cluster, target, read_committed=True) == ends(cluster, target, read_committed=False))
    read = Ottla().consume(servers, target, EACH * PARTITIONS, committed=True)
    assert Counter(record.value for record in read) == Counter(str(number) for number in range(EACH * PARTITIONS))
    offsets = cluster.admin.list_group_offsets(group)
    found = offsets[TopicPartition(source, 2)]
    assert found is not None
    assert found.offset == EACH
