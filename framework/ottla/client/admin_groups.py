"""The admin client's part for groups: which there are, who is in them, and their offsets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ottla.client.admin_core import AdminBase, by_topic
from ottla.client.admin_types import GroupDescription, GroupListing, MemberDescription, outcome
from ottla.client.cluster import Purpose, Versioned
from ottla.client.topic_partition import OffsetAndMetadata, TopicPartition
from ottla.errors import DecodeError, KafkaError, Retriable, error_for
from ottla_wire.messages.consumer_protocol import ConsumerProtocolAssignment
from ottla_wire.messages.delete_groups import DeleteGroupsRequest
from ottla_wire.messages.describe_groups import DescribeGroupsRequest
from ottla_wire.messages.list_groups import ListGroupsRequest
from ottla_wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from ottla_wire.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteRequestPartition,
    OffsetDeleteRequestTopic,
)
from ottla_wire.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopic,
    OffsetFetchRequestTopics,
)
from ottla_wire.schema import Request

NAMES_NOT_IDS = 9
"""The last version of OffsetCommit and OffsetFetch with topic names: 10 has ids, and a deleted topic has none."""


class GroupsAdmin(AdminBase):
    """Groups and their offsets."""

    async def list_groups(
        self, *, states: Iterable[str] = (), types: Iterable[str] = (), timeout: float | None = None
    ) -> list[GroupListing]:
        """All groups of the cluster, or those in some states ("Stable") or of some types ("consumer").

        Raises:
            KafkaError: a broker could not answer; the list would not be whole.
        """
        deadline_ms = self._deadline_ms(timeout)
        wanted_states, wanted_types = list(states), list(types)

        def build(version: int) -> Request:
            return ListGroupsRequest(
                states_filter=wanted_states if version >= 4 else [], types_filter=wanted_types if version >= 5 else []
            )

        async def ask(node_id: int) -> Any:
            answer = await self.cluster.send(
                node_id, Versioned(ListGroupsRequest, build), timeout_ms=self._left_ms(deadline_ms)
            )
            _raise(answer.error_code)
            return answer

        await self.cluster.refresh(timeout_ms=max(1, deadline_ms - self.cluster.now_ms()))
        found: dict[str, GroupListing] = {}
        for node in self.cluster.metadata.nodes():
            answer = await self._retrying(lambda node_id=node.id: ask(node_id), deadline_ms)  # type: ignore[misc]
            for group in answer.groups:
                found[group.group_id] = GroupListing(
                    group.group_id, group.protocol_type, group.group_state or None, group.group_type or None
                )
        return [found[group_id] for group_id in sorted(found)]

    async def describe_groups(
        self, group_ids: Iterable[str], *, timeout: float | None = None
    ) -> dict[str, GroupDescription]:
        """Groups of the classic protocol with their members and what these are assigned.

        Raises:
            GroupIdNotFound: there is no such group; brokers before Kafka 4.0 describe it as Dead instead.
            GroupAuthorizationFailed, ...: the one group asked for could not be described.
            SomeFailed: some of several could not be.
        """
        deadline_ms = self._deadline_ms(timeout)
        results: dict[str, GroupDescription] = {}
        errors: dict[str, KafkaError] = {}
        for group_id in group_ids:

            async def ask(node_id: int, group_id: str = group_id) -> GroupDescription:
                answer = await self._send(node_id, DescribeGroupsRequest(groups=[group_id]), deadline_ms)
                found = answer.groups[0]
                _raise(found.error_code, found.error_message)
                return self._description(found, node_id)

            try:
                results[group_id] = await self._of_coordinator(group_id, ask, deadline_ms)
            except KafkaError as error:
                errors[group_id] = error
        return outcome("describe_groups", results, errors)

    async def delete_groups(self, group_ids: Iterable[str], *, timeout: float | None = None) -> None:
        """Delete groups that have no members, and their offsets.

        Raises:
            NonEmptyGroup, GroupIdNotFound, ...: the one group asked for could not be deleted.
            SomeFailed: some of several could not be.
        """
        deadline_ms = self._deadline_ms(timeout)
        deleted: dict[str, None] = {}
        errors: dict[str, KafkaError] = {}
        for group_id in group_ids:

            async def ask(node_id: int, group_id: str = group_id) -> None:
                answer = await self._send(node_id, DeleteGroupsRequest(groups_names=[group_id]), deadline_ms)
                _raise(answer.results[0].error_code, answer.results[0].error_message)

            try:
                await self._of_coordinator(group_id, ask, deadline_ms)
                deleted[group_id] = None
            except KafkaError as error:
                errors[group_id] = error
        outcome("delete_groups", deleted, errors)

    async def list_group_offsets(
        self,
        group_id: str,
        partitions: Iterable[TopicPartition] | None = None,
        *,
        require_stable: bool = False,
        timeout: float | None = None,
    ) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """What a group has committed, for some partitions or for all; None for a partition without commit.

        `require_stable` waits for transactions that are about to change them.

        Raises:
            GroupAuthorizationFailed, ...: the offsets could not be read.
            SomeFailed: those of some partitions could not.
        """
        deadline_ms = self._deadline_ms(timeout)
        wanted = None if partitions is None else by_topic(partitions)

        def build(version: int) -> Request:
            return _offset_fetch(version, group_id, wanted, require_stable)

        async def ask(node_id: int) -> tuple[dict[TopicPartition, OffsetAndMetadata | None], dict[Any, KafkaError]]:
            answer = await self._send(
                node_id, Versioned(OffsetFetchRequest, build), deadline_ms, max_version=NAMES_NOT_IDS
            )
            found = answer.groups[0] if answer.groups else answer
            _raise(found.error_code)
            return _offsets(found)

        results, errors = await self._of_coordinator(group_id, ask, deadline_ms)
        return outcome("list_group_offsets", results, errors)

    async def alter_group_offsets(
        self, group_id: str, offsets: Mapping[TopicPartition, OffsetAndMetadata | int], *, timeout: float | None = None
    ) -> None:
        """Set offsets of a group that has no members.

        Raises:
            UnknownMemberId: the group has members: stop them first.
            SomeFailed: the offsets of some partitions could not be set.
        """
        deadline_ms = self._deadline_ms(timeout)
        topics = [
            OffsetCommitRequestTopic(
                name=topic,
                partitions=[_commit(index, offsets[TopicPartition(topic, index)]) for index in indexes],
            )
            for topic, indexes in by_topic(offsets).items()
        ]

        async def ask(node_id: int) -> Any:
            request = OffsetCommitRequest(group_id=group_id, topics=topics)
            answer = await self._send(node_id, request, deadline_ms, max_version=NAMES_NOT_IDS)
            return _partition_errors(answer)

        done, errors = await self._of_coordinator(group_id, ask, deadline_ms)
        outcome("alter_group_offsets", done, errors)

    async def delete_group_offsets(
        self, group_id: str, partitions: Iterable[TopicPartition], *, timeout: float | None = None
    ) -> None:
        """Forget offsets of a group, of topics that no member is subscribed to.

        Raises:
            GroupSubscribedToTopic, GroupIdNotFound, ...: the one offset asked for could not be deleted.
            SomeFailed: some of several could not be.
        """
        deadline_ms = self._deadline_ms(timeout)
        topics = [
            OffsetDeleteRequestTopic(
                name=topic, partitions=[OffsetDeleteRequestPartition(partition_index=index) for index in indexes]
            )
            for topic, indexes in by_topic(partitions).items()
        ]

        async def ask(node_id: int) -> Any:
            answer = await self._send(node_id, OffsetDeleteRequest(group_id=group_id, topics=topics), deadline_ms)
            _raise(answer.error_code)
            return _partition_errors(answer)

        done, errors = await self._of_coordinator(group_id, ask, deadline_ms)
        outcome("delete_group_offsets", done, errors)

    # --- parts

    async def _send(
        self, node_id: int, request: Request | Versioned, deadline_ms: int, max_version: int | None = None
    ) -> Any:
        return await self.cluster.send(
            node_id,
            request,
            purpose=Purpose.CONTROL,
            timeout_ms=self._left_ms(deadline_ms),
            max_version=max_version,
        )

    def _description(self, found: Any, node_id: int) -> GroupDescription:
        return GroupDescription(
            found.group_id,
            found.group_state,
            found.protocol_type,
            found.protocol_data,
            self.cluster.metadata.node(node_id),
            tuple(
                MemberDescription(
                    member.member_id,
                    member.group_instance_id,
                    member.client_id,
                    member.client_host,
                    _assignment(found.protocol_type, member.member_assignment),
                )
                for member in found.members
            ),
        )


def _raise(code: int, message: str | None = None) -> None:
    error = error_for(code, message)
    if error is not None:
        raise error


def _assignment(protocol_type: str, encoded: bytes) -> tuple[TopicPartition, ...]:
    """A member's partitions; other programs than consumers (Connect) put something else there."""
    if protocol_type != "consumer" or not encoded:
        return ()
    try:
        assigned = ConsumerProtocolAssignment.decode_with_version(encoded)
    except DecodeError:
        return ()
    return tuple(
        TopicPartition(topic.topic, index) for topic in assigned.assigned_partitions for index in topic.partitions
    )


