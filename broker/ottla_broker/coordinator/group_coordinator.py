"""GroupCoordinator: consumer groups and their committed offsets, as the handlers and the replicas see them.

A facade: it finds the partition of `__consumer_offsets` a group lives in and hands the request to that partition's
`GroupShard` through the `CoordinatorRuntime`. What cannot be done fails the `Pending` with a `KafkaError` (describing
and listing raise it); the handlers in `ottla_broker.api` know which version of a request wants to see it how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from ottla_broker.coordinator.group_config import GroupConfig
from ottla_broker.coordinator.group_shard import GroupShard
from ottla_broker.coordinator.runtime import (
    CoordinatorLog,
    CoordinatorRuntime,
    TransactionalProducer,
    TransactionEnd,
    Verb,
)
from ottla_broker.pending import Pending
from ottla_wire.errors import InvalidGroupId, InvalidSessionTimeout, KafkaError

if TYPE_CHECKING:
    import random

    from ottla_broker.context import RequestContext
    from ottla_broker.log.producer_state import Verification
    from ottla_wire.messages.describe_groups import DescribedGroup
    from ottla_wire.messages.heartbeat import HeartbeatRequest, HeartbeatResponse
    from ottla_wire.messages.join_group import JoinGroupRequest, JoinGroupResponse
    from ottla_wire.messages.leave_group import LeaveGroupRequest, LeaveGroupResponse
    from ottla_wire.messages.list_groups import ListedGroup
    from ottla_wire.messages.offset_commit import OffsetCommitRequest, OffsetCommitResponse
    from ottla_wire.messages.offset_delete import OffsetDeleteRequest, OffsetDeleteResponse
    from ottla_wire.messages.offset_fetch import OffsetFetchRequestGroup, OffsetFetchResponseGroup
    from ottla_wire.messages.sync_group import SyncGroupRequest, SyncGroupResponse
    from ottla_wire.messages.txn_offset_commit import TxnOffsetCommitRequest, TxnOffsetCommitResponse
    from ottla_wire.schema import Uuid

T = TypeVar("T")


class GroupCoordinator:
    """The groups of the `__consumer_offsets` partitions that this broker leads.

    Args:
        log: the partitions of `__consumer_offsets`.
        config: the broker's group settings.
        wall_ms: the wall clock, for what is written into records; timers use the monotonic `now_ms` of the calls.
        rng: makes the member ids.
    """

    def __init__(
        self, log: CoordinatorLog, config: GroupConfig, *, wall_ms: Callable[[], int], rng: random.Random
    ) -> None:
        self.config = config
        self.runtime: CoordinatorRuntime[GroupShard] = CoordinatorRuntime(
            log,
            lambda partition, timers, outbox: GroupShard(
                partition, config, timers=timers, outbox=outbox, wall_ms=wall_ms, rng=rng
            ),
        )

    # what the replicas tell

    def load(self, partition: int, epoch: int, now_ms: int) -> None:
        """This broker has become the leader of a partition of `__consumer_offsets`, in leader epoch `epoch`."""
        self.runtime.load(partition, epoch, now_ms)

    def unload(self, partition: int, epoch: int | None = None) -> None:
        """This broker no longer leads the partition (since `epoch`); parked requests get NOT_COORDINATOR."""
        self.runtime.unload(partition, epoch)

    def high_watermark_moved(self, partition: int, offset: int, now_ms: int) -> None:
        """The partition is replicated up to `offset`; answers that waited for it leave."""
        self.runtime.high_watermark_moved(partition, offset, now_ms)

    def on_topics_deleted(self, topics: Mapping[Uuid, str], now_ms: int) -> None:
        """Forget the offsets of deleted topics (id -> name), in all groups coordinated here."""
        for partition in self.runtime.partitions():
            # A partition that is still loading keeps them; they expire, and a topic id guards against a namesake.
            self.runtime.run(partition, lambda shard, now: shard.offsets.topics_deleted(topics), now_ms)

    def settle(self, now_ms: int) -> None:
        """Append the offset commits of this loop turn."""
        self.runtime.flush(now_ms)

    def tick(self, now_ms: int) -> None:
        """Run everything that is due."""
        self.runtime.tick(now_ms)

    def deadline_ms(self) -> int | None:
        """When `tick` has something to do, or None."""
        return self.runtime.deadline_ms()

    # where a group lives

    def partition_for(self, group_id: str) -> int:
        """The partition of `__consumer_offsets` that holds the group."""
        return java_abs(java_hash(group_id)) % self.config.offsets_topic_num_partitions

    # membership

    def join_group(self, context: RequestContext, request: JoinGroupRequest) -> Pending[JoinGroupResponse]:
        """JoinGroup: answered when the join phase of the rebalance is over, or at once with what to do instead."""
        shortest, longest = self.config.group_min_session_timeout_ms, self.config.group_max_session_timeout_ms
        if request.group_id and not shortest <= request.session_timeout_ms <= longest:
            return Pending.failed(
                InvalidSessionTimeout(
                    f"session.timeout.ms is {request.session_timeout_ms}; this broker allows {shortest} to {longest}"
                )
            )
        return self._run(context, request.group_id, lambda shard, now: shard.membership.join(request, context, now))

    def sync_group(self, context: RequestContext, request: SyncGroupRequest) -> Pending[SyncGroupResponse]:
        """SyncGroup: answered when the leader's assignment is replicated."""
        return self._run(context, request.group_id, lambda shard, now: shard.membership.sync(request, now))

    def heartbeat(self, context: RequestContext, request: HeartbeatRequest) -> Pending[HeartbeatResponse]:
        """Heartbeat: keeps the member's session; REBALANCE_IN_PROGRESS tells it to join again."""
        return self._run(context, request.group_id, lambda shard, now: shard.membership.heartbeat(request, now))

    def leave_group(self, context: RequestContext, request: LeaveGroupRequest) -> Pending[LeaveGroupResponse]:
        """LeaveGroup for the members in `request.members`."""
        return self._run(context, request.group_id, lambda shard, now: shard.membership.leave(request, now))

    # offsets

    def commit_offsets(self, context: RequestContext, request: OffsetCommitRequest) -> Pending[OffsetCommitResponse]:
        """OffsetCommit of topics that are known to exist, each with name and (if known) id."""
        return self.runtime.run_coalesced(
            self.partition_for(request.group_id),
            lambda shard, now_ms: shard.offsets.commit(request, now_ms),
            context.now_ms,
        )

    def commit_transactional_offsets(
        self, context: RequestContext, request: TxnOffsetCommitRequest, guard: Verification | None
    ) -> Pending[TxnOffsetCommitResponse]:
        """TxnOffsetCommit of topics that are known to exist.

        `guard` is that of the transaction in the group's partition; None if the transaction is open there already.
        """
        if not request.group_id:
            return Pending.failed(_no_group_id())
        return self.runtime.run_transactional(
            self.partition_for(request.group_id),
            TransactionalProducer(request.producer_id, request.producer_epoch, guard),
            lambda shard, _now: shard.offsets.commit_transactional(request),
            context.now_ms,
        )

    def complete_transaction(
        self,
        partition: int,
        producer_id: int,
        producer_epoch: int,
        coordinator_epoch: int,
        *,
        committed: bool,
        transaction_version: int,
        now_ms: int,
    ) -> Pending[None]:
        """Write the marker of a transaction into a partition of `__consumer_offsets`, and settle its offsets.

        Answered when the marker is replicated. Fails with InvalidProducerEpoch, TransactionCoordinatorFenced,
        NotCoordinator, CoordinatorLoadInProgress, and what else an append may raise.
        """
        end = TransactionEnd(producer_id, producer_epoch, coordinator_epoch, committed, transaction_version)
        return self.runtime.complete_transaction(partition, end, now_ms)

    def fetch_offsets(
        self, context: RequestContext, group: OffsetFetchRequestGroup, *, require_stable: bool
    ) -> Pending[OffsetFetchResponseGroup]:
        """OffsetFetch of one group, by topic name; `topics` None means all.

        With `require_stable` the newest offsets are read and told when they are replicated, otherwise the replicated
        ones at once.
        """
        partition = self.partition_for(group.group_id)
        if require_stable:
            return self.runtime.run(partition, lambda shard, _now: shard.offsets.fetch_newest(group), context.now_ms)
        try:
            found = self.runtime.read(partition, lambda shard: shard.offsets.fetch_committed(group))
        except KafkaError as error:
            return Pending.failed(error)
        return Pending.completed(found)

    def delete_offsets(self, context: RequestContext, request: OffsetDeleteRequest) -> Pending[OffsetDeleteResponse]:
        """OffsetDelete of topics that are known to exist."""
        return self._run(context, request.group_id, lambda shard, _now: shard.offsets.delete(request))

    # administration

    def describe_group(self, group_id: str) -> DescribedGroup:
        """One group with its members.

        Raises:
            GroupIdNotFound: versions below 6 call such a group dead.
            NotCoordinator, CoordinatorLoadInProgress.
        """
        return self.runtime.read(self.partition_for(group_id), lambda shard: shard.describe(group_id))

    def list_groups(self, states: Iterable[str], types: Iterable[str]) -> list[ListedGroup]:
        """All groups coordinated here that are in one of `states` and of one of `types` (empty: any).

        Raises:
            CoordinatorLoadInProgress: a partition is not loaded yet, so the list would not be complete.
        """
        wanted_states, wanted_types = list(states), list(types)
        listed: list[ListedGroup] = []
        for partition in self.runtime.partitions():
            listed += self.runtime.read(partition, lambda shard: shard.list(wanted_states, wanted_types))
        return listed

    def delete_group(self, context: RequestContext, group_id: str) -> Pending[None]:
        """Delete a group without members, and its offsets; fails with GroupIdNotFound or NonEmptyGroup."""
        return self.runtime.run(
            self.partition_for(group_id), lambda shard, _now: shard.delete(group_id), context.now_ms
        )

    def _run(self, context: RequestContext, group_id: str, verb: Verb[GroupShard, T]) -> Pending[T]:
        if not group_id:
            return Pending.failed(_no_group_id())
        return self.runtime.run(self.partition_for(group_id), verb, context.now_ms)


def _no_group_id() -> InvalidGroupId:
    return InvalidGroupId("group.id is empty; name the group that shares the partitions")


@lru_cache(maxsize=8192)
def java_hash(text: str) -> int:
    """Java's String.hashCode: over UTF-16 code units, a signed 32-bit int."""
    value = 0
    encoded = text.encode("utf-16-be", "surrogatepass")
    for unit in range(0, len(encoded), 2):
        value = (31 * value + (encoded[unit] << 8) + encoded[unit + 1]) & 0xFFFFFFFF
    return value - 0x1_0000_0000 if value >= 0x8000_0000 else value


def java_abs(value: int) -> int:
    """Kafka's Utils.abs: the smallest int, which has no positive counterpart, becomes 0."""
    return 0 if value == -0x8000_0000 else abs(value)
