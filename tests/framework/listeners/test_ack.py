"""What is committed, and when."""

from __future__ import annotations

from typing import Any

import pytest

from ottla import AckMode, OffsetAndMetadata, TopicPartition
from ottla.listeners.ack import Acknowledgment, AckTracker

ORDERS = TopicPartition("orders", 0)


def offsets(tracker: AckTracker) -> dict[TopicPartition, int]:
    return {partition: offset.offset for partition, offset in tracker.take(0).items()}


def test_acknowledging_a_later_record_covers_the_earlier_ones(make_record: Any) -> None:
    tracker = AckTracker(AckMode.MANUAL)
    tracker.acknowledge(make_record(5))
    tracker.acknowledge(make_record(3))
    assert offsets(tracker) == {ORDERS: 6}


def test_in_manual_mode_processed_records_are_not_committed(make_record: Any) -> None:
    tracker = AckTracker(AckMode.MANUAL)
    tracker.processed([make_record(0)])
    assert offsets(tracker) == {}


def test_time_mode_waits_for_its_time(make_record: Any) -> None:
    tracker = AckTracker(AckMode.TIME, ack_time_ms=100)
    tracker.take(1000)
    tracker.processed([make_record(0)])
    tracker.take(1000)
    tracker.processed([make_record(1)])
    assert not tracker.is_due(1099)
    assert tracker.is_due(1100)


def test_a_restored_offset_does_not_undo_a_newer_one(make_record: Any) -> None:
    tracker = AckTracker(AckMode.BATCH)
    tracker.processed([make_record(9)])
    tracker.restore({ORDERS: OffsetAndMetadata(4)})
    assert offsets(tracker) == {ORDERS: 10}


def test_only_the_asked_for_partitions_are_taken(make_record: Any) -> None:
    tracker = AckTracker(AckMode.BATCH)
    tracker.processed([make_record(0), make_record(0, partition=1)])
    assert set(tracker.take(0, [ORDERS])) == {ORDERS}
    assert set(tracker.take(0)) == {TopicPartition("orders", 1)}


def test_a_batch_can_be_acknowledged_up_to_an_index_that_rises(make_record: Any) -> None:
    tracker = AckTracker(AckMode.MANUAL_IMMEDIATE)
    woken: list[int] = []
    ack = Acknowledgment(tracker, [make_record(n) for n in range(5)], lambda: woken.append(1))
    ack.acknowledge(1)
    assert offsets(tracker) == {ORDERS: 2}
    with pytest.raises(RuntimeError, match="indexes must rise"):
        ack.acknowledge(1)
    ack.acknowledge()
    assert offsets(tracker) == {ORDERS: 5}
    assert woken == [1, 1]


def test_a_nack_acknowledges_what_comes_before_its_index(make_record: Any) -> None:
    tracker = AckTracker(AckMode.MANUAL)
    batch = [make_record(0), make_record(1), make_record(0, partition=1), make_record(1, partition=1)]
    ack = Acknowledgment(tracker, batch, lambda: None)
    ack.nack(3, delay=0.5)
    assert offsets(tracker) == {ORDERS: 2, TopicPartition("orders", 1): 1}
    assert ack.nacked == (3, 0.5)


def test_acknowledging_in_a_mode_the_container_rules_is_refused(make_record: Any) -> None:
    ack = Acknowledgment(AckTracker(AckMode.BATCH), [make_record(0)], lambda: None)
    with pytest.raises(RuntimeError, match=r"AckMode\.MANUAL"):
        ack.acknowledge()
    with pytest.raises(RuntimeError, match=r"AckMode\.MANUAL"):
        ack.nack()


def test_the_last_record_of_each_partition_counts_however_they_are_mixed(make_record: Any) -> None:
    tracker = AckTracker(AckMode.BATCH)
    one, other = "orders", "payments"
    tracker.processed(
        [make_record(o, p, t) for o, p, t in ((0, 0, one), (9, 0, other), (1, 0, one), (5, 1, one), (2, 0, one))]
    )
    assert offsets(tracker) == {ORDERS: 3, TopicPartition(other, 0): 10, TopicPartition(one, 1): 6}
    assert tracker.total == 5
