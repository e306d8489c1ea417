"""ReplicaManager: the partitions of this broker, and everybody who waits for one of them.

It follows the metadata (`apply` opens, elects, reconfigures and deletes partitions), and keeps the purgatories. A
partition that moved (high watermark, leadership, log start, fsync) is noted; `settle` then lets the waiting operations
try. So a produce request of several partitions wakes a fetch once, with all of them there, and no answer is sent from
inside an append.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from ottla_broker.log.config import INT64_MAX, LogConfig
from ottla_broker.replication.delayed_produce import AwaitedWrite, DelayedProduce
from ottla_broker.replication.fetch_sessions import FetchSessions, FetchTarget
from ottla_broker.replication.fetching import DelayedFetch, FetchLimits, FetchOutcome
from ottla_broker.replication.partition import Partition
from ottla_broker.replication.purgatory import Purgatory
from ottla_wire import errors

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from ottla_broker.controller.image import MetadataDelta, MetadataImage, TopicImage
    from ottla_broker.log.flush_work import FlushWork
    from ottla_broker.log.partition_log import PartitionLog
    from ottla_broker.pending import Pending
    from ottla_wire.schema import Uuid

logger = logging.getLogger(__name__)

ESTABLISHED_AT_ONCE = 32
ESTABLISHED_BESIDE_WRITES = 4
"""So many new folders are fsynced in one go; few where somebody waits for the fsync of a write."""
PARTITIONS_PER_STEP = 25
"""Each takes some 0.1 ms: others wait a few milliseconds for a step, and a hundred for a topic of a thousand."""


class LogStorage(Protocol):
    """What the replica manager wants of the log directory."""

    def open_log(self, topic: str, index: int, topic_id: Uuid, config: LogConfig) -> PartitionLog:
        """The partition's log with its checkpointed offsets, made if it is not there.

        Raises KafkaStorageError, and then stops the broker: a partition that is silently not served helps nobody.
        """
        ...

    def delete_log(self, topic: str, index: int) -> None:
        """Close the log and remove its folder."""
        ...


class PartitionListener(Protocol):
    """A coordinator that lives on the partitions of one topic."""

    def became_leader(self, index: int, leader_epoch: int) -> None:
        """This broker leads the partition now."""
        ...

    def resigned(self, index: int, leader_epoch: int) -> None:
        """This broker does not lead the partition any more, or it was deleted."""
        ...

    def high_watermark_moved(self, index: int, offset: int) -> None:
        """Records below `offset` are committed."""
        ...


class SyncWork:
    """One group of fsyncs: `run` on any thread, then `finish` on the broker's."""

    def __init__(self, flushes: list[tuple[Partition, FlushWork]]) -> None:
        self._flushes = flushes
        self._failed: dict[Partition, Exception] = {}

    def run(self) -> None:
        """The blocking part."""
        synced_parents: set[Path] = set()
        for partition, work in self._flushes:
            try:
                work.run(synced_parents)
            except Exception as error:  # noqa: BLE001 - whatever it was, the data is not known to be on the disk
                self._failed[partition] = error

    def finish(self) -> None:
        """Acknowledge what has reached the disk."""
        for partition, work in self._flushes:
            if partition in self._failed:
                partition.sync_failed(self._failed[partition])
            else:
                partition.log.flush_done(work)
                partition.synced(work.upto_offset)


