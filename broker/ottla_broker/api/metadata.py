"""Metadata (key 3): brokers, topics and leaders; where every client starts.

Versions:
    0     an empty list of topics asks for all; topics with unavailable replicas carry REPLICA_NOT_AVAILABLE
    1     null asks for all, an empty list for none; rack, controller id, internal flag
    2     cluster id
    4     the client says whether unknown topics may be created
    5     offline replicas
    7     leader epochs
    8-10  authorized operations of topics and (only these versions) of the cluster
    10    topic ids in the answer
    12    topics may be asked for by id
    13    a top-level error code

An unknown topic that may be created is created before the answer, which then names its leader already (Apache Kafka
answers UNKNOWN_TOPIC_OR_PARTITION and lets the client ask again).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from ottla_broker.controller.operations import CLUSTER_OPERATIONS, TOPIC_OPERATIONS
from ottla_broker.controller.topic_names import is_internal, is_valid_topic_name
from ottla_broker.pending import Pending
from ottla_wire.errors import (
    InvalidRequest,
    InvalidTopic,
    KafkaError,
    LeaderNotAvailable,
    NoError,
    ReplicaNotAvailable,
    UnknownTopicId,
    UnknownTopicOrPartition,
)
from ottla_wire.messages.metadata import (
    MetadataRequest,
    MetadataResponse,
    MetadataResponseBroker,
    MetadataResponsePartition,
    MetadataResponseTopic,
)
from ottla_wire.schema import Uuid

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.controller.image import MetadataImage, PartitionImage, TopicImage

logger = logging.getLogger(__name__)

_TOPIC_IDS_SINCE: Final = 12


def handle(
    broker: Broker, context: RequestContext, request: MetadataRequest
) -> MetadataResponse | Pending[MetadataResponse]:
    """Answer with the metadata of the topics asked for; creates unknown ones where that is allowed."""
    asked = request.topics
    if asked is None or (context.api_version == 0 and not asked):
        topics = broker.controller.image.topics_by_name.values()
        return _answer(broker, context, request, [_describe(broker, context, topic) for topic in topics])
    if context.api_version < _TOPIC_IDS_SINCE:
        _refuse_ids(request, context.api_version)
    elif any(topic.name is None and topic.topic_id == Uuid.ZERO for topic in asked):
        raise InvalidRequest("a topic is asked for by its name or by its id")
    ids = [topic.topic_id for topic in asked if topic.topic_id != Uuid.ZERO]
    if ids:  # as in Kafka, names beside ids are not looked at
        return _answer(broker, context, request, [_by_id(broker, context, topic_id) for topic_id in dict.fromkeys(ids)])
    names = list(dict.fromkeys(topic.name for topic in asked if topic.name is not None))
    return _by_names(broker, context, request, names)


def error_response(request: MetadataRequest, code: int, message: str | None) -> MetadataResponse:
    """The answer to a request that failed as a whole: every topic carries the error (v13: the response, too)."""
    topics = [
        MetadataResponseTopic(name=topic.name or "", topic_id=topic.topic_id, error_code=code)
        for topic in request.topics or ()
    ]
    return MetadataResponse(topics=topics, error_code=code)


def _refuse_ids(request: MetadataRequest, version: int) -> None:
    for topic in request.topics or ():
        if topic.name is None:
            raise InvalidRequest(f"Topic name can not be null for version {version}")
        if topic.topic_id != Uuid.ZERO:
            raise InvalidRequest(f"Topic IDs are not supported in requests for version {version}")


def _by_names(
    broker: Broker, context: RequestContext, request: MetadataRequest, names: list[str]
) -> MetadataResponse | Pending[MetadataResponse]:
    def answer() -> MetadataResponse:
        return _answer(broker, context, request, [_by_name(broker, context, name) for name in names])

    # The flag came with v4: before it, asking meant creating.
    allowed = request.allow_auto_topic_creation or context.api_version < 4
    missing = [n for n in names if n not in broker.controller.image.topics_by_name and is_valid_topic_name(n)]
    if not missing or not allowed or not broker.config.auto_create_topics_enable:
        return answer()
    created: Pending[MetadataResponse] = Pending()

    def finished(creation: Pending[dict[str, KafkaError]]) -> None:
        error = creation.error()
        failures = dict.fromkeys(missing, error) if error is not None else creation.result()
        for name, failure in failures.items():
            logger.warning("topic %s cannot be created automatically: %s", name, failure)
        created.complete(answer())

    broker.controller.create_missing_topics(missing).on_done(finished)
    return created


def _answer(
    broker: Broker, context: RequestContext, request: MetadataRequest, topics: list[MetadataResponseTopic]
) -> MetadataResponse:
    image = broker.controller.image
    response = MetadataResponse(
        brokers=[
            MetadataResponseBroker(
                node_id=node.id, host=node.endpoints[0].host, port=node.endpoints[0].port, rack=node.rack
            )
            for node in image.active_brokers()
        ],
        cluster_id=image.cluster_id,
        controller_id=image.controller_id,
        topics=topics,
    )
    if 8 <= context.api_version <= 10 and request.include_cluster_authorized_operations:
        response.cluster_authorized_operations = CLUSTER_OPERATIONS
    if context.api_version >= 8 and request.include_topic_authorized_operations:
        for topic in topics:
            if topic.name is not None:
                topic.topic_authorized_operations = TOPIC_OPERATIONS
    return response


def _by_id(broker: Broker, context: RequestContext, topic_id: Uuid) -> MetadataResponseTopic:
    topic = broker.controller.image.topics_by_id.get(topic_id)
    if topic is None:
        return MetadataResponseTopic(error_code=UnknownTopicId.code, name=None, topic_id=topic_id)
    return _describe(broker, context, topic)


def _by_name(broker: Broker, context: RequestContext, name: str) -> MetadataResponseTopic:
    topic = broker.controller.image.topics_by_name.get(name)
    if topic is not None:
        return _describe(broker, context, topic)
    code = UnknownTopicOrPartition.code if is_valid_topic_name(name) else InvalidTopic.code
    return MetadataResponseTopic(error_code=code, name=name, is_internal=is_internal(name))


def _describe(broker: Broker, context: RequestContext, topic: TopicImage) -> MetadataResponseTopic:
    image = broker.controller.image
    return MetadataResponseTopic(
        error_code=NoError,
        name=topic.name,
        topic_id=topic.id,
        is_internal=topic.is_internal,
        partitions=[
            _describe_partition(image, partition, context.api_version)
            for _, partition in sorted(topic.partitions.items())
        ],
    )


def _describe_partition(image: MetadataImage, partition: PartitionImage, version: int) -> MetadataResponsePartition:
    brokers = image.brokers
    offline = [r for r in partition.replicas if r not in brokers or not brokers[r].is_active]
    replicas, isr = partition.replicas, partition.isr
    error = NoError
    if partition.leader in offline or partition.leader < 0:
        error = LeaderNotAvailable.code
    elif version == 0 and offline:
        # v0 clients cannot be told which replicas are down
        error = ReplicaNotAvailable.code
        replicas = tuple(r for r in replicas if r not in offline)
        isr = tuple(r for r in isr if r not in offline)
    return MetadataResponsePartition(
        error_code=error,
        partition_index=partition.id,
        leader_id=-1 if partition.leader in offline else partition.leader,
        leader_epoch=partition.leader_epoch,
        replica_nodes=list(replicas),
        isr_nodes=list(isr),
        offline_replicas=offline,
    )
