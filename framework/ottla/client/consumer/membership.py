"""A member of a classic consumer group: when it joins, what its coordinator's answers mean, when it must leave.

Theory of operation. The polling thread owns the partitions: before each join it commits and revokes (`wants_join`,
then `begin_join`), after each it takes the new assignment (`take_joined`). Between the two the exchange with the
coordinator runs by itself, and heartbeats go on whether the application polls or not. What the application does not
do for `max_poll_interval_ms` is to poll; then the member leaves, so that others get its partitions.

    UNJOINED ──begin_join──> JOINING ──answered──> SYNCING ──answered──> STABLE
       ^                      ^ │ ^──────27, lost coordinator──┘            │
       │                      │ └─retriable: again after a pause            │
       │                      └──begin_join (the group rebalances)──────────┤
       └──22, 25, fenced, refused, left, not polled for too long────────────┘   (from every state)

*Losing the membership* (22, 25, poll interval) resets the generation: what was owned is lost, not revoked, and the
polling thread has to tell the application so before it may join again. An attempt number in each join and sync, and
the generation in each heartbeat, let answers to questions of the past be ignored.

Sans-I/O: verbs return effects in the order in which they must happen; `tick` is called at `deadline_ms`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from ottla.client.backoff import Backoff
from ottla_wire.errors import (
    CoordinatorLoadInProgress,
    CoordinatorNotAvailable,
    FencedInstanceId,
    IllegalGeneration,
    KafkaError,
    NotCoordinator,
    RebalanceInProgress,
    Retriable,
    UnknownMemberId,
)

NO_GENERATION = -1


class MemberState(Enum):
    """How far the member is."""

    UNJOINED = auto()
    JOINING = auto()
    SYNCING = auto()
    STABLE = auto()


_TRANSITIONS: dict[MemberState, frozenset[MemberState]] = {
    MemberState.UNJOINED: frozenset({MemberState.JOINING}),
    MemberState.JOINING: frozenset({MemberState.SYNCING, MemberState.UNJOINED}),
    MemberState.SYNCING: frozenset({MemberState.STABLE, MemberState.JOINING, MemberState.UNJOINED}),
    MemberState.STABLE: frozenset({MemberState.JOINING, MemberState.UNJOINED}),
}


class Generation(NamedTuple):
    """Who the member is, and in which generation of the group. The default is nobody."""

    id: int = NO_GENERATION
    member_id: str = ""
    protocol: str = ""

    @property
    def is_member(self) -> bool:
        """False once the membership is lost, or before there was one."""
        return self.id != NO_GENERATION and self.member_id != ""


class GroupMember(NamedTuple):
    """One member as the leader hears of it: its subscription, still encoded."""

    member_id: str
    group_instance_id: str | None
    metadata: bytes | memoryview


@dataclass(frozen=True, slots=True)
class SendJoin:
    """Send JoinGroup with the subscription as it is now; report `join_answered`, `member_id_given` or `join_failed`."""

    attempt: int
    member_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class SendSync:
    """Send SyncGroup, the leader (`members` is not None) with the assignment; report `sync_answered`/`sync_failed`."""

    attempt: int
    generation: Generation
    members: Sequence[GroupMember] | None


@dataclass(frozen=True, slots=True)
class SendHeartbeat:
    """Send Heartbeat; report `heartbeat_answered` or `heartbeat_failed`."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class SendLeave:
    """Send LeaveGroup; whatever comes of it changes nothing here."""

    member_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ForgetCoordinator:
    """No heartbeat was answered for a whole session: ask anew who coordinates the group."""


Effect = SendJoin | SendSync | SendHeartbeat | SendLeave | ForgetCoordinator


@dataclass(frozen=True, slots=True)
class Joined:
    """A join that came to its end: the assignment is the polling thread's to take."""

    generation: Generation
    is_leader: bool
    assignment: bytes | memoryview


