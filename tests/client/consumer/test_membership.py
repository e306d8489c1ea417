from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottla.client.consumer.membership import (
    ForgetCoordinator,
    Generation,
    GroupMember,
    Membership,
    MemberState,
    SendHeartbeat,
    SendJoin,
    SendLeave,
    SendSync,
)
from ottla.errors import (
    CoordinatorLoadInProgress,
    FencedInstanceId,
    GroupAuthorizationFailed,
    IllegalGeneration,
    KafkaError,
    NetworkError,
    NotCoordinator,
    RebalanceInProgress,
    UnknownMemberId,
)

SESSION, HEARTBEAT, MAX_POLL = 45_000, 3_000, 300_000
MEMBERS = [GroupMember("me", None, b""), GroupMember("you", None, b"")]


def membership(instance: str | None = None) -> Membership:
    return Membership(
        group_instance_id=instance,
        session_timeout_ms=SESSION,
        heartbeat_interval_ms=HEARTBEAT,
        max_poll_interval_ms=MAX_POLL,
        retry_backoff_ms=100,
        retry_backoff_max_ms=1_000,
        rng=random.Random(1),
    )


def join(machine: Membership, now_ms: int = 0, *, generation: int = 1, leader: str = "you") -> Generation:
    """A join from the first request to the assignment."""
    (request,) = machine.begin_join(now_ms)
    assert isinstance(request, SendJoin)
    joined = Generation(generation, "me", "range")
    (sync,) = machine.join_answered(request.attempt, joined, leader, MEMBERS, now_ms)
    assert isinstance(sync, SendSync)
    machine.sync_answered(sync.attempt, b"assignment", now_ms)
    return joined


def stable(now_ms: int = 0, **options: str) -> Membership:
    machine = membership(options.get("instance"))
    join(machine, now_ms)
    machine.take_joined()
    return machine


def test_the_coordinator_gives_a_new_member_its_id_and_it_asks_again_at_once() -> None:
    machine = membership()
    (first,) = machine.begin_join(0)
    assert first.member_id == ""  # type: ignore[union-attr]
    (second,) = machine.member_id_given(first.attempt, "me")  # type: ignore[union-attr]
    assert isinstance(second, SendJoin)
    assert (second.member_id, machine.state) == ("me", MemberState.JOINING)
    assert not machine.generation.is_member


def test_only_the_leader_gets_the_members_to_distribute_among() -> None:
    for leader, expected in (("me", MEMBERS), ("you", None)):
        machine = membership()
        (request,) = machine.begin_join(0)
        (sync,) = machine.join_answered(request.attempt, Generation(1, "me", "range"), leader, MEMBERS, 0)  # type: ignore[union-attr]
        assert sync.members == expected  # type: ignore[union-attr]


def test_a_leader_told_to_skip_the_assignment_sends_none_but_knows_that_it_leads() -> None:
    machine = membership()
    (request,) = machine.begin_join(0)
    (sync,) = machine.join_answered(request.attempt, Generation(1, "me", "range"), "me", None, 0)  # type: ignore[union-attr]
    assert sync.members is None  # type: ignore[union-attr]
    machine.sync_answered(sync.attempt, b"a", 0)  # type: ignore[union-attr]
    joined = machine.take_joined()
    assert joined is not None
    assert joined.is_leader


def test_the_assignment_is_taken_once_and_until_then_there_is_no_other_join() -> None:
    machine = membership()
    join(machine)
    machine.request_rejoin("a reason")
    assert machine.is_rebalancing
    assert not machine.wants_join
    joined = machine.take_joined()
    assert joined is not None
    assert joined.assignment == b"assignment"
    assert machine.take_joined() is None
    assert machine.wants_join


