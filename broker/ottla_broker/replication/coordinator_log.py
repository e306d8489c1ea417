"""The log of an internal topic as a coordinator sees it: records in, batches out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ottla_broker.log.producer_state import AppendOrigin
from ottla_broker.replication.partition import Partition
from ottla_wire.records import RecordBatch, build_batch, end_transaction_marker, iter_batches

if TYPE_CHECKING:
    from ottla_broker.coordinator.decision import CoordinatorRecord, TransactionalProducer, TransactionEnd
    from ottla_broker.log.producer_state import Verification
    from ottla_broker.replication.replica_manager import ReplicaManager

_READ_BYTES = 1024 * 1024


class ReplicaCoordinatorLog:
    """Implements `CoordinatorLog` over the replicas of one topic.

    An append counts as acks=all: it is refused if too few replicas are in sync, and it is committed when the high
    watermark has passed it. Records carry the wall clock, not the coordinator's `now_ms`.
    """

    def __init__(self, replicas: ReplicaManager, topic: str, *, wall_ms: Callable[[], int]) -> None:
        self._replicas = replicas
        self._topic = topic
        self._wall_ms = wall_ms

    def append(
        self,
        partition: int,
        records: Sequence[CoordinatorRecord],
        now_ms: int,
        producer: TransactionalProducer | None = None,
    ) -> int:
        """Append the records as one batch; returns the offset after it. Raises the KafkaErrors of an append."""
        wall_ms = self._wall_ms()
        rows = [(wall_ms, key, value, ()) for key, value in records]
        if producer is None:
            batch, guard = build_batch(rows), None
        else:
            producer_id, producer_epoch, guard = producer
            batch = build_batch(rows, producer_id=producer_id, producer_epoch=producer_epoch, transactional=True)
        return self._append(partition, batch, wall_ms, guard=guard)

    def append_marker(self, partition: int, end: TransactionEnd, now_ms: int) -> int:
        """Append the marker of a transaction; returns the offset after it. Raises the KafkaErrors of an append."""
        wall_ms = self._wall_ms()
        batch = end_transaction_marker(
            commit=end.committed,
            producer_id=end.producer_id,
            producer_epoch=end.producer_epoch,
            coordinator_epoch=end.coordinator_epoch,
            timestamp_ms=wall_ms,
        )
        return self._append(partition, batch, wall_ms, transaction_version=end.transaction_version)

    def _append(
        self,
        partition: int,
        batch: bytes,
        wall_ms: int,
        *,
        guard: Verification | None = None,
        transaction_version: int = 0,
    ) -> int:
        info = self._replicas.partition(self._topic, partition).append(
            bytearray(batch),  # the log writes offset and epoch into it
            acks=-1,
            wall_ms=wall_ms,
            origin=AppendOrigin.COORDINATOR,
            guard=guard,
            transaction_version=transaction_version,
        )
        return info.last_offset + 1

    def high_watermark(self, partition: int) -> int:
        """The offset up to which the partition is replicated."""
        return self._replicas.partition(self._topic, partition).log.high_watermark

    def read(self, partition: int) -> Iterator[RecordBatch]:
        """All batches from the log start to the log end as of now."""
        return _read(self._replicas.partition(self._topic, partition))


def _read(partition: Partition) -> Iterator[RecordBatch]:
    log = partition.log
    offset, end_offset = log.log_start_offset, log.log_end_offset
    while offset < end_offset:
        read = log.read(offset, _READ_BYTES, upper_offset=end_offset, at_least_one=True)
        if read.next_offset <= offset:
            return  # compaction left nothing up to the end
        yield from iter_batches(read.records)
        offset = read.next_offset
