"""Membership: JoinGroup, SyncGroup, Heartbeat and LeaveGroup of classic groups.

Theory of operation
===================

`ClassicGroup` says what a group is, `Rebalance` moves it through the phases; this module decides on requests.

- *Join.* A dynamic member without an id gets one and is told to come again with it (MEMBER_ID_REQUIRED, from version
  4 on), so that a client that gave up waiting does not leave a ghost behind. Then its request is parked in its
  `Member`, and the group goes to PreparingRebalance. From Empty, `group.initial.rebalance.delay.ms` gives others a
  chance to come, again and again while they do, at most for the rebalance time-out. Otherwise the phase ends when all
  members have joined and no id is given out and unused, or after the rebalance time-out without those missing (static
  members stay: their absence may be a restart). The generation grows, all are answered.
- *Sync.* Parked until the leader's assignment is appended and replicated; only then the group is Stable. If it cannot
  be appended, all get the error and join again.
- *Heartbeat.* Keeps the session. In CompletingRebalance it is answered without error: the member knows the
  generation, and sending it back to join would start the rebalance over and over.
- *Static members* (KIP-345): a JoinGroup without member id for a known instance id takes its place. If the group is
  Stable and its protocol stays the same, nobody else notices: the new id is recorded, and the answer says to go on.

A verb that returns records has changed nothing that they are meant to change; the others change the members' parked
requests, sessions and metadata at once, for none of that is durable before the next generation's assignment is.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from ottla_broker.coordinator.classic_group import ClassicGroup, GroupState, Member
from ottla_broker.coordinator.decision import Decision, Outbox
from ottla_broker.coordinator.group_config import GroupConfig
from ottla_broker.coordinator.rebalance import Rebalance, assigned, joined
from ottla_broker.coordinator.records import GroupMetadataValue, group_metadata_record
from ottla_broker.pending import Pending
from ottla_wire.errors import (
    FencedInstanceId,
    GroupMaxSizeReached,
    IllegalGeneration,
    InconsistentGroupProtocol,
    KafkaError,
    MemberIdRequired,
    RebalanceInProgress,
    UnknownMemberId,
)
from ottla_wire.messages.heartbeat import HeartbeatRequest, HeartbeatResponse
from ottla_wire.messages.join_group import JoinGroupRequest, JoinGroupResponse, JoinGroupResponseMember
from ottla_wire.messages.leave_group import LeaveGroupRequest, LeaveGroupResponse, MemberIdentity, MemberResponse
from ottla_wire.messages.sync_group import SyncGroupRequest, SyncGroupResponse

if TYPE_CHECKING:
    import random

    from ottla_broker.context import RequestContext

_MEMBER_ID_REQUIRED_SINCE = 4
_SKIP_ASSIGNMENT_SINCE = 9


class _Joiner:
    """A JoinGroup request, and the member it would make."""

    def __init__(self, request: JoinGroupRequest, context: RequestContext) -> None:
        self.request = request
        self.version = context.api_version
        self.client_id = context.client_id or ""
        # Kafka shows hosts as Java prints an address that was not looked up.
        self.client_host = f"/{context.client_host}"
        self.protocols = {protocol.name: bytes(protocol.metadata) for protocol in request.protocols}
        # Version 0 has no rebalance time-out.
        self.rebalance_timeout_ms = request.session_timeout_ms if self.version == 0 else request.rebalance_timeout_ms

    @property
    def must_come_again(self) -> bool:
        """Whether it is to join with an id that it is given first (KIP-394)."""
        return self.version >= _MEMBER_ID_REQUIRED_SINCE and self.request.group_instance_id is None

    def member(self, member_id: str) -> Member:
        return Member(
            member_id=member_id,
            instance_id=self.request.group_instance_id,
            client_id=self.client_id,
            client_host=self.client_host,
            rebalance_timeout_ms=self.rebalance_timeout_ms,
            session_timeout_ms=self.request.session_timeout_ms,
            protocols=self.protocols,
            is_new=True,
        )


class Membership:
    """Decides on the requests of members of the groups of one partition.

    Args:
        groups: the partition's groups by id, shared with the shard. Groups appear and disappear by replay only.
    """

    def __init__(
        self,
        config: GroupConfig,
        groups: dict[str, ClassicGroup],
        rebalance: Rebalance,
        *,
        outbox: Outbox,
        wall_ms: Callable[[], int],
        rng: random.Random,
    ) -> None:
        self._config = config
        self._groups = groups
        self._rebalance = rebalance
        self._outbox = outbox
        self._wall_ms = wall_ms
        self._rng = rng

    # JoinGroup

    def join(self, request: JoinGroupRequest, context: RequestContext, now_ms: int) -> Decision[JoinGroupResponse]:
        """Let a member in, or in again.

        Raises:
            UnknownMemberId, FencedInstanceId, InconsistentGroupProtocol, GroupMaxSizeReached.
        """
        joiner = _Joiner(request, context)
        group = self._groups.get(request.group_id)
        if group is None:
            return self._join_new_group(joiner, now_ms)
        if not group.accepts(request.member_id, self._config.group_max_size):
            self._refuse_for_size(group, request.member_id, now_ms)
        if not group.supports(request.protocol_type, joiner.protocols):
            raise InconsistentGroupProtocol
        if not request.member_id:
            return self._join_without_id(group, joiner, now_ms)
        if request.member_id in group.pending_joins and request.group_instance_id is None:
            return self._park_new(group, joiner, request.member_id, now_ms)
        return self._join_again(group, joiner, now_ms)

    def _join_new_group(self, joiner: _Joiner, now_ms: int) -> Decision[JoinGroupResponse]:
        """The first member creates the group: that is recorded, then it is as with any Empty group."""
        request = joiner.request
        if request.member_id:
            raise UnknownMemberId
        if not request.protocol_type or not joiner.protocols:
            raise InconsistentGroupProtocol
        group_id, member_id = request.group_id, self._new_member_id(joiner)
        records = [group_metadata_record(group_id, ClassicGroup(group_id, None).empty_value(0, self._wall_ms()))]
        if joiner.must_come_again:
            return Decision(
                _come_again(member_id),
                records,
                applied=lambda: self._expect(self._groups[group_id], joiner, member_id, now_ms),
            )
        parked: Pending[JoinGroupResponse] = Pending()
        return Decision(
            parked,
            records,
            applied=lambda: self._add(self._groups[group_id], joiner, member_id, parked, now_ms),
            refused=lambda error, _: self._outbox.fail(parked, error),
        )

    def _join_without_id(self, group: ClassicGroup, joiner: _Joiner, now_ms: int) -> Decision[JoinGroupResponse]:
        member_id = self._new_member_id(joiner)
        instance_id = joiner.request.group_instance_id
        if instance_id is not None and instance_id in group.static_members:
            old = group.members[group.static_members[instance_id]]
            return self._replace(group, old, joiner, member_id, now_ms)
        if joiner.must_come_again:
            self._expect(group, joiner, member_id, now_ms)
            return Decision(_come_again(member_id))
        return self._park_new(group, joiner, member_id, now_ms)

    def _join_again(self, group: ClassicGroup, joiner: _Joiner, now_ms: int) -> Decision[JoinGroupResponse]:
        request = joiner.request
        member = group.member(request.member_id, request.group_instance_id)
        unchanged = list(member.protocols.items()) == list(joiner.protocols.items())
        leads = group.leader == member.member_id
        # The generation's answer may have got lost. A leader that comes again when the group is Stable wants a new
        # assignment although no metadata changed: its topics did.
        if unchanged and (
            group.state is GroupState.COMPLETING_REBALANCE or (group.state is GroupState.STABLE and not leads)
        ):
            return Decision(joined(group, member.member_id))
        parked: Pending[JoinGroupResponse] = Pending()
        self._update(group, member, joiner, parked)
        self._advance_joined(group, now_ms)
        return Decision(parked)

    def _refuse_for_size(self, group: ClassicGroup, member_id: str, now_ms: int) -> None:
        member = group.members.get(member_id)
        if member is not None:
            self._rebalance.drop(group, member, UnknownMemberId())
        group.pending_joins.discard(member_id)
        # Those who were let in need not wait for it any longer.
        emptied = self._rebalance.complete_if_all_joined(group, now_ms)
        assert not emptied, "a group that is full has members"
        raise GroupMaxSizeReached(f"group {group.group_id} has {self._config.group_max_size} members (group.max.size)")

    def _expect(self, group: ClassicGroup, joiner: _Joiner, member_id: str, now_ms: int) -> None:
        """A member id was given out; it must be used within the session time-out."""
        group.pending_joins.add(member_id)
        self._rebalance.expect(group, member_id, now_ms + joiner.request.session_timeout_ms)

    def _park_new(
        self, group: ClassicGroup, joiner: _Joiner, member_id: str, now_ms: int
    ) -> Decision[JoinGroupResponse]:
        parked: Pending[JoinGroupResponse] = Pending()
        self._add(group, joiner, member_id, parked, now_ms)
        return Decision(parked)

    def _add(
        self, group: ClassicGroup, joiner: _Joiner, member_id: str, parked: Pending[JoinGroupResponse], now_ms: int
    ) -> None:
        """Take in a new member and rebalance."""
        member = joiner.member(member_id)
        member.join = parked
        group.add(member, joiner.request.protocol_type)
        if group.initial_delay is not None:
            group.initial_delay.member_came = True
        self._rebalance.expect(group, member_id, now_ms + self._config.group_new_member_join_timeout_ms)
        self._advance_joined(group, now_ms)

    def _update(
        self, group: ClassicGroup, member: Member, joiner: _Joiner, parked: Pending[JoinGroupResponse] | None
    ) -> None:
        group.set_protocols(member, joiner.protocols)
        member.rebalance_timeout_ms = joiner.rebalance_timeout_ms
        member.session_timeout_ms = joiner.request.session_timeout_ms
        if member.join is not None:
            # The client sent it again on a new connection; nobody waits for this one, but it must not be forgotten.
            self._outbox.fail(member.join, RebalanceInProgress("a later JoinGroup of this member took over"))
        member.join = parked

    def _advance_joined(self, group: ClassicGroup, now_ms: int) -> None:
        emptied = self._rebalance.advance(group, now_ms)
        assert not emptied, "a member has just joined"

    def _new_member_id(self, joiner: _Joiner) -> str:
        name = joiner.request.group_instance_id or joiner.client_id
        return f"{name}-{uuid.UUID(int=self._rng.getrandbits(128), version=4)}"

    # static members

    def _replace(
        self, group: ClassicGroup, old: Member, joiner: _Joiner, member_id: str, now_ms: int
    ) -> Decision[JoinGroupResponse]:
        """A static member came back without its id: it gets a new one, and whoever uses the old one is fenced."""
        if group.state is GroupState.STABLE and group.protocol_name == group.select_protocol((old, joiner.protocols)):
            return self._replace_silently(group, old, joiner, member_id, now_ms)
        self._fence(group, old, old.member_id)
        group.rename(old, member_id)
        parked: Pending[JoinGroupResponse] = Pending()
        self._update(group, old, joiner, parked)
        self._rebalance.renew_session(group, old, now_ms)
        self._advance_joined(group, now_ms)
        return Decision(parked)

    def _replace_silently(
        self, group: ClassicGroup, old: Member, joiner: _Joiner, member_id: str, now_ms: int
    ) -> Decision[JoinGroupResponse]:
        """The generation goes on: replaying the record puts the new id in place."""
        old_id, old_leader = old.member_id, group.leader or ""
        value = _with_member_replaced(group, old, joiner, member_id)
        skips = joiner.version >= _SKIP_ASSIGNMENT_SINCE
        leads = old_leader == old_id
        response = JoinGroupResponse(
            generation_id=group.generation,
            protocol_type=group.protocol_type,
            protocol_name=group.protocol_name,
            # Before KIP-814 a client cannot be told to lead without assigning. It is told who led: an id that is not
            # its own any more, so that it takes itself for a follower.
            leader=(value.leader or "") if skips else old_leader,
            skip_assignment=leads and skips,
            member_id=member_id,
            members=_members_of(value) if leads and skips else [],
        )

        def applied() -> None:
            self._fence(group, old, old_id)
            self._update(group, old, joiner, None)
            self._rebalance.renew_session(group, old, now_ms)

        return Decision(response, [group_metadata_record(group.group_id, value)], applied=applied)

    def _fence(self, group: ClassicGroup, old: Member, old_id: str) -> None:
        self._rebalance.end_session(group, old_id)
        self._rebalance.fail_parked(old, FencedInstanceId(f"group.instance.id {old.instance_id} was taken over"))

    # SyncGroup

    def sync(self, request: SyncGroupRequest, now_ms: int) -> Decision[SyncGroupResponse]:
        """Give a member its share, or park it until the leader has assigned.

        Raises:
            UnknownMemberId, FencedInstanceId, IllegalGeneration, InconsistentGroupProtocol, RebalanceInProgress.
        """
        group, member = self._member_of_generation(
            request.group_id, request.member_id, request.group_instance_id, request.generation_id
        )
        if request.protocol_type not in (None, group.protocol_type):
            raise InconsistentGroupProtocol
        if request.protocol_name not in (None, group.protocol_name):
            raise InconsistentGroupProtocol
        if group.state is GroupState.PREPARING_REBALANCE:
            raise RebalanceInProgress
        self._rebalance.synced(group, member)
        if group.state is GroupState.STABLE:
            return Decision(assigned(group, member))
        if member.sync is not None:
            self._outbox.fail(member.sync, RebalanceInProgress("a later SyncGroup of this member took over"))
        parked: Pending[SyncGroupResponse] = Pending()
        member.sync = parked
        if group.leader != member.member_id:
            return Decision(parked)
        return self._assign(group, request, parked)

    def _assign(
        self, group: ClassicGroup, request: SyncGroupRequest, parked: Pending[SyncGroupResponse]
    ) -> Decision[SyncGroupResponse]:
        """The leader has assigned. Members it left out get an empty share, shares of strangers are dropped."""
        assignments = {share.member_id: bytes(share.assignment) for share in request.assignments}
        value = group.record_value(assignments)
        generation = group.generation

        def give_up(error: KafkaError, now_ms: int) -> None:
            self._rebalance.give_up(group, generation, error, now_ms)

        return Decision(
            parked,
            [group_metadata_record(group.group_id, value)],
            refused=give_up,
            committed=lambda now_ms: self._rebalance.stabilize(group, generation, now_ms),
            timed_out=give_up,
        )

    # Heartbeat

    def heartbeat(self, request: HeartbeatRequest, now_ms: int) -> Decision[HeartbeatResponse]:
        """Keep a member's session.

        Raises:
            UnknownMemberId, FencedInstanceId, IllegalGeneration; RebalanceInProgress: it must join again.
        """
        group, member = self._member_of_generation(
            request.group_id, request.member_id, request.group_instance_id, request.generation_id
        )
        self._rebalance.renew_session(group, member, now_ms)
        if group.state is GroupState.PREPARING_REBALANCE:
            raise RebalanceInProgress
        return Decision(HeartbeatResponse())

    # LeaveGroup

    def leave(self, request: LeaveGroupRequest, now_ms: int) -> Decision[LeaveGroupResponse]:
        """Remove members, each with an error of its own.

        Raises:
            UnknownMemberId: there is no such group.
        """
        group = self._groups.get(request.group_id)
        if group is None:
            raise UnknownMemberId
        members = len(group.members)
        response = LeaveGroupResponse(members=[self._leave_one(group, identity) for identity in request.members])
        if len(group.members) < members:
            emptied = self._rebalance.advance(group, now_ms)
        else:
            emptied = self._rebalance.complete_if_all_joined(group, now_ms)
        return self._rebalance.emptied(group, response) if emptied else Decision(response)

    def _leave_one(self, group: ClassicGroup, leaver: MemberIdentity) -> MemberResponse:
        answer = MemberResponse(member_id=leaver.member_id, group_instance_id=leaver.group_instance_id)
        if leaver.member_id in group.pending_joins:
            group.pending_joins.discard(leaver.member_id)
            self._rebalance.end_session(group, leaver.member_id)
            return answer
        member_id = leaver.member_id
        if not member_id and leaver.group_instance_id is not None:
            # An administrator removes a static member by its name (KIP-345).
            member_id = group.static_members.get(leaver.group_instance_id, "")
        try:
            member = group.member(member_id, leaver.group_instance_id)
        except KafkaError as error:
            answer.error_code = error.code
            return answer
        # A parked JoinGroup gets UNKNOWN_MEMBER_ID too: if its client is still there it joins anew.
        self._rebalance.drop(group, member, UnknownMemberId())
        return answer

    def _member_of_generation(
        self, group_id: str, member_id: str, instance_id: str | None, generation: int
    ) -> tuple[ClassicGroup, Member]:
        group = self._groups.get(group_id)
        if group is None:
            raise UnknownMemberId
        member = group.member(member_id, instance_id)
        if generation != group.generation:
            raise IllegalGeneration(f"the group is in generation {group.generation}, the request in {generation}")
        return group, member


def _come_again(member_id: str) -> JoinGroupResponse:
    return JoinGroupResponse(error_code=MemberIdRequired.code, member_id=member_id)


def _with_member_replaced(group: ClassicGroup, old: Member, joiner: _Joiner, member_id: str) -> GroupMetadataValue:
    """The group's record with the joiner in the place of `old`."""
    value = group.record_value({member.member_id: member.assignment for member in group.members.values()})
    recorded = next(member for member in value.members if member.member_id == old.member_id)
    recorded.member_id = member_id
    recorded.rebalance_timeout = joiner.rebalance_timeout_ms
    recorded.session_timeout = joiner.request.session_timeout_ms
    assert group.protocol_name is not None
    recorded.subscription = joiner.protocols[group.protocol_name]
    if value.leader == old.member_id:
        value.leader = member_id
    return value


def _members_of(value: GroupMetadataValue) -> list[JoinGroupResponseMember]:
    return [
        JoinGroupResponseMember(
            member_id=member.member_id, group_instance_id=member.group_instance_id, metadata=member.subscription
        )
        for member in value.members
    ]
