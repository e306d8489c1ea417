"""OffsetForLeaderEpoch (key 23): where an epoch ends, so that a reader sees whether its log was truncated (KIP-320).

2 baseline: current leader epoch. 3 replica id. 4 flexible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.api import error_code_of
from ottla_wire.messages.offset_for_leader_epoch import (
    EpochEndOffset,
    OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse,
    OffsetForLeaderTopicResult,
)

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext


def handle(
    broker: Broker, context: RequestContext, request: OffsetForLeaderEpochRequest
) -> OffsetForLeaderEpochResponse:
    """Only the leader answers; an epoch it does not know gives epoch -1 and offset -1."""
    response = OffsetForLeaderEpochResponse()
    for topic in request.topics:
        results = []
        for asked in topic.partitions:
            result = EpochEndOffset(partition=asked.partition)
            try:
                partition = broker.replicas.partition(topic.topic, asked.partition)
                partition.check_leader(asked.current_leader_epoch)
                found = partition.log.leader_epochs.end_offset_for(asked.leader_epoch, partition.log.log_end_offset)
                if found is not None:
                    result.leader_epoch, result.end_offset = found
            except Exception as error:  # noqa: BLE001 - one partition's failure is not the others'
                result.error_code = error_code_of(error)
            results.append(result)
        response.topics.append(OffsetForLeaderTopicResult(topic=topic.topic, partitions=results))
    return response
