"""The future of a send, on both twins: results, failures, callbacks, waiting threads and awaiting tasks."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import traceback
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from ottla_wire.errors import NotLeaderOrFollower, OttlaError
from support.record_twins import TWINS, twin

TIMEOUT = 20
"""For what is certain to happen; only a failing test waits for so long."""


@pytest.fixture(params=TWINS)
def records(request: pytest.FixtureRequest) -> ModuleType:
    return twin(request.param)


def futures(records: ModuleType, count: int = 3) -> list[Any]:
    return [records.SendFuture("orders", f"v{i}", f"k{i}") for i in range(count)]


def in_thread(action: Callable[[], Any]) -> Callable[[], Any]:
    """Starts the action on a thread of its own; the answer waits for the end and returns what it returned."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(action())
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join() -> Any:
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "the thread still waits"
        return outcome[0]

    return join


def wait_until_watched(future: Any) -> None:
    """Until another thread waits for the future: then it has added itself to those whom the end wakes."""
    deadline = threading.Event()
    for _ in range(TIMEOUT * 1000):
        if "watched" in repr(future):
            return
        deadline.wait(0.001)
    raise AssertionError("nobody waits")


# Results


def test_a_batch_that_was_stored_finishes_its_futures_in_order(records: ModuleType) -> None:
    sent = futures(records)
    assert not any(future.done() for future in sent)
    records.complete_batch(sent, "orders", 4, 100)
    assert all(future.done() for future in sent)
    results = [future.result(timeout=0) for future in sent]
    assert [(r.topic, r.partition, r.offset) for r in results] == [
        ("orders", 4, 100),
        ("orders", 4, 101),
        ("orders", 4, 102),
    ]
    assert [future.exception() for future in sent] == [None, None, None]


def test_a_result_has_the_record_as_it_was_given(records: ModuleType) -> None:
    value = {"amount": 5}
    plain = records.SendFuture("orders", value)
    full = records.SendFuture("orders", value, 7, 3, 1234, [("h", b"x")])
    records.complete_batch([plain, full], "orders", 3, 9)
    assert plain.result().record == records.ProducerRecord("orders", value)
    assert full.result().record == records.ProducerRecord("orders", value, 7, 3, 1234, [("h", b"x")])
    assert full.result().record.value is value
    assert full.record == full.result().record


def test_the_timestamp_is_the_producer_s_or_the_log_s(records: ModuleType) -> None:
    first, second = records.SendFuture("t", b"", timestamp_ms=5), records.SendFuture("t", b"", timestamp_ms=5)
    records.complete_batch([first], "t", 0, 1)
    records.complete_batch([second], "t", 0, 2, 777)
    assert first.result().timestamp_ms == 5
    assert second.result().timestamp_ms == 777
    assert second.result().record.timestamp_ms == 5


def test_without_an_answer_the_offset_is_unknown(records: ModuleType) -> None:
    sent = futures(records)
    records.complete_batch(sent, "orders", 1, -1)
    assert [future.result().offset for future in sent] == [-1, -1, -1]


def test_results_compare_and_print(records: ModuleType) -> None:
    first, second = sent = futures(records, 2)
    records.complete_batch(sent, "orders", 4, 100)
    assert first.result() == first.result()
    assert first.result() != second.result()
    assert first.result() != 5
    assert repr(first.result()) == "SendResult(topic='orders', partition=4, offset=100, timestamp_ms=-1)"
    assert repr(first) == "<SendFuture orders stored at 4:100>"
    assert repr(records.SendFuture("orders")) == "<SendFuture orders pending>"


def test_a_future_is_finished_once(records: ModuleType) -> None:
    seen: list[Any] = []
    failed, stored = futures(records, 2)
    failed.add_callback(seen.append, seen.append)
    records.fail_futures([failed], TimeoutError("too late"))
    records.complete_batch([failed, stored], "orders", 0, 5)
    records.fail_futures([failed, stored], NotLeaderOrFollower())
    assert stored.result().offset == 6
    assert isinstance(failed.exception().__cause__, TimeoutError)
    assert len(seen) == 1


