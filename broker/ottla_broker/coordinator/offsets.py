"""Offsets: what groups have committed, and how long it is kept.

Commits are decided on the group (is this member of this generation?), never on other offsets, so that the commits of
one loop turn can be appended as one batch. Plain reads see what is replicated: an offset that was told must survive a
failover. Unknown is -1, never 0, never an error.

An offset that is committed inside a transaction (TxnOffsetCommit) is *pending* until the transaction's marker comes.
Then it takes its place among the others by where its record stands in the log, not by where the marker stands: a plain
commit that was written after it wins, and compaction, which keeps the last record of a key, agrees. A reader that needs
stable offsets is sent away as long as something is pending (KIP-447). A tombstone deletes what is pending, too.

Expiry (KIP-211): an offset is kept for `offsets.retention.minutes`, counted from

- when the group became Empty, if it had members once;
- its commit, for topics that a Stable consumer group does not subscribe any longer, and for "simple" groups, under
  whose name offsets are kept without any membership;
- not at all in other states, or while something is pending for the partition.

A group that is Empty and has no offsets left, nor pending ones, is deleted with them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

from ottla_broker.coordinator.classic_group import ClassicGroup, GroupState
from ottla_broker.coordinator.decision import CoordinatorRecord, Decision
from ottla_broker.coordinator.group_config import GroupConfig
from ottla_broker.coordinator.pending_offsets import CommittedOffset, PendingOffsets, TopicPartition
from ottla_broker.coordinator.rebalance import Rebalance
from ottla_broker.coordinator.records import (
    OffsetCommitKey,
    OffsetCommitValue,
    group_tombstone,
    offset_commit_record,
    offset_tombstone,
)
from ottla_broker.coordinator.versioned import Versioned
from ottla_wire.errors import (
    GroupIdNotFound,
    GroupSubscribedToTopic,
    IllegalGeneration,
    NonEmptyGroup,
    OffsetMetadataTooLarge,
    RebalanceInProgress,
    UnknownMemberId,
    UnstableOffsetCommit,
)
from ottla_wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitResponse,
    OffsetCommitResponsePartition,
    OffsetCommitResponseTopic,
)
from ottla_wire.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteResponse,
    OffsetDeleteResponsePartition,
    OffsetDeleteResponseTopic,
)
from ottla_wire.messages.offset_fetch import (
    OffsetFetchRequestGroup,
    OffsetFetchResponseGroup,
    OffsetFetchResponsePartitions,
    OffsetFetchResponseTopics,
)
from ottla_wire.messages.txn_offset_commit import (
    TxnOffsetCommitRequest,
    TxnOffsetCommitRequestPartition,
    TxnOffsetCommitResponse,
    TxnOffsetCommitResponsePartition,
    TxnOffsetCommitResponseTopic,
)
from ottla_wire.schema import Uuid

NO_OFFSET: Final = -1
_NO_EPOCH: Final = -1
_NO_EXPIRY: Final = -1


class Offsets:
    """The committed offsets of the groups of one partition.

    Args:
        groups: the partition's groups by id, shared with the shard.
    """

    def __init__(
        self, config: GroupConfig, groups: dict[str, ClassicGroup], rebalance: Rebalance, wall_ms: Callable[[], int]
    ) -> None:
        self._config = config
        self._groups = groups
        self._rebalance = rebalance
        self._wall_ms = wall_ms
        self._offsets: Versioned[str, TopicPartition, CommittedOffset] = Versioned()
        self._pending = PendingOffsets()

    # OffsetCommit

    def commit(self, request: OffsetCommitRequest, now_ms: int) -> Decision[OffsetCommitResponse]:
        """Commit offsets; a partition's metadata may be refused on its own.

        Raises:
            GroupIdNotFound: a generation of a group that is not there.
            UnknownMemberId, FencedInstanceId, IllegalGeneration, RebalanceInProgress.
        """
        self._check_committer(request, now_ms)
        wall_ms = self._wall_ms()
        expire_ms = _NO_EXPIRY if request.retention_time_ms == -1 else wall_ms + request.retention_time_ms
        records: list[CoordinatorRecord] = []
        response = OffsetCommitResponse(topics=[])
        for topic in request.topics:
            answer = OffsetCommitResponseTopic(name=topic.name, topic_id=topic.topic_id, partitions=[])
            response.topics.append(answer)
            for partition in topic.partitions:
                index = partition.partition_index
                code = self._metadata_error(partition)
                if not code:
                    value = _commit_value(partition, wall_ms, expire_ms, topic.topic_id)
                    records.append(offset_commit_record(request.group_id, topic.name, index, value))
                answer.partitions.append(OffsetCommitResponsePartition(partition_index=index, error_code=code))
        return Decision(response, records)

    def _metadata_error(self, partition: OffsetCommitRequestPartition | TxnOffsetCommitRequestPartition) -> int:
        # Kafka counts characters here, as a Java string has them.
        is_long = len(partition.committed_metadata or "") > self._config.offset_metadata_max_bytes
        return OffsetMetadataTooLarge.code if is_long else 0

    def _check_committer(self, request: OffsetCommitRequest, now_ms: int) -> None:
        generation, member_id = request.generation_id_or_member_epoch, request.member_id
        group = self._groups.get(request.group_id)
        if group is None:
            if generation >= 0:
                raise GroupIdNotFound(f"group {request.group_id} does not exist")
            return  # the commit makes it a simple group
        if generation < 0 and group.state is GroupState.EMPTY:
            return  # an administrator, or a consumer that assigns its partitions itself
        if generation < 0 and not member_id and request.group_instance_id is None:
            raise UnknownMemberId("the group has members; only they may commit")
        member = group.member(member_id, request.group_instance_id)
        if generation != group.generation:
            raise IllegalGeneration(f"the group is in generation {group.generation}, the commit in {generation}")
        if group.state is GroupState.COMPLETING_REBALANCE:
            # It knows the generation, so it has joined; what it commits may be another's now.
            raise RebalanceInProgress
        self._rebalance.renew_session(group, member, now_ms)

    # TxnOffsetCommit

    def commit_transactional(self, request: TxnOffsetCommitRequest) -> Decision[TxnOffsetCommitResponse]:
        """Commit offsets when the transaction does; a partition's metadata may be refused on its own.

        Raises:
            UnknownMemberId, FencedInstanceId, IllegalGeneration.
        """
        self._check_transactional_committer(request)
        wall_ms = self._wall_ms()
        records: list[CoordinatorRecord] = []
        response = TxnOffsetCommitResponse(topics=[])
        for topic in request.topics:
            answer = TxnOffsetCommitResponseTopic(name=topic.name, partitions=[])
            response.topics.append(answer)
            for partition in topic.partitions:
                index = partition.partition_index
                code = self._metadata_error(partition)
                if not code:
                    value = _commit_value(partition, wall_ms, _NO_EXPIRY, Uuid.ZERO)
                    records.append(offset_commit_record(request.group_id, topic.name, index, value))
                answer.partitions.append(TxnOffsetCommitResponsePartition(partition_index=index, error_code=code))
        return Decision(response, records)

    def _check_transactional_committer(self, request: TxnOffsetCommitRequest) -> None:
        """As for OffsetCommit, but whatever the group's state is, and without renewing a session (KIP-447).

        A producer that names neither member nor generation (one from before KIP-447) is believed.
        """
        generation, member_id = request.generation_id_or_member_epoch, request.member_id
        group = self._groups.get(request.group_id)
        if group is None:
            if generation >= 0:
                raise IllegalGeneration(f"group {request.group_id} does not exist")
            return  # the commit makes it a simple group
        is_nobody = not member_id and request.group_instance_id is None
        if generation < 0 and (group.state is GroupState.EMPTY or is_nobody):
            return
        group.member(member_id, request.group_instance_id)
        if generation != group.generation:
            raise IllegalGeneration(f"the group is in generation {group.generation}, the commit in {generation}")

    # OffsetFetch

    def fetch_committed(self, request: OffsetFetchRequestGroup) -> OffsetFetchResponseGroup:
        """The replicated offsets."""
        group_id = request.group_id
        if request.topics is None:
            return _all_offsets(group_id, self._offsets.group_committed(group_id))
        return _asked_offsets(request, lambda key: self._offsets.get_committed(group_id, key))

    def fetch_newest(self, request: OffsetFetchRequestGroup) -> Decision[OffsetFetchResponseGroup]:
        """The newest offsets, where they are stable; the answer waits until they are replicated (KIP-447)."""
        group_id = request.group_id
        unstable = self._pending.of_group(group_id)
        if request.topics is None:
            return Decision(_all_offsets(group_id, self._offsets.group(group_id), unstable))
        return Decision(_asked_offsets(request, lambda key: self._offsets.get(group_id, key), unstable))

    # OffsetDelete, deletion of groups and topics

    def delete(self, request: OffsetDeleteRequest) -> Decision[OffsetDeleteResponse]:
        """Delete offsets of topics that the group does not subscribe.

        Raises:
            GroupIdNotFound; NonEmptyGroup: it has members whose subscriptions cannot be read.
        """
        group = self._groups.get(request.group_id)
        if group is None:
            raise GroupIdNotFound(f"group {request.group_id} does not exist")
        if group.state is not GroupState.EMPTY and not group.is_consumer_group:
            raise NonEmptyGroup
        records: list[CoordinatorRecord] = []
        response = OffsetDeleteResponse(topics=[])
        for topic in request.topics:
            subscribed = group.is_subscribed(topic.name)
            indexes = [partition.partition_index for partition in topic.partitions]
            code = GroupSubscribedToTopic.code if subscribed else 0
            partitions = [OffsetDeleteResponsePartition(partition_index=index, error_code=code) for index in indexes]
            response.topics.append(OffsetDeleteResponseTopic(name=topic.name, partitions=partitions))
            records += [
                offset_tombstone(request.group_id, topic.name, index)
                for index in indexes
                if not subscribed and self._is_known(request.group_id, TopicPartition(topic.name, index))
            ]
        return Decision(response, records)

    def _is_known(self, group_id: str, key: TopicPartition) -> bool:
        return self._offsets.get(group_id, key) is not None or (group_id, key) in self._pending

    def tombstones(self, group_id: str) -> list[CoordinatorRecord]:
        """The records that delete all offsets of a group, pending ones too."""
        keys = dict.fromkeys((*self._offsets.group(group_id), *sorted(self._pending.of_group(group_id))))
        return [offset_tombstone(group_id, *key) for key in keys]

    def topics_deleted(self, topics: Mapping[Uuid, str]) -> Decision[None]:
        """Delete the offsets of deleted topics (id -> name). A new topic of the same name has another id."""
        ids = {name: topic_id for topic_id, name in topics.items()}
        found = [
            (group_id, key, committed)
            for group_id in self._offsets.groups()
            for key, committed in self._offsets.group(group_id).items()
        ]
        doomed = dict.fromkeys(
            (group_id, key)
            for group_id, key, committed in (*found, *self._pending)
            if key.topic in ids and committed.is_of(ids[key.topic])
        )
        return Decision(None, [offset_tombstone(group_id, *key) for group_id, key in doomed], atomic=False)

    # expiry

    def expire(self) -> Decision[None]:
        """Delete what has been kept long enough, and the groups that have nothing left."""
        records: list[CoordinatorRecord] = []
        wall_ms = self._wall_ms()
        for group in self._groups.values():
            offsets = self._offsets.group(group.group_id)
            pending = self._pending.of_group(group.group_id)
            expired = [
                key
                for key, committed in offsets.items()
                if key not in pending and self._is_expired(group, key, committed, wall_ms)
            ]
            records += [offset_tombstone(group.group_id, *key) for key in expired]
            is_bare = len(expired) == len(offsets) and not pending
            if is_bare and group.state is GroupState.EMPTY and not group.pending_joins:
                records.append(group_tombstone(group.group_id))
        return Decision(None, records, atomic=False)

    def _is_expired(self, group: ClassicGroup, key: TopicPartition, committed: CommittedOffset, wall_ms: int) -> bool:
        if group.protocol_type is None:
            since_ms = committed.commit_ms
        elif group.state is GroupState.EMPTY:
            # A group from before the time of the change was recorded counts from the commit.
            since_ms = committed.commit_ms if group.state_since_ms is None else group.state_since_ms
        elif group.state is GroupState.STABLE and group.is_consumer_group and not group.is_subscribed(key.topic):
            since_ms = committed.commit_ms
        else:
            return False
        if committed.expire_ms != _NO_EXPIRY:
            return wall_ms >= committed.expire_ms
        return wall_ms - since_ms >= self._config.offsets_retention_minutes * 60_000

    # replay

    def replay(self, key: OffsetCommitKey, value: OffsetCommitValue | None, at: int, producer_id: int) -> None:
        """Take a record in, of a producer's transaction or of none (-1); it stands at offset `at`."""
        partition = TopicPartition(key.topic, key.partition)
        if value is None:
            self._offsets.remove(key.group, partition, at)
            self._pending.forget(key.group, partition)
        elif producer_id >= 0:
            self._pending.put(producer_id, key.group, partition, _committed(value, at))
        else:
            self._offsets.put(key.group, partition, _committed(value, at), at)

    def transaction_ended(self, at: int, producer_id: int, *, committed: bool) -> None:
        """Take a transaction's marker in; it stands at offset `at`."""
        for (group_id, key), pending in self._pending.take(producer_id).items():
            if not committed:
                continue
            known = self._offsets.get(group_id, key)
            if known is None or known.record_offset < pending.record_offset:
                self._offsets.put(group_id, key, pending, at)

    def high_watermark_moved(self, high_watermark: int) -> None:
        """What lies below is replicated."""
        self._offsets.advance(high_watermark)


