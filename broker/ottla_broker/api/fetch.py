"""Fetch (key 1): read batches, wait for more, remember what the client knows.

4 baseline: isolation level. 5 log start offset. 7 fetch sessions (KIP-227). 9 current leader epoch (KIP-320). 11 rack
and preferred replica. 12 flexible, last fetched epoch (KIP-595). 13 topic ids (KIP-516). 15 replica state (KIP-903).
16 endpoints of current leaders (KIP-951). 17 directory id (KIP-853). 18 high watermark of followers (KIP-1166).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ottla_broker.api import error_code_of
from ottla_broker.api.current_leader import current_leader
from ottla_broker.pending import Pending
from ottla_broker.replication.fetch_sessions import FetchContext, FetchResult, FetchTarget, TargetKey
from ottla_broker.replication.fetching import FetchLimits, FetchOutcome, read_partitions
from ottla_broker.replication.partition import READ_COMMITTED, PartitionRead
from ottla_wire import errors
from ottla_wire.messages.fetch import (
    AbortedTransaction,
    EpochEndOffset,
    FetchableTopicResponse,
    FetchRequest,
    FetchResponse,
    LeaderIdAndEpoch,
    NodeEndpoint,
    PartitionData,
)
from ottla_wire.schema import Uuid

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext

_FIRST_VERSION_WITH_TOPIC_IDS = 13
_FIRST_VERSION_WITH_REPLICA_STATE = 15
_FIRST_VERSION_WITH_LEADER = 16
_LAST_VERSION_WITHOUT_STORAGE_ERROR = 5


def handle(broker: Broker, context: RequestContext, request: FetchRequest) -> FetchResponse | Pending[FetchResponse]:
    """Read what is there; wait for `min_bytes` if there is less."""
    fetch = _Fetch(broker, context, request)
    limits, targets = fetch.limits, fetch.targets
    if not targets:
        return fetch.respond(FetchOutcome())
    outcome = read_partitions(broker.replicas, targets, limits)
    if request.max_wait_ms <= 0 or outcome.bytes_read >= limits.min_bytes or outcome.answer_now:
        return fetch.respond(outcome)
    pending: Pending[FetchResponse] = Pending()
    broker.replicas.await_data(
        targets,
        limits,
        outcome,
        lambda finished: pending.complete(fetch.respond(finished)),
        deadline_ms=context.now_ms + request.max_wait_ms,
    )
    return pending


class _Fetch:
    """One fetch request between its reading and its answer."""

    def __init__(self, broker: Broker, context: RequestContext, request: FetchRequest) -> None:
        self._broker = broker
        self._version = version = context.api_version
        replica_id = request.replica_id
        if version >= _FIRST_VERSION_WITH_REPLICA_STATE:
            replica_id = request.replica_state.replica_id
        self._isolation_level = request.isolation_level
        max_bytes = min(request.max_bytes, broker.config.fetch_max_bytes)
        self.limits = FetchLimits(replica_id, request.isolation_level, min(request.min_bytes, max_bytes), max_bytes)
        by_id = version >= _FIRST_VERSION_WITH_TOPIC_IDS
        self._session: FetchContext = broker.replicas.fetch_sessions.begin(
            session_id=request.session_id,
            epoch=request.session_epoch,
            targets=_targets(request, by_id=by_id),
            forgotten=_forgotten(request, by_id=by_id),
            uses_topic_ids=by_id,
            privileged=replica_id >= 0,
            now_ms=context.now_ms,
        )
        self.targets: list[FetchTarget] = []
        self._unreadable: dict[FetchTarget, errors.KafkaError] = {}
        for target in self._session.targets:
            error = self._resolve(target)
            if error is None:
                self.targets.append(target)
            else:
                self._unreadable[target] = error

    def respond(self, outcome: FetchOutcome) -> FetchResponse:
        """The answer: within a session, only what is new to the client."""
        results = outcome.results | self._unreadable
        told = {target: _in_short(result) for target, result in results.items()}
        error_code, session_id, chosen = self._session.finish(told, self._broker.clock.now_ms())
        response = FetchResponse(error_code=error_code, session_id=session_id)
        topic: FetchableTopicResponse | None = None
        for target in chosen:
            # As in Kafka's answers: neighbours of one topic share an entry, a topic may have several entries.
            if topic is None or topic.topic_id != target.topic_id or topic.topic != (target.topic or ""):
                topic = FetchableTopicResponse(topic=target.topic or "", topic_id=target.topic_id)
                response.responses.append(topic)
            topic.partitions.append(self._entry(target, results[target], response))
        return response

    def _resolve(self, target: FetchTarget) -> errors.KafkaError | None:
        """Find the name of a topic id, and check that the partition exists. Errors here do not end a long poll."""
        if target.topic_id != Uuid.ZERO:
            # Looked up each time: the topic may have come, or gone, since the session began.
            topic = self._broker.controller.image.topics_by_id.get(target.topic_id)
            if topic is None:
                return errors.UnknownTopicId(f"there is no topic with the id {target.topic_id}")
            target.topic = topic.name
        assert target.topic is not None
        if self._broker.replicas.find(target.topic, target.index) is not None:
            return None
        if self._broker.controller.image.partition(target.topic, target.index) is None:
            return errors.UnknownTopicOrPartition(f"there is no partition {target.topic}-{target.index}")
        return None

    def _entry(
        self, target: FetchTarget, result: PartitionRead | errors.KafkaError, response: FetchResponse
    ) -> PartitionData:
        if isinstance(result, errors.KafkaError):
            return self._error_entry(target, result, response)
        entry = PartitionData(
            partition_index=target.index,
            high_watermark=result.high_watermark,
            last_stable_offset=result.last_stable_offset,
            log_start_offset=result.log_start_offset,
            records=result.records,
        )
        if result.diverging_epoch is not None:
            entry.diverging_epoch = EpochEndOffset(
                epoch=result.diverging_epoch.epoch, end_offset=result.diverging_epoch.end_offset
            )
        if self._isolation_level == READ_COMMITTED:
            entry.aborted_transactions = [
                AbortedTransaction(producer_id=aborted.producer_id, first_offset=aborted.first_offset)
                for aborted in result.aborted
            ]
        else:
            entry.aborted_transactions = None
        return entry

    def _error_entry(self, target: FetchTarget, error: errors.KafkaError, response: FetchResponse) -> PartitionData:
        code = error_code_of(error)
        if code == errors.KafkaStorageError.code and self._version <= _LAST_VERSION_WITHOUT_STORAGE_ERROR:
            code = errors.NotLeaderOrFollower.code
        entry = PartitionData(
            partition_index=target.index,
            error_code=code,
            high_watermark=-1,
            records=b"",
            aborted_transactions=[] if target in self._unreadable else None,
        )
        if self._version >= _FIRST_VERSION_WITH_LEADER and code in _LEADER_ERRORS and target.topic is not None:
            leader = current_leader(self._broker, target.topic, target.index)
            entry.current_leader = LeaderIdAndEpoch(leader_id=leader.node_id, leader_epoch=leader.epoch)
            leader.add_endpoint(response.node_endpoints, NodeEndpoint)
        return entry


def _in_short(result: PartitionRead | errors.KafkaError) -> FetchResult:
    if isinstance(result, errors.KafkaError):
        return FetchResult(0, -1, -1, error_code_of(result))
    return FetchResult(
        len(result.records), result.high_watermark, result.log_start_offset, 0, result.diverging_epoch is not None
    )


_LEADER_ERRORS = frozenset((errors.NotLeaderOrFollower.code, errors.FencedLeaderEpoch.code))


def _targets(request: FetchRequest, *, by_id: bool) -> Iterable[FetchTarget]:
    for topic in request.topics:
        for partition in topic.partitions:
            yield FetchTarget(
                None if by_id else topic.topic,
                topic.topic_id if by_id else Uuid.ZERO,
                partition.partition,
                fetch_offset=partition.fetch_offset,
                max_bytes=partition.partition_max_bytes,
                current_leader_epoch=partition.current_leader_epoch,
                last_fetched_epoch=partition.last_fetched_epoch,
                log_start_offset=partition.log_start_offset,
            )


def _forgotten(request: FetchRequest, *, by_id: bool) -> Iterable[TargetKey]:
    for topic in request.forgotten_topics_data:
        for index in topic.partitions:
            yield (topic.topic_id if by_id else topic.topic, index)