# A batch and its futures


def test_one_call_appends_a_record_and_makes_its_future(records: ModuleType) -> None:
    builder = records.RecordBatchBuilder(150)
    value, key = {"amount": 1}, 17
    first = builder.append_send(1000, b"17", b"{..}", [("h", b"x")], "orders", value, key)
    second = builder.append_send(1001, None, None, None, "orders", None, None, 2, 1001)
    assert builder.futures == [first, second]
    assert builder.append_send(1001, None, b"x" * 100, None, "orders") is None
    assert (len(builder.futures), builder.closed) == (2, True)
    records.complete_batch(builder.futures, "orders", 2, 10)
    assert first.result().record == records.ProducerRecord("orders", value, key, None, None, [("h", b"x")])
    assert second.result().record == records.ProducerRecord("orders", None, None, 2, 1001)
    assert first.result().metadata == records.RecordMetadata("orders", 2, 10, 1000, 2, 4)
    assert second.result().metadata == records.RecordMetadata("orders", 2, 11, 1001, -1, -1)
    (batch,) = records.iter_batches(builder.build())
    assert [(r.key, r.value, r.timestamp_ms) for r in batch.records()] == [(b"17", b"{..}", 1000), (None, None, 1001)]


def test_a_record_that_cannot_be_encoded_leaves_no_future(records: ModuleType) -> None:
    builder = records.RecordBatchBuilder(1000)
    with pytest.raises(TypeError, match="value must be bytes"):
        builder.append_send(1, None, "text", None, "orders")
    assert (builder.futures, builder.count) == ([], 0)


def test_a_future_that_waited_for_its_batch_is_added_to_it(records: ModuleType) -> None:
    future = records.SendFuture("orders", "v", "k")
    builder = records.RecordBatchBuilder(100)
    assert builder.append_future(future, 55, b"k", b"v")
    assert not builder.append_future(records.SendFuture("orders"), 55, b"k", b"v" * 100)
    assert builder.futures == [future]
    records.complete_batch(builder.futures, "orders", 0, 3)
    assert future.result().metadata == records.RecordMetadata("orders", 0, 3, 55, 1, 1)


# Failures


def test_the_first_of_many_that_is_not_done_is_found(records: ModuleType) -> None:
    three = futures(records)
    assert records.first_pending(three) is three[0]
    records.complete_batch(three[:1], "orders", 0, 5)
    records.fail_futures(three[2:], OttlaError("no"))
    assert records.first_pending(three) is three[1]
    records.complete_batch(three, "orders", 0, 5)
    assert records.first_pending(three) is None
    assert records.first_pending([]) is None


def test_callbacks_beside_a_waiter_run_in_their_order(records: ModuleType) -> None:
    (future,) = futures(records, 1)
    order: list[str] = []
    join = in_thread(lambda: future.result(TIMEOUT))
    wait_until_watched(future)
    for name in ("first", "second"):
        future.add_callback(lambda _, name=name: order.append(name))
    future.add_callback(None)
    records.complete_batch([future], "orders", 0, 5)
    assert order == ["first", "second"]
    assert join().offset == 5


def test_callbacks_are_let_go_when_they_have_run(records: ModuleType) -> None:
    class Callback:
        def __call__(self, _: object) -> None:
            pass

    (future,) = futures(records, 1)
    callback = Callback()
    gone = weakref.ref(callback)
    future.add_callback(callback, callback)
    records.complete_batch([future], "orders", 0, 5)
    del callback
    assert gone() is None, "a future that is kept keeps no callback"


def test_a_failure_says_what_was_sent_and_why_it_failed(records: ModuleType) -> None:
    cause = NotLeaderOrFollower("moved")
    (future,) = futures(records, 1)
    records.fail_futures([future], cause, 3)
    with pytest.raises(records.SendError, match=r"orders-3.*NotLeaderOrFollower: moved") as raised:
        future.result()
    assert raised.value.__cause__ is cause
    assert raised.value.record == records.ProducerRecord("orders", "v0", "k0")
    assert isinstance(raised.value, OttlaError)
    assert isinstance(future.exception(), records.SendError)
    assert "failed" in repr(future)


