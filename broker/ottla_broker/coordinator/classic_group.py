"""ClassicGroup: a group whose members share out partitions among themselves (the protocol before KIP-848).

Theory of operation
===================

The members of a group agree on *generations*. Each starts with a rebalance in two phases. In the join phase every
member sends JoinGroup and waits; when all have, the coordinator picks a protocol that all of them support and a
leader, and answers. In the sync phase every member sends SyncGroup; the leader's holds the assignment of all, and
when that is replicated all are answered with their share. What is assigned means nothing to the coordinator.

::

    Empty --join--> PreparingRebalance --all joined--> CompletingRebalance --leader synced--> Stable
      ^                  |      ^                             |                                 |
      +---nobody left----+      +------a member came, left, or changed its metadata-------------+

    any state --deleted, or another broker coordinates it--> Dead

`TRANSITIONS` is this picture as a table. What is durable is the group as of the last generation whose assignment was
replicated, or as of the last time it became Empty: `adopt` takes that from a record, on restart and in operation
alike. A rebalance in progress lives in memory only; after a failover the members find out and start another.

This module holds the data and its rules. Who may do what, timers and answers are in `membership`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from ottla_broker.coordinator.records import GroupMetadataValue, MemberMetadata
from ottla_broker.pending import Pending
from ottla_wire.errors import DecodeError, FencedInstanceId, UnknownMemberId
from ottla_wire.messages.consumer_protocol import ConsumerProtocolSubscription
from ottla_wire.messages.join_group import JoinGroupResponse, JoinGroupResponseMember
from ottla_wire.messages.sync_group import SyncGroupResponse

CONSUMER_PROTOCOL: Final = "consumer"


class GroupState(Enum):
    """The states of a classic group, by the names that DescribeGroups shows."""

    EMPTY = "Empty"
    PREPARING_REBALANCE = "PreparingRebalance"
    COMPLETING_REBALANCE = "CompletingRebalance"
    STABLE = "Stable"
    DEAD = "Dead"


_S = GroupState
TRANSITIONS: Final[Mapping[GroupState, frozenset[GroupState]]] = {
    # to: from
    _S.EMPTY: frozenset({_S.PREPARING_REBALANCE}),
    _S.PREPARING_REBALANCE: frozenset({_S.EMPTY, _S.COMPLETING_REBALANCE, _S.STABLE}),
    _S.COMPLETING_REBALANCE: frozenset({_S.PREPARING_REBALANCE}),
    _S.STABLE: frozenset({_S.COMPLETING_REBALANCE}),
    _S.DEAD: frozenset({_S.EMPTY, _S.PREPARING_REBALANCE, _S.COMPLETING_REBALANCE, _S.STABLE}),
}


@dataclass(slots=True, eq=False)
class Member:
    """A member of a classic group.

    `protocols` maps the names it supports, best first, to its metadata for each. `is_new` until its first JoinGroup
    is answered. `join` and `sync` are its parked requests.
    """

    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    session_timeout_ms: int
    protocols: dict[str, bytes]
    assignment: bytes = b""
    is_new: bool = False
    join: Pending[JoinGroupResponse] | None = None
    sync: Pending[SyncGroupResponse] | None = None

    @property
    def is_static(self) -> bool:
        """Whether it has a name that survives its restart (KIP-345)."""
        return self.instance_id is not None

    @property
    def is_waiting(self) -> bool:
        """Whether it needs no heartbeat, because a request of it is parked.

        A new member has no id to send heartbeats with, and nobody notices when its client gives up; so its session
        (the new-member time-out) runs while it waits.
        """
        return not self.is_new and (self.join is not None or self.sync is not None)


@dataclass(slots=True)
class InitialDelay:
    """How long the first rebalance of an Empty group still waits for more members.

    A round of `delay_ms` is under way; if a member came in it there is another, until `remaining_ms` is used up.
    """

    delay_ms: int
    remaining_ms: int
    member_came: bool = False


@dataclass(slots=True, eq=False)
class ClassicGroup:
    """The state of one classic group.

    Attributes:
        state_since_ms: wall time of the last change of state; None for a group from before that was recorded.
        generation: grows by one at the end of each join phase.
        pending_joins: ids given out with MEMBER_ID_REQUIRED that have not joined yet.
        pending_syncs: members of this generation that have not sent SyncGroup yet.
        initial_delay: set in the rebalance that starts from Empty.
        subscribed_topics: of a consumer group whose members' metadata could be read, as of the join phase.
    """

    group_id: str
    state_since_ms: int | None
    state: GroupState = GroupState.EMPTY
    generation: int = 0
    protocol_type: str | None = None
    protocol_name: str | None = None
    leader: str | None = None
    members: dict[str, Member] = field(default_factory=dict)
    static_members: dict[str, str] = field(default_factory=dict)
    pending_joins: set[str] = field(default_factory=set)
    pending_syncs: set[str] = field(default_factory=set)
    initial_delay: InitialDelay | None = None
    subscribed_topics: frozenset[str] | None = None
    _support: Counter[str] = field(default_factory=Counter)

    # state

    def transition(self, to: GroupState, wall_ms: int | None) -> None:
        """Change the state; only along `TRANSITIONS`."""
        assert self.state in TRANSITIONS[to], f"group {self.group_id} cannot go from {self.state} to {to}"
        self.state = to
        self.state_since_ms = wall_ms

    @property
    def is_consumer_group(self) -> bool:
        """Whether the members' metadata is that of Kafka's consumers."""
        return self.protocol_type == CONSUMER_PROTOCOL

    @property
    def rebalance_timeout_ms(self) -> int:
        """How long a phase of a rebalance waits: as long as the most patient member allows."""
        return max((member.rebalance_timeout_ms for member in self.members.values()), default=0)

    # members

    def member(self, member_id: str, instance_id: str | None) -> Member:
        """The member a request comes from.

        Raises:
            UnknownMemberId, FencedInstanceId: another member has the instance id now.
        """
        if instance_id is not None:
            owner = self.static_members.get(instance_id)
            if owner is None:
                raise UnknownMemberId
            if owner != member_id:
                raise FencedInstanceId(f"group.instance.id {instance_id} belongs to member {owner}")
        member = self.members.get(member_id)
        if member is None:
            raise UnknownMemberId
        return member

    def add(self, member: Member, protocol_type: str) -> None:
        """Take in a member; the first one decides the protocol type and leads."""
        assert member.member_id not in self.members
        if member.instance_id is not None:
            assert member.instance_id not in self.static_members
            self.static_members[member.instance_id] = member.member_id
        if not self.members:
            self.protocol_type = protocol_type
        if self.leader is None:
            self.leader = member.member_id
        self.members[member.member_id] = member
        self._support.update(member.protocols.keys())
        self.pending_joins.discard(member.member_id)

    def remove(self, member_id: str) -> Member | None:
        """Drop a member or a pending one; its parked requests are the caller's business."""
        self.pending_joins.discard(member_id)
        self.pending_syncs.discard(member_id)
        member = self.members.pop(member_id, None)
        if member is not None:
            self._support.subtract(member.protocols.keys())
            if member.instance_id is not None:
                del self.static_members[member.instance_id]
        if self.leader == member_id:
            self.leader = next(iter(self.members), None)
        return member

    def rename(self, old: Member, member_id: str) -> None:
        """The instance of a static member is now known by another member id; nothing else changes."""
        assert old.instance_id is not None
        # The place in the order of members is kept: it decides who leads next.
        self.members = {(member_id if member is old else key): member for key, member in self.members.items()}
        if self.leader == old.member_id:
            self.leader = member_id
        self.pending_syncs.discard(old.member_id)
        self.static_members[old.instance_id] = member_id
        old.member_id = member_id

    def set_protocols(self, member: Member, protocols: dict[str, bytes]) -> None:
        """What the member supports has changed."""
        self._support.subtract(member.protocols.keys())
        member.protocols = protocols
        self._support.update(protocols.keys())

    def joined(self) -> Iterator[Member]:
        """The members whose JoinGroup is parked."""
        return (member for member in self.members.values() if member.join is not None)

    def all_joined(self) -> bool:
        """Whether nobody is missing for the end of the join phase."""
        return not self.pending_joins and all(member.join is not None for member in self.members.values())

    def accepts(self, member_id: str, max_size: int) -> bool:
        """Whether `group.max.size` leaves room for this member to join.

        During the join phase those who have joined are counted, not the members: so a group that is too large after
        a change of the setting shrinks by losing those who join last.
        """
        if self.state is GroupState.PREPARING_REBALANCE:
            member = self.members.get(member_id)
            return (member is not None and member.join is not None) or sum(1 for _ in self.joined()) < max_size
        if self.state is GroupState.EMPTY:
            return True
        return member_id in self.members or len(self.members) < max_size

    def elect_joined_leader(self) -> bool:
        """Keep the leader if it has joined, else take one who has; False if nobody has."""
        leader = self.members.get(self.leader) if self.leader is not None else None
        if leader is not None and leader.join is not None:
            return True
        elected = next(self.joined(), None)
        if elected is None:
            return False
        self.leader = elected.member_id
        return True

    # protocols

    def supports(self, protocol_type: str, names: Iterable[str]) -> bool:
        """Whether a member with these protocols can be in the group: one of them is supported by all members."""
        if self.state is GroupState.EMPTY:
            return bool(protocol_type) and any(True for _ in names)
        return self.protocol_type == protocol_type and any(self._support[name] == len(self.members) for name in names)

    def select_protocol(self, instead: tuple[Member, dict[str, bytes]] | None = None) -> str | None:
        """The protocol of the next generation: each member votes for its best one among those all support.

        Args:
            instead: what the choice would be if this member had these protocols.
        """
        lists = [
            instead[1] if instead is not None and member is instead[0] else member.protocols
            for member in self.members.values()
        ]
        support = Counter(name for protocols in lists for name in protocols)
        votes = Counter(next((name for name in protocols if support[name] == len(lists)), None) for protocols in lists)
        return max(votes, key=lambda name: votes[name], default=None)

    def next_generation(self, wall_ms: int) -> None:
        """The join phase is over: choose the protocol; the sync phase begins."""
        self.generation += 1
        self.protocol_name = self.select_protocol()
        assert self.protocol_name is not None, "members without a common protocol"
        self.subscribed_topics = self._read_subscriptions()
        self.transition(GroupState.COMPLETING_REBALANCE, wall_ms)
        self.initial_delay = None
        self.pending_syncs = set(self.members)

    def is_subscribed(self, topic: str) -> bool:
        """Whether the group's offsets of the topic are in use. A consumer group that nobody could read uses all."""
        if self.subscribed_topics is None:
            return self.is_consumer_group
        return topic in self.subscribed_topics

    def described_members(self) -> list[JoinGroupResponseMember]:
        """The members with their metadata, as the leader needs them for an assignment."""
        assert self.protocol_name is not None
        return [
            JoinGroupResponseMember(
                member_id=member.member_id,
                group_instance_id=member.instance_id,
                metadata=member.protocols[self.protocol_name],
            )
            for member in self.members.values()
        ]

    # durable state

    def record_value(self, assignments: Mapping[str, bytes]) -> GroupMetadataValue:
        """The group as a record, each member with the assignment it has or is to get."""
        assert self.protocol_name is not None
        return GroupMetadataValue(
            protocol_type=self.protocol_type or "",
            generation=self.generation,
            protocol=self.protocol_name,
            leader=self.leader,
            current_state_timestamp=-1 if self.state_since_ms is None else self.state_since_ms,
            members=[
                _member_record(member, member.protocols[self.protocol_name], assignments.get(member.member_id, b""))
                for member in self.members.values()
            ],
        )

    def empty_value(self, generation: int, wall_ms: int) -> GroupMetadataValue:
        """The group as a record when nobody is left."""
        return GroupMetadataValue(
            protocol_type=self.protocol_type or "",
            generation=generation,
            protocol=None,
            leader=None,
            current_state_timestamp=wall_ms,
            members=[],
        )

    def adopt(self, value: GroupMetadataValue) -> None:
        """Be what a record says; the only way durable state changes.

        On restart that is all there is. In operation the record was made from this group, so it agrees with what is
        in memory but for what it is meant to change: the assignments at the end of a rebalance, the id of a static
        member that was replaced, or that the group is Empty. A generation's assignment makes it Stable only when the
        record is committed, which `membership` sees to.
        """
        self.protocol_type = value.protocol_type or None
        self.generation = value.generation
        self.protocol_name = value.protocol
        by_instance = {member.group_instance_id: member.member_id for member in value.members}
        for member_id in self.members.keys() - {member.member_id for member in value.members}:
            member = self.members[member_id]
            if member.instance_id is not None and member.instance_id in by_instance:
                self.rename(member, by_instance[member.instance_id])
            else:
                self.remove(member_id)
        for recorded in value.members:
            self._adopt_member(recorded)
        self.leader = value.leader
        self.state_since_ms = None if value.current_state_timestamp == -1 else value.current_state_timestamp
        if self.state is not GroupState.COMPLETING_REBALANCE:
            self.state = GroupState.STABLE if self.members else GroupState.EMPTY
            self.initial_delay = None
        self.subscribed_topics = self._read_subscriptions()

    def _adopt_member(self, recorded: MemberMetadata) -> None:
        assert self.protocol_name is not None
        member = self.members.get(recorded.member_id)
        if member is None:
            member = Member(recorded.member_id, recorded.group_instance_id, "", "", 0, 0, {})
            self.add(member, self.protocol_type or "")
        member.client_id = recorded.client_id
        member.client_host = recorded.client_host
        member.session_timeout_ms = recorded.session_timeout
        # Version 0 of the record has no rebalance time-out.
        member.rebalance_timeout_ms = (
            recorded.session_timeout if recorded.rebalance_timeout == -1 else recorded.rebalance_timeout
        )
        member.assignment = recorded.assignment
        if member.protocols.get(self.protocol_name) != recorded.subscription:
            # Only the chosen protocol is recorded; a member that joins again with its full list counts as changed.
            self.set_protocols(member, {self.protocol_name: recorded.subscription})

    def _read_subscriptions(self) -> frozenset[str] | None:
        if not self.is_consumer_group:
            return None
        if not self.members:
            return frozenset()
        assert self.protocol_name is not None
        topics: set[str] = set()
        try:
            for member in self.members.values():
                topics.update(_subscribed_topics(member.protocols[self.protocol_name]))
        except DecodeError:
            return None
        return frozenset(topics)


def _subscribed_topics(metadata: bytes) -> list[str]:
    # All versions of a subscription start as version 0 does, so the topics of future ones can be read too.
    if len(metadata) < 2:
        raise DecodeError("a consumer's subscription ends before its version")
    return ConsumerProtocolSubscription.decode(metadata, 0, 2).topics


def _member_record(member: Member, subscription: bytes, assignment: bytes) -> MemberMetadata:
    return MemberMetadata(
        member_id=member.member_id,
        group_instance_id=member.instance_id,
        client_id=member.client_id,
        client_host=member.client_host,
        rebalance_timeout=member.rebalance_timeout_ms,
        session_timeout=member.session_timeout_ms,
        subscription=subscription,
        assignment=assignment,
    )
