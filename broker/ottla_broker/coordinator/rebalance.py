"""Rebalance: the phases of a classic group's rebalance, and the timers of its members.

The picture is in `classic_group`. Every step that can leave the group without members returns whether it did: then
the step's caller records the group as Empty (`emptied`), for a generation that nobody is in is durable at once.

Timers, by key below the partition: "session" of a member or an id given out, "join" and "sync" of the phases.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ottla_broker.coordinator.classic_group import ClassicGroup, GroupState, InitialDelay, Member
from ottla_broker.coordinator.decision import Decision, Outbox, Verb
from ottla_broker.coordinator.group_config import GroupConfig
from ottla_broker.coordinator.records import group_metadata_record
from ottla_broker.coordinator.timers import Timers
from ottla_wire.errors import KafkaError, RebalanceInProgress, UnknownMemberId
from ottla_wire.messages.join_group import JoinGroupResponse
from ottla_wire.messages.sync_group import SyncGroupResponse

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Rebalance:
    """Moves the groups of one partition through their rebalances.

    Args:
        groups: the partition's groups by id, shared with the shard. Groups appear and disappear by replay only.
    """

    def __init__(
        self,
        partition: int,
        config: GroupConfig,
        groups: dict[str, ClassicGroup],
        *,
        timers: Timers[Verb[Any, Any]],
        outbox: Outbox,
        wall_ms: Callable[[], int],
    ) -> None:
        self._partition = partition
        self._config = config
        self._groups = groups
        self._timers = timers
        self._outbox = outbox
        self._wall_ms = wall_ms

    # steps

    def advance(self, group: ClassicGroup, now_ms: int) -> bool:
        """A member came, changed or left: start a rebalance, or see whether the one under way has all members now."""
        if group.state is GroupState.PREPARING_REBALANCE:
            return self.complete_if_all_joined(group, now_ms)
        return self.prepare(group, now_ms)

    def prepare(self, group: ClassicGroup, now_ms: int) -> bool:
        """Begin the join phase; it may be over at once."""
        if group.state is GroupState.COMPLETING_REBALANCE:
            self._release_syncs(group, RebalanceInProgress(), now_ms)
        self._timers.cancel(self._key(group, "sync"))
        group.pending_syncs.clear()
        first = group.state is GroupState.EMPTY
        group.transition(GroupState.PREPARING_REBALANCE, self._wall_ms())
        if first:
            self._delay_first_rebalance(group, now_ms)
            return False
        if group.all_joined():
            return self._complete(group, now_ms)
        self._schedule(group, "join", now_ms + group.rebalance_timeout_ms, self._join_time_is_over)
        return False

    def complete_if_all_joined(self, group: ClassicGroup, now_ms: int) -> bool:
        """End the join phase if nobody is missing; the first rebalance waits for its delay in any case."""
        if group.state is GroupState.PREPARING_REBALANCE and group.initial_delay is None and group.all_joined():
            return self._complete(group, now_ms)
        return False

    def _complete(self, group: ClassicGroup, now_ms: int) -> bool:
        """End the join phase with those who are there."""
        self._timers.cancel(self._key(group, "join"))
        for member in list(group.members.values()):
            if member.join is None and not member.is_static:
                self.drop(group, member, UnknownMemberId())
        if not group.members:
            return True
        if not group.elect_joined_leader():
            # Only static members are left and none has come back; their sessions or they themselves end this.
            self._schedule(group, "join", now_ms + group.rebalance_timeout_ms, self._join_time_is_over)
            return False
        group.next_generation(self._wall_ms())
        for member in group.members.values():
            if member.join is not None:
                self._outbox.complete(member.join, joined(group, member.member_id))
                member.join = None
            member.is_new = False
            self.renew_session(group, member, now_ms)
        self._schedule(group, "sync", now_ms + group.rebalance_timeout_ms, self._sync_time_is_over)
        logger.info("group %s: generation %s with %s members", group.group_id, group.generation, len(group.members))
        return False

    def emptied(self, group: ClassicGroup, response: T) -> Decision[T]:
        """The decision that records a group as Empty, after a step said that nobody is left."""
        value = group.empty_value(group.generation + 1, self._wall_ms())
        return Decision(
            response,
            [group_metadata_record(group.group_id, value)],
            # If it cannot be recorded a successor finds the members of the old generation and times them out; so
            # this group is Empty all the same.
            refused=lambda _error, _now_ms: group.adopt(value),
        )

    # sync phase

    def synced(self, group: ClassicGroup, member: Member) -> None:
        """A member of this generation has sent SyncGroup."""
        group.pending_syncs.discard(member.member_id)
        if not group.pending_syncs:
            self._timers.cancel(self._key(group, "sync"))

    def stabilize(self, group: ClassicGroup, generation: int, now_ms: int) -> None:
        """The leader's assignment is committed: tell everybody, unless another rebalance has begun meanwhile."""
        if group.state is not GroupState.COMPLETING_REBALANCE or group.generation != generation:
            return
        group.transition(GroupState.STABLE, self._wall_ms())
        for member in group.members.values():
            if member.sync is not None:
                self._outbox.complete(member.sync, assigned(group, member))
                member.sync = None
                # While it waited its session was not looked at.
                self.renew_session(group, member, now_ms)

    def give_up(self, group: ClassicGroup, generation: int, error: KafkaError, now_ms: int) -> None:
        """The leader's assignment could not be made durable: all get the error and have to join again."""
        if group.state is not GroupState.COMPLETING_REBALANCE or group.generation != generation:
            return
        self._release_syncs(group, error, now_ms)
        emptied = self.prepare(group, now_ms)
        assert not emptied, "a group in its sync phase has members"

    def _release_syncs(self, group: ClassicGroup, error: KafkaError, now_ms: int) -> None:
        for member in group.members.values():
            member.assignment = b""
            if member.sync is not None:
                self._outbox.fail(member.sync, error)
                member.sync = None
                self.renew_session(group, member, now_ms)

    # members

    def renew_session(self, group: ClassicGroup, member: Member, now_ms: int) -> None:
        """A sign of life: its session starts anew."""
        self.expect(group, member.member_id, now_ms + member.session_timeout_ms)

    def expect(self, group: ClassicGroup, member_id: str, at_ms: int) -> None:
        """A sign of life of this member, or of the id given out, must come before `at_ms`."""
        self._schedule(group, "session", at_ms, partial(self._session_is_over, member_id), member_id)

    def drop(self, group: ClassicGroup, member: Member, error: KafkaError) -> None:
        """A member is gone: end its session, answer what it has parked. The rebalance is the caller's business."""
        self.end_session(group, member.member_id)
        self.fail_parked(member, error)
        group.remove(member.member_id)

    def end_session(self, group: ClassicGroup, member_id: str) -> None:
        """No sign of life is expected any more."""
        self._timers.cancel(self._key(group, "session", member_id))

    def fail_parked(self, member: Member, error: KafkaError) -> None:
        """Answer a member's parked requests."""
        if member.join is not None:
            self._outbox.fail(member.join, error)
            member.join = None
        if member.sync is not None:
            self._outbox.fail(member.sync, error)
            member.sync = None

    # leadership of the partition

    def loaded(self, now_ms: int) -> None:
        """Give every member a fresh session, and let groups that are too large now shrink."""
        for group in self._groups.values():
            for member in group.members.values():
                self.renew_session(group, member, now_ms)
            if len(group.members) > self._config.group_max_size:
                emptied = self.prepare(group, now_ms)
                assert not emptied, "nobody has joined yet, so nobody was dropped"

    def unloaded(self, error: KafkaError) -> None:
        """Another broker coordinates these groups now."""
        for group in self._groups.values():
            for member in group.members.values():
                self.fail_parked(member, error)
            group.transition(GroupState.DEAD, None)

    def forget(self, group: ClassicGroup) -> None:
        """A group was deleted: its timers go with it."""
        for member_id in (*group.members, *group.pending_joins):
            self.end_session(group, member_id)
        self._timers.cancel(self._key(group, "join"))
        self._timers.cancel(self._key(group, "sync"))
        group.transition(GroupState.DEAD, None)

    # timers

    def _delay_first_rebalance(self, group: ClassicGroup, now_ms: int) -> None:
        delay_ms = self._config.group_initial_rebalance_delay_ms
        group.initial_delay = InitialDelay(delay_ms, max(group.rebalance_timeout_ms - delay_ms, 0))
        self._schedule(group, "join", now_ms + delay_ms, self._initial_delay_is_over)

    def _initial_delay_is_over(self, group: ClassicGroup, now_ms: int) -> bool:
        delay = group.initial_delay
        assert delay is not None
        if not delay.member_came or delay.remaining_ms == 0:
            return self._complete(group, now_ms)
        next_ms = min(self._config.group_initial_rebalance_delay_ms, delay.remaining_ms)
        group.initial_delay = InitialDelay(next_ms, max(delay.remaining_ms - delay.delay_ms, 0))
        self._schedule(group, "join", now_ms + next_ms, self._initial_delay_is_over)
        return False

    def _join_time_is_over(self, group: ClassicGroup, now_ms: int) -> bool:
        return self._complete(group, now_ms)

    def _sync_time_is_over(self, group: ClassicGroup, now_ms: int) -> bool:
        if not group.pending_syncs:
            return False  # the one that was missing is a static member whose place was taken over meanwhile
        for member_id in list(group.pending_syncs):
            self.drop(group, group.members[member_id], UnknownMemberId())
        return self.prepare(group, now_ms)

    def _session_is_over(self, member_id: str, group: ClassicGroup, now_ms: int) -> bool:
        member = group.members.get(member_id)
        if member is None:
            group.pending_joins.discard(member_id)
            return self.complete_if_all_joined(group, now_ms)
        if member.is_waiting:
            return False  # its answer starts a new session
        logger.info("group %s: member %s gave no sign of life", group.group_id, member_id)
        self.drop(group, member, UnknownMemberId())
        return self.advance(group, now_ms)

    def _schedule(
        self,
        group: ClassicGroup,
        kind: str,
        at_ms: int,
        step: Callable[[ClassicGroup, int], bool],
        member_id: str = "",
    ) -> None:
        def verb(_shard: object, now_ms: int) -> Decision[None]:
            emptied = step(group, now_ms)
            return self.emptied(group, None) if emptied else Decision(None)

        self._timers.schedule(self._key(group, kind, member_id), at_ms, verb)

    def _key(self, group: ClassicGroup, kind: str, member_id: str = "") -> tuple[int, str, str, str]:
        return (self._partition, group.group_id, kind, member_id)


def joined(group: ClassicGroup, member_id: str) -> JoinGroupResponse:
    """The answer that the join phase is over; the leader's tells it whom to assign to."""
    return JoinGroupResponse(
        generation_id=group.generation,
        protocol_type=group.protocol_type,
        protocol_name=group.protocol_name,
        leader=group.leader or "",
        member_id=member_id,
        members=group.described_members() if group.leader == member_id else [],
    )


def assigned(group: ClassicGroup, member: Member) -> SyncGroupResponse:
    """The answer with a member's share."""
    return SyncGroupResponse(
        protocol_type=group.protocol_type, protocol_name=group.protocol_name, assignment=member.assignment
    )
