"""The requests of a transaction: how each is built, and which errors its answer holds. Nothing here has a state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ottla.client.producer.producer_sequences import ProducerIdAndEpoch
from ottla.client.producer.transaction_operation import Operation
from ottla.client.producer.transaction_tables import ANY_VERSION, REQUEST_NAMES, RequestKind
from ottla.client.topic_partition import ConsumerGroupMetadata, OffsetAndMetadata, TopicPartition
from ottla.errors import KafkaError, error_for
from ottla_wire.messages.add_offsets_to_txn import AddOffsetsToTxnRequest
from ottla_wire.messages.add_partitions_to_txn import AddPartitionsToTxnRequest, AddPartitionsToTxnTopic
from ottla_wire.messages.describe_transactions import DescribeTransactionsRequest
from ottla_wire.messages.end_txn import EndTxnRequest
from ottla_wire.messages.init_producer_id import InitProducerIdRequest
from ottla_wire.messages.txn_offset_commit import (
    TxnOffsetCommitRequest,
    TxnOffsetCommitRequestPartition,
    TxnOffsetCommitRequestTopic,
)
from ottla_wire.schema import Request

GROUP: Final = 0
TRANSACTION: Final = 1
"""Kinds of coordinators, in the protocol's numbers."""

Coordinator = tuple[int, str]
"""Whose coordinator: the kind, and the group or transactional id."""


@dataclass(frozen=True, slots=True, eq=False)
class TransactionRequest:
    """Something to ask of a broker.

    `node_id` is the coordinator to ask; None: any broker. A FIND_COORDINATOR has no message, but `coordinator`, and its
    answer is the coordinator's node id.
    """

    kind: RequestKind
    node_id: int | None = None
    message: Request | None = None
    versions: tuple[int, int | None] = ANY_VERSION
    coordinator: Coordinator | None = None
    subject: Any = None
    timeout_ms: int | None = None

    def __str__(self) -> str:
        asked = "any broker" if self.node_id is None else f"broker {self.node_id}"
        return f"{REQUEST_NAMES[self.kind]} from {asked}"


class OffsetsToSend:
    """Offsets on their way into a transaction: those that are not stored yet."""

    __slots__ = ("added", "group", "operation", "pending")

    def __init__(
        self, group: ConsumerGroupMetadata, pending: dict[TopicPartition, OffsetAndMetadata], operation: Operation
    ) -> None:
        self.group = group
        self.pending = pending
        self.operation = operation
        self.added = False  # v1: whether the coordinator knows that the group takes part


def init_producer_id(transactional_id: str | None, timeout_ms: int, expected: ProducerIdAndEpoch) -> Request:
    """Ask for a producer id; with an `expected` one for its next epoch, unless somebody else has it (KIP-360)."""
    return InitProducerIdRequest(
        transactional_id=transactional_id,
        transaction_timeout_ms=timeout_ms,
        producer_id=expected.producer_id,
        producer_epoch=expected.epoch,
    )


def add_partitions(
    transactional_id: str, producer: ProducerIdAndEpoch, partitions: Iterable[TopicPartition]
) -> Request:
    """Version 0 to 3, as producers speak it."""
    topics: dict[str, AddPartitionsToTxnTopic] = {}
    for topic, partition in partitions:
        topics.setdefault(topic, AddPartitionsToTxnTopic(name=topic, partitions=[])).partitions.append(partition)
    return AddPartitionsToTxnRequest(
        v3_and_below_transactional_id=transactional_id,
        v3_and_below_producer_id=producer.producer_id,
        v3_and_below_producer_epoch=producer.epoch,
        v3_and_below_topics=list(topics.values()),
    )


def add_offsets(transactional_id: str, producer: ProducerIdAndEpoch, group_id: str) -> Request:
    """The group's offsets are to be part of the transaction."""
    return AddOffsetsToTxnRequest(
        transactional_id=transactional_id,
        producer_id=producer.producer_id,
        producer_epoch=producer.epoch,
        group_id=group_id,
    )


def commit_offsets(
    transactional_id: str,
    producer: ProducerIdAndEpoch,
    group: ConsumerGroupMetadata,
    offsets: Mapping[TopicPartition, OffsetAndMetadata],
) -> Request:
    """Store offsets when the transaction commits, if the member is still one of the group."""
    topics: dict[str, TxnOffsetCommitRequestTopic] = {}
    for (topic, partition), offset in offsets.items():
        of_topic = topics.setdefault(topic, TxnOffsetCommitRequestTopic(name=topic, partitions=[]))
        of_topic.partitions.append(
            TxnOffsetCommitRequestPartition(
                partition_index=partition,
                committed_offset=offset.offset,
                committed_leader_epoch=-1 if offset.leader_epoch is None else offset.leader_epoch,
                committed_metadata=offset.metadata,
            )
        )
    return TxnOffsetCommitRequest(
        transactional_id=transactional_id,
        group_id=group.group_id,
        producer_id=producer.producer_id,
        producer_epoch=producer.epoch,
        generation_id_or_member_epoch=group.generation_id,
        member_id=group.member_id,
        group_instance_id=group.group_instance_id,
        topics=list(topics.values()),
    )


def end(transactional_id: str, producer: ProducerIdAndEpoch, *, committed: bool) -> Request:
    """The transaction is over."""
    return EndTxnRequest(
        transactional_id=transactional_id,
        producer_id=producer.producer_id,
        producer_epoch=producer.epoch,
        committed=committed,
    )


def explain(transactional_id: str) -> Request:
    """What became of the transactional id; our brokers also say why its last epoch ended."""
    return DescribeTransactionsRequest(transactional_ids=[transactional_id], describe_epoch_end=True)


def partition_errors(kind: RequestKind, answer: Any) -> dict[TopicPartition, KafkaError | None]:
    """What an answer says of each partition: of AddPartitionsToTxn or of TxnOffsetCommit."""
    if kind is RequestKind.ADD_PARTITIONS:
        return {
            TopicPartition(topic.name, result.partition_index): error_for(result.partition_error_code)
            for topic in answer.results_by_topic_v3_and_below
            for result in topic.results_by_partition
        }
    return {
        TopicPartition(topic.name, result.partition_index): error_for(result.error_code)
        for topic in answer.topics
        for result in topic.partitions
    }
