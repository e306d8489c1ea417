"""OffsetCommit (key 8): store positions for a group.

2-4 carry a retention time of their own. 6 leader epochs (KIP-320). 7 static members (KIP-345). Before 9 a generation of
a group that does not exist is ILLEGAL_GENERATION, then GROUP_ID_NOT_FOUND. 10 topic ids instead of names (KIP-848).

Partitions that do not exist are refused here and the rest goes to the coordinator; what it refuses as a whole (a wrong
generation, say) becomes the error of each of the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.api import error_code_of
from ottla_broker.coordinator.pendings import recover
from ottla_broker.pending import Pending
from ottla_wire.errors import GroupIdNotFound, IllegalGeneration, UnknownTopicId, UnknownTopicOrPartition
from ottla_wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
    OffsetCommitResponse,
    OffsetCommitResponsePartition,
    OffsetCommitResponseTopic,
)
from ottla_wire.schema import Uuid

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.controller.image import TopicImage

_GROUP_ID_NOT_FOUND_SINCE = 9
_TOPIC_IDS_SINCE = 10


def handle(broker: Broker, context: RequestContext, request: OffsetCommitRequest) -> Pending[OffsetCommitResponse]:
    """Commit; answered when the offsets are replicated."""
    unknown = OffsetCommitResponse(topics=[])
    known: list[OffsetCommitRequestTopic] = []
    for topic in request.topics:
        _sort(topic, _find(broker, context, topic), known, unknown)
    if not known:
        return Pending.completed(unknown)
    request.topics = known

    def refused(error: Exception) -> OffsetCommitResponse:
        if isinstance(error, GroupIdNotFound) and context.api_version < _GROUP_ID_NOT_FOUND_SINCE:
            error = IllegalGeneration(str(error))
        code = error_code_of(error)
        return OffsetCommitResponse(topics=[_answer(topic, topic.partitions, code) for topic in known])

    def merge(response: OffsetCommitResponse) -> OffsetCommitResponse:
        for topic in unknown.topics:
            answered = next((other for other in response.topics if other.name == topic.name and topic.name), None)
            if answered is None:
                response.topics.append(topic)
            else:
                answered.partitions += topic.partitions
        return response

    return recover(broker.groups.commit_offsets(context, request), refused).then(merge)


def error_response(request: OffsetCommitRequest, code: int, message: str | None) -> OffsetCommitResponse:
    """The answer to a request that failed as a whole: every partition carries the error."""
    return OffsetCommitResponse(topics=[_answer(topic, topic.partitions, code) for topic in request.topics])


def _find(broker: Broker, context: RequestContext, topic: OffsetCommitRequestTopic) -> TopicImage | None:
    image = broker.controller.image
    if context.api_version >= _TOPIC_IDS_SINCE:
        return image.topics_by_id.get(topic.topic_id)
    return image.topics_by_name.get(topic.name)


def _sort(
    topic: OffsetCommitRequestTopic,
    found: TopicImage | None,
    known: list[OffsetCommitRequestTopic],
    unknown: OffsetCommitResponse,
) -> None:
    """Put the partitions that exist into `known`, the answers of the others into `unknown`."""
    if found is None:
        by_id = topic.topic_id != Uuid.ZERO
        code = UnknownTopicId.code if by_id else UnknownTopicOrPartition.code
        unknown.topics.append(_answer(topic, topic.partitions, code))
        return
    topic.name, topic.topic_id = found.name, found.id
    missing = [partition for partition in topic.partitions if partition.partition_index not in found.partitions]
    if missing:
        unknown.topics.append(_answer(topic, missing, UnknownTopicOrPartition.code))
        topic.partitions = [
            partition for partition in topic.partitions if partition.partition_index in found.partitions
        ]
    if topic.partitions:
        known.append(topic)


def _answer(
    topic: OffsetCommitRequestTopic, partitions: list[OffsetCommitRequestPartition], code: int
) -> OffsetCommitResponseTopic:
    return OffsetCommitResponseTopic(
        name=topic.name,
        topic_id=topic.topic_id,
        partitions=[
            OffsetCommitResponsePartition(partition_index=partition.partition_index, error_code=code)
            for partition in partitions
        ],
    )
