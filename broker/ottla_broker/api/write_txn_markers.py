"""WriteTxnMarkers (key 27): the coordinator of a transaction has its end written into the partitions.

1 baseline. 2 the transaction's protocol version, on which the rule for the producer's epoch depends (KIP-1228).

A marker is answered when it is replicated (acks=all): only then may the coordinator forget the transaction. In a
partition of `__consumer_offsets` the group coordinator writes it, for it has offsets to settle with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.api import error_code_of
from ottla_broker.controller.topic_names import OFFSETS_TOPIC
from ottla_broker.coordinator.pendings import gather, recover
from ottla_broker.log.producer_state import AppendOrigin
from ottla_broker.pending import Pending
from ottla_broker.replication.delayed_produce import AwaitedWrite
from ottla_wire import errors
from ottla_wire.messages.write_txn_markers import (
    WritableTxnMarker,
    WritableTxnMarkerPartitionResult,
    WritableTxnMarkerResult,
    WritableTxnMarkerTopicResult,
    WriteTxnMarkersRequest,
    WriteTxnMarkersResponse,
)
from ottla_wire.records import end_transaction_marker

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext

_ACKS_ALL = -1

# The transaction coordinator does not expect these from a partition's leader; with the other one it tries again.
_NOT_YET = (errors.CoordinatorNotAvailable, errors.CoordinatorLoadInProgress, errors.NotCoordinator)


def handle(
    broker: Broker, context: RequestContext, request: WriteTxnMarkersRequest
) -> WriteTxnMarkersResponse | Pending[WriteTxnMarkersResponse]:
    """Write the markers; a partition that refuses its marker leaves the others alone."""
    response = WriteTxnMarkersResponse()
    waits: list[AwaitedWrite] = []
    groups: list[Pending[None]] = []
    by_producer: dict[int, WritableTxnMarkerResult] = {}
    for marker in request.markers:
        result = by_producer.get(marker.producer_id)
        if result is None:
            result = by_producer[marker.producer_id] = WritableTxnMarkerResult(producer_id=marker.producer_id)
            response.markers.append(result)
        _write(broker, marker, result, waits, groups)
    pendings: list[Pending[None]] = [pending for pending in groups if not pending.done()]
    if waits:
        written: Pending[WriteTxnMarkersResponse] = broker.replicas.await_writes(
            waits,
            _ACKS_ALL,
            response,
            timeout_ms=broker.config.request_timeout_ms,
            now_ms=broker.clock.now_ms(),
        )
        pendings.append(written.then(lambda _: None))
    if not pendings:
        return response
    return gather(pendings).then(lambda _: response)


def _write(
    broker: Broker,
    marker: WritableTxnMarker,
    result: WritableTxnMarkerResult,
    waits: list[AwaitedWrite],
    groups: list[Pending[None]],
) -> None:
    wall_ms = broker.clock.wall_ms()
    batch = end_transaction_marker(
        commit=marker.transaction_result,
        producer_id=marker.producer_id,
        producer_epoch=marker.producer_epoch,
        coordinator_epoch=marker.coordinator_epoch,
        timestamp_ms=wall_ms,
    )
    for topic in marker.topics:
        results = []
        for index in topic.partition_indexes:
            entry = WritableTxnMarkerPartitionResult(partition_index=index)
            results.append(entry)
            if topic.name == OFFSETS_TOPIC and broker.replicas.find(topic.name, index) is not None:
                groups.append(_complete_in_groups(broker, marker, index, entry))
                continue
            try:
                wait = _append(broker, topic.name, index, batch, marker.transaction_version, wall_ms, entry)
            except Exception as error:  # noqa: BLE001 - one partition's failure is not the others'
                entry.error_code = error_code_of(error)
            else:
                if wait is not None:
                    waits.append(wait)
        result.topics.append(WritableTxnMarkerTopicResult(name=topic.name, partitions=results))


def _append(
    broker: Broker,
    topic: str,
    index: int,
    batch: bytes,
    transaction_version: int,
    wall_ms: int,
    entry: WritableTxnMarkerPartitionResult,
) -> AwaitedWrite | None:
    partition = broker.replicas.find(topic, index)
    if partition is None or partition.log.offline is not None:
        raise errors.UnknownTopicOrPartition(f"{topic}-{index} has no replica here")
    info = partition.append(
        bytearray(batch),  # the log writes offset and epoch into it
        acks=_ACKS_ALL,
        wall_ms=wall_ms,
        origin=AppendOrigin.COORDINATOR,
        transaction_version=transaction_version,
    )
    end_offset = info.last_offset + 1
    return None if partition.acknowledged(end_offset, _ACKS_ALL) else AwaitedWrite(partition, end_offset, entry)


def _complete_in_groups(
    broker: Broker, marker: WritableTxnMarker, index: int, entry: WritableTxnMarkerPartitionResult
) -> Pending[None]:
    def refused(error: Exception) -> None:
        known = errors.NotLeaderOrFollower() if isinstance(error, _NOT_YET) else error
        entry.error_code = error_code_of(known)

    completed = broker.groups.complete_transaction(
        index,
        marker.producer_id,
        marker.producer_epoch,
        marker.coordinator_epoch,
        committed=marker.transaction_result,
        transaction_version=marker.transaction_version,
        now_ms=broker.clock.now_ms(),
    )
    return recover(completed, refused)
