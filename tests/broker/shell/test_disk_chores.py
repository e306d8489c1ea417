"""Work that nobody waits for lets the work that somebody waits for through."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ottla_broker.shell.disk_chores import PORTION, DiskChores


class ManualDisk:
    """A disk thread under the test's control."""

    def __init__(self) -> None:
        self.queue: list[tuple[Callable[[], None], Callable[[BaseException | None], None]]] = []
        self.failures: list[BaseException] = []
        self.chores = DiskChores(lambda work, done: self.queue.append((work, done)), self.failures.append)

    def do_next(self) -> None:
        work, done = self.queue.pop(0)
        try:
            work()
        except OSError as error:
            done(error)
        else:
            done(None)


def test_pieces_are_done_in_order_a_portion_at_a_time() -> None:
    disk = ManualDisk()
    done: list[int] = []
    for number in range(PORTION * 2):
        disk.chores.add(partial(done.append, number))
    assert len(disk.queue) == 1
    disk.do_next()
    assert done == [0]  # what was there when the first one was added
    disk.queue.insert(0, (partial(done.append, -1), lambda error: None))  # somebody waits for this
    disk.do_next()
    disk.do_next()
    assert done == [0, -1, *range(1, PORTION + 1)]
    while disk.queue:
        disk.do_next()
    assert done == [0, -1, *range(1, PORTION * 2)]


def test_an_error_is_told_and_the_next_portion_is_done() -> None:
    disk = ManualDisk()
    done: list[int] = []

    def fail() -> None:
        raise OSError("it cannot be done")

    disk.chores.add(fail)
    disk.chores.add(partial(done.append, 1))
    disk.do_next()
    assert [str(failure) for failure in disk.failures] == ["it cannot be done"]
    disk.do_next()
    assert done == [1]


def test_without_a_disk_thread_a_piece_is_done_at_once() -> None:
    done: list[int] = []

    def at_once(work: Callable[[], None], finished: Callable[[BaseException | None], None]) -> None:
        work()
        finished(None)

    chores = DiskChores(at_once, lambda error: None)
    for number in range(3):
        chores.add(partial(done.append, number))
        assert done[-1] == number


def test_what_is_left_can_be_finished_without_the_disk_thread() -> None:
    disk = ManualDisk()
    done: list[int] = []
    for number in range(3):
        disk.chores.add(partial(done.append, number))
    disk.queue.pop()[0]()  # done, but nobody hears of it any more
    disk.chores.finish()
    assert done == [0, 1, 2]