class Membership:
    """The machine. Times are milliseconds of one monotonic clock."""

    def __init__(
        self,
        *,
        group_instance_id: str | None,
        session_timeout_ms: int,
        heartbeat_interval_ms: int,
        max_poll_interval_ms: int,
        retry_backoff_ms: int,
        retry_backoff_max_ms: int,
        rng: random.Random,
    ) -> None:
        self._group_instance_id = group_instance_id
        self._session_timeout_ms = session_timeout_ms
        self._heartbeat_interval_ms = heartbeat_interval_ms
        self._max_poll_interval_ms = max_poll_interval_ms
        self._backoff = Backoff(retry_backoff_ms, retry_backoff_max_ms, rng)
        self.state = MemberState.UNJOINED
        self.generation = Generation()
        self.last_generation = Generation()
        """The generation, or the one that was lost last: under which the records were read that are in hand."""
        self.failure: KafkaError | None = None
        """What the next poll has to raise. A fenced instance stays fenced; any other failure is raised once."""
        self._rejoin_reason: str | None = "the first join"
        self._reason = ""
        self._attempt = 0
        self._asking = False
        self._failures = 0
        self._retry_at_ms = 0
        self._is_leader = False
        self._joined: Joined | None = None
        self._heartbeat_at_ms = 0
        self._heartbeat_failures = 0
        self._heartbeat_under_way = False
        self._session_ends_at_ms = 0

    # --- the polling thread's side

    @property
    def wants_join(self) -> bool:
        """True if the polling thread must prepare (commit, revoke) and then call `begin_join`."""
        at_rest = self.state in (MemberState.UNJOINED, MemberState.STABLE)
        return at_rest and self._rejoin_reason is not None and self._joined is None and not self.is_fenced

    @property
    def is_rebalancing(self) -> bool:
        """True while the assignment may be about to change."""
        return self.state in (MemberState.JOINING, MemberState.SYNCING) or self._joined is not None

    @property
    def is_fenced(self) -> bool:
        """True if another consumer has taken over the static membership."""
        return isinstance(self.failure, FencedInstanceId)

    @property
    def stable_generation(self) -> Generation | None:
        """The generation to commit with; None while there is none that will last."""
        return self.generation if self.state is MemberState.STABLE and self.generation.is_member else None

    def request_rejoin(self, reason: str) -> None:
        """Join again as soon as the polling thread is ready; the reason is told to the coordinator (KIP-800)."""
        self._rejoin_reason = reason

    def begin_join(self, now_ms: int) -> list[Effect]:
        """The polling thread is prepared."""
        assert self.wants_join, "a join needs a reason, and the polling thread's preparation"
        self._reason, self._rejoin_reason = self._rejoin_reason or "", None
        self._enter(MemberState.JOINING)
        self._failures = 0
        return self._ask_to_join()

    def take_joined(self) -> Joined | None:
        """The assignment that came, once."""
        joined, self._joined = self._joined, None
        return joined

    def take_failure(self) -> KafkaError | None:
        """What poll has to raise now."""
        failure = self.failure
        if not self.is_fenced:
            self.failure = None
        return failure

    def leave(self, reason: str) -> list[Effect]:
        """Give the membership up. Static members just fall silent: their partitions wait for their return."""
        member_id = self.generation.member_id
        self._reset()
        self.failure = None
        self._rejoin_reason = "joining after having left"
        if not member_id or self._group_instance_id is not None:
            return []
        return [SendLeave(member_id, reason)]

    def lose(self, generation: Generation, reason: str) -> None:
        """An answer elsewhere (a commit's) says that the membership in `generation` is no more."""
        if generation == self.generation:
            self._lose(reason)

    # --- join and sync

    def join_answered(
        self, attempt: int, generation: Generation, leader: str, members: Sequence[GroupMember] | None, now_ms: int
    ) -> list[Effect]:
        """JoinGroup succeeded. `members` is what a leader has to distribute among; None if it need not (KIP-814)."""
        if attempt != self._attempt:
            return []
        self._enter(MemberState.SYNCING)
        self.generation = self.last_generation = generation
        self._is_leader = leader == generation.member_id
        self._start_session(now_ms)
        return [SendSync(attempt, generation, members if self._is_leader else None)]

    def member_id_given(self, attempt: int, member_id: str) -> list[Effect]:
        """The coordinator wants members to come back with the id it gives them (KIP-394)."""
        if attempt != self._attempt:
            return []
        self.generation = Generation(member_id=member_id)
        return self._ask_to_join()

    def join_failed(self, attempt: int, error: KafkaError, now_ms: int) -> list[Effect]:
        """JoinGroup was refused or got lost."""
        if attempt == self._attempt:
            self._exchange_failed(error, now_ms)
        return []

    def sync_answered(self, attempt: int, assignment: bytes | memoryview, now_ms: int) -> list[Effect]:
        """SyncGroup succeeded: the member is in, the polling thread has an assignment to take."""
        if attempt != self._attempt:
            return []
        self._enter(MemberState.STABLE)
        self._asking = False
        self._joined = Joined(self.generation, self._is_leader, assignment)
        return []

    def sync_failed(self, attempt: int, error: KafkaError, now_ms: int) -> list[Effect]:
        """SyncGroup was refused or got lost: there is no assignment of this generation, join anew."""
        if attempt != self._attempt:
            return []
        if isinstance(error, RebalanceInProgress):
            # the group moved on while the leader was thinking; what was prepared for this join holds for the next
            self._enter(MemberState.JOINING)
            return self._ask_to_join()
        self._exchange_failed(error, now_ms)
        return []

    def _ask_to_join(self) -> list[Effect]:
        self._attempt += 1
        self._asking = True
        return [SendJoin(self._attempt, self.generation.member_id, self._reason)]

    def _exchange_failed(self, error: KafkaError, now_ms: int) -> None:
        self._asking = False
        if isinstance(error, UnknownMemberId | IllegalGeneration):
            self._lose(f"the coordinator does not know the member ({type(error).__name__})")
        elif isinstance(error, Retriable | RebalanceInProgress):
            if self.state is MemberState.SYNCING:
                self._enter(MemberState.JOINING)
            self._attempt += 1
            self._failures += 1
            self._retry_at_ms = now_ms + self._backoff.pause_ms(self._failures)
        else:
            self._fail(error)

    # --- heartbeats

    def heartbeat_answered(self, generation: Generation, now_ms: int) -> None:
        """The coordinator knows that this member lives."""
        if generation != self.generation:
            return
        self._heartbeat_under_way = False
        self._heartbeat_failures = 0
        self._session_ends_at_ms = now_ms + self._session_timeout_ms

    def heartbeat_failed(self, generation: Generation, error: KafkaError, now_ms: int) -> None:
        """The coordinator has other news, or no answer came."""
        if generation != self.generation:
            return
        self._heartbeat_under_way = False
        if isinstance(error, RebalanceInProgress):
            self.heartbeat_answered(generation, now_ms)
            if self.state is MemberState.STABLE:
                self.request_rejoin("the group is rebalancing")
        elif isinstance(error, UnknownMemberId | IllegalGeneration):
            self._lose(f"the heartbeat was refused ({type(error).__name__})")
        elif isinstance(error, Retriable):
            self._heartbeat_failures += 1
            self._heartbeat_at_ms = now_ms + self._backoff.pause_ms(self._heartbeat_failures)
        else:
            self._fail(error)

    def _start_session(self, now_ms: int) -> None:
        self._heartbeat_under_way = False
        self._heartbeat_failures = 0
        self._heartbeat_at_ms = now_ms + self._heartbeat_interval_ms
        self._session_ends_at_ms = now_ms + self._session_timeout_ms

    # --- time

    def tick(self, now_ms: int, last_poll_ms: int | None) -> list[Effect]:
        """Do what is due. `last_poll_ms` is when the application polled last; None while it is inside poll."""
        if self.state is MemberState.JOINING:
            return [] if self._asking or now_ms < self._retry_at_ms else self._ask_to_join()
        if self.state is MemberState.UNJOINED:
            return []
        if last_poll_ms is not None and now_ms - last_poll_ms >= self._max_poll_interval_ms:
            return self._stop_for_want_of_polls()
        effects: list[Effect] = []
        if now_ms >= self._session_ends_at_ms:
            self._session_ends_at_ms = now_ms + self._session_timeout_ms
            effects.append(ForgetCoordinator())
        if not self._heartbeat_under_way and now_ms >= self._heartbeat_at_ms:
            self._heartbeat_under_way = True
            self._heartbeat_at_ms = now_ms + self._heartbeat_interval_ms
            effects.append(SendHeartbeat(self.generation))
        return effects

    def deadline_ms(self, last_poll_ms: int | None) -> int | None:
        """When `tick` has something to do; None if it waits for answers or for the application only."""
        if self.state is MemberState.JOINING:
            return None if self._asking else self._retry_at_ms
        if self.state is MemberState.UNJOINED:
            return None
        deadline_ms = self._session_ends_at_ms
        if not self._heartbeat_under_way:
            deadline_ms = min(deadline_ms, self._heartbeat_at_ms)
        if last_poll_ms is not None:
            deadline_ms = min(deadline_ms, last_poll_ms + self._max_poll_interval_ms)
        return deadline_ms

    def _stop_for_want_of_polls(self) -> list[Effect]:
        reason = (
            f"poll() was not called for {self._max_poll_interval_ms} ms (max_poll_interval_ms): handling the records "
            "takes too long; raise it, or lower max_poll_records"
        )
        member_id = self.generation.member_id
        self._lose(reason)
        return [] if self._group_instance_id is not None else [SendLeave(member_id, reason)]

    # --- endings

    def _lose(self, reason: str) -> None:
        self._reset()
        self._rejoin_reason = reason

    def _fail(self, error: KafkaError) -> None:
        self.failure = error
        if isinstance(error, FencedInstanceId):
            self._reset()
            return
        if self.state is not MemberState.UNJOINED:
            self._enter(MemberState.UNJOINED)
        self._attempt += 1
        self._asking = False
        self._joined = None
        self._rejoin_reason = f"joining again after {type(error).__name__}"

    def _reset(self) -> None:
        if self.state is not MemberState.UNJOINED:
            self._enter(MemberState.UNJOINED)
        self.generation = Generation()
        self._attempt += 1
        self._asking = False
        self._joined = None
        self._is_leader = False
        self._heartbeat_under_way = False

    def _enter(self, state: MemberState) -> None:
        assert state in _TRANSITIONS[self.state], f"{self.state.name} -> {state.name}"
        self.state = state


COORDINATOR_LOST = (NotCoordinator, CoordinatorNotAvailable)
"""Errors after which the coordinator has to be looked up again."""

COORDINATOR_BUSY = (CoordinatorLoadInProgress,)
"""Errors after which the same coordinator answers soon."""
