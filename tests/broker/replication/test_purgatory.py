"""Operations wait for keys and deadlines, and leave once."""

from __future__ import annotations

from collections.abc import Hashable

from ottla_broker.replication.purgatory import Purgatory


class Operation:
    def __init__(self) -> None:
        self.may_complete = False
        self.tried: list[Hashable] = []
        self.expired = 0

    def try_complete(self, key: Hashable) -> bool:
        self.tried.append(key)
        return self.may_complete

    def expire(self) -> None:
        self.expired += 1


def test_an_operation_is_tried_when_one_of_its_keys_moves_until_it_completes() -> None:
    purgatory, operation = Purgatory(), Operation()
    purgatory.watch(operation, ["a", "b"], 100)
    assert purgatory.check("c") == 0
    assert purgatory.check("a") == 0
    operation.may_complete = True
    assert purgatory.check("b") == 1
    assert purgatory.check("a") == 0
    assert operation.tried == ["a", "b"]
    assert len(purgatory) == 0


def test_an_operation_expires_at_its_deadline_and_once() -> None:
    purgatory, operation = Purgatory(), Operation()
    purgatory.watch(operation, ["a"], 100)
    purgatory.tick(99)
    assert operation.expired == 0
    assert purgatory.deadline_ms() == 100
    purgatory.tick(100)
    purgatory.tick(200)
    purgatory.check("a")
    assert operation.expired == 1
    assert operation.tried == []
    assert purgatory.deadline_ms() is None


def test_a_completed_operation_never_expires() -> None:
    purgatory, operation = Purgatory(), Operation()
    operation.may_complete = True
    purgatory.watch(operation, ["a"], 100)
    purgatory.check("a")
    assert purgatory.deadline_ms() is None
    purgatory.tick(100)
    assert operation.expired == 0


def test_an_operation_without_keys_waits_for_its_deadline() -> None:
    purgatory, operation = Purgatory(), Operation()
    purgatory.watch(operation, [], 100)
    purgatory.tick(100)
    assert operation.expired == 1


def test_a_completion_that_completes_a_neighbour_does_not_try_it_again() -> None:
    purgatory, first, second = Purgatory(), Operation(), Operation()
    first.may_complete = second.may_complete = True

    class Chained(Operation):
        def try_complete(self, key: Hashable) -> bool:
            purgatory.check("b")
            return True

    purgatory.watch(Chained(), ["a"], 100)
    purgatory.watch(second, ["a", "b"], 100)
    assert purgatory.check("a") == 1
    assert second.tried == ["b"]


def test_nothing_is_kept_for_keys_nobody_watches_any_more() -> None:
    purgatory, operation = Purgatory(), Operation()
    operation.may_complete = True
    purgatory.watch(operation, ["a", "b", "a"], 100)
    purgatory.check("a")
    assert not purgatory.is_watched("a")
    assert not purgatory.is_watched("b")


def test_completed_operations_with_far_deadlines_are_not_kept() -> None:
    purgatory = Purgatory()
    for number in range(10_000):
        operation = Operation()
        operation.may_complete = True
        purgatory.watch(operation, [number], 1_000_000)
        purgatory.check(number)
    assert len(purgatory._by_deadline) <= 66
