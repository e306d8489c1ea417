from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ottla_broker.coordinator.versioned import Versioned


def test_a_value_above_the_high_watermark_is_new_but_not_committed() -> None:
    values: Versioned[str, str, int] = Versioned()
    values.advance(5)
    values.put("g", "k", 1, 4)
    values.put("g", "k", 2, 5)
    assert values.get("g", "k") == 2
    assert values.get_committed("g", "k") == 1
    values.advance(6)
    assert values.get_committed("g", "k") == 2


def test_a_removal_above_the_high_watermark_is_not_committed() -> None:
    values: Versioned[str, str, int] = Versioned()
    values.advance(1)
    values.put("g", "k", 1, 0)
    values.remove("g", "k", 1)
    assert values.get("g", "k") is None
    assert values.get_committed("g", "k") == 1
    assert values.group_committed("g") == {"k": 1}
    assert values.group("g") == {}
    values.advance(2)
    assert values.get_committed("g", "k") is None


def test_the_high_watermark_may_stop_between_two_changes() -> None:
    values: Versioned[str, str, int] = Versioned()
    for offset in range(3):
        values.put("g", "k", offset, offset)
    assert values.get_committed("g", "k") is None
    values.advance(2)
    assert values.get_committed("g", "k") == 1
    assert values.get("g", "k") == 2


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("gh"), st.sampled_from("kl")),
        st.tuples(st.just("remove"), st.sampled_from("gh"), st.sampled_from("kl")),
        st.tuples(st.just("advance"), st.integers(0, 3), st.none()),
    ),
    max_size=40,
)


@given(CHANGES)
def test_it_reads_like_the_log_up_to_its_end_and_up_to_the_high_watermark(changes: list[tuple]) -> None:
    values: Versioned[str, str, int] = Versioned()
    log: list[tuple[str, str, int | None]] = []
    high_watermark = 0
    for kind, group, key in changes:
        if kind == "advance":
            high_watermark = min(len(log), high_watermark + group)
            values.advance(high_watermark)
        elif kind == "put":
            values.put(group, key, len(log), len(log))
            log.append((group, key, len(log)))
        else:
            values.remove(group, key, len(log))
            log.append((group, key, None))
        for name in "gh":
            newest, committed = state(log, name), state(log[:high_watermark], name)
            assert values.group(name) == newest
            assert values.group_committed(name) == committed
            for key_name in "kl":
                assert values.get(name, key_name) == newest.get(key_name)
                assert values.get_committed(name, key_name) == committed.get(key_name)
    assert set(values.groups()) == {name for name in "gh" if state(log, name)}


def state(log: list[tuple[str, str, int | None]], group: str) -> dict[str, int]:
    last = {key: value for of_group, key, value in log if of_group == group}
    return {key: value for key, value in last.items() if value is not None}