def test_a_failure_without_a_partition_names_the_topic(records: ModuleType) -> None:
    plain, asked = records.SendFuture("orders"), records.SendFuture("orders", partition=5)
    records.fail_futures([plain, asked], ValueError("x"))
    assert "for orders was not sent" in str(plain.exception())
    assert "for orders-5 was not sent" in str(asked.exception())


def test_each_raise_has_its_own_traceback(records: ModuleType) -> None:
    (future,) = futures(records, 1)
    records.fail_futures([future], ValueError())
    depths = []
    for _ in range(3):
        try:
            future.result()
        except records.SendError as error:
            depths.append(len(traceback.extract_tb(error.__traceback__)))
    assert len(set(depths)) == 1


def test_a_send_fails_with_an_exception_only(records: ModuleType) -> None:
    with pytest.raises(TypeError, match="exception"):
        records.fail_futures(futures(records), "text")


# Callbacks


def test_callbacks_run_in_order_when_the_batch_is_stored(records: ModuleType) -> None:
    seen: list[Any] = []
    first, second = sent = futures(records, 2)
    assert second.add_callback(lambda result: seen.append(("second", result.offset))) is second
    first.add_callback(lambda result: seen.append(("first", result.offset)), seen.append)
    first.add_callback(None, seen.append)
    first.add_callback(lambda result: seen.append(("first again", result.record.value)))
    assert seen == []
    records.complete_batch(sent, "orders", 0, 8)
    assert seen == [("first", 8), ("first again", "v0"), ("second", 9)]


def test_callbacks_of_a_failure(records: ModuleType) -> None:
    seen: list[Any] = []
    sent = futures(records, 2)
    for future in sent:
        future.add_callback(seen.append, lambda error: seen.append(error.record.value))
        future.add_callback(seen.append)
    records.fail_futures(sent, ValueError())
    assert seen == ["v0", "v1"]


def test_a_callback_of_a_future_that_is_done_runs_at_once(records: ModuleType) -> None:
    seen: list[Any] = []
    stored, failed = futures(records, 2)
    records.complete_batch([stored], "orders", 0, 8)
    records.fail_futures([failed], ValueError())
    stored.add_callback(lambda result: seen.append(result.offset), seen.append)
    failed.add_callback(seen.append, lambda error: seen.append(error.record.value))
    assert seen == [8, "v1"]


