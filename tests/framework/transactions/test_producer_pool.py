"""The pool of transactional producers: which id a transaction gets, and which producers are used again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from ottla import KafkaTemplate, KafkaTransactionManager
from ottla.errors import (
    CannotBeginTransaction,
    ConfigError,
    CoordinatorNotAvailable,
    NoAnswer,
    NoProducerAvailable,
    ProducerFenced,
    TransactionOutcomeUnknown,
)
from ottla.testing import wait_for


def open_ids(templates: list[KafkaTemplate]) -> list[str]:
    """The ids of transactions that are open at the same time, one inside of the other."""
    with ExitStack() as stack:
        return [
            stack.enter_context(template.transaction(propagation="requires_new")).transactional_id
            for template in templates
        ]


def test_ids_count_up_while_they_are_in_use_and_are_used_again_afterwards(template: KafkaTemplate) -> None:
    with template.transaction() as first:
        assert first.transactional_id == "tx-0"
        with template.transaction(propagation="requires_new") as second:
            assert second.transactional_id == "tx-1"
    with template.transaction() as third:
        assert third.transactional_id == "tx-0"


def test_a_cached_producer_is_not_registered_again(template: KafkaTemplate, fake_kafka: Any) -> None:
    for _ in range(3):
        with template.transaction():
            template.send("t", "x")
    assert fake_kafka.happened("init") == ["init tx-0@0"]


def test_prefixes_share_one_counter_and_each_has_a_cache_of_its_own(factory: Any) -> None:
    a, b = KafkaTemplate(factory, transaction_id_prefix="A"), KafkaTemplate(factory, transaction_id_prefix="B")
    assert open_ids([a, a]) == ["A0", "A1"]
    assert open_ids([b]) == ["B2"]
    assert open_ids([a, a, b]) == ["A0", "A1", "B2"]


def test_with_max_producers_each_prefix_has_a_range_of_its_own(make_factory: Callable[..., Any]) -> None:
    factory = make_factory(transaction_id_prefix="A", max_producers=3, max_block_ms=10)
    a, b = KafkaTemplate(factory), KafkaTemplate(factory, transaction_id_prefix="B")
    assert open_ids([a] * 3) == ["A0", "A1", "A2"]
    assert open_ids([b] * 3) == ["B3", "B4", "B5"]
    with pytest.raises(NoProducerAvailable, match="max_producers"):
        open_ids([a] * 4)
    assert open_ids([a] * 3) == ["A0", "A1", "A2"]


def test_who_waits_for_a_producer_gets_the_next_that_comes_back(make_factory: Callable[..., Any]) -> None:
    template = KafkaTemplate(make_factory(transaction_id_prefix="tx-", max_producers=1))
    inside, leave, order = threading.Event(), threading.Event(), []

    def first() -> None:
        with template.transaction():
            inside.set()
            assert leave.wait(5)
            order.append("first")

    def second() -> None:
        with template.transaction() as tx:
            order.append(f"second with {tx.transactional_id}")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(5)
    threads[1].start()
    pool = template.producer_factory.producer_pools().pool("tx-")
    wait_for(lambda: pool._line)
    leave.set()
    for thread in threads:
        thread.join(5)
    assert order == ["first", "second with tx-0"]


def test_a_task_that_waits_for_a_producer_leaves_the_loop_free_and_may_be_cancelled(
    make_factory: Callable[..., Any],
) -> None:
    template = KafkaTemplate(make_factory(transaction_id_prefix="tx-", max_producers=1))

    async def use(seen: list[str]) -> None:
        async with template.transaction() as tx:
            seen.append(tx.transactional_id)

    async def main() -> list[str]:
        seen: list[str] = []
        ready, leave = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with template.transaction():
                ready.set()
                await leave.wait()

        holder = asyncio.create_task(hold())
        await ready.wait()
        cancelled, waiting = asyncio.create_task(use(seen)), asyncio.create_task(use(seen))
        pool = template.producer_factory.producer_pools().pool("tx-")
        while len(pool._line) < 2:
            await asyncio.sleep(0)
        cancelled.cancel()
        leave.set()
        await asyncio.gather(holder, waiting)
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        return seen

    assert asyncio.run(main()) == ["tx-0"]


@pytest.mark.parametrize("failing", ["commit", "abort"])
def test_a_producer_that_failed_is_never_used_again(template: KafkaTemplate, fake_kafka: Any, failing: str) -> None:
    fake_kafka.fail(failing, ProducerFenced())
    with pytest.raises((ProducerFenced, ValueError)), template.transaction():
        if failing == "abort":
            raise ValueError
    with template.transaction() as tx:
        assert tx.transactional_id == "tx-0"
    assert fake_kafka.happened("init") == ["init tx-0@0", "init tx-0@1"]
    wait_for(lambda: fake_kafka.happened("close") == ["close tx-0@0"])


def test_a_begin_that_fails_closes_the_producer_and_does_not_run_the_block(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    fake_kafka.fail("begin", ProducerFenced())
    ran = False
    with pytest.raises(CannotBeginTransaction, match="tx-0") as caught, template.transaction():
        ran = True
    assert not ran
    assert isinstance(caught.value.__cause__, ProducerFenced)
    wait_for(lambda: fake_kafka.happened("close") == ["close tx-0@0"])
    with template.transaction() as tx:
        assert tx.transactional_id == "tx-0"


def test_a_producer_that_timed_out_is_closed_without_waiting(template: KafkaTemplate, fake_kafka: Any) -> None:
    fake_kafka.fail("commit", NoAnswer("commit"))
    with pytest.raises(TransactionOutcomeUnknown), template.transaction():
        template.send("t", "x")
    wait_for(lambda: fake_kafka.producers[0].closed_with == 0.0)


def test_a_registration_that_fails_closes_the_producer_and_frees_its_id(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    fake_kafka.fail("init", CoordinatorNotAvailable())
    with pytest.raises(CannotBeginTransaction, match=r"init_transactions\(\) failed for 'tx-0'") as caught:
        template.transaction().__enter__()
    assert isinstance(caught.value.__cause__, CoordinatorNotAvailable)
    with template.transaction() as tx:
        assert tx.transactional_id == "tx-0"


def test_after_a_reset_open_transactions_commit_and_new_ones_get_new_producers(
    factory: Any, template: KafkaTemplate, fake_kafka: Any
) -> None:
    with template.transaction() as tx:
        template.send("t", "before")
        factory.reset()
        template.send("t", "after")
        assert tx.is_active
    assert fake_kafka.visible == ["before", "after"]
    wait_for(lambda: fake_kafka.happened("close") == ["close tx-0@0"])
    with template.transaction():
        pass
    assert fake_kafka.happened("init") == ["init tx-0@0", "init tx-0@1"]


def test_a_reset_lets_those_who_wait_go_on_with_new_producers(make_factory: Callable[..., Any]) -> None:
    factory = make_factory(transaction_id_prefix="tx-", max_producers=1)
    template, seen = KafkaTemplate(factory), []

    def other() -> None:
        with template.transaction() as tx:
            seen.append(tx.transactional_id)

    thread = threading.Thread(target=other)
    with template.transaction():
        thread.start()
        wait_for(lambda: factory.producer_pools().pool("tx-")._line)
        factory.reset()
        thread.join(5)
    assert seen == ["tx-1"], "tx-0 is in use until the block is left"


def test_a_producer_that_was_idle_for_longer_than_max_age_is_replaced(
    make_factory: Callable[..., Any], fake_kafka: Any
) -> None:
    template = KafkaTemplate(make_factory(transaction_id_prefix="tx-", max_age=0.0))
    for _ in range(2):
        with template.transaction():
            pass
    assert fake_kafka.happened("init") == ["init tx-0@0", "init tx-0@1"]
    wait_for(lambda: fake_kafka.happened("close")[:1] == ["close tx-0@0"])


def test_a_transactional_id_in_the_settings_is_the_prefix_and_a_templates_own_wins(
    make_factory: Callable[..., Any],
) -> None:
    factory = make_factory(transactional_id="raw-")
    assert factory.is_transactional
    assert open_ids([KafkaTemplate(factory)]) == ["raw-0"]
    assert open_ids([KafkaTemplate(factory, transaction_id_prefix="own-")]) == ["own-1"]


def test_an_empty_prefix_is_refused_wherever_it_may_be_given(make_factory: Callable[..., Any]) -> None:
    factory = make_factory(transaction_id_prefix="tx-")
    wrong: list[Callable[[], object]] = [
        lambda: make_factory(transaction_id_prefix=""),
        lambda: make_factory(transactional_id=""),
        lambda: KafkaTemplate(factory, transaction_id_prefix=""),
        lambda: KafkaTransactionManager(factory, transaction_id_prefix=""),
    ]
    for make in wrong:
        with pytest.raises(ConfigError, match=r"empty: leave it out"):
            make()


def test_max_producers_counts_from_one(make_factory: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        make_factory(max_producers=0)


def test_many_threads_never_share_a_producer_and_never_exceed_the_limit(
    make_factory: Callable[..., Any], fake_kafka: Any
) -> None:
    template = KafkaTemplate(make_factory(transaction_id_prefix="tx-", max_producers=3))

    def work(number: int) -> None:
        for count in range(20):
            with template.transaction():  # the fake asserts that its producer is in no other transaction
                template.send("t", (number, count))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(fake_kafka.visible) == [(number, count) for number in range(8) for count in range(20)]
    assert 1 <= len(fake_kafka.happened("init")) <= 3
