"""What a broker accepts from producers, what it refuses, and what it answers."""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest

from ottla_wire.errors import error_class
from ottla_wire.messages.init_producer_id import InitProducerIdRequest
from ottla_wire.records import Compression, build_batch
from ottla_wire.schema import Uuid


def error(result: Any) -> str:
    known = error_class(result.error_code) if result.error_code else None
    return known.__name__ if known else ""


@pytest.fixture
def producer_id(connect: Any) -> int:
    """An id as an idempotent producer gets it."""
    response = connect().ask(InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=60_000), 4)
    assert (response.error_code, response.producer_epoch) == (0, 0)
    return int(response.producer_id)


class TestAcknowledgements:
    @pytest.mark.parametrize("acks", [1, -1])
    def test_offsets_go_on_where_the_last_batch_ended(
        self, topic: Any, make_batch: Any, values_of: Any, acks: int
    ) -> None:
        first = topic.produce(make_batch(b"a", b"b"), acks=acks)
        second = topic.produce(make_batch(b"c"), acks=acks)
        assert (error(first), first.base_offset, first.log_append_time_ms, first.log_start_offset) == ("", 0, -1, 0)
        assert second.base_offset == 2
        assert values_of(topic.fetch_one(0)) == [b"a", b"b", b"c"]

    def test_acks_0_is_not_answered_and_stored_before_the_next_request(self, topic: Any, make_batch: Any) -> None:
        topic.client.send(topic.produce_request(make_batch(b"a"), acks=0), 12)
        assert topic.end() == 1  # the next answer on the connection is that of the next request

    def test_an_error_with_acks_0_closes_the_connection(self, topic: Any, make_batch: Any) -> None:
        topic.client.send(topic.produce_request({9: make_batch(b"a")}, acks=0), 12)
        assert topic.client.is_closed_by_peer()

    def test_acks_that_cannot_be(self, topic: Any, make_batch: Any) -> None:
        assert error(topic.produce(make_batch(b"a"), acks=2)) == "InvalidRequiredAcks"
        assert topic.end() == 0

    def test_each_partition_has_its_own_result(self, topic: Any, make_batch: Any) -> None:
        results = topic.produce({0: make_batch(b"a"), 7: make_batch(b"b"), 1: make_batch(b"c")})
        assert [error(results[index]) for index in (0, 7, 1)] == ["", "UnknownTopicOrPartition", ""]
        assert results[7].base_offset == -1

    @pytest.mark.parametrize("version", [3, 8, 9, 13])
    def test_every_generation_of_the_protocol_is_served(self, topic: Any, make_batch: Any, version: int) -> None:
        assert error(topic.produce(make_batch(b"a"), version=version)) == ""

    def test_log_append_time_is_answered_and_stored(self, make_topic: Any, make_batch: Any) -> None:
        topic = make_topic(message_timestamp_type="LogAppendTime")
        before = time.time() * 1000 - 5_000
        result = topic.produce(make_batch(b"a", timestamp_ms=5))
        assert before < result.log_append_time_ms < before + 65_000
        assert topic.list_offset(-3).timestamp == result.log_append_time_ms


class TestUnknownTopics:
    def test_by_name(self, topic: Any, make_batch: Any) -> None:
        topic.name = "nobody-made-this-one"
        assert error(topic.produce(make_batch(b"a"))) == "UnknownTopicOrPartition"

    def test_by_id(self, topic: Any, make_batch: Any) -> None:
        result = topic.produce(make_batch(b"a"), version=13, topic_id=Uuid(b"nobody's id here"))
        assert (error(result), result.base_offset) == ("UnknownTopicId", -1)

    def test_an_internal_topic(self, topic: Any, make_batch: Any) -> None:
        topic.name = "__consumer_offsets"
        assert error(topic.produce(make_batch(b"a"))) == "InvalidTopic"


