"""Awaiting sends: from several tasks and loops, cancelled, and woken once per batch. And the races."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from ottla_wire.errors import NotLeaderOrFollower
from support.record_twins import TWINS, twin

TIMEOUT = 20
LOOPS: list[Any] = [asyncio.SelectorEventLoop]
try:
    import uvloop

    LOOPS.append(uvloop.Loop)
except ImportError:
    pass


@pytest.fixture(params=TWINS)
def records(request: pytest.FixtureRequest) -> ModuleType:
    return twin(request.param)


@pytest.fixture(params=LOOPS, ids=lambda loop: loop.__module__.split(".")[0])
def run(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    def run_in_loop(coroutine: Any) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(asyncio.wait_for(coroutine, TIMEOUT))

    return run_in_loop


def futures(records: ModuleType, count: int = 3) -> list[Any]:
    return [records.SendFuture("orders", f"v{i}") for i in range(count)]


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def offset_of(future: Any) -> int:
    offset: int = (await future).offset
    return offset


class Wakes:
    """How often other threads have woken a loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, records: ModuleType) -> None:
        self.count = 0
        waiting = records.waiting
        original = waiting.LoopWaiter
        counted = self

        class Loop:
            def __init__(self, loop: Any) -> None:
                self._loop = loop

            def call_soon_threadsafe(self, *arguments: Any) -> Any:
                counted.count += 1
                return self._loop.call_soon_threadsafe(*arguments)

            def __hash__(self) -> int:
                return hash(self._loop)

            def __eq__(self, other: object) -> bool:
                return isinstance(other, Loop) and self._loop is other._loop

        class CountedWaiter(original):  # type: ignore[misc, valid-type]
            def __init__(self, loop: Any) -> None:
                super().__init__(loop)
                self.loop = Loop(loop)

        monkeypatch.setattr(waiting, "LoopWaiter", CountedWaiter)


def finish_in_thread(finish: Callable[[], None]) -> None:
    thread = threading.Thread(target=finish)
    thread.start()
    thread.join(TIMEOUT)


