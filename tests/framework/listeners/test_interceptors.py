"""Interceptors: what is called around each delivery, and what it may change."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from ottla import AckMode, BatchInterceptor, ConsumerRecord, ErrorHandler, RecordInterceptor, Retry
from support.listener_driver import ORDERS, drive

ONCE = ErrorHandler(retry=Retry.never(), recover=lambda record, error: None)


class Noting(RecordInterceptor):
    """Writes down what it is called with; raises or replaces where it is told to."""

    def __init__(self, log: list[Any], name: str = "", *, replaces: Any = "record", raises: str = "") -> None:
        self.log, self.name, self.replaces, self.raises = log, name, replaces, raises

    def note(self, what: str, record: ConsumerRecord) -> None:
        self.log.append(f"{self.name}{what} {record.offset}")
        if what == self.raises:
            raise LookupError(what)

    def intercept(self, record: ConsumerRecord, consumer: Any) -> Any:
        self.note("intercept", record)
        return record if self.replaces == "record" else self.replaces

    def success(self, record: ConsumerRecord, consumer: Any) -> None:
        self.note("success", record)

    def failure(self, record: ConsumerRecord, error: BaseException, consumer: Any) -> None:
        self.note(f"failure {type(error).__name__}", record)

    def after_record(self, record: ConsumerRecord, consumer: Any) -> None:
        self.note("after", record)


def noting_listener(log: list[Any]) -> Any:
    def listener(record: ConsumerRecord) -> None:
        log.append(f"listener {record.offset}")

    return listener


def test_interceptors_surround_each_record_in_the_order_in_which_they_were_given(make_record: Any) -> None:
    log: list[Any] = []
    drive(
        noting_listener(log), [make_record(0)], ack=AckMode.BATCH, interceptors=[Noting(log, "a "), Noting(log, "b ")]
    )
    assert log == [
        "a intercept 0",
        "b intercept 0",
        "listener 0",
        "a success 0",
        "b success 0",
        "a after 0",
        "b after 0",
    ]


def test_after_a_failure_there_is_no_success_and_the_error_handler_decides(make_record: Any) -> None:
    log: list[Any] = []

    def listener(record: ConsumerRecord) -> None:
        if record.offset == 0:
            raise ZeroDivisionError

    errors = ErrorHandler(retry=Retry.fixed(0, attempts=2), recover=lambda record, error: log.append("recovered"))
    consumer = drive(
        listener, [make_record(0), make_record(1)], ack=AckMode.BATCH, interceptors=[Noting(log)], errors=errors
    )
    failed = ["intercept 0", "failure ZeroDivisionError 0", "after 0"]
    assert log == [*failed, *failed, "recovered", "intercept 1", "success 1", "after 1"]
    assert consumer.commits[-1] == {ORDERS: 2}


def test_the_listener_gets_the_record_that_the_interceptor_puts_in_its_place(make_record: Any) -> None:
    seen: list[bytes] = []

    def listener(value: bytes) -> None:
        seen.append(value)

    replacing = Noting([], replaces=make_record(0, value=b"other"))
    consumer = drive(listener, [make_record(4, value=b"own")], ack=AckMode.BATCH, interceptors=[replacing])
    assert seen == [b"other"]
    assert consumer.commits == [{ORDERS: 5}]


def test_a_record_that_an_interceptor_drops_is_done_with(make_record: Any) -> None:
    log: list[Any] = []
    consumer = drive(
        noting_listener(log),
        [make_record(0)],
        ack=AckMode.BATCH,
        interceptors=[Noting(log, "a ", replaces=None), Noting(log, "b ")],
    )
    assert log == ["a intercept 0", "a after 0", "b after 0"]
    assert consumer.commits == [{ORDERS: 1}]


@pytest.mark.parametrize("method", ["intercept", "success"])
def test_what_an_interceptor_raises_before_or_at_success_counts_as_the_listeners(method: str, make_record: Any) -> None:
    log: list[Any] = []
    recovered: list[Any] = []
    errors = ErrorHandler(retry=Retry.never(), recover=lambda record, error: recovered.append(type(error)))
    interceptors = [Noting(log, raises=method)]
    drive(noting_listener(log), [make_record(0)], ack=AckMode.BATCH, interceptors=interceptors, errors=errors)
    assert recovered == [LookupError]
    assert log[-2:] == ["failure LookupError 0", "after 0"]


def test_what_an_interceptor_raises_afterwards_is_logged_and_harms_nobody(make_record: Any, caplog: Any) -> None:
    log: list[Any] = []
    consumer = drive(
        noting_listener(log), [make_record(0)], ack=AckMode.BATCH, interceptors=[Noting(log, raises="after")]
    )
    assert "after_record() failed" in caplog.text
    assert consumer.commits == [{ORDERS: 1}]


def test_around_an_async_listener_interceptors_may_be_async(make_record: Any) -> None:
    log: list[Any] = []

    class Slow(RecordInterceptor):
        async def intercept(self, record: ConsumerRecord, consumer: Any) -> ConsumerRecord:
            await asyncio.sleep(0)
            log.append("before")
            return record

        async def after_record(self, record: ConsumerRecord, consumer: Any) -> None:
            await asyncio.sleep(0)
            log.append("after")

    async def listener(value: bytes) -> None:
        await asyncio.sleep(0)
        log.append("listener")

    drive(listener, [make_record(0)], ack=AckMode.BATCH, interceptors=[Slow()])
    assert log == ["before", "listener", "after"]


def test_an_async_interceptor_around_a_plain_listener_is_refused_as_a_failure(make_record: Any) -> None:
    errors: list[str] = []

    class Slow(RecordInterceptor):
        async def intercept(self, record: ConsumerRecord, consumer: Any) -> ConsumerRecord:
            return record

    handler = ErrorHandler(retry=Retry.never(), recover=lambda record, error: errors.append(str(error)))
    drive(noting_listener([]), [make_record(0)], ack=AckMode.BATCH, interceptors=[Slow()], errors=handler)
    assert errors == ["an async interceptor needs an async listener"]


def test_batches_have_interceptors_of_their_own(make_record: Any) -> None:
    log: list[Any] = []

    class Batches(BatchInterceptor):
        def intercept(self, records: Sequence[ConsumerRecord], consumer: Any) -> Any:
            log.append(len(records))
            return list(reversed(records))

        def after_batch(self, records: Sequence[ConsumerRecord], consumer: Any) -> None:
            log.append("after")

    def listener(values: list[bytes]) -> None:
        log.append(values)

    records = [make_record(0, value=b"a"), make_record(1, value=b"b")]
    consumer = drive(listener, records, ack=AckMode.BATCH, interceptors=[Noting(log), Batches()])
    assert log == [2, [b"b", b"a"], "after"]
    assert consumer.commits == [{ORDERS: 2}]


def test_a_batch_interceptor_may_not_change_how_many_records_there_are(make_record: Any) -> None:
    errors: list[str] = []

    class Dropping(BatchInterceptor):
        def intercept(self, records: Sequence[ConsumerRecord], consumer: Any) -> Any:
            return records[1:]

    def listener(values: list[bytes]) -> None:
        raise AssertionError("called")

    handler = ErrorHandler(retry=Retry.never(), recover=lambda record, error: errors.append(str(error)))
    drive(listener, [make_record(0)], ack=AckMode.BATCH, interceptors=[Dropping()], errors=handler)
    assert "use the listener's filter" in errors[0]
