"""The part of one consumer that lives on the I/O loop: its fetcher, positions, group, and their common events."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence

from ottla.client.backoff import Backoff
from ottla.client.cluster import Cluster, Lane
from ottla.client.consumer.assignors import Assignor
from ottla.client.consumer.coordinator_client import CoordinatorClient
from ottla.client.consumer.fetcher import Fetcher
from ottla.client.consumer.group_driver import GroupDriver
from ottla.client.consumer.membership import Effect, Generation, SendLeave
from ottla.client.consumer.offset_lookup import NO_OFFSET, OffsetLookup
from ottla.client.consumer.position_keeper import PositionKeeper
from ottla.client.consumer.shared import CommitCallback, CommitOutcome, Shared
from ottla.client.consumer.subscription_state import SubscriptionKind
from ottla.client.metadata import PartitionMetadata
from ottla.client.metadata_refresher import TopicInterest
from ottla.client.topic_partition import OffsetAndMetadata, OffsetAndTimestamp, TopicPartition
from ottla.errors import (
    CommitFailed,
    InvalidGroupId,
    KafkaError,
    OttlaError,
    RebalanceInProgress,
    Retriable,
    UnknownTopicOrPartition,
)


class ConsumerIo:
    """Made by the consumer's first use; all methods run on the I/O loop."""

    def __init__(
        self,
        shared: Shared,
        cluster: Cluster,
        assignors: Sequence[Assignor],
        client_id: str,
        rng: random.Random,
    ) -> None:
        config = shared.config
        self._shared = shared
        self._cluster = cluster
        self._backoff = Backoff(config.retry_backoff_ms, config.retry_backoff_max_ms, rng)
        self._interest = TopicInterest(allow_auto_create=config.allow_auto_create_topics)
        self._asked = TopicInterest(allow_auto_create=config.allow_auto_create_topics)
        self._lane = Lane(client_id, shared.receiving)
        self.lookup = OffsetLookup(
            cluster,
            read_committed=config.isolation_level == "read_committed",
            request_timeout_ms=config.request_timeout_ms,
        )
        self._coordinator: CoordinatorClient | None = None
        self.group: GroupDriver | None = None
        if config.group_id is not None:
            self._coordinator = CoordinatorClient(
                cluster, config.group_id, config.group_instance_id, client_id, self._backoff
            )
            self.group = GroupDriver(shared, cluster, self._coordinator, assignors, self.interest_changed)
        self._fetcher = Fetcher(shared, cluster, self._lane, self._backoff, lambda: self._positions.step())
        self._positions = PositionKeeper(
            shared, cluster, self.lookup, self._coordinator, self._backoff, self._fetcher.wake
        )
        self._metadata_version = -1
        self._closed = False
        cluster.add_interest(self._interest)
        cluster.add_interest(self._asked)
        cluster.add_listener(self._cluster_changed)

    # --- events

    def wake(self) -> None:
        """The polling side changed something: subscription, assignment, positions, room in the buffer."""
        if self._closed:
            return
        self.interest_changed()
        self._positions.release()
        self._fetcher.wake()

    def interest_changed(self) -> None:
        """Say which topics metadata is wanted for, and ask for those that are new."""
        with self._shared.lock:
            subscription = self._shared.subscription
            topics = set(subscription.topics)
            by_pattern = subscription.kind is SubscriptionKind.PATTERN
        if self.group is not None:
            topics |= self.group.group_topics
        new = topics - self._interest.topics
        more = by_pattern and not self._interest.all_topics
        self._interest.topics = topics
        self._interest.all_topics = by_pattern
        if more or any(self._cluster.metadata.topic(topic) is None for topic in new):
            self._cluster.request_refresh()

    def _cluster_changed(self) -> None:
        if self._cluster.metadata.version != self._metadata_version:
            self._metadata_version = self._cluster.metadata.version
            self.match_pattern()
            if self.group is not None:
                self.group.metadata_changed()
                self._ask_again_for_missing()
        self._fetcher.wake()

    def _ask_again_for_missing(self) -> None:
        """A topic that does not exist yet: nobody is assigned its partitions, so nobody else would ask for it."""
        missing = [topic for topic in self._interest.topics if self._cluster.metadata.topic(topic) is None]
        if not missing:
            return
        self._cluster.request_refresh()
        for topic in missing:
            error = self._cluster.metadata.topic_error(topic)
            if error is not None and not isinstance(error, Retriable):
                with self._shared.lock:
                    self._shared.topic_errors[topic] = error
                self._shared.notify()

    def match_pattern(self) -> None:
        """Compare a pattern with the topics that there are; a difference makes the group rebalance."""
        subscription = self._shared.subscription
        exclude_internal = self._shared.config.exclude_internal_topics
        with self._shared.lock:
            pattern = subscription.pattern
            if pattern is None:
                return
            matched = [
                topic.name
                for topic in self._cluster.metadata.topics()
                if pattern.fullmatch(topic.name) and not (exclude_internal and topic.is_internal)
            ]
            changed = subscription.matched_topics(matched)
        if changed and self.group is not None:
            self.group.request_rejoin("other topics match the pattern now")

    def execute(self, effects: list[Effect]) -> None:
        """Effects of the membership, from the polling side."""
        if self.group is not None:
            self.group.execute(effects)

    async def refresh_for_pattern(self) -> None:
        """See all topics that there are before the first join."""
        self.interest_changed()
        await self._cluster.refresh()
        self.match_pattern()

    # --- offsets

    def _require_coordinator(self) -> CoordinatorClient:
        if self._coordinator is None:
            raise InvalidGroupId("this consumer has no group: set group_id to commit offsets, or to ask for them")
        return self._coordinator

    async def commit(
        self, offsets: Mapping[TopicPartition, OffsetAndMetadata], generation: Generation, deadline_ms: int | None
    ) -> None:
        """Commit; what the answer says about the membership is told to the machine."""
        try:
            await self._require_coordinator().commit(offsets, generation, deadline_ms=deadline_ms)
        except KafkaError as error:
            self._learn_from_commit(error, generation)
            raise

    def _learn_from_commit(self, error: KafkaError, generation: Generation) -> None:
        with self._shared.lock:
            if isinstance(error, CommitFailed):
                self._shared.membership.lose(generation, "a commit was refused")
            elif isinstance(error, RebalanceInProgress) and generation == self._shared.membership.generation:
                self._shared.membership.request_rejoin("the group is rebalancing")

    async def commit_and_report(
        self,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        generation: Generation,
        callback: CommitCallback,
    ) -> None:
        """Commit once; the outcome waits for the application's next poll."""
        error: BaseException | None = None
        try:
            await self.commit(offsets, generation, None)
        except OttlaError as failed:
            error = failed
        self._shared.commit_outcomes.append(CommitOutcome(callback, offsets, error))
        self._shared.notify()

    async def committed(
        self, partitions: Iterable[TopicPartition], deadline_ms: int
    ) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """The group's committed offsets."""
        return await self._require_coordinator().committed(partitions, deadline_ms=deadline_ms)

    async def offsets_for(
        self, timestamps: Mapping[TopicPartition, int], deadline_ms: int
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """Offsets by time, tried until all leaders have answered; None where no record is as young as that."""
        found: dict[TopicPartition, OffsetAndTimestamp | None] = {}
        left = dict(timestamps)
        failures = 0
        while left:
            topics = {partition.topic for partition in left}
            if any(self._cluster.leader(*partition) is None for partition in left):
                await self._see(topics, deadline_ms)
                self._refuse_unknown(left)
            last: KafkaError | None = None
            for partition, outcome in (await self.lookup.offsets(left)).items():
                if isinstance(outcome, KafkaError):
                    last = outcome
                    if not isinstance(outcome, Retriable):
                        raise outcome
                    continue
                del left[partition]
                found[partition] = outcome if outcome.offset != NO_OFFSET else None
            if last is not None:
                failures += 1
                pause_ms = self._backoff.pause_ms(failures)
                if self._cluster.now_ms() + pause_ms >= deadline_ms:
                    raise last
                await asyncio.sleep(pause_ms / 1000)
                await self._see(topics, deadline_ms)
        return {partition: found[partition] for partition in timestamps}

    async def _see(self, topics: set[str], deadline_ms: int) -> None:
        """Metadata of topics that need not be subscribed to; asking creates them only if this consumer may."""
        new = topics - self._asked.topics
        self._asked.topics |= new
        try:
            await self._cluster.refresh(timeout_ms=max(1, deadline_ms - self._cluster.now_ms()))
        finally:
            self._asked.topics -= new

    def _refuse_unknown(self, partitions: Iterable[TopicPartition]) -> None:
        """A partition number that its topic does not have will not appear by waiting for it."""
        for partition in partitions:
            topic = self._cluster.metadata.topic(partition.topic)
            if topic is not None and partition.partition not in topic.partitions:
                raise UnknownTopicOrPartition(
                    f"{partition} does not exist: the topic has {topic.partition_count} partitions"
                )

    async def partitions_for(self, topic: str, deadline_ms: int) -> list[PartitionMetadata]:
        """A topic's partitions; an empty list if there is no such topic."""
        if self._cluster.metadata.topic(topic) is None:
            await self._see({topic}, deadline_ms)
        known = self._cluster.metadata.topic(topic)
        if known is None:
            error = self._cluster.metadata.topic_error(topic)
            if error is not None and not isinstance(error, Retriable):
                raise error
            return []
        return list(known.partitions.values())

    # --- the end

    async def leave(self, effects: Sequence[Effect], timeout_ms: int) -> None:
        """Send LeaveGroup and wait for the answer; that nobody answers changes nothing."""
        for effect in effects:
            if isinstance(effect, SendLeave) and self._coordinator is not None:
                try:
                    await self._coordinator.leave(effect.member_id, effect.reason, timeout_ms)
                except OttlaError:
                    pass
        self.execute([])

    async def close(self, timeout_seconds: float) -> None:
        """Stop everything, and give up sessions and connections."""
        self._closed = True
        self._cluster.remove_listener(self._cluster_changed)
        self._cluster.remove_interest(self._interest)
        self._cluster.remove_interest(self._asked)
        self._positions.close()
        if self.group is not None:
            self.group.close()
        await self._fetcher.close(timeout_seconds)
        if self._coordinator is not None:
            self._coordinator.close()
