"""PartitionLog: the records of one partition on disk.

Theory of operation. One thread owns a log; every call is synchronous. `append` checks, patches offsets into the
caller's buffer, and hands it to one `write`; only then do indexes, producer state and end offset move, so that a failed
append leaves everything as it was. A failed write or fsync takes the log offline: it refuses everything with
KafkaStorageError until it is opened again, which runs recovery. Whoever owns the log is told (`on_offline`). A log that
was opened with `make_later` has no folder before its first append: a topic of a thousand partitions costs nothing until
they are used.

fsync is separate. `prepare_flush` names what has to be fsynced (`FlushWork`, to be run anywhere), `flush_done` takes
note of it. All below `flushed_offset` is durable, and with the first flush the folder is, and the topic's id in it. The
recovery point is the base of the first segment that is not durable together with its indexes: recovery believes what
is below and checks the rest. Whoever stores it is told (`on_recovery_point_lowered`) before a truncation lets new bytes
take the place of fsynced ones.

`now_ms` is wall clock time throughout: it is compared with timestamps of records.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ottla_broker.log import retention
from ottla_broker.log.batch import CONTROL_BIT, LOG_OVERHEAD, NO_TIMESTAMP, BatchHeader
from ottla_broker.log.config import LogConfig
from ottla_broker.log.files import Buffer, Files
from ottla_broker.log.flush_work import FlushWork
from ottla_broker.log.indexes import MAX_RELATIVE_OFFSET, AbortedTxn
from ottla_broker.log.leader_epochs import LeaderEpochs, Store
from ottla_broker.log.partition_metadata import METADATA_NAME, ensure_partition_metadata, write_topic_id
from ottla_broker.log.producer_snapshot import Snapshots
from ottla_broker.log.producer_state import AppendOrigin, PreparedAppend, ProducerStates, Verification
from ottla_broker.log.recovery import Loader, rebuild_producers
from ottla_broker.log.segment import Segment
from ottla_broker.log.validation import Accepted, LeaderValidator, check_replicated, read_marker
from ottla_wire.errors import KafkaStorageError, OffsetOutOfRange
from ottla_wire.records import iter_batches
from ottla_wire.schema import Uuid

logger = logging.getLogger(__name__)

PRODUCER_EXPIRATION_MS = 86_400_000
_CLIENT = AppendOrigin.CLIENT
SEALED_INDEXES_KEPT = 4


class AppendInfo(NamedTuple):
    """Where records were stored. `duplicate`: they were there already, and this is where."""

    first_offset: int
    last_offset: int
    max_timestamp_ms: int
    log_append_time_ms: int
    log_start_offset: int
    duplicate: bool = False


class LogRead(NamedTuple):
    """Whole batches from one segment; reading continues at `next_offset`.

    `first_batch_too_large` tells a batch that did not fit from the end of what may be read.
    """

    records: bytes
    offset: int
    next_offset: int
    segment_base_offset: int
    position: int
    first_batch_too_large: bool = False


class TimestampOffset(NamedTuple):
    """A record found by time."""

    timestamp_ms: int
    offset: int
    leader_epoch: int


class PartitionLog:
    """One partition's log. Made by `open`."""

    def __init__(
        self,
        files: Files,
        folder: Path,
        topic: str,
        partition: int,
        topic_id: Uuid,
        config: LogConfig,
        *,
        producer_id_expiration_ms: int = PRODUCER_EXPIRATION_MS,
        verify_transactions: bool = False,
        store_epochs: Store | None = None,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.topic_id = topic_id
        self.name = f"{topic}-{partition}"
        self.folder = folder
        self.config = config
        self.log_start_offset = 0
        self.high_watermark = 0
        self.flushed_offset = 0
        self.offline: KafkaStorageError | None = None
        self.leader_epochs = LeaderEpochs(files, folder, store_epochs)
        self.producers = ProducerStates(self.name, producer_id_expiration_ms, require_verification=verify_transactions)
        self.on_flush_wanted: Callable[[PartitionLog], None] | None = None
        self.on_recovery_point_lowered: Callable[[PartitionLog], None] | None = None
        self.on_offline: Callable[[KafkaStorageError], None] | None = None
        self._files = files
        self._snapshots = Snapshots(files, folder)
        self._validator = LeaderValidator(self.name, config)
        self._segments: list[Segment] = []
        self._bases: list[int] = []
        self._active: Segment
        self._loaded_sealed: dict[int, Segment] = {}
        self._doomed: list[tuple[int, Path]] = []
        self._truncations = 0
        self._named_base_offset = -1  # the newest segment whose name is durable
        self._is_established = False
        self._is_unmade = False
        self._closed_at: tuple[int, int, int] | None = (
            None  # where a close in good order had left it when it was opened
        )

    @classmethod
    def open(
        cls,
        files: Files,
        folder: Path,
        topic: str,
        partition: int,
        topic_id: Uuid,
        config: LogConfig,
        *,
        now_ms: int,
        recovery_point: int = 0,
        log_start_offset: int = 0,
        high_watermark: int = 0,
        clean_shutdown: bool = False,
        producer_id_expiration_ms: int = PRODUCER_EXPIRATION_MS,
        verify_transactions: bool = False,
        make_later: bool = False,
        store_epochs: Store | None = None,
    ) -> PartitionLog:
        """Open a folder, or make a new one; after a crash this is recovery.

        `make_later`: there is no folder, and it is to be made at the first append. `store_epochs`: see `LeaderEpochs`.
        `verify_transactions`: a transaction's first records are only taken with the guard of its verification.
        Raises KafkaStorageError, and InconsistentTopicId if the folder belongs to another topic of the same name.
        """
        log = cls(
            files,
            folder,
            topic,
            partition,
            topic_id,
            config,
            producer_id_expiration_ms=producer_id_expiration_ms,
            verify_transactions=verify_transactions,
            store_epochs=store_epochs,
        )
        try:
            if make_later:
                log._open_unmade(now_ms)
            else:
                log._open(now_ms, recovery_point, log_start_offset, clean_shutdown, high_watermark)
        except OSError as error:
            raise log._storage_error(error) from error
        log.high_watermark_moved(min(max(high_watermark, log.log_start_offset), log.log_end_offset))
        return log

    def _open(
        self, now_ms: int, recovery_point: int, log_start_offset: int, clean_shutdown: bool, high_watermark: int
    ) -> None:
        if not self._files.exists(self.folder):
            self._files.make_folder(self.folder)
        is_known = ensure_partition_metadata(self._files, self.folder, self.topic_id)
        self._is_established = is_known and clean_shutdown
        self.leader_epochs.load()
        loader = Loader(
            self._files,
            self.folder,
            self.config,
            producers=self.producers,
            snapshots=self._snapshots,
            leader_epochs=self.leader_epochs,
            now_ms=now_ms,
        )
        opened = loader.open(
            recovery_point=recovery_point,
            log_start_offset=log_start_offset,
            clean_shutdown=clean_shutdown,
            high_watermark=high_watermark,
        )
        self._set_segments(opened.segments)
        self.log_start_offset = opened.log_start_offset
        self.flushed_offset = opened.flushed_offset
        if clean_shutdown and is_known:
            self._closed_at = (self._active.base_offset, self.log_end_offset, self._truncations)

    def _open_unmade(self, now_ms: int) -> None:
        self._is_unmade = self._is_established = True
        self._set_segments([Segment(self._files, self.folder, 0, self.config, now_ms, is_made=False)])

    def _make(self) -> None:
        """Make the folder of a log that has none. Nothing of it is durable before the first flush."""
        self._files.make_folder(self.folder)
        write_topic_id(self._files, self.folder, self.topic_id)
        self._is_established = False
        self._set_segments([Segment(self._files, self.folder, 0, self.config, self._active.created_ms)])
        self._is_unmade = False

    # ---- offsets

    @property
    def log_end_offset(self) -> int:
        """The offset that the next record gets."""
        return self._active.next_offset

    @property
    def recovery_point(self) -> int:
        """What lies below needs no recovery: the base offset of the first segment that is not durable as a whole."""
        return next((segment.base_offset for segment in self._segments if not segment.is_durable), 0)

    @property
    def is_established(self) -> bool:
        """Whether the folder, if there is one, and the topic's id in it are known to be durable."""
        return self._is_established

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self._segments)

    @property
    def segment_count(self) -> int:
        """Number of segments."""
        return len(self._segments)

    @property
    def active_segment_base_offset(self) -> int:
        """Base offset of the segment that is appended to."""
        return self._active.base_offset

    @property
    def first_unstable_offset(self) -> int | None:
        """First offset of the oldest transaction that is open or whose marker is not below the high watermark."""
        unstable = self.producers.first_unstable_offset
        return None if unstable is None else max(unstable, self.log_start_offset)

    @property
    def last_stable_offset(self) -> int:
        """Limit of read_committed: the high watermark or the first unstable offset, whichever is lower."""
        unstable = self.first_unstable_offset
        return self.high_watermark if unstable is None else min(unstable, self.high_watermark)

    def high_watermark_moved(self, offset: int) -> None:
        """The partition's high watermark is now `offset`; transactions whose marker it has passed become stable."""
        self.high_watermark = offset
        self.producers.forget_unreplicated(offset)

    # ---- append

    def begin_epoch(self, epoch: int) -> None:
        """The leader of `epoch` appends from here on.

        Noted even without an append: a follower whose last epoch is a later, empty one needs it to truncate right.
        Raises KafkaStorageError.
        """
        if self.offline is not None:
            raise self.offline
        try:
            self.leader_epochs.assign(epoch, self.log_end_offset)
        except OSError as error:
            raise self._go_offline(error) from error

    def append(
        self,
        records: Buffer,
        *,
        leader_epoch: int,
        now_ms: int,
        origin: AppendOrigin = AppendOrigin.CLIENT,
        guard: Verification | None = None,
        transaction_version: int = 0,
    ) -> AppendInfo:
        """Append as the leader: check, give offsets (in place, if the buffer is writable), write.

        Raises the KafkaError that a produce request is answered with; the log is then as it was before.
        """
        if self.offline is not None:
            raise self.offline
        accepted = self._validator.accept(
            records, next_offset=self._active.next_offset, leader_epoch=leader_epoch, now_ms=now_ms, origin=origin
        )
        first = accepted.batches[0]
        if origin is _CLIENT and first.producer_id >= 0:
            known = self.producers.find_duplicate(first)
            if known is not None:
                return AppendInfo(
                    known.first_offset,
                    known.last_offset,
                    known.timestamp_ms,
                    known.timestamp_ms,
                    self.log_start_offset,
                    duplicate=True,
                )
        prepared = self._prepare(accepted, origin, guard, transaction_version)
        return self._write(accepted, prepared, now_ms)

    def append_as_follower(self, records: Buffer, *, leader_epoch: int, now_ms: int) -> AppendInfo | None:
        """Append what the leader sent, byte for byte.

        Batches of a newer epoch than the fetch was for are left out (KAFKA-18723); None if nothing is left to append.
        Raises OffsetOutOfRange if the records begin below the end of the log, CorruptMessage, InvalidRecord.
        """
        if self.offline is not None:
            raise self.offline
        accepted = check_replicated(records, self.name, leader_epoch)
        if not accepted.batches:
            return None
        first_offset = accepted.batches[0].base_offset
        if first_offset < self.log_end_offset:
            raise OffsetOutOfRange(
                f"records from offset {first_offset} for {self.name}, which has all below {self.log_end_offset}"
            )
        prepared = self._prepare(accepted, AppendOrigin.REPLICATION, None, 0)
        return self._write(accepted, prepared, now_ms)

    def _prepare(
        self, accepted: Accepted, origin: AppendOrigin, guard: Verification | None, transaction_version: int
    ) -> PreparedAppend | None:
        prepared: PreparedAppend | None = None
        position = 0
        for header in accepted.batches:
            size = LOG_OVERHEAD + header.length
            if header.producer_id >= 0:
                prepared = prepared or PreparedAppend()
                marker = None
                if header.attributes & CONTROL_BIT:
                    marker = read_marker(memoryview(accepted.data)[position : position + size])
                self.producers.prepare(
                    prepared, header, origin, marker=marker, guard=guard, transaction_version=transaction_version
                )
            position += size
        return prepared

    def _write(self, accepted: Accepted, prepared: PreparedAppend | None, now_ms: int) -> AppendInfo:
        data, batches, max_timestamp_ms, log_append_time_ms = accepted
        first, last = batches[0], batches[-1]
        last_offset = last.base_offset + last.last_offset_delta
        latest_epoch = self.leader_epochs.latest
        try:
            if self._is_unmade:
                self._make()
            for header in batches:
                if header.leader_epoch != latest_epoch and header.leader_epoch >= 0:
                    latest_epoch = header.leader_epoch
                    self.leader_epochs.assign(header.leader_epoch, header.base_offset)
            segment = self._active
            if self._must_roll(segment, len(data), max_timestamp_ms, last_offset, now_ms):
                end_offset = segment.next_offset
                is_far = last_offset - end_offset > MAX_RELATIVE_OFFSET
                segment = self._roll_to(first.base_offset if is_far else end_offset, now_ms)
            segment.append(data, batches)
            if prepared is not None:
                self._settle(segment, prepared)
        except OSError as error:
            raise self._go_offline(error) from error
        if last_offset + 1 - self.flushed_offset >= self.config.flush_messages:
            self.flush()
        return AppendInfo(first.base_offset, last_offset, max_timestamp_ms, log_append_time_ms, self.log_start_offset)

    def _settle(self, segment: Segment, prepared: PreparedAppend) -> None:
        self.producers.commit(prepared)
        for completed in prepared.completed:
            if completed.is_aborted:
                stable = self.producers.last_stable_offset_after(completed)
                segment.txn_index.append(
                    self._files,
                    AbortedTxn(completed.producer_id, completed.first_offset, completed.last_offset, stable),
                )
            self.producers.end(completed)

    # ---- segments

    def _must_roll(self, segment: Segment, size: int, timestamp_ms: int, last_offset: int, now_ms: int) -> bool:
        config = self.config
        filled = segment.log.size
        return (
            filled > config.segment_bytes - size
            or (filled > 0 and segment.age_ms(now_ms, timestamp_ms) > config.segment_ms)
            or segment.offset_index.is_full
            or segment.time_index.is_full
            or last_offset - segment.base_offset > MAX_RELATIVE_OFFSET
        )

    def roll(self, now_ms: int) -> None:
        """Start a new segment at the end of the log, unless the active one is empty."""
        if self.offline is not None:
            raise self.offline
        try:
            if self._active.size:
                self._roll_to(self.log_end_offset, now_ms)
        except OSError as error:
            raise self._go_offline(error) from error

    def _roll_to(self, base_offset: int, now_ms: int) -> Segment:
        self._active.seal()
        segment = Segment(self._files, self.folder, base_offset, self.config, now_ms)
        segment.save_indexes()
        self._snapshots.take(base_offset, self.producers)
        self._keep_loaded(self._active)
        self._segments.append(segment)
        self._bases.append(base_offset)
        self._active = segment
        if self.on_flush_wanted is not None:
            self.on_flush_wanted(self)
        return segment

    def _set_segments(self, segments: list[Segment]) -> None:
        self._segments = segments
        self._bases = [segment.base_offset for segment in segments]
        self._active = segments[-1]
        self._loaded_sealed = {}
        for segment in segments[:-1]:
            if segment.is_loaded:
                self._keep_loaded(segment)

    def _segment_index(self, offset: int) -> int:
        return max(bisect_right(self._bases, offset) - 1, 0)

    def _keep_loaded(self, segment: Segment) -> None:
        """Note the use of a sealed segment's indexes; only those of a few stay in memory."""
        loaded = self._loaded_sealed
        loaded.pop(segment.base_offset, None)
        loaded[segment.base_offset] = segment
        if len(loaded) > SEALED_INDEXES_KEPT:
            loaded.pop(next(iter(loaded))).drop_indexes()

    # ---- read

    def read(
        self, offset: int, max_bytes: int, *, upper_offset: int | None = None, at_least_one: bool = False
    ) -> LogRead:
        """Whole batches from the one that holds `offset` on, up to `max_bytes`.

        Only batches below `upper_offset` (default: the end of the log). `at_least_one`: the first batch is returned
        even if it alone is larger. Raises OffsetOutOfRange outside [log start, log end].
        """
        if self.offline is not None:
            raise self.offline
        end_offset = self._active.next_offset
        if not self.log_start_offset <= offset <= end_offset:
            raise OffsetOutOfRange(f"offset {offset} of {self.name} is outside [{self.log_start_offset}, {end_offset}]")
        upper = end_offset if upper_offset is None else min(upper_offset, end_offset)
        try:
            return self._read(offset, max_bytes, upper, at_least_one)
        except OSError as error:
            raise self._go_offline(error) from error

    def _read(self, offset: int, max_bytes: int, upper_offset: int, at_least_one: bool) -> LogRead:
        if offset < upper_offset:
            segments = self._segments
            index = len(segments) - 1 if offset >= self._bases[-1] else self._segment_index(offset)
            # a segment may end before the next begins, where compaction took its last records
            for segment in segments[index:]:
                if segment.base_offset >= upper_offset:
                    break
                piece = segment.read(offset, max_bytes, upper_offset, at_least_one=at_least_one)
                if segment is not self._active and segment.is_loaded:
                    self._keep_loaded(segment)
                if piece is not None:
                    return LogRead(
                        piece.data, offset, piece.next_offset, segment.base_offset, piece.position, not piece.data
                    )
        return LogRead(b"", offset, offset, self._active.base_offset, self._active.size)

    def offset_for_timestamp(self, timestamp_ms: int, upper_offset: int | None = None) -> TimestampOffset | None:
        """The first record with a timestamp of at least `timestamp_ms`; None if there is none below `upper_offset`."""
        upper = self.log_end_offset if upper_offset is None else upper_offset
        for segment in self._segments:
            if segment.max_timestamp_ms < timestamp_ms or segment.next_offset <= self.log_start_offset:
                continue
            for header, data in self._batches_by_time(segment, timestamp_ms):
                if header.base_offset >= upper:
                    return None
                for record in next(iter_batches(data)).records():
                    if record.timestamp_ms >= timestamp_ms and record.offset >= self.log_start_offset:
                        if record.offset >= upper:
                            return None
                        return TimestampOffset(record.timestamp_ms, record.offset, header.leader_epoch)
        return None

    def offset_of_max_timestamp(self, upper_offset: int | None = None) -> TimestampOffset | None:
        """The first record with the largest timestamp of the log; None if it is not below `upper_offset`."""
        largest = max(segment.max_timestamp_ms for segment in self._segments)
        if largest == NO_TIMESTAMP:
            return None
        return self.offset_for_timestamp(largest, upper_offset)

    def _batches_by_time(self, segment: Segment, timestamp_ms: int) -> Iterator[tuple[BatchHeader, bytes]]:
        try:
            position = segment.first_position_at(timestamp_ms, self.log_start_offset)
            for at, header in segment.headers(position):
                if header.max_timestamp_ms >= timestamp_ms and header.last_offset >= self.log_start_offset:
                    yield header, segment.batch_bytes(at, header)
        except OSError as error:
            raise self._go_offline(error) from error

    def aborted_transactions(self, from_offset: int, to_offset: int) -> list[AbortedTxn]:
        """Aborted transactions that overlap [from_offset, to_offset), by the offset of their marker."""
        found: list[AbortedTxn] = []
        for segment in self._segments[self._segment_index(from_offset) :]:
            if segment.aborted_transactions(from_offset, to_offset, found):
                break
        return found

    # ---- durability

    def prepare_flush(self, upto_offset: int | None = None) -> FlushWork | None:
        """What must be fsynced to make all below `upto_offset` (default: the end) durable; None if it already is."""
        upto = self.log_end_offset if upto_offset is None else upto_offset
        if self.offline is not None:
            return None
        try:
            sealed = [part for part in self._segments[:-1] if not part.is_durable and part.base_offset < upto]
            targets = [target for segment in sealed for target in segment.sync_targets()]
            if upto > max(self.flushed_offset, self._active.base_offset):
                targets.append(self._active.log_sync_target())
            if not self._is_established:
                metadata = self.folder / METADATA_NAME
                targets += [self._files.sync_target(metadata)] if self._files.exists(metadata) else []
            if not targets and self._is_established:
                return None
            bases = {self._active.base_offset, *(segment.base_offset for segment in sealed)}
            fresh = [self._snapshots.path(base) for base in self._snapshots.offsets if base in bases]
            targets += [self._files.sync_target(path) for path in fresh]
            newest = self._active.base_offset
            if sealed or newest != self._named_base_offset or not self._is_established:  # there are new names in it
                targets.append(self._files.sync_target(self.folder))
        except OSError as error:
            raise self._go_offline(error) from error
        return FlushWork(
            upto,
            sealed,
            targets,
            newest_base_offset=newest,
            truncations=self._truncations,
            files=self._files,
            parent=None if self._is_established else self.folder.parent,
        )

    def flush_done(self, work: FlushWork) -> None:
        """`work.run` has returned: what it covered is durable, unless the log was truncated meanwhile."""
        self._is_established = True
        if work.truncations != self._truncations:
            return
        self.flushed_offset = max(self.flushed_offset, work.upto_offset)
        self._named_base_offset = work.newest_base_offset
        for segment in work.segments:
            segment.is_durable = True

    def prepare_epochs(self) -> Callable[[], None] | None:
        """What stores the leader epochs, to be called anywhere; None if the file is up to date."""
        return None if self.offline is not None or self._is_unmade else self.leader_epochs.prepare_save()

    def flush_failed(self, error: OSError) -> None:
        """`work.run` has raised: what is on the disk is unknown, so the log goes offline."""
        self._go_offline(error)

    def take_offline(self, reason: KafkaStorageError) -> None:
        """Refuse everything from now on: the folder that the log lies in has failed elsewhere."""
        self.offline = self.offline or reason

    def flush(self, upto_offset: int | None = None) -> None:
        """Fsync on this thread. Raises KafkaStorageError."""
        work = self.prepare_flush(upto_offset)
        if work is None:
            return
        try:
            work.run()
        except OSError as error:
            raise self._go_offline(error) from error
        self.flush_done(work)

    # ---- truncation and retention

    def truncate_to(self, offset: int, *, now_ms: int) -> bool:
        """Cut off everything from `offset` on (follower reconciliation); True if anything was cut."""
        if self.offline is not None:
            raise self.offline
        if offset >= self.log_end_offset:
            self.leader_epochs.truncate_from_end(self.log_end_offset)
            return False
        if offset < self._bases[0]:
            self.truncate_fully_and_start_at(offset, now_ms=now_ms)
            return True
        try:
            self._lower_recovery_point(offset)
            keep = self._segment_index(offset) + 1
            self._drop_segments(self._segments[keep:], now_ms)
            self._set_segments(self._segments[:keep])
            self._active.truncate(offset)
            self.leader_epochs.truncate_from_end(offset)
            self.log_start_offset = min(self.log_start_offset, self.log_end_offset)
            self._snapshots.keep_between(self._bases[0], self.log_end_offset)
            self._rebuild_producers(now_ms)
        except OSError as error:
            raise self._go_offline(error) from error
        self.high_watermark_moved(min(self.high_watermark, self.log_end_offset))
        return True

    def truncate_fully_and_start_at(self, offset: int, *, now_ms: int) -> None:
        """Empty the log; the next record gets `offset`."""
        if self.offline is not None:
            raise self.offline
        try:
            self._lower_recovery_point(offset)
            if self._is_unmade:
                self._make()
            self._drop_segments(self._segments, now_ms)
            segment = Segment(self._files, self.folder, offset, self.config, now_ms)
            segment.reset_indexes()
            segment.save_indexes()
            self._set_segments([segment])
            self.leader_epochs.clear()
            self._snapshots.clear()
        except OSError as error:
            raise self._go_offline(error) from error
        self.producers.clear()
        self.log_start_offset = self.high_watermark = offset

    def increment_log_start_offset(self, offset: int) -> bool:
        """Give up everything below `offset` (DeleteRecords, retention); True if the start moved.

        Raises OffsetOutOfRange above the high watermark.
        """
        if offset > self.high_watermark:
            raise OffsetOutOfRange(f"offset {offset} of {self.name} is above the high watermark {self.high_watermark}")
        if offset <= self.log_start_offset:
            return False
        self._raise_log_start(offset)
        return True

    def _raise_log_start(self, offset: int) -> None:
        self.log_start_offset = offset
        self.leader_epochs.truncate_from_start(offset)
        self.producers.forget_unreplicated(offset)

    def delete_old_segments(self, now_ms: int, high_watermark: int | None = None) -> int:
        """Apply retention; returns how many segments went. Their files stay, renamed, for `file.delete.delay.ms`."""
        limit = self.high_watermark if high_watermark is None else high_watermark
        if self.offline is not None or self._is_unmade:
            return 0
        try:
            deleted = self._delete_oldest(retention.below_start(self._segments, self.log_start_offset, limit), now_ms)
            if self.config.delete:
                deleted += self._delete_oldest(retention.by_size(self._segments, self.config, limit), now_ms)
                deleted += self._delete_oldest(retention.by_time(self._segments, self.config, limit, now_ms), now_ms)
        except OSError as error:
            raise self._go_offline(error) from error
        return deleted

    def _delete_oldest(self, count: int, now_ms: int) -> int:
        if count == 0:
            return 0
        if count == len(self._segments):
            self._roll_to(self.log_end_offset, now_ms)  # offsets never start again
        # first the offset that readers see, then the files
        self._raise_log_start(max(self._segments[count].base_offset, self.log_start_offset))
        doomed, kept = self._segments[:count], self._segments[count:]
        if not doomed[-1].is_durable and kept[0].base_offset in self._snapshots.offsets:
            # from now on nothing else knows of producers and transactions that began before
            self._files.sync_target(self._snapshots.path(kept[0].base_offset)).sync()
        for segment in doomed:
            self._mark_deleted(segment, now_ms)
        if not all(segment.is_durable for segment in doomed):
            # or a power failure could bring back what was never fsynced, below an offset that counts as durable
            self._files.sync_directory(self.folder)
        self._set_segments(kept)
        self.flushed_offset = max(self.flushed_offset, kept[0].base_offset)
        return count

    def _drop_segments(self, segments: list[Segment], now_ms: int) -> None:
        """Remove segments at the end, the last first: after a crash a log without a hole is left."""
        for segment in reversed(segments):
            self._mark_deleted(segment, now_ms)
        if segments:
            self._files.sync_directory(self.folder)

    def _mark_deleted(self, segment: Segment, now_ms: int) -> None:
        due_ms = now_ms + self.config.file_delete_delay_ms
        self._doomed += ((due_ms, path) for path in segment.mark_deleted())
        self._loaded_sealed.pop(segment.base_offset, None)
        self._snapshots.remove(segment.base_offset)

    def take_doomed(self, now_ms: int) -> list[Path]:
        """Files whose delay is over; the caller removes them, on any thread."""
        due = [path for due_ms, path in self._doomed if due_ms <= now_ms]
        self._doomed = [entry for entry in self._doomed if entry[0] > now_ms]
        return due

    @property
    def next_doomed_ms(self) -> int | None:
        """When the next file is to be removed."""
        return min((due_ms for due_ms, _ in self._doomed), default=None)

    def _lower_recovery_point(self, offset: int) -> None:
        """What is written from `offset` on will not be durable, whatever was there before: say so before it happens."""
        self._named_base_offset = -1
        self._truncations += 1
        self.flushed_offset = min(self.flushed_offset, offset)
        for segment in self._segments[self._segment_index(offset) :]:
            segment.is_durable = False
        if self.on_recovery_point_lowered is not None:
            self.on_recovery_point_lowered(self)

    def _rebuild_producers(self, now_ms: int) -> None:
        rebuild_producers(
            self.producers,
            self._snapshots,
            self._segments,
            self.log_end_offset,
            now_ms,
            replicated_offset=self.high_watermark,
        )

    # ---- life

    def update_config(self, config: LogConfig) -> None:
        """Take over a changed topic configuration; it holds from the next append on."""
        self.config = config
        self._validator = LeaderValidator(self.name, config)
        for segment in self._segments:
            segment.index_interval_bytes = config.index_interval_bytes

    def close(self) -> None:
        """Close in good order: everything is durable, and the producer state is stored as of the end of the log."""
        work = self.prepare_close()
        if work is not None:
            try:
                work()
            except OSError as error:
                raise self._go_offline(error) from error
        self.abandon()

    def prepare_close(self) -> Callable[[], None] | None:
        """Write what a close in good order leaves, so that the next start need not check anything.

        Returns what then makes it durable, to be called anywhere (raises OSError); None if there is nothing to do. The
        log must not be written to any more, and `abandon` lets go of it. Raises KafkaStorageError.
        """
        if self.offline is not None or self._is_unmade or self._is_as_it_was_closed():
            return None
        try:
            if self.log_end_offset > self._bases[0]:
                self._snapshots.take(self.log_end_offset, self.producers)
            flush = self.prepare_flush()
            self._active.seal()
            targets = [*self._active.sync_targets(), self._files.sync_target(self.folder)]
            if self.log_end_offset in self._snapshots.offsets:
                targets.append(self._files.sync_target(self._snapshots.path(self.log_end_offset)))
        except OSError as error:
            raise self._go_offline(error) from error
        epochs = self.prepare_epochs()

        def work() -> None:
            if epochs is not None:
                epochs()
            if flush is not None:
                flush.run()
            for target in targets:
                target.sync()

        return work

    def _is_as_it_was_closed(self) -> bool:
        opened_at = (self._active.base_offset, self.log_end_offset, self._truncations)
        return opened_at == self._closed_at and not self.leader_epochs.is_stale

    def abandon(self) -> None:
        """Let go of the files and do nothing else (the log is offline, or is about to be deleted)."""
        for segment in self._segments:
            segment.log.close()

    def delete(self, target: Path) -> None:
        """Stop, and rename the folder to `target`; whoever asked removes it with its content.

        The new name is not durable: a folder that comes back after a power failure is that of a topic nobody knows.
        Raises KafkaStorageError.
        """
        self.abandon()
        self.leader_epochs.stop()
        self.offline = KafkaStorageError(f"{self.name} was deleted")
        if self._is_unmade:
            return
        try:
            self._files.rename(self.folder, target)
        except OSError as error:
            raise self._storage_error(error) from error

    def _go_offline(self, error: OSError) -> KafkaStorageError:
        if self.offline is None:
            self.offline = self._storage_error(error)
            logger.error("%s goes offline: %s", self.name, self.offline)
            if self.on_offline is not None:
                self.on_offline(self.offline)
        return self.offline

    def _storage_error(self, error: OSError) -> KafkaStorageError:
        path = error.filename or self.folder
        failure = KafkaStorageError(f"{self.name}: {path}: {error.strerror or error} (errno {error.errno})")
        failure.__cause__ = error
        return failure
