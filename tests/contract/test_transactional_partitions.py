"""Transactions as partitions and groups see them, request by request: writes, markers, readers, offsets.

What a coordinator does is another chapter; here it only says which partitions are part of a transaction, and markers
are written by hand where that tells more.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from ottla_wire.errors import error_class
from ottla_wire.messages.add_offsets_to_txn import AddOffsetsToTxnRequest
from ottla_wire.messages.add_partitions_to_txn import AddPartitionsToTxnRequest, AddPartitionsToTxnTopic
from ottla_wire.messages.delete_groups import DeleteGroupsRequest
from ottla_wire.messages.describe_producers import DescribeProducersRequest, TopicRequest
from ottla_wire.messages.end_txn import EndTxnRequest
from ottla_wire.messages.find_coordinator import FindCoordinatorRequest
from ottla_wire.messages.init_producer_id import InitProducerIdRequest
from ottla_wire.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from ottla_wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from ottla_wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from ottla_wire.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteRequestPartition,
    OffsetDeleteRequestTopic,
)
from ottla_wire.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopic,
    OffsetFetchRequestTopics,
)
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.messages.txn_offset_commit import (
    TxnOffsetCommitRequest,
    TxnOffsetCommitRequestPartition,
    TxnOffsetCommitRequestTopic,
)
from ottla_wire.messages.write_txn_markers import WritableTxnMarker, WritableTxnMarkerTopic, WriteTxnMarkersRequest
from support.clusters import eventually
from support.read_committed import delivered

NOW_MS = int(time.time() * 1000)  # markers have the time of now, and old records would be alone in their segment


class TransactionalProducer:
    """A producer that is nothing but its requests."""

    def __init__(self, client: Any, topic: Any, transactional_id: str, version: int, make_batch: Any) -> None:
        self.client = client
        self.topic = topic
        self.transactional_id = transactional_id
        self.version = version
        self._make_batch = make_batch
        self.sequences: Counter[int] = Counter()
        find = FindCoordinatorRequest(key_type=1, coordinator_keys=[transactional_id], key="")
        eventually(lambda: client.ask(find, 4).coordinators[0].error_code == 0)
        answer = eventually(self._initialised)
        self.id, self.epoch = answer.producer_id, answer.producer_epoch

    def _initialised(self) -> Any:
        request = InitProducerIdRequest(transactional_id=self.transactional_id, transaction_timeout_ms=60_000)
        answer = self.client.ask(request, 4)
        return answer if answer.error_code == 0 else None

    def adds(self, *partitions: int) -> list[str]:
        """AddPartitionsToTxn, as clients of transactions v1 do: again while the end of the one before is written."""
        request = AddPartitionsToTxnRequest(
            v3_and_below_transactional_id=self.transactional_id,
            v3_and_below_producer_id=self.id,
            v3_and_below_producer_epoch=self.epoch,
            v3_and_below_topics=[AddPartitionsToTxnTopic(name=self.topic.name, partitions=[*partitions])],
        )
        return eventually(lambda: self._added(request))

    def _added(self, request: AddPartitionsToTxnRequest) -> list[str] | None:
        (topic,) = self.client.ask(request, 3).results_by_topic_v3_and_below
        errors = [name(entry.partition_error_code) for entry in topic.results_by_partition]
        return None if "ConcurrentTransactions" in errors else errors

    def batch(self, *values: bytes, sequence: int = 0, transactional: bool = True, **fields: Any) -> bytes:
        own = {"producer_id": self.id, "producer_epoch": self.epoch, "base_sequence": sequence, "timestamp_ms": NOW_MS}
        return bytes(self._make_batch(*values, **({**own, "transactional": transactional} | fields)))

    def requests(self, data: dict[int, bytes], *, acks: int = -1, version: int | None = None, **options: Any) -> Any:
        """Produce given batches; the entries of the answer."""
        client, version = options.pop("client", self.client), version or self.version
        request = self.request(data, acks, **options)
        if acks == 0:
            client.send(request, version)
            return None
        return client.ask(request, version).responses[0].partition_responses

    def request(self, data: dict[int, bytes], acks: int, *, transactional_id: str | None = "own") -> ProduceRequest:
        partitions = [PartitionProduceData(index=index, records=records) for index, records in data.items()]
        return ProduceRequest(
            transactional_id=self.transactional_id if transactional_id == "own" else transactional_id,
            acks=acks,
            timeout_ms=5_000,
            topic_data=[TopicProduceData(name=self.topic.name, partition_data=partitions)],
        )

    def sends(
        self,
        *values: bytes,
        partition: int = 0,
        sequence: int | None = None,
        epoch: int | None = None,
        version: int | None = None,
    ) -> str:
        """Produce one batch; the name of the error."""
        first = self.sequences[partition] if sequence is None else sequence
        fields = {} if epoch is None else {"producer_epoch": epoch}
        (entry,) = self.requests({partition: self.batch(*values, sequence=first, **fields)}, version=version)
        if sequence is None:
            self.sequences[partition] += len(values)
        return name(entry.error_code)

    def ends(self, *, commit: bool) -> None:
        """EndTxn, and wait until the markers are there: only then is another transaction begun without a pause."""
        version = 5 if self.version >= 12 else 4
        request = EndTxnRequest(
            transactional_id=self.transactional_id,
            producer_id=self.id,
            producer_epoch=self.epoch,
            committed=commit,
        )
        answer = eventually(lambda: _unless(self.client.ask(request, version), "ConcurrentTransactions"))
        assert name(answer.error_code) == ""
        if version == 5:
            self.id, self.epoch = answer.producer_id, answer.producer_epoch
            self.sequences.clear()
        eventually(
            lambda: not any(p.current_txn_start_offset >= 0 for p in self.described() if p.producer_id == self.id)
        )

    def marker(self, *, commit: bool, epoch: int, transaction_version: int = 2, **options: Any) -> list[str]:
        """WriteTxnMarkers by hand; the names of the errors, by partition."""
        topic, partitions = options.pop("topic", self.topic.name), options.pop("partitions", (0,))
        written = WritableTxnMarker(
            producer_id=options.pop("producer_id", self.id),
            producer_epoch=epoch,
            transaction_result=commit,
            topics=[WritableTxnMarkerTopic(name=topic, partition_indexes=[*partitions])],
            transaction_version=transaction_version,
            **options,
        )
        (result,) = self.client.ask(WriteTxnMarkersRequest(markers=[written]), 2).markers
        found = {entry.partition_index: entry.error_code for topic in result.topics for entry in topic.partitions}
        return [name(found[index]) for index in partitions]

    def described(self, partition: int = 0) -> list[Any]:
        request = DescribeProducersRequest(topics=[TopicRequest(name=self.topic.name, partition_indexes=[partition])])
        entry = self.client.ask(request, 0).topics[0].partitions[0]
        assert entry.error_code == 0
        return sorted(entry.active_producers, key=lambda producer: producer.producer_id)

    def state(self) -> tuple[int, int, int, int]:
        """Epoch, last sequence, coordinator epoch, first offset of the open transaction."""
        (found,) = [producer for producer in self.described() if producer.producer_id == self.id]
        return (
            found.producer_epoch,
            found.last_sequence,
            found.coordinator_epoch,
            found.current_txn_start_offset,
        )

    # offsets of groups

    def adds_group(self, group: str) -> str:
        request = AddOffsetsToTxnRequest(
            transactional_id=self.transactional_id, producer_id=self.id, producer_epoch=self.epoch, group_id=group
        )
        answer = eventually(lambda: _unless(self.client.ask(request, 3), "ConcurrentTransactions"))
        return name(answer.error_code)

    def commits(self, group: str, offset: int, **options: Any) -> str:
        """TxnOffsetCommit for partition 0; the name of the error."""
        version = options.pop("version", 5)
        committed = TxnOffsetCommitRequestPartition(
            partition_index=options.pop("partition", 0),
            committed_offset=offset,
            committed_metadata=options.pop("metadata", ""),
        )
        request = TxnOffsetCommitRequest(
            transactional_id=options.pop("transactional_id", self.transactional_id),
            group_id=group,
            producer_id=options.pop("producer_id", self.id),
            producer_epoch=options.pop("epoch", self.epoch),
            generation_id_or_member_epoch=options.pop("generation", -1),
            member_id=options.pop("member", ""),
            group_instance_id=options.pop("instance", None),
            topics=[TxnOffsetCommitRequestTopic(name=options.pop("topic", self.topic.name), partitions=[committed])],
        )
        assert not options
        (topic,) = self.client.ask(request, version).topics
        return name(topic.partitions[0].error_code)

    def position(self, group: str, *, stable: bool = False, version: int = 9) -> tuple[int, str]:
        """OffsetFetch of partition 0: offset and name of the error."""
        if version < 8:
            asked = OffsetFetchRequest(
                group_id=group,
                topics=[OffsetFetchRequestTopic(name=self.topic.name, partition_indexes=[0])],
                groups=[],
                require_stable=stable,
            )
            (topic,) = self.client.ask(asked, version).topics
        else:
            wanted = OffsetFetchRequestTopics(name=self.topic.name, partition_indexes=[0])
            groups = [OffsetFetchRequestGroup(group_id=group, topics=[wanted])]
            answer = self.client.ask(OffsetFetchRequest(topics=[], groups=groups, require_stable=stable), version)
            (topic,) = answer.groups[0].topics
        entry = topic.partitions[0]
        return entry.committed_offset, name(entry.error_code)

    def commits_plainly(self, group: str, offset: int) -> str:
        committed = OffsetCommitRequestPartition(partition_index=0, committed_offset=offset)
        topic = OffsetCommitRequestTopic(name=self.topic.name, partitions=[committed])
        answer = self.client.ask(OffsetCommitRequest(group_id=group, topics=[topic]), 9)
        return name(answer.topics[0].partitions[0].error_code)


def name(code: int) -> str:
    if code == 0:
        return ""
    known = error_class(code)
    assert known is not None
    return known.__name__


def _unless(answer: Any, error: str) -> Any:
    return None if name(answer.error_code) == error else answer


MakeProducer = Callable[..., TransactionalProducer]


@pytest.fixture
def make(cluster: Any, connect: Any, make_topic: Any, make_batch: Any) -> MakeProducer:
    """A producer with an id that nobody has used, of a new topic with three partitions or of a given one."""

    def make_producer(version: int = 12, topic: Any = None, **configs: str) -> TransactionalProducer:
        own = topic or make_topic(3, **configs)
        return TransactionalProducer(connect(), own, cluster.fresh("tx"), version, make_batch)

    return make_producer


@pytest.fixture
def group(cluster: Any) -> str:
    return str(cluster.fresh("g"))


def committed(topic: Any, offset: int = 0) -> list[bytes | None]:
    """What a read-committed client delivers."""
    entry = topic.fetch_one(offset, isolation_level=1)
    aborted = [(found.producer_id, found.first_offset) for found in entry.aborted_transactions]
    return [record.value for record in delivered(entry.records, aborted, offset)]


def latest(topic: Any, isolation: int, timestamp: int = -1) -> int:
    asked = ListOffsetsPartition(partition_index=0, timestamp=timestamp)
    request = ListOffsetsRequest(
        replica_id=-1,
        isolation_level=isolation,
        topics=[ListOffsetsTopic(name=topic.name, partitions=[asked])],
        timeout_ms=5_000,
    )
    return int(topic.client.ask(request, 9).topics[0].partitions[0].offset)


class TestWrites:
    def test_version_12_adds_partitions_by_writing_to_them(self, make: MakeProducer) -> None:
        producer = make()
        assert producer.sends(b"a") == producer.sends(b"b") == producer.sends(b"c", partition=1) == ""
        producer.ends(commit=True)
        assert committed(producer.topic) == [b"a", b"b"]

    @pytest.mark.parametrize(
        ("version", "told"), [(3, "InvalidTxnState"), (10, "InvalidTxnState"), (11, "TransactionAbortable")]
    )
    def test_before_that_a_partition_has_to_be_added(self, make: MakeProducer, version: int, told: str) -> None:
        producer = make(version)
        assert producer.sends(b"a", sequence=0) == told
        assert producer.adds(0) == [""]
        assert producer.sends(b"a", sequence=0) == ""
        assert producer.sends(b"a", partition=1, sequence=0) == told
        producer.ends(commit=True)
        assert committed(producer.topic) == [b"a"]

    def test_after_its_end_a_transaction_takes_no_records(self, make: MakeProducer) -> None:
        producer = make(11)
        producer.adds(0)
        producer.sends(b"a")
        producer.ends(commit=False)
        assert producer.sends(b"late", sequence=1) == "TransactionAbortable"
        assert producer.sends(b"late", sequence=1, version=10) == "InvalidTxnState"
        assert (committed(producer.topic), latest(producer.topic, 1)) == ([], 2)

    def test_of_version_2_a_late_record_has_an_epoch_of_before(self, make: MakeProducer) -> None:
        producer = make()
        epoch = producer.epoch
        producer.sends(b"a")
        producer.ends(commit=False)
        assert producer.sends(b"late", sequence=1, epoch=epoch) == "InvalidProducerEpoch"

    def test_an_id_of_a_producer_that_is_not_the_ids_own(self, make: MakeProducer) -> None:
        producer = make()
        (entry,) = producer.requests({0: producer.batch(b"a", producer_id=producer.id + 1_000_000)})
        assert name(entry.error_code) == "InvalidProducerIdMapping"

    def test_two_producers_in_one_request(self, make: MakeProducer) -> None:
        producer = make()
        foreign = producer.batch(b"b", producer_id=producer.id + 1)
        entries = producer.requests({0: producer.batch(b"a"), 1: foreign, 2: b""})
        assert [name(entry.error_code) for entry in entries] == ["InvalidProducerIdMapping"] * 3

    def test_records_without_an_id_of_the_transaction(self, make: MakeProducer) -> None:
        producer = make()
        entries = producer.requests({0: producer.batch(b"a")}, transactional_id=None)
        assert [name(entry.error_code) for entry in entries] == ["TransactionalIdAuthorizationFailed"]

    @pytest.mark.parametrize("whole", [True, False])
    def test_refusals_without_an_answer_close_the_connection(
        self, make: MakeProducer, connect: Any, whole: bool
    ) -> None:
        producer, client = make(), connect()
        foreign = producer.batch(b"b", producer_id=producer.id + 1_000_000)
        data = {0: producer.batch(b"a"), 1: foreign} if whole else {0: foreign}
        producer.requests(data, acks=0, client=client)
        assert client.is_closed_by_peer()

    def test_records_outside_of_the_transaction_while_it_is_open(self, make: MakeProducer) -> None:
        producer = make()
        producer.sends(b"a")
        entries = producer.requests({0: producer.batch(b"b", sequence=1, transactional=False)}, transactional_id=None)
        assert [name(entry.error_code) for entry in entries] == ["InvalidTxnState"]

    def test_transactional_records_of_no_producer_are_of_no_transaction(self, make: MakeProducer) -> None:
        producer = make()
        nobody = producer.batch(b"a", producer_id=-1, producer_epoch=-1, sequence=-1)
        (entry,) = producer.requests({0: nobody})
        assert name(entry.error_code) == ""
        assert (latest(producer.topic, 1), committed(producer.topic)) == (1, [b"a"])

    def test_a_transaction_of_version_2_begins_at_sequence_0(self, make: MakeProducer) -> None:
        producer = make()
        assert producer.sends(b"a", sequence=4) == "OutOfOrderSequenceNumber"
        old = make(11)
        old.adds(0)
        assert old.sends(b"a", sequence=4) == ""

    def test_sequences_go_on_in_version_1_and_begin_anew_in_version_2(self, make: MakeProducer) -> None:
        new, old = make(), make(11)
        for producer in (new, old):
            if producer is old:
                producer.adds(0)
            assert producer.sends(b"a") == ""
            producer.ends(commit=True)
        assert new.sends(b"b", sequence=1) == "OutOfOrderSequenceNumber"
        assert new.sends(b"b", sequence=0) == ""
        old.adds(0)
        assert old.sends(b"b", sequence=2) == "OutOfOrderSequenceNumber"
        assert old.sends(b"b", sequence=1) == ""

    def test_a_duplicate_is_answered_inside_the_transaction_and_after_it(self, make: MakeProducer) -> None:
        producer = make(11)
        producer.adds(0)
        for _ in range(2):
            (entry,) = producer.requests({0: producer.batch(b"a")})
            assert (name(entry.error_code), entry.base_offset) == ("", 0)
        producer.ends(commit=True)
        producer.adds(0)
        (entry,) = producer.requests({0: producer.batch(b"a")})
        assert (name(entry.error_code), entry.base_offset) == ("", 0)

    def test_wrong_acks_are_found_after_the_partition_was_added(self, make: MakeProducer) -> None:
        producer = make()
        (entry,) = producer.requests({0: producer.batch(b"a")}, acks=7)
        assert name(entry.error_code) == "InvalidRequiredAcks"
        producer.ends(commit=True)


class TestMarkers:
    @pytest.mark.parametrize("version", [0, 1])
    def test_the_epoch_of_a_marker_before_version_2(self, make: MakeProducer, version: int) -> None:
        producer = make()
        producer.epoch = 3  # by hand all the way: the coordinator is not asked about a producer without transaction
        producer.marker(commit=True, epoch=3, transaction_version=1)
        told = [producer.marker(commit=True, epoch=epoch, transaction_version=version) for epoch in (2, 3, 3, 4, 3)]
        assert told == [["InvalidProducerEpoch"], [""], [""], [""], ["InvalidProducerEpoch"]]

    def test_the_epoch_of_a_marker_of_version_2(self, make: MakeProducer) -> None:
        producer = make()
        producer.sends(b"a")
        epoch = producer.epoch
        assert producer.marker(commit=True, epoch=epoch) == ["InvalidProducerEpoch"]
        assert producer.marker(commit=True, epoch=epoch + 1) == [""]
        assert producer.marker(commit=True, epoch=epoch + 1) == [""]
        assert producer.marker(commit=False, epoch=epoch) == ["InvalidProducerEpoch"]
        assert (latest(producer.topic, 0), latest(producer.topic, 1)) == (3, 3)
        assert committed(producer.topic) == [b"a"]

    def test_markers_of_an_old_coordinator(self, make: MakeProducer) -> None:
        producer = make()
        producer.sends(b"a")
        epoch = producer.epoch
        assert producer.marker(commit=True, epoch=epoch + 1, coordinator_epoch=50) == [""]
        told = producer.marker(commit=True, epoch=epoch + 2, coordinator_epoch=49)
        assert told == ["TransactionCoordinatorFenced"]
        assert producer.marker(commit=True, epoch=epoch, coordinator_epoch=49) == ["InvalidProducerEpoch"]

    def test_partitions_that_are_not_there(self, make: MakeProducer) -> None:
        producer = make()
        told = producer.marker(commit=True, epoch=0, partitions=(9, 0), producer_id=900_000_001)
        assert told == ["UnknownTopicOrPartition", ""]
        told = producer.marker(commit=True, epoch=0, topic="__consumer_offsets", partitions=(99,))
        assert told == ["UnknownTopicOrPartition"]

    def test_a_marker_into_a_group_partition_is_written_and_settles_nothing_of_others(self, make: MakeProducer) -> None:
        producer = make()
        told = producer.marker(
            commit=True, epoch=0, topic="__consumer_offsets", partitions=(0, 1, 2, 3), producer_id=900_000_002
        )
        assert told == [""] * 4
        told = producer.marker(
            commit=True,
            epoch=0,
            topic="__consumer_offsets",
            partitions=(0,),
            producer_id=900_000_002,
            coordinator_epoch=-1,
        )
        assert told == ["TransactionCoordinatorFenced"]

    def test_an_aborted_transaction_by_hand_ends_like_any_other(self, make: MakeProducer) -> None:
        """How an administrator gets rid of a hanging transaction."""
        producer = make(11)
        producer.adds(0)
        producer.sends(b"a")
        assert latest(producer.topic, 1) == 0
        assert producer.marker(commit=False, epoch=producer.epoch, transaction_version=0) == [""]
        assert (latest(producer.topic, 1), committed(producer.topic)) == (2, [])


class TestDescribeProducers:
    def test_a_transaction_from_its_first_record_to_its_marker(self, make: MakeProducer) -> None:
        producer = make()
        producer.topic.produce(
            producer.batch(b"x", producer_id=-1, producer_epoch=-1, sequence=-1, transactional=False)
        )
        producer.sends(b"a", b"b")
        epoch = producer.epoch
        assert producer.state() == (epoch, 1, -1, 1)
        producer.marker(commit=True, epoch=epoch + 1, coordinator_epoch=5)
        assert producer.state() == (epoch + 1, -1, 5, -1)

    def test_a_marker_of_version_1_keeps_the_sequence(self, make: MakeProducer) -> None:
        producer = make(11)
        producer.adds(0)
        producer.sends(b"a", b"b")
        producer.marker(commit=False, epoch=producer.epoch, transaction_version=1, coordinator_epoch=5)
        assert producer.state() == (producer.epoch, 1, 5, -1)

    def test_the_last_time_is_that_of_the_newest_record(self, make: MakeProducer) -> None:
        producer = make()
        producer.sends(b"a")
        (found,) = producer.described()
        assert found.last_timestamp == NOW_MS

    def test_partitions_that_are_not_there(self, make: MakeProducer) -> None:
        producer = make()
        request = DescribeProducersRequest(
            topics=[
                TopicRequest(name=producer.topic.name, partition_indexes=[9]),
                TopicRequest(name="gone", partition_indexes=[0]),
            ]
        )
        answer = producer.client.ask(request, 0)
        told = {topic.name: name(topic.partitions[0].error_code) for topic in answer.topics}
        assert told == {producer.topic.name: "UnknownTopicOrPartition", "gone": "UnknownTopicOrPartition"}


class TestReaders:
    def test_each_isolation_sees_its_own_end(self, make: MakeProducer) -> None:
        producer = make()
        topic = producer.topic
        topic.produce(producer.batch(b"x", producer_id=-1, producer_epoch=-1, sequence=-1, transactional=False))
        producer.sends(b"a", b"b")
        assert [latest(topic, isolation) for isolation in (0, 1)] == [3, 1]
        assert [latest(topic, isolation, NOW_MS) for isolation in (0, 1)] == [0, 0]
        entry = topic.fetch_one(0, isolation_level=1)
        assert (entry.high_watermark, entry.last_stable_offset, entry.aborted_transactions) == (3, 1, [])
        assert topic.fetch_one(0).aborted_transactions is None
        assert topic.fetch_one(0).last_stable_offset == 1
        assert committed(topic) == [b"x"]
        entry = topic.fetch_one(2, isolation_level=1)
        assert (name(entry.error_code), entry.records or b"") == ("", b"")

    def test_times_behind_the_last_stable_offset_are_not_found(self, make: MakeProducer) -> None:
        producer = make()
        topic = producer.topic
        producer.sends(b"a")
        assert [latest(topic, isolation, NOW_MS) for isolation in (0, 1)] == [0, -1]
        assert [latest(topic, isolation, -3) for isolation in (0, 1)] == [0, -1]
        producer.ends(commit=True)
        assert [latest(topic, isolation, NOW_MS) for isolation in (0, 1)] == [0, 0]

    def test_each_fetch_names_what_was_aborted_where_it_reads(self, make: MakeProducer, make_topic: Any) -> None:
        topic = make_topic(1)
        one, two, three = (make(12, topic) for _ in range(3))
        one.sends(b"a")  # 0
        two.sends(b"b")  # 1
        one.ends(commit=False)  # 2
        three.sends(b"c")  # 3
        two.ends(commit=False)  # 4
        three.ends(commit=True)  # 5
        one.sends(b"d")  # 6
        one.ends(commit=False)  # 7
        assert latest(topic, 1) == 8
        expected = [(one.id, 0), (two.id, 1), (one.id, 6)]
        for offset, first in enumerate([0, 0, 0, 1, 1, 2, 2, 2]):
            entry = topic.fetch_one(offset, isolation_level=1)
            assert [(t.producer_id, t.first_offset) for t in entry.aborted_transactions] == expected[first:]
        assert committed(topic) == [b"c"]
        assert committed(topic, 3) == [b"c"]
        assert committed(topic, 4) == []

    def test_the_stable_end_waits_for_the_oldest_transaction(self, make: MakeProducer, make_topic: Any) -> None:
        topic = make_topic(1)
        producers = [make(12, topic) for _ in range(3)]
        for number, producer in enumerate(producers):
            producer.sends(b"%d" % number)
        found = []
        for number in (1, 0, 2):
            producers[number].ends(commit=True)
            found.append(latest(topic, 1))
        assert found == [0, 2, 6]

    def test_a_reader_that_waits_is_woken_by_the_marker(self, make: MakeProducer, connect: Any) -> None:
        producer, client = make(), connect()
        producer.sends(b"a")
        request = producer.topic.fetch_request({0: 0}, isolation_level=1, max_wait_ms=5_000)
        client.send(request, 12)
        assert client.is_silent()
        producer.ends(commit=True)
        _, answer = client.receive(request, 12)
        assert answer.responses[0].partitions[0].last_stable_offset == 2

    def test_an_empty_transactions_abort_is_in_no_list(self, make: MakeProducer) -> None:
        producer = make()
        producer.marker(commit=False, epoch=5, producer_id=900_000_003)
        entry = producer.topic.fetch_one(0, isolation_level=1)
        assert (entry.aborted_transactions, entry.last_stable_offset) == ([], 1)


class TestGroupOffsets:
    def test_they_count_when_the_transaction_commits(self, make: MakeProducer, group: str) -> None:
        producer = make()
        assert producer.commits_plainly(group, 5) == ""
        assert producer.commits(group, 42) == ""
        assert producer.position(group) == (5, "")
        for version in (7, 9):
            assert producer.position(group, stable=True, version=version) == (-1, "UnstableOffsetCommit")
        producer.ends(commit=True)
        assert eventually(lambda: producer.position(group) == (42, ""))
        assert producer.position(group, stable=True) == (42, "")

    def test_they_never_count_if_it_aborts(self, make: MakeProducer, group: str) -> None:
        producer = make()
        producer.commits_plainly(group, 5)
        producer.commits(group, 42)
        producer.ends(commit=False)
        assert eventually(lambda: producer.position(group, stable=True) == (5, ""))

    def test_a_plain_commit_behind_them_wins(self, make: MakeProducer, group: str) -> None:
        producer = make()
        producer.commits(group, 42)
        producer.commits_plainly(group, 7)
        producer.ends(commit=True)
        assert eventually(lambda: producer.position(group, stable=True) == (7, ""))

    @pytest.mark.parametrize(
        ("version", "told"), [(0, "InvalidTxnState"), (3, "InvalidTxnState"), (4, "TransactionAbortable")]
    )
    def test_before_version_5_the_group_has_to_be_added(
        self, make: MakeProducer, group: str, version: int, told: str
    ) -> None:
        producer = make(11)
        assert producer.commits(group, 42, version=version) == told
        assert producer.adds_group(group) == ""
        assert producer.commits(group, 42, version=version) == ""
        producer.ends(commit=True)
        assert eventually(lambda: producer.position(group, stable=True) == (42, ""))

    def test_refusals(self, make: MakeProducer, group: str) -> None:
        producer = make()
        told = {
            "topic": producer.commits(group, 1, topic="gone"),
            "partition": producer.commits(group, 1, partition=9),
            "no group": producer.commits("", 1),
            "generation": producer.commits(group, 1, generation=3, member="m"),
            "metadata": producer.commits(group, 1, metadata="x" * 5000),
            "producer id": producer.commits(group, 1, producer_id=producer.id + 1_000_000),
            "epoch": producer.commits(group, 1, epoch=producer.epoch + 1),
            "transactional id": producer.commits(group, 1, transactional_id="nobody-has-this"),
        }
        assert told == {
            "topic": "UnknownTopicOrPartition",
            "partition": "UnknownTopicOrPartition",
            "no group": "InvalidGroupId",
            "generation": "IllegalGeneration",
            "metadata": "OffsetMetadataTooLarge",
            "producer id": "InvalidProducerIdMapping",
            "epoch": "InvalidProducerEpoch",
            "transactional id": "InvalidProducerIdMapping",
        }
        assert producer.position(group, stable=True) == (-1, "")

    def test_a_fenced_producer(self, make: MakeProducer, group: str) -> None:
        producer = make()
        epoch = producer.epoch
        producer.commits(group, 41)
        producer.ends(commit=True)
        eventually(lambda: producer.position(group, stable=True) == (41, ""))
        assert producer.commits(group, 42, epoch=epoch) == "InvalidProducerEpoch"

    def test_members_are_checked_but_not_the_state_of_their_group(self, make: MakeProducer, group: str) -> None:
        producer = make()
        member_id, generation = self.joins(producer, group)
        told = [
            producer.commits(group, 1),
            producer.commits(group, 1, member=member_id, generation=generation),
            producer.commits(group, 1, member=member_id, generation=generation + 1),
            producer.commits(group, 1, member="stranger", generation=generation),
            producer.commits(group, 1, member=member_id, generation=generation, instance="i"),
            producer.commits(group, 1, member=member_id),
        ]
        assert told == ["", "", "IllegalGeneration", "UnknownMemberId", "UnknownMemberId", "IllegalGeneration"]

    def joins(self, producer: TransactionalProducer, group: str) -> tuple[str, int]:
        """A member whose group waits for its assignment."""
        request = JoinGroupRequest(
            group_id=group,
            session_timeout_ms=30_000,
            rebalance_timeout_ms=30_000,
            protocol_type="consumer",
            protocols=[JoinGroupRequestProtocol(name="range", metadata=b"")],
        )
        request.member_id = producer.client.ask(request, 5).member_id
        joined = producer.client.ask(request, 5)
        assert joined.error_code == 0
        return joined.member_id, joined.generation_id

    def test_a_deleted_offset_is_not_brought_back_by_the_commit(self, make: MakeProducer, group: str) -> None:
        producer = make()
        producer.commits(group, 42)
        asked = OffsetDeleteRequestTopic(
            name=producer.topic.name, partitions=[OffsetDeleteRequestPartition(partition_index=0)]
        )
        assert producer.client.ask(OffsetDeleteRequest(group_id=group, topics=[asked]), 0).error_code == 0
        assert producer.position(group, stable=True) == (-1, "")
        producer.ends(commit=True)
        assert eventually(lambda: producer.position(group, stable=True) == (-1, ""))

    def test_a_deleted_group_is_not_brought_back_by_the_commit(self, make: MakeProducer, group: str) -> None:
        producer = make()
        producer.commits(group, 42)
        (deleted,) = producer.client.ask(DeleteGroupsRequest(groups_names=[group]), 2).results
        assert deleted.error_code == 0
        producer.ends(commit=True)
        assert producer.position(group, stable=True) == (-1, "")
        (deleted,) = producer.client.ask(DeleteGroupsRequest(groups_names=[group]), 2).results
        assert name(deleted.error_code) == "GroupIdNotFound"