class TestRefusedBatches:
    @pytest.mark.parametrize("data", [b"", b"\0" * 11])  # not None: Apache Kafka 4.3 never answers that
    def test_a_partition_without_a_batch(self, topic: Any, data: bytes) -> None:
        result = topic.produce(data)
        assert (error(result), result.base_offset, result.log_start_offset) == ("InvalidRecord", -1, -1)

    def test_two_batches_for_one_partition(self, topic: Any, make_batch: Any) -> None:
        assert error(topic.produce(make_batch(b"a") + make_batch(b"b"))) == "InvalidRecord"

    def test_a_batch_with_an_offset_of_its_own(self, topic: Any, make_batch: Any) -> None:
        result = topic.produce(make_batch(b"a", base_offset=5))
        assert (error(result), result.base_offset, result.log_start_offset) == ("InvalidRecord", -1, 0)

    @pytest.mark.parametrize(("magic", "expected"), [(1, "InvalidRecord"), (3, "CorruptMessage")])
    def test_another_record_format(self, topic: Any, make_batch: Any, magic: int, expected: str) -> None:
        data = bytearray(make_batch(b"a"))
        data[16] = magic
        assert error(topic.produce(bytes(data))) == expected

    def test_a_length_that_cannot_be(self, topic: Any, make_batch: Any) -> None:
        data = bytearray(make_batch(b"a"))
        struct.pack_into(">i", data, 8, 13)
        assert error(topic.produce(bytes(data))) == "CorruptMessage"

    def test_a_bit_that_fell_over(self, topic: Any, make_batch: Any) -> None:
        data = bytearray(make_batch(b"a"))
        data[-1] ^= 1
        result = topic.produce(bytes(data))
        assert (error(result), result.base_offset, result.log_start_offset) == ("CorruptMessage", -1, -1)
        assert topic.end() == 0

    def test_control_records(self, topic: Any, make_batch: Any) -> None:
        data = make_batch(b"a", producer_id=5, producer_epoch=0, base_sequence=-1, control=True)
        assert error(topic.produce(data)) == "InvalidRecord"

    def test_transactional_records_without_a_transactional_id(self, topic: Any, make_batch: Any) -> None:
        data = make_batch(b"a", producer_id=5, producer_epoch=0, base_sequence=0, transactional=True)
        assert error(topic.produce(data)) == "TransactionalIdAuthorizationFailed"

    def test_a_batch_larger_than_the_topic_allows(self, make_topic: Any, make_batch: Any) -> None:
        topic = make_topic(max_message_bytes="200")
        result = topic.produce(make_batch(b"a" * 200))
        assert (error(result), result.base_offset, result.log_start_offset) == ("MessageTooLarge", -1, -1)
        assert error(topic.produce(make_batch(b"a" * 50))) == ""

    def test_records_without_a_key_in_a_compacted_topic_are_named(self, make_topic: Any) -> None:
        topic = make_topic(cleanup_policy="compact")
        now_ms = int(time.time() * 1000)
        result = topic.produce(build_batch([(now_ms, b"k", b"a", ()), (now_ms, None, b"b", ())]))
        assert error(result) == "InvalidRecord"
        assert [refused.batch_index for refused in result.record_errors] == [1]
        assert (result.error_message is None, result.log_start_offset, topic.end()) == (False, 0, 0)

    def test_timestamps_outside_of_what_the_topic_allows(self, make_topic: Any, make_batch: Any) -> None:
        topic = make_topic(message_timestamp_before_max_ms="60000", message_timestamp_after_max_ms="60000")
        now_ms = int(time.time() * 1000)
        for wrong in (now_ms - 120_000, now_ms + 120_000):
            result = topic.produce(make_batch(b"a", b"b", timestamp_ms=wrong))
            assert error(result) == "InvalidTimestamp"
            assert [refused.batch_index for refused in result.record_errors] == [0, 1]
        assert error(topic.produce(make_batch(b"a", timestamp_ms=now_ms))) == ""

    def test_zstd_from_a_client_too_old_for_it(self, topic: Any, make_batch: Any) -> None:
        data = make_batch(b"a" * 100, compression=Compression.ZSTD)
        assert error(topic.produce(data, version=6)) == "UnsupportedCompressionType"
        assert error(topic.produce(data, version=7)) == ""


