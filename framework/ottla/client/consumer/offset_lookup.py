"""Asks partition leaders where things are: offsets by time, ends of logs, ends of leader epochs. On the I/O loop.

One call is one round: a request per leader, all at once. What a leader refuses, or a partition without one, comes back
as an error of that partition; whether and when to ask again is the caller's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from ottla.client.cluster import Cluster
from ottla.client.topic_partition import OffsetAndTimestamp, TopicPartition
from ottla.errors import KafkaError, LeaderNotAvailable, UnknownServerError, error_for
from ottla_wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from ottla_wire.messages.offset_for_leader_epoch import (
    OffsetForLeaderEpochRequest,
    OffsetForLeaderPartition,
    OffsetForLeaderTopic,
)

P = TypeVar("P")

NO_OFFSET = -1
_CONSUMER = -1


class EpochEnd(NamedTuple):
    """Where an epoch ends in the leader's log; -1 where the leader does not know."""

    leader_epoch: int
    end_offset: int


Outcome = dict[TopicPartition, OffsetAndTimestamp | KafkaError]
EpochOutcome = dict[TopicPartition, EpochEnd | KafkaError]


class OffsetLookup:
    """Rounds of ListOffsets and OffsetForLeaderEpoch."""

    def __init__(self, cluster: Cluster, *, read_committed: bool, request_timeout_ms: int) -> None:
        self._cluster = cluster
        self._isolation_level = int(read_committed)
        self._request_timeout_ms = request_timeout_ms

    async def offsets(self, timestamps: Mapping[TopicPartition, int]) -> Outcome:
        """For each partition the first record at or after a timestamp; -1 is the end, -2 the start of the log.

        The end is that of what this consumer may read: the high watermark, or the last stable offset.
        """

        async def ask(leader: int, partitions: list[TopicPartition]) -> Outcome:
            def timestamp_of(partition: TopicPartition) -> ListOffsetsPartition:
                return ListOffsetsPartition(
                    partition_index=partition.partition,
                    current_leader_epoch=self._leader_epoch(partition),
                    timestamp=timestamps[partition],
                )

            asked = _by_topic(partitions, timestamp_of)
            topics = [ListOffsetsTopic(name=topic, partitions=about) for topic, about in asked.items()]
            answer = await self._cluster.send(
                leader,
                ListOffsetsRequest(
                    replica_id=_CONSUMER,
                    isolation_level=self._isolation_level,
                    topics=topics,
                    timeout_ms=self._request_timeout_ms,
                ),
            )
            return {
                TopicPartition(topic.name, found.partition_index): error_for(found.error_code)
                or OffsetAndTimestamp(found.offset, found.timestamp, _epoch(found.leader_epoch))
                for topic in answer.topics
                for found in topic.partitions
            }

        return await self._round(timestamps, ask)

    async def epoch_ends(self, epochs: Mapping[TopicPartition, int]) -> EpochOutcome:
        """For each partition where the given leader epoch ends."""

        async def ask(leader: int, partitions: list[TopicPartition]) -> EpochOutcome:
            def epoch_of(partition: TopicPartition) -> OffsetForLeaderPartition:
                return OffsetForLeaderPartition(
                    partition=partition.partition,
                    current_leader_epoch=self._leader_epoch(partition),
                    leader_epoch=epochs[partition],
                )

            asked = _by_topic(partitions, epoch_of)
            topics = [OffsetForLeaderTopic(topic=topic, partitions=about) for topic, about in asked.items()]
            answer = await self._cluster.send(leader, OffsetForLeaderEpochRequest(replica_id=_CONSUMER, topics=topics))
            return {
                TopicPartition(topic.topic, found.partition): error_for(found.error_code)
                or EpochEnd(found.leader_epoch, found.end_offset)
                for topic in answer.topics
                for found in topic.partitions
            }

        return await self._round(epochs, ask)

    async def _round(
        self,
        partitions: Iterable[TopicPartition],
        ask: Callable[[int, list[TopicPartition]], Awaitable[dict[TopicPartition, Any]]],
    ) -> dict[TopicPartition, Any]:
        outcome: dict[TopicPartition, Any] = {}
        by_leader: dict[int, list[TopicPartition]] = {}
        for partition in partitions:
            leader = self._cluster.leader(*partition)
            if leader is None:
                outcome[partition] = self._cluster.metadata.topic_error(partition.topic) or LeaderNotAvailable(
                    f"{partition} has no leader, as far as known"
                )
            else:
                by_leader.setdefault(leader, []).append(partition)

        async def guarded(leader: int, asked: list[TopicPartition]) -> dict[TopicPartition, Any]:
            try:
                found = await ask(leader, asked)
            except KafkaError as error:
                return dict.fromkeys(asked, error)
            missing = UnknownServerError(f"broker {leader} did not answer for this partition")
            return {partition: found.get(partition, missing) for partition in asked}

        for answered in await asyncio.gather(*(guarded(leader, asked) for leader, asked in by_leader.items())):
            outcome.update(answered)
        return outcome

    def _leader_epoch(self, partition: TopicPartition) -> int:
        known = self._cluster.metadata.partition(*partition)
        return -1 if known is None else known.leader_epoch


def _by_topic(partitions: Iterable[TopicPartition], about: Callable[[TopicPartition], P]) -> dict[str, list[P]]:
    """What is to be asked about each partition, by topic."""
    found: dict[str, list[P]] = {}
    for partition in partitions:
        found.setdefault(partition.topic, []).append(about(partition))
    return found


def _epoch(leader_epoch: int) -> int | None:
    return leader_epoch if leader_epoch >= 0 else None
