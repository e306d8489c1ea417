"""Gives partitions their positions: committed offsets, resets, validation after a change of leader. On the I/O loop.

`step` looks at what waits and starts at most one lookup of each kind; each lookup takes all partitions that wait for
its kind, and steps again when it is done. A partition whose lookup failed waits for its back-off.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from ottla.client.backoff import Backoff
from ottla.client.cluster import Cluster
from ottla.client.consumer.coordinator_client import CoordinatorClient
from ottla.client.consumer.offset_lookup import NO_OFFSET, EpochEnd, OffsetLookup
from ottla.client.consumer.reset_policy import LATEST_TIMESTAMP
from ottla.client.consumer.shared import Shared
from ottla.client.consumer.subscription_state import FetchState, PartitionState, Position
from ottla.client.topic_partition import OffsetAndMetadata, OffsetAndTimestamp, TopicPartition
from ottla.errors import KafkaError, LogTruncation, NoOffsetForPartition, OttlaError, Retriable

logger = logging.getLogger("ottla.client.consumer")


class PositionKeeper:
    """Looks positions up for as long as partitions wait for them."""

    def __init__(
        self,
        shared: Shared,
        cluster: Cluster,
        lookup: OffsetLookup,
        coordinator: CoordinatorClient | None,
        backoff: Backoff,
        on_found: Callable[[], None],
    ) -> None:
        self._shared = shared
        self._cluster = cluster
        self._lookup = lookup
        self._coordinator = coordinator
        self._backoff = backoff
        self._on_found = on_found
        self._tasks: dict[FetchState, asyncio.Task[None]] = {}
        self._failures: dict[TopicPartition, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._released = 0

    def release(self) -> None:
        """The application needs positions: it polls, or asks for one.

        Until then a new assignment is left alone, because a seek or a commit may still say where to begin.
        """
        with self._shared.lock:
            self._released = self._shared.subscription.changes

    def step(self) -> None:
        """Start what can be started. A step precedes every fetch: here a new leader asks for validation."""
        self._see_leaders()
        if self._released != self._shared.subscription.changes:
            return
        self._start(FetchState.INITIALIZING, self._initialize)
        self._start(FetchState.AWAIT_RESET, self._reset)
        self._start(FetchState.AWAIT_VALIDATION, self._validate)
        self._arm()

    def _see_leaders(self) -> None:
        with self._shared.lock:
            for state in self._shared.subscription:
                leader = self._cluster.metadata.partition(*state.partition)
                if leader is not None and leader.leader >= 0:
                    self._shared.subscription.leader_seen(state, leader.leader_epoch)

    def close(self) -> None:
        """Stop."""
        for task in self._tasks.values():
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()

    def _start(
        self, kind: FetchState, lookup: Callable[[Mapping[TopicPartition, PartitionState]], Coroutine[Any, Any, None]]
    ) -> None:
        if kind in self._tasks:
            return
        with self._shared.lock:
            waiting = {
                state.partition: state
                for state in self._shared.subscription.waiting_for(kind, self._cluster.now_ms())
                if state.partition not in self._shared.partition_errors
            }
        if not waiting:
            return
        task = asyncio.get_running_loop().create_task(lookup(waiting), name=f"ottla {kind.name.lower()}")
        self._tasks[kind] = task
        task.add_done_callback(lambda done: self._ended(kind, done))

    def _ended(self, kind: FetchState, task: asyncio.Task[None]) -> None:
        self._tasks.pop(kind, None)
        if task.cancelled():
            return
        if task.exception() is not None:
            logger.error("positions could not be looked up", exc_info=task.exception())
            with self._shared.lock:
                for state in self._shared.subscription.waiting_for(kind, self._cluster.now_ms()):
                    state.retry_at_ms = self._cluster.now_ms() + self._backoff.pause_ms(5)
        self._on_found()
        self._shared.notify()

    # --- committed offsets

    async def _initialize(self, waiting: Mapping[TopicPartition, PartitionState]) -> None:
        versions = {partition: state.version for partition, state in waiting.items()}
        committed: Mapping[TopicPartition, OffsetAndMetadata | None] = {}
        if self._coordinator is not None:
            try:
                committed = await self._coordinator.committed(versions, deadline_ms=None)
            except OttlaError as error:
                self._failed(dict.fromkeys(versions, error), versions)
                return
        with self._shared.lock:
            self._place(committed, versions)

    def _place(
        self, committed: Mapping[TopicPartition, OffsetAndMetadata | None], versions: Mapping[TopicPartition, int]
    ) -> None:
        subscription = self._shared.subscription
        for partition, version in versions.items():
            self._failures.pop(partition, None)
            found = committed.get(partition)
            if found is not None:
                subscription.found(partition, version, Position(found.offset, found.leader_epoch))
                continue
            state = subscription.current(partition, version)
            if state is None or state.state is not FetchState.INITIALIZING:
                continue  # the application was faster, with a seek
            if subscription.default_policy.kind == "none":
                self._shared.partition_errors[partition] = NoOffsetForPartition([partition])
            else:
                subscription.request_reset(partition)

    # --- resets

    async def _reset(self, waiting: Mapping[TopicPartition, PartitionState]) -> None:
        wall_ms = time.time_ns() // 1_000_000
        with self._shared.lock:
            versions = {partition: state.version for partition, state in waiting.items()}
            policies = {partition: state.reset_policy for partition, state in waiting.items()}
        timestamps = {
            partition: policy.timestamp(wall_ms) for partition, policy in policies.items() if policy is not None
        }
        outcome = await self._lookup.offsets(timestamps)
        # by_duration: nothing as young as that means that everything is older, so reading starts at the end
        at_end = [
            partition
            for partition, found in outcome.items()
            if isinstance(found, OffsetAndTimestamp) and found.offset == NO_OFFSET
        ]
        if at_end:
            outcome |= await self._lookup.offsets(dict.fromkeys(at_end, LATEST_TIMESTAMP))
        found = {partition: place for partition, place in outcome.items() if isinstance(place, OffsetAndTimestamp)}
        with self._shared.lock:
            for partition, place in found.items():
                self._failures.pop(partition, None)
                position = Position(place.offset, place.leader_epoch, self._leader_epoch(partition))
                if self._shared.subscription.found(partition, versions[partition], position):
                    logger.info("%s starts at offset %d (%s)", partition, place.offset, policies[partition])
        self._failed({name: error for name, error in outcome.items() if isinstance(error, KafkaError)}, versions)

    # --- validation

    async def _validate(self, waiting: Mapping[TopicPartition, PartitionState]) -> None:
        with self._shared.lock:
            versions = {partition: state.version for partition, state in waiting.items()}
            positions = {partition: state.position for partition, state in waiting.items()}
        epochs = {
            partition: position.offset_epoch
            for partition, position in positions.items()
            if position is not None and position.offset_epoch is not None
        }
        outcome = await self._lookup.epoch_ends(epochs)
        with self._shared.lock:
            for partition, end in outcome.items():
                position = positions[partition]
                if isinstance(end, EpochEnd) and position is not None:
                    self._failures.pop(partition, None)
                    self._compare(partition, versions[partition], position, end)
        self._failed({name: error for name, error in outcome.items() if isinstance(error, KafkaError)}, versions)

    def _compare(self, partition: TopicPartition, version: int, position: Position, end: EpochEnd) -> None:
        subscription = self._shared.subscription
        if subscription.current(partition, version) is None:
            return  # the application went elsewhere meanwhile
        unknown = end.end_offset < 0 or end.leader_epoch < 0
        if not unknown and end.end_offset >= position.offset:
            subscription.validated(partition, version)
            return
        if subscription.default_policy.kind == "none":
            divergent = {} if unknown else {partition: OffsetAndMetadata(end.end_offset, end.leader_epoch)}
            self._shared.partition_errors[partition] = LogTruncation({partition: position.offset}, divergent)
            return
        logger.warning("%s was truncated below the position %d; the leader says %s", partition, position.offset, end)
        if unknown:
            subscription.request_reset(partition)
        else:
            subscription.truncated(
                partition, version, Position(end.end_offset, end.leader_epoch, position.leader_epoch)
            )

    # --- failures

    def _failed(self, errors: Mapping[TopicPartition, OttlaError], versions: Mapping[TopicPartition, int]) -> None:
        if not errors:
            return
        now_ms = self._cluster.now_ms()
        stale = False
        with self._shared.lock:
            for partition, error in errors.items():
                if isinstance(error, KafkaError) and error.refresh_metadata:
                    stale = True
                state = self._shared.subscription.current(partition, versions[partition])
                if state is None:
                    continue
                if not isinstance(error, Retriable):
                    self._shared.partition_errors[partition] = error
                    continue
                self._failures[partition] = self._failures.get(partition, 0) + 1
                state.retry_at_ms = now_ms + self._backoff.pause_ms(self._failures[partition])
                logger.debug("%s has no position yet: %s", partition, error)
        if stale:
            self._cluster.request_refresh()

    def _arm(self) -> None:
        """Step again when the first back-off is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_ms = self._cluster.now_ms()
        with self._shared.lock:
            later = [
                state.retry_at_ms
                for state in self._shared.subscription
                if state.state is not FetchState.FETCHING and state.retry_at_ms > now_ms
            ]
        if later:
            self._timer = asyncio.get_running_loop().call_later((min(later) - now_ms + 1) / 1000, self.step)

    def _leader_epoch(self, partition: TopicPartition) -> int:
        known = self._cluster.metadata.partition(*partition)
        return -1 if known is None else known.leader_epoch