def _offset_fetch(version: int, group_id: str, wanted: dict[str, list[int]] | None, require_stable: bool) -> Request:
    stable = require_stable and version >= 7
    if version < 8:
        topics = None if wanted is None else [
            OffsetFetchRequestTopic(name=name, partition_indexes=indexes) for name, indexes in wanted.items()
        ]  # fmt: skip
        return OffsetFetchRequest(group_id=group_id, topics=topics, groups=[], require_stable=stable)
    of_group = None if wanted is None else [
        OffsetFetchRequestTopics(name=name, partition_indexes=indexes) for name, indexes in wanted.items()
    ]  # fmt: skip
    group = OffsetFetchRequestGroup(group_id=group_id, topics=of_group)
    return OffsetFetchRequest(groups=[group], topics=[], require_stable=stable)


def _offsets(found: Any) -> tuple[dict[TopicPartition, OffsetAndMetadata | None], dict[TopicPartition, KafkaError]]:
    results: dict[TopicPartition, OffsetAndMetadata | None] = {}
    errors: dict[TopicPartition, KafkaError] = {}
    for topic in found.topics:
        for partition in topic.partitions:
            place = TopicPartition(topic.name, partition.partition_index)
            error = error_for(partition.error_code)
            if isinstance(error, Retriable):
                raise error
            if error is not None:
                errors[place] = error
            elif partition.committed_offset < 0:
                results[place] = None
            else:
                epoch = partition.committed_leader_epoch
                results[place] = OffsetAndMetadata(
                    partition.committed_offset, None if epoch < 0 else epoch, partition.metadata or ""
                )
    return results, errors


def _commit(index: int, given: OffsetAndMetadata | int) -> OffsetCommitRequestPartition:
    offset = OffsetAndMetadata(given) if isinstance(given, int) else given
    return OffsetCommitRequestPartition(
        partition_index=index,
        committed_offset=offset.offset,
        committed_leader_epoch=-1 if offset.leader_epoch is None else offset.leader_epoch,
        committed_metadata=offset.metadata,
    )


def _partition_errors(answer: Any) -> tuple[dict[TopicPartition, None], dict[TopicPartition, KafkaError]]:
    done: dict[TopicPartition, None] = {}
    errors: dict[TopicPartition, KafkaError] = {}
    for topic in answer.topics:
        for partition in topic.partitions:
            place = TopicPartition(topic.name, partition.partition_index)
            error = error_for(partition.error_code)
            if isinstance(error, Retriable):
                raise error
            if error is None:
                done[place] = None
            else:
                errors[place] = error
    return done, errors
