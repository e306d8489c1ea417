"""Produce (key 0): append batches.

3 baseline: batches of magic 2, transactional id. 7 zstd (KIP-110). 8 record errors and message (KIP-467). 10 current
leader and its endpoint with NOT_LEADER_OR_FOLLOWER (KIP-951). 11 TRANSACTION_ABORTABLE, 12 partitions are added to the
transaction by the produce itself (KIP-890). 13 topic ids (KIP-516).

The checks come in Kafka's order; all but the whole-request ones concern one partition and leave the others alone. The
records are a view of the request's frame: the log patches them in place and writes them, nothing is copied.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from ottla_broker.api import UnanswerableError, error_code_of
from ottla_broker.api.current_leader import current_leader
from ottla_broker.controller.topic_names import is_internal
from ottla_broker.log.producer_state import AppendOrigin
from ottla_broker.replication.delayed_produce import AwaitedWrite
from ottla_wire import errors
from ottla_wire.messages.produce import (
    BatchIndexAndErrorMessage,
    LeaderIdAndEpoch,
    NodeEndpoint,
    PartitionProduceResponse,
    ProduceRequest,
    ProduceResponse,
    TopicProduceResponse,
)
from ottla_wire.schema import Buffer

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.pending import Pending

_ADMIN_CLIENT = "__admin_client"
_FIRST_VERSION_WITH_ZSTD = 7
_FIRST_VERSION_WITH_TOPIC_IDS = 13
_FIRST_VERSION_WITH_LEADER = 10
_ZSTD = 4

_read_batch_length = Struct(">i").unpack_from  # at 8
_read_attributes = Struct(">h").unpack_from  # at 21
_LOG_OVERHEAD = 12
_SMALLEST_LENGTH = 14
_UP_TO_MAGIC = 17
_TRANSACTIONAL_BIT = 0x10

# With these Kafka's answer has a log start offset of -1 even where the log itself refused.
_BEFORE_THE_LOG = frozenset(
    error.code
    for error in (
        errors.UnknownTopicOrPartition,
        errors.NotLeaderOrFollower,
        errors.MessageTooLarge,
        errors.RecordListTooLarge,
        errors.CorruptMessage,
        errors.KafkaStorageError,
    )
)


def handle(
    broker: Broker, context: RequestContext, request: ProduceRequest
) -> ProduceResponse | Pending[ProduceResponse] | None:
    """Append, and answer when `acks` allows."""
    if request.transactional_id is None and _has_transactional_batch(request):
        raise errors.TransactionalIdAuthorizationFailed("transactional records without a transactional id")
    acks = request.acks
    waits: list[AwaitedWrite] = []
    failed = False
    response = ProduceResponse()
    for topic in request.topic_data:
        name = topic.name
        by_id = context.api_version >= _FIRST_VERSION_WITH_TOPIC_IDS
        if by_id:
            image = broker.controller.image.topics_by_id.get(topic.topic_id)
            name = image.name if image is not None else ""
        results = []
        for data in topic.partition_data:
            result = PartitionProduceResponse(index=data.index, base_offset=-1)
            try:
                if by_id and not name:
                    raise errors.UnknownTopicId(f"there is no topic with the id {topic.topic_id}")
                wait = _append(broker, context, acks, name, data.index, data.records, result)
                if wait is not None:
                    waits.append(wait)
            except Exception as error:  # noqa: BLE001 - one partition's failure is not the others'
                failed = True
                _set_error(broker, context, name, response, result, error)
            results.append(result)
        response.responses.append(TopicProduceResponse(name=name, topic_id=topic.topic_id, partition_responses=results))
    if acks == 0:
        if failed:
            raise UnanswerableError(f"a produce request with acks=0 failed: {_failures(response)}")
        return None
    if waits:
        return broker.replicas.await_writes(waits, acks, response, timeout_ms=request.timeout_ms, now_ms=context.now_ms)
    return response


def error_response(request: ProduceRequest, code: int, message: str | None) -> ProduceResponse:
    """The whole request is refused: every partition says so."""
    return ProduceResponse(
        responses=[
            TopicProduceResponse(
                name=topic.name,
                topic_id=topic.topic_id,
                partition_responses=[
                    PartitionProduceResponse(index=data.index, error_code=code, base_offset=-1, error_message=message)
                    for data in topic.partition_data
                ],
            )
            for topic in request.topic_data
        ]
    )


def _append(
    broker: Broker,
    context: RequestContext,
    acks: int,
    topic: str,
    index: int,
    records: Buffer | None,
    result: PartitionProduceResponse,
) -> AwaitedWrite | None:
    partition = broker.replicas.find(topic, index)
    if partition is None and broker.controller.image.partition(topic, index) is None:
        raise errors.UnknownTopicOrPartition(f"there is no partition {topic}-{index}")
    batch = _single_batch(records, context.api_version)
    if not -1 <= acks <= 1:
        raise errors.InvalidRequiredAcks(f"acks={acks}: it is -1 (all), 0 or 1")
    if is_internal(topic) and context.client_id != _ADMIN_CLIENT:
        raise errors.InvalidTopic(f"{topic} is the broker's own, clients do not write to it")
    if partition is None:
        raise errors.NotLeaderOrFollower(f"{topic}-{index} has no replica here")
    # What a refusal by the log tells; `_set_error` takes it back if the log was not reached.
    result.log_start_offset = partition.log.log_start_offset
    if batch[22] & _TRANSACTIONAL_BIT and broker.transactions is None:
        # Nobody could ever end the transaction that this would open.
        raise errors.InvalidTxnState(f"{topic}-{index}: this broker has no transaction coordinator to verify it with")
    info = partition.append(batch, acks=acks, wall_ms=broker.clock.wall_ms(), origin=AppendOrigin.CLIENT)
    result.base_offset = info.first_offset
    result.log_append_time_ms = info.log_append_time_ms
    result.log_start_offset = info.log_start_offset
    end_offset = info.last_offset + 1
    if acks == 0 or partition.acknowledged(end_offset, acks):
        return None
    return AwaitedWrite(partition, end_offset, result)


def _single_batch(records: Buffer | None, version: int) -> Buffer:
    """The one batch that a partition's payload holds; what is cut off behind it is dropped, as Kafka drops it."""
    size = _batch_size(records)
    if records is None or size is None:
        raise errors.InvalidRecord("a produce request has one record batch per partition, this one has none")
    if records[16] != 2:
        raise errors.InvalidRecord(f"a record batch of magic 2 is wanted, this one has {records[16]}")
    if version < _FIRST_VERSION_WITH_ZSTD and _read_attributes(records, 21)[0] & 0x07 == _ZSTD:
        raise errors.UnsupportedCompressionType("zstd needs a produce request of version 7 or later")
    if size == len(records):
        return records
    if _batch_size(records[size:]) is not None:
        raise errors.InvalidRecord("a produce request has one record batch per partition, this one has several")
    return records[:size]