@pytest.mark.parametrize(
    "error", [CoordinatorLoadInProgress(), NotCoordinator(), NetworkError(), RebalanceInProgress()]
)
def test_a_join_that_may_be_repeated_is_repeated_after_a_pause_with_the_same_id(error: KafkaError) -> None:
    machine = membership()
    (request,) = machine.begin_join(0)
    machine.member_id_given(request.attempt, "me")  # type: ignore[union-attr]
    machine.join_failed(request.attempt + 1, error, 1_000)  # type: ignore[union-attr]
    deadline = machine.deadline_ms(None)
    assert deadline is not None
    assert 1_080 <= deadline <= 1_120
    assert machine.tick(deadline - 1, None) == []
    (again,) = machine.tick(deadline, None)
    assert isinstance(again, SendJoin)
    assert again.member_id == "me"
    assert machine.tick(deadline, None) == []


@pytest.mark.parametrize("error", [UnknownMemberId(), IllegalGeneration()])
def test_an_unknown_member_starts_over_and_needs_the_polling_thread_first(error: KafkaError) -> None:
    machine = stable()
    machine.request_rejoin("a reason")
    (request,) = machine.begin_join(0)
    machine.join_failed(request.attempt, error, 0)  # type: ignore[union-attr]
    assert (machine.state, machine.generation) == (MemberState.UNJOINED, Generation())
    assert machine.wants_join
    assert machine.take_failure() is None


def test_a_refused_join_is_raised_once_and_tried_again_with_the_next_poll() -> None:
    machine = membership()
    (request,) = machine.begin_join(0)
    machine.join_failed(request.attempt, GroupAuthorizationFailed(), 0)  # type: ignore[union-attr]
    assert isinstance(machine.take_failure(), GroupAuthorizationFailed)
    assert machine.take_failure() is None
    assert machine.wants_join


def test_a_fenced_instance_stays_out() -> None:
    """Coming back by itself it would fence the other, which would come back, and so on."""
    machine = stable(instance="i1")
    machine.heartbeat_failed(machine.generation, FencedInstanceId(), 10)
    for _ in range(2):
        assert isinstance(machine.take_failure(), FencedInstanceId)
        assert not machine.wants_join
    machine.leave("unsubscribed")
    assert machine.wants_join


def test_a_rebalance_during_the_sync_joins_again_without_the_polling_thread() -> None:
    machine = membership()
    (request,) = machine.begin_join(0)
    (sync,) = machine.join_answered(request.attempt, Generation(1, "me", "range"), "you", MEMBERS, 0)  # type: ignore[union-attr]
    (again,) = machine.sync_failed(sync.attempt, RebalanceInProgress(), 5)  # type: ignore[union-attr]
    assert isinstance(again, SendJoin)
    assert (again.member_id, machine.state) == ("me", MemberState.JOINING)


def test_a_coordinator_lost_during_the_sync_means_joining_again() -> None:
    machine = membership()
    (request,) = machine.begin_join(0)
    (sync,) = machine.join_answered(request.attempt, Generation(1, "me", "range"), "you", MEMBERS, 0)  # type: ignore[union-attr]
    assert machine.sync_failed(sync.attempt, NotCoordinator(), 5) == []  # type: ignore[union-attr]
    assert machine.state is MemberState.JOINING
    (again,) = machine.tick(machine.deadline_ms(None) or 0, None)
    assert isinstance(again, SendJoin)


def test_answers_to_questions_of_the_past_are_ignored() -> None:
    machine = membership()
    (request,) = machine.begin_join(0)
    machine.leave("unsubscribed")
    assert machine.join_answered(request.attempt, Generation(1, "me", "range"), "me", MEMBERS, 0) == []  # type: ignore[union-attr]
    assert machine.state is MemberState.UNJOINED
    old = join(machine, 10)
    machine.take_joined()
    machine.leave("unsubscribed")
    join(machine, 20, generation=2)
    machine.heartbeat_failed(old, UnknownMemberId(), 30)
    machine.lose(old, "a commit of before")
    assert machine.generation.id == 2


