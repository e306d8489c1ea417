"""The admin client's part for topics: making and describing them, their configuration, their records and offsets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ottla.client.admin_core import AdminBase, by_topic
from ottla.client.admin_types import (
    ClusterDescription,
    ConfigChange,
    ConfigEntry,
    ConfigKind,
    ConfigOperation,
    ConfigResource,
    CreatedTopic,
    NewTopic,
    OffsetInfo,
    OffsetSpec,
    PartitionDescription,
    TopicDescription,
    TopicListing,
    outcome,
)
from ottla.client.cluster import Versioned
from ottla.client.metadata import Node
from ottla.client.topic_partition import TopicPartition
from ottla.errors import BrokerNotAvailable, KafkaError, NotController, Retriable, UnknownTopicOrPartition, error_for
from ottla_wire.messages.create_partitions import CreatePartitionsRequest, CreatePartitionsTopic
from ottla_wire.messages.create_topics import (
    CreatableReplicaAssignment,
    CreatableTopic,
    CreatableTopicConfig,
    CreateTopicsRequest,
)
from ottla_wire.messages.delete_records import DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsTopic
from ottla_wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from ottla_wire.messages.describe_configs import DescribeConfigsRequest, DescribeConfigsResource
from ottla_wire.messages.incremental_alter_configs import (
    AlterableConfig,
    AlterConfigsResource,
    IncrementalAlterConfigsRequest,
)
from ottla_wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from ottla_wire.messages.metadata import MetadataRequest, MetadataRequestTopic
from ottla_wire.schema import Request

DEFAULT_COUNT = -1

T = TypeVar("T")


class TopicsAdmin(AdminBase):
    """Topics, configurations, records."""

    async def create_topics(
        self,
        topics: Iterable[NewTopic | str],
        *,
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> dict[str, CreatedTopic]:
        """Create topics; a bare name stands for a topic with the broker's defaults.

        Raises:
            TopicAlreadyExists, InvalidReplicationFactor, ...: the one topic asked for could not be created.
            SomeFailed: some of several could not be.
        """
        wanted = [NewTopic(topic) if isinstance(topic, str) else topic for topic in topics]
        deadline_ms = self._deadline_ms(timeout)

        async def attempt() -> Any:
            request = CreateTopicsRequest(
                topics=[_creatable(topic) for topic in wanted],
                timeout_ms=self._left_ms(deadline_ms),
                validate_only=validate_only,
            )
            return await self._ask_controller(request, deadline_ms, lambda answer: answer.topics)

        answer = await self._retrying(attempt, deadline_ms)
        results: dict[str, CreatedTopic] = {}
        errors: dict[str, KafkaError] = {}
        for topic in answer.topics:
            error = error_for(topic.error_code, topic.error_message)
            if error is not None:
                errors[topic.name] = error
            else:
                results[topic.name] = CreatedTopic(
                    topic.name, topic.topic_id, topic.num_partitions, topic.replication_factor
                )
        self.cluster.request_refresh()
        return outcome("create_topics", results, errors)

    async def delete_topics(self, names: Iterable[str], *, timeout: float | None = None) -> None:
        """Delete topics with all they hold.

        Raises:
            UnknownTopicOrPartition, ...: the one topic asked for could not be deleted.
            SomeFailed: some of several could not be.
        """
        wanted = list(names)
        deadline_ms = self._deadline_ms(timeout)

        def build(version: int) -> Request:
            limit_ms = self._left_ms(deadline_ms)
            if version < 6:
                return DeleteTopicsRequest(topic_names=wanted, timeout_ms=limit_ms, topics=[])
            return DeleteTopicsRequest(
                topics=[DeleteTopicState(name=name) for name in wanted], topic_names=[], timeout_ms=limit_ms
            )

        async def attempt() -> Any:
            request = Versioned(DeleteTopicsRequest, build)
            return await self._ask_controller(request, deadline_ms, lambda answer: answer.responses)

        answer = await self._retrying(attempt, deadline_ms)
        errors = _errors((topic.name, topic) for topic in answer.responses)
        deleted = {topic.name: None for topic in answer.responses if topic.error_code == 0}
        self.cluster.metadata.forget(deleted)
        outcome("delete_topics", deleted, errors)

    async def create_partitions(
        self, counts: Mapping[str, int], *, validate_only: bool = False, timeout: float | None = None
    ) -> None:
        """Raise the number of partitions of topics to `counts`; it can never be lowered.

        Raises:
            InvalidPartitions, UnknownTopicOrPartition, ...: the one topic asked for could not be changed.
            SomeFailed: some of several could not be.
        """
        deadline_ms = self._deadline_ms(timeout)

        async def attempt() -> Any:
            request = CreatePartitionsRequest(
                topics=[
                    CreatePartitionsTopic(name=name, count=count, assignments=None) for name, count in counts.items()
                ],
                timeout_ms=self._left_ms(deadline_ms),
                validate_only=validate_only,
            )
            return await self._ask_controller(request, deadline_ms, lambda answer: answer.results)

        answer = await self._retrying(attempt, deadline_ms)
        changed = {topic.name: None for topic in answer.results if topic.error_code == 0}
        self.cluster.request_refresh(changed)
        outcome("create_partitions", changed, _errors((topic.name, topic) for topic in answer.results))

    async def list_topics(
        self, *, include_internal: bool = False, timeout: float | None = None
    ) -> dict[str, TopicListing]:
        """The topics that exist, by name; internal ones (`__consumer_offsets`) only if asked for."""
        answer = await self._metadata(None, self._deadline_ms(timeout))
        return {
            topic.name: TopicListing(topic.name, topic.topic_id, topic.is_internal)
            for topic in sorted(answer.topics, key=lambda topic: str(topic.name))
            if topic.error_code == 0 and (include_internal or not topic.is_internal)
        }

    async def describe_topics(
        self, names: Iterable[str], *, timeout: float | None = None
    ) -> dict[str, TopicDescription]:
        """Topics with their partitions, leaders and replicas.

        Raises:
            UnknownTopicOrPartition, ...: the one topic asked for is not there.
            SomeFailed: some of several are not.
        """
        answer = await self._metadata(list(names), self._deadline_ms(timeout))
        nodes = {
            broker.node_id: Node(broker.node_id, broker.host, broker.port, broker.rack) for broker in answer.brokers
        }
        results = {
            topic.name: TopicDescription(
                topic.name,
                topic.topic_id,
                topic.is_internal,
                tuple(
                    _partition(found, nodes) for found in sorted(topic.partitions, key=lambda p: int(p.partition_index))
                ),
            )
            for topic in answer.topics
            if topic.error_code == 0
        }
        return outcome("describe_topics", results, _errors((topic.name, topic) for topic in answer.topics))

    async def describe_cluster(self, *, timeout: float | None = None) -> ClusterDescription:
        """The cluster's id, brokers and controller."""
        answer = await self._metadata([], self._deadline_ms(timeout))
        nodes = {
            broker.node_id: Node(broker.node_id, broker.host, broker.port, broker.rack) for broker in answer.brokers
        }
        return ClusterDescription(
            answer.cluster_id or "", nodes.get(answer.controller_id), tuple(nodes[node_id] for node_id in sorted(nodes))
        )

    async def describe_configs(
        self, resources: Iterable[ConfigResource], *, documentation: bool = False, timeout: float | None = None
    ) -> dict[ConfigResource, dict[str, ConfigEntry]]:
        """All settings of topics, brokers or groups, by owner and name.

        Raises:
            UnknownTopicOrPartition, InvalidRequest, ...: the one owner asked for has none.
            SomeFailed: some of several have none.
        """
        deadline_ms = self._deadline_ms(timeout)
        results: dict[ConfigResource, dict[str, ConfigEntry]] = {}
        errors: dict[ConfigResource, KafkaError] = {}
        for node_id, owned in _by_broker(resources).items():
            wanted = [
                DescribeConfigsResource(resource_type=owner.kind, resource_name=owner.name, configuration_keys=None)
                for owner in owned
            ]

            def build(version: int, wanted: list[DescribeConfigsResource] = wanted) -> Request:
                return DescribeConfigsRequest(resources=wanted, include_documentation=documentation and version >= 3)

            async def attempt(node_id: int | None = node_id, build: Any = build) -> Any:
                return await self._ask(node_id, Versioned(DescribeConfigsRequest, build), deadline_ms)

            answer = await self._retrying(attempt, deadline_ms)
            for found in answer.results:
                owner = ConfigResource(ConfigKind(found.resource_type), found.resource_name)
                error = error_for(found.error_code, found.error_message)
                if error is not None:
                    errors[owner] = error
                else:
                    results[owner] = {entry.name: _entry(entry) for entry in found.configs}
        return outcome("describe_configs", results, errors)

    async def alter_configs(
        self,
        changes: Mapping[ConfigResource, Mapping[str, Any]],
        *,
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Change settings and leave all others as they are (KIP-339).

        A value that is given is set, None brings the default back; a `ConfigChange` can also append to a list.

        Raises:
            InvalidConfig, UnknownTopicOrPartition, ...: the one owner asked for could not be changed.
            SomeFailed: some of several could not be.
        """
        deadline_ms = self._deadline_ms(timeout)
        done: dict[ConfigResource, None] = {}
        errors: dict[ConfigResource, KafkaError] = {}
        for node_id, owned in _by_broker(changes).items():
            request = IncrementalAlterConfigsRequest(
                resources=[
                    AlterConfigsResource(
                        resource_type=owner.kind,
                        resource_name=owner.name,
                        configs=[_alteration(name, value) for name, value in changes[owner].items()],
                    )
                    for owner in owned
                ],
                validate_only=validate_only,
            )

            async def attempt(node_id: int | None = node_id, request: Request = request) -> Any:
                return await self._ask(node_id, request, deadline_ms)

            answer = await self._retrying(attempt, deadline_ms)
            for found in answer.responses:
                owner = ConfigResource(ConfigKind(found.resource_type), found.resource_name)
                error = error_for(found.error_code, found.error_message)
                if error is None:
                    done[owner] = None
                else:
                    errors[owner] = error
        outcome("alter_configs", done, errors)

    async def list_offsets(
        self,
        partitions: Mapping[TopicPartition, OffsetSpec | int],
        *,
        read_committed: bool = False,
        timeout: float | None = None,
    ) -> dict[TopicPartition, OffsetInfo]:
        """Offsets of partitions: the earliest, the latest, or that of the first record at or after a time (ms).

        Raises:
            UnknownTopicOrPartition, ...: the one partition asked for could not answer.
            SomeFailed: some of several could not.
        """

        timestamps = {
            partition: spec.value if isinstance(spec, OffsetSpec) else spec for partition, spec in partitions.items()
        }

        def build(wanted: list[TopicPartition]) -> Request:
            topics = [
                ListOffsetsTopic(
                    name=topic,
                    partitions=[
                        ListOffsetsPartition(partition_index=index, timestamp=timestamps[TopicPartition(topic, index)])
                        for index in indexes
                    ],
                )
                for topic, indexes in by_topic(wanted).items()
            ]
            return ListOffsetsRequest(replica_id=-1, isolation_level=int(read_committed), topics=topics)

        def read(found: Any) -> OffsetInfo:
            epoch = found.leader_epoch
            return OffsetInfo(found.offset, found.timestamp, None if epoch < 0 else epoch)

        return await self._of_leaders("list_offsets", partitions, build, read, self._deadline_ms(timeout))

    async def delete_records(
        self, before: Mapping[TopicPartition, int], *, timeout: float | None = None
    ) -> dict[TopicPartition, int]:
        """Delete the records below an offset (-1: below the high watermark); returns the partitions' new first offsets.

        Raises:
            OffsetOutOfRange, ...: the one partition asked for refused.
            SomeFailed: some of several did.
        """
        deadline_ms = self._deadline_ms(timeout)

        def build(wanted: list[TopicPartition]) -> Request:
            topics = [
                DeleteRecordsTopic(
                    name=topic,
                    partitions=[
                        DeleteRecordsPartition(partition_index=index, offset=before[TopicPartition(topic, index)])
                        for index in indexes
                    ],
                )
                for topic, indexes in by_topic(wanted).items()
            ]
            return DeleteRecordsRequest(topics=topics, timeout_ms=self._left_ms(deadline_ms))

        return await self._of_leaders(
            "delete_records", before, build, lambda found: int(found.low_watermark), deadline_ms
        )

    # --- routes

    async def _ask(self, node_id: int | None, request: Request | Versioned, deadline_ms: int) -> Any:
        if node_id is None:
            node_id = await self.cluster.any_node(timeout_ms=self._left_ms(deadline_ms))
        return await self.cluster.send(node_id, request, timeout_ms=self._left_ms(deadline_ms))

    async def _known_node(self, node_id: int, deadline_ms: int) -> int:
        if self.cluster.metadata.node(node_id) is None:
            await self.cluster.refresh(timeout_ms=self._left_ms(deadline_ms))
        if self.cluster.metadata.node(node_id) is None:
            raise BrokerNotAvailable(f"there is no broker {node_id} in the cluster")
        return node_id

    async def _ask_controller(self, request: Request | Versioned, deadline_ms: int, items: Any) -> Any:
        controller = await self.cluster.controller(timeout_ms=self._left_ms(deadline_ms))
        answer = await self._ask(controller, request, deadline_ms)
        if any(item.error_code == NotController.code for item in items(answer)):
            raise NotController
        return answer

    async def _metadata(self, names: list[str] | None, deadline_ms: int) -> Any:
        topics = None if names is None else [MetadataRequestTopic(name=name) for name in names]

        async def attempt() -> Any:
            request = MetadataRequest(topics=topics, allow_auto_topic_creation=False)
            return await self._ask(None, request, deadline_ms)

        return await self._retrying(attempt, deadline_ms)

    async def _of_leaders(
        self,
        what: str,
        partitions: Iterable[TopicPartition],
        build: Callable[[list[TopicPartition]], Request],
        read: Callable[[Any], T],
        deadline_ms: int,
        node_id: int | None = None,
    ) -> dict[TopicPartition, T]:
        """Ask each partition's leader, or one broker; partitions whose leader has moved are asked again."""
        open_ones = [TopicPartition(*partition) for partition in partitions]
        results: dict[TopicPartition, T] = {}
        errors: dict[TopicPartition, KafkaError] = {}

        async def attempt() -> None:
            again: Retriable | None = None
            if node_id is None:
                whom = await self._by_leader(open_ones, deadline_ms)
            else:
                whom = {await self._known_node(node_id, deadline_ms): list(open_ones)}
            for asked, wanted in whom.items():
                answer = await self._ask(asked, build(wanted), deadline_ms)
                for topic in answer.topics:
                    for found in topic.partitions:
                        partition = TopicPartition(topic.name, found.partition_index)
                        error = error_for(found.error_code)
                        if isinstance(error, Retriable):
                            again = error
                            continue
                        open_ones.remove(partition)
                        if error is None:
                            results[partition] = read(found)
                        else:
                            errors[partition] = type(error)(f"{partition}: {error}")
            if again is not None:
                topics = {partition.topic for partition in open_ones}
                await self.cluster.refresh(topics, timeout_ms=self._left_ms(deadline_ms))
                raise again

        try:
            await self._retrying(attempt, deadline_ms)
        except (Retriable, UnknownTopicOrPartition) as error:
            errors |= dict.fromkeys(open_ones, error)
        return outcome(what, results, errors)


def _creatable(topic: NewTopic) -> CreatableTopic:
    assigned = [
        CreatableReplicaAssignment(partition_index=index, broker_ids=list(brokers))
        for index, brokers in topic.replica_assignments.items()
    ]
    counts = (DEFAULT_COUNT, DEFAULT_COUNT) if assigned else (topic.partitions, topic.replication_factor)
    return CreatableTopic(
        name=topic.name,
        num_partitions=DEFAULT_COUNT if counts[0] is None else counts[0],
        replication_factor=DEFAULT_COUNT if counts[1] is None else counts[1],
        assignments=assigned,
        configs=[CreatableTopicConfig(name=name, value=_text(value)) for name, value in topic.configs.items()],
    )


def _errors(items: Iterable[tuple[str, Any]]) -> dict[str, KafkaError]:
    errors: dict[str, KafkaError] = {}
    for name, item in items:
        error = error_for(item.error_code, getattr(item, "error_message", None))
        if error is not None:
            errors[name] = error
    return errors


def _nodes(answer: Any) -> dict[int, Node]:
    return {found.node_id: Node(found.node_id, found.host, found.port, found.rack) for found in answer.brokers}


def _partitions(topic: Any, nodes: Mapping[int, Node]) -> tuple[PartitionDescription, ...]:
    found = sorted(topic.partitions, key=lambda partition: int(partition.partition_index))
    return tuple(_partition(partition, nodes) for partition in found)


def _partition(found: Any, nodes: Mapping[int, Node]) -> PartitionDescription:
    return PartitionDescription(
        found.partition_index,
        nodes.get(found.leader_id),
        found.leader_epoch,
        tuple(found.replica_nodes),
        tuple(found.isr_nodes),
        tuple(found.offline_replicas),
    )


def _by_broker(resources: Iterable[ConfigResource]) -> dict[int | None, list[ConfigResource]]:
    """Owners by whom to ask: a broker answers for itself, any broker for the rest."""
    grouped: dict[int | None, list[ConfigResource]] = {}
    for owner in resources:
        own = owner.kind in (ConfigKind.BROKER, ConfigKind.BROKER_LOGGER) and owner.name
        grouped.setdefault(int(owner.name) if own else None, []).append(owner)
    return grouped


def _entry(found: Any) -> ConfigEntry:
    return ConfigEntry(
        found.name, found.value, found.config_source, found.is_sensitive, found.read_only, found.documentation
    )


def _alteration(name: str, change: Any) -> AlterableConfig:
    if not isinstance(change, ConfigChange):
        change = ConfigChange(change, ConfigOperation.DELETE if change is None else ConfigOperation.SET)
    value = None if change.operation is ConfigOperation.DELETE else _text(change.value)
    return AlterableConfig(name=name, config_operation=change.operation, value=value)


def _text(value: Any) -> str:
    """A setting's value as Kafka writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
