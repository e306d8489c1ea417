"""Apache Kafka's own programs in transactions on our broker: the Java client speaks v2, the tools understand our files.

The broker takes v1 transactions unverified here, for that is how a transaction can be left hanging. Java's are v2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ottla.client import KafkaConsumer, KafkaProducer, TopicPartition
from ottla.errors import OttlaError
from ottla_wire.messages.add_partitions_to_txn import AddPartitionsToTxnRequest
from ottla_wire.messages.end_txn import EndTxnRequest
from ottla_wire.messages.init_producer_id import InitProducerIdRequest
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.messages.txn_offset_commit import TxnOffsetCommitRequest
from ottla_wire.records import RecordBatchBuilder
from support.apache_kafka import free_port
from support.broker_process import BrokerProcess
from support.clusters import SETTINGS, ClusterUnderTest
from support.foreign_clients import Ottla
from support.foreign_java_transactions import (
    LogDump,
    TransactionsTool,
    copier_command,
    copier_result,
    producer_performance,
)
from support.foreign_tools import Java, run
from support.foreign_wire import WireTap, advertising, tapped

pytestmark = [pytest.mark.slow, pytest.mark.peer("java", "apache-4.3")]
COUNT, SIZE = 200, 2


@pytest.fixture(scope="module")
def tap() -> Iterator[WireTap]:
    made = WireTap()
    yield made
    made.close()


@pytest.fixture(scope="module")
def broker(tap: WireTap, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    settings = SETTINGS | advertising(tap) | {"transaction.partition.verification.enable": "false"}
    with BrokerProcess(tmp_path_factory.mktemp("java"), settings, port=free_port()) as started:
        yield started


@pytest.fixture(scope="module")
def cluster(broker: BrokerProcess, tap: WireTap) -> Iterator[ClusterUnderTest]:
    made = ClusterUnderTest("ottla", tapped(broker, tap))
    made.await_ready()
    yield made
    made.close()


class Copied:
    """Where a TransactionalMessageCopier has copied "0" to "199", with some attempts aborted.

    What it aborts at once has often not left it. So a record of ours is in the log that was aborted, in any case.
    """

    def __init__(self, cluster: ClusterUnderTest) -> None:
        self.source, self.target = cluster.create_topic(), cluster.create_topic()
        self.id = self.group = cluster.fresh("copier")
        self.values = [str(number) for number in range(COUNT)]
        with KafkaProducer(bootstrap_servers=cluster.bootstrap_servers) as producer:
            for value in self.values:
                producer.send(self.source, value)
        command = copier_command(
            cluster.bootstrap_servers,
            self.source,
            0,
            self.target,
            group=self.group,
            transactional_id=self.id,
            size=SIZE,
            random_aborts=True,
        )
        self.said = copier_result(run(command))
        name = cluster.fresh("aborts")
        with KafkaProducer(bootstrap_servers=cluster.bootstrap_servers, transactional_id=name) as producer:
            producer.init_transactions()
            producer.begin_transaction()
            producer.send(self.target, "aborted").result(10)
            producer.abort_transaction()


@pytest.fixture(scope="module")
def copied(cluster: ClusterUnderTest) -> Copied:
    return Copied(cluster)


@pytest.fixture
def open_transaction(cluster: ClusterUnderTest) -> Iterator[tuple[KafkaProducer, str, str]]:
    """A producer with one record in an open transaction, its id and the topic."""
    name, topic = cluster.fresh("open"), cluster.create_topic()
    with KafkaProducer(bootstrap_servers=cluster.bootstrap_servers, transactional_id=name) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(topic, "never seen").result(10)
        yield producer, name, topic


def test_the_transactional_message_copier_copies_each_record_once_and_speaks_v2(
    cluster: ClusterUnderTest, copied: Copied, tap: WireTap
) -> None:
    assert (copied.said["stage"], copied.said["totalProcessed"]) == ("ShutdownComplete", COUNT)
    spoken = tap.versions(f"producer-{copied.id}")
    assert spoken[EndTxnRequest.api_key] == {5}
    assert spoken[TxnOffsetCommitRequest.api_key] == {5}
    assert min(spoken[ProduceRequest.api_key]) >= 12
    assert AddPartitionsToTxnRequest.api_key not in spoken

    read = Java().consume(cluster.bootstrap_servers, copied.target, COUNT, committed=True)
    assert [record.value for record in read] == copied.values
    read = Ottla().consume(cluster.bootstrap_servers, copied.target, COUNT, committed=True)
    assert [record.value for record in read] == copied.values
    offset = cluster.admin.list_group_offsets(copied.group)[TopicPartition(copied.source, 0)]
    assert offset is not None
    assert offset.offset == COUNT


def test_what_was_aborted_is_in_the_log_and_only_there(cluster: ClusterUnderTest, copied: Copied) -> None:
    place = TopicPartition(copied.target, 0)
    assert read_all(cluster, place, "read_committed") == Counter(copied.values)
    seen = read_all(cluster, place, "read_uncommitted")
    assert set(seen) == {*copied.values, "aborted"}
    assert seen["aborted"] == 1


def read_all(cluster: ClusterUnderTest, place: TopicPartition, isolation: str) -> Counter[str]:
    """The values of a partition, and how often each is there."""
    seen: Counter[str] = Counter()
    settings: dict[str, Any] = {"auto_offset_reset": "earliest", "isolation_level": isolation}
    with KafkaConsumer(bootstrap_servers=cluster.bootstrap_servers, **settings) as consumer:
        consumer.assign([place])
        end = consumer.end_offsets([place])[place]
        while consumer.position(place) < end:
            seen.update(record.value.decode() for record in consumer.poll(0.2))
    return seen


def test_the_performance_tool_commits_by_the_clock(cluster: ClusterUnderTest, tap: WireTap) -> None:
    name, topic, client_id = cluster.fresh("perf"), cluster.create_topic(), "perf-producer-client"
    said = producer_performance(cluster.bootstrap_servers, topic, name, 1000, duration_ms=100)
    assert "1000 records sent" in said
    assert tap.versions(client_id)[EndTxnRequest.api_key] == {5}
    commits = tap.count(client_id, EndTxnRequest.api_key)
    assert commits >= 3
    assert len(Ottla().consume(cluster.bootstrap_servers, topic, 1000, committed=True)) == 1000
    described = cluster.admin.describe_transactions([name])[name]
    assert (described.state, described.producer_epoch) == ("CompleteCommit", commits)  # v2: each end is an epoch


def test_the_transactions_tool_sees_an_open_transaction_and_ends_it(
    cluster: ClusterUnderTest, open_transaction: tuple[KafkaProducer, str, str]
) -> None:
    producer, name, topic = open_transaction
    tool = TransactionsTool(cluster.bootstrap_servers)
    (listed,) = [row for row in tool.listed() if row["TransactionalId"] == name]
    assert listed["TransactionState"] == "Ongoing"
    described = tool.describe(name)
    assert (described["TransactionState"], described["TopicPartitions"]) == ("Ongoing", f"{topic}-0")
    assert described["TransactionTimeoutMs"] == "60000"
    (writing,) = tool.describe_producers(topic)
    assert writing["ProducerId"] == listed["ProducerId"] == described["ProducerId"]
    assert (writing["LastSequence"], writing["CurrentTransactionStartOffset"]) == ("0", "0")

    tool.force_terminate(name)
    assert cluster.admin.describe_transactions([name])[name].state == "Empty"  # aborted, and taken over by the tool
    with pytest.raises(OttlaError):
        producer.commit_transaction(10)
    assert_only_the_end_is_read(cluster, topic)


def test_the_transactions_tool_finds_a_hanging_transaction_and_aborts_it(
    cluster: ClusterUnderTest, open_transaction: tuple[KafkaProducer, str, str], leave_hanging: Callable[[str], int]
) -> None:
    _, _, healthy = open_transaction
    topic = cluster.create_topic()
    producer_id = leave_hanging(topic)
    tool = TransactionsTool(cluster.bootstrap_servers)
    found = tool.find_hanging()
    assert healthy not in {row["Topic"] for row in found}
    (hanging,) = [row for row in found if row["Topic"] == topic]
    assert (hanging["Partition"], hanging["ProducerId"]) == ("0", str(producer_id))
    assert hanging["StartOffset"] == "0"
    tool.abort(topic, int(hanging["StartOffset"]))
    assert_only_the_end_is_read(cluster, topic)


@pytest.fixture
def leave_hanging(cluster: ClusterUnderTest) -> Callable[[str], int]:
    """Write a transactional record that no coordinator knows of, as producers before KIP-890 could; who did it."""

    def write(topic: str) -> int:
        client = cluster.connect()
        try:
            identify = InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=60_000)
            producer_id: int = client.ask(identify, 4).producer_id
            batch = RecordBatchBuilder(1000)
            batch.append(0, None, b"hanging", None)
            records = batch.build(producer_id=producer_id, producer_epoch=0, base_sequence=0, transactional=True)
            data = TopicProduceData(name=topic, partition_data=[PartitionProduceData(index=0, records=records)])
            request = ProduceRequest(transactional_id="lost", acks=-1, timeout_ms=10_000, topic_data=[data])
            answer = client.ask(request, 11).responses[0].partition_responses[0]
            assert answer.error_code == 0, answer
            return producer_id
        finally:
            client.close()

    return write


def assert_only_the_end_is_read(cluster: ClusterUnderTest, topic: str) -> None:
    """A record that is written now can be read, and nothing before it."""
    with KafkaProducer(bootstrap_servers=cluster.bootstrap_servers) as producer:
        producer.send(topic, "end").result(10)
    (record,) = Ottla().consume(cluster.bootstrap_servers, topic, 1, committed=True)
    assert record.value == "end"


def test_the_dump_tool_reads_our_transaction_log_and_the_index_of_aborted_transactions(
    broker: BrokerProcess, cluster: ClusterUnderTest, copied: Copied
) -> None:
    folder = broker.data / f"{copied.target}-0"
    index = folder / f"{0:020}.txnindex"
    logs = [place / f"{0:020}.log" for place in broker.data.glob("__transaction_state-*")]
    states = LogDump(logs, transaction_log=True).transaction_states(copied.id)
    assert states[0]["transactionStatus"] == 0
    assert states[0]["transactionPartitions"] is None
    assert states[-1]["transactionStatus"] == 4
    every = {state["transactionStatus"] for state in states}
    assert every == {0, 1, 2, 3, 4, 5}  # empty, ongoing, prepared and complete, of both kinds
    assert {state["clientTransactionVersion"] for state in states[1:]} == {2}
    aborts = sum(state["transactionStatus"] == 5 for state in states)
    ends = aborts + sum(state["transactionStatus"] == 4 for state in states)
    assert states[-1]["producerEpoch"] == ends == COUNT // SIZE + aborts

    dump = LogDump([index, folder / f"{0:020}.log"])
    entries = [line for line in dump.lines[index] if line.startswith("version: 0 producerId: ")]
    markers = [line for line in dump.lines[folder / f"{0:020}.log"] if "endTxnMarker: ABORT" in line]
    assert 1 <= len(entries) == len(markers) <= aborts + 1  # an attempt that is aborted at once has written nothing


def test_the_dump_tool_reads_the_producers_that_a_clean_stop_writes_down_and_all_is_read_again(
    broker: BrokerProcess, cluster: ClusterUnderTest, copied: Copied, tap: WireTap
) -> None:
    producer_id = cluster.admin.describe_transactions([copied.id])[copied.id].producer_id
    broker.stop()
    try:
        (snapshot,) = sorted((broker.data / f"{copied.target}-0").glob("*.snapshot"))[-1:]
        (line,) = [line for line in LogDump([snapshot]).lines[snapshot] if f"producerId: {producer_id} " in line]
    finally:
        broker.start()
    assert "currentTxnFirstOffset: OptionalLong.empty" in line
    read: list[Any] = Ottla().consume(cluster.bootstrap_servers, copied.target, COUNT, committed=True)
    assert [record.value for record in read] == copied.values
