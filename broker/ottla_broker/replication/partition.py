"""Partition: one replica's view of a partition, as leader or follower.

Offsets, in ascending order: log start <= last stable offset <= high watermark <= log end. A consumer reads below the
high watermark, a read-committed one below the last stable offset, a replica to the log end.

The high watermark is the smallest end offset among the in-sync replicas and only moves while there are at least
`min.insync.replicas` of them (KIP-966). Where a topic syncs before it acknowledges (`flush.messages=1`, or the broker's
setting), this replica's own end counts only as far as it was fsynced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ottla_wire import errors

if TYPE_CHECKING:
    from ottla_broker.controller.image import PartitionImage
    from ottla_broker.log.indexes import AbortedTxn
    from ottla_broker.log.partition_log import AppendInfo, PartitionLog
    from ottla_broker.log.producer_state import AppendOrigin, Verification
    from ottla_wire.schema import Buffer, Uuid

CONSUMER = -1
DEBUGGING_CONSUMER = -2

READ_UNCOMMITTED = 0
READ_COMMITTED = 1


class DivergingEpoch(NamedTuple):
    """The reader's last epoch ends earlier here: it has to truncate."""

    epoch: int
    end_offset: int


class PartitionRead(NamedTuple):
    """What one read found, with the offsets as of the read.

    `aborted` has the aborted transactions that a read-committed reader of these records has to leave out.
    """

    records: bytes
    high_watermark: int
    last_stable_offset: int
    log_start_offset: int
    aborted: Sequence[AbortedTxn] = ()
    diverging_epoch: DivergingEpoch | None = None


