"""Blocks inside of blocks, and the decorator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ottla import KafkaTemplate, KafkaTransactionManager, transactional
from ottla.errors import AlreadyInTransaction, ConfigError, NotInTransaction, UnexpectedRollback


def test_a_block_inside_joins_one_begin_and_one_commit(template: KafkaTemplate, fake_kafka: Any) -> None:
    with template.transaction() as outer:
        template.send("t", "a")
        with template.transaction() as inner:
            template.send("t", "b")
        assert inner is outer
        assert fake_kafka.visible == []
    assert fake_kafka.happened("begin", "commit") == ["begin tx-0", "commit tx-0"]
    assert fake_kafka.visible == ["a", "b"]


def test_requires_new_commits_before_the_outer_one_which_then_goes_on(template: KafkaTemplate, fake_kafka: Any) -> None:
    with template.transaction():
        template.send("t", "outer 1")
        with template.transaction(propagation="requires_new"):
            template.send("t", "inner")
        assert fake_kafka.visible == ["inner"]
        template.send("t", "outer 2")
    assert fake_kafka.visible == ["inner", "outer 1", "outer 2"]
    assert fake_kafka.happened("begin", "commit") == ["begin tx-0", "begin tx-1", "commit tx-1", "commit tx-0"]


def test_an_outer_rollback_does_not_undo_what_requires_new_has_committed(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    with pytest.raises(ValueError, match="outer"), template.transaction():
        template.send("t", "outer")
        with template.transaction(propagation="requires_new"):
            template.send("t", "inner")
        raise ValueError("outer")
    assert fake_kafka.visible == ["inner"]


def test_an_inner_failure_of_requires_new_leaves_the_outer_one_alone(template: KafkaTemplate, fake_kafka: Any) -> None:
    with template.transaction():
        template.send("t", "outer")
        with pytest.raises(ValueError, match="inner"), template.transaction(propagation="requires_new"):
            template.send("t", "inner")
            raise ValueError("inner")
    assert fake_kafka.visible == ["outer"]


def test_requires_new_may_be_nested_as_deep_as_there_are_producers(template: KafkaTemplate, fake_kafka: Any) -> None:
    """Spring refuses executeInTransaction inside of itself; here it is a third producer."""
    with (
        template.transaction(propagation="requires_new"),
        template.transaction(propagation="requires_new"),
        template.transaction(propagation="requires_new") as tx,
    ):
        assert tx.transactional_id == "tx-2"


def test_mandatory_joins_or_raises(template: KafkaTemplate) -> None:
    with pytest.raises(NotInTransaction, match="mandatory"), template.transaction(propagation="mandatory"):
        pass
    with template.transaction() as outer, template.transaction(propagation="mandatory") as inner:
        assert inner is outer


def test_never_runs_outside_or_raises(factory: Any, fake_kafka: Any) -> None:
    template = KafkaTemplate(factory, allow_non_transactional=True)
    with template.transaction(propagation="never") as tx:
        template.send("t", "plain")
        assert fake_kafka.visible == ["plain"]
        assert not tx.is_active
        for wrong in (tx.set_rollback_only, lambda: tx.send_offsets({}, None), lambda: tx.run(print)):  # type: ignore[arg-type]
            with pytest.raises(NotInTransaction, match="never"):
                wrong()
    with (
        template.transaction(),
        pytest.raises(AlreadyInTransaction, match="never"),
        template.transaction(propagation="never"),
    ):
        pass


def test_an_error_that_an_outer_block_swallows_aborts_all_the_same_and_says_so(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    with pytest.raises(UnexpectedRollback, match="inner") as caught, template.transaction():
        template.send("t", "a")
        try:
            with template.transaction():
                raise ValueError("inner")
        except ValueError:
            pass
    assert isinstance(caught.value.__cause__, ValueError)
    assert fake_kafka.visible == []
    assert fake_kafka.happened("commit", "abort") == ["abort tx-0"]


def test_set_rollback_only_in_a_block_that_joined_is_told_to_the_outer_one(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    with pytest.raises(UnexpectedRollback, match="set_rollback_only"), template.transaction():
        template.send("t", "a")
        with template.transaction() as tx:
            tx.set_rollback_only()
    assert fake_kafka.visible == []


def test_a_block_that_joins_may_only_shorten_the_time(template: KafkaTemplate) -> None:
    with template.transaction(timeout=10) as tx:
        longer = tx.deadline
        with template.transaction(timeout=50):
            assert tx.deadline == longer
        with template.transaction(timeout=5):
            assert longer - tx.deadline == pytest.approx(5, abs=1)


# -- the decorator and the manager -------------------------------------------------------------------------------------


def test_transactional_functions_that_call_each_other_share_one_transaction(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    @transactional(template)
    def inner(value: str) -> str:
        template.send("t", value)
        return value.upper()

    @transactional(template)
    def outer() -> str:
        """What it does."""
        return inner("a") + inner("b")

    assert outer() == "AB"
    assert outer.__doc__ == "What it does."
    assert fake_kafka.happened("begin", "commit") == ["begin tx-0", "commit tx-0"]


def test_transactional_works_on_methods_and_rolls_back(template: KafkaTemplate, fake_kafka: Any) -> None:
    class Service:
        @transactional(template)
        def transfer(self, amount: int) -> None:
            template.send("t", amount)
            if amount < 0:
                raise ValueError(amount)

    service = Service()
    service.transfer(1)
    with pytest.raises(ValueError, match="-1"):
        service.transfer(-1)
    assert fake_kafka.visible == [1]


def test_transactional_coroutine_functions_are_awaited_inside(template: KafkaTemplate, fake_kafka: Any) -> None:
    @transactional(template, propagation="requires_new")
    async def work(value: str) -> str:
        await asyncio.sleep(0)
        template.send("t", value)
        return value

    async def main() -> list[str]:
        return await asyncio.gather(work("a"), work("b"))

    assert asyncio.run(main()) == ["a", "b"]
    assert sorted(fake_kafka.happened("commit")) == ["commit tx-0", "commit tx-1"]


def test_transactional_needs_something_with_transactions_and_no_generator(template: KafkaTemplate) -> None:
    with pytest.raises(TypeError, match="@transactional\\(template\\)"):

        @transactional  # type: ignore[arg-type]
        def forgotten() -> None: ...

    with pytest.raises(TypeError, match="generator"):

        @transactional(template)
        def rows() -> Iterator[int]:
            yield 1


def test_a_manager_has_a_prefix_and_a_timeout_of_its_own(factory: Any, template: KafkaTemplate) -> None:
    manager = KafkaTransactionManager(factory, transaction_id_prefix="manager-", timeout=7)

    @transactional(manager)
    def work() -> tuple[str, float]:
        tx = template.transaction().__enter__()  # joins
        return tx.transactional_id, tx.timeout

    assert work() == ("manager-0", 7)


@pytest.mark.parametrize("settings", [{"acks": 1}, {"enable_idempotence": False}, {"retries": 0}])
def test_a_manager_refuses_a_factory_whose_settings_rule_transactions_out(
    make_factory: Callable[..., Any], settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        KafkaTransactionManager(make_factory(**settings))


def test_a_manager_knows_of_no_isolation_levels(factory: Any) -> None:
    """Readers choose theirs (isolation_level), so there is nothing to ask for when a transaction begins."""
    with pytest.raises(TypeError, match="isolation"):
        KafkaTransactionManager(factory).transaction(isolation="serializable")  # type: ignore[call-arg]
