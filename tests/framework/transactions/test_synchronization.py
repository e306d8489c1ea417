"""What is called around the end of a transaction, and a database that is committed with it."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from ottla import KafkaTemplate
from ottla.errors import InvalidRecord, ProducerFenced, SendError


class Recorder:
    """A synchronization that writes down what it is called with, and fails where told."""

    def __init__(self, kafka: Any, fail: str = "") -> None:
        self.kafka = kafka
        self.fail = fail

    def _note(self, moment: str) -> None:
        self.kafka.note(moment, "hook")
        if moment == self.fail:
            raise ValueError(moment)

    def before_commit(self, tx: Any) -> None:
        self._note("before_commit")

    def before_completion(self, tx: Any) -> None:
        self._note("before_completion")

    def after_commit(self, tx: Any) -> None:
        self._note("after_commit")

    def after_rollback(self, tx: Any) -> None:
        self._note("after_rollback")


ALL = ("before_commit", "before_completion", "after_commit", "after_rollback", "commit", "abort")


def test_hooks_run_around_the_commit(template: KafkaTemplate, fake_kafka: Any) -> None:
    with template.transaction() as tx:
        tx.add_synchronization(Recorder(fake_kafka))
    assert fake_kafka.happened(*ALL) == [
        "before_commit hook",
        "before_completion hook",
        "commit tx-0",
        "after_commit hook",
    ]


def test_hooks_run_around_the_rollback(template: KafkaTemplate, fake_kafka: Any) -> None:
    with pytest.raises(KeyError), template.transaction() as tx:
        tx.add_synchronization(Recorder(fake_kafka))
        raise KeyError
    assert fake_kafka.happened(*ALL) == ["abort tx-0", "after_rollback hook"]


@pytest.mark.parametrize("moment", ["before_commit", "before_completion"])
def test_a_hook_that_fails_before_the_commit_aborts_and_is_raised(
    template: KafkaTemplate, fake_kafka: Any, moment: str
) -> None:
    with pytest.raises(ValueError, match=moment), template.transaction() as tx:
        template.send("t", "a")
        tx.add_synchronization(Recorder(fake_kafka, moment))
    assert fake_kafka.happened("commit", "abort", "after_rollback") == ["abort tx-0", "after_rollback hook"]
    assert fake_kafka.visible == []


def test_a_hook_that_fails_after_the_commit_is_logged_since_nothing_can_be_undone(
    template: KafkaTemplate, fake_kafka: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with template.transaction() as tx:
        template.send("t", "a")
        tx.add_synchronization(Recorder(fake_kafka, "after_commit"))
    assert fake_kafka.visible == ["a"]
    assert "after_commit" in caplog.text


def test_before_commit_may_send_and_after_commit_is_outside(template: KafkaTemplate, fake_kafka: Any) -> None:
    class Sender:
        def before_commit(self, tx: Any) -> None:
            template.send("t", "from the hook")

        def after_commit(self, tx: Any) -> None:
            assert not template.in_transaction

    with template.transaction() as tx:
        tx.add_synchronization(Sender())
    assert fake_kafka.visible == ["from the hook"]


def test_before_completion_comes_when_the_sends_are_stored(template: KafkaTemplate, fake_kafka: Any) -> None:
    futures = []

    class Looks:
        def before_completion(self, tx: Any) -> None:
            assert all(future.done() for future in futures)

    with template.transaction() as tx:
        futures.append(template.send("t", "a"))
        tx.add_synchronization(Looks())


def test_async_hooks_are_awaited_in_async_blocks_and_refused_in_others(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    class Awaited:
        async def after_commit(self, tx: Any) -> None:
            await asyncio.sleep(0)
            fake_kafka.note("after_commit", "awaited")

        async def before_commit(self, tx: Any) -> None: ...

    async def main() -> None:
        async with template.transaction() as tx:
            tx.add_synchronization(Awaited())

    asyncio.run(main())
    assert fake_kafka.happened("after_commit") == ["after_commit awaited"]
    with pytest.raises(TypeError, match="async with"), template.transaction() as tx:
        tx.add_synchronization(Awaited())


# -- databases: the order of things; `ottla.transaction.database` knows real ones --------------------------------------


class Database:
    def __init__(self, kafka: Any, name: str = "db", fail: str = "") -> None:
        self.kafka, self.name, self.fail = kafka, name, fail

    def commit(self) -> None:
        self._do("db commit")

    def rollback(self) -> None:
        self._do("db rollback")

    def left(self) -> None:
        pass

    def _do(self, what: str) -> None:
        self.kafka.note(what, self.name)
        if what == self.fail:
            raise OSError(what)


@pytest.fixture
def database_module(monkeypatch: pytest.MonkeyPatch, fake_kafka: Any) -> None:
    """In place of the real one: `begin` gives what it is given."""
    module = types.ModuleType("ottla.transaction.database")

    def begin(database: Any) -> Any:
        fake_kafka.note("db begin", database.name)
        return database

    module.begin = begin  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ottla.transaction.database", module)


ORDER = ("begin", "db begin", "send", "db commit", "db rollback", "commit", "abort")


@pytest.mark.usefixtures("database_module")
def test_a_database_transaction_is_committed_after_the_sends_are_stored_and_before_kafkas(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    with template.transaction(database=Database(fake_kafka)):
        template.send("t", "a")
    assert fake_kafka.happened(*ORDER) == ["begin tx-0", "db begin db", "send tx-0:a", "db commit db", "commit tx-0"]


@pytest.mark.usefixtures("database_module")
def test_a_database_that_does_not_commit_aborts_kafka(template: KafkaTemplate, fake_kafka: Any) -> None:
    with (
        pytest.raises(OSError, match="db commit"),
        template.transaction(database=Database(fake_kafka, fail="db commit")),
    ):
        template.send("t", "a")
    assert fake_kafka.happened("db commit", "db rollback", "commit", "abort") == [
        "db commit db",
        "db rollback db",
        "abort tx-0",
    ]
    assert fake_kafka.visible == []


@pytest.mark.usefixtures("database_module")
def test_a_failed_send_or_block_rolls_the_database_back(template: KafkaTemplate, fake_kafka: Any) -> None:
    fake_kafka.refused_values = {"bad": InvalidRecord("refused")}
    with pytest.raises(SendError), template.transaction(database=Database(fake_kafka)):
        template.send("t", "bad")
    with pytest.raises(KeyError), template.transaction(database=Database(fake_kafka)):
        raise KeyError
    assert fake_kafka.happened("db commit", "db rollback") == ["db rollback db"] * 2


@pytest.mark.usefixtures("database_module")
def test_a_kafka_commit_that_fails_after_the_databases_says_that_that_one_stays(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    fake_kafka.fail("commit", ProducerFenced())
    with pytest.raises(ProducerFenced) as caught, template.transaction(database=Database(fake_kafka)):
        template.send("t", "a")
    assert "database transaction is committed" in caught.value.__notes__[0]
    assert "Outbox" in caught.value.__notes__[0]


@pytest.mark.usefixtures("database_module")
def test_blocks_that_join_with_the_same_database_share_its_transaction_too(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    database, other = Database(fake_kafka), Database(fake_kafka, "other")
    with template.transaction(database=database):
        with template.transaction(database=database):
            pass
        with template.transaction(database=other):
            pass
        assert fake_kafka.happened("db commit") == []
    assert fake_kafka.happened("db begin", "db commit", "commit") == [
        "db begin db",
        "db begin other",
        "db commit db",
        "db commit other",
        "commit tx-0",
    ]


@pytest.mark.usefixtures("database_module")
def test_a_database_that_cannot_begin_leaves_no_kafka_transaction_open(
    template: KafkaTemplate, fake_kafka: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(database: Any) -> Any:
        raise OSError("no connection")

    monkeypatch.setattr(sys.modules["ottla.transaction.database"], "begin", begin)
    with pytest.raises(OSError, match="no connection"):
        template.transaction(database=Database(fake_kafka)).__enter__()
    assert fake_kafka.happened("begin", "abort") == ["begin tx-0", "abort tx-0"]


@pytest.mark.usefixtures("database_module")
def test_what_the_database_says_while_it_is_rolled_back_is_a_note(
    template: KafkaTemplate, fake_kafka: Any, make_factory: Callable[..., Any]
) -> None:
    database = Database(fake_kafka, fail="db rollback")
    with pytest.raises(KeyError) as caught, template.transaction(database=database):
        raise KeyError
    assert "db rollback" in caught.value.__notes__[0]
    assert fake_kafka.happened("abort") == ["abort tx-0"]