class TestIdempotence:
    def test_a_repeated_batch_is_answered_with_its_first_offset_and_stored_once(
        self, topic: Any, make_batch: Any, producer_id: int
    ) -> None:
        data = make_batch(b"a", b"b", producer_id=producer_id, producer_epoch=0, base_sequence=0)
        assert topic.produce(data).base_offset == 0
        topic.produce(make_batch(b"c"))
        again = topic.produce(data)
        assert (error(again), again.base_offset) == ("", 0)
        assert topic.end() == 3

    def test_the_last_five_batches_are_recognised(self, topic: Any, make_batch: Any, producer_id: int) -> None:
        sent = [make_batch(b"v", producer_id=producer_id, producer_epoch=0, base_sequence=n) for n in range(6)]
        assert [topic.produce(data).base_offset for data in sent] == [0, 1, 2, 3, 4, 5]
        assert [topic.produce(data).base_offset for data in sent[1:]] == [1, 2, 3, 4, 5]
        assert error(topic.produce(sent[0])) == "OutOfOrderSequenceNumber"
        assert topic.end() == 6

    @pytest.mark.parametrize("sequence", [1, 3])
    def test_a_sequence_that_overlaps_or_leaves_a_gap(
        self, topic: Any, make_batch: Any, producer_id: int, sequence: int
    ) -> None:
        topic.produce(make_batch(b"a", b"b", producer_id=producer_id, producer_epoch=0, base_sequence=0))
        wrong = make_batch(b"c", b"d", producer_id=producer_id, producer_epoch=0, base_sequence=sequence)
        result = topic.produce(wrong)
        assert (error(result), result.base_offset) == ("OutOfOrderSequenceNumber", -1)
        assert topic.end() == 2

    def test_an_unknown_producer_may_begin_anywhere_and_goes_on_from_there(
        self, topic: Any, make_batch: Any, producer_id: int
    ) -> None:
        fields = {"producer_id": producer_id, "producer_epoch": 0}
        assert error(topic.produce(make_batch(b"a", base_sequence=7, **fields))) == ""
        assert error(topic.produce(make_batch(b"b", base_sequence=9, **fields))) == "OutOfOrderSequenceNumber"
        assert error(topic.produce(make_batch(b"b", base_sequence=8, **fields))) == ""

    def test_a_new_epoch_begins_at_sequence_0_and_fences_the_old_one(
        self, topic: Any, make_batch: Any, producer_id: int
    ) -> None:
        topic.produce(make_batch(b"a", producer_id=producer_id, producer_epoch=0, base_sequence=0))
        wrong = make_batch(b"b", producer_id=producer_id, producer_epoch=1, base_sequence=1)
        assert error(topic.produce(wrong)) == "OutOfOrderSequenceNumber"
        right = make_batch(b"b", producer_id=producer_id, producer_epoch=1, base_sequence=0)
        assert error(topic.produce(right)) == ""
        late = make_batch(b"c", producer_id=producer_id, producer_epoch=0, base_sequence=1)
        assert error(topic.produce(late)) == "InvalidProducerEpoch"

    def test_partitions_count_for_themselves(self, topic: Any, make_batch: Any, producer_id: int) -> None:
        data = make_batch(b"a", producer_id=producer_id, producer_epoch=0, base_sequence=0)
        results = topic.produce({0: data, 1: data})
        assert [error(results[index]) for index in (0, 1)] == ["", ""]

    def test_two_producers_never_get_one_id(self, connect: Any) -> None:
        client = connect()
        request = InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=60_000)
        ids = [client.ask(request, 4).producer_id for _ in range(20)]
        assert len(set(ids)) == 20