def _commit_value(
    partition: OffsetCommitRequestPartition | TxnOffsetCommitRequestPartition,
    wall_ms: int,
    expire_ms: int,
    topic_id: Uuid,
) -> OffsetCommitValue:
    return OffsetCommitValue(
        offset=partition.committed_offset,
        leader_epoch=partition.committed_leader_epoch,
        metadata=partition.committed_metadata or "",
        commit_timestamp=wall_ms,
        expire_timestamp=expire_ms,
        topic_id=topic_id,
    )


def _committed(value: OffsetCommitValue, at: int) -> CommittedOffset:
    return CommittedOffset(
        value.offset,
        value.leader_epoch,
        value.metadata,
        value.commit_timestamp,
        value.expire_timestamp,
        value.topic_id,
        at,
    )


def _all_offsets(
    group_id: str, offsets: Mapping[TopicPartition, CommittedOffset], unstable: Collection[TopicPartition] = ()
) -> OffsetFetchResponseGroup:
    topics: dict[str, OffsetFetchResponseTopics] = {}
    for key, committed in offsets.items():
        topic = topics.get(key.topic)
        if topic is None:
            topic = topics[key.topic] = OffsetFetchResponseTopics(name=key.topic, partitions=[])
        topic.partitions.append(_partition_answer(key.partition, committed, is_stable=key not in unstable))
    return OffsetFetchResponseGroup(group_id=group_id, topics=list(topics.values()))


