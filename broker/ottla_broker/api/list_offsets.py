"""ListOffsets (key 2): offsets by timestamp, or by one of the special timestamps.

1 baseline. 2 isolation level. 4 leader epoch. 5 OFFSET_NOT_AVAILABLE. 6 flexible. 7 max timestamp (KIP-734). 8 earliest
local (KIP-405). 9 latest tiered (KIP-1005). 10 time-out (KIP-1075). 11 earliest pending upload (KIP-1023).

There is no tiered storage: earliest local is the log start, tiered and pending upload are -1.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from ottla_broker.api import error_code_of
from ottla_broker.replication.partition import CONSUMER, DEBUGGING_CONSUMER, Partition
from ottla_wire import errors
from ottla_wire.messages.list_offsets import (
    ListOffsetsPartition,
    ListOffsetsPartitionResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
    ListOffsetsTopicResponse,
)

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext

LATEST = -1
EARLIEST = -2
MAX_TIMESTAMP = -3
EARLIEST_LOCAL = -4
LATEST_TIERED = -5
EARLIEST_PENDING_UPLOAD = -6

_FIRST_VERSION = {
    LATEST: 1,
    EARLIEST: 1,
    MAX_TIMESTAMP: 7,
    EARLIEST_LOCAL: 8,
    LATEST_TIERED: 9,
    EARLIEST_PENDING_UPLOAD: 11,
}
_FIRST_VERSION_WITH_OFFSET_NOT_AVAILABLE = 5
_FIRST_VERSION_WITH_LEADER_EPOCH = 4


class _Found(NamedTuple):
    offset: int
    timestamp_ms: int = -1
    leader_epoch: int | None = None


_NOTHING = _Found(-1)


def handle(broker: Broker, context: RequestContext, request: ListOffsetsRequest) -> ListOffsetsResponse:
    """Look up each partition; a partition that is named twice is refused each time."""
    named = Counter((topic.name, p.partition_index) for topic in request.topics for p in topic.partitions)
    response = ListOffsetsResponse()
    for topic in request.topics:
        results = []
        for asked in topic.partitions:
            result = ListOffsetsPartitionResponse(partition_index=asked.partition_index)
            try:
                if named[topic.name, asked.partition_index] > 1:
                    raise errors.InvalidRequest(f"{topic.name}-{asked.partition_index} is named more than once")
                found = _look_up(broker, context, request, topic.name, asked)
            except Exception as error:  # noqa: BLE001 - one partition's failure is not the others'
                result.error_code = _code(error, context.api_version)
            else:
                result.offset = found.offset
                result.timestamp = found.timestamp_ms
                if found.leader_epoch is not None and context.api_version >= _FIRST_VERSION_WITH_LEADER_EPOCH:
                    result.leader_epoch = found.leader_epoch
            results.append(result)
        response.topics.append(ListOffsetsTopicResponse(name=topic.name, partitions=results))
    return response


def _code(error: Exception, version: int) -> int:
    if isinstance(error, errors.OffsetNotAvailable) and version < _FIRST_VERSION_WITH_OFFSET_NOT_AVAILABLE:
        return errors.LeaderNotAvailable.code
    return error_code_of(error)


def _look_up(
    broker: Broker, context: RequestContext, request: ListOffsetsRequest, topic: str, asked: ListOffsetsPartition
) -> _Found:
    timestamp = asked.timestamp
    if timestamp < 0 and context.api_version < _FIRST_VERSION.get(timestamp, 2**15):
        raise errors.UnsupportedVersion(f"timestamp {timestamp} is not known in version {context.api_version}")
    partition = broker.replicas.partition(topic, asked.partition_index)
    if request.replica_id == DEBUGGING_CONSUMER:
        partition.check_epoch(asked.current_leader_epoch)
    else:
        partition.check_leader(asked.current_leader_epoch)
    log = partition.log
    limit = partition.limit(request.replica_id, request.isolation_level)
    not_available = _behind_epoch_start(partition) if request.replica_id == CONSUMER else None
    if timestamp == LATEST:
        if not_available is not None:
            raise not_available
        return _Found(limit, leader_epoch=partition.leader_epoch)
    if timestamp in (EARLIEST, EARLIEST_LOCAL):
        earliest = log.leader_epochs.earliest
        known = earliest is not None and earliest.start_offset <= log.log_start_offset
        return _Found(log.log_start_offset, leader_epoch=earliest.epoch if earliest is not None and known else None)
    if timestamp in (LATEST_TIERED, EARLIEST_PENDING_UPLOAD):
        return _Found(-1, leader_epoch=-1)
    if timestamp == MAX_TIMESTAMP:
        found = log.offset_of_max_timestamp(limit)
    else:
        found = log.offset_for_timestamp(timestamp, limit)
    if found is not None:
        return _Found(found.offset, found.timestamp_ms, found.leader_epoch if found.leader_epoch >= 0 else None)
    if not_available is not None:
        raise not_available
    return _NOTHING


def _behind_epoch_start(partition: Partition) -> errors.OffsetNotAvailable | None:
    """A new leader's high watermark may lag behind what its predecessor told: "latest" would go backwards."""
    start = partition.epoch_start_offset
    if start is None or start <= partition.high_watermark:
        return None
    return errors.OffsetNotAvailable(
        f"{partition.name}: the high watermark {partition.high_watermark} has not reached the start {start} of the "
        "leader's epoch"
    )
