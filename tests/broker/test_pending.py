"""Pending: finished once, callbacks in order."""

from __future__ import annotations

import pytest

from ottla_broker.pending import Pending


def test_callbacks_run_in_order_when_it_is_completed() -> None:
    pending: Pending[int] = Pending()
    seen: list[tuple[str, int]] = []
    pending.on_done(lambda p: seen.append(("first", p.result())))
    pending.on_done(lambda p: seen.append(("second", p.result())))
    assert not pending.done()
    pending.complete(7)
    assert seen == [("first", 7), ("second", 7)]


def test_a_callback_added_later_runs_at_once() -> None:
    seen: list[int] = []
    Pending.completed(7).on_done(lambda p: seen.append(p.result()))
    assert seen == [7]


def test_a_failure_is_raised_by_result_and_told_by_error() -> None:
    pending: Pending[int] = Pending()
    pending.fail(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        pending.result()
    assert isinstance(pending.error(), ValueError)


def test_it_is_finished_once() -> None:
    pending = Pending.completed(1)
    with pytest.raises(AssertionError):
        pending.complete(2)
    with pytest.raises(AssertionError):
        pending.fail(ValueError())


def test_then_transforms_the_value() -> None:
    pending: Pending[int] = Pending()
    following = pending.then(str)
    assert not following.done()
    pending.complete(7)
    assert following.result() == "7"


def test_then_hands_on_failures_and_those_of_the_transform() -> None:
    assert isinstance(Pending.failed(ValueError()).then(str).error(), ValueError)
    assert isinstance(Pending.completed("x").then(int).error(), ValueError)
