"""Which threads and tasks are part of a transaction, and what happens to those that are late."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ottla import KafkaTemplate, current_transaction
from ottla.errors import NotInTransaction, TransactionEnded
from ottla.testing import wait_for


def test_child_tasks_take_part(template: KafkaTemplate, fake_kafka: Any) -> None:
    async def child(value: str) -> None:
        await asyncio.sleep(0)
        template.send("t", value)

    async def main() -> None:
        async with template.transaction():
            async with asyncio.TaskGroup() as group:
                group.create_task(child("a"))
                group.create_task(child("b"))
            assert fake_kafka.visible == []

    asyncio.run(main())
    assert sorted(fake_kafka.visible) == ["a", "b"]


def test_asyncio_to_thread_takes_part(template: KafkaTemplate, fake_kafka: Any) -> None:
    async def main() -> None:
        async with template.transaction():
            await asyncio.to_thread(template.send, "t", "a")
            assert fake_kafka.visible == []

    asyncio.run(main())
    assert fake_kafka.visible == ["a"]


def test_other_threads_are_outside(template: KafkaTemplate) -> None:
    with template.transaction(), ThreadPoolExecutor(1) as executor:
        assert executor.submit(lambda: (template.in_transaction, current_transaction())).result(5) == (False, None)
        with pytest.raises(NotInTransaction):
            executor.submit(template.send, "t", "a").result(5)


def test_other_threads_take_part_through_run(template: KafkaTemplate, fake_kafka: Any) -> None:
    with template.transaction() as tx, ThreadPoolExecutor(1) as executor:
        executor.submit(tx.run, template.send, "t", "a").result(5)
        assert not executor.submit(lambda: template.in_transaction).result(5), "only while it runs"
        assert fake_kafka.visible == []
    assert fake_kafka.visible == ["a"]


def test_a_coroutine_function_through_run_takes_part_on_another_loop(template: KafkaTemplate, fake_kafka: Any) -> None:
    async def work() -> bool:
        await asyncio.sleep(0)
        template.send("t", "a")
        return template.in_transaction

    with template.transaction() as tx, ThreadPoolExecutor(1) as executor:
        assert executor.submit(lambda: asyncio.run(tx.run(work))).result(5)
    assert fake_kafka.visible == ["a"]


def test_two_threads_have_a_transaction_each(template: KafkaTemplate, fake_kafka: Any) -> None:
    both, ids = threading.Barrier(2), []

    def work() -> None:
        with template.transaction() as tx:
            ids.append(tx.transactional_id)
            both.wait(5)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert sorted(ids) == ["tx-0", "tx-1"]


def test_two_tasks_have_a_transaction_each(template: KafkaTemplate, fake_kafka: Any) -> None:
    async def work(value: str) -> str:
        async with template.transaction() as tx:
            await asyncio.sleep(0.01)
            template.send("t", value)
            return tx.transactional_id

    async def main() -> list[str]:
        return await asyncio.gather(work("a"), work("b"))

    assert sorted(asyncio.run(main())) == ["tx-0", "tx-1"]


def test_a_task_that_outlives_the_block_is_told_that_the_transaction_is_over(
    make_factory: Callable[..., Any], fake_kafka: Any
) -> None:
    """Also where plain sends are allowed: the task was begun inside, and would send what nobody undoes."""
    template = KafkaTemplate(make_factory(), allow_non_transactional=True)

    async def late(over: asyncio.Event) -> str:
        await over.wait()
        assert not template.in_transaction
        with pytest.raises(TransactionEnded, match=r"committed.*template\.transaction\(\)"):
            template.send("t", "late")
        async with template.transaction() as tx:  # one of its own is fine
            template.send("t", "own")
            return tx.transactional_id

    async def main() -> None:
        over = asyncio.Event()
        async with template.transaction():
            task = asyncio.create_task(late(over))
            template.send("t", "inside")
        over.set()
        await task
        template.send("t", "plain")

    asyncio.run(main())
    assert fake_kafka.visible == ["inside", "own", "plain"]


def test_the_block_does_not_wait_for_tasks(template: KafkaTemplate, fake_kafka: Any) -> None:
    async def main() -> None:
        async with template.transaction():
            task = asyncio.create_task(asyncio.sleep(60))
        assert not task.done()
        task.cancel()

    asyncio.run(main())


def test_a_transaction_that_is_over_takes_no_more_offsets_synchronizations_or_runs(template: KafkaTemplate) -> None:
    with template.transaction() as tx:
        pass
    with pytest.raises(TransactionEnded):
        tx.add_synchronization(object())
    with pytest.raises(TransactionEnded):
        tx.run(template.send, "t", "late")


def test_a_send_in_the_middle_of_the_end_is_waited_for(template: KafkaTemplate, fake_kafka: Any) -> None:
    """A thread has looked at the state and is about to send; the block is left; the record is part of it."""
    looked, go = threading.Event(), threading.Event()

    with ThreadPoolExecutor(1) as executor:
        with template.transaction() as tx:
            send = tx._send

            def slow_send(*arguments: Any) -> Any:
                looked.set()
                assert go.wait(5)
                return send(*arguments)

            tx._send = slow_send
            sending = executor.submit(tx.run, template.send, "t", "in the middle")
            assert looked.wait(5)
            tx._send = send
            threading.Timer(0.05, go.set).start()
        assert fake_kafka.visible == ["in the middle"]
        sending.result(5)


def test_a_producer_is_not_used_again_before_the_last_sender_is_out(template: KafkaTemplate, fake_kafka: Any) -> None:
    looked, go = threading.Event(), threading.Event()

    def use(tx: Any) -> None:
        send = tx._send

        def slow_send(*arguments: Any) -> Any:
            looked.set()
            assert go.wait(5)
            return send(*arguments)

        tx._send = slow_send
        tx.run(template.send, "t", "of the first")

    with ThreadPoolExecutor(2) as executor:

        def first() -> None:
            with pytest.raises(KeyError), template.transaction() as tx:
                executor.submit(use, tx)
                assert looked.wait(5)
                raise KeyError

        ending = executor.submit(first)
        assert looked.wait(5)
        assert template.producer_factory.producer_pools().pool("tx-").idle == []
        go.set()
        ending.result(5)
    wait_for(lambda: template.producer_factory.producer_pools().pool("tx-").idle == ["tx-0"])
    with template.transaction():
        template.send("t", "of the second")
    assert fake_kafka.visible == ["of the second"]
