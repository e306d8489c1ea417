"""Opening a partition's folder: what a crash may have left is cleaned up, checked and rebuilt.

Order matters, because the process may die here too, and a second recovery must come to the same end: later segments go
before an earlier one is cut; what is cut is fsynced before anything relies on it; snapshots and indexes are derived
from the log and may be lost at any time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ottla_broker.log import batch as b
from ottla_broker.log.batch import BatchHeader
from ottla_broker.log.config import LogConfig
from ottla_broker.log.files import Files
from ottla_broker.log.indexes import AbortedTxn, CorruptIndex
from ottla_broker.log.leader_epochs import EpochEntry, LeaderEpochs
from ottla_broker.log.producer_snapshot import Snapshots
from ottla_broker.log.producer_state import AppendOrigin, PreparedAppend, ProducerStates
from ottla_broker.log.segment import (
    CLEANED_SUFFIX,
    DELETED_SUFFIX,
    LOG_SUFFIX,
    SEGMENT_SUFFIXES,
    SWAP_SUFFIX,
    Segment,
    file_path,
)
from ottla_broker.log.validation import read_marker
from ottla_wire.errors import CorruptMessage, InvalidRecord, KafkaStorageError
from ottla_wire.records import crc32c

logger = logging.getLogger(__name__)

_SCAN_BYTES = 1 << 20


@dataclass(slots=True)
class Opened:
    """A folder that is in order."""

    segments: list[Segment]
    log_start_offset: int
    flushed_offset: int


class Loader:
    """Opens one partition's folder."""

    def __init__(
        self,
        files: Files,
        folder: Path,
        config: LogConfig,
        *,
        producers: ProducerStates,
        snapshots: Snapshots,
        leader_epochs: LeaderEpochs,
        now_ms: int,
    ) -> None:
        self._files = files
        self._folder = folder
        self._config = config
        self._producers = producers
        self._snapshots = snapshots
        self._epochs = leader_epochs
        self._now_ms = now_ms

    def open(
        self, *, recovery_point: int, log_start_offset: int, clean_shutdown: bool, high_watermark: int = 0
    ) -> Opened:
        """Everything that chapter "startup" of a log asks for. Raises OSError."""
        self._finish_interrupted_work()
        segments = self._open_segments()
        self._snapshots.list_files()
        first = self._first_unchecked(segments, recovery_point, clean_shutdown)
        self._restore_checked(segments[:first], segments[first:])
        if first < len(segments):
            segments = self._recover(segments, first)
        end_offset = segments[-1].next_offset if segments else log_start_offset
        if not segments or end_offset < log_start_offset:
            segments = [self._start_anew(segments, log_start_offset)]
            end_offset = log_start_offset
        log_start_offset = max(log_start_offset, segments[0].base_offset)
        self._epochs.truncate_from_start(log_start_offset)
        self._epochs.truncate_from_end(end_offset)
        self._find_early_epochs(segments, log_start_offset, end_offset)
        self._epochs.save()
        self._snapshots.remove_strays(segment.base_offset for segment in segments)
        self._snapshots.keep_between(segments[0].base_offset, end_offset)
        rebuild_producers(
            self._producers,
            self._snapshots,
            segments,
            end_offset,
            self._now_ms,
            # Without a stored one nothing is known, and to replay the whole log would take long.
            replicated_offset=max(high_watermark, log_start_offset) if high_watermark else None,
        )
        if end_offset > segments[0].base_offset and end_offset not in self._snapshots.offsets:
            self._snapshots.take(end_offset, self._producers)
        for segment in segments[: min(first, len(segments) - 1)]:  # the last one will be written to
            segment.is_durable = True
        return Opened(segments, log_start_offset, end_offset if clean_shutdown else min(recovery_point, end_offset))

    # ---- files

    def _finish_interrupted_work(self) -> None:
        """Remove what was to be removed; bring an interrupted compaction to the state before or after it."""
        names = self._files.list(self._folder)
        cleaned = [name for name in names if name.endswith(CLEANED_SUFFIX)]
        swaps = [name for name in names if name.endswith(SWAP_SUFFIX)]
        # segments are renamed .cleaned -> .swap from the last to the first: while one is still .cleaned, the swap has
        # not begun
        first_cleaned = min((self._offset_of(name) for name in cleaned), default=2**63)
        valid_swaps = [name for name in swaps if self._offset_of(name) < first_cleaned]
        for name in names:
            if name.endswith((DELETED_SUFFIX, CLEANED_SUFFIX, ".tmp")) or (name in swaps and name not in valid_swaps):
                self._files.remove(self._folder / name)
        if valid_swaps:
            self._finish_swap(valid_swaps)

    def _finish_swap(self, swaps: list[str]) -> None:
        bases = sorted(self._offset_of(name) for name in swaps if name.endswith(LOG_SUFFIX + SWAP_SUFFIX))
        if bases:
            last = self._files.open(file_path(self._folder, bases[-1], LOG_SUFFIX + SWAP_SUFFIX))
            end = bases[-1] + 1
            for _, header in _batches_of(last.read(last.size, 0)):
                end = header.last_offset + 1
            last.close()
            for name in self._files.list(self._folder):
                if name.endswith(SEGMENT_SUFFIXES) and bases[0] <= self._offset_of(name) < end:
                    self._files.remove(self._folder / name)
        for name in swaps:
            self._files.rename(self._folder / name, self._folder / name.removesuffix(SWAP_SUFFIX))
        self._files.sync_directory(self._folder)

    def _offset_of(self, name: str) -> int:
        digits = name.partition(".")[0]
        if not digits.isdecimal():
            raise KafkaStorageError(f"{self._folder / name} is no file of a partition")
        return int(digits)

    def _open_segments(self) -> list[Segment]:
        names = self._files.list(self._folder)
        bases = sorted(self._offset_of(name) for name in names if name.endswith(LOG_SUFFIX))
        known = set(bases)
        for name in names:
            if name.endswith(SEGMENT_SUFFIXES) and self._offset_of(name) not in known:
                logger.warning("%s is removed: there is no segment for it", self._folder / name)
                self._files.remove(self._folder / name)
        return [Segment(self._files, self._folder, base, self._config, self._now_ms) for base in bases]

    def _first_unchecked(self, segments: list[Segment], recovery_point: int, clean_shutdown: bool) -> int:
        """The segment from which on nothing in the files may be believed."""
        if clean_shutdown:
            return len(segments)
        for index in range(len(segments) - 1, -1, -1):
            if segments[index].base_offset <= recovery_point:
                return index
        return 0

    def _restore_checked(self, checked: list[Segment], unchecked: list[Segment]) -> None:
        following = [segment.base_offset for segment in (*checked[1:], *unchecked[:1])]
        for index, segment in enumerate(checked):
            try:
                if index < len(following):
                    segment.restore_sealed(following[index])
                elif segment.restore() != segment.size:
                    raise CorruptIndex("the segment does not end with a whole batch")
            except (CorruptIndex, FileNotFoundError, CorruptMessage) as error:
                logger.warning("the indexes of %s are rebuilt: %s", segment.log.path, error)
                self._rebuild(checked[:index], segment)

    def _rebuild(self, before: list[Segment], segment: Segment) -> None:
        """Build the indexes of one segment from its batches; cut off what is no batch."""
        states = ProducerStates(self._producers.name, self._producers.expiration_ms)
        rebuild_producers(states, self._snapshots, before, segment.base_offset, self._now_ms)
        end = self._scan(segment, states, check_bytes=False)
        if end < segment.size:
            segment.log.truncate(end)
            self._files.sync_target(segment.log.path).sync()
        segment.seal()

    # ---- recovery

    def _recover(self, segments: list[Segment], first: int) -> list[Segment]:
        """Check every batch from segment `first` on; the log ends before the first bad one."""
        states = ProducerStates(self._producers.name, self._producers.expiration_ms)
        start = segments[first].base_offset
        # later ones are taken anew, from what is really there; of earlier ones the batches that follow are gone
        self._snapshots.keep_between(segments[0].base_offset, start)
        rebuild_producers(states, self._snapshots, segments[:first], start, self._now_ms)
        for index in range(first, len(segments)):
            segment = segments[index]
            if index > 0 and segment.base_offset not in self._snapshots.offsets:
                self._snapshots.take(segment.base_offset, states)
            end = self._scan(segment, states, check_bytes=True)
            following = segments[index + 1] if index + 1 < len(segments) else None
            if end < segment.size or (following is not None and _leaves_a_hole(segment, following)):
                logger.warning("%s ends at byte %d of %d", segment.log.path, end, segment.size)
                self._remove_segments(segments[index + 1 :])
                segment.log.truncate(end)
                self._files.sync_target(segment.log.path).sync()
                segments = segments[: index + 1]
                following = None
            if following is not None:
                segment.next_offset = following.base_offset
                segment.seal()
            else:
                segment.save_indexes()
            if index + 1 == len(segments):
                break
        self._epochs.save()
        return segments

    def _scan(self, segment: Segment, states: ProducerStates, *, check_bytes: bool) -> int:
        """Rebuild the indexes of a segment; returns where its good batches end."""
        segment.reset_indexes()
        aborted: list[AbortedTxn] = []
        end = 0
        try:
            for position, header, data in _stored_batches(segment):
                if check_bytes:
                    _check_stored(segment, header, data)
                segment.note(header, position)
                end = position + header.size_bytes
                if header.leader_epoch >= 0 and header.leader_epoch > (
                    -1 if self._epochs.latest is None else self._epochs.latest
                ):
                    self._epochs.note(header.leader_epoch, header.base_offset)
                aborted.extend(replay(states, header, data))
        except (CorruptMessage, InvalidRecord) as error:
            logger.warning("%s holds no good batch at byte %d: %s", segment.log.path, end, error)
        segment.txn_index.rewrite(self._files, aborted)
        return end

    def _find_early_epochs(self, segments: list[Segment], log_start_offset: int, end_offset: int) -> None:
        """Look for epochs in the log that the checkpoint does not reach back to.

        The log's start may have been raised, and with it the first epoch, but only the checkpoint of the epochs have
        been stored before a crash. (Or there is no usable checkpoint.)
        """
        earliest = self._epochs.earliest
        end_offset = end_offset if earliest is None else earliest.start_offset
        found: list[EpochEntry] = []
        for segment in segments:
            if log_start_offset >= end_offset or segment.base_offset >= end_offset:
                break
            for _, header in segment.headers(segment.position_of(log_start_offset)):
                if header.base_offset >= end_offset:
                    break
                if header.leader_epoch >= 0 and (not found or header.leader_epoch > found[-1].epoch):
                    found.append(EpochEntry(header.leader_epoch, max(header.base_offset, log_start_offset)))
        self._epochs.prepend(found)

    def _remove_segments(self, segments: list[Segment]) -> None:
        for segment in reversed(segments):
            logger.warning("%s is removed: it follows a bad batch", segment.log.path)
            self._snapshots.remove(segment.base_offset)
            for path in segment.mark_deleted():
                self._files.remove(path)
        if segments:
            self._files.sync_directory(self._folder)

    def _start_anew(self, segments: list[Segment], offset: int) -> Segment:
        if segments:
            logger.warning("%s ends before its log start offset %d and is emptied", self._folder, offset)
        self._remove_segments(segments)
        self._epochs.clear()
        self._snapshots.clear()
        segment = Segment(self._files, self._folder, offset, self._config, self._now_ms)
        segment.save_indexes()
        return segment


