"""Talks to the group's coordinator: commits, committed offsets, and the requests of the membership. On the I/O loop.

The consumer has two connections to it. A JoinGroup is parked until the whole group has rejoined, and a broker works on
one request of a connection at a time: on one connection, heartbeats and commits would wait for it, and two members of a
group in one process would wait for each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ottla.client.backoff import Backoff
from ottla.client.cluster import Cluster, CoordinatorKind, Lane, Purpose
from ottla.client.consumer.membership import Generation
from ottla.client.consumer.subscription_state import by_topic
from ottla.client.topic_partition import OffsetAndMetadata, TopicPartition
from ottla.errors import (
    CommitFailed,
    CoordinatorNotAvailable,
    Disconnected,
    IllegalGeneration,
    KafkaError,
    NotCoordinator,
    RebalanceInProgress,
    RequestTimedOut,
    Retriable,
    UnknownMemberId,
    error_for,
)
from ottla_wire.messages.heartbeat import HeartbeatRequest
from ottla_wire.messages.join_group import JoinGroupRequest, JoinGroupResponse
from ottla_wire.messages.leave_group import LeaveGroupRequest, MemberIdentity
from ottla_wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from ottla_wire.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopics,
)
from ottla_wire.messages.sync_group import SyncGroupRequest, SyncGroupResponse

# The versions after these name topics by id, which not every broker of a rolling upgrade knows for every topic.
_COMMIT_BY_NAME = 9
_FETCH_BY_NAME = 9

JOIN_ALLOWANCE_MS = 5_000
"""How much longer than the rebalance timeout a JoinGroup may take: the coordinator answers at its end, not before."""

_LOST = (NotCoordinator, CoordinatorNotAvailable, Disconnected, RequestTimedOut)

Offsets = Mapping[TopicPartition, OffsetAndMetadata]


class CoordinatorClient:
    """The group's coordinator, wherever it is."""

    def __init__(
        self, cluster: Cluster, group_id: str, group_instance_id: str | None, client_id: str, backoff: Backoff
    ) -> None:
        self._cluster = cluster
        self._group_id = group_id
        self._group_instance_id = group_instance_id
        self._lane = Lane(client_id)
        self._join_lane = Lane(client_id)
        self._backoff = backoff
        self._commits = asyncio.Lock()

    def close(self) -> None:
        """Close the two connections."""
        self._cluster.close_lane(self._lane)
        self._cluster.close_lane(self._join_lane)

    def forget(self) -> None:
        """Look the coordinator up again before the next request."""
        self._cluster.forget_coordinator(self._group_id, CoordinatorKind.GROUP)

    # --- membership

    async def join(self, request: JoinGroupRequest, timeout_ms: int) -> JoinGroupResponse:
        """Send JoinGroup; the answer may carry an error code, MEMBER_ID_REQUIRED among them."""
        answer: JoinGroupResponse = await self._ask(request, timeout_ms, self._join_lane)
        return answer

    async def sync(self, request: SyncGroupRequest, timeout_ms: int) -> SyncGroupResponse:
        """Send SyncGroup; raises the answer's error."""
        answer: SyncGroupResponse = await self._ask(request, timeout_ms, self._join_lane)
        self.check(answer.error_code)
        return answer

    async def heartbeat(self, generation: Generation) -> None:
        """Send Heartbeat; raises the answer's error."""
        request = HeartbeatRequest(
            group_id=self._group_id,
            generation_id=generation.id,
            member_id=generation.member_id,
            group_instance_id=self._group_instance_id,
        )
        self.check((await self._ask(request)).error_code)

    async def leave(self, member_id: str, reason: str, timeout_ms: int | None = None) -> None:
        """Send LeaveGroup; raises the answer's error."""
        request = LeaveGroupRequest(
            group_id=self._group_id,
            members=[MemberIdentity(member_id=member_id, group_instance_id=None, reason=reason[:255])],
        )
        answer = await self._ask(request, timeout_ms)
        self.check(answer.error_code)
        for member in answer.members:
            self.check(member.error_code)

    def check(self, error_code: int, message: str | None = None) -> None:
        """Raise an answer's error; one that says "not here" makes the coordinator be looked up again."""
        error = error_for(error_code, message)
        if error is not None:
            if isinstance(error, _LOST):
                self.forget()
            raise error

    async def _ask(self, request: Any, timeout_ms: int | None = None, lane: Lane | None = None) -> Any:
        return await self._send(request, timeout_ms, lane or self._lane)

    async def _send(self, request: Any, timeout_ms: int | None, lane: Lane, max_version: int | None = None) -> Any:
        budget_ms = self._cluster.config.request_timeout_ms if timeout_ms is None else timeout_ms
        node_id = await self._cluster.find_coordinator(self._group_id, CoordinatorKind.GROUP, timeout_ms=budget_ms)
        try:
            return await self._cluster.send(
                node_id,
                request,
                purpose=Purpose.COORDINATOR,
                lane=lane,
                timeout_ms=timeout_ms,
                max_version=max_version,
            )
        except _LOST:
            self.forget()
            raise

    # --- offsets

    async def commit(self, offsets: Offsets, generation: Generation, *, deadline_ms: int | None) -> None:
        """Commit offsets, one commit at a time, in the order in which they were asked for.

        Args:
            offsets: what to commit.
            generation: the membership to commit under; the empty one for a consumer that assigns itself.
            deadline_ms: until when what can be tried again is; None: try once.

        Raises:
            CommitFailed: the membership is no more; the cause is the coordinator's error.
            RebalanceInProgress: the group is rebalancing; poll, and commit what is still assigned.
            KafkaError: the commit was refused for another reason, or (retriable) not carried out in time.
        """
        if not offsets:
            return
        async with self._commits:
            await self._retried(lambda: self._commit_once(offsets, generation), deadline_ms)

    async def _commit_once(self, offsets: Offsets, generation: Generation) -> None:
        topics = [
            OffsetCommitRequestTopic(
                name=topic,
                partitions=[_commit_partition(index, offsets[TopicPartition(topic, index)]) for index in indexes],
            )
            for topic, indexes in by_topic(offsets).items()
        ]
        request = OffsetCommitRequest(
            group_id=self._group_id,
            generation_id_or_member_epoch=generation.id,
            member_id=generation.member_id,
            group_instance_id=self._group_instance_id,
            topics=topics,
        )
        answer = await self._send(request, None, self._lane, _COMMIT_BY_NAME)
        errors = [
            (TopicPartition(topic.name, partition.partition_index), partition.error_code)
            for topic in answer.topics
            for partition in topic.partitions
            if partition.error_code
        ]
        for partition, error_code in errors:
            try:
                self.check(error_code)
            except (UnknownMemberId, IllegalGeneration) as error:
                raise CommitFailed.because_of(error) from error
            except RebalanceInProgress:
                raise commit_meets_rebalance() from None
            except KafkaError as error:
                raise type(error)(f"the offset of {partition} was not committed: {error}") from None

    async def committed(
        self, partitions: Iterable[TopicPartition], *, deadline_ms: int | None
    ) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """The group's committed offsets, None where there is none. Waits for open transactions (KIP-447).

        Raises:
            KafkaError: the coordinator refuses, or (retriable) could not be asked in time.
        """
        wanted = list(partitions)
        if not wanted:
            return {}
        found: dict[TopicPartition, OffsetAndMetadata | None]
        found = await self._retried(lambda: self._committed_once(wanted), deadline_ms)
        return found

    async def _committed_once(self, wanted: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata | None]:
        topics = by_topic(wanted)
        group = OffsetFetchRequestGroup(
            group_id=self._group_id,
            topics=[OffsetFetchRequestTopics(name=name, partition_indexes=indexes) for name, indexes in topics.items()],
        )
        request = OffsetFetchRequest(groups=[group], require_stable=True)
        answer = await self._send(request, None, self._lane, _FETCH_BY_NAME)
        found = answer.groups[0]
        self.check(found.error_code)
        committed: dict[TopicPartition, OffsetAndMetadata | None] = dict.fromkeys(wanted)
        for topic in found.topics:
            for partition in topic.partitions:
                self.check(partition.error_code)
                if partition.committed_offset >= 0:
                    epoch = partition.committed_leader_epoch
                    committed[TopicPartition(topic.name, partition.partition_index)] = OffsetAndMetadata(
                        partition.committed_offset, epoch if epoch >= 0 else None, partition.metadata or ""
                    )
        return committed

    async def _retried(self, attempt: Callable[[], Any], deadline_ms: int | None) -> Any:
        failures = 0
        while True:
            try:
                return await attempt()
            except Retriable:
                failures += 1
                pause_ms = self._backoff.pause_ms(failures)
                if deadline_ms is None or self._cluster.now_ms() + pause_ms >= deadline_ms:
                    raise
                await asyncio.sleep(pause_ms / 1000)


def commit_meets_rebalance() -> RebalanceInProgress:
    """What a commit fails with while the group rebalances: as with Java's client it is not lost yet."""
    return RebalanceInProgress(
        "the offsets were not committed, the group is rebalancing: poll() finishes that, then commit again what is "
        "still assigned"
    )


def _commit_partition(index: int, committed: OffsetAndMetadata) -> OffsetCommitRequestPartition:
    return OffsetCommitRequestPartition(
        partition_index=index,
        committed_offset=committed.offset,
        committed_leader_epoch=-1 if committed.leader_epoch is None else committed.leader_epoch,
        committed_metadata=committed.metadata,
    )
