"""Transactions that are open for too long are ended from here, before the coordinator fences their producers."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ottla import KafkaTemplate
from ottla.errors import Abortable, NoAnswer, ProducerFenced, TransactionTimedOut
from ottla.testing import wait_for
from ottla.transaction.limits import TransactionLimits
from ottla.transaction.watchdog import Watchdog


@pytest.mark.parametrize(
    ("coordinator_ms", "here"), [(60_000, 54.0), (900_000, 810.0), (10_000, 6.667), (3_000, 2.0), (300, 0.2)]
)
def test_the_longest_transaction_ends_well_before_the_coordinators_timeout(coordinator_ms: int, here: float) -> None:
    assert TransactionLimits(coordinator_ms).longest == pytest.approx(here, abs=0.001)


def test_a_transaction_that_takes_too_long_is_aborted_while_its_block_still_runs(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    with pytest.raises(TransactionTimedOut, match=r"0\.05 s"), template.transaction(timeout=0.05):
        template.send("t", "a")
        wait_for(lambda: fake_kafka.happened("abort"))
    assert fake_kafka.happened("commit", "abort") == ["abort tx-0"]


def test_a_send_after_the_timeout_is_told_so_and_that_is_what_the_block_raises(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    with pytest.raises(TransactionTimedOut) as caught, template.transaction(timeout=0.05):
        wait_for(lambda: fake_kafka.happened("abort"))
        template.send("t", "too late")
    assert fake_kafka.written == []
    assert not isinstance(caught.value, ProducerFenced)
    assert isinstance(caught.value, Abortable), "it goes to the retry policy"


def test_a_block_inside_does_not_begin_a_new_transaction_in_one_that_timed_out(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    with pytest.raises(TransactionTimedOut), template.transaction(timeout=0.05):
        wait_for(lambda: fake_kafka.happened("abort"))
        with template.transaction():
            template.send("t", "a")
    assert fake_kafka.happened("begin") == ["begin tx-0"]


def test_the_blocks_own_error_still_comes_first(template: KafkaTemplate, fake_kafka: Any) -> None:
    with pytest.raises(KeyError), template.transaction(timeout=0.05):
        wait_for(lambda: fake_kafka.happened("abort"))
        raise KeyError("own")


def test_a_producer_whose_transaction_timed_out_serves_the_next_one_but_not_before_the_block_is_left(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    pool = template.producer_factory.producer_pools().pool("tx-")
    with pytest.raises(TransactionTimedOut), template.transaction(timeout=0.05):
        wait_for(lambda: fake_kafka.happened("abort"))
        assert pool.idle == []
    assert pool.idle == ["tx-0"]
    with template.transaction():
        template.send("t", "b")
    assert fake_kafka.visible == ["b"]
    assert fake_kafka.happened("init") == ["init tx-0@0"]


def test_a_timeout_whose_abort_fails_discards_the_producer(template: KafkaTemplate, fake_kafka: Any) -> None:
    fake_kafka.fail("abort", NoAnswer("abort_transaction"))
    with pytest.raises(TransactionTimedOut) as caught, template.transaction(timeout=0.05):
        wait_for(lambda: not fake_kafka.faults["abort"])
    assert isinstance(caught.value.__cause__, NoAnswer)
    wait_for(lambda: fake_kafka.happened("close") == ["close tx-0@0"])


def test_a_timeout_whose_abort_meets_another_owner_of_the_id_is_a_fence(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    """If it were called a time-out, it would be tried again, and the two would throw each other out for ever."""
    with pytest.raises(ProducerFenced) as caught, template.transaction(timeout=0.05):
        fake_kafka.fence("tx-0")
        wait_for(lambda: template.producer_factory.producer_pools().watchdog._watched == {})
    assert isinstance(caught.value.__cause__, TransactionTimedOut)
    wait_for(lambda: fake_kafka.happened("close") == ["close tx-0@0"])


def test_what_goes_wrong_with_its_abort_is_a_note_on_the_blocks_own_error(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    fake_kafka.fail("abort", NoAnswer("abort_transaction"))
    with pytest.raises(KeyError) as caught, template.transaction(timeout=0.05):
        wait_for(lambda: not fake_kafka.faults["abort"])
        raise KeyError("own")
    (note,) = caught.value.__notes__
    assert "NoAnswer" in note


def test_a_transaction_that_waits_for_its_sends_before_a_database_commits_is_timed_out_too(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    fake_kafka.gates["flush"] = threading.Event()
    with pytest.raises(TransactionTimedOut), template.transaction(timeout=0.05) as tx:
        tx.add_synchronization(object())
        template.send("t", "a")
        threading.Timer(0.2, fake_kafka.gates["flush"].set).start()
    assert fake_kafka.visible == []


def test_a_commit_that_has_begun_is_not_timed_out(template: KafkaTemplate, fake_kafka: Any) -> None:
    fake_kafka.gates["commit"] = threading.Event()
    timer = threading.Timer(0.2, fake_kafka.gates["commit"].set)
    timer.start()
    with template.transaction(timeout=0.1):
        template.send("t", "a")
    assert fake_kafka.visible == ["a"]


def test_the_factorys_transaction_timeout_is_what_a_block_without_one_has(
    make_factory: Callable[..., Any], fake_kafka: Any
) -> None:
    template = KafkaTemplate(make_factory(transaction_id_prefix="tx-", transaction_timeout_ms=60))
    with pytest.raises(TransactionTimedOut), template.transaction():
        wait_for(lambda: fake_kafka.happened("abort"))


def test_a_block_may_be_left_at_the_moment_at_which_it_is_timed_out(
    template: KafkaTemplate, fake_kafka: Any, noticed: threading.Event, left: threading.Event
) -> None:
    pool = template.producer_factory.producer_pools().pool("tx-")
    try:
        with pytest.raises(TransactionTimedOut), template.transaction(timeout=0.05):
            assert noticed.wait(5)
    finally:
        left.set()
    assert fake_kafka.happened("commit", "abort") == ["abort tx-0"]
    assert pool.idle == ["tx-0"]


@pytest.fixture
def noticed(left: threading.Event) -> Iterator[threading.Event]:
    """Set when the time-out is logged, which then waits for a moment until the block is left."""
    event = threading.Event()

    class SlowHandler(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            event.set()
            left.wait(0.2)

    logger, handler = logging.getLogger("ottla.transaction"), SlowHandler()
    logger.addHandler(handler)
    yield event
    logger.removeHandler(handler)


@pytest.fixture
def left() -> threading.Event:
    return threading.Event()


def test_async_blocks_are_timed_out_too(template: KafkaTemplate, fake_kafka: Any) -> None:
    async def main() -> None:
        async with template.transaction(timeout=0.05):
            while not fake_kafka.happened("abort"):
                await asyncio.sleep(0.005)

    with pytest.raises(TransactionTimedOut):
        asyncio.run(main())


# -- the timer ---------------------------------------------------------------------------------------------------------


class Engine:
    """Runs what is posted at once, and counts."""

    def __init__(self) -> None:
        self.posts = 0

    def post(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.posts += 1


class Entry:
    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.timed_out = False

    def time_out(self) -> None:
        self.timed_out = True


def test_the_timer_is_set_once_for_any_number_of_transactions_that_end_later() -> None:
    engine, now = Engine(), [0.0]
    watchdog = Watchdog(engine, lambda: now[0])  # type: ignore[arg-type]
    for second in range(1000):
        entry = Entry(54.0 + second)
        watchdog.add(entry)
        watchdog.remove(entry)
    assert engine.posts == 1
    watchdog.add(Entry(10.0))
    assert engine.posts == 2


def test_what_is_overdue_is_timed_out_once_and_the_rest_is_not() -> None:
    async def main() -> None:
        now = [0.0]
        watchdog = Watchdog(Engine(), lambda: now[0])  # type: ignore[arg-type]
        early, late, gone = Entry(1.0), Entry(2.0), Entry(1.0)
        for entry in (early, late, gone):
            watchdog.add(entry)
        watchdog.remove(gone)
        now[0] = 1.5
        watchdog.check()
        assert (early.timed_out, late.timed_out, gone.timed_out) == (True, False, False)
        assert watchdog._armed_at == 2.0
        now[0] = 2.5
        watchdog.check()
        assert late.timed_out
        assert watchdog._timer is None

    asyncio.run(main())


@pytest.mark.parametrize("look", [1, 2, 3])
def test_one_that_begins_while_the_timer_is_being_set_is_not_overlooked(look: int) -> None:
    """Between a look at the deadlines and what follows from it another thread may have its turn."""

    class LookedAt(Entry):
        looks_left = 0

        @property
        def deadline(self) -> float:
            self.looks_left -= 1
            if self.looks_left == 0:
                watchdog.add(second)
            return 100.0

        @deadline.setter
        def deadline(self, _: float) -> None: ...

    async def main() -> None:
        watchdog.add(first)
        first.looks_left = look
        watchdog.check()
        assert first.looks_left <= 0, "it was looked at as often as that"
        assert watchdog._armed_at == 10.0
        watchdog.remove(second)
        watchdog.remove(first)
        watchdog.check()

    watchdog = Watchdog(Engine(), lambda: 0.0)  # type: ignore[arg-type]
    first, second = LookedAt(100.0), Entry(10.0)
    asyncio.run(main())
