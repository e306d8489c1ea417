"""What all parts of the admin client share: whom to ask, how often, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from ottla.client.backoff import Backoff
from ottla.client.cluster import Cluster, CoordinatorKind
from ottla.client.config import AdminConfig
from ottla.client.engine import Engine
from ottla.client.topic_partition import TopicPartition
from ottla.errors import (
    CoordinatorLoadInProgress,
    CoordinatorNotAvailable,
    Disconnected,
    KafkaError,
    LeaderNotAvailable,
    NoAnswer,
    NotController,
    NotCoordinator,
    Retriable,
)

T = TypeVar("T")


class AdminBase:
    """Retries, deadlines and routes. On the I/O loop."""

    def __init__(self, engine: Engine, config: AdminConfig, backoff: Backoff) -> None:
        self.engine = engine
        self.config = config
        self._backoff = backoff

    @property
    def cluster(self) -> Cluster:
        """The connections and the metadata."""
        return self.engine.cluster

    def _deadline_ms(self, timeout: float | None) -> int:
        """When a call that may take `timeout` seconds has to end."""
        limit_ms = self.config.default_api_timeout_ms if timeout is None else int(timeout * 1000)
        return self.cluster.now_ms() + limit_ms

    def _left_ms(self, deadline_ms: int) -> int:
        """How much of a call's time is left, for one request."""
        return max(1, min(deadline_ms - self.cluster.now_ms(), self.config.request_timeout_ms))

    async def _retrying(self, attempt: Callable[[], Awaitable[T]], deadline_ms: int) -> T:
        """Try until it succeeds, fails for good, or the time is up; then the last error is raised."""
        failures = 0
        while True:
            try:
                return await attempt()
            except Retriable as error:
                failures += 1
                pause_ms = self._backoff.pause_ms(failures)
                if failures > self.config.retries or self.cluster.now_ms() + pause_ms >= deadline_ms:
                    raise
                if isinstance(error, NotController):
                    self.cluster.request_refresh()
                await asyncio.sleep(pause_ms / 1000)

    async def _of_coordinator(
        self,
        key: str,
        attempt: Callable[[int], Awaitable[T]],
        deadline_ms: int,
        kind: CoordinatorKind = CoordinatorKind.GROUP,
    ) -> T:
        """Ask the coordinator of a group or transactional id, wherever it moves to meanwhile."""

        async def once() -> T:
            node_id = await self.cluster.find_coordinator(
                key, kind, timeout_ms=max(1, deadline_ms - self.cluster.now_ms())
            )
            try:
                return await attempt(node_id)
            except (NotCoordinator, CoordinatorNotAvailable, CoordinatorLoadInProgress, Disconnected, NoAnswer):
                self.cluster.forget_coordinator(key, kind)
                raise

        return await self._retrying(once, deadline_ms)

    async def _by_leader(
        self, partitions: Iterable[TopicPartition], deadline_ms: int
    ) -> dict[int, list[TopicPartition]]:
        """Partitions by the broker that leads them.

        Raises:
            UnknownTopicOrPartition: one of them does not exist.
            LeaderNotAvailable: one of them has no leader at the moment.
        """
        wanted = list(partitions)
        metadata = self.cluster.metadata
        if any(metadata.leader(*partition) is None for partition in wanted):
            topics = {partition.topic for partition in wanted}
            await self.cluster.refresh(topics, timeout_ms=self._left_ms(deadline_ms))
        by_leader: dict[int, list[TopicPartition]] = {}
        for partition in wanted:
            leader = metadata.leader(*partition)
            if leader is None:
                raise self._why_no_leader(partition)
            by_leader.setdefault(leader, []).append(partition)
        return by_leader

    def _why_no_leader(self, partition: TopicPartition) -> KafkaError:
        error = self.cluster.metadata.topic_error(partition.topic)
        if error is not None:
            return type(error)(f"{partition}: {error}")
        return LeaderNotAvailable(f"{partition} has no leader, or there is no such partition")


def by_topic(partitions: Iterable[TopicPartition]) -> dict[str, list[int]]:
    """Partition numbers by topic."""
    grouped: dict[str, list[int]] = {}
    for topic, partition in partitions:
        grouped.setdefault(topic, []).append(partition)
    return grouped
