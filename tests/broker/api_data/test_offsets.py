"""ListOffsets, OffsetForLeaderEpoch, DeleteRecords."""

from __future__ import annotations

from typing import Any

import pytest

from ottla_wire.messages.delete_records import DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsTopic
from ottla_wire.messages.describe_producers import DescribeProducersRequest, TopicRequest
from ottla_wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from ottla_wire.messages.offset_for_leader_epoch import (
    OffsetForLeaderEpochRequest,
    OffsetForLeaderPartition,
    OffsetForLeaderTopic,
)
from support.fake_transactions import FakeTransactions

OUT_OF_RANGE, UNKNOWN_TOPIC, LEADER_NOT_AVAILABLE, NOT_LEADER, INVALID_TOPIC = 1, 3, 5, 6, 17
UNSUPPORTED_VERSION, INVALID_REQUEST, POLICY_VIOLATION, FENCED_EPOCH, OFFSET_NOT_AVAILABLE = 35, 42, 44, 74, 78
NOW = 1_700_000_000_000


class TestListOffsets:
    @pytest.fixture
    def filled(self, api: Any, make_batch: Any) -> Any:
        for age, value in ((300, b"a"), (100, b"b"), (200, b"c")):
            api.produce(make_batch(value, value, timestamp_ms=NOW - age), acks=1)
        return api

    def test_latest_and_earliest(self, bench: Any, filled: Any) -> None:
        latest, earliest = filled.list_offset(-1), filled.list_offset(-2)
        assert (latest.offset, latest.timestamp, latest.leader_epoch) == (6, -1, 0)
        assert (earliest.offset, earliest.timestamp, earliest.leader_epoch) == (0, -1, 0)
        bench.partition("t").delete_records(3)
        assert filled.list_offset(-2).offset == 3
        assert filled.list_offset(-4).offset == 3

    def test_a_timestamp_finds_the_first_record_not_older(self, filled: Any) -> None:
        found = filled.list_offset(NOW - 250)
        assert (found.offset, found.timestamp, found.leader_epoch) == (2, NOW - 100, 0)
        assert filled.list_offset(0).offset == 0
        missing = filled.list_offset(NOW)
        assert (missing.error_code, missing.offset, missing.timestamp) == (0, -1, -1)

    def test_max_timestamp_is_the_youngest_record(self, filled: Any, api: Any) -> None:
        found = filled.list_offset(-3)
        assert (found.offset, found.timestamp) == (2, NOW - 100)

    def test_max_timestamp_of_an_empty_partition(self, api: Any) -> None:
        found = api.list_offset(-3)
        assert (found.error_code, found.offset, found.timestamp) == (0, -1, -1)

    def test_nothing_is_tiered(self, filled: Any) -> None:
        for timestamp in (-5, -6):
            found = filled.list_offset(timestamp)
            assert (found.error_code, found.offset, found.leader_epoch) == (0, -1, -1)

    @pytest.mark.parametrize(("timestamp", "since"), [(-1, 1), (-2, 1), (-3, 7), (-4, 8), (-5, 9), (-6, 11)])
    def test_special_timestamps_are_known_from_their_version_on(self, api: Any, timestamp: int, since: int) -> None:
        for version in range(1, 12):
            expected = 0 if version >= since else UNSUPPORTED_VERSION
            assert api.list_offset(timestamp, version=version).error_code == expected
        assert api.list_offset(-7).error_code == UNSUPPORTED_VERSION

    def test_consumers_see_the_high_watermark_replicas_the_end(self, bench: Any, filled: Any, make_batch: Any) -> None:
        bench.partition("t").advance_high_watermark = lambda: False
        filled.produce(make_batch(b"d", timestamp_ms=NOW), acks=1)
        assert filled.list_offset(-1).offset == 6
        assert filled.list_offset(NOW).offset == -1
        assert filled.list_offset(-1, replica_id=-2).offset == 7
        assert filled.list_offset(NOW, replica_id=-2).offset == 6

    def test_read_committed_sees_the_last_stable_offset(self, bench: Any, filled: Any, make_batch: Any) -> None:
        bench.broker.transactions = FakeTransactions()
        data = make_batch(b"d", producer_id=9, producer_epoch=0, base_sequence=0, transactional=True)
        assert filled.produce(data, transactional_id="tx").error_code == 0
        assert filled.list_offset(-1, isolation_level=1).offset == 6
        assert filled.list_offset(-1, isolation_level=0).offset == 7

    def test_a_new_leader_that_lags_has_no_latest_offset_yet(self, bench: Any, filled: Any, make_batch: Any) -> None:
        partition = bench.partition("t")
        partition.advance_high_watermark = lambda: False
        filled.produce(make_batch(b"d", timestamp_ms=NOW), acks=1)
        partition.apply(bench.controller.image.partition("t", 0)._replace(leader_epoch=1))
        assert filled.list_offset(-1).error_code == OFFSET_NOT_AVAILABLE
        assert filled.list_offset(NOW).error_code == OFFSET_NOT_AVAILABLE
        assert filled.list_offset(NOW - 250).offset == 2
        assert filled.list_offset(-2).offset == 0
        assert filled.list_offset(-1, version=4).error_code == LEADER_NOT_AVAILABLE

    def test_epochs_and_leadership_are_checked(self, bench: Any, api: Any) -> None:
        partition = bench.partition("t")
        partition.leader_epoch = 5
        assert api.list_offset(-1, current_leader_epoch=4).error_code == FENCED_EPOCH
        partition.leader = 2
        assert api.list_offset(-1).error_code == NOT_LEADER
        assert api.list_offset(-1, replica_id=-2).error_code == 0
        assert api.list_offset(-1, topic="missing").error_code == UNKNOWN_TOPIC

    def test_a_partition_named_twice_is_refused_twice(self, bench: Any, api: Any) -> None:
        asked = [ListOffsetsPartition(partition_index=i, timestamp=-1) for i in (0, 1, 0)]
        request = ListOffsetsRequest(replica_id=-1, topics=[ListOffsetsTopic(name="t", partitions=asked)])
        results = bench.ask(request, 6).topics[0].partitions
        assert [(r.partition_index, r.error_code) for r in results] == [
            (0, INVALID_REQUEST),
            (1, 0),
            (0, INVALID_REQUEST),
        ]