@pytest.mark.parametrize("error", [ValueError("broken"), asyncio.CancelledError(), SystemExit(1)])
def test_what_a_callback_raises_is_logged_and_harms_nobody(
    records: ModuleType, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    seen: list[Any] = []

    def broken(_: Any) -> None:
        raise error

    sent = futures(records, 2)
    sent[0].add_callback(broken).add_callback(lambda result: seen.append(result.offset))
    sent[1].add_callback(lambda result: seen.append(result.offset))
    with caplog.at_level(logging.ERROR, "ottla.send"):
        records.complete_batch(sent, "orders", 0, 8)
        sent[0].add_callback(broken)
    assert seen == [8, 9]
    assert len(caplog.records) == 2
    for record in caplog.records:
        assert "broken" in record.getMessage()
        assert record.exc_info is not None
        assert record.exc_info[1] is error


def test_a_callback_may_add_another_and_send_the_next(records: ModuleType) -> None:
    seen: list[Any] = []
    first, second = futures(records, 2)
    first.add_callback(lambda _: first.add_callback(lambda result: seen.append(result.offset)))
    first.add_callback(lambda _: second.add_callback(lambda result: seen.append(result.offset)))
    records.complete_batch([first], "orders", 0, 8)
    records.complete_batch([second], "orders", 0, 9)
    assert seen == [8, 9]


@pytest.mark.parametrize("callbacks", [(5,), (None, "text")])
def test_what_cannot_be_called_is_refused_at_once(records: ModuleType, callbacks: tuple[Any, ...]) -> None:
    (future,) = futures(records, 1)
    with pytest.raises(TypeError, match="cannot be called"):
        future.add_callback(*callbacks)


# Waiting threads


def test_threads_wait_for_one_future_and_all_are_woken(records: ModuleType) -> None:
    first, second = futures(records, 2)
    waiting = [in_thread(lambda: first.result(TIMEOUT).offset) for _ in range(3)]
    waiting.append(in_thread(lambda: second.exception(TIMEOUT).record.value))
    wait_until_watched(first)
    wait_until_watched(second)
    records.complete_batch([first], "orders", 0, 8)
    records.fail_futures([second], ValueError())
    assert [join() for join in waiting] == [8, 8, 8, "v1"]


def test_a_wait_ends_with_its_timeout_and_harms_nothing(records: ModuleType) -> None:
    (future,) = futures(records, 1)
    for timeout in (0, -1, 0.001):
        with pytest.raises(TimeoutError, match=r"orders.*may still be stored"):
            future.result(timeout)
        with pytest.raises(TimeoutError):
            future.exception(timeout)
    assert "watched" not in repr(future)
    records.complete_batch([future], "orders", 0, 8)
    assert future.result(0).offset == 8


def test_a_very_long_timeout_is_as_good_as_none(records: ModuleType) -> None:
    (future,) = futures(records, 1)
    join = in_thread(lambda: future.result(1e300).offset)
    wait_until_watched(future)
    records.complete_batch([future], "orders", 0, 8)
    assert join() == 8


def test_the_thread_that_receives_answers_does_not_wait(records: ModuleType) -> None:
    (done, pending) = futures(records, 2)
    records.complete_batch([done], "orders", 0, 8)

    def on_the_io_thread() -> Any:
        records.SendFuture.forbid_waiting_on_this_thread()
        assert done.result(TIMEOUT).offset == 8
        with pytest.raises(TimeoutError):
            pending.result(0)
        with pytest.raises(RuntimeError, match="I/O thread"):
            pending.result(TIMEOUT)
        with pytest.raises(RuntimeError, match="I/O thread"):
            pending.exception()
        return "refused"

    assert in_thread(on_the_io_thread)() == "refused"
    # Only that thread: a later one, which may have its ident, may wait.
    join = in_thread(lambda: pending.result(TIMEOUT).offset)
    wait_until_watched(pending)
    records.complete_batch([pending], "orders", 0, 9)
    assert join() == 9


def test_a_thread_with_a_running_event_loop_does_not_wait(records: ModuleType) -> None:
    done, pending = futures(records, 2)
    records.complete_batch([done], "orders", 0, 8)

    async def main() -> None:
        assert done.result().offset == 8
        with pytest.raises(TimeoutError):
            pending.result(0)
        with pytest.raises(RuntimeError, match="await"):
            pending.result()
        with pytest.raises(RuntimeError, match="await"):
            pending.exception(TIMEOUT)

    asyncio.run(main())


def test_a_future_of_plain_content_is_no_work_for_the_cycle_collector_until_it_fails() -> None:
    native = twin("native")
    builder = native.RecordBatchBuilder(10_000)
    plain = builder.append_send(0, b"k", b"v", None, "orders", "v", b"k")
    content = [plain]
    reachable = builder.append_send(0, b"k", b"[]", None, "orders", content, None)

    assert not gc.is_tracked(plain)
    assert gc.is_tracked(reachable), "its value may lead back to it"

    native.fail_futures([plain], OttlaError("no"))

    assert gc.is_tracked(plain), "the error's traceback may lead back to it"


def test_a_failed_future_in_a_cycle_with_its_error_is_collected() -> None:
    native = twin("native")
    freed = threading.Event()

    class Error(OttlaError):
        def __del__(self) -> None:
            freed.set()

    future = native.RecordBatchBuilder(10_000).append_send(0, b"k", b"v", None, "orders", b"v", b"k")
    error = Error("no")
    error.future = future
    native.fail_futures([future], error)

    del future, error
    gc.collect()

    assert freed.is_set()
