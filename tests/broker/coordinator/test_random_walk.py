"""Members that do anything in any order, time, failures and takeovers; what must always hold is checked after each.

The walk knows what members know: the ids, generations and offsets they were told. Invariants:

- one generation: it never falls, and all members that were told a share of a generation were told by one leader's
  assignment, each partition-to-be to one member only;
- members are consistent: leader, static names and pending sets refer to members, nobody is parked in a wrong state;
- each request is answered exactly once (a Pending refuses a second answer) and, when time goes on, at all;
- what was told is durable: an acknowledged offset is read back (or a later one), by the next coordinator too;
- a takeover is a replay: a Stable or Empty group is the same afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ottla_broker.coordinator.classic_group import ClassicGroup, GroupState
from ottla_broker.pending import Pending
from ottla_wire.errors import KafkaStorageError
from support.groups import Groups, code_of, error_name

ACTORS = st.integers(0, 3)
INSTANCES = (None, None, "one", "two")  # actors 2 and 3 are static members
OFFERS = ({"range": b"1"}, {"range": b"2", "sticky": b"1"}, {"sticky": b"2", "range": b"3"})
REBALANCE_MS, SESSION_MS = 20_000, 10_000


@dataclass
class Actor:
    """What a member knows of itself."""

    instance: str | None
    member_id: str = ""
    generation: int = -1
    leads: tuple[str, ...] = ()
    waiting: Pending[Any] | None = None


class Walk(RuleBasedStateMachine):
    """Four members of one group."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = Groups(group_initial_rebalance_delay_ms=2_000, group_max_size=3)
        self.actors = [Actor(instance) for instance in INSTANCES]
        self.asked: list[tuple[int, Pending[Any]]] = []
        self.generation = 0
        self.told: dict[int, dict[bytes, str]] = {}
        self.sent = 0  # offsets grow
        self.acknowledged = -1
        self.may_be_unrecorded = False

    # what members do

    @rule(actor=ACTORS, offer=st.sampled_from(OFFERS), version=st.sampled_from([3, 8, 9]))
    def join(self, actor: int, offer: dict[str, bytes], version: int) -> None:
        who = self.actors[actor]
        if version < 5 and who.instance is not None:
            version = 9
        answer = self.groups.join(
            who.member_id,
            instance=who.instance,
            protocols=offer,
            version=version,
            session_ms=SESSION_MS,
            rebalance_ms=REBALANCE_MS,
        )
        self._ask(answer)
        who.waiting = answer
        answer.on_done(lambda done: self._joined(who, done.result()))

    @rule(actor=ACTORS)
    def restart(self, actor: int) -> None:
        self.actors[actor].member_id = ""

    @rule(actors=st.permutations(range(4)))
    def three_join(self, actors: list[int]) -> None:
        for actor in actors[:3]:
            for _ in range(2):  # a second time with the id that the first one gave
                who = self.actors[actor]
                if who.waiting is None or who.waiting.done():
                    self.join(actor, OFFERS[actor % 3], 9)

    @rule(order=st.permutations(range(4)))
    def all_sync(self, order: list[int]) -> None:
        group = self.groups.group()
        for actor in order:
            if group is not None and self.actors[actor].member_id in group.members:
                self.sync(actor)

    @rule(actor=ACTORS)
    def sync(self, actor: int) -> None:
        who = self.actors[actor]
        shares = {member_id: f"{who.generation}/{member_id}".encode() for member_id in who.leads}
        generation, member_id = who.generation, who.member_id
        answer = self.groups.sync(member_id, generation, shares, instance=who.instance, version=3)
        self._ask(answer)
        answer.on_done(lambda done: self._synced(generation, member_id, done.result()))

    @rule(actor=ACTORS)
    def heartbeat(self, actor: int) -> None:
        who = self.actors[actor]
        self._ask(self.groups.heartbeat(who.member_id, who.generation, instance=who.instance))

    @rule(actor=ACTORS)
    def leave(self, actor: int) -> None:
        who = self.actors[actor]
        self._ask(self.groups.leave(who.member_id, instance=who.instance))

    @rule(actor=ACTORS, settle=st.booleans())
    def commit(self, actor: int, settle: bool) -> None:
        who = self.actors[actor]
        self._commit(who.member_id, who.generation, who.instance, settle=settle)

    @rule()
    def commit_from_outside(self) -> None:
        self._commit("", -1, None, settle=True)

    @rule(stable=st.booleans())
    def fetch(self, stable: bool) -> None:
        floor = self.acknowledged
        answer = self.groups.fetch(stable=stable)
        self._ask(answer)

        def check(done: Pending[Any]) -> None:
            response = done.result()
            if not response.error_code:
                assert floor <= response.committed_offset <= self.sent

        answer.on_done(check)

    # what happens to them

    @rule(milliseconds=st.sampled_from([0, 0, 1_999, 2_000, 2_000, 5_000, 9_999, 10_000, 20_000]))
    def time_goes_by(self, milliseconds: int) -> None:
        self.groups.advance(milliseconds)

    @rule(replicating=st.sampled_from([True, True, False]))
    def followers(self, replicating: bool) -> None:
        self.groups.log.replicating = replicating
        if replicating:
            self.groups.replicate()

    @rule(works=st.sampled_from([True, True, False]))
    def disk(self, works: bool) -> None:
        self.groups.log.failure = None if works else KafkaStorageError()

    @rule()
    def another_broker_takes_over(self) -> None:
        self.followers(True)
        self.groups.log.failure = None
        self.groups.coordinator.settle(self.groups.now_ms)
        before = durable(self.groups.group())
        self.groups.coordinator.unload(self.groups.partition())
        assert all(pending.done() for _, pending in self.asked), "unloading answers everybody"
        self.groups.restart()
        after = self.groups.group()
        self.generation = 0 if after is None else after.generation
        if before is not None and not self.may_be_unrecorded:
            assert durable(after) == before
        self.may_be_unrecorded = False
        if after is not None:
            assert after.state in (GroupState.EMPTY, GroupState.STABLE)
        assert self.groups.committed() >= self.acknowledged

    # what must hold

    @invariant()
    def members_are_consistent(self) -> None:
        group = self.groups.group()
        if group is not None:
            check(group)

    @invariant()
    def the_generation_does_not_fall(self) -> None:
        group = self.groups.group()
        if group is not None:
            assert group.generation >= self.generation
            self.generation = group.generation

    @invariant()
    def a_group_may_become_empty_without_a_record(self) -> None:
        # If the disk fails at that moment; the next assignment that is recorded mends it.
        group = self.groups.group()
        if group is not None and group.state is GroupState.EMPTY and self.groups.log.failure is not None:
            self.may_be_unrecorded = True
        elif group is not None and group.state is GroupState.STABLE:
            self.may_be_unrecorded = False

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        # All time-outs together: initial delay, join, sync, write; a static member's session may come on top.
        longest = 300_000 + 2 * REBALANCE_MS + SESSION_MS + 5_000
        self.asked = [(since, pending) for since, pending in self.asked if not pending.done()]
        assert all(self.groups.now_ms - since <= longest for since, _ in self.asked)

    def teardown(self) -> None:
        self.groups.log.failure = None
        self.groups.log.replicating = True
        self.groups.advance(400_000)
        assert all(pending.done() for _, pending in self.asked)
        group = self.groups.group()
        assert group is None or group.state is GroupState.EMPTY
        self.another_broker_takes_over()

    # bookkeeping

    def _ask(self, answer: Pending[Any]) -> None:
        self.asked.append((self.groups.now_ms, answer))

    def _joined(self, who: Actor, response: Any) -> None:
        name = error_name(response.error_code)
        if name == "MemberIdRequired":
            who.member_id = response.member_id
        elif name == "":
            who.member_id, who.generation = response.member_id, response.generation_id
            leads = response.leader == response.member_id and not response.skip_assignment
            who.leads = tuple(member.member_id for member in response.members) if leads else ()
            assert response.protocol_name in ("range", "sticky")
        elif name in ("UnknownMemberId", "FencedInstanceId", "GroupMaxSizeReached"):
            who.member_id = ""

    def _synced(self, generation: int, member_id: str, response: Any) -> None:
        if response.error_code or not response.assignment:
            return
        assert response.assignment.split(b"/", 1)[0] == str(generation).encode(), "a share of another generation"
        owner = self.told.setdefault(generation, {}).setdefault(response.assignment, member_id)
        # A static member's successor is told the share of its predecessor; otherwise a share has one owner.
        assert owner == member_id or member_id.startswith(("one-", "two-"))

    def _commit(self, member_id: str, generation: int, instance: str | None, *, settle: bool) -> None:
        self.sent += 1
        offset = self.sent
        answer = self.groups.commit(offset, member_id, generation, instance=instance, settle=settle)
        self._ask(answer)

        def acknowledge(done: Pending[Any]) -> None:
            if not code_of(done.result()):
                self.acknowledged = max(self.acknowledged, offset)

        answer.on_done(acknowledge)


