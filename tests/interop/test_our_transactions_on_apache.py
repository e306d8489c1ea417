"""Our listener in transactions on Apache Kafka, v2 and v1, read by everybody; and what Java writes, read by us."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ottla import ErrorHandler, Ottla, Retry
from ottla.client import AdminClient, KafkaProducer, TopicPartition
from ottla.client.admin import OffsetSpec
from support.clusters import Clusters, ClusterUnderTest, eventually
from support.foreign_clients import Ottla as OurReader
from support.foreign_java_transactions import copier_command, copier_result
from support.foreign_tools import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # theirs, not ours
]
COUNT = 30


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("apache", marks=pytest.mark.peer("apache-4.3"), id="v2"),
        pytest.param("apache-3.9", marks=pytest.mark.peer("apache-3.9"), id="v1"),
    ],
)
def cluster(request: pytest.FixtureRequest, clusters: Clusters) -> Iterator[ClusterUnderTest]:
    with clusters.lease(request.param) as started:
        yield started


class Processed:
    """What a transactional listener has made of thirty records, every third of which failed once after it had sent."""

    def __init__(self, cluster: ClusterUnderTest) -> None:
        self.servers = cluster.bootstrap_servers
        self.source, self.target = cluster.create_topic(), cluster.create_topic()
        self.name = cluster.fresh("app")
        self.expected = [f"out-{number}" for number in range(COUNT)]
        self.failed: set[str] = set()
        with KafkaProducer(bootstrap_servers=self.servers) as producer:
            for number in range(COUNT):
                producer.send(self.source, str(number))
        app = Ottla(self.servers, name=self.name, producer={"linger_ms": 0})

        @app.listener(
            self.source,
            group=self.name,
            transactional=True,
            on_error=ErrorHandler(retry=Retry.fixed(0, attempts=3)),
        )
        def work(value: str) -> None:
            app.template.send(self.target, f"out-{value}").result(10)
            if int(value) % 3 == 0 and value not in self.failed:
                self.failed.add(value)
                raise ValueError("once")

        with app:
            eventually(lambda: self._offset(cluster.admin) == COUNT)

    def _offset(self, admin: AdminClient) -> int | None:
        found = admin.list_group_offsets(self.name).get(TopicPartition(self.source, 0))
        return None if found is None else found.offset


@pytest.fixture(scope="module")
def processed(cluster: ClusterUnderTest) -> Processed:
    return Processed(cluster)


def test_everybody_reads_each_output_of_our_transactional_listener_once(anybody: Any, processed: Processed) -> None:
    records = anybody.consume(processed.servers, processed.target, COUNT, committed=True)
    assert [record.value for record in records] == processed.expected


def test_the_attempts_that_failed_are_in_the_log_and_each_transaction_spoke_the_version_of_its_broker(
    cluster: ClusterUnderTest, processed: Processed
) -> None:
    place = TopicPartition(processed.target, 0)
    end = cluster.admin.list_offsets({place: OffsetSpec.LATEST})[place].offset
    assert end >= COUNT + 2 * len(processed.failed)  # the outputs, and those of failed attempts with their markers
    assert len(processed.failed) == COUNT // 3
    assert cluster.admin.list_offsets({place: OffsetSpec.LATEST}, read_committed=True)[place].offset == end
    every = [listing.transactional_id for listing in cluster.admin.list_transactions()]
    (ours,) = [name for name in every if name.startswith(processed.name)]
    epoch = cluster.admin.describe_transactions([ours])[ours].producer_epoch
    if cluster.release == "3.9":
        assert epoch == 0
    else:
        assert epoch >= 2 * len(processed.failed)  # v2: each end of a transaction is an epoch


@pytest.mark.peer("java")
def test_our_reader_reads_each_record_of_a_java_transactional_producer_once(cluster: ClusterUnderTest) -> None:
    source, target, group = cluster.create_topic(), cluster.create_topic(), cluster.fresh("copier")
    values = [str(number) for number in range(60)]
    with KafkaProducer(bootstrap_servers=cluster.bootstrap_servers) as producer:
        for value in values:
            producer.send(source, value)
    command = copier_command(
        cluster.bootstrap_servers,
        source,
        0,
        target,
        group=group,
        transactional_id=group,
        size=2,
        random_aborts=True,
    )
    assert copier_result(run(command))["stage"] == "ShutdownComplete"
    read = OurReader().consume(cluster.bootstrap_servers, target, len(values), committed=True)
    assert [record.value for record in read] == values
