"""The admin client's part for transactions: which there are, who writes to a partition, and how to end what hangs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from ottla.client.admin_core import by_topic
from ottla.client.admin_topics import TopicsAdmin
from ottla.client.admin_types import (
    AbortTransactionSpec,
    EpochEndDescription,
    HangingTransaction,
    ProducerDescription,
    TransactionDescription,
    TransactionListing,
    outcome,
)
from ottla.client.cluster import CoordinatorKind, Versioned
from ottla.client.producer.epoch_end import EpochEndReason
from ottla.client.producer.producer_sequences import ProducerIdAndEpoch
from ottla.client.topic_partition import TopicPartition
from ottla.errors import (
    KafkaError,
    TransactionalIdNotFound,
    UnsupportedVersion,
    error_for,
)
from ottla_wire.messages.describe_producers import DescribeProducersRequest, TopicRequest
from ottla_wire.messages.describe_transactions import DescribeTransactionsRequest
from ottla_wire.messages.init_producer_id import InitProducerIdRequest
from ottla_wire.messages.list_transactions import ListTransactionsRequest
from ottla_wire.messages.write_txn_markers import (
    WritableTxnMarker,
    WritableTxnMarkerTopic,
    WriteTxnMarkersRequest,
)
from ottla_wire.schema import Request

MAX_TRANSACTION_TIMEOUT_MS: Final = 900_000
"""transaction.max.timeout.ms as brokers have it: no transaction that is well is older."""

OPEN_STATES: Final = ("Ongoing", "PrepareCommit", "PrepareAbort", "PrepareEpochFence")
"""The states of ids whose transaction has not ended, or not in all partitions."""

_PARTITIONS_AT_ONCE: Final = 500


class TransactionsAdmin(TopicsAdmin):
    """Transactions and the producers of partitions."""

    async def list_transactions(
        self,
        *,
        states: Iterable[str] = (),
        producer_ids: Iterable[int] = (),
        running_longer_than_ms: int | None = None,
        pattern: str | None = None,
        timeout: float | None = None,
    ) -> list[TransactionListing]:
        """The transactional ids that the coordinators know, in alphabetical order; all filters have to fit.

        Args:
            states: only those in one of these states ("Ongoing", "PrepareAbort", "CompleteCommit", ...).
            producer_ids: only those with one of these producer ids.
            running_longer_than_ms: only those whose transaction is open for longer (Kafka 3.8, KIP-994).
            pattern: only ids that match this regular expression as a whole (KIP-1152; older brokers: matched here).
            timeout: in seconds; `default_api_timeout_ms` if not given.

        Raises:
            ValueError: there is no such state.
            UnsupportedVersion: a broker is too old to filter by duration.
            KafkaError: a broker could not answer; the list would not be whole.
        """
        deadline_ms = self._deadline_ms(timeout)
        wanted_states, wanted_ids = list(states), list(producer_ids)

        def build(version: int) -> Request:
            if version < 1 and running_longer_than_ms is not None:
                raise UnsupportedVersion("a broker before Kafka 3.8 does not filter transactions by their duration")
            return ListTransactionsRequest(
                state_filters=wanted_states,
                producer_id_filters=wanted_ids,
                duration_filter=-1 if running_longer_than_ms is None else running_longer_than_ms,
                transactional_id_pattern=pattern if version >= 2 else None,
            )

        async def ask(node_id: int) -> Any:
            answer = await self._ask(node_id, Versioned(ListTransactionsRequest, build), deadline_ms)
            _raise(answer.error_code)
            if answer.unknown_state_filters:
                raise ValueError(f"there is no such state of a transaction: {', '.join(answer.unknown_state_filters)}")
            return answer

        await self.cluster.refresh(timeout_ms=max(1, deadline_ms - self.cluster.now_ms()))
        found: dict[str, TransactionListing] = {}
        for node in self.cluster.metadata.nodes():
            answer = await self._retrying(lambda node_id=node.id: ask(node_id), deadline_ms)  # type: ignore[misc]
            for listed in answer.transaction_states:
                # Brokers take every id without an open transaction for one that is open since 1970.
                is_open = running_longer_than_ms is None or listed.transaction_state in OPEN_STATES
                if is_open and (pattern is None or re.fullmatch(pattern, listed.transactional_id)):
                    found[listed.transactional_id] = TransactionListing(
                        listed.transactional_id, node, listed.producer_id, listed.transaction_state
                    )
        return [found[transactional_id] for transactional_id in sorted(found)]

    async def describe_transactions(
        self, transactional_ids: Iterable[str], *, timeout: float | None = None
    ) -> dict[str, TransactionDescription]:
        """What the coordinators know of transactional ids. Our brokers also tell why the last epoch ended.

        Raises:
            TransactionalIdNotFound, ...: the one id asked for is not known, or cannot be described.
            SomeFailed: some of several cannot.
        """
        deadline_ms = self._deadline_ms(timeout)
        results: dict[str, TransactionDescription] = {}
        errors: dict[str, KafkaError] = {}
        for transactional_id in dict.fromkeys(transactional_ids):

            async def ask(node_id: int, transactional_id: str = transactional_id) -> TransactionDescription:
                request = DescribeTransactionsRequest(transactional_ids=[transactional_id], describe_epoch_end=True)
                (found,) = (await self._ask(node_id, request, deadline_ms)).transaction_states
                _raise(found.error_code)
                return self._described(found, node_id)

            try:
                results[transactional_id] = await self._of_coordinator(
                    transactional_id, ask, deadline_ms, CoordinatorKind.TRANSACTION
                )
            except KafkaError as error:
                errors[transactional_id] = error
        return outcome("describe_transactions", results, errors)

    async def fence_producers(
        self, transactional_ids: Iterable[str], *, timeout: float | None = None
    ) -> dict[str, ProducerIdAndEpoch]:
        """End the producers that use these transactional ids: what they have open is aborted, and they are fenced.

        Returns:
            The producer id and epoch that each id has now. Nobody writes with them.

        Raises:
            TransactionalIdAuthorizationFailed, ...: the one id asked for could not be fenced.
            SomeFailed: some of several could not be.
        """
        deadline_ms = self._deadline_ms(timeout)
        results: dict[str, ProducerIdAndEpoch] = {}
        errors: dict[str, KafkaError] = {}
        for transactional_id in dict.fromkeys(transactional_ids):
            request = InitProducerIdRequest(
                transactional_id=transactional_id,
                transaction_timeout_ms=self.config.request_timeout_ms,
                fences_only=True,
            )

            async def ask(node_id: int, request: Request = request) -> ProducerIdAndEpoch:
                answer = await self._ask(node_id, request, deadline_ms)
                _raise(answer.error_code)
                return ProducerIdAndEpoch(answer.producer_id, answer.producer_epoch)

            try:
                results[transactional_id] = await self._of_coordinator(
                    transactional_id, ask, deadline_ms, CoordinatorKind.TRANSACTION
                )
            except KafkaError as error:
                errors[transactional_id] = error
        return outcome("fence_producers", results, errors)

    async def describe_producers(
        self, partitions: Iterable[TopicPartition], *, node_id: int | None = None, timeout: float | None = None
    ) -> dict[TopicPartition, tuple[ProducerDescription, ...]]:
        """The producers that partitions remember, and where their open transactions begin.

        Args:
            partitions: to ask about.
            node_id: ask the replica on this broker; the leader, if not given.
            timeout: in seconds; `default_api_timeout_ms` if not given.

        Raises:
            UnknownTopicOrPartition, ...: the one partition asked for could not answer.
            SomeFailed: some of several could not.
        """

        def build(wanted: list[TopicPartition]) -> Request:
            topics = [
                TopicRequest(name=topic, partition_indexes=indexes) for topic, indexes in by_topic(wanted).items()
            ]
            return DescribeProducersRequest(topics=topics)

        def read(found: Any) -> tuple[ProducerDescription, ...]:
            return tuple(_producer(producer) for producer in found.active_producers)

        deadline_ms = self._deadline_ms(timeout)
        return await self._of_leaders("describe_producers", partitions, build, read, deadline_ms, node_id)

    async def abort_transaction(self, spec: AbortTransactionSpec, *, timeout: float | None = None) -> None:
        """Write an abort marker for a producer into one partition: the way out of a hanging transaction.

        The coordinator is not asked. For a transaction that it knows, use `fence_producers`.

        Raises:
            InvalidProducerEpoch: the partition has seen a newer epoch of the producer.
            TransactionCoordinatorFenced: it has seen a marker of a newer coordinator.
            UnknownTopicOrPartition: there is no such partition.
            ClusterAuthorizationFailed: only administrators may.
        """
        deadline_ms = self._deadline_ms(timeout)
        topic, index = spec.partition
        marker = WritableTxnMarker(
            producer_id=spec.producer_id,
            producer_epoch=spec.producer_epoch,
            coordinator_epoch=max(0, spec.coordinator_epoch),
            transaction_result=False,
            topics=[WritableTxnMarkerTopic(name=topic, partition_indexes=[index])],
        )

        async def attempt() -> None:
            (leader,) = await self._by_leader([spec.partition], deadline_ms)
            answer = await self._ask(leader, WriteTxnMarkersRequest(markers=[marker]), deadline_ms)
            error = error_for(answer.markers[0].topics[0].partitions[0].error_code)
            if error is None:
                return
            if error.refresh_metadata:
                await self.cluster.refresh([topic], timeout_ms=self._left_ms(deadline_ms))
            raise type(error)(f"abort_transaction of producer {spec.producer_id} in {spec.partition}: {error}")

        await self._retrying(attempt, deadline_ms)

    async def find_hanging_transactions(
        self,
        topics: Iterable[str] | None = None,
        *,
        partitions: Iterable[TopicPartition] | None = None,
        node_id: int | None = None,
        max_transaction_timeout_ms: int = MAX_TRANSACTION_TIMEOUT_MS,
        timeout: float | None = None,
    ) -> list[HangingTransaction]:
        """Transactions that are open in a partition, and that no coordinator is going to end (KIP-664).

        Read_committed readers do not get past the first offset of one. `abort_transaction(found.spec)` ends it.

        Args:
            topics: to look into; all, internal ones included, if neither these nor `partitions` are given.
            partitions: to look into.
            node_id: only partitions with a replica on this broker, which is asked.
            max_transaction_timeout_ms: younger transactions are taken for well.
            timeout: in seconds; `default_api_timeout_ms` if not given.
        """
        deadline_ms = self._deadline_ms(timeout)
        wanted = list(partitions) if partitions is not None else await self._partitions_of(topics, node_id, deadline_ms)
        candidates: list[HangingTransaction] = []
        now_ms = time.time_ns() // 1_000_000
        for first in range(0, len(wanted), _PARTITIONS_AT_ONCE):
            some = wanted[first : first + _PARTITIONS_AT_ONCE]
            described = await self.describe_producers(some, node_id=node_id, timeout=self._left_s(deadline_ms))
            candidates += [
                HangingTransaction(partition, producer)
                for partition, producers in described.items()
                for producer in producers
                if producer.transaction_start_offset is not None
                and now_ms - producer.last_timestamp_ms > max_transaction_timeout_ms
            ]
        return await self._that_no_coordinator_ends(candidates, deadline_ms) if candidates else []

    async def _partitions_of(
        self, topics: Iterable[str] | None, node_id: int | None, deadline_ms: int
    ) -> list[TopicPartition]:
        if topics is None:
            listed = await self.list_topics(include_internal=True, timeout=self._left_s(deadline_ms))
            topics = list(listed)
        described = await self.describe_topics(topics, timeout=self._left_s(deadline_ms))
        return [
            TopicPartition(topic.name, partition.index)
            for topic in described.values()
            for partition in topic.partitions
            if node_id is None or node_id in partition.replicas
        ]

    async def _that_no_coordinator_ends(
        self, candidates: Sequence[HangingTransaction], deadline_ms: int
    ) -> list[HangingTransaction]:
        """A coordinator still ends what it describes: partitions of open transactions, and those without a marker."""
        producer_ids = {found.producer.producer_id for found in candidates}
        listed = await self.list_transactions(producer_ids=producer_ids, timeout=self._left_s(deadline_ms))
        expected: set[tuple[int, TopicPartition]] = set()
        for transaction in listed:
            try:
                described = await self.describe_transactions(
                    [transaction.transactional_id], timeout=self._left_s(deadline_ms)
                )
            except TransactionalIdNotFound:
                continue  # it has expired meanwhile
            for partition in described[transaction.transactional_id].partitions:
                expected.add((transaction.producer_id, partition))
        return [found for found in candidates if (found.producer.producer_id, found.partition) not in expected]

    # --- parts

    def _left_s(self, deadline_ms: int) -> float:
        return max(1, deadline_ms - self.cluster.now_ms()) / 1000

    def _described(self, found: Any, node_id: int) -> TransactionDescription:
        end = found.epoch_end
        partitions = sorted(TopicPartition(topic.topic, index) for topic in found.topics for index in topic.partitions)
        return TransactionDescription(
            found.transactional_id,
            self.cluster.metadata.node(node_id),
            found.transaction_state,
            found.producer_id,
            found.producer_epoch,
            found.transaction_timeout_ms,
            found.transaction_start_time_ms if found.transaction_start_time_ms >= 0 else None,
            tuple(partitions),
            None
            if end.reason == EpochEndReason.UNKNOWN
            else EpochEndDescription(
                EpochEndReason(end.reason), end.producer_epoch, end.client_id, end.client_host, end.at_ms
            ),
        )


def _producer(found: Any) -> ProducerDescription:
    start = found.current_txn_start_offset
    return ProducerDescription(
        found.producer_id,
        found.producer_epoch,
        found.last_sequence,
        found.last_timestamp,
        found.coordinator_epoch if found.coordinator_epoch >= 0 else None,
        start if start >= 0 else None,
    )


def _raise(code: int) -> None:
    error = error_for(code)
    if error is not None:
        raise error
