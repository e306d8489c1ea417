"""`with template.transaction()`: what is visible afterwards, which error is raised, what becomes of the producer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ottla import KafkaTemplate, OffsetAndMetadata, ProducerRecord, TopicPartition, current_transaction
from ottla.client.topic_partition import ConsumerGroupMetadata
from ottla.errors import (
    ConfigError,
    IllegalGeneration,
    InvalidRecord,
    NoAnswer,
    NotInTransaction,
    ProducerFenced,
    SendError,
    SerializationError,
    TransactionAbortable,
    TransactionOutcomeUnknown,
)
from ottla.testing import wait_for

ORDERS = TopicPartition("orders", 0)
MEMBER = ConsumerGroupMetadata("billing", 3, "member-1")


def test_what_is_sent_is_visible_after_the_commit_and_not_before(template: KafkaTemplate, fake_kafka: Any) -> None:
    with template.transaction():
        futures = [template.send("t", value) for value in ("a", "b")]
        assert fake_kafka.visible == []
    assert fake_kafka.visible == ["a", "b"]
    assert all(future.done() for future in futures)
    assert fake_kafka.happened("begin", "commit", "abort") == ["begin tx-0", "commit tx-0"]


def test_an_error_of_the_block_aborts_and_is_what_the_caller_sees(template: KafkaTemplate, fake_kafka: Any) -> None:
    with pytest.raises(ValueError, match="own") as caught, template.transaction():
        template.send("t", "a")
        template.send("t", "b")
        raise ValueError("own")
    assert not hasattr(caught.value, "__notes__")
    assert (fake_kafka.visible, fake_kafka.written) == ([], ["a", "b"])
    assert fake_kafka.happened("commit", "abort") == ["abort tx-0"]


def test_an_abort_that_fails_too_is_a_note_on_the_blocks_error(template: KafkaTemplate, fake_kafka: Any) -> None:
    fake_kafka.fail("abort", ProducerFenced("taken over"))
    with pytest.raises(ValueError, match="own") as caught, template.transaction():
        raise ValueError("own")
    assert ["aborting" in note and "taken over" in note for note in caught.value.__notes__] == [True]


def test_an_interrupt_aborts_as_any_other_error(template: KafkaTemplate, fake_kafka: Any) -> None:
    with pytest.raises(KeyboardInterrupt), template.transaction():
        template.send("t", "a")
        raise KeyboardInterrupt
    assert fake_kafka.happened("commit", "abort") == ["abort tx-0"]


@pytest.mark.parametrize(
    ("error", "raised"), [(ProducerFenced(), ProducerFenced), (NoAnswer("commit"), TransactionOutcomeUnknown)]
)
def test_after_a_commit_that_failed_for_good_no_abort_is_tried(
    template: KafkaTemplate, fake_kafka: Any, error: BaseException, raised: type[BaseException]
) -> None:
    fake_kafka.fail("commit", error)
    with pytest.raises(raised), template.transaction():
        template.send("t", "a")
    assert fake_kafka.happened("abort") == []
    wait_for(lambda: fake_kafka.happened("close") == ["close tx-0@0"])


def test_a_commit_that_the_coordinator_refuses_is_aborted_so_that_nothing_stays_open(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    fake_kafka.fail("commit", TransactionAbortable())
    with pytest.raises(TransactionAbortable), template.transaction():
        template.send("t", "a")
    assert fake_kafka.happened("commit", "abort", "close") == ["abort tx-0"]
    assert fake_kafka.visible == []


def test_leaving_the_block_waits_for_its_sends_and_the_first_that_failed_is_raised(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    fake_kafka.refused_values = {"bad": InvalidRecord("first"), "worse": InvalidRecord("second")}
    with pytest.raises(SendError) as caught, template.transaction():
        for value in ("good", "bad", "worse"):
            template.send("t", value)
    assert caught.value.record.value == "bad"
    assert fake_kafka.happened("commit", "abort") == ["abort tx-0"]
    assert fake_kafka.visible == []


def test_a_failed_send_cannot_be_swallowed(template: KafkaTemplate, fake_kafka: Any) -> None:
    fake_kafka.refused_values = {"bad": InvalidRecord("refused")}
    with pytest.raises(SendError, match="refused"), template.transaction():
        future = template.send("t", "bad")
        template.flush()
        with pytest.raises(SendError):
            future.result(5)
        template.send("t", "good")
    assert fake_kafka.visible == []


def test_the_blocks_own_error_comes_before_that_of_a_send(template: KafkaTemplate, fake_kafka: Any) -> None:
    fake_kafka.refused_values = {"bad": InvalidRecord("refused")}
    with pytest.raises(KeyError), template.transaction():
        template.send("t", "bad")
        raise KeyError("own")


def test_a_send_that_fails_after_thousands_is_found(template: KafkaTemplate, fake_kafka: Any) -> None:
    fake_kafka.refused_values = {10: InvalidRecord("refused")}
    with pytest.raises(SendError) as caught, template.transaction() as tx:
        for number in range(5_000):
            template.send("t", number)
            if number == 3_000:
                template.flush()
        assert len(tx._futures) < 2_500, "sends that are done are let go"
    assert caught.value.record.value == 10


def test_sends_may_be_let_go_by_a_thread_that_is_late_while_the_one_that_failed_is_looked_for(
    template: KafkaTemplate,
) -> None:
    tidying: list[threading.Thread] = []

    class Future:
        def __init__(self, failure: SendError | None = None) -> None:
            self.failure = failure

        def done(self) -> bool:
            if not tidying:
                tidying.append(threading.Thread(target=tx._forget_done))
                tidying[0].start()
                tidying[0].join(5)
            return True

        def exception(self) -> SendError | None:
            return self.failure

    refused = SendError("refused", ProducerRecord("t", "a"))
    with template.transaction() as tx:
        for future in (Future(), Future(refused), Future()):
            tx._remember(future)  # type: ignore[arg-type]
        assert tx.first_failure() is refused
        tx.set_rollback_only()


def test_a_block_without_sends_commits_nothing_and_the_next_one_works(template: KafkaTemplate, fake_kafka: Any) -> None:
    for _ in range(2):
        with template.transaction():
            pass
    assert fake_kafka.happened("begin", "commit") == ["begin tx-0", "commit tx-0"] * 2


def test_set_rollback_only_aborts_without_an_error(template: KafkaTemplate, fake_kafka: Any) -> None:
    with template.transaction() as tx:
        template.send("t", "a")
        tx.set_rollback_only()
    assert fake_kafka.visible == []
    assert fake_kafka.happened("commit", "abort") == ["abort tx-0"]


def test_offsets_are_committed_with_the_sends(template: KafkaTemplate, fake_kafka: Any) -> None:
    with template.transaction() as tx:
        template.send("t", "a")
        tx.send_offsets({ORDERS: 5}, MEMBER)
        tx.send_offsets({ORDERS: OffsetAndMetadata(7, 2), TopicPartition("orders", 1): 1}, MEMBER)
    assert fake_kafka.offsets == {ORDERS: 7, TopicPartition("orders", 1): 1}
    assert fake_kafka.groups == [MEMBER]


def test_offsets_of_a_member_that_was_replaced_abort_the_transaction(template: KafkaTemplate, fake_kafka: Any) -> None:
    fake_kafka.fail("offsets", IllegalGeneration())
    with pytest.raises(IllegalGeneration), template.transaction() as tx:
        template.send("t", "a")
        tx.send_offsets({ORDERS: 5}, MEMBER)
    assert (fake_kafka.visible, fake_kafka.offsets) == ([], {})
    assert fake_kafka.happened("commit", "abort") == ["abort tx-0"]


def test_offsets_need_the_group_metadata_of_a_consumer(template: KafkaTemplate) -> None:
    with template.transaction() as tx, pytest.raises(TypeError, match="group_metadata"):
        tx.send_offsets({ORDERS: 5}, "billing")  # type: ignore[arg-type]


def test_every_template_of_the_factory_takes_part(factory: Any, template: KafkaTemplate, fake_kafka: Any) -> None:
    other = KafkaTemplate(factory, default_topic="u")
    with template.transaction():
        other.send_default("a")
        assert fake_kafka.visible == []
    assert fake_kafka.visible == ["a"]


def test_a_send_outside_is_refused_and_the_error_names_the_ways_in(template: KafkaTemplate, fake_kafka: Any) -> None:
    with pytest.raises(NotInTransaction) as caught:
        template.send("t", "a")
    message = str(caught.value)
    for way in (
        "with template.transaction()",
        "async with",
        "@transactional(template)",
        "@listener(..., transactional=True)",
        "allow_non_transactional=True",
    ):
        assert way in message
    assert fake_kafka.written == []


def test_where_plain_sends_are_allowed_they_are_visible_at_once_and_have_no_transactional_id(
    factory: Any, fake_kafka: Any
) -> None:
    template = KafkaTemplate(factory, allow_non_transactional=True)
    template.send("t", "plain")
    assert fake_kafka.visible == ["plain"]
    with template.transaction():
        template.send("t", "inside")
        assert fake_kafka.visible == ["plain"]
    assert fake_kafka.happened("send") == ["send shared:plain", "send tx-0:inside"]


def test_a_factory_without_prefix_sends_both_ways(make_factory: Callable[..., Any], fake_kafka: Any) -> None:
    template = KafkaTemplate(make_factory())
    template.send("t", "plain")
    with template.transaction():
        template.send("t", "inside")
    assert fake_kafka.visible == ["plain", "inside"]


def test_a_template_with_overrides_does_not_slip_out_of_the_transaction_it_seems_to_be_in(
    make_factory: Callable[..., Any],
) -> None:
    template = KafkaTemplate(make_factory())
    other = template.with_overrides(linger_ms=0)
    with template.transaction(), pytest.raises(NotInTransaction, match="with_overrides"):
        other.send("t", "x")
    other.close()


def test_templates_of_other_factories_are_not_part_of_it(make_factory: Callable[..., Any], fake_kafka: Any) -> None:
    template, other = KafkaTemplate(make_factory()), KafkaTemplate(make_factory())
    with template.transaction():
        other.send("t", "plain")
        assert fake_kafka.visible == ["plain"]
        assert template.in_transaction
        assert not other.in_transaction


def test_in_transaction_is_true_inside_only(template: KafkaTemplate) -> None:
    assert (template.in_transaction, current_transaction()) == (False, None)
    with template.transaction() as tx:
        assert (template.in_transaction, current_transaction()) == (True, tx)
    assert (template.in_transaction, current_transaction()) == (False, None)


def test_a_block_is_entered_once(template: KafkaTemplate) -> None:
    block = template.transaction()
    with block:
        pass
    with pytest.raises(RuntimeError, match="once"), block:
        pass


def test_execute_and_flush_use_the_producer_of_the_transaction(template: KafkaTemplate, fake_kafka: Any) -> None:
    with template.transaction():
        assert template.execute(lambda producer: producer.id) == "tx-0"
        template.flush()
    assert fake_kafka.happened("flush") == ["flush tx-0"]


def test_with_on_a_thread_that_runs_an_event_loop_names_async_with(template: KafkaTemplate) -> None:
    async def main() -> None:
        with template.transaction():
            pass

    with pytest.raises(RuntimeError, match=r"async with template\.transaction"):
        asyncio.run(main())


def test_async_with_is_the_same(template: KafkaTemplate, fake_kafka: Any) -> None:
    async def main() -> None:
        async with template.transaction():
            template.send("t", "a")
            assert fake_kafka.visible == []
        assert fake_kafka.visible == ["a"]
        with pytest.raises(ValueError, match="own"):
            async with template.transaction():
                template.send("t", "b")
                raise ValueError("own")
        fake_kafka.refused_values = {"bad": InvalidRecord("refused")}
        with pytest.raises(SendError):
            async with template.transaction():
                template.send("t", "bad")

    asyncio.run(main())
    assert fake_kafka.visible == ["a"]
    assert fake_kafka.happened("commit", "abort") == ["commit tx-0", "abort tx-0", "abort tx-0"]


def test_a_task_that_is_cancelled_in_its_block_aborts(template: KafkaTemplate, fake_kafka: Any) -> None:
    async def work(inside: asyncio.Event) -> None:
        async with template.transaction():
            template.send("t", "a")
            inside.set()
            await asyncio.sleep(60)

    async def main() -> None:
        inside = asyncio.Event()
        task = asyncio.create_task(work(inside))
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert fake_kafka.happened("commit", "abort") == ["abort tx-0"]


def test_a_task_that_is_cancelled_during_the_commit_is_told_what_came_of_it(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    fake_kafka.gates["commit"] = threading.Event()

    async def work() -> None:
        async with template.transaction():
            template.send("t", "a")

    async def main() -> list[str]:
        task = asyncio.create_task(work())
        while not fake_kafka.happened("send"):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done(), "the commit is under way, and its outcome matters more"
        fake_kafka.gates["commit"].set()
        try:
            await task
        except asyncio.CancelledError as cancelled:
            return list(cancelled.__notes__)
        raise AssertionError("the cancellation was swallowed")

    assert "is committed" in asyncio.run(main())[0]
    assert fake_kafka.visible == ["a"]


@pytest.mark.parametrize(("timeout", "says"), [(0, "positive"), (-1.0, "positive"), (55.0, "transaction_timeout_ms")])
def test_a_timeout_is_positive_and_below_the_coordinators(template: KafkaTemplate, timeout: float, says: str) -> None:
    with pytest.raises(ConfigError, match=says), template.transaction(timeout=timeout):
        pass


def test_a_propagation_that_does_not_exist_is_refused_with_those_that_do(template: KafkaTemplate) -> None:
    with pytest.raises(ConfigError, match="'requires_new'"):
        template.transaction(propagation="nested")


def test_a_value_that_cannot_be_serialized_aborts_too(template: KafkaTemplate, fake_kafka: Any) -> None:
    fake_kafka.refused_values = {"x": SerializationError("no")}  # the producer fails such a future at once
    with pytest.raises(SendError) as caught, template.transaction():
        template.send("t", "x")
    assert isinstance(caught.value.__cause__, SerializationError)
