"""The seam around each delivery: what a strategy may rely on that begins, commits and undoes units."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from ottla import BatchListenerFailed, ErrorHandler, Retry, TopicPartition
from ottla.errors import ProducerFenced
from ottla.listeners.ack import Offsets
from ottla.listeners.effects import Delivered, Effects, Recover
from ottla.listeners.unit_of_work import Unit, UnitOfWork
from ottla_wire.records import ConsumerRecord


class Boom(Exception):
    pass


class AllOrNothing(UnitOfWork):
    """Undoes a unit that has failed, as a transaction does; writes down what it made last."""

    one_by_one = True

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.open = False

    def handle(self, unit: Unit) -> Effects[Delivered]:
        self.open = True
        outcome: Delivered = yield unit
        self.open = False
        if outcome.error is not None:
            self.log.append("abort")
            return Delivered(0, outcome.error)
        self.log.append([record.offset for record in unit.records])
        return outcome

    def recover(self, record: ConsumerRecord, error: BaseException) -> Effects[BaseException | None]:
        self.open = True
        failure: BaseException | None = yield Recover(record, error)
        self.open = False
        self.log.append("abort" if failure else ("recovered", record.offset))
        return failure

    def skip(self, record: ConsumerRecord) -> None:
        self.log.append(("skipped", record.offset))

    def settle(self) -> Effects[None]:
        yield from ()

    def finish(self) -> Effects[None]:
        self.log.append("finish")
        yield from ()

    def revoked(self, partitions: Iterable[TopicPartition]) -> Offsets:
        return {}

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        pass


@pytest.fixture
def work() -> AllOrNothing:
    return AllOrNothing()


def attempts(count: int, **more: Any) -> ErrorHandler:
    return ErrorHandler(retry=Retry.fixed(0, attempts=count), **more)


def test_each_record_is_a_unit_where_the_strategy_says_so(rig: Any, make_record: Any, work: AllOrNothing) -> None:
    rig(work=work).run([make_record(0), make_record(1)], [make_record(7, partition=1)])
    assert work.log == [[0], [1], [7], "finish"]


def test_redeliveries_and_recoveries_are_units_too(rig: Any, make_record: Any, work: AllOrNothing) -> None:
    was_open: list[bool] = []
    run = rig(work=work, errors=attempts(2, recover=lambda record, error: was_open.append(work.open)))

    def listener(record: Any) -> None:
        was_open.append(work.open)
        if record.offset == 1:
            raise Boom

    run.listener = listener
    run.run([make_record(0), make_record(1), make_record(2)])
    assert work.log == [[0], "abort", "abort", ("recovered", 1), [2], "finish"]
    assert was_open == [True] * 5


def test_a_unit_that_could_not_be_made_last_is_delivered_again(rig: Any, make_record: Any, work: AllOrNothing) -> None:
    failures = iter([Boom("the commit failed"), None])

    class Unlucky(AllOrNothing):
        def handle(self, unit: Unit) -> Effects[Delivered]:
            outcome = yield from super().handle(unit)
            failure = next(failures)
            return Delivered(0, failure) if failure else outcome

    run = rig(work=Unlucky(), errors=attempts(3)).run([make_record(0)])
    assert run.delivered == [(0, 0, 1), (0, 0, 2)]


def test_an_error_that_the_strategy_raises_ends_the_loop(rig: Any, make_record: Any) -> None:
    class Fenced(AllOrNothing):
        def handle(self, unit: Unit) -> Effects[Delivered]:
            yield unit
            raise ProducerFenced("another instance has begun")

    run = rig(work=Fenced())
    with pytest.raises(ProducerFenced):
        run.run([make_record(0), make_record(1)])
    assert [offset for _, offset, _ in run.delivered] == [0]


def test_filtered_records_are_told_to_the_strategy(rig: Any, make_record: Any, work: AllOrNothing) -> None:
    rig(work=work, record_filter=lambda record: record.offset == 0).run([make_record(0), make_record(1)])
    assert work.log == [[1], ("skipped", 0), "finish"]


def test_of_an_undone_batch_what_went_well_comes_once_more_by_itself_and_the_rest_is_held(
    rig: Any, make_record: Any, work: AllOrNothing
) -> None:
    outcomes = iter([Delivered(0, BatchListenerFailed(2)), None, None])
    run = rig(work=work, batch=True, errors=attempts(3))
    run.listener = lambda records: next(outcomes)
    run.run([make_record(n) for n in range(4)])
    assert run.batches == [[0, 1, 2, 3], [0, 1], [2, 3]]
    assert work.log == ["abort", [0, 1], [2, 3], "finish"]


def test_the_rest_of_an_undone_batch_stays_behind_what_fails_the_second_time(
    rig: Any, make_record: Any, work: AllOrNothing
) -> None:
    outcomes = iter([Delivered(0, BatchListenerFailed(2)), Delivered(0, Boom()), None])
    run = rig(work=work, batch=True, errors=attempts(3))
    run.listener = lambda records: next(outcomes)
    run.run([make_record(n) for n in range(4)])
    assert run.batches == [[0, 1, 2, 3], [0, 1], [0, 1, 2, 3]]


def test_a_record_pointed_at_in_an_undone_batch_is_recovered_by_itself(
    rig: Any, make_record: Any, work: AllOrNothing
) -> None:
    def listener(records: Any) -> Delivered | None:
        offsets = [record.offset for record in records]
        return Delivered(0, BatchListenerFailed(offsets.index(1))) if 1 in offsets else None

    run = rig(work=work, batch=True, errors=attempts(2))
    run.listener = listener
    run.run([make_record(n) for n in range(3)])
    assert work.log == ["abort", [0], "abort", ("recovered", 1), [2], "finish"]
