"""FindCoordinator (key 10): which broker keeps a group or a transactional id.

It is the leader of the partition of the coordinator's internal topic that the key belongs to. The topic is created when
somebody first asks, whatever auto.create.topics.enable says.

Versions: 0 knows only groups, 1 adds the key type and a message, 4 takes several keys, 6 adds share coordinators. Keys
of share partitions are refused as unsupported until there are share groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ottla_broker.controller.topic_names import OFFSETS_TOPIC, TRANSACTION_STATE_TOPIC
from ottla_broker.pending import Pending
from ottla_wire.errors import CoordinatorNotAvailable, InvalidRequest, KafkaError, UnsupportedVersion
from ottla_wire.messages.find_coordinator import Coordinator, FindCoordinatorRequest, FindCoordinatorResponse

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.controller.image import BrokerImage

_GROUP: Final = 0
_TRANSACTION: Final = 1
_SHARE: Final = 2
_BATCHED_SINCE: Final = 4
_SHARE_SINCE: Final = 6


def handle(
    broker: Broker, context: RequestContext, request: FindCoordinatorRequest
) -> FindCoordinatorResponse | Pending[FindCoordinatorResponse]:
    """Answer with the coordinator of each key."""
    batched = context.api_version >= _BATCHED_SINCE
    keys = request.coordinator_keys if batched else [request.key]

    def answer() -> FindCoordinatorResponse:
        found = [_find(broker, request.key_type, key) for key in keys]
        return FindCoordinatorResponse(coordinators=found) if batched else _single(found[0])

    try:
        topic = _internal_topic(request.key_type, context.api_version)
    except KafkaError as error:
        failed = [_not_found(key, error.code, error.message) for key in keys]
        return FindCoordinatorResponse(coordinators=failed) if batched else _single(failed[0])
    if topic in broker.controller.image.topics_by_name:
        return answer()
    creation: Pending[FindCoordinatorResponse] = Pending()
    broker.controller.create_missing_topics([topic]).on_done(lambda _: creation.complete(answer()))
    return creation


def error_response(request: FindCoordinatorRequest, code: int, message: str | None) -> FindCoordinatorResponse:
    """The answer to a request that failed as a whole: every key carries the error."""
    failed = [_not_found(key, code, message) for key in request.coordinator_keys]
    if failed:
        return FindCoordinatorResponse(coordinators=failed)
    return _single(_not_found(request.key, code, message))


def _internal_topic(key_type: int, version: int) -> str:
    if key_type == _GROUP:
        return OFFSETS_TOPIC
    if key_type == _TRANSACTION:
        return TRANSACTION_STATE_TOPIC
    if key_type == _SHARE:
        if version < _SHARE_SINCE:
            raise InvalidRequest("share coordinators are known from version 6 on")
        raise UnsupportedVersion("share groups are not available on this broker")
    raise InvalidRequest(f"Unknown coordinator type received: {key_type}")


def _find(broker: Broker, key_type: int, key: str) -> Coordinator:
    if key_type == _GROUP:
        leader = _leader(broker, OFFSETS_TOPIC, broker.groups.partition_for(key))
    else:
        leader = _leader(broker, TRANSACTION_STATE_TOPIC, broker.transactions.partition_for(key))
    if leader is None:
        return _not_found(key, CoordinatorNotAvailable.code, None)
    endpoint = leader.endpoints[0]
    return Coordinator(
        key=key, node_id=leader.id, host=endpoint.host, port=endpoint.port, error_code=0, error_message=None
    )


def _leader(broker: Broker, topic: str, index: int) -> BrokerImage | None:
    image = broker.controller.image
    partition = image.partition(topic, index)
    leader = None if partition is None else image.brokers.get(partition.leader)
    return leader if leader is not None and leader.is_active else None


def _not_found(key: str, code: int, message: str | None) -> Coordinator:
    return Coordinator(key=key, node_id=-1, host="", port=-1, error_code=code, error_message=message)


def _single(coordinator: Coordinator) -> FindCoordinatorResponse:
    return FindCoordinatorResponse(
        error_code=coordinator.error_code,
        error_message=coordinator.error_message,
        node_id=coordinator.node_id,
        host=coordinator.host,
        port=coordinator.port,
    )
