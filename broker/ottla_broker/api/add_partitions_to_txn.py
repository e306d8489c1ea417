"""AddPartitionsToTxn (key 24): partitions join a transaction before the first write to them (KIP-98).

Up to version 3 it comes from a producer and speaks of one transaction; 2 knows PRODUCER_FENCED. From 4 on it comes from
brokers that were written to (KIP-890), speaks of several, and may only ask. A partition that does not exist fails its
whole transaction: the others are OPERATION_NOT_ATTEMPTED.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ottla_broker.api.transaction_errors import code_for_version
from ottla_broker.coordinator.pendings import gather
from ottla_broker.coordinator.transaction_id import ProducerIdAndEpoch
from ottla_broker.coordinator.transaction_state import TRANSACTIONS_V1, TRANSACTIONS_V2, TopicPartition
from ottla_broker.pending import Pending
from ottla_wire.errors import OperationNotAttempted, UnknownTopicOrPartition
from ottla_wire.messages.add_partitions_to_txn import (
    AddPartitionsToTxnPartitionResult,
    AddPartitionsToTxnRequest,
    AddPartitionsToTxnResponse,
    AddPartitionsToTxnResult,
    AddPartitionsToTxnTopic,
    AddPartitionsToTxnTopicResult,
    AddPartitionsToTxnTransaction,
)

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext

_FENCED_SINCE: Final = 2
_BATCHED_SINCE: Final = 4


def handle(
    broker: Broker, context: RequestContext, request: AddPartitionsToTxnRequest
) -> Pending[AddPartitionsToTxnResponse]:
    """Add the partitions of each transaction, or see whether they are in it."""
    if context.api_version < _BATCHED_SINCE:
        only = AddPartitionsToTxnTransaction(
            transactional_id=request.v3_and_below_transactional_id,
            producer_id=request.v3_and_below_producer_id,
            producer_epoch=request.v3_and_below_producer_epoch,
            topics=request.v3_and_below_topics,
        )
        return _add(broker, context, only, TRANSACTIONS_V1).then(
            lambda codes: AddPartitionsToTxnResponse(results_by_topic_v3_and_below=_results(codes))
        )
    # The last of several with one name counts, and there is one answer for each name: Kafka reads them into a map.
    wanted = {each.transactional_id: each for each in request.transactions}
    added = gather([_add(broker, context, each, TRANSACTIONS_V2) for each in wanted.values()])
    return added.then(
        lambda all_codes: AddPartitionsToTxnResponse(
            results_by_transaction=[
                AddPartitionsToTxnResult(transactional_id=transactional_id, topic_results=_results(codes))
                for transactional_id, codes in zip(wanted, all_codes, strict=True)
            ]
        )
    )


def error_response(request: AddPartitionsToTxnRequest, code: int, message: str | None) -> AddPartitionsToTxnResponse:
    """The answer to a request that failed as a whole."""
    topics = request.v3_and_below_topics
    if topics:
        return AddPartitionsToTxnResponse(
            results_by_topic_v3_and_below=_results(dict.fromkeys(_partitions(topics), code))
        )
    return AddPartitionsToTxnResponse(error_code=code)


def _add(
    broker: Broker, context: RequestContext, transaction: AddPartitionsToTxnTransaction, transaction_version: int
) -> Pending[dict[TopicPartition, int]]:
    partitions = _partitions(transaction.topics)
    image = broker.controller.image
    missing = {each for each in partitions if image.partition(*each) is None}
    if missing:
        return Pending.completed(
            {
                each: UnknownTopicOrPartition.code if each in missing else OperationNotAttempted.code
                for each in partitions
            }
        )
    added = broker.transactions.add_partitions_as(
        transaction_version,
        transaction.transactional_id,
        ProducerIdAndEpoch(transaction.producer_id, transaction.producer_epoch),
        partitions,
        verify_only=transaction.verify_only,
        now_ms=context.now_ms,
    )
    if context.api_version >= _FENCED_SINCE:
        return added
    return added.then(
        lambda codes: {
            each: code_for_version(code, context, fenced_since=_FENCED_SINCE) for each, code in codes.items()
        }
    )


def _partitions(topics: list[AddPartitionsToTxnTopic]) -> list[TopicPartition]:
    return list(dict.fromkeys((topic.name, index) for topic in topics for index in topic.partitions))


def _results(codes: dict[TopicPartition, int]) -> list[AddPartitionsToTxnTopicResult]:
    topics: dict[str, list[AddPartitionsToTxnPartitionResult]] = {}
    for (topic, index), code in codes.items():
        result = AddPartitionsToTxnPartitionResult(partition_index=index, partition_error_code=code)
        topics.setdefault(topic, []).append(result)
    return [AddPartitionsToTxnTopicResult(name=name, results_by_partition=found) for name, found in topics.items()]