def _batch_size(records: Buffer | None) -> int | None:
    """Bytes of the first batch, None if there is no complete one."""
    if records is None or len(records) < _LOG_OVERHEAD:
        return None
    length = int(_read_batch_length(records, 8)[0])
    if length < _SMALLEST_LENGTH:
        raise errors.CorruptMessage(f"a record batch of length {length}, the smallest is {_SMALLEST_LENGTH}")
    size = _LOG_OVERHEAD + length
    if len(records) < max(size, _UP_TO_MAGIC):
        return None
    if records[16] > 2:
        raise errors.CorruptMessage(f"a record batch of magic {records[16]}")
    return size


def _has_transactional_batch(request: ProduceRequest) -> bool:
    for topic in request.topic_data:
        for data in topic.partition_data:
            records = data.records
            # Only the low byte of the attributes matters here, at 22. Garbage is refused later, with its own error.
            if records is not None and len(records) > 22 and records[16] == 2 and records[22] & _TRANSACTIONAL_BIT:
                return True
    return False


def _set_error(
    broker: Broker,
    context: RequestContext,
    topic: str,
    response: ProduceResponse,
    result: PartitionProduceResponse,
    error: Exception,
) -> None:
    code = result.error_code = error_code_of(error)
    result.error_message = str(error) or None
    result.record_errors = [
        BatchIndexAndErrorMessage(batch_index=index, batch_index_error_message=message)
        for index, message in getattr(error, "record_errors", ())
    ]
    if code in _BEFORE_THE_LOG:
        result.log_start_offset = -1
    if code == errors.NotLeaderOrFollower.code and context.api_version >= _FIRST_VERSION_WITH_LEADER:
        leader = current_leader(broker, topic, result.index)
        result.current_leader = LeaderIdAndEpoch(leader_id=leader.node_id, leader_epoch=leader.epoch)
        leader.add_endpoint(response.node_endpoints, NodeEndpoint)


def _failures(response: ProduceResponse) -> str:
    return ", ".join(
        f"{topic.name}-{result.index}: {result.error_message}"
        for topic in response.responses
        for result in topic.partition_responses
        if result.error_code
    )