def test_heartbeats_are_sent_one_at_a_time_at_their_interval() -> None:
    machine = stable(1_000)
    assert machine.deadline_ms(None) == 1_000 + HEARTBEAT
    assert machine.tick(1_000 + HEARTBEAT - 1, None) == []
    (beat,) = machine.tick(1_000 + HEARTBEAT, None)
    assert beat == SendHeartbeat(machine.generation)
    assert machine.tick(1_000 + 2 * HEARTBEAT, None) == []
    machine.heartbeat_answered(machine.generation, 1_000 + 2 * HEARTBEAT)
    (beat,) = machine.tick(1_000 + 2 * HEARTBEAT, None)
    assert isinstance(beat, SendHeartbeat)


def test_heartbeats_are_sent_while_the_leader_thinks() -> None:
    machine = membership()
    (request,) = machine.begin_join(0)
    machine.join_answered(request.attempt, Generation(1, "me", "range"), "you", MEMBERS, 0)  # type: ignore[union-attr]
    assert machine.tick(HEARTBEAT, None) == [SendHeartbeat(machine.generation)]


def test_a_rebalance_of_the_group_asks_a_stable_member_to_rejoin_and_lets_a_syncing_one_go_on() -> None:
    machine = stable()
    machine.heartbeat_failed(machine.generation, RebalanceInProgress(), 10)
    assert machine.wants_join
    assert machine.generation.is_member
    syncing = membership()
    (request,) = syncing.begin_join(0)
    (sync,) = syncing.join_answered(request.attempt, Generation(1, "me", "range"), "you", MEMBERS, 0)  # type: ignore[union-attr]
    syncing.heartbeat_failed(syncing.generation, RebalanceInProgress(), 10)
    syncing.sync_answered(sync.attempt, b"a", 20)  # type: ignore[union-attr]
    syncing.take_joined()
    assert not syncing.wants_join


def test_a_lost_heartbeat_is_repeated_after_a_pause() -> None:
    machine = stable()
    machine.tick(HEARTBEAT, None)
    machine.heartbeat_failed(machine.generation, NetworkError(), HEARTBEAT)
    deadline = machine.deadline_ms(None)
    assert deadline is not None
    assert HEARTBEAT + 80 <= deadline <= HEARTBEAT + 120
    assert machine.tick(deadline, None) == [SendHeartbeat(machine.generation)]


def test_a_session_without_an_answer_has_the_coordinator_looked_up_again() -> None:
    machine = stable()
    machine.tick(HEARTBEAT, None)
    assert ForgetCoordinator() in machine.tick(SESSION, None)


def test_a_member_that_is_not_polled_leaves_and_what_it_owned_is_lost() -> None:
    machine = stable()
    assert machine.deadline_ms(100) == HEARTBEAT
    machine.tick(HEARTBEAT, 100)
    machine.heartbeat_answered(machine.generation, MAX_POLL)
    (leave,) = machine.tick(100 + MAX_POLL, 100)
    assert isinstance(leave, SendLeave)
    assert (leave.member_id, machine.generation) == ("me", Generation())
    assert machine.wants_join
    assert machine.tick(100 + 2 * MAX_POLL, 100) == []


def test_a_member_inside_poll_is_not_overdue_however_long_it_waits() -> None:
    machine = stable()
    effects = machine.tick(10 * MAX_POLL, None)
    assert not any(isinstance(effect, SendLeave) for effect in effects)
    assert machine.generation.is_member


def test_a_static_member_falls_silent_in_place_of_leaving() -> None:
    machine = stable(instance="i1")
    assert machine.tick(MAX_POLL, 0) == []
    assert not machine.generation.is_member
    machine = stable(instance="i1")
    assert machine.leave("closed") == []


def test_a_member_leaves_under_its_id_even_before_its_first_generation() -> None:
    machine = membership()
    (request,) = machine.begin_join(0)
    machine.member_id_given(request.attempt, "me")  # type: ignore[union-attr]
    assert machine.leave("closed") == [SendLeave("me", "closed")]
    assert membership().leave("closed") == []


