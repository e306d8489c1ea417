from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ottla_broker.coordinator.timers import Timers


def fired(timers: Timers[str], now_ms: int) -> list[str]:
    return [action for _, action in timers.pop_due(now_ms)]


def test_timers_fire_in_the_order_of_their_time() -> None:
    timers: Timers[str] = Timers()
    timers.schedule((0, "b"), 20, "second")
    timers.schedule((0, "a"), 10, "first")
    timers.schedule((0, "c"), 30, "later")
    assert timers.deadline_ms() == 10
    assert fired(timers, 20) == ["first", "second"]
    assert timers.deadline_ms() == 30


def test_a_timer_that_is_moved_on_does_not_fire_at_its_old_time() -> None:
    timers: Timers[str] = Timers()
    timers.schedule((0, "session"), 10, "old")
    timers.schedule((0, "session"), 25, "new")
    assert fired(timers, 24) == []
    assert timers.deadline_ms() == 25
    assert fired(timers, 25) == ["new"]


def test_a_timer_that_is_moved_forward_fires_once_and_early() -> None:
    timers: Timers[str] = Timers()
    timers.schedule((0, "session"), 100, "late")
    timers.schedule((0, "session"), 10, "early")
    assert fired(timers, 10) == ["early"]
    assert fired(timers, 1000) == []
    assert timers.deadline_ms() is None


def test_a_cancelled_timer_does_not_fire_and_is_no_deadline() -> None:
    timers: Timers[str] = Timers()
    timers.schedule((0, "session"), 10, "x")
    timers.cancel((0, "session"))
    assert timers.deadline_ms() is None
    assert fired(timers, 10) == []


def test_cancelling_a_partition_leaves_the_timers_of_others() -> None:
    timers: Timers[str] = Timers()
    timers.schedule((0, "a"), 10, "zero")
    timers.schedule((1, "a"), 10, "one")
    timers.cancel_partition(0)
    assert fired(timers, 10) == ["one"]


def test_a_timer_set_for_now_while_others_fire_fires_too() -> None:
    timers: Timers[str] = Timers()
    timers.schedule((0, "a"), 10, "a")
    seen = []
    for _, action in timers.pop_due(10):
        seen.append(action)
        if action == "a":
            timers.schedule((0, "b"), 10, "b")
    assert seen == ["a", "b"]


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["schedule", "cancel", "pop"]), st.integers(0, 3), st.integers(0, 50)), max_size=60
)


@given(OPERATIONS)
def test_timers_are_a_table_of_deadlines(operations: list[tuple[str, int, int]]) -> None:
    timers: Timers[int] = Timers()
    model: dict[int, int] = {}
    now = 0
    for kind, key, value in operations:
        if kind == "schedule":
            timers.schedule((0, key), now + value, key)
            model[key] = now + value
        elif kind == "cancel":
            timers.cancel((0, key))
            model.pop(key, None)
        else:
            now += value
            due = sorted((at, name) for name, at in model.items() if at <= now)
            assert sorted(action for _, action in timers.pop_due(now)) == sorted(name for _, name in due)
            for _, name in due:
                del model[name]
        assert timers.deadline_ms() == min(model.values(), default=None)
        assert timers.deadline_of((0, key)) == model.get(key)
