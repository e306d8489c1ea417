"""Transactions under every kind of trouble at random, from seeds: whatever is read committed was committed, and whole.

Each walk is an application that sends, commits and aborts, and does what the errors tell it to; a network that loses
answers and requests, or delivers these after they have been asked again; a coordinator that writes markers late,
refuses for a while and aborts what is open for too long; and a cluster that may change to version 2 in between. What
holds in the end:

- a transaction whose commit succeeded is read, every record once and in order;
- of one that was aborted, or whose commit failed, nothing is read;
- of one whose commit ended with a fatal error everything is read, or nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from ottla.client.producer.transaction_operation import Operation
from ottla.client.producer.transaction_tables import RequestKind, TransactionState
from ottla.errors import Fatal, NotInTransaction
from support.produce_model import Fault
from support.transaction_model import TransactionWorld

S = TransactionState
PARTITIONS = 2
RETRIABLE = (14, 15, 16, 51)
MAY_ARRIVE_LATE = (RequestKind.ADD_PARTITIONS, RequestKind.ADD_OFFSETS, RequestKind.COMMIT_OFFSETS, RequestKind.END)
"""Not InitProducerId, which may fence its own sender then, like an addition between an end and the next epoch."""


@dataclass
class Attempt:
    """One transaction as the application sees it."""

    records: list[tuple[int, bytes]] = field(default_factory=list)
    offset: int | None = None
    outcome: str = "open"
    end_was_sent: bool = False


class Walk:
    """One application, and what happens to it."""

    def __init__(self, seed: int, *, version: int, changes_version: bool, timeouts: bool) -> None:
        self.rng = random.Random(seed)
        self.world = TransactionWorld(
            PARTITIONS, version=version, seed=seed, transaction_timeout_ms=20_000, retry_backoff_ms=20, batch_size=200
        )
        self.world.coordinator.writes_markers_at_once = False
        self.changes_version = changes_version
        self.timeouts = timeouts
        self.attempts: list[Attempt] = []
        self.operation: Operation | None = None
        self.number = 0
        self.troubled = True

    # --- the application

    def act(self) -> None:
        """The application's next call, if it is not waiting for one."""
        machine = self.world.machine
        if self.operation is not None:
            if not self.operation.is_done:
                return
            self.ended(self.operation)
        state = machine.state
        if state is S.UNINITIALIZED:
            self.operation = self.world.init()
        elif state in (S.READY, S.INITIALIZING):
            self.operation = machine.begin()
            self.world.run()
            if self.operation is None:
                self.attempts.append(Attempt())
        elif state is S.IN_TRANSACTION:
            self.act_inside()
        elif state is S.ABORTABLE_ERROR:
            self.operation = self.world.abort()

    def act_inside(self) -> None:
        choice = self.rng.random()
        attempt = self.attempts[-1]
        if choice < 0.6:
            for _ in range(self.rng.randint(1, 3)):
                self.number += 1
                partition, value = self.rng.randrange(PARTITIONS), b"%08d" % self.number
                self.world.send(partition, value)
                attempt.records.append((partition, value))
        elif choice < 0.7:
            self.number += 1
            attempt.offset = self.number
            self.operation = self.world.send_offsets(self.number)
        elif choice < 0.9:
            self.operation = self.world.commit()
        else:
            self.operation = self.world.abort()

    def ended(self, operation: Operation) -> None:
        operation.acknowledged = True
        self.operation = None
        if operation.method == "commit_transaction":
            failed = "unknown" if isinstance(operation.error, Fatal) else "failed"
            self.attempts[-1].outcome = "committed" if operation.error is None else failed
        elif operation.method == "abort_transaction" and self.attempts[-1].outcome == "open":
            self.attempts[-1].outcome = "aborted"

    # --- what happens to it

    def happen(self) -> None:
        """One event."""
        world, rng = self.world, self.rng
        choice = rng.random()
        if choice < 0.3:
            world.run(elapsed_ms=rng.choice((0, 1, 10, 60)))
        elif choice < 0.5:
            if rng.random() < 0.7 or not self.troubled:
                world.work(0)
            world.deliver(0)
        elif choice < 0.7:
            self.answer()
        elif choice < 0.8:
            world.coordinator.write_markers()
        elif choice < 0.85 and self.troubled:
            world.disconnect(0, worked_on=rng.randint(0, 3))
        elif choice < 0.87 and self.troubled:
            world.faults.append(rng.choice((Fault(19), Fault(7, stores=True), Fault(6), Fault(29), Fault(51))))
        elif choice < 0.88 and self.troubled:
            self.time_out()
        elif choice < 0.885 and self.changes_version:
            world.finalize(rng.choice((1, 2)), epoch=2 + world.now_ms)
        elif choice > 0.97 and world.on_their_way and world.machine.state is not S.INITIALIZING:
            world.late_request_arrives()

    def answer(self) -> None:
        if not self.world.asked:
            return
        choice = self.rng.random() if self.troubled else 1.0
        kind = self.world.asked[0].kind
        refusable = kind not in (RequestKind.FIND_COORDINATOR, RequestKind.EXPLAIN)
        if choice < 0.15:
            fate = self.rng.random()
            self.world.answer(lost=True, works=fate < 0.4, arrives=fate > 0.7 and kind in MAY_ARRIVE_LATE)
        elif choice < 0.3 and refusable:
            self.world.answer(self.rng.choice(RETRIABLE))
        else:
            self.world.answer()

    def time_out(self) -> None:
        """The coordinator aborts what has been open for too long."""
        began_ms = self.world.machine._began_ms
        coordinator = self.world.coordinator
        if self.timeouts and coordinator.state == "Ongoing" and coordinator.markers is None and began_ms is not None:
            self.world.now_ms = max(self.world.now_ms, began_ms + 20_000)
            coordinator.time_out(tells=self.rng.random() < 0.5)

    # --- all of it

    def walk(self, steps: int = 250) -> None:
        for _ in range(steps):
            self.act()
            for _ in range(self.rng.randint(1, 4)):
                self.happen()
        self.settle()
        self.check()

    def settle(self) -> None:
        """The troubles are over: what is open comes to its end."""
        self.troubled = False
        self.world.faults.clear()
        for _ in range(600):
            if self.operation is not None and self.operation.is_done:
                self.ended(self.operation)
            if self.operation is None and self.world.machine.state is S.IN_TRANSACTION:
                self.operation = self.world.commit()
            if self.operation is None and self.world.machine.state is S.ABORTABLE_ERROR:
                self.operation = self.world.abort()
            self.world.step()
            idle = self.operation is None and self.world.machine.state in (S.READY, S.UNINITIALIZED, S.FATAL)
            if idle and self.world.coordinator.markers is None and not self.world.batches:
                break
        else:
            raise AssertionError(f"it does not settle: {self.world.machine.state}, {self.operation}")

    def check(self) -> None:
        """What is read is what was committed."""
        world = self.world
        assert world.machine.state is not S.FATAL, world.machine.error
        assert world.coordinator.state != "Ongoing" or self.attempts[-1].outcome == "open"
        for partition in range(PARTITIONS):
            read = world.committed(partition)
            assert read == sorted(set(read)), f"partition {partition}: doubled, or out of order: {read}"
        every = {value for partition in range(PARTITIONS) for value in world.committed(partition)}
        for attempt in self.attempts:
            values = {value for _, value in attempt.records}
            seen = values & every
            if attempt.outcome == "committed":
                assert seen == values, f"lost: {values - seen}"
            else:
                assert not seen, f"{attempt.outcome}, but read: {seen}"
        offsets = [attempt.offset for attempt in self.attempts if attempt.outcome == "committed" and attempt.offset]
        stored = world.coordinator.committed_offsets.get(("input", 0))
        assert stored == (offsets[-1] if offsets else None)
        assert world.accumulator.free_bytes == world.config.buffer_memory


def walk(seed: int, **settings: Any) -> Walk:
    one = Walk(seed, **settings)
    try:
        one.walk()
    except NotInTransaction as error:
        raise AssertionError(f"the walk itself is wrong: {error}") from error
    return one


MODES = {
    "version 1": {"version": 1, "changes_version": False, "timeouts": False},
    "version 2": {"version": 2, "changes_version": False, "timeouts": False},
    "version 1, time-outs": {"version": 1, "changes_version": False, "timeouts": True},
    "version 2, time-outs": {"version": 2, "changes_version": False, "timeouts": True},
    "versions change": {"version": 1, "changes_version": True, "timeouts": True},
}


@pytest.mark.parametrize("mode", MODES)
def test_what_is_read_committed_was_committed_and_whole(mode: str) -> None:
    committed = 0
    for seed in range(20):
        try:
            one = walk(seed, **MODES[mode])
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {mode}: {error}") from error
        committed += sum(attempt.outcome == "committed" for attempt in one.attempts)
    assert committed > 50, "walks in which nothing is committed show nothing"


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_the_same_for_many_more_seeds(mode: str) -> None:
    for seed in range(1000, 1100):
        try:
            walk(seed, **MODES[mode])
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {mode}: {error}") from error
