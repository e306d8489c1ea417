"""Fetches ahead: one request under way per broker, for what has room in the buffer. On the I/O loop.

Theory of operation. `wake` is called whenever something may have become possible: records were handed out, an answer
came, positions or metadata changed. It has positions compared with their leaders first. Then it looks at each assigned
partition that may be fetched, has no more than `max_partition_fetch_bytes` waiting, and whose leader has no request of
ours under way; each such leader gets one request. So while the application works on one chunk of a partition the next
is on its way, and not more.

The next request leaves before the application hears of the answer. Told first, it would decode records, and hold the
interpreter lock for as long as that takes or a switch interval, while the broker has nothing to do.

A leader is not asked for partitions at their end alone while others of it are full: the broker would hold that request
for `fetch_max_wait_ms`, and the full ones, empty long before, would wait behind it. What came would wait behind their
records in any case. As soon as one of them has room, all are asked for together.

Answers become `CompletedFetch`es in the buffer. Errors that new metadata may cure leave the position alone and pause
the partition; the others go into the buffer too, so that they are seen where they belong: after the records before
them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from ottla.client.backoff import Backoff
from ottla.client.cluster import Cluster, Lane, Purpose
from ottla.client.consumer.completed_fetch import AbortedTransaction, CompletedFetch
from ottla.client.consumer.fetch_session import FetchSession, FetchTarget, SessionRequest
from ottla.client.consumer.shared import Shared
from ottla.client.consumer.subscription_state import PartitionState
from ottla.client.metadata import Node, PartitionMetadata
from ottla.client.topic_partition import TopicPartition
from ottla.errors import CorruptMessage, KafkaError, OttlaError, RecordCorrupt, Retriable, UnknownServerError, error_for
from ottla_wire.messages.fetch import (
    FetchPartition,
    FetchRequest,
    FetchResponse,
    FetchTopic,
    ForgottenTopic,
    PartitionData,
)
from ottla_wire.schema import Uuid

logger = logging.getLogger("ottla.client.consumer")

_BY_NAME = 12
"""The last Fetch version that names topics, for brokers whose topics have no ids."""

_EMPTY_PAUSE_MS = 10
"""After an empty answer that came at once: with fetch_max_wait_ms=0 nothing else would slow the exchange down."""

Targets = dict[TopicPartition, FetchTarget]


class Fetcher:
    """Keeps the buffer filled."""

    def __init__(
        self, shared: Shared, cluster: Cluster, lane: Lane, backoff: Backoff, before_fetch: Callable[[], None]
    ) -> None:
        config = shared.config
        self._shared = shared
        self._cluster = cluster
        self._lane = lane
        self._backoff = backoff
        self._before_fetch = before_fetch
        self._read_committed = config.isolation_level == "read_committed"
        self._check_crcs = config.check_crcs
        self._max_wait_ms = config.fetch_max_wait_ms
        self._min_bytes = config.fetch_min_bytes
        self._max_bytes = config.fetch_max_bytes
        self._partition_max_bytes = config.max_partition_fetch_bytes
        self._rack = config.client_rack
        self._request_timeout_ms = config.request_timeout_ms
        self._sessions: dict[int, FetchSession] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._node_failures: dict[int, int] = {}
        self._node_retry_at_ms: dict[int, int] = {}
        self._failures: dict[TopicPartition, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at_ms: int | None = None
        """When the first of those that may not be fetched yet may be: found anew by each look around."""
        self._closed = False

    def wake(self) -> None:
        """Send what can be sent."""
        if self._closed:
            return
        self._before_fetch()
        now_ms = self._cluster.now_ms()
        wanted: dict[int, Targets] = {}
        versions: dict[TopicPartition, int] = {}
        leaderless: set[str] = set()
        at_end: dict[int, bool] = {}
        full: set[int] = set()
        self._wake_at_ms = None
        with self._shared.lock:
            self._shared.buffer.drop_void(self._shared.subscription)
            failed = self._shared.buffer.failed_partitions()
            for state in self._shared.subscription:
                leader = self._cluster.metadata.partition(*state.partition)
                if leader is None or leader.leader < 0:
                    leaderless.add(state.partition.topic)
                elif self._may_fetch(state, leader, now_ms) and state.partition not in failed:
                    wanted.setdefault(leader.leader, {})[state.partition] = self._target(state, leader)
                    versions[state.partition] = state.version
                    at_end[leader.leader] = at_end.get(leader.leader, True) and self._is_at_end(state)
                elif state.is_fetchable and self._is_full(state):
                    full.add(leader.leader)
        if leaderless:
            self._cluster.request_refresh()  # the topics are in the consumer's interest, with its leave to create them
            self._note_missing(leaderless)
        self._arm(now_ms)
        for node_id, targets in wanted.items():
            if node_id in full and at_end[node_id]:
                continue
            task = asyncio.get_running_loop().create_task(
                self._fetch(node_id, targets, versions), name=f"ottla fetch {node_id}"
            )
            self._tasks[node_id] = task
            task.add_done_callback(self._ended)

    async def close(self, timeout_seconds: float) -> None:
        """Stop fetching, and give the sessions up so that the brokers need not keep them."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_seconds)
        # a request that was under way still occupies its connection: the last word goes out on a new one
        self._cluster.close_lane(self._lane)
        closing = [
            asyncio.ensure_future(self._close_session(node_id, request))
            for node_id, session in self._sessions.items()
            if (request := session.close()) is not None
        ]
        if closing:
            await asyncio.wait(closing, timeout=timeout_seconds)
            for last_word in closing:
                last_word.cancel()
        self._cluster.close_lane(self._lane)

    async def _close_session(self, node_id: int, request: SessionRequest) -> None:
        try:
            await self._cluster.send(node_id, self._request(request, 0), purpose=Purpose.FETCH, lane=self._lane)
        except OttlaError as error:
            logger.debug("the fetch session with broker %d was not closed: %s", node_id, error)

    # --- what to ask

    def _may_fetch(self, state: PartitionState, leader: PartitionMetadata, now_ms: int) -> bool:
        if not state.is_fetchable or leader.leader in self._tasks:
            return False
        if self._is_full(state):
            return False
        at_ms = max(state.retry_at_ms, self._node_retry_at_ms.get(leader.leader, 0))
        if at_ms > now_ms:
            self._wake_at_ms = at_ms if self._wake_at_ms is None else min(self._wake_at_ms, at_ms)
            return False
        return True

    def _is_full(self, state: PartitionState) -> bool:
        return not self._shared.buffer.has_room(state.partition)

    def _is_at_end(self, state: PartitionState) -> bool:
        """Whether there was nothing more to fetch when its leader last answered."""
        end = state.last_stable_offset if self._read_committed else state.high_watermark
        return end is not None and state.fetch_offset >= end

    def _target(self, state: PartitionState, leader: PartitionMetadata) -> FetchTarget:
        topic = self._cluster.metadata.topic(state.partition.topic)
        topic_id = Uuid.ZERO if topic is None else topic.topic_id
        return FetchTarget(topic_id, state.fetch_offset, self._partition_max_bytes, leader.leader_epoch)

    def _request(self, request: SessionRequest, max_wait_ms: int) -> FetchRequest:
        topics: list[FetchTopic] = []
        for (topic, index), target in request.to_send.items():
            # in order: the broker serves partitions as they are listed, and those that had least come first
            if not topics or topics[-1].topic != topic:
                topics.append(FetchTopic(topic=topic, topic_id=Uuid(target.topic_id), partitions=[]))
            topics[-1].partitions.append(
                FetchPartition(
                    partition=index,
                    current_leader_epoch=target.leader_epoch,
                    fetch_offset=target.offset,
                    partition_max_bytes=target.max_bytes,
                )
            )
        forgotten: dict[tuple[str, bytes], list[int]] = {}
        for (topic, index), topic_id in request.forgotten.items():
            forgotten.setdefault((topic, topic_id), []).append(index)
        return FetchRequest(
            max_wait_ms=max_wait_ms,
            min_bytes=self._min_bytes,
            max_bytes=self._max_bytes,
            isolation_level=int(self._read_committed),
            session_id=request.session_id,
            session_epoch=request.epoch,
            topics=topics,
            forgotten_topics_data=[
                ForgottenTopic(topic=topic, topic_id=Uuid(topic_id), partitions=indexes)
                for (topic, topic_id), indexes in forgotten.items()
            ],
            rack_id=self._rack,
        )

    # --- asking

    async def _fetch(self, node_id: int, targets: Targets, versions: Mapping[TopicPartition, int]) -> None:
        session = self._sessions.setdefault(node_id, FetchSession())
        by_name = any(target.topic_id == Uuid.ZERO for target in targets.values())
        request = session.build(targets)
        started_ms = self._cluster.now_ms()
        got = False
        try:
            answer: FetchResponse = await self._cluster.send(
                node_id,
                self._request(request, self._max_wait_ms),
                purpose=Purpose.FETCH,
                lane=self._lane,
                timeout_ms=self._request_timeout_ms + self._max_wait_ms,
                max_version=_BY_NAME if by_name else None,
            )
        except OttlaError as error:
            session.failed()
            self._node_failed(node_id, error, targets)
        except BaseException:
            session.failed()
            raise
        else:
            self._node_failures.pop(node_id, None)
            got = self._answered(node_id, session, request, answer, targets, versions)
            if not got and self._cluster.now_ms() - started_ms < _EMPTY_PAUSE_MS:
                self._pause_node(node_id, _EMPTY_PAUSE_MS)
        finally:
            del self._tasks[node_id]
        self.wake()
        if got:
            asyncio.get_running_loop().call_soon(self._shared.notify)  # behind the first step of what `wake` has begun

    def _answered(
        self,
        node_id: int,
        session: FetchSession,
        request: SessionRequest,
        answer: FetchResponse,
        targets: Targets,
        versions: Mapping[TopicPartition, int],
    ) -> bool:
        error = error_for(answer.error_code)
        if error is not None:
            logger.debug("broker %d refused a fetch: %s", node_id, error)
            session.refused(error.code)
            return False
        answered = list(self._named(request, answer))
        if not session.answered(request, answer.session_id, [partition for partition, _ in answered]):
            logger.debug("broker %d answered a fetch that was not asked so; starting over", node_id)
            return False
        nodes = [Node(node.node_id, node.host, node.port, node.rack) for node in answer.node_endpoints]
        stale: set[str] = set()
        got = False
        with self._shared.lock:
            for partition, data in answered:
                target = targets.get(partition)
                if target is None:
                    continue
                if data.error_code:
                    stale |= self._partition_failed(partition, versions[partition], target, data, nodes)
                else:
                    self._failures.pop(partition, None)
                    got |= self._received(partition, versions[partition], target, data)
        if stale:
            self._cluster.request_refresh()
        return got

    def _named(self, request: SessionRequest, answer: FetchResponse) -> Iterable[tuple[TopicPartition, PartitionData]]:
        """The answer's partitions, with the names that we have for its topic ids."""
        names = {target.topic_id: partition.topic for partition, target in request.session.items()}
        for topic in answer.responses:
            name = topic.topic or names.get(topic.topic_id) or str(topic.topic_id)
            for data in topic.partitions:
                yield TopicPartition(name, data.partition_index), data

    def _received(self, partition: TopicPartition, version: int, target: FetchTarget, data: PartitionData) -> bool:
        state = self._shared.subscription.current(partition, version)
        if state is None or state.fetch_offset != target.offset:
            return False  # sought elsewhere, or revoked, while the answer was under way
        state.high_watermark = data.high_watermark
        state.last_stable_offset = data.last_stable_offset
        state.log_start_offset = data.log_start_offset
        if not data.records:
            return False
        aborted = None
        if self._read_committed:
            aborted = [AbortedTransaction(it.first_offset, it.producer_id) for it in data.aborted_transactions or ()]
        fetch = CompletedFetch(
            partition,
            version,
            target.offset,
            memoryview(data.records),
            aborted=aborted,
            check_crcs=self._check_crcs,
        )
        state.fetch_offset = fetch.next_fetch_offset
        self._shared.buffer.add(fetch)
        return True

    # --- errors

    def _partition_failed(
        self, partition: TopicPartition, version: int, target: FetchTarget, data: PartitionData, nodes: list[Node]
    ) -> set[str]:
        """Deal with a partition's error (with the lock held); the topics whose metadata is out of date."""
        error = error_for(data.error_code)
        assert error is not None
        state = self._shared.subscription.current(partition, version)
        if state is None or state.fetch_offset != target.offset:
            return set()
        logger.debug("fetching %s at %d: %s", partition, target.offset, error)
        if (isinstance(error, Retriable) and not isinstance(error, CorruptMessage)) or isinstance(
            error, UnknownServerError
        ):
            leader = data.current_leader
            learnt = self._cluster.metadata.update_leader(*partition, leader.leader_id, leader.leader_epoch, nodes)
            if not learnt:
                self._failures[partition] = self._failures.get(partition, 0) + 1
                pause_ms = self._backoff.pause_ms(self._failures[partition])
                state.retry_at_ms = self._cluster.now_ms() + pause_ms
            return {partition.topic} if error.refresh_metadata and not learnt else set()
        if isinstance(error, CorruptMessage):
            error = RecordCorrupt(partition, target.offset, "the broker cannot read it either")
        failed = CompletedFetch(partition, version, target.offset, None, error=error)
        self._shared.buffer.add(failed)
        self._shared.notify()
        return set()

    def _node_failed(self, node_id: int, error: OttlaError, targets: Targets) -> None:
        failures = self._node_failures[node_id] = self._node_failures.get(node_id, 0) + 1
        logger.debug("fetching from broker %d failed: %s", node_id, error)
        if isinstance(error, KafkaError) and not isinstance(error, Retriable):
            with self._shared.lock:
                self._shared.topic_errors.update({partition.topic: error for partition in targets})
            self._shared.notify()
        self._pause_node(node_id, self._backoff.pause_ms(failures))
        self._cluster.request_refresh()

    def _note_missing(self, topics: set[str]) -> None:
        """A topic that may not be read is told to the application; one that does not exist yet is waited for."""
        for topic in topics:
            error = self._cluster.metadata.topic_error(topic)
            if error is not None and not isinstance(error, Retriable):
                with self._shared.lock:
                    self._shared.topic_errors[topic] = error
                self._shared.notify()

    def _pause_node(self, node_id: int, pause_ms: int) -> None:
        self._node_retry_at_ms[node_id] = self._cluster.now_ms() + pause_ms

    def _arm(self, now_ms: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._wake_at_ms is not None:
            delay_ms = max(0, self._wake_at_ms - now_ms)
            self._timer = asyncio.get_running_loop().call_later((delay_ms + 1) / 1000, self.wake)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.error("a fetch failed in an unexpected way", exc_info=task.exception())
            self._wake_at_ms = self._cluster.now_ms() + self._backoff.pause_ms(5)
            self._arm(self._cluster.now_ms())
