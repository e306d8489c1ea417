"""What a broker hands to consumers: how much, when, and in which order; fetch sessions."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ottla_wire.errors import error_class
from ottla_wire.records import iter_batches
from ottla_wire.schema import Uuid


def error(result: Any) -> str:
    known = error_class(result.error_code) if result.error_code else None
    return known.__name__ if known else ""


def told(response: Any) -> list[int]:
    """The partitions of a response, in order."""
    return [entry.partition_index for topic in response.responses for entry in topic.partitions]


class TestWhatIsRead:
    def test_batches_come_back_as_they_were_sent_but_for_offset_and_epoch(self, topic: Any, make_batch: Any) -> None:
        sent = make_batch(b"a", b"b")
        topic.produce(make_batch(b"first"))
        topic.produce(sent)
        found = topic.fetch_one(1)
        (batch,) = iter_batches(found.records)
        assert (batch.base_offset, batch.leader_epoch) == (1, 0)
        assert bytes(found.records)[16:] == sent[16:]
        assert (found.high_watermark, found.last_stable_offset, found.log_start_offset) == (3, 3, 0)

    def test_an_offset_inside_a_batch_brings_the_whole_batch(self, topic: Any, make_batch: Any, values_of: Any) -> None:
        topic.produce(make_batch(b"a", b"b", b"c"))
        assert values_of(topic.fetch_one(2)) == [b"a", b"b", b"c"]

    def test_the_end_is_empty_and_no_error(self, topic: Any, make_batch: Any) -> None:
        topic.produce(make_batch(b"a"))
        found = topic.fetch_one(1)
        assert (error(found), bytes(found.records or b""), found.high_watermark) == ("", b"", 1)

    @pytest.mark.parametrize("offset", [2, 1_000, -1])
    def test_an_offset_out_of_range(self, topic: Any, make_batch: Any, offset: int) -> None:
        topic.produce(make_batch(b"a"))
        found = topic.fetch_one(offset)
        assert (error(found), found.high_watermark, found.log_start_offset) == ("OffsetOutOfRange", -1, -1)

    def test_an_unknown_partition(self, topic: Any) -> None:
        response = topic.fetch({0: 0, 9: 0})
        entries = {entry.partition_index: error(entry) for entry in response.responses[0].partitions}
        assert entries == {0: "", 9: "UnknownTopicOrPartition"}

    def test_an_unknown_topic_by_id(self, topic: Any) -> None:
        assert error(topic.fetch_one(0, version=16, topic_id=Uuid(b"nobody's id here"))) == "UnknownTopicId"

    def test_the_leader_epoch_is_checked(self, topic: Any) -> None:
        assert error(topic.fetch_one(0, current_leader_epoch=0)) == ""
        assert error(topic.fetch_one(0, current_leader_epoch=7)) == "UnknownLeaderEpoch"

    @pytest.mark.parametrize("version", [4, 7, 11, 12, 13, 16, 18])
    def test_every_generation_of_the_protocol_is_served(
        self, topic: Any, make_batch: Any, values_of: Any, version: int
    ) -> None:
        topic.produce(make_batch(b"a"))
        assert values_of(topic.fetch_one(0, version=version)) == [b"a"]


class TestSizes:
    def test_a_batch_larger_than_all_limits_is_returned_if_it_is_the_first(
        self, topic: Any, make_batch: Any, values_of: Any
    ) -> None:
        topic.produce(make_batch(b"x" * 5_000))
        topic.produce(make_batch(b"second"))
        assert values_of(topic.fetch_one(0, partition_max_bytes=10, max_bytes=10)) == [b"x" * 5_000]

    def test_a_partition_gives_at_most_its_limit(self, topic: Any, make_batch: Any) -> None:
        size = len(make_batch(b"x" * 1_000))
        for _ in range(5):
            topic.produce(make_batch(b"x" * 1_000))
        found = topic.fetch_one(0, partition_max_bytes=2 * size + size // 2)
        assert len(list(iter_batches(found.records))) == 2

    def test_the_limit_of_the_response_counts_over_all_partitions(self, topic: Any, make_batch: Any) -> None:
        for index in range(3):
            topic.produce({index: make_batch(b"x" * 1_000)})
        size = len(make_batch(b"x" * 1_000))
        response = topic.fetch({0: 0, 1: 0, 2: 0}, max_bytes=size + 1)
        whole = [len(list(iter_batches(entry.records or b""))) for entry in response.responses[0].partitions]
        assert whole == [1, 0, 0]


class TestWaiting:
    def test_a_fetch_without_data_waits_its_time(self, topic: Any) -> None:
        began = time.monotonic()
        found = topic.fetch_one(0, max_wait_ms=300)
        assert time.monotonic() - began > 0.25
        assert (error(found), found.high_watermark) == ("", 0)

    def test_a_record_ends_the_wait(self, topic: Any, make_batch: Any, connect: Any, values_of: Any) -> None:
        waiting = connect()
        request = topic.fetch_request({0: 0}, max_wait_ms=9_000)
        waiting.send(request, 12)
        assert waiting.is_silent()
        topic.produce(make_batch(b"a"))
        _, response = waiting.receive(request, 12)
        assert values_of(response.responses[0].partitions[0]) == [b"a"]

    def test_min_bytes_counts_over_all_partitions(self, topic: Any, make_batch: Any, connect: Any) -> None:
        waiting = connect()
        request = topic.fetch_request({0: 0, 1: 0}, max_wait_ms=9_000, min_bytes=1_500)
        waiting.send(request, 12)
        topic.produce({0: make_batch(b"x" * 1_000)})
        assert waiting.is_silent()
        topic.produce({1: make_batch(b"x" * 1_000)})
        _, response = waiting.receive(request, 12)
        assert sum(len(entry.records or b"") for entry in response.responses[0].partitions) > 2_000

    def test_an_error_is_answered_without_a_wait_for_the_others(self, topic: Any) -> None:
        response = topic.fetch({0: 0, 1: 5}, max_wait_ms=60_000)  # longer than the connection's patience
        assert [error(entry) for entry in response.responses[0].partitions] == ["", "OffsetOutOfRange"]

    def test_requests_of_one_connection_are_answered_in_order(self, topic: Any, make_batch: Any) -> None:
        fetch = topic.fetch_request({0: 0}, max_wait_ms=300)
        produce = topic.produce_request({1: make_batch(b"a")})
        first, second = topic.client.send(fetch, 12), topic.client.send(produce, 12)
        assert topic.client.receive(fetch, 12)[0] == first
        assert topic.client.receive(produce, 12)[0] == second

    def test_a_fetch_that_waits_ends_when_its_topic_is_deleted(self, cluster: Any, topic: Any, connect: Any) -> None:
        waiting = connect()
        request = topic.fetch_request({0: 0}, max_wait_ms=8_000)
        waiting.send(request, 12)
        assert waiting.is_silent()
        cluster.admin.delete_topics([topic.name])
        _, response = waiting.receive(request, 12)
        assert error(response.responses[0].partitions[0]) == "UnknownTopicOrPartition"


class TestSessions:
    def test_a_session_tells_only_what_changed(self, topic: Any, make_batch: Any, values_of: Any) -> None:
        opened = topic.fetch({0: 0, 1: 0, 2: 0}, session=(0, 0))
        assert opened.session_id > 0
        assert told(opened) == [0, 1, 2]
        assert told(topic.fetch({}, session=(opened.session_id, 1))) == []
        topic.produce({1: make_batch(b"a")})
        changed = topic.fetch({}, session=(opened.session_id, 2))
        assert told(changed) == [1]
        assert values_of(changed.responses[0].partitions[0]) == [b"a"]

    def test_a_partition_is_changed_added_and_forgotten(self, topic: Any, make_batch: Any) -> None:
        topic.produce({index: make_batch(b"a") for index in range(3)})
        session = topic.fetch({0: 1, 1: 1}, session=(0, 0)).session_id
        assert told(topic.fetch({0: 0}, session=(session, 1))) == [0]
        assert told(topic.fetch({2: 0}, session=(session, 2), forgotten=[0])) == [2]
        topic.produce({index: make_batch(b"b") for index in range(3)})
        assert sorted(told(topic.fetch({}, session=(session, 3)))) == [1, 2]

    def test_an_epoch_out_of_order_and_a_session_that_is_not_there(self, topic: Any) -> None:
        session = topic.fetch({0: 0}, session=(0, 0)).session_id
        wrong = topic.fetch({}, session=(session, 5))
        assert (error(wrong), told(wrong)) == ("InvalidFetchSessionEpoch", [])
        unknown = topic.fetch({}, session=(session + 1_234_567, 1))
        assert (error(unknown), told(unknown)) == ("FetchSessionIdNotFound", [])

    def test_a_session_is_closed_by_its_last_epoch(self, topic: Any) -> None:
        session = topic.fetch({0: 0}, session=(0, 0)).session_id
        assert topic.fetch({0: 0}, session=(session, -1)).session_id == 0
        assert error(topic.fetch({}, session=(session, 1))) == "FetchSessionIdNotFound"