def test_a_task_awaits_what_another_thread_finishes(records: ModuleType, run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        first, second = sent = futures(records, 2)
        tasks = [asyncio.ensure_future(offset_of(first)) for _ in range(3)]
        await turns()
        finish_in_thread(lambda: records.complete_batch(sent, "orders", 0, 8))
        assert await asyncio.gather(*tasks) == [8, 8, 8]
        assert (await second).offset == 9

    run(main())


def test_a_failure_is_raised_in_every_task(records: ModuleType, run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        (future,) = futures(records, 1)
        tasks = [asyncio.ensure_future(offset_of(future)) for _ in range(3)]
        await turns()
        finish_in_thread(lambda: records.fail_futures([future], NotLeaderOrFollower()))
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [records.SendError] * 3
        assert len({id(error) for error in errors}) == 3
        with pytest.raises(records.SendError):
            await future

    run(main())


def test_a_loop_is_woken_once_for_a_batch(
    records: ModuleType, run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wakes = Wakes(monkeypatch, records)

    async def main() -> None:
        sent = futures(records, 50)
        tasks = [asyncio.ensure_future(offset_of(future)) for future in sent]
        await turns()
        finish_in_thread(lambda: records.complete_batch(sent[:30], "orders", 0, 8))
        await turns(5)
        assert (wakes.count, sum(task.done() for task in tasks)) == (1, 30)
        finish_in_thread(lambda: records.complete_batch(sent[30:], "orders", 0, 38))
        assert await asyncio.gather(*tasks) == list(range(8, 58))
        assert wakes.count == 2

    run(main())


def test_gather_is_woken_once_for_a_batch_and_keeps_the_order(
    records: ModuleType, run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wakes = Wakes(monkeypatch, records)

    async def main() -> None:
        sent = futures(records, 40)
        task = asyncio.ensure_future(records.gather(iter(sent)))
        await turns()
        finish_in_thread(lambda: records.complete_batch(sent[20:], "orders", 1, 0))
        finish_in_thread(lambda: records.complete_batch(sent[:20], "orders", 0, 0))
        results = await task
        assert [(r.partition, r.offset) for r in results] == [(i // 20, i % 20) for i in range(40)]
        assert wakes.count == 1, "the second batch was done when the first woke the task"

    run(main())


def test_gather_waits_for_all_and_raises_the_first_failure(records: ModuleType, run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        sent = futures(records, 4)
        task = asyncio.ensure_future(records.gather(sent))
        await turns()
        records.fail_futures(sent[2:3], ValueError("third"))
        records.fail_futures(sent[1:2], ValueError("second"))
        await turns()
        assert not task.done()
        records.complete_batch([sent[0], sent[3]], "orders", 0, 5)
        with pytest.raises(records.SendError, match="second"):
            await task
        outcomes = await records.gather(sent, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [
            records.SendResult,
            records.SendError,
            records.SendError,
            records.SendResult,
        ]
        assert await records.gather([]) == []

    run(main())


def test_a_cancelled_task_leaves_the_send_alone(records: ModuleType, run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        (future,) = futures(records, 1)
        tasks = [asyncio.ensure_future(offset_of(future)) for _ in range(2)]
        await turns()
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert not future.done()
        records.complete_batch([future], "orders", 0, 8)
        assert await tasks[1] == 8
        assert (await future).offset == 8

    run(main())


def test_a_task_that_is_cancelled_after_the_end_still_is_and_the_others_wake(
    records: ModuleType, run: Callable[[Any], Any]
) -> None:
    async def main() -> None:
        (future,) = futures(records, 1)
        tasks = [asyncio.ensure_future(offset_of(future)) for _ in range(3)]
        await turns()
        records.complete_batch([future], "orders", 0, 8)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert await asyncio.gather(*tasks[1:]) == [8, 8]

    run(main())


def test_waiting_again_and_again_collects_no_waiters(records: ModuleType, run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        (future,) = futures(records, 1)
        for _ in range(5):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(future, 0.001)
            assert "watched" not in repr(future)

    run(main())


def test_asyncio_s_own_helpers_take_it(records: ModuleType, run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        first, second, third = sent = futures(records)
        gathered = asyncio.gather(first, asyncio.shield(second), asyncio.wait_for(third, TIMEOUT))
        await turns()
        records.complete_batch(sent, "orders", 0, 8)
        assert [result.offset for result in await gathered] == [8, 9, 10]

    run(main())


def test_a_closed_loop_does_not_keep_others_from_waking(records: ModuleType, run: Callable[[Any], Any]) -> None:
    seen: list[int] = []
    (future,) = futures(records, 1)
    dead = asyncio.new_event_loop()
    waiter = dead.create_task(offset_of(future))
    dead.run_until_complete(turns())
    dead.close()
    future.add_callback(lambda result: seen.append(result.offset))

    async def main() -> None:
        task = asyncio.ensure_future(offset_of(future))
        await turns()
        finish_in_thread(lambda: records.complete_batch([future], "orders", 0, 8))
        assert await task == 8

    run(main())
    assert seen == [8]
    waiter._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_generator_that_awaits_can_be_closed(records: ModuleType) -> None:
    (future,) = futures(records, 1)
    loop = asyncio.new_event_loop()

    async def main() -> None:
        pending = future.__await__()
        next(pending)
        assert "watched" in repr(future)
        pending.close()
        assert "watched" not in repr(future)
        with pytest.raises(ValueError, match="thrown"):
            future.__await__().throw(ValueError("thrown"))

    loop.run_until_complete(main())
    loop.close()


# Races: what happens between looking at a future and waiting for it


def test_a_batch_that_is_stored_between_look_and_wait_wakes_the_thread(
    records: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    (future,) = futures(records, 1)
    waiting = records.waiting

    class Late(waiting.ThreadWaiter):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            records.complete_batch([future], "orders", 0, 8)

    monkeypatch.setattr(waiting, "ThreadWaiter", Late)
    assert future.result(TIMEOUT).offset == 8


def test_a_batch_that_is_stored_between_look_and_wait_wakes_the_task(
    records: ModuleType, monkeypatch: pytest.MonkeyPatch, run: Callable[[Any], Any]
) -> None:
    (future,) = futures(records, 1)
    waiting = records.waiting

    class Late(waiting.LoopWaiter):  # type: ignore[misc, name-defined]
        def __init__(self, loop: Any) -> None:
            super().__init__(loop)
            records.complete_batch([future], "orders", 0, 8)

    monkeypatch.setattr(waiting, "LoopWaiter", Late)
    assert run(offset_of(future)) == 8


@pytest.mark.parametrize("watchers", [0, 1, 2])
def test_a_finalizer_that_finishes_the_send_amid_add_callback_loses_no_callback(
    records: ModuleType, watchers: int
) -> None:
    """Before Python 3.12 the garbage collector may run, and foreign code with it, wherever a container is made."""

    class Finisher:
        def __init__(self, action: Callable[[], None]) -> None:
            self.action = action
            self.me = self

        def __del__(self) -> None:
            self.action()

    threshold = gc.get_threshold()
    amid = 0
    gc.collect()
    gc.freeze()
    try:
        for allocations in range(1, 40):
            called: list[str] = []
            (future,) = futures(records, 1)
            for _ in range(watchers):
                future.add_callback(lambda _, called=called: called.append("before"))
            gc.collect()
            gc.disable()
            state = {"inside": False, "finished": False}

            def finish(future: Any = future, state: dict[str, bool] = state) -> None:
                state["finished"] = True
                state["amid"] = state["inside"]
                records.complete_batch([future], "orders", 0, 8)

            Finisher(finish)
            callback = lambda _, called=called: called.append("late")  # noqa: E731
            # Small lists and tuples come from free lists, which do not start the collector: use those up.
            kept = [([], (i, i)) for i in range(2500)]
            gc.set_threshold(gc.get_count()[0] + allocations)
            gc.enable()
            state["inside"] = True
            future.add_callback(callback)
            state["inside"] = False
            del kept
            gc.set_threshold(*threshold)
            gc.collect()
            assert state["finished"]
            amid += state["amid"]
            assert called == ["before"] * watchers + ["late"]
    finally:
        gc.set_threshold(*threshold)
        gc.enable()
        gc.unfreeze()
    if sys.version_info < (3, 12) and watchers == 1:
        assert amid, "the collector never ran amid the call: the test proves nothing"


@pytest.mark.slow
def test_no_callback_and_no_waiter_is_lost_between_threads(records: ModuleType) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(150):
            sent = futures(records, 20)
            start = threading.Barrier(6)
            called: list[int] = []
            waited: list[int] = []

            def watch(sent: list[Any] = sent, start: threading.Barrier = start, called: list[int] = called) -> None:
                start.wait(TIMEOUT)
                for future in sent:
                    future.add_callback(lambda result: called.append(result.offset))
                    future.add_callback(lambda result: called.append(result.offset))

            def wait(sent: list[Any] = sent, start: threading.Barrier = start, waited: list[int] = waited) -> None:
                start.wait(TIMEOUT)
                waited.extend(future.result(TIMEOUT).offset for future in sent)

            threads = [threading.Thread(target=target) for target in (watch, watch, watch, wait, wait)]
            for thread in threads:
                thread.start()
            start.wait(TIMEOUT)
            records.complete_batch(sent, "orders", 0, 0)
            for thread in threads:
                thread.join(TIMEOUT)
            assert sorted(called) == sorted(list(range(20)) * 6)
            assert sorted(waited) == sorted(list(range(20)) * 2)
    finally:
        sys.setswitchinterval(interval)


def test_a_future_in_a_cycle_is_collected(records: ModuleType) -> None:
    import weakref

    class Value:
        pass

    def cycle() -> weakref.ref[Value]:
        value = Value()
        future = records.SendFuture("orders", value)
        value.future = future  # type: ignore[attr-defined]
        future.add_callback(lambda _: value)
        return weakref.ref(value)

    seen = cycle()
    gc.collect()
    assert seen() is None
