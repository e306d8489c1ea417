"""DescribeLogDirs (key 35): the log folder, and the size of each partition in it.

Versions: 3 has a top-level error, 4 the size of the file system, 5 says whether the folder takes new partitions.
"""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

from ottla_wire.errors import KafkaStorageError
from ottla_wire.messages.describe_log_dirs import (
    DescribeLogDirsPartition,
    DescribeLogDirsRequest,
    DescribeLogDirsResponse,
    DescribeLogDirsResult,
    DescribeLogDirsTopic,
)

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.replication.partition import Partition

logger = logging.getLogger(__name__)


def handle(broker: Broker, context: RequestContext, request: DescribeLogDirsRequest) -> DescribeLogDirsResponse:
    """Describe the one log folder; of its partitions those asked for, or all."""
    folder = str(broker.config.data.absolute())
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        logger.exception("the log folder %s cannot be read", folder)
        return DescribeLogDirsResponse(
            results=[DescribeLogDirsResult(error_code=KafkaStorageError.code, log_dir=folder, topics=[])]
        )
    result = DescribeLogDirsResult(
        log_dir=folder, topics=_topics(broker, request), total_bytes=usage.total, usable_bytes=usage.free
    )
    return DescribeLogDirsResponse(results=[result])


def _topics(broker: Broker, request: DescribeLogDirsRequest) -> list[DescribeLogDirsTopic]:
    wanted = None
    if request.topics is not None:
        wanted = {(topic.topic, index) for topic in request.topics for index in topic.partitions}
    by_topic: dict[str, list[DescribeLogDirsPartition]] = {}
    for partition in broker.replicas:
        if wanted is None or (partition.topic, partition.index) in wanted:
            by_topic.setdefault(partition.topic, []).append(_describe(partition))
    return [DescribeLogDirsTopic(name=name, partitions=partitions) for name, partitions in by_topic.items()]


def _describe(partition: Partition) -> DescribeLogDirsPartition:
    log = partition.log
    return DescribeLogDirsPartition(
        partition_index=partition.index,
        partition_size=log.size_bytes,
        offset_lag=max(partition.high_watermark - log.log_end_offset, 0),
        is_future_key=False,
    )
