"""GroupShard: the groups of one partition of `__consumer_offsets`, a state machine under the `CoordinatorRuntime`.

It holds what the parts share (the groups by id), and is where records become state: a group appears, changes and
disappears in `replay` and nowhere else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

from ottla_broker.coordinator.classic_group import ClassicGroup, GroupState, Member
from ottla_broker.coordinator.decision import CoordinatorRecord, Decision, Outbox, Verb
from ottla_broker.coordinator.group_config import GroupConfig
from ottla_broker.coordinator.membership import Membership
from ottla_broker.coordinator.offsets import Offsets
from ottla_broker.coordinator.rebalance import Rebalance
from ottla_broker.coordinator.records import (
    GROUP_METADATA,
    OFFSET_COMMIT,
    group_tombstone,
    read_group_metadata,
    read_offset_commit,
    record_type,
)
from ottla_broker.coordinator.timers import Timers
from ottla_wire.errors import GroupIdNotFound, KafkaError, NonEmptyGroup
from ottla_wire.messages.describe_groups import DescribedGroup, DescribedGroupMember
from ottla_wire.messages.list_groups import ListedGroup

if TYPE_CHECKING:
    import random

logger = logging.getLogger(__name__)

GROUP_TYPE: Final = "classic"
"""The type of group that ListGroups shows for these (KIP-848 has more)."""


class GroupShard:
    """Groups and offsets of one partition.

    Attributes:
        membership, offsets: the verbs.
        groups: by id; to be read only.
    """

    def __init__(
        self,
        partition: int,
        config: GroupConfig,
        *,
        timers: Timers[Verb[Any, Any]],
        outbox: Outbox,
        wall_ms: Callable[[], int],
        rng: random.Random,
    ) -> None:
        self._partition = partition
        self._config = config
        self._timers = timers
        self.groups: dict[str, ClassicGroup] = {}
        self._rebalance = Rebalance(partition, config, self.groups, timers=timers, outbox=outbox, wall_ms=wall_ms)
        self.membership = Membership(config, self.groups, self._rebalance, outbox=outbox, wall_ms=wall_ms, rng=rng)
        self.offsets = Offsets(config, self.groups, self._rebalance, wall_ms)

    # administration

    def describe(self, group_id: str) -> DescribedGroup:
        """A group with its members; metadata only of a Stable group, whose protocol is settled.

        Raises:
            GroupIdNotFound.
        """
        group = self.groups.get(group_id)
        if group is None:
            raise GroupIdNotFound(f"Group {group_id} not found.")
        protocol = group.protocol_name if group.state is GroupState.STABLE else None
        return DescribedGroup(
            group_id=group_id,
            group_state=group.state.value,
            protocol_type=group.protocol_type or "",
            protocol_data=protocol or "",
            members=[_described(member, protocol) for member in group.members.values()],
        )

    def list(self, states: Collection[str], types: Collection[str]) -> list[ListedGroup]:
        """The groups in one of these states and of one of these types, however written; empty means any."""
        wanted = {state.strip().lower() for state in states}
        if types and GROUP_TYPE not in {kind.strip().lower() for kind in types}:
            return []
        return [
            ListedGroup(
                group_id=group.group_id,
                protocol_type=group.protocol_type or "",
                group_state=group.state.value,
                group_type=GROUP_TYPE,
            )
            for group in self.groups.values()
            if not wanted or group.state.value.lower() in wanted
        ]

    def delete(self, group_id: str) -> Decision[None]:
        """Delete a group without members, and its offsets.

        Raises:
            GroupIdNotFound, NonEmptyGroup.
        """
        group = self.groups.get(group_id)
        if group is None:
            raise GroupIdNotFound(f"Group {group_id} not found.")
        if group.state is not GroupState.EMPTY:
            raise NonEmptyGroup(f"group {group_id} still has members; stop them, or remove them with LeaveGroup")
        return Decision(None, [*self.offsets.tombstones(group_id), group_tombstone(group_id)])

    # the runtime's side

    def replay(self, offset: int, record: CoordinatorRecord, producer_id: int, producer_epoch: int) -> None:
        """Change the state as a record says; records of types not known here are skipped."""
        kind = record_type(record)
        if kind == OFFSET_COMMIT:
            self._replay_offset_commit(offset, record, producer_id)
        elif kind == GROUP_METADATA:
            self._replay_group_metadata(record)
        else:
            logger.debug("record of type %s at offset %s skipped", kind, offset)

    def replay_end_marker(self, offset: int, producer_id: int, producer_epoch: int, *, committed: bool) -> None:
        """The end of a transaction: its offsets count now, or never did."""
        self.offsets.transaction_ended(offset, producer_id, committed=committed)

    def high_watermark_moved(self, high_watermark: int) -> None:
        """What lies below is replicated."""
        self.offsets.high_watermark_moved(high_watermark)

    def loaded(self, now_ms: int) -> None:
        """Set the timers that are not in the log."""
        self._rebalance.loaded(now_ms)
        self._schedule_expiry(now_ms)

    def unloaded(self, error: KafkaError) -> None:
        """Answer all parked requests: another broker coordinates these groups now."""
        self._rebalance.unloaded(error)

    def _replay_offset_commit(self, offset: int, record: CoordinatorRecord, producer_id: int) -> None:
        key, value = read_offset_commit(record)
        if value is not None and key.group not in self.groups:
            # A simple group exists because an offset was committed under its name.
            self.groups[key.group] = ClassicGroup(key.group, value.commit_timestamp)
        self.offsets.replay(key, value, offset, producer_id)

    def _replay_group_metadata(self, record: CoordinatorRecord) -> None:
        key, value = read_group_metadata(record)
        if value is None:
            deleted = self.groups.pop(key.group, None)
            if deleted is not None:
                self._rebalance.forget(deleted)
            return
        group = self.groups.get(key.group)
        if group is None:
            group = self.groups[key.group] = ClassicGroup(key.group, None)
        group.adopt(value)

    def _schedule_expiry(self, now_ms: int) -> None:
        at_ms = now_ms + self._config.offsets_retention_check_interval_ms
        self._timers.schedule((self._partition, "expiry"), at_ms, self._expire)

    def _expire(self, _shard: object, now_ms: int) -> Decision[None]:
        self._schedule_expiry(now_ms)
        return self.offsets.expire()


def _described(member: Member, protocol: str | None) -> DescribedGroupMember:
    return DescribedGroupMember(
        member_id=member.member_id,
        group_instance_id=member.instance_id,
        client_id=member.client_id,
        client_host=member.client_host,
        member_metadata=b"" if protocol is None else member.protocols[protocol],
        member_assignment=member.assignment,
    )
