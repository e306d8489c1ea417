"""OffsetDelete (key 47): delete stored positions of topics that the group does not subscribe (KIP-496).

Only version 0. Partitions that do not exist are refused here, the coordinator decides on the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_wire.errors import UnknownTopicOrPartition
from ottla_wire.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteRequestTopic,
    OffsetDeleteResponse,
    OffsetDeleteResponsePartition,
    OffsetDeleteResponseTopic,
)

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.pending import Pending


def handle(broker: Broker, context: RequestContext, request: OffsetDeleteRequest) -> Pending[OffsetDeleteResponse]:
    """Delete; answered when the deletions are replicated."""
    unknown = [answer for topic in request.topics if (answer := _take_unknown(broker, topic)).partitions]
    request.topics = [topic for topic in request.topics if topic.partitions]

    def merge(response: OffsetDeleteResponse) -> OffsetDeleteResponse:
        by_name = {topic.name: topic for topic in response.topics}
        for topic in unknown:
            if topic.name in by_name:
                by_name[topic.name].partitions += topic.partitions
            else:
                response.topics.append(topic)
        return response

    return broker.groups.delete_offsets(context, request).then(merge)


def _take_unknown(broker: Broker, topic: OffsetDeleteRequestTopic) -> OffsetDeleteResponseTopic:
    """Take the partitions that do not exist out of the request, and answer them."""
    found = broker.controller.image.topics_by_name.get(topic.name)
    existing = () if found is None else found.partitions
    missing = [partition for partition in topic.partitions if partition.partition_index not in existing]
    topic.partitions = [partition for partition in topic.partitions if partition.partition_index in existing]
    return OffsetDeleteResponseTopic(
        name=topic.name,
        partitions=[
            OffsetDeleteResponsePartition(
                partition_index=partition.partition_index, error_code=UnknownTopicOrPartition.code
            )
            for partition in missing
        ],
    )
