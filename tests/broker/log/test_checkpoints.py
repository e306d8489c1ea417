"""Writes of one file that two threads may do keep the order in which they were decided."""

from __future__ import annotations

from functools import partial

from ottla_broker.log.checkpoints import OrderedWrites


def test_an_older_content_does_not_replace_a_newer_one() -> None:
    writes, done = OrderedWrites(), list[int]()
    first, second, third = (writes.next(partial(done.append, number)) for number in range(3))
    second()
    first()
    assert done == [1]
    third()
    assert done == [1, 2]


def test_a_write_that_failed_may_be_overtaken() -> None:
    writes, done = OrderedWrites(), list[int]()

    def fail() -> None:
        raise OSError("no room")

    first, second = writes.next(partial(done.append, 0)), writes.next(fail)
    try:
        second()
    except OSError:
        pass
    first()
    assert done == [0]


def test_after_a_stop_nothing_is_written() -> None:
    writes, done = OrderedWrites(), list[int]()
    first = writes.next(partial(done.append, 0))
    writes.stop()
    first()
    writes.next(partial(done.append, 1))()
    assert done == []