def _leaves_a_hole(segment: Segment, following: Segment) -> bool:
    """Whether batches are missing between two segments: the end of the first was lost, by chance between two batches.

    A log grows without holes, but for a follower's jump that is too far for one segment. Compaction makes them, in
    durable segments only.
    """
    return following.base_offset != segment.next_offset and segment.can_hold(following.base_offset)


def replay(states: ProducerStates, header: BatchHeader, data: bytes) -> list[AbortedTxn]:
    """Take a stored batch into the producer state; returns the transaction it aborted, if any."""
    if header.producer_id < 0:
        return []
    prepared = PreparedAppend()
    marker = read_marker(data) if header.is_control else None
    states.prepare(prepared, header, AppendOrigin.REPLICATION, marker=marker)
    states.commit(prepared)
    aborted = []
    for completed in prepared.completed:
        if completed.is_aborted:
            stable = states.last_stable_offset_after(completed)
            aborted.append(AbortedTxn(completed.producer_id, completed.first_offset, completed.last_offset, stable))
        states.end(completed)
    return aborted


def rebuild_producers(
    states: ProducerStates,
    snapshots: Snapshots,
    segments: list[Segment],
    end_offset: int,
    now_ms: int,
    *,
    replicated_offset: int | None = None,
) -> None:
    """Producer state as of `end_offset`: the latest usable snapshot, and the batches behind it.

    A snapshot does not say which transactions ended just before it. Where that matters, because their markers may not
    be replicated yet, one that is not above `replicated_offset` is taken.

    Batches below the log's start count, where they still exist: producers and open transactions outlive their records.
    """
    states.clear()
    loaded = snapshots.load_latest(end_offset if replicated_offset is None else min(end_offset, replicated_offset))
    offset = segments[0].base_offset if segments else end_offset
    if loaded is not None:
        offset, entries = loaded
        for entry in entries:
            if not states.is_expired(entry, now_ms):
                states.restore(entry)
    for index, segment in enumerate(segments):
        is_before = index + 1 < len(segments) and segments[index + 1].base_offset <= offset
        if is_before or offset >= end_offset:
            continue
        for position, header in segment.headers(segment.position_of(offset)):
            if header.base_offset >= end_offset:
                return
            replay(states, header, segment.batch_bytes(position, header) if header.is_control else b"")
            offset = header.last_offset + 1


