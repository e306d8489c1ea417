"""Produce: checks in Kafka's order, acks, and what the answer tells."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from ottla_broker.api import UnanswerableError
from ottla_broker.pending import Pending
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.records import Compression
from ottla_wire.schema import Uuid

CORRUPT, UNKNOWN_TOPIC, NOT_LEADER, TIMED_OUT, TOO_LARGE = 2, 3, 6, 7, 10
INVALID_TOPIC, NOT_ENOUGH, NOT_ENOUGH_AFTER_APPEND, INVALID_ACKS = 17, 19, 20, 21
OUT_OF_ORDER, INVALID_TXN_STATE, TXN_ID_AUTH = 45, 48, 53
UNSUPPORTED_COMPRESSION, INVALID_RECORD, UNKNOWN_TOPIC_ID = 76, 87, 100


class TestAnswer:
    def test_offsets_go_on_where_the_last_batch_ended(self, api: Any, make_batch: Any) -> None:
        first = api.produce(make_batch(b"a", b"b"))
        second = api.produce(make_batch(b"c"))
        assert (first.error_code, first.base_offset, first.log_append_time_ms, first.log_start_offset) == (0, 0, -1, 0)
        assert second.base_offset == 2
        assert api.values(api.fetch_one(0).records) == [b"a", b"b", b"c"]

    @pytest.mark.parametrize("version", range(3, 13))
    def test_every_version_is_served(self, api: Any, make_batch: Any, version: int) -> None:
        assert api.produce(make_batch(b"a"), version=version).error_code == 0

    def test_version_13_names_topics_by_id(self, bench: Any, api_of: Any, make_batch: Any) -> None:
        topic_id = bench.create_topic("t")
        api = api_of(bench)
        assert api.produce(make_batch(b"a"), version=13, topic_id=topic_id).error_code == 0
        unknown = api.produce(make_batch(b"a"), version=13, topic_id=Uuid(b"\x01" * 16))
        assert (unknown.error_code, unknown.base_offset) == (UNKNOWN_TOPIC_ID, -1)

    def test_log_append_time_is_the_brokers(self, bench: Any, api_of: Any, make_batch: Any) -> None:
        bench.create_topic("t", message_timestamp_type="LogAppendTime")
        api = api_of(bench)
        result = api.produce(make_batch(b"a", timestamp_ms=5))
        assert result.log_append_time_ms == bench.clock.wall_ms()

    def test_a_failed_partition_leaves_the_others_alone(self, api: Any, make_batch: Any) -> None:
        results = api.produce({0: make_batch(b"a"), 7: make_batch(b"b"), 1: make_batch(b"c")})
        assert [results[i].error_code for i in (0, 7, 1)] == [0, UNKNOWN_TOPIC, 0]
        assert results[7].base_offset == -1

    def test_an_idempotent_duplicate_is_answered_with_its_first_offset(self, api: Any, make_batch: Any) -> None:
        data = make_batch(b"a", b"b", producer_id=9, producer_epoch=0, base_sequence=0)
        assert api.produce(data).base_offset == 0
        api.produce(make_batch(b"c"))
        again = api.produce(data)
        assert (again.error_code, again.base_offset) == (0, 0)
        assert api.list_offset(-1).offset == 3

    def test_an_overlapping_sequence_is_out_of_order(self, api: Any, make_batch: Any) -> None:
        api.produce(make_batch(b"a", b"b", producer_id=9, producer_epoch=0, base_sequence=0))
        result = api.produce(make_batch(b"b", b"c", producer_id=9, producer_epoch=0, base_sequence=1))
        assert (result.error_code, result.log_start_offset) == (OUT_OF_ORDER, 0)


class TestChecks:
    @pytest.mark.parametrize("data", [None, b"", b"\0" * 11])
    def test_a_partition_without_a_batch(self, api: Any, data: bytes | None) -> None:
        result = api.produce(data)
        assert (result.error_code, result.base_offset, result.log_start_offset) == (INVALID_RECORD, -1, -1)

    def test_two_batches_for_one_partition(self, api: Any, make_batch: Any) -> None:
        result = api.produce(make_batch(b"a") + make_batch(b"b"))
        assert (result.error_code, result.log_start_offset) == (INVALID_RECORD, -1)

    def test_a_batch_with_an_offset_of_its_own_is_refused_by_the_log(self, api: Any, make_batch: Any) -> None:
        result = api.produce(make_batch(b"a", base_offset=5))
        assert (result.error_code, result.base_offset, result.log_start_offset) == (INVALID_RECORD, -1, 0)

    def test_what_is_cut_off_behind_the_batch_is_dropped(self, api: Any, make_batch: Any) -> None:
        assert api.produce(make_batch(b"a") + make_batch(b"b")[:40]).error_code == 0
        assert api.values(api.fetch_one(0).records) == [b"a"]

    def test_an_old_magic(self, api: Any, make_batch: Any) -> None:
        data = bytearray(make_batch(b"a"))
        data[16] = 1
        assert api.produce(bytes(data)).error_code == INVALID_RECORD

    def test_a_magic_from_the_future(self, api: Any, make_batch: Any) -> None:
        data = bytearray(make_batch(b"a"))
        data[16] = 3
        assert api.produce(bytes(data)).error_code == CORRUPT

    def test_a_length_that_cannot_be(self, api: Any, make_batch: Any) -> None:
        data = bytearray(make_batch(b"a"))
        struct.pack_into(">i", data, 8, 13)
        assert api.produce(bytes(data)).error_code == CORRUPT

    def test_a_bit_that_fell_over(self, api: Any, make_batch: Any) -> None:
        data = bytearray(make_batch(b"a"))
        data[-1] ^= 1
        result = api.produce(bytes(data))
        assert (result.error_code, result.base_offset, result.log_start_offset) == (CORRUPT, -1, -1)

    def test_zstd_before_version_7(self, api: Any, make_batch: Any) -> None:
        data = make_batch(b"a" * 100, compression=Compression.ZSTD)
        assert api.produce(data, version=6).error_code == UNSUPPORTED_COMPRESSION
        assert api.produce(data, version=7).error_code == 0

    def test_acks_that_cannot_be(self, api: Any, make_batch: Any) -> None:
        assert api.produce(make_batch(b"a"), acks=2).error_code == INVALID_ACKS
        assert api.list_offset(-1).offset == 0

    def test_an_unknown_partition_counts_before_wrong_acks(self, api: Any, make_batch: Any) -> None:
        assert api.produce({9: make_batch(b"a")}, acks=2)[9].error_code == UNKNOWN_TOPIC

    def test_a_batch_larger_than_the_topic_allows(self, bench: Any, api_of: Any, make_batch: Any) -> None:
        bench.create_topic("t", max_message_bytes="200")
        result = api_of(bench).produce(make_batch(b"a" * 200))
        assert (result.error_code, result.log_start_offset) == (TOO_LARGE, -1)

    def test_records_without_key_in_a_compacted_topic_are_named(self, bench: Any, api_of: Any) -> None:
        from ottla_wire.records import build_batch

        bench.create_topic("t", cleanup_policy="compact")
        data = build_batch([(1, b"k", b"a", ()), (1, None, b"b", ())])
        result = api_of(bench).produce(data)
        assert result.error_code == INVALID_RECORD
        assert [error.batch_index for error in result.record_errors] == [1]
        assert result.error_message
        assert result.log_start_offset == 0

    def test_internal_topics_are_closed_to_clients(self, bench: Any, api_of: Any, make_batch: Any) -> None:
        bench.create_topic("__consumer_offsets", 1)
        api = api_of(bench, "__consumer_offsets")
        assert api.produce(make_batch(b"a")).error_code == INVALID_TOPIC
        assert api.produce(make_batch(b"a"), client_id="__admin_client").error_code == 0

    def test_transactional_records_without_a_transactional_id_refuse_the_whole_request(
        self, api: Any, make_batch: Any
    ) -> None:
        data = make_batch(b"a", producer_id=9, producer_epoch=0, base_sequence=0, transactional=True)
        results = api.produce({0: make_batch(b"b"), 1: data})
        assert [results[i].error_code for i in (0, 1)] == [TXN_ID_AUTH, TXN_ID_AUTH]
        assert api.list_offset(-1).offset == 0


class TestAcks:
    def test_acks_0_has_no_answer(self, api: Any, make_batch: Any) -> None:
        assert api.produce(make_batch(b"a"), acks=0) is None
        assert api.list_offset(-1).offset == 1

    def test_acks_0_with_an_error_closes_the_connection(self, api: Any, make_batch: Any) -> None:
        with pytest.raises(UnanswerableError, match="t-9"):
            api.produce({0: make_batch(b"a"), 9: make_batch(b"a")}, acks=0)

    def test_too_few_replicas_refuse_acks_all_only(self, bench: Any, api: Any, make_batch: Any) -> None:
        partition = bench.partition("t")
        partition.replicas, partition.isr = (1, 2, 3), (1,)
        partition.log.update_config(partition.log.config.__class__(min_insync_replicas=2))
        result = api.produce(make_batch(b"a"), acks=-1)
        assert (result.error_code, result.base_offset, result.log_start_offset) == (NOT_ENOUGH, -1, 0)
        assert api.produce(make_batch(b"a"), acks=1).error_code == 0
        # KIP-966: what too few replicas hold is not visible.
        assert api.list_offset(-1).offset == 0

    def test_acks_all_waits_for_the_high_watermark(self, bench: Any, api: Any, make_batch: Any) -> None:
        partition = bench.partition("t")
        held = _HeldWatermark(partition)
        pending = api.produce(make_batch(b"a"), acks=-1)
        assert isinstance(pending, Pending)
        assert not pending.done()
        held.release()
        bench.broker.settle(bench.clock.ms)
        assert pending.result().responses[0].partition_responses[0].error_code == 0

    def test_a_write_that_times_out_stays_in_the_log(self, bench: Any, api: Any, make_batch: Any) -> None:
        held = _HeldWatermark(bench.partition("t"))
        pending = api.produce({0: make_batch(b"a"), 1: make_batch(b"b")}, acks=-1, timeout_ms=500)
        bench.advance(499)
        assert not pending.done()
        bench.advance(1)
        results = pending.result().responses[0].partition_responses
        assert [(r.error_code, r.base_offset) for r in results] == [(TIMED_OUT, 0), (0, 0)]
        held.release()
        assert api.list_offset(-1).offset == 1

    def test_a_leader_that_resigns_says_so_to_those_who_wait(self, bench: Any, api: Any, make_batch: Any) -> None:
        partition = bench.partition("t")
        _HeldWatermark(partition)
        pending = api.produce(make_batch(b"a"), acks=-1)
        image = bench.controller.image.partition("t", 0)
        partition.apply(image._replace(leader=2, leader_epoch=image.leader_epoch + 1))
        bench.broker.settle(bench.clock.ms)
        assert pending.result().responses[0].partition_responses[0].error_code == NOT_LEADER

    def test_replicas_that_leave_after_the_append_are_an_error_of_their_own(
        self, bench: Any, api: Any, make_batch: Any
    ) -> None:
        partition = bench.partition("t")
        held = _HeldWatermark(partition)
        pending = api.produce(make_batch(b"a"), acks=-1)
        held.release()
        partition.replicas = (1, 2)
        partition.log.update_config(partition.log.config.__class__(min_insync_replicas=2))
        bench.broker.settle(bench.clock.ms)
        assert pending.result().responses[0].partition_responses[0].error_code == NOT_ENOUGH_AFTER_APPEND

    def test_deleting_the_topic_answers_those_who_wait(self, bench: Any, api: Any, make_batch: Any) -> None:
        _HeldWatermark(bench.partition("t"))
        pending = api.produce(make_batch(b"a"), acks=-1)
        bench.delete_topic("t")
        bench.broker.settle(bench.clock.ms)
        assert pending.result().responses[0].partition_responses[0].error_code == UNKNOWN_TOPIC


class _HeldWatermark:
    """Another replica in sync that has nothing yet: the high watermark stays until `release`."""

    def __init__(self, partition: Any) -> None:
        self._partition = partition
        partition.advance_high_watermark = lambda: False

    def release(self) -> None:
        del self._partition.advance_high_watermark
        self._partition.advance_high_watermark()


class TestSyncBeforeAck:
    @pytest.mark.parametrize("acks", [1, -1])
    def test_the_answer_waits_for_the_fsync(self, bench: Any, api_of: Any, make_batch: Any, acks: int) -> None:
        bench.create_topic("t", flush_messages="1")
        api = api_of(bench)
        pending = api.produce(make_batch(b"a"), acks=acks)
        assert isinstance(pending, Pending)
        assert not pending.done()
        assert api.list_offset(-1).offset == 0
        work = bench.replicas.take_sync_work()
        work.run()
        assert not pending.done()
        work.finish()
        bench.broker.settle(bench.clock.ms)
        assert pending.result().responses[0].partition_responses[0].error_code == 0
        assert api.list_offset(-1).offset == 1
        assert bench.replicas.take_sync_work() is None

    def test_what_comes_during_an_fsync_waits_for_the_next(self, bench: Any, api_of: Any, make_batch: Any) -> None:
        bench.create_topic("t", flush_messages="1")
        api = api_of(bench)
        first = api.produce(make_batch(b"a"))
        work = bench.replicas.take_sync_work()
        second, third = api.produce(make_batch(b"b")), api.produce(make_batch(b"c"))
        work.run()
        work.finish()
        bench.broker.settle(bench.clock.ms)
        assert (first.done(), second.done(), third.done()) == (True, False, False)
        work = bench.replicas.take_sync_work()
        work.run()
        work.finish()
        bench.broker.settle(bench.clock.ms)
        assert second.done()
        assert third.done()

    def test_a_failed_fsync_is_an_error_and_takes_the_partition_offline(
        self, bench: Any, api_of: Any, make_batch: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.create_topic("t", flush_messages="1")
        api = api_of(bench)
        pending = api.produce(make_batch(b"a"))
        work = bench.replicas.take_sync_work()

        def fail(_fd: int) -> None:
            raise OSError(5, "the disk is gone")

        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", fail)
            work.run()
        work.finish()
        bench.broker.settle(bench.clock.ms)
        assert pending.result().responses[0].partition_responses[0].error_code == 56
        assert api.produce(make_batch(b"b")).error_code == 56

    def test_a_topic_can_be_switched_to_it(self, bench: Any, api: Any, make_batch: Any) -> None:
        partition = bench.partition("t")
        assert api.produce(make_batch(b"a")).error_code == 0
        partition.sync_before_ack = True
        partition.synced_offset = 0
        assert isinstance(api.produce(make_batch(b"b")), Pending)


def test_a_request_of_many_topics_is_answered_in_its_order(bench: Any, make_batch: Any) -> None:
    for name in ("b", "a"):
        bench.create_topic(name)
    request = ProduceRequest(
        acks=1,
        timeout_ms=1000,
        topic_data=[
            TopicProduceData(name=n, partition_data=[PartitionProduceData(index=0, records=make_batch(b"x"))])
            for n in ("b", "missing", "a")
        ],
    )
    response = bench.ask(request, 9)
    assert [(t.name, t.partition_responses[0].error_code) for t in response.responses] == [
        ("b", 0),
        ("missing", UNKNOWN_TOPIC),
        ("a", 0),
    ]