class ReplicaManager:
    """All partitions of one broker.

    Args:
        image: the metadata, read where a partition is not here.
        storage: the log directory.
        config_of: the configuration in force for a topic.
        sync_before_ack: fsync every write before it is acknowledged, whatever its topic says.
    """

    def __init__(
        self,
        node_id: int,
        image: MetadataImage,
        storage: LogStorage,
        config_of: Callable[[str], LogConfig],
        *,
        rng: random.Random,
        max_fetch_sessions: int = 1000,
        sync_before_ack: bool = False,
    ) -> None:
        self.fetch_sessions = FetchSessions(max_fetch_sessions, rng)
        self._node_id = node_id
        self._image = image
        self._storage = storage
        self._sync_before_ack = sync_before_ack
        self._partitions: dict[tuple[str, int], Partition] = {}
        self._produces = Purgatory()
        self._fetches = Purgatory()
        self._moved: dict[Partition, None] = {}
        self._unsynced: dict[Partition, None] = {}
        self._listeners: dict[str, PartitionListener] = {}
        self._config_of = config_of

    # -- looking up --------------------------------------------------------------------------------------------------

    def find(self, topic: str, index: int) -> Partition | None:
        """A partition that has a replica here."""
        return self._partitions.get((topic, index))

    def partition(self, topic: str, index: int) -> Partition:
        """A partition that has a replica here; raises the error that the client is to see otherwise."""
        partition = self._partitions.get((topic, index))
        if partition is not None:
            return partition
        if self._image.partition(topic, index) is not None:
            raise errors.NotLeaderOrFollower(f"{topic}-{index} has no replica on node {self._node_id}")
        raise errors.UnknownTopicOrPartition(f"there is no partition {topic}-{index}")

    def __iter__(self) -> Iterator[Partition]:
        return iter(self._partitions.values())

    # -- metadata ----------------------------------------------------------------------------------------------------

    def apply(self, delta: MetadataDelta) -> None:
        """Follow what changed in the metadata: delete, create and elect, reconfigure."""
        for _ in self.apply_in_steps(delta):
            pass

    def apply_in_steps(self, delta: MetadataDelta) -> Iterator[None]:
        """`apply` with a pause after every `PARTITIONS_PER_STEP` partitions.

        The metadata may go on meanwhile, changes are applied in their order. So a partition may be seen as it will be
        later, which is harmless to see again; one whose topic is gone by then is left out.
        """
        done = 0
        for deleted in delta.deleted_topics.values():
            for index in deleted.partitions:
                self._remove(deleted.name, index, deleted.id)
                done += 1
                if done % PARTITIONS_PER_STEP == 0:
                    yield
        config_of = cache(self._log_config)  # what changes meanwhile comes with a change of its own
        for topic_id, indexes in delta.changed_partitions.items():
            for index in sorted(indexes):
                topic = self._image.topics_by_id.get(topic_id)
                if topic is None:
                    break
                self._follow(topic, index, config_of)
                done += 1
                if done % PARTITIONS_PER_STEP == 0:
                    yield

    def reconfigure(self, topics: Container[str] | None = None) -> None:
        """The configuration of these topics (None: of all) has changed."""
        for partition in self._partitions.values():
            if topics is None or partition.topic in topics:
                config, partition.sync_before_ack = self._log_config(partition.topic)
                partition.log.update_config(config)
                partition.advance_high_watermark()
                self._note_moved(partition)

    def _log_config(self, topic: str) -> tuple[LogConfig, bool]:
        config = self._config_of(topic)
        if not self._sync_before_ack and config.flush_messages > 1:
            return config, False
        # The fsync is done in groups, off the loop, and awaited by the answers; the log itself need not.
        return replace(config, flush_messages=INT64_MAX), True

    def listen(self, topic: str, listener: PartitionListener) -> None:
        """Tell `listener` about the partitions of `topic`; those that are led already at once."""
        assert topic not in self._listeners, f"{topic} has a listener"
        self._listeners[topic] = listener
        for partition in self._partitions.values():
            if partition.topic == topic and partition.is_leader:
                listener.became_leader(partition.index, partition.leader_epoch)

    def _follow(self, followed: TopicImage, index: int, config_of: Callable[[str], tuple[LogConfig, bool]]) -> None:
        topic, topic_id, image = followed.name, followed.id, followed.partitions[index]
        partition = self._partitions.get((topic, index))
        if self._node_id not in image.replicas:
            if partition is not None:
                self._remove(topic, index, topic_id)
            return
        if partition is None:
            config, sync_before_ack = config_of(topic)
            try:
                log = self._storage.open_log(topic, index, topic_id, config)
            except errors.KafkaStorageError:
                return  # the storage has said so, and the broker stops
            partition = self._partitions[(topic, index)] = Partition(
                topic,
                topic_id,
                index,
                log,
                node_id=self._node_id,
                sync_before_ack=sync_before_ack,
                on_moved=self._note_moved,
            )
        led_epoch = partition.leader_epoch if partition.is_leader else None
        try:
            partition.apply(image)
        except errors.KafkaStorageError:
            return
        listener = self._listeners.get(topic)
        if listener is None:
            return
        if partition.is_leader and led_epoch != partition.leader_epoch:
            listener.became_leader(index, partition.leader_epoch)
        elif led_epoch is not None and not partition.is_leader:
            listener.resigned(index, partition.leader_epoch)

    def _remove(self, topic: str, index: int, topic_id: Uuid) -> None:
        partition = self._partitions.get((topic, index))
        if partition is None or partition.topic_id != topic_id:
            return
        del self._partitions[(topic, index)]
        self._unsynced.pop(partition, None)
        was_leader = partition.is_leader
        partition.retire()
        listener = self._listeners.get(topic)
        if listener is not None and was_leader:
            listener.resigned(index, partition.leader_epoch)
        self._storage.delete_log(topic, index)

    def storage_failed(self) -> None:
        """No log here gives or takes anything any more: whoever waits for one is told."""
        for partition in self._partitions.values():
            self._note_moved(partition)

    # -- waiting -----------------------------------------------------------------------------------------------------

    def await_writes(
        self, writes: list[AwaitedWrite], acks: int, response: Any, *, timeout_ms: int, now_ms: int
    ) -> Pending[Any]:
        """A Pending of `response` that completes when all `writes` may be acknowledged, or at the time-out."""
        delayed = DelayedProduce(writes, acks, response)
        self._produces.watch(delayed, [write.partition for write in writes], now_ms + max(timeout_ms, 0))
        return delayed.pending

    def await_data(
        self,
        targets: list[FetchTarget],
        limits: FetchLimits,
        outcome: FetchOutcome,
        answer: Callable[[FetchOutcome], None],
        *,
        deadline_ms: int,
    ) -> None:
        """Call `answer` when the targets have `limits.min_bytes`, or at the deadline."""
        delayed = DelayedFetch(self, targets, limits, outcome, answer)
        self._fetches.watch(delayed, delayed.partitions, deadline_ms)

    def settle(self, now_ms: int) -> None:
        """Let those try who wait for what moved since the last call."""
        while self._moved:
            moved, self._moved = self._moved, {}
            for partition in moved:
                self._produces.check(partition)
                listener = self._listeners.get(partition.topic)
                if listener is not None and not partition.deleted:
                    listener.high_watermark_moved(partition.index, partition.high_watermark)
                self._fetches.check(partition)

    def drain(self) -> None:
        """Answer all parked fetches and produces with what there is: the broker stops."""
        self._fetches.tick(2**63)
        self._produces.tick(2**63)

    def take_sync_work(self) -> SyncWork | None:
        """What has to be fsynced, or None: all that is to be acknowledged then, and some of the new folders.

        The caller runs it, off the loop, and asks again.
        """
        if not self._unsynced:
            return None
        unsynced, self._unsynced = self._unsynced, {}
        flushes: list[tuple[Partition, FlushWork]] = []
        is_awaited = any(partition.awaits_sync for partition in unsynced)
        room = ESTABLISHED_BESIDE_WRITES if is_awaited else ESTABLISHED_AT_ONCE
        for partition in unsynced:
            upto_offset = None
            if not partition.awaits_sync:
                if room == 0:
                    self._unsynced[partition] = None
                    continue
                room -= 1
                upto_offset = 0
            try:
                work = partition.log.prepare_flush(upto_offset)
            except errors.KafkaError:
                self._note_moved(partition)  # the log is offline now, and says so to those who wait
                continue
            if work is not None:
                flushes.append((partition, work))
            else:
                partition.synced(partition.log.flushed_offset)
        return SyncWork(flushes) if flushes else None

    def _note_moved(self, partition: Partition) -> None:
        self._moved[partition] = None
        if partition.needs_sync:
            self._unsynced[partition] = None

    # -- time --------------------------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """Expire what has waited long enough."""
        self._produces.tick(now_ms)
        self._fetches.tick(now_ms)

    def deadline_ms(self) -> int | None:
        """When `tick` has something to do, or None."""
        produce, fetch = self._produces.deadline_ms(), self._fetches.deadline_ms()
        if produce is None or fetch is None:
            return fetch if produce is None else produce
        return min(produce, fetch)
