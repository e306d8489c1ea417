"""TxnOffsetCommit (key 28): store positions for a group as part of a transaction.

2 leader epochs (KIP-320), and COORDINATOR_LOAD_IN_PROGRESS is understood. 3 generation, member and instance id
(KIP-447). 4 TRANSACTION_ABORTABLE, 5 the group's partition of `__consumer_offsets` is added to the transaction by the
commit itself (KIP-890); before that the producer has added it, and it is verified.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.api import error_code_of
from ottla_broker.controller.topic_names import OFFSETS_TOPIC
from ottla_broker.coordinator.pendings import recover
from ottla_broker.coordinator.runtime import coordinator_error
from ottla_broker.pending import Pending
from ottla_broker.replication.transaction_verification import Support, Verified
from ottla_wire import errors
from ottla_wire.messages.txn_offset_commit import (
    TxnOffsetCommitRequest,
    TxnOffsetCommitRequestPartition,
    TxnOffsetCommitRequestTopic,
    TxnOffsetCommitResponse,
    TxnOffsetCommitResponsePartition,
    TxnOffsetCommitResponseTopic,
)

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext

_LOADING_SINCE = 2
_ABORTABLE_SINCE = 4
_ADDS_SINCE = 5
_NO_SEQUENCE = -1


def handle(
    broker: Broker, context: RequestContext, request: TxnOffsetCommitRequest
) -> TxnOffsetCommitResponse | Pending[TxnOffsetCommitResponse]:
    """Commit; answered when the offsets are replicated, though they only count when the transaction commits."""
    known, unknown = _sort(broker, request)
    if not known:
        return TxnOffsetCommitResponse(topics=unknown)
    request.topics = known

    def refused(error: Exception) -> TxnOffsetCommitResponse:
        code = error_code_of(_as_client_knows(error, context.api_version))
        return TxnOffsetCommitResponse(topics=[_answer(topic, topic.partitions, code) for topic in known])

    return recover(_commit(broker, context, request), refused).then(lambda response: _merged(response, unknown))


def error_response(request: TxnOffsetCommitRequest, code: int, message: str | None) -> TxnOffsetCommitResponse:
    """The answer to a request that failed as a whole: every partition carries the error."""
    return TxnOffsetCommitResponse(topics=[_answer(topic, topic.partitions, code) for topic in request.topics])


def _commit(
    broker: Broker, context: RequestContext, request: TxnOffsetCommitRequest
) -> Pending[TxnOffsetCommitResponse]:
    """Have the transaction verified for the group's partition, then commit."""
    if not request.group_id:
        return broker.groups.commit_transactional_offsets(context, request, None)
    partition = (OFFSETS_TOPIC, broker.groups.partition_for(request.group_id))
    verified = broker.verification.verify(
        request.transactional_id,
        request.producer_id,
        request.producer_epoch,
        {partition: _NO_SEQUENCE},
        _support(context.api_version),
    )

    def commit(found: Verified) -> Pending[TxnOffsetCommitResponse]:
        refused = found.refused.get(partition)
        if refused is not None:
            return Pending.failed(coordinator_error(refused))
        return broker.groups.commit_transactional_offsets(context, request, found.guards.get(partition))

    if not isinstance(verified, Pending):
        return commit(verified)
    answer: Pending[TxnOffsetCommitResponse] = Pending()
    verified.on_done(lambda done: answer.follow(commit(done.result())))
    return answer


def _support(version: int) -> Support:
    if version >= _ADDS_SINCE:
        return Support.ADDS
    return Support.KNOWS_ABORTABLE if version >= _ABORTABLE_SINCE else Support.VERIFIES


def _as_client_knows(error: Exception, version: int) -> Exception:
    if isinstance(error, errors.NetworkError):
        # Older clients do not know it here; this one has them try again without looking for the coordinator.
        error = errors.CoordinatorLoadInProgress(str(error))
    if isinstance(error, errors.CoordinatorLoadInProgress) and version < _LOADING_SINCE:
        return errors.CoordinatorNotAvailable(str(error))
    return error


def _sort(
    broker: Broker, request: TxnOffsetCommitRequest
) -> tuple[list[TxnOffsetCommitRequestTopic], list[TxnOffsetCommitResponseTopic]]:
    """The partitions that exist, and the answers for the others."""
    by_name = broker.controller.image.topics_by_name
    known: list[TxnOffsetCommitRequestTopic] = []
    unknown: list[TxnOffsetCommitResponseTopic] = []
    for topic in request.topics:
        found = by_name.get(topic.name)
        existing = () if found is None else found.partitions
        missing = [partition for partition in topic.partitions if partition.partition_index not in existing]
        if missing:
            unknown.append(_answer(topic, missing, errors.UnknownTopicOrPartition.code))
            topic.partitions = [partition for partition in topic.partitions if partition.partition_index in existing]
        if topic.partitions:
            known.append(topic)
    return known, unknown


def _merged(response: TxnOffsetCommitResponse, unknown: list[TxnOffsetCommitResponseTopic]) -> TxnOffsetCommitResponse:
    for topic in unknown:
        answered = next((other for other in response.topics if other.name == topic.name), None)
        if answered is None:
            response.topics.append(topic)
        else:
            answered.partitions += topic.partitions
    return response


def _answer(
    topic: TxnOffsetCommitRequestTopic, partitions: list[TxnOffsetCommitRequestPartition], code: int
) -> TxnOffsetCommitResponseTopic:
    return TxnOffsetCommitResponseTopic(
        name=topic.name,
        partitions=[
            TxnOffsetCommitResponsePartition(partition_index=partition.partition_index, error_code=code)
            for partition in partitions
        ],
    )