def _asked_offsets(
    request: OffsetFetchRequestGroup,
    get: Callable[[TopicPartition], CommittedOffset | None],
    unstable: Collection[TopicPartition] = (),
) -> OffsetFetchResponseGroup:
    assert request.topics is not None
    topics = []
    for topic in request.topics:
        partitions = []
        for index in topic.partition_indexes:
            key = TopicPartition(topic.name, index)
            committed = get(key)
            if committed is not None and not committed.is_of(topic.topic_id):
                committed = None  # of a topic that had this name before
            partitions.append(_partition_answer(index, committed, is_stable=key not in unstable))
        topics.append(OffsetFetchResponseTopics(name=topic.name, topic_id=topic.topic_id, partitions=partitions))
    return OffsetFetchResponseGroup(group_id=request.group_id, topics=topics)


def _partition_answer(
    index: int, committed: CommittedOffset | None, *, is_stable: bool
) -> OffsetFetchResponsePartitions:
    if committed is None or not is_stable:
        return OffsetFetchResponsePartitions(
            partition_index=index,
            committed_offset=NO_OFFSET,
            committed_leader_epoch=_NO_EPOCH,
            metadata="",
            error_code=0 if is_stable else UnstableOffsetCommit.code,
        )
    return OffsetFetchResponsePartitions(
        partition_index=index,
        committed_offset=committed.offset,
        committed_leader_epoch=committed.leader_epoch,
        metadata=committed.metadata,
    )