def test_there_is_no_generation_to_commit_with_while_joining() -> None:
    machine = stable()
    assert machine.stable_generation == machine.generation
    machine.request_rejoin("a reason")
    assert machine.stable_generation == machine.generation, "until the join has begun"
    machine.begin_join(0)
    assert machine.stable_generation is None


def test_losing_the_membership_drops_an_assignment_that_was_not_taken_yet() -> None:
    machine = membership()
    join(machine)
    machine.heartbeat_failed(machine.generation, IllegalGeneration(), 5)
    assert machine.take_joined() is None
    assert machine.wants_join


# --- against random answers, losses and delays

ERRORS = [
    NetworkError,
    NotCoordinator,
    UnknownMemberId,
    IllegalGeneration,
    RebalanceInProgress,
    GroupAuthorizationFailed,
]
steps = st.lists(
    st.tuples(
        st.sampled_from(["answer", "answer", "fail", "tick", "poll", "poll", "rejoin", "stale"]),
        st.integers(0, 5),
        st.integers(0, 4_000),
    ),
    max_size=80,
)


class Exchange:
    """A member, and the questions of its that are under way."""

    def __init__(self) -> None:
        self.machine = membership()
        self.now = 0
        self.generation = 0
        self.open: list[Any] = []
        self.past: list[Any] = []

    def ask(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, SendJoin | SendSync):
                # a new question makes older ones void
                self.past += [it for it in self.open if isinstance(it, SendJoin | SendSync)]
                self.open = [it for it in self.open if not isinstance(it, SendJoin | SendSync)]
            self.open.append(effect)

    def answered(self, question: Any) -> list[Any]:
        machine = self.machine
        match question:
            case SendJoin():
                self.generation += 1
                joined = Generation(self.generation, "me", "range")
                return machine.join_answered(question.attempt, joined, "me", MEMBERS, self.now)
            case SendSync():
                return machine.sync_answered(question.attempt, b"a", self.now)
            case SendHeartbeat():
                machine.heartbeat_answered(question.generation, self.now)
        return []

    def failed(self, question: Any, error: KafkaError) -> list[Any]:
        machine = self.machine
        match question:
            case SendJoin():
                return machine.join_failed(question.attempt, error, self.now)
            case SendSync():
                return machine.sync_failed(question.attempt, error, self.now)
            case SendHeartbeat():
                machine.heartbeat_failed(question.generation, error, self.now)
        return []

    def poll(self) -> None:
        self.machine.take_failure()
        self.machine.take_joined()
        if self.machine.wants_join:
            self.ask(self.machine.begin_join(self.now))

    def step(self, action: str, choice: int) -> None:
        if action in ("answer", "fail") and self.open:
            question = self.open.pop(choice % len(self.open))
            self.ask(self.failed(question, ERRORS[choice]()) if action == "fail" else self.answered(question))
        elif action == "stale" and self.past:
            before = (self.machine.state, self.machine.generation)
            assert self.answered(self.past[choice % len(self.past)]) == []
            assert (self.machine.state, self.machine.generation) == before
        elif action == "tick":
            self.ask(self.machine.tick(self.now, self.now))
        elif action == "poll":
            self.poll()
        elif action == "rejoin":
            self.machine.request_rejoin("a reason")


@given(steps)
def test_whatever_happens_old_answers_change_nothing_and_there_is_a_way_on(
    schedule: list[tuple[str, int, int]],
) -> None:
    exchange = Exchange()
    for action, choice, delay in schedule:
        exchange.now += delay
        exchange.step(action, choice)
    # from wherever that led, a coordinator that answers and an application that polls make it a member
    for _ in range(12):
        exchange.now += 2_000
        exchange.poll()
        exchange.step("tick", 0)
        while exchange.open:
            exchange.ask(exchange.answered(exchange.open.pop(0)))
    assert exchange.machine.state is MemberState.STABLE
    assert exchange.machine.generation == Generation(exchange.generation, "me", "range")
