"""One partition's part of a fetch answer, handed out in slices; the read-committed filter."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ottla.client.topic_partition import TopicPartition
from ottla.errors import RecordCorrupt
from ottla_wire.errors import CorruptMessage, InvalidRecord, KafkaError, UnsupportedCompressionType
from ottla_wire.records import ConsumerRecord, RecordBatch, decode_batch, iter_batches
from ottla_wire.records.control import ControlType, control_type

_BATCH_PREFIX = struct.Struct(">qi")  # base offset, bytes that follow
_LAST_OFFSET_DELTA = struct.Struct(">i")
_LAST_OFFSET_DELTA_AT = 23
_BATCH_HEADER_BYTES = 61


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

    def delivers(self, batch: RecordBatch) -> bool:
        """True if the application may see this batch. Batches must come in the order of their offsets."""
        while self._aborted and self._aborted[0].first_offset <= batch.last_offset:
            self._open.add(heapq.heappop(self._aborted).producer_id)
        if batch.is_control:
            if control_type(batch) is ControlType.ABORT:
                self._open.discard(batch.producer_id)
            return False
        return not (batch.is_transactional and batch.producer_id in self._open)


def end_of_batches(buffer: memoryview, default: int) -> int:
    """The offset after the last complete batch: where the next fetch goes on. `default` if there is none."""
    at, end, next_offset = 0, len(buffer), default
    while at + _BATCH_HEADER_BYTES <= end:
        base_offset, size = _BATCH_PREFIX.unpack_from(buffer, at)
        following = at + _BATCH_PREFIX.size + size
        if size < 0 or following > end:
            break
        next_offset = base_offset + _LAST_OFFSET_DELTA.unpack_from(buffer, at + _LAST_OFFSET_DELTA_AT)[0] + 1
        at = following
    return next_offset


class CompletedFetch:
    """Fetched batches of one partition, decoded batch by batch as they are wanted.

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
        self._batches: Iterator[RecordBatch] | None = None
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
        return self._records[self._index - 1].offset + 1, self._end[1]

    def take(self, max_records: int) -> list[ConsumerRecord]:
        """Up to `max_records` of the next records, of one batch; an empty list if there are no more.

        Raises RecordCorrupt, each time anew, if the next batch cannot be read.
        """
        while self._index >= len(self._records):
            if not self._next_batch():
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

    def _next_batch(self) -> bool:
        """Decode the next batch that has something to deliver; False at the end."""
        if self._batches is None:
            self._batches = iter_batches(self._buffer, position=len(self._buffer) - self.remaining_bytes)
        try:
            for batch in self._batches:
                self._enter(batch)
                if self._index < len(self._records):
                    return True
        except (CorruptMessage, InvalidRecord, UnsupportedCompressionType) as error:
            self._batches = None  # it is finished; the next attempt begins anew at the batch that cannot be read
            raise RecordCorrupt(self.partition, self._end[0], error) from error
        self.exhausted = True
        self.remaining_bytes = 0
        return False

    def _enter(self, batch: RecordBatch) -> None:
        if self._check_crcs:
            batch.verify()
        wanted = not batch.is_control if self._filter is None else self._filter.delivers(batch)
        records = decode_batch(batch, *self.partition, from_offset=self.fetch_offset) if wanted else []
        epoch = batch.leader_epoch
        self._base = self._end
        self._end = (max(batch.next_offset, self.fetch_offset), epoch if epoch >= 0 else None)
        self._records = records
        self._index = 0
        self.remaining_bytes = len(self._buffer) - batch.position - batch.size_bytes