class Partition:
    """One partition replica on this broker.

    Attributes:
        epoch_start_offset: the log end when this replica became leader of `leader_epoch`; None for a follower.
        synced_offset: what is known to be on the disk; only kept up where `sync_before_ack`.
        appended_bytes: how much was ever appended here; parked fetches compare two readings of it.
    """

    def __init__(
        self,
        topic: str,
        topic_id: Uuid,
        index: int,
        log: PartitionLog,
        *,
        node_id: int,
        sync_before_ack: bool,
        on_moved: Callable[[Partition], None],
    ) -> None:
        self.topic = topic
        self.topic_id = topic_id
        self.index = index
        self.log = log
        self.node_id = node_id
        self.leader = -1
        self.leader_epoch = -1
        self.partition_epoch = -1
        self.epoch_start_offset: int | None = None
        self.replicas: tuple[int, ...] = ()
        self.isr: tuple[int, ...] = ()
        self.sync_before_ack = sync_before_ack
        self.synced_offset = log.log_end_offset
        self.appended_bytes = 0
        self.deleted = False
        self._on_moved = on_moved

    @property
    def name(self) -> str:
        """`topic-index`, as the folder is called."""
        return f"{self.topic}-{self.index}"

    @property
    def is_leader(self) -> bool:
        """Whether this broker leads the partition."""
        return self.leader == self.node_id and not self.deleted

    @property
    def high_watermark(self) -> int:
        """Records below it are committed: on all in-sync replicas."""
        return self.log.high_watermark

    @property
    def last_stable_offset(self) -> int:
        """Records below it are committed, and every transaction among them has ended."""
        return self.log.last_stable_offset

    @property
    def min_insync_replicas(self) -> int:
        """`min.insync.replicas`, at most the number of replicas."""
        return min(self.log.config.min_insync_replicas, len(self.replicas))

    @property
    def has_enough_in_sync(self) -> bool:
        """Whether the in-sync set is large enough to acknowledge acks=all."""
        in_sync = len(self.isr)
        return in_sync >= len(self.replicas) or in_sync >= self.log.config.min_insync_replicas

    # -- leadership ------------------------------------------------------------------------------------------------

    def apply(self, image: PartitionImage) -> None:
        """Follow the metadata: leadership, epoch, replicas, in-sync set."""
        self.replicas = image.replicas
        self.isr = image.isr
        self.partition_epoch = image.partition_epoch
        elected = image.leader == self.node_id and (image.leader_epoch, image.leader) != (
            self.leader_epoch,
            self.leader,
        )
        self.leader = image.leader
        self.leader_epoch = image.leader_epoch
        if elected:
            self.log.begin_epoch(self.leader_epoch)
            self.epoch_start_offset = self.log.log_end_offset
        elif not self.is_leader:
            self.epoch_start_offset = None
        self.advance_high_watermark()
        self._on_moved(self)

    @property
    def needs_sync(self) -> bool:
        """Whether something has to reach the disk: a new log's folder, or what is not acknowledged before it does."""
        if self.deleted or self.log.offline is not None:
            return False
        return self.awaits_sync or not self.log.is_established

    @property
    def awaits_sync(self) -> bool:
        """Whether something was appended that must reach the disk before it is acknowledged."""
        return self.sync_before_ack and self.synced_offset < self.log.log_end_offset

    def sync_failed(self, error: Exception) -> None:
        """An fsync failed: what is on the disk is not known, so nothing more is acknowledged until a restart."""
        self.log.flush_failed(error if isinstance(error, OSError) else OSError(str(error)))
        self._on_moved(self)

    def retire(self) -> None:
        """The replica leaves this broker; whoever waits for it is told."""
        self.deleted = True
        self._on_moved(self)

    def check_leader(self, current_leader_epoch: int = -1) -> None:
        """Raise unless this broker leads, in the epoch that the client believes in (-1: any)."""
        self.check_epoch(current_leader_epoch)
        if self.leader != self.node_id:
            raise errors.NotLeaderOrFollower(f"{self.name} is led by node {self.leader}")

    def check_epoch(self, current_leader_epoch: int) -> None:
        """Raise unless there is a replica here, in the epoch that the client believes in (-1: any)."""
        if self.deleted:
            raise errors.UnknownTopicOrPartition(f"{self.name} was deleted")
        if self.log.offline is not None:
            raise self.log.offline
        if current_leader_epoch in (-1, self.leader_epoch):
            return
        message = f"{self.name}: the leader epoch is {self.leader_epoch}, the request says {current_leader_epoch}"
        if current_leader_epoch < self.leader_epoch:
            raise errors.FencedLeaderEpoch(message)
        raise errors.UnknownLeaderEpoch(message)

    # -- writing ---------------------------------------------------------------------------------------------------

    def start_verification(
        self, producer_id: int, producer_epoch: int, sequence: int, *, wall_ms: int, adds: bool
    ) -> Verification | None:
        """The guard for a transaction's first write here; None if the transaction is open here already.

        Raises InvalidProducerEpoch, NotLeaderOrFollower, KafkaStorageError.
        """
        self.check_leader()
        return self.log.producers.start_verification(
            producer_id, producer_epoch, sequence, wall_ms, supports_epoch_bump=adds
        )

    def append(
        self,
        records: Buffer,
        *,
        acks: int,
        wall_ms: int,
        origin: AppendOrigin,
        guard: Verification | None = None,
        transaction_version: int = 0,
    ) -> AppendInfo:
        """Append a client's or a coordinator's batches as leader. The records are patched in place.

        Args:
            guard: what `start_verification` gave for a transaction that is not open here yet.
            transaction_version: of the transaction that a marker ends.
        """
        self.check_leader()
        if acks == -1 and not self.has_enough_in_sync:
            raise errors.NotEnoughReplicas(
                f"{self.name}: {len(self.isr)} replica(s) in sync, min.insync.replicas is {self.min_insync_replicas}"
            )
        try:
            info = self.log.append(
                records,
                leader_epoch=self.leader_epoch,
                now_ms=wall_ms,
                origin=origin,
                guard=guard,
                transaction_version=transaction_version,
            )
        except errors.KafkaStorageError:
            self._on_moved(self)
            raise
        if not info.duplicate:
            self.appended_bytes += len(records)
            if not self.advance_high_watermark() and self.sync_before_ack:
                self._on_moved(self)
        return info

    def advance_high_watermark(self) -> bool:
        """Move the high watermark to what the in-sync replicas have; says whether it moved."""
        if not self.is_leader or not self.has_enough_in_sync:
            return False
        log = self.log
        committed = self.synced_offset if self.sync_before_ack else log.log_end_offset
        if committed <= log.high_watermark:
            return False
        log.high_watermark_moved(committed)
        self._on_moved(self)
        return True

    def acknowledged(self, offset: int, acks: int) -> bool:
        """Whether a write that ends before `offset` may be acknowledged."""
        if acks == -1:
            return self.high_watermark >= offset
        return not self.sync_before_ack or self.synced_offset >= offset

    def synced(self, offset: int) -> None:
        """An fsync reached `offset`."""
        if offset > self.synced_offset:
            self.synced_offset = offset
            self.advance_high_watermark()
            self._on_moved(self)

    def delete_records(self, offset: int) -> int:
        """Raise the log start to `offset` (-1: the high watermark); returns the offset meant."""
        self.check_leader()
        if self.log.config.compact and not self.log.config.delete:
            raise errors.PolicyViolation(f"{self.name}: cleanup.policy is compact, records cannot be deleted")
        target = self.high_watermark if offset == -1 else offset
        if target < 0 or target > self.high_watermark:
            raise errors.OffsetOutOfRange(
                f"{self.name}: records below {target} cannot be deleted, the high watermark is {self.high_watermark}"
            )
        self.log.increment_log_start_offset(target)
        self._on_moved(self)
        return target

    @property
    def low_watermark(self) -> int:
        """The smallest log start among the live replicas."""
        return self.log.log_start_offset

    # -- reading ---------------------------------------------------------------------------------------------------

    def limit(self, replica_id: int, isolation_level: int) -> int:
        """The offset that a reader may not reach."""
        if replica_id != CONSUMER:
            return self.log.log_end_offset
        return self.last_stable_offset if isolation_level == READ_COMMITTED else self.high_watermark

    def read(
        self,
        offset: int,
        max_bytes: int,
        *,
        replica_id: int,
        isolation_level: int,
        current_leader_epoch: int,
        last_fetched_epoch: int,
        at_least_one: bool,
    ) -> PartitionRead:
        """Read whole batches from `offset`. Raises the KafkaError that the reader is to see."""
        self.check_reader(replica_id, current_leader_epoch)
        log = self.log
        high_watermark = self.high_watermark
        stable = self.last_stable_offset
        start = log.log_start_offset
        if last_fetched_epoch != -1:
            diverging = self._divergence(offset, last_fetched_epoch)
            if diverging is not None:
                return PartitionRead(b"", high_watermark, stable, start, (), diverging)
        if replica_id != CONSUMER:
            upper = log.log_end_offset
        else:
            upper = stable if isolation_level == READ_COMMITTED else high_watermark
        if offset < start or offset > log.log_end_offset:
            raise errors.OffsetOutOfRange(f"{self.name}: offset {offset} is outside of {start} to {log.log_end_offset}")
        if offset >= upper or (max_bytes <= 0 and not at_least_one):
            return PartitionRead(b"", high_watermark, stable, start)
        found = log.read(offset, max(max_bytes, 0), upper_offset=upper, at_least_one=at_least_one)
        aborted: Sequence[AbortedTxn] = ()
        if isolation_level == READ_COMMITTED and found.records:
            aborted = log.aborted_transactions(offset, found.next_offset)
        return PartitionRead(found.records, high_watermark, stable, start, aborted)

    def check_reader(self, replica_id: int, current_leader_epoch: int) -> None:
        """Raise unless this reader may read here."""
        self.check_leader(current_leader_epoch)
        if replica_id >= 0 and replica_id not in self.replicas:
            if current_leader_epoch != -1:
                raise errors.UnknownLeaderEpoch(f"{self.name}: node {replica_id} is no replica of it, as known here")
            raise errors.NotLeaderOrFollower(f"{self.name}: node {replica_id} is no replica of it")

    def _divergence(self, offset: int, last_fetched_epoch: int) -> DivergingEpoch | None:
        found = self.log.leader_epochs.end_offset_for(last_fetched_epoch, self.log.log_end_offset)
        if found is None:
            raise errors.OffsetOutOfRange(f"{self.name}: the epoch {last_fetched_epoch} is not known here")
        epoch, end_offset = found
        if epoch < last_fetched_epoch or end_offset < offset:
            return DivergingEpoch(epoch, end_offset)
        return None
