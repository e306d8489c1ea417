"""One partition's part of a fetch answer, handed out in slices; the read-committed filter."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ottla.client.topic_partition import TopicPartition
from ottla.errors import RecordCorrupt
from ottla_wire.errors import CorruptMessage, InvalidRecord, KafkaError, UnsupportedCompressionType
from ottla_wire.records import (
    ConsumerRecord,
    RecordBatch,
    decode_batch,
    decode_batches,
    end_of_batches,
    iter_batches,
)
from ottla_wire.records.control import ControlType, control_type


class AbortedTransaction(NamedTuple):
    """One entry of a fetch answer's list; the order is that of the heap: by first offset."""

    first_offset: int
    producer_id: int


class ReadCommittedFilter:
    """Tells which batches belong to aborted transactions.

    Theory of operation. A fetch answer lists the aborted transactions that overlap it, each with its producer and
    first offset. Going through the batches in order, a producer's transaction is *open and aborted* from that first
    offset until its abort marker; its transactional batches in between are skipped. The producer's next transaction
    may be a committed one, so the marker must close it. A marker without an entry (an empty transaction, or one whose
    records are all below the fetch) changes nothing.
    """

    def __init__(self, aborted: Iterable[AbortedTransaction]) -> None:
        self._aborted = list(aborted)
        heapq.heapify(self._aborted)
        self._open: set[int] = set()

    @property
    def is_idle(self) -> bool:
        """True if nothing that is still to come belongs to an aborted transaction."""
        return not self._aborted and not self._open

    def delivers(self, batch: RecordBatch) -> bool:
        """True if the application may see this batch. Batches must come in the order of their offsets."""
        while self._aborted and self._aborted[0].first_offset <= batch.last_offset:
            self._open.add(heapq.heappop(self._aborted).producer_id)
        if batch.is_control:
            if control_type(batch) is ControlType.ABORT:
                self._open.discard(batch.producer_id)
            return False
        return not (batch.is_transactional and batch.producer_id in self._open)


class CompletedFetch:
    """Fetched batches of one partition, decoded as they are wanted.

    The kernel takes as many batches as there are plain ones in a call. What it leaves, and everything while the filter
    waits for an aborted transaction, is looked at one by one.

    `position` moves with what `take` hands out, and past everything that is never handed out: control batches, aborted
    transactions, holes that compaction left.
    """

    def __init__(
        self,
        partition: TopicPartition,
        version: int,
        fetch_offset: int,
        records: memoryview | None,
        *,
        aborted: Sequence[AbortedTransaction] | None = None,
        check_crcs: bool = True,
        error: KafkaError | None = None,
    ) -> None:
        self.partition = partition
        self.version = version
        self.fetch_offset = fetch_offset
        self.error = error
        self._buffer = records if records is not None else memoryview(b"")
        self.next_fetch_offset = max(fetch_offset, end_of_batches(self._buffer, fetch_offset))
        self.remaining_bytes = len(self._buffer)
        self.exhausted = False
        self._filter = None if aborted is None else ReadCommittedFilter(aborted)
        self._check_crcs = check_crcs
        self._records: list[ConsumerRecord] = []
        self._index = 0
        self._base: tuple[int, int | None] = (fetch_offset, None)
        """The position before the first of `_records`."""
        self._end: tuple[int, int | None] = self._base
        """The position after the last of `_records` and whatever its batch ends with."""

    @property
    def position(self) -> tuple[int, int | None]:
        """The offset after what was handed out, and the leader epoch of the batch before it."""
        if self._index >= len(self._records):
            return self._end
        if self._index == 0:
            return self._base
        record = self._records[self._index - 1]
        return record.offset + 1, record.leader_epoch

    def take(self, max_records: int) -> list[ConsumerRecord]:
        """Up to `max_records` of the next records, of one or more batches; an empty list if there are no more.

        Raises RecordCorrupt, each time anew, if the next batch cannot be read.
        """
        if not self._decode(max_records):
            return []
        index, available = self._index, len(self._records)
        if index == 0 and available <= max_records:
            self._index = available
            return self._records
        self._index = min(index + max_records, available)
        return self._records[index : self._index]

    def give_back(self, count: int) -> None:
        """The last `count` records of the last `take` were not handed out after all."""
        self._index -= count
        assert self._index >= 0

    def _decode(self, max_records: int) -> bool:
        """Decode what comes next, until there is something to deliver; False at the end."""
        while self._index >= len(self._records):
            if (self._filter is None or self._filter.is_idle) and self._decode_plain(max_records):
                continue
            try:
                batch = next(iter_batches(self._buffer, position=self._at), None)
                if batch is None:
                    self.exhausted = True
                    self.remaining_bytes = 0
                    return False
                self._enter(batch)
            except (CorruptMessage, InvalidRecord, UnsupportedCompressionType) as error:
                raise RecordCorrupt(self.partition, self._end[0], error) from error
        return True

    def _decode_plain(self, max_records: int) -> bool:
        records, position, next_offset, epoch = decode_batches(
            self._buffer, self._at, max_records, *self.partition, self.fetch_offset, self._check_crcs
        )
        if position == self._at:
            return False
        self._entered(records, position, next_offset, epoch)
        return True

    def _enter(self, batch: RecordBatch) -> None:
        if self._check_crcs:
            batch.verify()
        wanted = not batch.is_control if self._filter is None else self._filter.delivers(batch)
        records = decode_batch(batch, *self.partition, from_offset=self.fetch_offset) if wanted else []
        self._entered(records, batch.position + batch.size_bytes, batch.next_offset, batch.leader_epoch)

    def _entered(self, records: list[ConsumerRecord], position: int, next_offset: int, epoch: int) -> None:
        self._base = self._end
        self._end = (max(next_offset, self.fetch_offset), epoch if epoch >= 0 else None)
        self._records = records
        self._index = 0
        self.remaining_bytes = len(self._buffer) - position

    @property
    def _at(self) -> int:
        """Where in the buffer the next batch begins."""
        return len(self._buffer) - self.remaining_bytes
