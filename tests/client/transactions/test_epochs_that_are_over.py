"""Timed out is not fenced: what is said when a broker calls the epoch over, and what can be done then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from ottla.client.producer.epoch_end import EpochFate, explain_epoch_end
from ottla.client.producer.producer_sequences import ProducerIdAndEpoch
from ottla.client.producer.transaction_tables import RequestKind, TransactionState
from ottla.errors import (
    FenceReason,
    InvalidProducerEpoch,
    InvalidTxnState,
    OttlaError,
    ProducerFenced,
    SendError,
    TransactionTimedOut,
)
from ottla_wire.messages.describe_transactions import EpochEnd
from support.produce_model import Fault
from support.transaction_model import TransactionWorld

both = pytest.mark.parametrize("version", [1, 2])
OURS = ProducerIdAndEpoch(7, 4)
REFUSED = ProducerFenced()
STALE = InvalidProducerEpoch()
WRONG_STATE = InvalidTxnState()
TIMED_OUT, FENCED, BY_ADMIN = 1, 2, 3


@dataclass
class Described:
    """What DescribeTransactions says."""

    producer_epoch: int
    transaction_state: str = "CompleteAbort"
    producer_id: int = 7
    epoch_end: EpochEnd = field(default_factory=EpochEnd)


def told(reason: int, ended: int, now: int, **fields: Any) -> Described:
    end = EpochEnd(reason=reason, producer_epoch=ended, client_id="other", client_host="10.0.0.7", at_ms=1_000)
    return Described(now, epoch_end=end, **fields)


E, F, U = EpochFate.ENDED, EpochFate.FENCED, EpochFate.UNEXPLAINED


@pytest.mark.parametrize(
    ("case", "refusal", "described", "open_ms", "fate", "expected"),
    [
        # our own broker tells
        ("it timed out", REFUSED, told(TIMED_OUT, 4, 5), 10, E, (7, 5)),
        ("it timed out, and the id was used up", REFUSED, told(TIMED_OUT, 4, 0, producer_id=8), 10, E, (8, 0)),
        ("another one took over, and its own timed out", REFUSED, told(TIMED_OUT, 6, 7), 10, F, None),
        ("another one took over", STALE, told(FENCED, 4, 5, transaction_state="Empty"), 99_999, F, None),
        ("another one is about to take over", WRONG_STATE, told(FENCED, 4, 5), 10, F, None),
        ("another one took over, with a new id", REFUSED, told(FENCED, 4, 0, producer_id=8), 10, F, None),
        ("an administrator fenced it", REFUSED, told(BY_ADMIN, 4, 5), 10, F, None),
        ("the last fence was our own", STALE, told(FENCED, 3, 4, transaction_state="Ongoing"), 10, U, None),
        # Apache Kafka does not
        ("overdue, and aborted", REFUSED, Described(5), 1_000, E, (7, 5)),
        ("overdue, and being aborted", REFUSED, Described(5, "PrepareAbort"), 1_000, E, (7, 5)),
        ("overdue, the commit came too late", WRONG_STATE, Described(5), 1_000, E, (7, 5)),
        ("overdue, but somebody has come since", REFUSED, Described(6, "Empty"), 1_000, F, None),
        ("overdue, but the next epoch is somebody's", REFUSED, Described(5, "Empty"), 1_000, F, None),
        ("overdue, another id", REFUSED, Described(5, producer_id=8), 1_000, F, None),
        ("not overdue", REFUSED, Described(5), 999, F, None),
        ("nothing was open", REFUSED, Described(5), None, F, None),
        ("the coordinator has the same epoch", STALE, Described(4, "Ongoing"), 10, U, None),
        ("the coordinator has the same epoch, and a state of its own", WRONG_STATE, Described(4, "Empty"), 10, U, None),
        # nobody tells
        ("no answer, overdue", REFUSED, None, 1_000, E, (7, 5)),
        ("no answer, not overdue", REFUSED, None, 10, F, None),
        ("no answer, a partition said it", STALE, None, 10, U, None),
    ],
)
def test_why_an_epoch_is_over(
    case: str, refusal: OttlaError, described: Any, open_ms: int | None, fate: EpochFate, expected: Any
) -> None:
    end = explain_epoch_end("tx", OURS, refusal, described, open_ms=open_ms, timeout_ms=1_000)
    assert end.fate is fate, case
    if fate is EpochFate.ENDED:
        assert end.expected == expected
        assert isinstance(end.error, TransactionTimedOut)
        assert "abort_transaction()" in str(end.error)
    if fate is EpochFate.FENCED:
        assert isinstance(end.error, ProducerFenced)
    if fate is EpochFate.UNEXPLAINED:
        assert end.error is refusal
    assert fate is EpochFate.UNEXPLAINED or "'tx'" in str(end.error)


def test_who_has_fenced_a_producer_is_named() -> None:
    end = explain_epoch_end("tx", OURS, REFUSED, told(FENCED, 4, 5), open_ms=10, timeout_ms=1_000)
    assert isinstance(end.error, ProducerFenced)
    assert end.error.reason == FenceReason("other", "10.0.0.7", 1_000)
    for word in ("the producer 'other'", "10.0.0.7", "1970-01-01T00:00:01", "no two producers"):
        assert word in str(end.error)


def test_an_administrator_is_not_taken_for_a_second_producer() -> None:
    end = explain_epoch_end("tx", OURS, REFUSED, told(BY_ADMIN, 4, 5), open_ms=10, timeout_ms=1_000)
    assert isinstance(end.error, ProducerFenced)
    assert end.error.reason == FenceReason("other", "10.0.0.7", 1_000, by_administrator=True)
    assert "an administrator's client 'other' on 10.0.0.7" in str(end.error)
    assert "no two producers" not in str(end.error)


def running(version: int, **settings: Any) -> TransactionWorld:
    """In a transaction of which one record is stored."""
    world = TransactionWorld(version=version, transaction_timeout_ms=5_000, **settings).started()
    world.send()
    world.step()
    world.step()
    return world


def goes_on(world: TransactionWorld) -> None:
    world.begin()
    world.send(value=b"afterwards")
    world.finish(world.commit())
    assert world.committed() == [b"afterwards"]


@both
@pytest.mark.parametrize("tells", [True, False])
class TestTimedOut:
    def test_a_commit_that_came_too_late_is_timed_out_and_after_an_abort_the_producer_goes_on(
        self, version: int, tells: bool
    ) -> None:
        world = running(version)
        world.now_ms += 6_000
        world.coordinator.time_out(tells=tells)
        world.finish(world.commit(), TransactionTimedOut)
        assert world.machine.state is TransactionState.ABORTABLE_ERROR
        with pytest.raises(TransactionTimedOut):
            world.commit()
        ends = world.sent_kinds.count(RequestKind.END)
        world.finish(world.abort())
        assert world.sent_kinds.count(RequestKind.END) == ends, "there is nothing left to end"
        goes_on(world)

    def test_a_send_that_came_too_late_fails_as_timed_out(self, version: int, tells: bool) -> None:
        world = running(version)
        world.now_ms += 6_000
        world.coordinator.time_out(tells=tells)
        late = world.send()
        world.step()
        world.step()
        error = late.exception(0)
        assert isinstance(error, SendError)
        assert isinstance(error.__cause__, TransactionTimedOut)
        with pytest.raises(TransactionTimedOut):
            world.commit()
        world.finish(world.abort())
        goes_on(world)

    def test_offsets_that_came_too_late_fail_as_timed_out(self, version: int, tells: bool) -> None:
        world = running(version)
        world.now_ms += 6_000
        world.coordinator.time_out(tells=tells)
        world.finish(world.send_offsets(3), TransactionTimedOut)
        world.finish(world.abort())
        goes_on(world)
        assert world.coordinator.committed_offsets == {}

    def test_an_abort_of_what_has_timed_out_succeeds(self, version: int, tells: bool) -> None:
        world = running(version)
        world.now_ms += 6_000
        world.coordinator.time_out(tells=tells)
        world.finish(world.abort())
        goes_on(world)

    def test_another_instance_that_comes_after_the_timeout_is_not_thrown_out(self, version: int, tells: bool) -> None:
        """The next epoch is asked for with the epoch that the time-out left, which is no longer the present one."""
        world = running(version)
        world.now_ms += 6_000
        world.coordinator.time_out(tells=tells)
        world.finish(world.commit(), TransactionTimedOut)
        world.coordinator.another_instance_takes_over(tells=tells)
        epoch = world.coordinator.epoch
        world.finish(world.abort(), ProducerFenced)
        assert world.machine.state is TransactionState.FATAL
        assert world.coordinator.epoch == epoch

    def test_fenced_is_fatal_wherever_it_shows(self, version: int, tells: bool) -> None:
        for late in ("commit", "abort", "send", "offsets"):
            world = running(version)
            world.coordinator.another_instance_takes_over(tells=tells)
            if late == "send":
                future = world.send()
                world.step()
                world.step()
                error = future.exception(0)
                assert isinstance(error, SendError)
                fenced = error.__cause__
            elif late == "offsets":
                fenced = world.finish(world.send_offsets(1), ProducerFenced)
            else:
                fenced = world.finish(getattr(world, late)(), ProducerFenced)
            assert isinstance(fenced, ProducerFenced)
            assert (fenced.reason is not None) == tells
            assert world.machine.state is TransactionState.FATAL
            for call in (world.commit, world.abort, world.machine.begin):
                with pytest.raises(ProducerFenced):
                    call()
            assert world.committed() == []


@both
def test_a_partition_that_alone_knows_a_newer_epoch_is_put_right_by_an_abort(version: int) -> None:
    """KIP-360: the transaction is lost, the producer is not."""
    world = running(version)
    future = world.send()
    world.run()
    world.faults.append(Fault(47))
    world.step()
    world.step()
    error = future.exception(0)
    assert isinstance(error, SendError)
    assert isinstance(error.__cause__, InvalidProducerEpoch)
    with pytest.raises(InvalidProducerEpoch):
        world.commit()
    world.finish(world.abort())
    assert world.coordinator.state == ("CompleteAbort" if version == 2 else "Empty")
    goes_on(world)


@both
def test_a_coordinator_that_does_not_say_why_is_not_waited_for_long(version: int) -> None:
    world = running(version)
    world.now_ms += 6_000
    world.coordinator.time_out()
    operation = world.commit()
    while world.asked[0].kind is not RequestKind.EXPLAIN:
        world.answer()
    asked_ms = world.now_ms
    while not operation.is_done:
        if world.asked:
            world.answer(lost=True)
        world.run(elapsed_ms=50)
    assert world.now_ms - asked_ms < 4_000
    assert isinstance(operation.error, TransactionTimedOut)


@both
def test_futures_and_commit_name_the_same_reason(version: int) -> None:
    world = running(version)
    world.coordinator.another_instance_takes_over(tells=True)
    future = world.send()
    operation = world.commit()
    world.finish(operation, ProducerFenced)
    error = future.exception(0)
    assert isinstance(error, SendError)
    assert error.__cause__ is operation.error


@both
def test_a_batch_whose_reason_is_being_asked_for_is_finished_when_the_producer_closes(version: int) -> None:
    world = running(version)
    world.coordinator.another_instance_takes_over()
    future = world.send()
    world.run()
    while world.in_flight[0]:
        world.work(0)
        world.deliver(0)
    assert not future.done()
    world.sender.give_up_all(InvalidProducerEpoch("closed"))
    assert future.done()
    assert world.accumulator.free_bytes == world.config.buffer_memory


@both
def test_batches_that_fail_later_have_the_reason_that_is_known_by_then(version: int) -> None:
    world = TransactionWorld(2, version, transaction_timeout_ms=5_000)
    world.started()
    for partition in range(2):
        world.send(partition)
    world.step()
    world.step()
    world.now_ms += 6_000
    world.coordinator.time_out()
    first = world.send(0)
    world.run()
    second = world.send(1)
    world.run()
    world.work(0)
    world.deliver(0)
    world.run()
    while world.asked:
        world.answer()
    assert first.done()
    assert not second.done()
    while world.work(0):
        pass
    world.deliver(0)
    world.run()
    for future in (first, second):
        error = future.exception(0)
        assert isinstance(error, SendError)
        assert isinstance(error.__cause__, TransactionTimedOut)
