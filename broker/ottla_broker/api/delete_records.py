"""DeleteRecords (key 21): raise the log start. 2 flexible.

The answer waits until every live replica has raised its own; with one replica that is so at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.api import error_code_of
from ottla_broker.controller.topic_names import is_internal
from ottla_wire import errors
from ottla_wire.messages.delete_records import (
    DeleteRecordsPartitionResult,
    DeleteRecordsRequest,
    DeleteRecordsResponse,
    DeleteRecordsTopicResult,
)

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext


def handle(broker: Broker, context: RequestContext, request: DeleteRecordsRequest) -> DeleteRecordsResponse:
    """Delete the records below an offset (-1: below the high watermark) of each partition."""
    response = DeleteRecordsResponse()
    for topic in request.topics:
        results = []
        for asked in topic.partitions:
            result = DeleteRecordsPartitionResult(partition_index=asked.partition_index, low_watermark=-1)
            try:
                result.low_watermark = _delete(broker, topic.name, asked.partition_index, asked.offset)
            except Exception as error:  # noqa: BLE001 - one partition's failure is not the others'
                result.error_code = error_code_of(error)
            results.append(result)
        response.topics.append(DeleteRecordsTopicResult(name=topic.name, partitions=results))
    return response


def _delete(broker: Broker, topic: str, index: int, offset: int) -> int:
    if broker.controller.image.partition(topic, index) is None:
        raise errors.UnknownTopicOrPartition(f"there is no partition {topic}-{index}")
    if is_internal(topic):
        raise errors.InvalidTopic(f"{topic} is the broker's own, its records are not deleted by hand")
    partition = broker.replicas.partition(topic, index)
    partition.delete_records(offset)
    return partition.low_watermark
