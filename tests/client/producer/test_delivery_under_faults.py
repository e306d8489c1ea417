"""A random walk through everything a network and brokers can do to an idempotent producer.

Whatever happens, every record finishes once, what is acknowledged is where the answer says, and no partition holds a
record twice or out of order.
"""

from __future__ import annotations

import random
from typing import ClassVar

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from support.produce_model import Fault, ProducerWorld

STORED_BUT_REFUSED = (7, 6, 20)
NOT_STORED = (6, 19, 56, 7)
REFUSED_FOR_GOOD = (87, 29, 10)


class DeliveryWalk(RuleBasedStateMachine):
    partitions = 2
    nodes = 2
    producer_settings: ClassVar[dict[str, object]] = {}

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        self.world = ProducerWorld(self.partitions, self.nodes, seed, **self.producer_settings)

    @rule(partition=st.sampled_from([0, 0, 1, None]), count=st.integers(1, 12))
    def send(self, partition: int | None, count: int) -> None:
        for _ in range(count):
            self.world.send(partition)
        self.world.run()

    @rule(elapsed_ms=st.sampled_from([1, 10, 100, 500, 2000]))
    def pass_time(self, elapsed_ms: int) -> None:
        self.world.run(elapsed_ms)

    @rule(elapsed_ms=st.sampled_from([20_000, 61_000]))
    def pass_much_time(self, elapsed_ms: int) -> None:
        self.world.run(elapsed_ms)

    @precondition(lambda self: self.world.metadata_wanted)
    @rule()
    def bring_metadata(self) -> None:
        self.world.bring_metadata()
        self.world.run()

    @precondition(lambda self: self.world.asked)
    @rule(error_code=st.sampled_from([0, 0, 0, 14]))
    def bring_producer_id(self, error_code: int) -> None:
        self.world.bring_producer_id(error_code)
        self.world.run()

    @rule(node=st.integers(0, 1), count=st.integers(1, 5))
    def work(self, node: int, count: int) -> None:
        for _ in range(count):
            self.world.work(node)

    @rule(node=st.integers(0, 1), count=st.integers(1, 5))
    def deliver(self, node: int, count: int) -> None:
        for _ in range(count):
            self.world.deliver(node)
        self.world.run()

    @rule(node=st.integers(0, 1), worked_on=st.integers(0, 5))
    def disconnect(self, node: int, worked_on: int) -> None:
        self.world.disconnect(node, worked_on=worked_on)
        self.world.run()

    @rule(partition=st.integers(0, 1))
    def move_leader(self, partition: int) -> None:
        self.world.move_leader(partition)

    @rule(node=st.integers(0, 1))
    def lose_node(self, node: int) -> None:
        self.world.unreachable ^= {node}
        self.world.run()

    @rule(
        fault=st.one_of(
            st.none(),
            st.builds(Fault, st.sampled_from(STORED_BUT_REFUSED), st.just(True)),
            st.builds(Fault, st.sampled_from(NOT_STORED)),
            st.builds(Fault, st.sampled_from(REFUSED_FOR_GOOD)),
            st.builds(Fault, st.just(-1), st.booleans()),
            st.just(Fault(87, guilty=(0, 2))),
        )
    )
    def plan_fault(self, fault: Fault | None) -> None:
        self.world.faults.append(fault)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()
            self.world.check()


class OneInFlightWalk(DeliveryWalk):
    producer_settings: ClassVar = {"max_in_flight_requests_per_connection": 1}


class FewRetriesWalk(DeliveryWalk):
    producer_settings: ClassVar = {"retries": 2}


def sending(world: ProducerWorld, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 12)):
        world.send(rng.choice([0, 0, 1, None]))
    world.run()


def answering(world: ProducerWorld, rng: random.Random) -> None:
    if rng.random() < 0.5:
        if world.metadata_wanted:
            world.bring_metadata()
    elif world.asked:
        world.bring_producer_id(rng.choice([0, 0, 14]))
    world.run()


def working(world: ProducerWorld, rng: random.Random) -> None:
    node = rng.randrange(2)
    for _ in range(rng.randint(1, 5)):
        world.work(node)


def delivering(world: ProducerWorld, rng: random.Random) -> None:
    node = rng.randrange(2)
    for _ in range(rng.randint(1, 5)):
        world.deliver(node)
    world.run()


def breaking(world: ProducerWorld, rng: random.Random) -> None:
    world.disconnect(rng.randrange(2), worked_on=rng.randint(0, 5))
    world.run()


def moving(world: ProducerWorld, rng: random.Random) -> None:
    world.move_leader(rng.randrange(2))


def losing(world: ProducerWorld, rng: random.Random) -> None:
    world.unreachable ^= {rng.randrange(2)}
    world.run()


def waiting(world: ProducerWorld, rng: random.Random) -> None:
    world.run(rng.choice([1, 10, 100, 500, 2000, *([20_000, 61_000] if rng.random() < 0.2 else [])]))


def refusing(world: ProducerWorld, rng: random.Random) -> None:
    world.faults.append(fault(rng))


OFTEN = [sending, answering, working, delivering]
EVENTS = [*OFTEN, *OFTEN, breaking, moving, losing, waiting, refusing]


def fault(rng: random.Random) -> Fault | None:
    return rng.choice(
        [
            None,
            Fault(rng.choice(STORED_BUT_REFUSED), stores=True),
            Fault(rng.choice(NOT_STORED)),
            Fault(rng.choice(REFUSED_FOR_GOOD)),
            Fault(-1, stores=rng.random() < 0.5),
            Fault(87, guilty=(0, 2)),
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"retries": 2}, {"max_in_flight_requests_per_connection": 1}])
def test_hundreds_of_walks_end_well(settings: dict[str, object]) -> None:
    for seed in range(400):
        world = ProducerWorld(2, 2, seed, **settings)
        rng = random.Random(seed)
        for _ in range(60):
            rng.choice(EVENTS)(world, rng)
        world.settle()
        try:
            world.check()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.slow
@pytest.mark.parametrize("machine", [DeliveryWalk, OneInFlightWalk, FewRetriesWalk])
def test_no_record_is_lost_doubled_or_overtaken(machine: type[DeliveryWalk]) -> None:
    machine.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=50)
    machine.TestCase("runTest").runTest()
