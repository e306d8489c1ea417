"""DescribeProducers (key 61, KIP-664): the producers that a partition remembers, and their open transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.api import error_code_of
from ottla_wire.messages.describe_producers import (
    DescribeProducersRequest,
    DescribeProducersResponse,
    PartitionResponse,
    ProducerState,
    TopicResponse,
)

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext


def handle(broker: Broker, context: RequestContext, request: DescribeProducersRequest) -> DescribeProducersResponse:
    """Only the leader answers."""
    response = DescribeProducersResponse()
    for topic in request.topics:
        results = []
        for index in topic.partition_indexes:
            result = PartitionResponse(partition_index=index)
            try:
                partition = broker.replicas.partition(topic.name, index)
                partition.check_leader()
                result.active_producers = [
                    ProducerState(
                        producer_id=producer.producer_id,
                        producer_epoch=producer.epoch,
                        last_sequence=producer.last_sequence,
                        last_timestamp=producer.last_timestamp_ms,
                        coordinator_epoch=producer.coordinator_epoch,
                        current_txn_start_offset=producer.current_txn_first_offset,
                    )
                    for producer in partition.log.producers
                ]
            except Exception as error:  # noqa: BLE001 - one partition's failure is not the others'
                result.error_code = error_code_of(error)
                result.error_message = str(error) or None
            results.append(result)
        response.topics.append(TopicResponse(name=topic.name, partitions=results))
    return response
