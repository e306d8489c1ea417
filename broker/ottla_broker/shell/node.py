"""Node: one broker from start to stop.

Start: bind the port, take the data folder, replay the metadata, open the logs, load the coordinators, then serve. Stop:
accept nothing new, answer what can be answered, flush, write checkpoints and the clean-shutdown marker. A start that
fails gives back what it took, and says why in one sentence.

A node has one data folder. When that fails, it can neither keep what it is sent nor give what it has: what waits is
answered KAFKA_STORAGE_ERROR, `failure` says why in one sentence, and `on_failure` asks the owner to stop it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ottla_broker.broker import Broker
from ottla_broker.controller.controller import Controller, Registration
from ottla_broker.controller.features import TRANSACTION_VERSION
from ottla_broker.controller.file_log import FileMetadataLog
from ottla_broker.controller.image import ConfigResource, Endpoint, MetadataDelta, ResourceType
from ottla_broker.controller.topic_names import OFFSETS_TOPIC, TRANSACTION_STATE_TOPIC
from ottla_broker.coordinator.group_config import GroupConfig
from ottla_broker.coordinator.group_coordinator import GroupCoordinator
from ottla_broker.coordinator.transaction_config import TransactionConfig
from ottla_broker.coordinator.transaction_coordinator import TransactionCoordinator
from ottla_broker.log.files import Files, OsFiles
from ottla_broker.replication.coordinated_partitions import CoordinatedPartitions
from ottla_broker.replication.coordinator_log import ReplicaCoordinatorLog
from ottla_broker.replication.replica_manager import ReplicaManager
from ottla_broker.shell.clock import SystemClock
from ottla_broker.shell.log_directory import LogDirectory, LogDirectoryError, run_at_once
from ottla_broker.shell.server import Server
from ottla_broker.shell.topic_settings import log_config
from ottla_wire.errors import KafkaError, KafkaStorageError
from ottla_wire.messages.create_topics import CreatableTopic, CreateTopicsRequest
from ottla_wire.schema import Uuid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ottla_broker.shell.config import BrokerConfig

logger = logging.getLogger(__name__)

STOP_TIMEOUT_SECONDS = 5.0
_TOPIC_ALREADY_EXISTS = 36


class BrokerStartError(Exception):
    """The broker cannot start; the message is one sentence for the person who started it."""


class BrokerFailedError(Exception):
    """The broker ran and can go on no longer; the message is one sentence for the person who started it."""


class Node:
    """One broker on the running event loop.

    Args:
        topics: topics to create if they do not exist, with their numbers of partitions (-1: the default).
        files: the file system of the logs.
        on_failure: called once if the node can go on no longer; it is to be stopped then.

    Attributes:
        host, port: what clients are told to connect to; known after `start`.
        failure: why the node can go on no longer, or could not stop in good order; None if all is well.
    """

    def __init__(
        self,
        config: BrokerConfig,
        *,
        topics: Mapping[str, int] | None = None,
        files: Files | None = None,
        rng: random.Random | None = None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self.host = ""
        self.port = 0
        self.failure: str | None = None
        self._on_failure = on_failure
        self._topics = dict(topics or {})
        self._files = files or OsFiles()
        self._rng = rng or random.Random()
        self._clock = SystemClock()
        self._undo = ExitStack()
        self._metadata_log: FileMetadataLog | None = None
        self._server: Server | None = None
        self._broker: Broker | None = None

    async def start(self) -> None:
        """Serve. Raises BrokerStartError."""
        with ExitStack() as undo:
            try:
                await self._start(undo)
            except (LogDirectoryError, KafkaError) as error:
                raise BrokerStartError(self.failure or str(error)) from error
            self._undo = undo.pop_all()

    async def stop(self) -> None:
        """Stop serving, and leave everything durable."""
        if self._server is not None:
            await self._server.stop(STOP_TIMEOUT_SECONDS)
            self._server = None
        self._undo.close()

    async def _start(self, undo: ExitStack) -> None:
        config, clock = self.config, self._clock
        listening = undo.enter_context(_bind(config.host, config.port))
        self.host, self.port = config.advertised(listening.getsockname()[1])
        directory = LogDirectory.open(
            config, files=self._files, wall_ms=clock.wall_ms, address=f"{self.host}:{self.port}"
        )
        directory.on_failure = self._storage_failed
        undo.callback(directory.close)
        metadata_log = self._metadata_log = self._open_metadata_log(directory)
        undo.callback(metadata_log.close)
        controller = Controller(metadata_log, cluster_id=directory.cluster_id, config=config, rng=self._rng)
        replicas = ReplicaManager(
            config.node_id,
            controller.image,
            directory,
            lambda topic: log_config(controller.configs, topic),
            rng=self._rng,
            max_fetch_sessions=config.max_incremental_fetch_session_cache_slots,
        )
        groups = GroupCoordinator(
            ReplicaCoordinatorLog(replicas, OFFSETS_TOPIC, wall_ms=clock.wall_ms),
            GroupConfig.of(config),
            wall_ms=clock.wall_ms,
            rng=self._rng,
        )
        transactions = TransactionCoordinator(
            ReplicaCoordinatorLog(replicas, TRANSACTION_STATE_TOPIC, wall_ms=clock.wall_ms),
            TransactionConfig.of(config),
            new_producer_id=controller.producer_ids.next,
            leader_of=lambda partition: controller.image.live_leader(*partition),
            transaction_version=lambda: controller.image.features.get(TRANSACTION_VERSION, 0),
            wall_ms=clock.wall_ms,
        )
        replicas.listen(OFFSETS_TOPIC, CoordinatedPartitions(groups, clock))
        replicas.listen(TRANSACTION_STATE_TOPIC, CoordinatedPartitions(transactions, clock))
        controller.on_change(_MetadataFollower(controller, replicas, groups, clock))
        controller.load()
        controller.register(
            Registration(
                Endpoint("PLAINTEXT", self.host, self.port),
                incarnation_id=Uuid.random(self._rng),
                directory_id=directory.directory_id,
                rack=config.broker_rack,
            ),
            clean_shutdown=directory.was_clean_shutdown,
        )
        self._create_topics(controller)
        directory.started()
        if self.failure is not None:
            raise BrokerStartError(self.failure)
        self._broker = Broker(
            config,
            clock=clock,
            controller=controller,
            replicas=replicas,
            groups=groups,
            transactions=transactions,
            log_directory=directory,
            host=self.host,
            port=self.port,
        )
        disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ottla-disk")
        undo.callback(disk.shutdown)
        self._server = Server(self._broker, config, loop=asyncio.get_running_loop(), disk=disk)
        directory.background = self._server.in_background
        undo.callback(setattr, directory, "background", run_at_once)
        await self._server.start(listening)
        logger.info("node %d serves %s:%d, data in %s", config.node_id, self.host, self.port, config.data)

    def _open_metadata_log(self, directory: LogDirectory) -> FileMetadataLog:
        try:
            return FileMetadataLog.open(
                self._files,
                self.config.data,
                node_id=self.config.node_id,
                directory_id=directory.directory_id,
                wall_ms=self._clock.wall_ms,
                on_offline=directory.fail,
            )
        except KafkaStorageError as error:
            directory.fail(error)
            raise

    def _storage_failed(self, sentence: str) -> None:
        self.failure = sentence
        if self._metadata_log is not None:
            self._metadata_log.take_offline(KafkaStorageError(sentence))
        if self._broker is not None:
            self._broker.replicas.storage_failed()
        if self._server is not None:
            self._server.request_turn()
        self._on_failure()

    def _create_topics(self, controller: Controller) -> None:
        missing = {name: count for name, count in self._topics.items() if name not in controller.image.topics_by_name}
        if not missing:
            return
        request = CreateTopicsRequest(
            topics=[
                CreatableTopic(name=name, num_partitions=count, replication_factor=-1)
                for name, count in missing.items()
            ],
            timeout_ms=10_000,
        )
        creation = controller.create_topics(request)
        controller.finish()
        for topic in creation.result().topics:
            if topic.error_code not in (0, _TOPIC_ALREADY_EXISTS):
                raise BrokerStartError(f"the topic {topic.name} cannot be created: {topic.error_message}")


class _MetadataFollower:
    """Carries changes of the metadata to the replicas and the group coordinator."""

    def __init__(
        self, controller: Controller, replicas: ReplicaManager, groups: GroupCoordinator, clock: SystemClock
    ) -> None:
        self._controller = controller
        self._replicas = replicas
        self._groups = groups
        self._clock = clock

    def __call__(self, delta: MetadataDelta) -> Iterator[None]:
        yield from self._replicas.apply_in_steps(delta)
        self._reconfigure(delta.changed_configs)
        if delta.deleted_topics:
            deleted = {topic_id: topic.name for topic_id, topic in delta.deleted_topics.items()}
            self._groups.on_topics_deleted(deleted, self._clock.now_ms())

    def _reconfigure(self, changed: set[ConfigResource]) -> None:
        if any(resource.type == ResourceType.BROKER for resource in changed):
            self._replicas.reconfigure()
            return
        topics = {resource.name for resource in changed if resource.type == ResourceType.TOPIC}
        if topics:
            self._replicas.reconfigure(topics)


def _bind(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise BrokerStartError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    # localhost may be ::1 first; clients that were told 127.0.0.1 would not find us there.
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise BrokerStartError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    listening.setblocking(False)
    return listening