class TestOffsetForLeaderEpoch:
    def ask(self, bench: Any, epoch: int, *, index: int = 0, current: int = -1) -> Any:
        asked = OffsetForLeaderPartition(partition=index, current_leader_epoch=current, leader_epoch=epoch)
        request = OffsetForLeaderEpochRequest(
            replica_id=-1, topics=[OffsetForLeaderTopic(topic="t", partitions=[asked])]
        )
        return bench.ask(request, 4).topics[0].partitions[0]

    def test_an_epoch_ends_where_the_next_begins(self, bench: Any, api: Any, make_batch: Any) -> None:
        api.produce(make_batch(b"a", b"b"), acks=1)
        bench.partition("t").apply(bench.controller.image.partition("t", 0)._replace(leader_epoch=4))
        api.produce(make_batch(b"c"), acks=1)
        assert (self.ask(bench, 0).leader_epoch, self.ask(bench, 0).end_offset) == (0, 2)
        assert (self.ask(bench, 2).leader_epoch, self.ask(bench, 2).end_offset) == (0, 2)
        assert (self.ask(bench, 4).leader_epoch, self.ask(bench, 4).end_offset) == (4, 3)
        unknown = self.ask(bench, 5)
        assert (unknown.error_code, unknown.leader_epoch, unknown.end_offset) == (0, -1, -1)

    def test_an_election_without_an_append_leaves_its_epoch(self, bench: Any, api: Any, make_batch: Any) -> None:
        api.produce(make_batch(b"a"), acks=1)
        for epoch in (1, 2):
            bench.partition("t").apply(bench.controller.image.partition("t", 0)._replace(leader_epoch=epoch))
        assert (self.ask(bench, 1).leader_epoch, self.ask(bench, 1).end_offset) == (0, 1)
        assert self.ask(bench, 2).leader_epoch == 2

    def test_errors(self, bench: Any, api: Any) -> None:
        assert self.ask(bench, 0, index=9).error_code == UNKNOWN_TOPIC
        bench.partition("t").leader_epoch = 5
        assert self.ask(bench, 0, current=4).error_code == FENCED_EPOCH
        bench.partition("t").leader = 2
        assert self.ask(bench, 0).error_code == NOT_LEADER


class TestDeleteRecords:
    def ask(self, bench: Any, offset: int, *, topic: str = "t", index: int = 0) -> Any:
        request = DeleteRecordsRequest(
            topics=[
                DeleteRecordsTopic(
                    name=topic, partitions=[DeleteRecordsPartition(partition_index=index, offset=offset)]
                )
            ],
            timeout_ms=1000,
        )
        result = bench.ask(request, 2).topics[0].partitions[0]
        return result.error_code, result.low_watermark

    def test_the_log_starts_at_the_offset(self, bench: Any, api: Any, make_batch: Any) -> None:
        api.produce(make_batch(b"a", b"b", b"c"), acks=1)
        assert self.ask(bench, 2) == (0, 2)
        assert self.ask(bench, 1) == (0, 2)
        assert self.ask(bench, -1) == (0, 3)
        assert api.list_offset(-2).offset == 3

    def test_offsets_that_cannot_be(self, bench: Any, api: Any, make_batch: Any) -> None:
        api.produce(make_batch(b"a"), acks=1)
        assert self.ask(bench, 2) == (OUT_OF_RANGE, -1)
        assert self.ask(bench, -2) == (OUT_OF_RANGE, -1)

    def test_topics_that_it_is_not_for(self, bench: Any, api: Any) -> None:
        bench.create_topic("compacted", cleanup_policy="compact")
        bench.create_topic("both", cleanup_policy="compact,delete")
        bench.create_topic("__consumer_offsets", 1)
        assert self.ask(bench, 0, topic="compacted") == (POLICY_VIOLATION, -1)
        assert self.ask(bench, 0, topic="both") == (0, 0)
        assert self.ask(bench, 0, topic="__consumer_offsets") == (INVALID_TOPIC, -1)
        assert self.ask(bench, 0, topic="missing") == (UNKNOWN_TOPIC, -1)
        assert self.ask(bench, 0, index=9) == (UNKNOWN_TOPIC, -1)


class TestDescribeProducers:
    def test_producers_are_listed_with_their_last_sequence(self, bench: Any, api: Any, make_batch: Any) -> None:
        api.produce(make_batch(b"a", b"b", producer_id=9, producer_epoch=3, base_sequence=0), acks=1)
        request = DescribeProducersRequest(topics=[TopicRequest(name="t", partition_indexes=[0, 9])])
        known, missing = bench.ask(request, 0).topics[0].partitions
        assert [(p.producer_id, p.producer_epoch, p.last_sequence) for p in known.active_producers] == [(9, 3, 1)]
        assert known.active_producers[0].current_txn_start_offset == -1
        assert missing.error_code == UNKNOWN_TOPIC
