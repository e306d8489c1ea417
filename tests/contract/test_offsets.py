"""Which offsets a partition has: by time, at its ends, after records were deleted; and where consumers begin."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ottla.client import TopicPartition
from ottla.client.admin import OffsetSpec
from ottla.errors import InvalidOffset, OffsetOutOfRange, UnknownTopicOrPartition
from ottla_wire.errors import error_class

T = 1_700_000_000_000


def read(consumer: Any, count: int, seconds: float = 20) -> list[Any]:
    found: list[Any] = []
    deadline = time.monotonic() + seconds
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} records within {seconds} s"
        found += consumer.poll(0.2)
    return found


@pytest.fixture
def filled(topic: Any, make_batch: Any) -> Any:
    """Partition 0 with six records in three batches; the fourth has the highest timestamp."""
    for timestamp_ms, values in ((T, (b"0", b"1")), (T + 500, (b"2", b"3")), (T + 200, (b"4", b"5"))):
        topic.produce(make_batch(*values, timestamp_ms=timestamp_ms))
    return topic


class TestListOffsets:
    @pytest.mark.parametrize(
        ("timestamp", "offset", "found_ms", "epoch"),
        [
            (-1, 6, -1, 0),  # the end
            (-2, 0, -1, 0),  # the start
            (-3, 2, T + 500, 0),  # the first record with the highest timestamp
            (-4, 0, -1, 0),  # the start of what is on disk
            (-5, -1, -1, -1),  # the end of what is in tiered storage: there is none
            (0, 0, T, 0),
            (T, 0, T, 0),
            (T + 1, 2, T + 500, 0),
            (T + 500, 2, T + 500, 0),
            (T + 501, -1, -1, -1),
        ],
    )
    def test_by_timestamp_and_by_special_value(
        self, filled: Any, timestamp: int, offset: int, found_ms: int, epoch: int
    ) -> None:
        found = filled.list_offset(timestamp)
        assert (found.error_code, found.offset, found.timestamp, found.leader_epoch) == (0, offset, found_ms, epoch)

    @pytest.mark.parametrize(
        ("timestamp", "offset", "epoch"), [(-1, 0, 0), (-2, 0, 0), (-3, -1, -1), (-4, 0, 0), (-5, -1, -1), (T, -1, -1)]
    )
    def test_of_an_empty_partition(self, topic: Any, timestamp: int, offset: int, epoch: int) -> None:
        found = topic.list_offset(timestamp)
        assert (found.error_code, found.offset, found.timestamp, found.leader_epoch) == (0, offset, -1, epoch)

    @pytest.mark.parametrize(("timestamp", "version"), [(-3, 6), (-4, 7), (-5, 8)])
    def test_a_special_value_that_the_version_does_not_have(self, filled: Any, timestamp: int, version: int) -> None:
        assert error_class(filled.list_offset(timestamp, version=version).error_code).__name__ == "UnsupportedVersion"

    def test_an_unknown_partition(self, filled: Any) -> None:
        found = filled.list_offset(-1, partition=9)
        assert error_class(found.error_code) is UnknownTopicOrPartition

    def test_a_leader_epoch_from_the_future(self, filled: Any) -> None:
        assert error_class(filled.list_offset(-1, epoch=5).error_code).__name__ == "UnknownLeaderEpoch"

    @pytest.mark.every_version
    def test_as_consumer_and_admin_client_see_it(self, cluster: Any, filled: Any, make_consumer: Any) -> None:
        here, empty = TopicPartition(filled.name, 0), TopicPartition(filled.name, 1)
        consumer = make_consumer()
        assert consumer.beginning_offsets([here, empty]) == {here: 0, empty: 0}
        assert consumer.end_offsets([here, empty]) == {here: 6, empty: 0}
        by_time = consumer.offsets_for_times({here: T + 1, empty: T})
        assert (by_time[here].offset, by_time[here].timestamp_ms, by_time[empty]) == (2, T + 500, None)
        info = cluster.admin.list_offsets({here: OffsetSpec.MAX_TIMESTAMP, empty: OffsetSpec.MAX_TIMESTAMP})
        assert [(info[p].offset, info[p].timestamp_ms) for p in (here, empty)] == [(2, T + 500), (-1, -1)]


@pytest.mark.every_version
class TestDeletedRecords:
    def test_the_start_moves_and_what_was_before_is_out_of_range(self, cluster: Any, filled: Any) -> None:
        here = TopicPartition(filled.name, 0)
        assert cluster.admin.delete_records({here: 3}) == {here: 3}
        assert (filled.list_offset(-2).offset, filled.list_offset(-4).offset) == (3, 3)
        assert error_class(filled.fetch_one(2).error_code) is OffsetOutOfRange
        found = filled.fetch_one(3)
        assert (found.error_code, found.log_start_offset, found.high_watermark) == (0, 3, 6)

    def test_up_to_the_end_and_never_back(self, cluster: Any, filled: Any) -> None:
        here = TopicPartition(filled.name, 0)
        assert cluster.admin.delete_records({here: -1}) == {here: 6}
        assert cluster.admin.delete_records({here: 2}) == {here: 6}
        assert filled.list_offset(-2).offset == 6

    def test_beyond_the_end(self, cluster: Any, filled: Any) -> None:
        with pytest.raises(OffsetOutOfRange):
            cluster.admin.delete_records({TopicPartition(filled.name, 0): 7})
        assert filled.list_offset(-2).offset == 0

    def test_a_record_by_time_behind_the_new_start(self, cluster: Any, filled: Any) -> None:
        cluster.admin.delete_records({TopicPartition(filled.name, 0): 3})
        assert filled.list_offset(T).offset == 3


@pytest.mark.every_version
class TestWhereConsumersBegin:
    def consumer(self, make_consumer: Any, filled: Any, **settings: Any) -> Any:
        consumer = make_consumer(**settings)
        consumer.assign([TopicPartition(filled.name, 0)])
        return consumer

    def test_earliest(self, filled: Any, make_consumer: Any) -> None:
        found = read(self.consumer(make_consumer, filled, auto_offset_reset="earliest"), 6)
        assert [record.offset for record in found] == [0, 1, 2, 3, 4, 5]

    def test_latest(self, filled: Any, make_consumer: Any, make_batch: Any) -> None:
        consumer = self.consumer(make_consumer, filled, auto_offset_reset="latest")
        assert consumer.position(TopicPartition(filled.name, 0)) == 6
        filled.produce(make_batch(b"new"))
        assert [record.value for record in read(consumer, 1)] == [b"new"]

    def test_none_is_an_error(self, filled: Any, make_consumer: Any) -> None:
        consumer = self.consumer(make_consumer, filled, auto_offset_reset="none")
        with pytest.raises(InvalidOffset):
            read(consumer, 1)

    def test_by_duration_reads_what_is_younger(self, filled: Any, make_consumer: Any, make_batch: Any) -> None:
        filled.produce(make_batch(b"now", timestamp_ms=int(time.time() * 1000)))
        consumer = self.consumer(make_consumer, filled, auto_offset_reset="by_duration:PT1H")
        assert [record.value for record in read(consumer, 1)] == [b"now"]

    def test_a_position_that_was_deleted_is_reset(self, cluster: Any, filled: Any, make_consumer: Any) -> None:
        consumer = self.consumer(make_consumer, filled, auto_offset_reset="earliest")
        consumer.seek(TopicPartition(filled.name, 0), 1)
        cluster.admin.delete_records({TopicPartition(filled.name, 0): 4})
        assert [record.offset for record in read(consumer, 2)] == [4, 5]

    def test_a_position_beyond_the_end_is_reset(self, filled: Any, make_consumer: Any) -> None:
        consumer = self.consumer(make_consumer, filled, auto_offset_reset="earliest")
        consumer.seek(TopicPartition(filled.name, 0), 100)
        assert [record.offset for record in read(consumer, 6)] == [0, 1, 2, 3, 4, 5]
