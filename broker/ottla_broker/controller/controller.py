"""Controller: the state machine over the metadata log.

Theory of operation. A verb looks at the image and decides: it returns records and an answer, and changes nothing. The
records are appended to the log as one batch, then `replay` applies them to the image: the only way the image changes.
The answer leaves, and the listeners hear of the change, when the log says that the records are committed. After a
restart the same records, replayed, give the same image.

    request -> decide (records, answer) -> append -> replay -> committed -> listeners, answer

With a quorum of one a commit is the fsync inside `append`, and the `Pending` of a verb is finished when it returns.
The image is then never ahead of what is on disk. (With more voters the leader's image will be: it decides on what it
has appended. What is given to clients must then come from the committed part.)

A listener with much to do (a thousand partitions to open) does it in steps: the first at once, the others by `tick`, so
that other requests are answered in between. Changes stay in order: the next one is announced, and the verb's answer
leaves, when all steps are done. Until then the image is ahead of what the listeners have made of it.

The node that leads the log is controller and broker in one: `register` puts it into the image. Several brokers, their
fencing, and elections between them come with the Raft quorum.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ottla_broker.controller.alter_results import alter_results
from ottla_broker.controller.config_control import Change, ConfigControl
from ottla_broker.controller.effective_configs import EffectiveConfigs
from ottla_broker.controller.features import FEATURES
from ottla_broker.controller.image import ConfigResource, Endpoint, MetadataDelta, MetadataImage, ResourceType
from ottla_broker.controller.internal_topics import undescribed_topic
from ottla_broker.controller.metadata_log import MetadataLog
from ottla_broker.controller.producer_ids import BLOCK_SIZE, ProducerIdBlock, ProducerIds
from ottla_broker.controller.records import (
    BrokerEndpoint,
    BrokerFeature,
    ConfigRecord,
    FeatureLevelRecord,
    MetadataRecord,
    PartitionChangeRecord,
    ProducerIdsRecord,
    RegisterBrokerRecord,
)
from ottla_broker.controller.topic_control import Decision, TopicControl
from ottla_broker.pending import Pending
from ottla_wire.errors import InvalidRequest, KafkaError, StaleBrokerEpoch, UnknownServerError, error_for
from ottla_wire.messages.alter_configs import (
    AlterConfigsRequest,
    AlterConfigsResponse,
)
from ottla_wire.messages.alter_configs import (
    AlterConfigsResourceResponse as LegacyResourceResponse,
)
from ottla_wire.messages.create_partitions import CreatePartitionsRequest, CreatePartitionsResponse
from ottla_wire.messages.create_topics import CreateTopicsRequest, CreateTopicsResponse
from ottla_wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicsResponse
from ottla_wire.messages.incremental_alter_configs import (
    AlterConfigsResourceResponse,
    IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
)
from ottla_wire.schema import Uuid

if TYPE_CHECKING:
    from ottla_broker.shell.config import BrokerConfig

logger = logging.getLogger(__name__)

Listener = Callable[[MetadataDelta], Iterator[None] | None]
"""Told of each committed change. What takes long it returns as steps, to be done one after the other."""

# Leader epochs are raised in batches: a batch must stay far below the largest one a reader takes.
_CHANGES_PER_BATCH: Final = 5_000
_LONG_MAX: Final = 2**63 - 1
_DONE: Final = object()


class Registration(NamedTuple):
    """What a broker tells when it registers.

    Attributes:
        incarnation_id: a new one for each run of the process.
        directory_id: of its log folder, from meta.properties.
    """

    endpoint: Endpoint
    incarnation_id: Uuid
    directory_id: Uuid
    rack: str | None = None


class Controller:
    """Decides and records what changes in the cluster; see the module's text.

    Args:
        log: the metadata log, open and led by this node.
        cluster_id: from meta.properties.
        config: of this broker.
        rng: chooses topic ids and placements.

    Attributes:
        image: the cluster as of the last record.
        configs: settings in force, of the broker and of topics.
        producer_ids: hands out single producer ids to producers of this broker.
    """

    def __init__(self, log: MetadataLog, *, cluster_id: str, config: BrokerConfig, rng: random.Random) -> None:
        self._log = log
        self._config = config
        self.node_id = log.node_id
        self.image = MetadataImage(cluster_id)
        self.configs = EffectiveConfigs(self.image, self.node_id, config.as_mapping(), type(config)().as_mapping())
        self._config_control = ConfigControl(self.image, self.configs, self.node_id)
        self._topics = TopicControl(
            self.image,
            self.configs,
            self._config_control,
            num_partitions=config.num_partitions,
            replication_factor=config.default_replication_factor,
            rng=rng,
        )
        self.producer_ids = ProducerIds(self._next_own_block)
        self._listeners: list[Listener] = []
        # What was appended and waits for its commit: (end offset, its delta, what to do then)
        self._uncommitted: deque[tuple[int, MetadataDelta, Callable[[], None]]] = deque()
        self._delivering = False
        self._steps: Iterator[None] | None = None  # of the change that is being announced
        self._then: Callable[[], None]

    # -- starting ----------------------------------------------------------------------------------------------------

    def on_change(self, callback: Listener) -> None:
        """Call back with each committed change. Who registers before `load` gets the whole state as the first one."""
        self._listeners.append(callback)

    def load(self) -> None:
        """Replay the log, and write what a new cluster starts with if it is empty."""
        delta = MetadataDelta()
        for offset, record in self._log.read():
            self.image.replay(record, offset, delta)
        self.configs.forget()
        self.image.leader_changed(self.node_id, self._log.leader_epoch)
        self._log.on_commit(self._committed)
        if delta.end_offset:
            for _ in self._announce(delta):
                pass
        if not self.image.features:
            initial = [f for f in FEATURES if f.initial_level]
            self._append([FeatureLevelRecord(name=f.name, feature_level=f.initial_level) for f in initial])

    def register(self, registration: Registration, *, clean_shutdown: bool) -> None:
        """Register this node as an active broker.

        After an unclean shutdown the logs may have lost what was not flushed. Each partition then gets a new leader
        epoch, so that (epoch, offset) never means two different records, and readers can see where theirs ends.
        """
        endpoint = registration.endpoint
        record = RegisterBrokerRecord(
            broker_id=self.node_id,
            incarnation_id=registration.incarnation_id,
            broker_epoch=self._log.end_offset,  # the offset that this record will have
            end_points=[
                BrokerEndpoint(
                    name=endpoint.name,
                    host=endpoint.host,
                    port=endpoint.port,
                    security_protocol=endpoint.security_protocol,
                )
            ],
            features=[
                BrokerFeature(name=f.name, min_supported_version=f.min_level, max_supported_version=f.max_level)
                for f in FEATURES
            ],
            rack=registration.rack,
            fenced=False,
            log_dirs=[registration.directory_id],
        )
        self._append([record])
        if not clean_shutdown:
            self._raise_leader_epochs()
        self.finish()

    def _raise_leader_epochs(self) -> None:
        changes: list[MetadataRecord] = [
            PartitionChangeRecord(partition_id=partition.id, topic_id=topic.id, leader=self.node_id)
            for topic in self.image
            for partition in topic.partitions.values()
            if partition.leader == self.node_id
        ]
        for start in range(0, len(changes), _CHANGES_PER_BATCH):
            self._append(changes[start : start + _CHANGES_PER_BATCH])

    # -- topics ------------------------------------------------------------------------------------------------------

    def create_topics(self, request: CreateTopicsRequest) -> Pending[CreateTopicsResponse]:
        """Create topics. Raises PolicyViolation for more than 10,000 partitions."""
        return self._carry_out(self._topics.create_topics(request))

    def delete_topics(self, request: DeleteTopicsRequest) -> Pending[DeleteTopicsResponse]:
        """Delete topics by name or id."""
        return self._carry_out(self._topics.delete_topics(request))

    def create_partitions(self, request: CreatePartitionsRequest) -> Pending[CreatePartitionsResponse]:
        """Add partitions to topics. Raises PolicyViolation for more than 10,000 partitions."""
        return self._carry_out(self._topics.create_partitions(request))

    def create_missing_topics(self, names: Sequence[str]) -> Pending[dict[str, KafkaError]]:
        """Create those of these topics that do not exist, internal ones with their own settings.

        The answer holds the names that could not be created, with the reasons.
        """
        missing = [name for name in dict.fromkeys(names) if name not in self.image.topics_by_name]
        topics = [undescribed_topic(name, self._config) for name in missing]
        request = CreateTopicsRequest(topics=topics)

        def failures(response: CreateTopicsResponse) -> dict[str, KafkaError]:
            errors = {result.name: error_for(result.error_code, result.error_message) for result in response.topics}
            return {name: error for name, error in errors.items() if error is not None}

        return self.create_topics(request).then(failures)

    # -- configurations ----------------------------------------------------------------------------------------------

    def incremental_alter_configs(
        self, request: IncrementalAlterConfigsRequest
    ) -> Pending[IncrementalAlterConfigsResponse]:
        """Change single keys of resources; each resource as a whole or not at all."""

        def decide(resource: ConfigResource, entry: Any) -> list[ConfigRecord]:
            changes = [Change(c.name, c.config_operation, c.value) for c in entry.configs]
            return self._config_control.change(resource, changes)

        records, outcomes = self._alter(request.resources, decide)
        response = IncrementalAlterConfigsResponse(responses=alter_results(AlterConfigsResourceResponse, outcomes))
        return self._carry_out(Decision([] if request.validate_only else records, response))

    def alter_configs(self, request: AlterConfigsRequest) -> Pending[AlterConfigsResponse]:
        """Replace everything that is set on resources (the legacy API); each resource as a whole or not at all."""

        def decide(resource: ConfigResource, entry: Any) -> list[ConfigRecord]:
            values = {c.name: c.value for c in entry.configs}
            if len(values) != len(entry.configs):
                raise InvalidRequest("Error due to duplicate config keys")
            return self._config_control.replace(resource, values)

        records, outcomes = self._alter(request.resources, decide)
        response = AlterConfigsResponse(responses=alter_results(LegacyResourceResponse, outcomes))
        return self._carry_out(Decision([] if request.validate_only else records, response))

    def _alter(
        self, entries: Sequence[Any], decide: Callable[[ConfigResource, Any], list[ConfigRecord]]
    ) -> tuple[list[MetadataRecord], list[tuple[ConfigResource, KafkaError | None]]]:
        resources = [ConfigResource(entry.resource_type, entry.resource_name) for entry in entries]
        records: list[MetadataRecord] = []
        outcomes: list[tuple[ConfigResource, KafkaError | None]] = []
        for resource, entry in zip(resources, entries, strict=True):
            try:
                if resources.count(resource) > 1:
                    raise InvalidRequest("Each resource must appear at most once.")
                records += decide(resource, entry)
            except KafkaError as error:
                outcomes.append((resource, error))
            else:
                outcomes.append((resource, None))
        return records, outcomes

    # -- producer ids ------------------------------------------------------------------------------------------------

    def allocate_producer_ids(self, broker_id: int, broker_epoch: int) -> Pending[ProducerIdBlock]:
        """Give a block of producer ids to a broker: no other broker, and no later run, will ever get them.

        Raises:
            StaleBrokerEpoch: the broker is not, or no longer, registered with that epoch.
        """
        broker = self.image.brokers.get(broker_id)
        if broker is None or broker.epoch != broker_epoch:
            raise StaleBrokerEpoch(f"broker {broker_id} is not registered with epoch {broker_epoch}")
        first = self.image.next_producer_id
        if first > _LONG_MAX - BLOCK_SIZE:
            raise UnknownServerError("all producer ids were given out")
        record = ProducerIdsRecord(broker_id=broker_id, broker_epoch=broker_epoch, next_producer_id=first + BLOCK_SIZE)
        return self._carry_out(Decision([record], ProducerIdBlock(first, BLOCK_SIZE)))

    def _next_own_block(self) -> Pending[ProducerIdBlock]:
        return self.allocate_producer_ids(self.node_id, self.image.brokers[self.node_id].epoch)

    # -- decide, append, replay, commit ------------------------------------------------------------------------------

    def _carry_out(self, decision: Decision) -> Pending[Any]:
        answer: Pending[Any] = Pending()
        # Without records the answer waits too: it may tell of a change that is not committed yet.
        self._append(decision.records, lambda: answer.complete(decision.response))
        return answer

    def _append(self, records: Sequence[MetadataRecord], then: Callable[[], None] = lambda: None) -> None:
        delta = MetadataDelta()
        end_offset = self._log.end_offset + len(records)
        if records:
            first = self._log.append(records)
            assert first + len(records) == end_offset, "somebody else writes to the metadata log"
            for offset, record in enumerate(records, first):
                self.image.replay(record, offset, delta)
            if any(resource.type == ResourceType.BROKER for resource in delta.changed_configs):
                self.configs.forget()
        self._uncommitted.append((end_offset, delta, then))
        self._committed(self._log.committed_offset)

    def _committed(self, offset: int) -> None:
        # A listener may call a verb: its commit is delivered after this one, or some would hear of it too early.
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._steps is not None or self._is_committed(offset):
                if self._steps is None:
                    _, delta, self._then = self._uncommitted.popleft()
                    self._steps = self._announce(delta)
                if next(self._steps, _DONE) is None:
                    return
                self._steps = None
                self._then()
        finally:
            self._delivering = False

    def _is_committed(self, offset: int) -> bool:
        """Whether the next change to be announced is."""
        return bool(self._uncommitted) and self._uncommitted[0][0] <= max(offset, self._log.committed_offset)

    def _announce(self, delta: MetadataDelta) -> Iterator[None]:
        if not delta.end_offset:
            return
        for listener in self._listeners:
            try:
                yield from listener(delta) or ()
            except Exception:  # the change is committed: the others must hear of it, and its caller get the answer
                logger.exception("a listener failed on a metadata change")

    # -- time --------------------------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """Do the next step of a change that is being announced."""
        if self._steps is not None:
            self._committed(self._log.committed_offset)

    def deadline_ms(self) -> int | None:
        """When `tick` has something to do: at once, or not at all."""
        return None if self._steps is None else 0

    def finish(self) -> None:
        """Do all steps now: nobody is to be served in between, or at all."""
        while self._steps is not None:
            self._committed(self._log.committed_offset)
