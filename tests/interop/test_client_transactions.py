"""Transactions of each client on our broker and on Apache Kafka, and what everybody else reads of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ottla.client import TopicPartition
from ottla_wire.messages.add_partitions_to_txn import AddPartitionsToTxnRequest
from ottla_wire.messages.end_txn import EndTxnRequest
from support.apache_kafka import free_port
from support.broker_process import BrokerProcess
from support.clusters import SETTINGS, Clusters, ClusterUnderTest, eventually
from support.foreign_clients import Ottla, Rec
from support.foreign_transactions import WRITERS, Writer
from support.foreign_wire import WireTap, advertising, tapped

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # theirs, not ours
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
FOREIGN = [pytest.param(name, marks=pytest.mark.peer(name)) for name in WRITERS if name != "ottla"]
LONG_MS = 60_000


@pytest.fixture(
    scope="module", params=["ottla", pytest.param("apache-4.3", marks=pytest.mark.peer("apache-4.3"), id="apache")]
)
def cluster(request: pytest.FixtureRequest, clusters: Clusters) -> Iterator[ClusterUnderTest]:
    """The same requests to both."""
    with clusters.lease(request.param.partition("-")[0]) as started:
        yield started


@pytest.fixture
def make_writer(servers: str) -> Iterator[Callable[..., Writer]]:
    made: list[Writer] = []

    def make(kind: str, transactional_id: str, timeout_ms: int = LONG_MS) -> Writer:
        made.append(WRITERS[kind](servers, transactional_id, timeout_ms))
        return made[-1]

    yield make
    for writer in made:
        writer.close()


def read(cluster: ClusterUnderTest, topic: str, count: int) -> list[str | None]:
    """So many committed values, and that nothing but a record of now comes after them."""
    Ottla().produce(cluster.bootstrap_servers, topic, [Rec(None, "end")], "none")
    records = Ottla().consume(cluster.bootstrap_servers, topic, count + 1, committed=True)
    assert records[-1].value == "end"
    return [record.value for record in records[:-1]]


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_committed_is_seen_with_its_offsets_and_what_is_aborted_is_not(
    kind: str, cluster: ClusterUnderTest, make_writer: Callable[..., Writer]
) -> None:
    topic, source, group = cluster.create_topic(), cluster.create_topic(), cluster.fresh("group")

    def committed() -> int | None:
        found = cluster.admin.list_group_offsets(group).get(TopicPartition(source, 0))
        return None if found is None else found.offset

    writer = make_writer(kind, cluster.fresh("tx"))
    writer.begin()
    writer.send(topic, "aborted")
    writer.send_offset(group, source, 5)
    writer.abort()
    assert committed() is None
    writer.begin()
    writer.send(topic, "committed")
    writer.send_offset(group, source, 7)
    assert committed() is None
    writer.commit()
    eventually(lambda: committed() == 7)
    assert read(cluster, topic, 1) == ["committed"]


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("later", ["same", "ottla"])
def test_an_older_instance_is_fenced_and_what_it_had_open_is_aborted(
    kind: str, later: str, cluster: ClusterUnderTest, make_writer: Callable[..., Writer]
) -> None:
    topic, name = cluster.create_topic(), cluster.fresh("tx")
    older = make_writer(kind, name)
    older.begin()
    older.send(topic, "of the older")
    newer = make_writer(kind if later == "same" else later, name)
    newer.begin()
    newer.send(topic, "of the newer")
    with pytest.raises(Exception, match=r"(?i)fenced|epoch|newer|fatal"):
        older.commit()
    newer.commit()
    assert read(cluster, topic, 1) == ["of the newer"]


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_the_coordinator_ended_for_its_age_cannot_be_committed(
    kind: str, cluster: ClusterUnderTest, make_writer: Callable[..., Writer]
) -> None:
    topic, name = cluster.create_topic(), cluster.fresh("tx")
    writer = make_writer(kind, name, 1000)
    writer.begin()
    writer.send(topic, "too old")
    eventually(lambda: cluster.admin.describe_transactions([name])[name].state == "CompleteAbort")
    with pytest.raises(Exception, match=r"(?i)fenced|epoch|newer|fatal|timed out"):
        writer.commit()
    assert read(cluster, topic, 0) == []


class Interleaved:
    """One log that all clients have written to in turns, each time with a broker that goes away in the middle."""

    def __init__(self, broker: BrokerProcess, tap: WireTap, cluster: ClusterUnderTest) -> None:
        self.servers = cluster.bootstrap_servers
        self.topic = cluster.create_topic(segment_bytes="1048576")
        self.tap = tap
        self.committed: list[str] = []
        writers = [(kind, make(self.servers, f"{kind}-id", LONG_MS)) for kind, make in WRITERS.items()]
        try:
            for turn, interrupt in enumerate([None, broker.stop, broker.kill, None]):
                self._play(turn, writers, interrupt, broker)
        finally:
            for _, writer in writers:
                writer.close()
        Ottla().produce(self.servers, self.topic, [Rec(None, "end")], "none")
        self.committed.append("end")

    def _play(
        self,
        turn: int,
        writers: list[tuple[str, Writer]],
        interrupt: Callable[[], Any] | None,
        broker: BrokerProcess,
    ) -> None:
        """All have a transaction open at once. Half of them commit, in each turn others; the last begun ends first."""
        commits = {writers[place][0] for place in ((1, 2) if turn % 2 else (0, 3))}
        for _, writer in writers:
            writer.begin()
        for part in range(3):
            if part == 1 and interrupt is not None:
                interrupt()
                broker.start()
            for kind, writer in writers:
                value = f"{kind} {turn}.{part}"
                writer.send(self.topic, value)
                if kind in commits:
                    self.committed.append(value)
        for kind, writer in reversed(writers):
            (writer.commit if kind in commits else writer.abort)()


@pytest.fixture(scope="module")
def interleaved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interleaved]:
    tap = WireTap()
    folder = tmp_path_factory.mktemp("interleaved")
    try:
        with BrokerProcess(folder, SETTINGS | advertising(tap), port=free_port()) as broker:
            cluster = ClusterUnderTest("ottla", tapped(broker, tap))
            try:
                cluster.await_ready()
                yield Interleaved(broker, tap, cluster)
            finally:
                cluster.close()
    finally:
        tap.close()


@pytest.mark.peer("confluent", "aiokafka", "kafka-python")
def test_everybody_reads_only_what_the_others_have_committed_also_over_restarts(
    anybody: Any, interleaved: Interleaved
) -> None:
    expected = interleaved.committed
    records = anybody.consume(interleaved.servers, interleaved.topic, len(expected), committed=True)
    assert [record.value for record in records] == expected


@pytest.mark.peer("confluent", "aiokafka", "kafka-python")
def test_who_does_not_ask_for_committed_records_reads_all(anybody: Any, interleaved: Interleaved) -> None:
    count = len(WRITERS) * 3 * 4 + 1
    records = anybody.consume(interleaved.servers, interleaved.topic, count)
    assert len({record.value for record in records}) == count  # nothing twice, though the broker went away
    assert {record.value for record in records} > set(interleaved.committed)


@pytest.mark.peer("confluent", "aiokafka", "kafka-python")
def test_clients_of_v1_and_of_v2_have_written_it(interleaved: Interleaved) -> None:
    spoken = {kind: interleaved.tap.versions(f"{kind}-writer") for kind in WRITERS}
    assert spoken["ottla"][EndTxnRequest.api_key] == {5}
    assert AddPartitionsToTxnRequest.api_key not in spoken["ottla"]
    for kind in ("confluent", "aiokafka", "kafka-python"):
        assert max(spoken[kind][EndTxnRequest.api_key]) < 5, kind
        assert AddPartitionsToTxnRequest.api_key in spoken[kind], kind
    assert spoken["aiokafka"][EndTxnRequest.api_key] == {0}