def durable(group: ClassicGroup | None) -> Any:
    """What a takeover must find again; None if the group is in a rebalance, which is not durable."""
    if group is None or group.state not in (GroupState.EMPTY, GroupState.STABLE):
        return None
    return (
        group.state,
        group.generation,
        group.protocol_type,
        group.protocol_name,
        group.leader,
        group.static_members,
        {
            member.member_id: (member.assignment, member.protocols[group.protocol_name or ""], member.instance_id)
            for member in group.members.values()
        },
    )


def check(group: ClassicGroup) -> None:
    """The members of a group and what is said about them fit together."""
    members = group.members
    assert all(member.member_id == key for key, member in members.items())
    assert (group.leader in members) == bool(members)
    assert group.static_members == {m.instance_id: m.member_id for m in members.values() if m.instance_id is not None}
    assert group.pending_syncs <= set(members)
    assert not group.pending_joins & set(members)
    assert len(members) <= 3 or group.state is GroupState.PREPARING_REBALANCE
    assert bool(members) or group.state in (GroupState.EMPTY, GroupState.PREPARING_REBALANCE)
    for name in {name for member in members.values() for name in member.protocols}:
        assert group._support[name] == sum(name in member.protocols for member in members.values())
    assert all(count >= 0 for count in group._support.values())
    for member in members.values():
        assert member.join is None or (group.state is GroupState.PREPARING_REBALANCE and not member.join.done())
        assert member.sync is None or (group.state is GroupState.COMPLETING_REBALANCE and not member.sync.done())
    if group.state in (GroupState.COMPLETING_REBALANCE, GroupState.STABLE):
        assert all(group.protocol_name in member.protocols for member in members.values())


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=25, stateful_step_count=50)
