"""OffsetFetch (key 9): read positions that a group has stored.

1 has no error for the group: each partition carries it. 2 a null list of topics means all (KIP-88). 7 RequireStable
(KIP-447). 8 several groups (KIP-709). 9 members of the consumer protocol; groups of the classic one ignore who asks.
10 topic ids instead of names (KIP-848).

What is not known is offset -1 without an error. A coordinator that cannot be read in time is NOT_COORDINATOR here, for
clients before Kafka 3.9 do not try again after COORDINATOR_NOT_AVAILABLE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.api import error_code_of
from ottla_broker.coordinator.pendings import gather, recover
from ottla_wire.errors import CoordinatorNotAvailable, NotCoordinator, UnknownTopicId
from ottla_wire.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopics,
    OffsetFetchResponse,
    OffsetFetchResponseGroup,
    OffsetFetchResponsePartition,
    OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
)
from ottla_wire.schema import Uuid

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.pending import Pending

_GROUP_ERROR_SINCE = 2
_BATCHED_SINCE = 8
_TOPIC_IDS_SINCE = 10


def handle(broker: Broker, context: RequestContext, request: OffsetFetchRequest) -> Pending[OffsetFetchResponse]:
    """Answer with the offsets of all groups asked about."""
    if context.api_version >= _BATCHED_SINCE:
        fetched = [_fetch(broker, context, group, request.require_stable) for group in request.groups]
        return gather(fetched).then(lambda groups: OffsetFetchResponse(groups=groups, topics=[]))
    only = _fetch(broker, context, _as_group(request), request.require_stable)
    return only.then(lambda group: _as_single(group, request, context.api_version))


def error_response(request: OffsetFetchRequest, code: int, message: str | None) -> OffsetFetchResponse:
    """The answer to a request that failed as a whole: every group carries the error."""
    groups = [OffsetFetchResponseGroup(group_id=group.group_id, topics=[], error_code=code) for group in request.groups]
    return OffsetFetchResponse(groups=groups, topics=_failed_topics(request, code), error_code=code)


def _fetch(
    broker: Broker, context: RequestContext, group: OffsetFetchRequestGroup, require_stable: bool
) -> Pending[OffsetFetchResponseGroup]:
    by_id = context.api_version >= _TOPIC_IDS_SINCE
    all_topics = group.topics is None
    unknown = _name_topics(broker, group) if by_id else []

    def refused(error: Exception) -> OffsetFetchResponseGroup:
        code = NotCoordinator.code if isinstance(error, CoordinatorNotAvailable) else error_code_of(error)
        return OffsetFetchResponseGroup(group_id=group.group_id, topics=[], error_code=code)

    def complete(response: OffsetFetchResponseGroup) -> OffsetFetchResponseGroup:
        if response.error_code:
            return response
        if by_id and all_topics:
            response.topics = _identify_topics(broker, response.topics)
        response.topics += unknown
        return response

    fetched = broker.groups.fetch_offsets(context, group, require_stable=require_stable)
    return recover(fetched, refused).then(complete)


def _name_topics(broker: Broker, group: OffsetFetchRequestGroup) -> list[OffsetFetchResponseTopics]:
    """Put names to the ids; topics without one are taken out and answered."""
    topics = group.topics or []
    known: list[OffsetFetchRequestTopics] = []
    unknown: list[OffsetFetchResponseTopics] = []
    for topic in topics:
        found = broker.controller.image.topics_by_id.get(topic.topic_id)
        if found is None:
            unknown.append(_unknown_topic(topic))
        else:
            topic.name = found.name
            known.append(topic)
    if group.topics is not None:
        group.topics = known
    return unknown


def _unknown_topic(topic: OffsetFetchRequestTopics) -> OffsetFetchResponseTopics:
    return OffsetFetchResponseTopics(
        topic_id=topic.topic_id,
        partitions=[
            OffsetFetchResponsePartitions(
                partition_index=index, committed_offset=-1, metadata="", error_code=UnknownTopicId.code
            )
            for index in topic.partition_indexes
        ],
    )


def _identify_topics(broker: Broker, topics: list[OffsetFetchResponseTopics]) -> list[OffsetFetchResponseTopics]:
    """Put ids to the names; a topic that is gone has none, and cannot be answered."""
    by_name = broker.controller.image.topics_by_name
    for topic in topics:
        found = by_name.get(topic.name)
        topic.topic_id = Uuid.ZERO if found is None else found.id
    return [topic for topic in topics if topic.topic_id != Uuid.ZERO]


def _as_group(request: OffsetFetchRequest) -> OffsetFetchRequestGroup:
    """The one group of versions before 8 in the form of the later ones."""
    topics = request.topics
    return OffsetFetchRequestGroup(
        group_id=request.group_id,
        topics=None
        if topics is None
        else [OffsetFetchRequestTopics(name=topic.name, partition_indexes=topic.partition_indexes) for topic in topics],
    )


def _as_single(group: OffsetFetchResponseGroup, request: OffsetFetchRequest, version: int) -> OffsetFetchResponse:
    """The answer of versions before 8."""
    if group.error_code and version < _GROUP_ERROR_SINCE:
        return OffsetFetchResponse(groups=[], topics=_failed_topics(request, group.error_code))
    topics = [
        OffsetFetchResponseTopic(
            name=topic.name,
            partitions=[
                OffsetFetchResponsePartition(
                    partition_index=partition.partition_index,
                    committed_offset=partition.committed_offset,
                    committed_leader_epoch=partition.committed_leader_epoch,
                    metadata=partition.metadata,
                    error_code=partition.error_code,
                )
                for partition in topic.partitions
            ],
        )
        for topic in group.topics
    ]
    return OffsetFetchResponse(groups=[], topics=topics, error_code=group.error_code)


def _failed_topics(request: OffsetFetchRequest, code: int) -> list[OffsetFetchResponseTopic]:
    return [
        OffsetFetchResponseTopic(
            name=topic.name,
            partitions=[
                OffsetFetchResponsePartition(partition_index=index, committed_offset=-1, metadata="", error_code=code)
                for index in topic.partition_indexes
            ],
        )
        for topic in request.topics or []
    ]
