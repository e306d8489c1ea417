"""WriteTxnMarkers: the end of transactions in their partitions, and who may write it.

Pitfalls 26, 30 and 31 of a reimplementation, the partition's side.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ottla_broker.pending import Pending
from ottla_wire.messages.write_txn_markers import WritableTxnMarker, WritableTxnMarkerTopic, WriteTxnMarkersRequest
from ottla_wire.records import ControlType, control_type, coordinator_epoch, iter_batches

UNKNOWN_TOPIC, NOT_LEADER, TIMED_OUT, NOT_ENOUGH = 3, 6, 7, 19
INVALID_EPOCH, COORDINATOR_FENCED, STORAGE_ERROR = 47, 52, 56


def last_batch(stage: Any) -> Any:
    return list(iter_batches(stage.fetch(isolation=0).records))[-1]


class TestMarker:
    @pytest.mark.parametrize(("commit", "kind"), [(True, ControlType.COMMIT), (False, ControlType.ABORT)])
    def test_it_is_a_control_batch_of_one_record_without_a_sequence(
        self, stage: Any, commit: bool, kind: ControlType
    ) -> None:
        producer = stage.producer()
        producer.sends(b"a")
        producer.ends(commit=commit, coordinator_epoch=7)
        batch = last_batch(stage)
        batch.verify()
        assert (batch.is_control, batch.is_transactional, batch.base_sequence, batch.count) == (True, True, -1, 1)
        assert (control_type(batch), coordinator_epoch(batch)) == (kind, 7)
        assert (batch.producer_id, batch.producer_epoch, batch.base_offset) == (9, 1, 1)
        assert batch.max_timestamp_ms == stage.bench.clock.wall_ms()

    def test_one_request_ends_many_transactions_in_many_partitions(self, stage: Any) -> None:
        producers = [stage.producer(f"tx-{number}", number) for number in (9, 10)]
        for producer in producers:
            for partition in range(3):
                producer.sends(b"%d" % producer.id, partition=partition)
        request = WriteTxnMarkersRequest(
            markers=[
                WritableTxnMarker(
                    producer_id=number,
                    producer_epoch=1,
                    transaction_result=number == 9,
                    topics=[WritableTxnMarkerTopic(name="t", partition_indexes=[0, 1, 2])],
                    transaction_version=2,
                )
                for number in (9, 10)
            ]
        )
        answer = stage.bench.ask(request, 2)
        assert [marker.producer_id for marker in answer.markers] == [9, 10]
        told = [entry for marker in answer.markers for topic in marker.topics for entry in topic.partitions]
        assert [(entry.partition_index, entry.error_code) for entry in told] == [(i, 0) for i in (0, 1, 2)] * 2
        assert [stage.values(partition=index) for index in range(3)] == [[b"9"]] * 3

    def test_two_markers_of_one_producer_are_answered_together(self, stage: Any) -> None:
        request = WriteTxnMarkersRequest(
            markers=[
                WritableTxnMarker(producer_id=9, topics=[WritableTxnMarkerTopic(name="t", partition_indexes=[index])])
                for index in (0, 1)
            ]
        )
        (marker,) = stage.bench.ask(request, 1).markers
        assert [topic.partitions[0].partition_index for topic in marker.topics] == [0, 1]

    def test_no_markers_are_no_work(self, stage: Any) -> None:
        assert stage.bench.ask(WriteTxnMarkersRequest(markers=[]), 1).markers == []

    def test_a_topic_with_log_append_time_gives_it_to_markers_too(self, bench: Any, stage_of: Any) -> None:
        stage = stage_of(bench)
        bench.create_topic("appended", message_timestamp_type="LogAppendTime")
        assert stage.writes_marker(9, commit=True, epoch=0, topic="appended") == [0]
        log = bench.partition("appended").log
        (batch,) = iter_batches(log.read(0, 1000, at_least_one=True).records)
        batch.verify()
        assert batch.max_timestamp_ms == bench.clock.wall_ms()


class TestRefusals:
    def test_partitions_that_are_not_here_are_unknown_and_leave_the_others_alone(self, stage: Any) -> None:
        assert stage.writes_marker(9, commit=True, epoch=0, partitions=(7, 0)) == [UNKNOWN_TOPIC, 0]
        assert stage.writes_marker(9, commit=True, epoch=0, topic="gone") == [UNKNOWN_TOPIC]

    def test_a_partition_that_is_led_elsewhere_says_so(self, stage: Any) -> None:
        stage.bench.partition("t").leader = 2
        assert stage.writes_marker(9, commit=True, epoch=0) == [NOT_LEADER]

    def test_too_few_replicas_in_sync_refuse_the_marker(self, stage: Any) -> None:
        partition = stage.bench.partition("t")
        partition.replicas = (1, 2)
        partition.log.config = replace(partition.log.config, min_insync_replicas=2)
        assert stage.writes_marker(9, commit=True, epoch=0) == [NOT_ENOUGH]

    def test_the_markers_of_an_old_coordinator_are_fenced(self, stage: Any) -> None:
        """Pitfall 31: a coordinator that was paused goes on with what its successor has finished already."""
        producer = stage.producer()
        producer.sends(b"a")
        producer.ends(commit=True, coordinator_epoch=5)
        following = stage.producer(epoch=1)
        following.sends(b"b")
        assert stage.writes_marker(9, commit=False, epoch=2, coordinator_epoch=4) == [COORDINATOR_FENCED]
        assert following.ends(commit=True, coordinator_epoch=5) == [0]
        assert stage.values() == [b"a", b"b"]

    def test_the_epoch_of_a_coordinator_counts_for_each_producer(self, stage: Any) -> None:
        stage.writes_marker(9, commit=True, epoch=0, coordinator_epoch=5)
        assert stage.writes_marker(10, commit=True, epoch=0, coordinator_epoch=4) == [0]


class TestProducerEpochs:
    @pytest.mark.parametrize("version", [0, 1])
    def test_before_version_2_a_marker_has_the_epoch_of_its_transaction_or_a_newer_one(
        self, stage: Any, version: int
    ) -> None:
        producer = stage.producer(epoch=3)
        producer.sends(b"a")
        write = {"commit": True, "transaction_version": version}
        assert stage.writes_marker(9, epoch=2, **write) == [INVALID_EPOCH]
        assert stage.writes_marker(9, epoch=3, **write) == [0]
        assert stage.writes_marker(9, epoch=3, **write) == [0]
        assert stage.writes_marker(9, epoch=4, **write) == [0]
        assert stage.values() == [b"a"]

    def test_of_version_2_it_has_a_newer_one(self, stage: Any) -> None:
        producer = stage.producer(epoch=3)
        producer.sends(b"a")
        for epoch in (2, 3):
            assert stage.writes_marker(9, commit=True, epoch=epoch) == [INVALID_EPOCH]
        assert stage.latest(isolation=1) == 0
        assert stage.writes_marker(9, commit=True, epoch=4) == [0]

    def test_a_repeated_marker_of_version_2_is_written_once_more_and_changes_nothing(self, stage: Any) -> None:
        """Pitfall 30 (KAFKA-19999): the coordinator failed over between the marker and its own last record."""
        producer = stage.producer()
        producer.sends(b"a")
        for _ in range(1000):
            assert stage.writes_marker(9, commit=True, epoch=1) == [0]
        assert stage.latest(isolation=0) == stage.latest(isolation=1) == 1001
        assert stage.values() == [b"a"]
        assert stage.bench.partition("t").log.aborted_transactions(0, 2000) == []

    def test_a_repeated_abort_aborts_nothing_else(self, stage: Any) -> None:
        producer = stage.producer()
        producer.sends(b"a")
        producer.ends(commit=False)
        stage.writes_marker(9, commit=False, epoch=1)
        producer.sends(b"b")
        producer.ends(commit=True)
        assert stage.values() == [b"b"]
        (aborted,) = stage.fetch().aborted_transactions
        assert (aborted.producer_id, aborted.first_offset) == (9, 0)

    def test_a_late_marker_of_version_2_does_not_end_the_next_transaction(self, stage: Any) -> None:
        producer = stage.producer()
        producer.sends(b"a")
        producer.ends(commit=True)
        producer.sends(b"b")
        assert stage.writes_marker(9, commit=False, epoch=1) == [INVALID_EPOCH]
        assert stage.described()[0].current_txn_start_offset == 2
        producer.ends(commit=True)
        assert stage.values() == [b"a", b"b"]

    def test_the_last_epoch_of_all_may_be_ended_by_itself(self, stage: Any) -> None:
        producer = stage.producer(epoch=32_767)
        producer.sends(b"a")
        assert stage.writes_marker(9, commit=False, epoch=32_767) == [0]
        assert stage.latest(isolation=1) == 2

    def test_a_producer_that_never_wrote_here_may_be_ended_at_any_epoch(self, stage: Any) -> None:
        assert stage.writes_marker(9, commit=False, epoch=0) == [0]
        assert stage.fetch().aborted_transactions == []


class TestReplication:
    """Pitfall 26: what is stable is what the high watermark says, not what the log's end says."""

    def test_a_marker_is_answered_when_it_is_replicated(self, stage: Any) -> None:
        stage.producer().sends(b"a")
        catch_up = stage.stops_replicating()
        answer = stage.writes_marker(9, commit=True, epoch=1)
        assert isinstance(answer, Pending)
        catch_up()
        assert answer.result().markers[0].topics[0].partitions[0].error_code == 0

    def test_readers_wait_for_it_too(self, stage: Any) -> None:
        stage.producer().sends(b"a")
        catch_up = stage.stops_replicating()
        stage.writes_marker(9, commit=True, epoch=1)
        entry = stage.fetch()
        assert (entry.last_stable_offset, entry.high_watermark, entry.records) == (0, 1, b"")
        assert stage.latest(isolation=1) == 0
        catch_up()
        entry = stage.fetch()
        assert (entry.last_stable_offset, entry.high_watermark) == (2, 2)
        assert stage.values() == [b"a"]

    def test_a_marker_at_the_high_watermark_is_not_below_it(self, stage: Any) -> None:
        stage.producer().sends(b"a")
        partition = stage.bench.partition("t")
        catch_up = stage.stops_replicating()
        stage.writes_marker(9, commit=True, epoch=1)
        partition.log.high_watermark_moved(1)
        assert partition.last_stable_offset == 0
        partition.log.high_watermark_moved(2)
        assert partition.last_stable_offset == 2
        catch_up()

    def test_some_partitions_may_wait_while_others_do_not(self, stage: Any) -> None:
        catch_up = stage.stops_replicating(1)
        answer = stage.writes_marker(9, commit=True, epoch=1, partitions=(0, 1, 7))
        assert isinstance(answer, Pending)
        catch_up()
        (topic,) = answer.result().markers[0].topics
        assert [entry.error_code for entry in topic.partitions] == [0, 0, UNKNOWN_TOPIC]

    def test_a_marker_that_is_not_replicated_in_time_is_to_be_written_again(self, stage: Any) -> None:
        stage.stops_replicating()
        answer = stage.writes_marker(9, commit=True, epoch=1)
        stage.bench.advance(30_000)
        assert answer.result().markers[0].topics[0].partitions[0].error_code == TIMED_OUT

    def test_a_leader_that_is_deposed_meanwhile_says_so(self, stage: Any) -> None:
        stage.stops_replicating()
        answer = stage.writes_marker(9, commit=True, epoch=1)
        partition = stage.bench.partition("t")
        image = stage.bench.controller.image.partition("t", 0)
        partition.apply(image._replace(leader=2, leader_epoch=1))
        stage.bench.broker.settle(stage.bench.clock.now_ms())
        assert answer.result().markers[0].topics[0].partitions[0].error_code == NOT_LEADER
