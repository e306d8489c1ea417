"""When a consumer and its partitions count as idle; time is an argument."""

from __future__ import annotations

from typing import Any

from ottla import TopicPartition
from ottla.listeners.idle_watch import IdleChange, IdleWatch

ZERO, ONE = TopicPartition("orders", 0), TopicPartition("orders", 1)


def watch(interval_ms: int | None = 100, partition_ms: int | None = None, before_data: float = 5.0) -> IdleWatch:
    return IdleWatch(interval_ms, partition_ms, before_data=before_data, now_ms=0)


def test_before_the_first_record_the_interval_is_several_times_as_long(make_record: Any) -> None:
    idle = watch()
    assert idle.polled([], [ZERO], 499) == []
    assert idle.polled([], [ZERO], 500) == [IdleChange(None, True, 500)]


def test_idle_comes_again_after_each_interval(make_record: Any) -> None:
    idle = watch()
    assert idle.polled([make_record(0)], [ZERO], 0) == []
    assert idle.polled([], [ZERO], 99) == []
    assert idle.polled([], [ZERO], 100) == [IdleChange(None, True, 100)]
    assert idle.polled([], [ZERO], 150) == []
    assert idle.polled([], [ZERO], 200) == [IdleChange(None, True, 200)]


def test_the_first_record_after_an_idle_event_says_so_once(make_record: Any) -> None:
    idle = watch(before_data=1.0)
    idle.polled([], [ZERO], 100)
    assert idle.polled([make_record(0)], [ZERO], 130) == [IdleChange(None, False, 130)]
    assert idle.polled([make_record(1)], [ZERO], 140) == []


def test_a_record_in_time_keeps_it_busy(make_record: Any) -> None:
    idle = watch(before_data=1.0)
    assert idle.polled([make_record(0)], [ZERO], 90) == []
    assert idle.polled([], [ZERO], 189) == []


def test_partitions_are_idle_each_for_itself(make_record: Any) -> None:
    idle = watch(None, 100, 1.0)
    idle.polled([make_record(0), make_record(0, partition=1)], [ZERO, ONE], 0)
    assert idle.polled([make_record(1)], [ZERO, ONE], 100) == [IdleChange(ONE, True, 100)]
    assert idle.polled([make_record(1, partition=1)], [ZERO, ONE], 150) == [IdleChange(ONE, False, 150)]


def test_a_partition_that_was_away_is_watched_anew(make_record: Any) -> None:
    idle = watch(None, 100, 1.0)
    idle.polled([], [ZERO, ONE], 0)
    idle.polled([], [ZERO], 50)
    assert idle.polled([], [ZERO, ONE], 100) == [IdleChange(ZERO, True, 100)]
    assert idle.polled([], [ZERO, ONE], 199) == []


def test_the_deadline_is_the_next_possible_event(make_record: Any) -> None:
    idle = watch(100, 30, 5.0)
    assert idle.deadline_ms() == 500
    idle.polled([make_record(0)], [ZERO], 10)
    assert idle.deadline_ms() == 40
    idle.polled([], [ZERO], 40)
    assert idle.deadline_ms() == 70
