"""Transactions of our producer, read by our consumer, as applications use them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ottla import errors
from ottla.client import (
    AsyncKafkaProducer,
    ConsumerGroupMetadata,
    KafkaConsumer,
    KafkaProducer,
    OffsetAndMetadata,
    TopicPartition,
)
from ottla.client.admin import OffsetSpec
from ottla.client.producer.transaction_tables import TransactionState
from ottla.errors import (
    CommitFailed,
    InvalidTransactionTimeout,
    MessageTooLarge,
    ProducerFenced,
    SendError,
    TransactionAborted,
    TransactionTimedOut,
)
from support.clusters import eventually

pytestmark = pytest.mark.every_version


@pytest.fixture
def transactional(cluster: Any, make_producer: Any) -> Callable[..., KafkaProducer]:
    """Makes a producer with an id of its own, initialised."""

    def make(transactional_id: str | None = None, **settings: Any) -> KafkaProducer:
        producer: KafkaProducer = make_producer(transactional_id=transactional_id or cluster.fresh("tx"), **settings)
        producer.init_transactions()
        return producer

    return make


@pytest.fixture
def place(topic: Any) -> TopicPartition:
    """The partition that most tests write to."""
    return TopicPartition(topic.name, 0)


class Reader:
    """A consumer of one partition, from its start."""

    def __init__(self, cluster: Any, consumer: KafkaConsumer, place: TopicPartition) -> None:
        self.cluster = cluster
        self.consumer = consumer
        self.place = place
        self.values: list[bytes | None] = []
        consumer.assign([place])

    def read(self) -> list[bytes | None]:
        """All there is, up to the end of the log, once every marker is written."""
        eventually(lambda: self.end(read_committed=True) == self.end(read_committed=False))
        return self.read_to(self.end(read_committed=True))

    def read_to(self, end: int) -> list[bytes | None]:
        """All there is up to an offset, which is then the position."""

        def reached() -> bool:
            self.values += [record.value for record in self.consumer.poll(0.05)]
            return self.consumer.position(self.place) >= end

        eventually(reached)
        assert self.consumer.position(self.place) == end
        return self.values

    def end(self, *, read_committed: bool) -> int:
        offsets = self.cluster.admin.list_offsets({self.place: OffsetSpec.LATEST}, read_committed=read_committed)
        return int(offsets[self.place].offset)


@pytest.fixture
def reader(cluster: Any, make_consumer: Any, place: TopicPartition) -> Callable[..., Reader]:
    """Makes a reader of committed records."""

    def make(where: TopicPartition = place, isolation_level: str = "read_committed") -> Reader:
        return Reader(cluster, make_consumer(isolation_level=isolation_level, fetch_max_wait_ms=20), where)

    return make


def commit(producer: KafkaProducer, place: TopicPartition, *values: bytes) -> None:
    producer.begin_transaction()
    for value in values:
        producer.send(place.topic, value, partition=place.partition)
    producer.commit_transaction()


class TestWhatIsRead:
    def test_what_was_committed(self, transactional: Any, place: TopicPartition, reader: Any) -> None:
        producer = transactional()
        commit(producer, place, b"1", b"2")
        commit(producer, place, b"3")
        assert reader().read() == [b"1", b"2", b"3"]

    def test_nothing_of_what_was_aborted(self, transactional: Any, place: TopicPartition, reader: Any) -> None:
        producer = transactional()
        commit(producer, place, b"1")
        producer.begin_transaction()
        future = producer.send(place.topic, b"aborted", partition=0)
        producer.flush()
        assert future.result(0).offset == 2
        producer.abort_transaction()
        commit(producer, place, b"2")
        assert reader().read() == [b"1", b"2"]
        assert reader(isolation_level="read_uncommitted").read() == [b"1", b"aborted", b"2"]

    def test_committed_and_aborted_transactions_between_each_other(
        self, transactional: Any, place: TopicPartition, reader: Any
    ) -> None:
        good, bad = transactional(), transactional()
        for round_ in range(3):
            for producer in (good, bad):
                producer.begin_transaction()
            for _ in range(3):
                for producer, name in ((good, b"good"), (bad, b"bad")):
                    producer.send(place.topic, b"%s %d" % (name, round_), partition=0).result(10)
            bad.abort_transaction()
            good.commit_transaction()
        assert reader().read() == [b"good %d" % round_ for round_ in range(3) for _ in range(3)]

    def test_nothing_behind_an_open_transaction(
        self, transactional: Any, make_producer: Any, place: TopicPartition, reader: Any
    ) -> None:
        open_one, plain = transactional(), make_producer()
        open_one.begin_transaction()
        open_one.send(place.topic, b"open", partition=0).result(10)
        plain.send(place.topic, b"plain", partition=0).result(10)
        reading = reader()
        assert reading.consumer.poll(0.3) == []
        assert reading.consumer.end_offsets([place]) == {place: 0}
        open_one.commit_transaction()
        assert reading.read() == [b"open", b"plain"]

    def test_position_and_lag_come_to_the_end_past_markers(
        self, transactional: Any, place: TopicPartition, reader: Any
    ) -> None:
        producer = transactional()
        commit(producer, place, b"1")
        producer.begin_transaction()
        producer.send(place.topic, b"aborted", partition=0).result(10)
        producer.abort_transaction()
        reading = reader()
        assert reading.read() == [b"1"]
        assert reading.consumer.end_offsets([place])[place] == 4
        assert reading.consumer.position(place) == 4
        assert reading.consumer.current_lag(place) == 0

    def test_transactions_one_right_after_the_other_where_each_write_is_fsynced_first(
        self, cluster: Any, transactional: Any, reader: Any
    ) -> None:
        """Markers are fsynced, too: each commit returns before it shows, and the next transaction begins meanwhile."""
        place = TopicPartition(cluster.create_topic(flush_messages="1"), 0)
        producer = transactional()
        for number in range(20):
            commit(producer, place, b"%d" % number)
        assert reader(place).read() == [b"%d" % number for number in range(20)]

    def test_a_start_at_a_marker_or_inside_of_what_was_aborted(
        self, transactional: Any, place: TopicPartition, reader: Any
    ) -> None:
        producer = transactional()
        producer.begin_transaction()
        for _ in range(3):
            producer.send(place.topic, b"aborted", partition=0).result(10)
        producer.abort_transaction()
        commit(producer, place, b"1")
        reading = reader()
        for offset in range(6):
            reading.values.clear()
            reading.consumer.seek(place, offset)
            assert reading.read() == ([b"1"] if offset <= 4 else [])
            assert reading.consumer.position(place) == 6

    def test_a_transaction_over_several_partitions(self, transactional: Any, topic: Any, reader: Any) -> None:
        producer = transactional()
        for number, end in enumerate((producer.commit_transaction, producer.abort_transaction) * 2):
            producer.begin_transaction()
            for partition in range(3):
                producer.send(topic.name, b"%d" % number, partition=partition)
            producer.flush()
            end()
        for partition in range(3):
            assert reader(TopicPartition(topic.name, partition)).read() == [b"0", b"2"]

    @pytest.mark.parametrize("compression", ["gzip", "lz4", "zstd"])
    def test_many_records_in_compressed_batches(
        self, transactional: Any, place: TopicPartition, reader: Any, compression: str
    ) -> None:
        producer = transactional(compression_type=compression, batch_size=2_000)
        values = [b"%06d" % number for number in range(2_000)]
        commit(producer, place, *values)
        producer.begin_transaction()
        for value in values:
            producer.send(place.topic, b"aborted " + value, partition=0)
        producer.abort_transaction()
        assert reader().read() == values

    def test_an_empty_transaction_leaves_no_trace(self, transactional: Any, topic: Any, place: TopicPartition) -> None:
        producer = transactional()
        for end in (producer.commit_transaction, producer.abort_transaction):
            producer.begin_transaction()
            end()
        assert topic.end() == 0
        commit(producer, place, b"1")
        eventually(lambda: topic.end() == 2)

    def test_many_transactions_of_one_record(self, transactional: Any, place: TopicPartition, reader: Any) -> None:
        producer = transactional()
        for number in range(40):
            commit(producer, place, b"%d" % number)
        assert reader().read() == [b"%d" % number for number in range(40)]


class TestOffsets:
    @pytest.fixture
    def group(self, cluster: Any) -> str:
        return str(cluster.fresh("g"))

    @pytest.fixture
    def member(self, make_consumer: Any, make_producer: Any, group: str, place: TopicPartition) -> KafkaConsumer:
        """A member of the group that has read three records."""
        plain = make_producer()
        for number in range(3):
            plain.send(place.topic, b"%d" % number, partition=0).result(10)
        consumer: KafkaConsumer = make_consumer(group_id=group, session_timeout_ms=6_000, heartbeat_interval_ms=300)
        consumer.subscribe([place.topic])
        found: list[Any] = []
        eventually(lambda: found.extend(consumer.poll(0.2)) or len(found) == 3)
        return consumer

    def test_are_committed_with_the_transaction(
        self, cluster: Any, transactional: Any, member: KafkaConsumer, place: TopicPartition, group: str, topic: Any
    ) -> None:
        producer = transactional()
        producer.begin_transaction()
        producer.send(topic.name, b"out", partition=1)
        offsets = {place: OffsetAndMetadata(2, metadata="two")}
        producer.send_offsets_to_transaction(offsets, member.group_metadata())
        assert cluster.admin.list_group_offsets(group, [place]) == {place: None}
        producer.commit_transaction()
        committed = member.committed([place])[place]
        assert committed is not None
        assert (committed.offset, committed.metadata) == (2, "two")

    def test_are_not_committed_if_it_is_aborted(
        self, transactional: Any, member: KafkaConsumer, place: TopicPartition
    ) -> None:
        producer = transactional()
        member.commit({place: OffsetAndMetadata(1)})
        producer.begin_transaction()
        producer.send_offsets_to_transaction({place: 3}, member.group_metadata())
        producer.abort_transaction()
        committed = member.committed([place])[place]
        assert committed is not None
        assert committed.offset == 1

    def test_go_along_with_a_commit(self, transactional: Any, member: KafkaConsumer, place: TopicPartition) -> None:
        producer = transactional()
        for offset in (1, 2, 3):
            producer.begin_transaction()
            producer.send(place.topic, b"out", partition=1)
            producer.commit_transaction(offsets={place: offset}, group_metadata=member.group_metadata())
        committed = member.committed([place])[place]
        assert committed is not None
        assert committed.offset == 3

    def test_of_a_member_that_was_replaced_are_refused_and_nothing_of_the_transaction_is_read(
        self, transactional: Any, member: KafkaConsumer, place: TopicPartition, reader: Any, topic: Any
    ) -> None:
        there = TopicPartition(topic.name, 1)
        zombie = member.group_metadata()
        member.unsubscribe()
        producer = transactional()
        producer.begin_transaction()
        producer.send(topic.name, b"out", partition=1).result(10)
        with pytest.raises(CommitFailed):
            producer.send_offsets_to_transaction({place: 3}, zombie)
        with pytest.raises(CommitFailed):
            producer.commit_transaction()
        producer.abort_transaction()
        commit(producer, there, b"next")
        assert reader(there).read() == [b"next"]

    def test_of_a_group_without_members_need_its_name_only(
        self, cluster: Any, transactional: Any, place: TopicPartition, group: str
    ) -> None:
        producer = transactional()
        producer.begin_transaction()
        producer.send_offsets_to_transaction({place: 7}, ConsumerGroupMetadata(group))
        producer.commit_transaction()
        found = cluster.admin.list_group_offsets(group, [place], require_stable=True)[place]
        assert found.offset == 7


class TestWhatGoesWrong:
    def test_a_commit_after_a_refused_record_fails_and_after_an_abort_all_is_well(
        self, cluster: Any, transactional: Any, reader: Any
    ) -> None:
        place = TopicPartition(cluster.create_topic(max_message_bytes="2000"), 0)
        producer = transactional()
        producer.begin_transaction()
        producer.send(place.topic, b"small", partition=0)
        large = producer.send(place.topic, b"x" * 5_000, partition=0)
        with pytest.raises(MessageTooLarge):
            producer.commit_transaction()
        error = large.exception(0)
        assert isinstance(error, SendError)
        assert isinstance(error.__cause__, MessageTooLarge)
        assert producer.transaction_state is TransactionState.ABORTABLE_ERROR
        producer.abort_transaction()
        commit(producer, place, b"next")
        assert reader(place).read() == [b"next"]

    def test_what_was_not_sent_when_a_transaction_is_aborted_fails(self, cluster: Any, place: TopicPartition) -> None:
        with KafkaProducer(
            bootstrap_servers=cluster.bootstrap_servers,
            transactional_id=cluster.fresh("tx"),
            linger_ms=20_000,
            delivery_timeout_ms=60_000,
        ) as producer:
            producer.init_transactions()
            producer.begin_transaction()
            future = producer.send(place.topic, b"never sent", partition=0)
            producer.abort_transaction()
        error = future.exception(0)
        assert isinstance(error, SendError)
        assert isinstance(error.__cause__, TransactionAborted)

    @pytest.mark.slow
    @pytest.mark.parametrize("late", ["commit", "send", "offsets", "abort"])
    def test_a_transaction_that_was_open_for_too_long_has_timed_out_and_is_not_fenced(
        self, cluster: Any, transactional: Any, place: TopicPartition, reader: Any, late: str
    ) -> None:
        producer = transactional(transaction_timeout_ms=300)
        producer.begin_transaction()
        producer.send(place.topic, b"too late", partition=0).result(10)
        # Not only decided: until the marker is there, the partition takes what comes.
        eventually(lambda: cluster.admin.list_transactions(states=["CompleteAbort"], pattern=producer.transactional_id))
        if late == "commit":
            with pytest.raises(TransactionTimedOut, match="transaction_timeout_ms"):
                producer.commit_transaction()
        elif late == "send":
            error = producer.send(place.topic, b"too late", partition=0).exception(10)
            assert isinstance(error, SendError)
            assert isinstance(error.__cause__, TransactionTimedOut)
            with pytest.raises(TransactionTimedOut):
                producer.commit_transaction()
        elif late == "offsets":
            with pytest.raises(TransactionTimedOut):
                producer.send_offsets_to_transaction({place: 1}, ConsumerGroupMetadata(cluster.fresh("g")))
        producer.abort_transaction()
        commit(producer, place, b"in time")
        assert reader().read() == [b"in time"]

    @pytest.mark.parametrize("late", ["commit", "send", "abort"])
    def test_a_second_producer_with_the_same_id_fences_the_first_and_aborts_what_it_had_open(
        self, cluster: Any, transactional: Any, place: TopicPartition, reader: Any, late: str
    ) -> None:
        first = transactional()
        commit(first, place, b"first")
        first.begin_transaction()
        first.send(place.topic, b"lost", partition=0).result(10)
        second = transactional(first.transactional_id, client_id="the second")
        commit(second, place, b"second")
        if late == "send":
            error = first.send(place.topic, b"lost too", partition=0).exception(10)
            assert error is not None
            fenced = error.__cause__
        else:
            with pytest.raises(ProducerFenced) as raised:
                (first.commit_transaction if late == "commit" else first.abort_transaction)()
            fenced = raised.value
        assert isinstance(fenced, ProducerFenced)
        assert repr(first.transactional_id) in str(fenced)
        if cluster.name == "ottla":
            assert fenced.reason is not None
            assert fenced.reason.client_id == "the second"
            assert "'the second'" in str(fenced)
        for call in (first.commit_transaction, first.abort_transaction, first.begin_transaction):
            with pytest.raises(ProducerFenced):
                call()
        assert reader().read() == [b"first", b"second"]

    def test_closing_aborts_at_once_what_is_open(self, transactional: Any, place: TopicPartition, reader: Any) -> None:
        producer = transactional()
        producer.begin_transaction()
        producer.send(place.topic, b"open", partition=0).result(10)
        producer.close()
        reading = reader()
        eventually(lambda: reading.end(read_committed=True) == 2)
        assert reading.read() == []

    def test_a_timeout_above_the_brokers_limit_is_refused_with_that_limit(self, make_producer: Any) -> None:
        producer = make_producer(transactional_id="impatient", transaction_timeout_ms=10**9)
        with pytest.raises(InvalidTransactionTimeout, match=r"1000000000.*transaction\.max\.timeout\.ms.*900000"):
            producer.init_transactions()

    def test_one_that_has_to_wait_for_memory_commits_all(
        self, transactional: Any, place: TopicPartition, reader: Any
    ) -> None:
        producer = transactional(buffer_memory=20_000, batch_size=4_000)
        values = [b"%04d" % number + b"x" * 500 for number in range(200)]
        commit(producer, place, *values)
        assert reader().read() == values


class TestFaces:
    @pytest.fixture
    def loop_producer(self, cluster: Any) -> Iterator[Callable[..., AsyncKafkaProducer]]:
        def make(**settings: Any) -> AsyncKafkaProducer:
            return AsyncKafkaProducer(
                bootstrap_servers=cluster.bootstrap_servers, transactional_id=cluster.fresh("tx"), **settings
            )

        return make

    def test_on_an_event_loop(self, loop_producer: Any, place: TopicPartition, reader: Any) -> None:
        async def transactions() -> None:
            async with loop_producer() as producer:
                await producer.init_transactions()
                for end in (producer.commit_transaction, producer.abort_transaction, producer.commit_transaction):
                    await producer.begin_transaction()
                    future = producer.send(place.topic, end.__name__.encode(), partition=0)
                    await end()
                    assert future.done()

        asyncio.run(transactions())
        assert reader().read() == [b"commit_transaction_async"] * 2

    def test_one_producer_from_a_thread_and_from_an_event_loop(
        self, transactional: Any, place: TopicPartition, reader: Any
    ) -> None:
        producer = transactional()
        commit(producer, place, b"thread")

        async def on_loop() -> None:
            await producer.begin_transaction_async()
            producer.send(place.topic, b"loop", partition=0)
            await producer.commit_transaction_async()

        asyncio.run(on_loop())
        commit(producer, place, b"thread")
        assert reader().read() == [b"thread", b"loop", b"thread"]

    def test_the_version_is_the_clusters(self, cluster: Any, transactional: Any) -> None:
        assert transactional()._transactions.is_version_2 == (cluster.release != "3.9")


class TestAdministration:
    def test_transactions_are_listed_and_described(
        self, cluster: Any, transactional: Any, topic: Any, place: TopicPartition
    ) -> None:
        producer = transactional(transaction_timeout_ms=50_000)
        transactional_id = producer.transactional_id
        producer.begin_transaction()
        producer.send(place.topic, b"1", partition=2).result(10)
        (listed,) = cluster.admin.list_transactions(states=["Ongoing"], pattern=f"{transactional_id[:-2]}.*")
        assert (listed.transactional_id, listed.state) == (transactional_id, "Ongoing")
        assert cluster.admin.list_transactions(producer_ids=[listed.producer_id]) == [listed]
        assert cluster.admin.list_transactions(running_longer_than_ms=60_000, pattern=transactional_id) == []
        with pytest.raises(ValueError, match="Sleeping"):
            cluster.admin.list_transactions(states=["Sleeping"])
        found = cluster.admin.describe_transactions([transactional_id])[transactional_id]
        assert (found.state, found.partitions) == ("Ongoing", (TopicPartition(topic.name, 2),))
        assert (found.producer_id, found.timeout_ms) == (listed.producer_id, 50_000)
        assert found.started_ms is not None
        assert found.coordinator is not None
        producer.commit_transaction()
        eventually(lambda: cluster.admin.list_transactions(states=["CompleteCommit"], pattern=transactional_id))

    def test_an_unknown_id_is_not_there(self, cluster: Any) -> None:
        with pytest.raises(errors.TransactionalIdNotFound):
            cluster.admin.describe_transactions(["nobody"])

    def test_producers_of_a_partition_are_described(
        self, cluster: Any, transactional: Any, place: TopicPartition
    ) -> None:
        producer = transactional()
        commit(producer, place, b"1")
        producer.begin_transaction()
        offset = producer.send(place.topic, b"2", partition=0).result(10).offset
        (found,) = cluster.admin.describe_producers([place])[place]
        assert found.transaction_start_offset == offset
        assert found.coordinator_epoch is not None
        producer.abort_transaction()
        eventually(lambda: cluster.admin.describe_producers([place])[place][0].transaction_start_offset is None)

    def test_fencing_by_an_administrator_aborts_what_is_open(
        self, cluster: Any, transactional: Any, place: TopicPartition, reader: Any
    ) -> None:
        producer = transactional()
        producer.begin_transaction()
        producer.send(place.topic, b"fenced", partition=0).result(10)
        fenced = cluster.admin.fence_producers([producer.transactional_id])[producer.transactional_id]
        assert fenced.is_valid
        with pytest.raises(ProducerFenced):
            producer.commit_transaction()
        assert reader().read() == []
        (described,) = cluster.admin.describe_transactions([producer.transactional_id]).values()
        assert described.producer_epoch == fenced.epoch
        if cluster.name == "ottla":
            assert described.epoch_end is not None
            assert described.epoch_end.reason.name == "ADMIN_ABORTED"

    def test_a_transaction_that_its_coordinator_knows_does_not_hang(
        self, cluster: Any, transactional: Any, place: TopicPartition
    ) -> None:
        producer = transactional()
        producer.begin_transaction()
        producer.send(place.topic, b"1", partition=0).result(10)
        assert cluster.admin.find_hanging_transactions([place.topic], max_transaction_timeout_ms=-1) == []
        producer.commit_transaction()
