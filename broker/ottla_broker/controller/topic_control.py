"""Decisions about topics: what CreateTopics, CreatePartitions and DeleteTopics change, as records and an answer.

Checks and their order are those of Kafka's ReplicationControlManager. Each topic of a request is decided by itself;
what is decided is written as one batch.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ottla_broker.controller.config_control import ConfigControl
from ottla_broker.controller.config_defs import TOPIC_CONFIGS
from ottla_broker.controller.config_types import to_text
from ottla_broker.controller.effective_configs import ConfigSource, EffectiveConfigs
from ottla_broker.controller.image import MetadataImage, TopicImage
from ottla_broker.controller.placement import place_replicas
from ottla_broker.controller.records import (
    CLUSTER_METADATA_TOPIC,
    MetadataRecord,
    PartitionRecord,
    RemoveTopicRecord,
    TopicRecord,
)
from ottla_broker.controller.topic_names import is_valid_topic_name, validate_topic_name
from ottla_wire.errors import (
    InvalidConfig,
    InvalidPartitions,
    InvalidReplicaAssignment,
    InvalidReplicationFactor,
    InvalidRequest,
    InvalidTopic,
    KafkaError,
    NoError,
    PolicyViolation,
    TopicAlreadyExists,
    UnknownTopicId,
    UnknownTopicOrPartition,
)
from ottla_wire.messages.create_partitions import (
    CreatePartitionsRequest,
    CreatePartitionsResponse,
    CreatePartitionsTopic,
    CreatePartitionsTopicResult,
)
from ottla_wire.messages.create_topics import (
    CreatableTopic,
    CreatableTopicConfigs,
    CreatableTopicResult,
    CreateTopicsRequest,
    CreateTopicsResponse,
)
from ottla_wire.messages.delete_topics import DeletableTopicResult, DeleteTopicsRequest, DeleteTopicsResponse
from ottla_wire.schema import Uuid

MAX_PARTITIONS_PER_REQUEST: Final = 10_000


class Decision(NamedTuple):
    """The records that make it so, and the answer once they are committed."""

    records: list[MetadataRecord]
    response: Any


class TopicControl:
    """Turns requests about topics into decisions. Reads the image, never changes it.

    Args:
        num_partitions, replication_factor: of topics that leave them open.
        rng: chooses topic ids and where placement starts.
    """

    def __init__(
        self,
        image: MetadataImage,
        configs: EffectiveConfigs,
        config_control: ConfigControl,
        *,
        num_partitions: int,
        replication_factor: int,
        rng: random.Random,
    ) -> None:
        self._image = image
        self._configs = configs
        self._config_control = config_control
        self._num_partitions = num_partitions
        self._replication_factor = replication_factor
        self._rng = rng

    # -- create topics -----------------------------------------------------------------------------------------------

    def create_topics(self, request: CreateTopicsRequest) -> Decision:
        """Decide CreateTopics.

        Raises:
            PolicyViolation: more than 10,000 partitions in one request.
        """
        self._limit_partitions(request.topics)
        times = Counter(topic.name for topic in request.topics)
        records: list[MetadataRecord] = []
        results: list[CreatableTopicResult] = []
        for topic in request.topics:
            if times[topic.name] > 1:
                continue
            try:
                new, result = self._create_topic(topic)
            except KafkaError as error:
                results.append(_failed(topic.name, error))
            else:
                records += new
                results.append(result)
        repeated = InvalidRequest("Duplicate topic name.")
        results += [_failed(name, repeated) for name, count in times.items() if count > 1]
        return Decision([] if request.validate_only else records, CreateTopicsResponse(topics=results))

    def _limit_partitions(self, topics: Sequence[CreatableTopic]) -> None:
        total = 0
        for topic in topics:
            if topic.assignments:
                total += len(topic.assignments)
            else:
                total += self._num_partitions if topic.num_partitions == -1 else max(topic.num_partitions, 0)
        if total > MAX_PARTITIONS_PER_REQUEST:
            raise PolicyViolation("Excessively large number of partitions per request.")

    def _create_topic(self, topic: CreatableTopic) -> tuple[list[MetadataRecord], CreatableTopicResult]:
        self._check_new_name(topic.name)
        nulls = [config.name for config in topic.configs if config.value is None]
        if nulls:
            raise InvalidConfig(f"Null value not supported for topic configs: {','.join(nulls)}")
        overrides = {config.name: config.value for config in topic.configs if config.value is not None}
        config_records = self._config_control.for_new_topic(topic.name, overrides)
        replicas = self._replicas_of_new_topic(topic)
        topic_id = self._new_topic_id()
        records: list[MetadataRecord] = [TopicRecord(name=topic.name, topic_id=topic_id)]
        records += config_records
        records += [self._partition(topic_id, index, brokers) for index, brokers in enumerate(replicas)]
        result = CreatableTopicResult(
            name=topic.name,
            topic_id=topic_id,
            error_message=None,
            num_partitions=len(replicas),
            replication_factor=len(replicas[0]),
            configs=self._created_configs(overrides),
        )
        return records, result

    def _check_new_name(self, name: str) -> None:
        if name == CLUSTER_METADATA_TOPIC:
            raise InvalidRequest(f"Creation of internal topic {CLUSTER_METADATA_TOPIC} is prohibited.")
        if name in self._image.topics_by_name:
            raise TopicAlreadyExists(f"Topic '{name}' already exists.")
        colliding = self._image.topic_colliding_with(name)
        if colliding is not None and is_valid_topic_name(name):
            raise InvalidTopic(f"Topic '{name}' collides with existing topic: {colliding}")
        validate_topic_name(name)

    def _replicas_of_new_topic(self, topic: CreatableTopic) -> list[list[int]]:
        if topic.assignments:
            return self._assigned(topic)
        if topic.replication_factor < -1 or topic.replication_factor == 0:
            raise InvalidReplicationFactor("Replication factor must be larger than 0, or -1 to use the default value.")
        if topic.num_partitions < -1 or topic.num_partitions == 0:
            raise InvalidPartitions("Number of partitions was set to an invalid non-positive value.")
        count = self._num_partitions if topic.num_partitions == -1 else topic.num_partitions
        factor = self._replication_factor if topic.replication_factor == -1 else topic.replication_factor
        return self._place(count, factor)

    def _assigned(self, topic: CreatableTopic) -> list[list[int]]:
        if topic.replication_factor != -1:
            raise InvalidRequest(
                "A manual partition assignment was specified, but replication factor was not set to -1."
            )
        if topic.num_partitions != -1:
            raise InvalidRequest("A manual partition assignment was specified, but numPartitions was not set to -1.")
        by_index: dict[int, list[int]] = {}
        factor: int | None = None
        for assignment in topic.assignments:
            index, brokers = assignment.partition_index, list(assignment.broker_ids)
            if index in by_index:
                raise InvalidReplicaAssignment(f"Found multiple manual partition assignments for partition {index}")
            self._check_assignment(index, brokers, factor)
            factor = len(brokers)
            by_index[index] = brokers
        if sorted(by_index) != list(range(len(by_index))):
            raise InvalidReplicaAssignment("partitions should be a consecutive 0-based integer sequence")
        return [by_index[index] for index in range(len(by_index))]

    def _new_topic_id(self) -> Uuid:
        topic_id = Uuid.random(self._rng)
        while topic_id in self._image.topics_by_id:  # a restart with the same seed
            topic_id = Uuid.random(self._rng)
        return topic_id

    def _created_configs(self, overrides: dict[str, str]) -> list[CreatableTopicConfigs]:
        shown = []
        value: str | None
        defaults = self._configs.topic_defaults()
        for name in sorted(TOPIC_CONFIGS):
            definition = TOPIC_CONFIGS[name]
            if name in overrides:
                value, source = overrides[name], ConfigSource.DYNAMIC_TOPIC
            else:
                settings = self._configs.broker_settings(*(synonym for synonym, _ in definition.synonyms))
                source = settings[0].source if settings else ConfigSource.DEFAULT
                value = to_text(defaults[name])
            if definition.listed or name in overrides:
                shown.append(CreatableTopicConfigs(name=name, value=value, config_source=int(source)))
        return shown

    # -- create partitions -------------------------------------------------------------------------------------------

    def create_partitions(self, request: CreatePartitionsRequest) -> Decision:
        """Decide CreatePartitions.

        Raises:
            PolicyViolation: more than 10,000 partitions in one request.
        """
        times = Counter(topic.name for topic in request.topics)
        records: list[MetadataRecord] = []
        results = [
            _partitions_result(name, InvalidRequest("Duplicate topic name."))
            for name, count in times.items()
            if count > 1
        ]
        for topic in request.topics:
            if times[topic.name] > 1:
                continue
            try:
                records += self._more_partitions(topic, MAX_PARTITIONS_PER_REQUEST - len(records))
            except PolicyViolation:
                raise
            except KafkaError as error:
                results.append(_partitions_result(topic.name, error))
            else:
                results.append(_partitions_result(topic.name, None))
        return Decision([] if request.validate_only else records, CreatePartitionsResponse(results=results))

    def _more_partitions(self, topic: CreatePartitionsTopic, allowed: int) -> list[PartitionRecord]:
        image = self._image.topics_by_name.get(topic.name)
        if image is None:
            raise UnknownTopicOrPartition
        existing = len(image.partitions)
        if topic.count == existing:
            raise InvalidPartitions(f"Topic already has {existing} partition(s).")
        if topic.count < existing:
            raise InvalidPartitions(
                f"The topic {topic.name} currently has {existing} partition(s); {topic.count} would not be an increase."
            )
        additional = topic.count - existing
        if topic.assignments is not None and len(topic.assignments) != additional:
            raise InvalidReplicaAssignment(
                f"Attempted to add {additional} additional partition(s), but only {len(topic.assignments)} "
                "assignment(s) were specified."
            )
        if additional > allowed:
            raise PolicyViolation("Excessively large number of partitions per request.")
        factor = len(image.partitions[0].replicas)
        if topic.assignments is None:
            replicas = self._place(additional, factor)
        else:
            replicas = [list(assignment.broker_ids) for assignment in topic.assignments]
            for index, brokers in enumerate(replicas, existing):
                self._check_assignment(index, brokers, factor)
        return [self._partition(image.id, index, brokers) for index, brokers in enumerate(replicas, existing)]

    # -- delete topics -----------------------------------------------------------------------------------------------

    def delete_topics(self, request: DeleteTopicsRequest) -> Decision:
        """Decide DeleteTopics, by name and (v6) by id; each topic may be named once, in one of the two ways."""
        named = Counter(request.topic_names)
        identified: Counter[Uuid] = Counter()
        results: list[DeletableTopicResult] = []
        for topic in request.topics:
            if topic.name is not None and topic.topic_id != Uuid.ZERO:
                error = InvalidRequest("You may not specify both topic name and topic id.")
                results.append(_deleted(topic.name, topic.topic_id, error))
            elif topic.name is not None:
                named[topic.name] += 1
            elif topic.topic_id == Uuid.ZERO:
                error = InvalidRequest("Neither topic name nor id were specified.")
                results.append(_deleted(None, Uuid.ZERO, error))
            else:
                identified[topic.topic_id] += 1
        topics: dict[Uuid, TopicImage] = {}
        results += self._find_by_id(identified, topics)
        results += self._find_by_name(named, identified, topics)
        results += [_deleted(topic.name, topic.id, None) for topic in topics.values()]
        records: list[MetadataRecord] = [RemoveTopicRecord(topic_id=topic_id) for topic_id in topics]
        return Decision(records, DeleteTopicsResponse(responses=results))

    def _find_by_id(self, ids: Counter[Uuid], found: dict[Uuid, TopicImage]) -> list[DeletableTopicResult]:
        refused = []
        for topic_id, count in ids.items():
            topic = self._image.topics_by_id.get(topic_id)
            if count > 1:
                refused.append(_deleted(None, topic_id, InvalidRequest("Duplicate topic id.")))
            elif topic is None:
                refused.append(_deleted(None, topic_id, UnknownTopicId()))
            else:
                found[topic_id] = topic
        return refused

    def _find_by_name(
        self, names: Counter[str], ids: Counter[Uuid], found: dict[Uuid, TopicImage]
    ) -> list[DeletableTopicResult]:
        refused = []
        for name, count in names.items():
            topic = self._image.topics_by_name.get(name)
            if count > 1:
                refused.append(_deleted(name, Uuid.ZERO, InvalidRequest("Duplicate topic name.")))
            elif topic is None:
                refused.append(_deleted(name, Uuid.ZERO, UnknownTopicOrPartition()))
            elif topic.id in ids:
                found.pop(topic.id, None)
                error = InvalidRequest("The provided topic name maps to an ID that was already supplied.")
                refused.append(_deleted(name, topic.id, error))
            else:
                found[topic.id] = topic
        return refused

    # -- replicas ----------------------------------------------------------------------------------------------------

    def _place(self, count: int, replication_factor: int) -> list[list[int]]:
        try:
            return place_replicas(self._image.active_brokers(), count, replication_factor, self._rng)
        except InvalidReplicationFactor as error:
            raise InvalidReplicationFactor(
                f"Unable to replicate the partition {replication_factor} time(s): {error.message}"
            ) from None

    def _check_assignment(self, index: int, brokers: Sequence[int], factor: int | None) -> None:
        if not brokers:
            raise InvalidReplicaAssignment("The manual partition assignment includes an empty replica list.")
        for broker_id, count in sorted(Counter(brokers).items()):
            if broker_id not in self._image.brokers:
                raise InvalidReplicaAssignment(
                    f"The manual partition assignment includes broker {broker_id}, but no such broker is registered."
                )
            if count > 1:
                raise InvalidReplicaAssignment(
                    f"The manual partition assignment includes the broker {broker_id} more than once."
                )
        if factor is not None and len(brokers) != factor:
            raise InvalidReplicaAssignment(
                f"The manual partition assignment includes a partition with {len(brokers)} replica(s), but this is not "
                f"consistent with previous partitions, which have {factor} replica(s)."
            )
        if not any(self._image.brokers[broker_id].is_active for broker_id in brokers):
            raise InvalidReplicaAssignment(
                f"All brokers specified in the manual partition assignment for partition {index} are fenced or in "
                "controlled shutdown."
            )

    def _partition(self, topic_id: Uuid, index: int, replicas: list[int]) -> PartitionRecord:
        brokers = self._image.brokers
        isr = [broker_id for broker_id in replicas if brokers[broker_id].is_active]
        return PartitionRecord(
            partition_id=index,
            topic_id=topic_id,
            replicas=replicas,
            isr=isr,
            leader=isr[0],
            leader_epoch=0,
            partition_epoch=0,
            directories=[(brokers[broker_id].directories or (Uuid.ZERO,))[0] for broker_id in replicas],
        )


def _failed(name: str, error: KafkaError) -> CreatableTopicResult:
    return CreatableTopicResult(name=name, error_code=error.code, error_message=error.message)


def _partitions_result(name: str, error: KafkaError | None) -> CreatePartitionsTopicResult:
    if error is None:
        return CreatePartitionsTopicResult(name=name, error_code=NoError, error_message=None)
    return CreatePartitionsTopicResult(name=name, error_code=error.code, error_message=error.message)


def _deleted(name: str | None, topic_id: Uuid, error: KafkaError | None) -> DeletableTopicResult:
    if error is None:
        return DeletableTopicResult(name=name, topic_id=topic_id, error_code=NoError, error_message=None)
    return DeletableTopicResult(name=name, topic_id=topic_id, error_code=error.code, error_message=error.message)