def _check_stored(segment: Segment, header: BatchHeader, data: bytes) -> None:
    if header.magic != b.CURRENT_MAGIC:
        raise CorruptMessage(f"format {header.magic}")
    if crc32c(memoryview(data)[b.CRC_START :]) != header.crc:
        raise CorruptMessage("the CRC does not match")
    if header.base_offset < segment.next_offset or header.last_offset_delta < 0:
        raise CorruptMessage(f"offset {header.base_offset} after {segment.next_offset - 1}")
    if not segment.can_hold(header.last_offset):
        raise CorruptMessage(f"offset {header.last_offset} is too far from {segment.base_offset}")


def _stored_batches(segment: Segment) -> Iterator[tuple[int, BatchHeader, bytes]]:
    """Every whole batch of a segment with its bytes, read in large pieces."""
    position, end = 0, segment.size
    wanted = _SCAN_BYTES
    while end - position >= b.HEADER_BYTES:
        data = segment.log.read(min(wanted, end - position), position)
        used = 0
        for at, header in _batches_of(data):
            used = at + header.size_bytes
            yield position + at, header, data[at:used]
        if used == 0:
            length = b.read_header(data).size_bytes
            if length < b.HEADER_BYTES or position + length > end:
                return
            wanted = length
        else:
            wanted = _SCAN_BYTES
        position += used


def _batches_of(data: bytes) -> Iterator[tuple[int, BatchHeader]]:
    return b.split(data)
