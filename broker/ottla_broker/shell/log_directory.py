"""LogDirectory: the data folder of a broker, and what has to be done for its logs as time passes.

It holds the folder's lock and identity, opens logs with their checkpointed offsets, and runs the duties: fsync of
segments that were rolled, `flush.ms`, retention, removal of deleted files, expiry of producer state, checkpoints. What
blocks goes through `background`, which a shell with a disk thread replaces; without one it runs at once.

A folder fails as a whole, as in Kafka: after the first error of a write, a read or an fsync (`fail`) no log takes
anything more, nothing is written, and the broker, which has no other folder, has to stop. There is then no
clean-shutdown marker, so the next start checks the logs: what was acknowledged is there, half a batch is cut off.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ottla_broker.log.config import INT64_MAX, LogConfig
from ottla_broker.log.files import Files
from ottla_broker.log.partition_log import PartitionLog
from ottla_broker.log.partition_metadata import read_topic_id
from ottla_broker.shell.disk_chores import Background, DiskChores
from ottla_broker.shell.folder_lock import FolderInUse, FolderLock
from ottla_broker.shell.meta_properties import (
    MetaProperties,
    MetaPropertiesError,
    read_meta_properties,
    write_meta_properties,
)
from ottla_broker.shell.offset_checkpoint import OffsetCheckpoint, Partition
from ottla_broker.shell.storage_failure import describe_failure, os_error_of, reason_of
from ottla_wire.errors import KafkaError, KafkaStorageError
from ottla_wire.schema import Uuid

if TYPE_CHECKING:
    from ottla_broker.shell.config import BrokerConfig

logger = logging.getLogger(__name__)

RECOVERY_POINT_CHECKPOINT = "recovery-point-offset-checkpoint"
LOG_START_CHECKPOINT = "log-start-offset-checkpoint"
HIGH_WATERMARK_CHECKPOINT = "replication-offset-checkpoint"
CLEAN_SHUTDOWN_MARKER = ".kafka_cleanshutdown"
METADATA_FOLDER = "__cluster_metadata-0"
DELETE_SUFFIX = "-delete"
STRAY_SUFFIX = "-stray"

_MAX_NAME_BYTES = 255
_FSYNC_THREADS = 16
_CLOSED_AT_ONCE = 64
_RETAINED_AT_ONCE = 50
_SCAN_INTERVAL_MS = 1_000
_SHORTEST_SCAN_INTERVAL_MS = 50
_PARTITION_FOLDER = re.compile(r"(?P<topic>[A-Za-z0-9._-]{1,249})-(?P<index>[0-9]+)")


class LogDirectoryError(Exception):
    """The data folder cannot be used; the message is one sentence for the person who started the broker."""


class LogDirectory:
    """A data folder in use. Made by `open`.

    Attributes:
        cluster_id, directory_id: from meta.properties.
        was_clean_shutdown: whether the last broker here stopped in good order.
        logs: the open logs.
        background: runs what blocks; see `Background`.
        failure: the sentence that says why the folder is of no more use; None while it is.
        on_failure: called once, with that sentence, on the broker's thread.
    """

    def __init__(
        self,
        config: BrokerConfig,
        files: Files,
        wall_ms: Callable[[], int],
        lock: FolderLock,
        meta: MetaProperties,
        *,
        was_clean_shutdown: bool,
    ) -> None:
        self.path = config.data
        self.cluster_id = meta.cluster_id
        self.directory_id = meta.directory_id
        self.was_clean_shutdown = was_clean_shutdown
        self.logs: dict[Partition, PartitionLog] = {}
        self.background: Background = run_at_once
        self.failure: str | None = None
        self.on_failure: Callable[[str], None] | None = None
        self._config = config
        self._files = files
        self._wall_ms = wall_ms
        self._lock = lock
        self._rng = random.SystemRandom()
        self._recovery_points = OffsetCheckpoint(files, self.path / RECOVERY_POINT_CHECKPOINT)
        self._log_starts = OffsetCheckpoint(files, self.path / LOG_START_CHECKPOINT)
        self._high_watermarks = OffsetCheckpoint(files, self.path / HIGH_WATERMARK_CHECKPOINT)
        self._checkpoints = (self._recovery_points, self._log_starts, self._high_watermarks)
        self._outdated: set[Partition] = set()  # deleted, but the files of the checkpoints may still have their offsets
        self._chores = DiskChores(lambda work, done: self.background(work, done), self._background_done)
        self._put_off: list[Callable[[], None]] | None = []  # None once the broker has started
        self._unchecked: set[Partition] = set()
        self._flush_wanted: dict[PartitionLog, None] = {}
        self._flushing: set[PartitionLog] = set()
        self._unflushed_since_ms: dict[PartitionLog, int] = {}
        self._to_retain: list[PartitionLog] = []
        self._now_ms = 0
        self._next_scan_ms = 0
        self._duties = _Duties(
            {
                self._checkpoint_recovery_points: config.log_flush_offset_checkpoint_interval_ms,
                self._checkpoint_log_starts: config.log_flush_start_offset_checkpoint_interval_ms,
                self._checkpoint_high_watermarks: config.replica_high_watermark_checkpoint_interval_ms,
                self._begin_retention: config.log_retention_check_interval_ms,
                self._expire_producers: config.producer_id_expiration_check_interval_ms,
            }
        )

    @classmethod
    def open(
        cls, config: BrokerConfig, *, files: Files, wall_ms: Callable[[], int], address: str | None = None
    ) -> LogDirectory:
        """Take a folder, and make it if its parent is there.

        Args:
            address: where this broker listens; told to whoever wants the same folder.

        Raises:
            LogDirectoryError: the folder is in use, is another node's, or cannot be read and written.
        """
        folder = config.data
        lock = _take(files, folder, address or (f"{config.host}:{config.port}" if config.port else ""))
        try:
            return cls._open_locked(config, files, wall_ms, lock)
        except (OSError, MetaPropertiesError) as error:
            lock.release()
            raise LogDirectoryError(describe_failure(folder, error, _free_bytes(files, folder))) from error
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _open_locked(
        cls, config: BrokerConfig, files: Files, wall_ms: Callable[[], int], lock: FolderLock
    ) -> LogDirectory:
        folder = config.data
        meta = read_meta_properties(files, folder)
        if meta is None:
            rng = random.SystemRandom()
            meta = MetaProperties(str(Uuid.random(rng)), config.node_id, Uuid.random(rng))
            write_meta_properties(files, folder, meta)
        elif meta.node_id != config.node_id:
            raise LogDirectoryError(
                f"data directory {folder} belongs to node {meta.node_id}, not {config.node_id}; "
                f"set node.id={meta.node_id} or choose another --data"
            )
        marker = folder / CLEAN_SHUTDOWN_MARKER
        was_clean_shutdown = files.exists(marker)
        if was_clean_shutdown:
            files.remove(marker)  # from here on a crash is a crash
            files.sync_directory(folder)
        directory = cls(config, files, wall_ms, lock, meta, was_clean_shutdown=was_clean_shutdown)
        directory._load()
        return directory

    def _load(self) -> None:
        for checkpoint in self._checkpoints:
            checkpoint.load()
        for name in self._files.list(self.path):
            if name.endswith(DELETE_SUFFIX):
                self._files.remove_tree(self.path / name)
        on_disk = set(self.partitions_on_disk())
        for partition in {partition for checkpoint in self._checkpoints for partition in checkpoint.partitions()}:
            if partition not in on_disk:
                self._forget(partition)
        if not self.was_clean_shutdown:
            self._unchecked = on_disk

    # ---- logs

    def partitions_on_disk(self) -> list[Partition]:
        """The partitions that have a folder, open or not."""
        found: list[Partition] = []
        for name in self._files.list(self.path):
            match = _PARTITION_FOLDER.fullmatch(name)
            if match and name != METADATA_FOLDER:
                found.append((match["topic"], int(match["index"])))
        return found

    def open_log(self, topic: str, index: int, topic_id: Uuid, config: LogConfig) -> PartitionLog:
        """The partition's log with its checkpointed offsets; a new one, which costs nothing yet, if it is not there.

        A folder of a deleted topic of the same name makes room, and so does what a crash left of a folder of which
        nothing was durable yet. A log that cannot be opened is a failure of the whole folder. Raises KafkaStorageError.
        """
        partition = (topic, index)
        assert partition not in self.logs, f"{topic}-{index} is open already"
        if self.failure is not None:
            raise KafkaStorageError(self.failure)
        try:
            log = self._open_log(partition, topic_id, config)
        except Exception as error:  # whatever is wrong with what lies there: to go on without it would hide it
            raise self._cannot_open(f"{topic}-{index}", error) from error
        log.on_flush_wanted = self._want_flush
        log.on_recovery_point_lowered = self._store_recovery_points_now
        log.on_offline = self.fail
        self._unchecked.discard(partition)
        self.logs[partition] = log
        return log

    def _open_log(self, partition: Partition, topic_id: Uuid, config: LogConfig) -> PartitionLog:
        topic, index = partition
        folder = self.path / f"{topic}-{index}"
        exists = self._files.exists(folder)
        if exists and not self._is_of(folder, partition, topic_id):
            self._discard(folder)
            self._forget(partition)
            exists = False
        if partition in self._outdated:
            self._drop_outdated_offsets()
        return PartitionLog.open(
            self._files,
            folder,
            topic,
            index,
            topic_id,
            config,
            now_ms=self._wall_ms(),
            recovery_point=self._recovery_points.get(partition),
            log_start_offset=self._log_starts.get(partition),
            high_watermark=self._high_watermarks.get(partition),
            clean_shutdown=self.was_clean_shutdown,
            producer_id_expiration_ms=self._config.producer_id_expiration_ms,
            verify_transactions=self._config.transaction_partition_verification_enable,
            make_later=not exists,
            store_epochs=self._store_epoch,
        )

    def _cannot_open(self, name: str, error: Exception) -> KafkaStorageError:
        cause = os_error_of(error)
        sentence = f"the log of {name} cannot be opened: {reason_of(cause or error)}"
        if cause is None:
            logger.error("the log of %s cannot be opened", name, exc_info=error)
            sentence += f"; restore {self.path / name} from a copy, or move it away to go on without its records"
        failure = KafkaStorageError(sentence)
        failure.__cause__ = error
        self.fail(failure)
        return failure

    def _is_of(self, folder: Path, partition: Partition, topic_id: Uuid) -> bool:
        known = read_topic_id(self._files, folder)
        if known is not None:
            return known == topic_id
        if self.was_clean_shutdown or self._recovery_points.get(partition) > 0:
            return True
        # The id is durable with the first flush, so nothing here was flushed: it may even be a deleted topic's.
        logger.warning("%s is emptied: nothing in it was durable yet when the broker crashed", folder)
        return False

    def started(self) -> None:
        """All logs are open, and whoever uses them may begin: makes durable what was put off while they were opened.

        After a crash every log has a new leader epoch, whose fsyncs would take a long time one after the other.
        """
        try:
            self._store_epochs()
        except OSError as error:
            self.fail(error)
        self._set_strays_aside()

    def _store_epochs(self) -> None:
        writes, self._put_off = self._put_off, None
        _side_by_side(writes or [])

    def _store_epoch(self, write: Callable[[], None]) -> None:
        if self._put_off is None:
            write()
        else:
            self._put_off.append(write)

    def _set_strays_aside(self) -> None:
        """Rename the folders that no log was opened for: the metadata does not know their topics (any more).

        That is what a crash leaves between a topic's deletion in the metadata and that of its folders. As in Kafka they
        are kept, for a person to look at.
        """
        for topic, index in self.partitions_on_disk():
            if (topic, index) in self.logs or self.failure is not None:
                continue
            folder = self.path / f"{topic}-{index}"
            target = self._unique_name(folder.name, STRAY_SUFFIX)
            logger.warning("%s is of no topic that there is, it becomes %s and may be removed", folder, target.name)
            try:
                self._files.rename(folder, target)
            except OSError as error:
                self.fail(error)
            self._forget((topic, index))

    def delete_log(self, topic: str, index: int) -> None:
        """Close the log and remove its folder, in the background. An error is a failure of the whole folder."""
        try:
            self._delete_log(topic, index)
        except (KafkaStorageError, OSError) as error:
            self.fail(error)

    def _delete_log(self, topic: str, index: int) -> None:
        partition = (topic, index)
        log = self.logs.pop(partition, None)
        self._forget(partition)
        if log is None:
            if self._files.exists(self.path / f"{topic}-{index}"):
                self._discard(self.path / f"{topic}-{index}")
            return
        self._flush_wanted.pop(log, None)
        self._unflushed_since_ms.pop(log, None)
        target = self._unique_name(log.name, DELETE_SUFFIX)
        log.delete(target)
        self._chores.add(partial(self._files.remove_tree, target))

    def _discard(self, folder: Path) -> None:
        target = self._unique_name(folder.name, DELETE_SUFFIX)
        self._files.rename(folder, target)
        self._chores.add(partial(self._files.remove_tree, target))

    def _unique_name(self, name: str, ending: str) -> Path:
        topic, _, index = name.rpartition("-")
        suffix = f"-{index}.{self._rng.randbytes(16).hex()}{ending}"
        return self.path / f"{topic[: _MAX_NAME_BYTES - len(suffix)]}{suffix}"

    def _forget(self, partition: Partition) -> None:
        self._unchecked.discard(partition)
        self._high_watermarks.forget(partition)
        for checkpoint in (self._recovery_points, self._log_starts):
            if checkpoint.forget(partition):
                self._outdated.add(partition)

    def _drop_outdated_offsets(self) -> None:
        """Store the checkpoints before a partition of a deleted one's name takes anything.

        Or else a crash, and the next start: the new log ends before the log start of the old one, and is emptied; or it
        ends before the old one's recovery point, and is believed unchecked.
        """
        for checkpoint in (self._recovery_points, self._log_starts):
            checkpoint.rewrite()()
        self._outdated.clear()

    # ---- failure

    def fail(self, error: BaseException) -> None:
        """Give the folder up: nothing more is written to it, and no log in it takes or gives anything."""
        if self.failure is not None:
            return
        self.failure = describe_failure(self.path, error, _free_bytes(self._files, self.path))
        reason = KafkaStorageError(self.failure)
        for log in self.logs.values():
            log.take_offline(reason)
        if self.on_failure is not None:
            self.on_failure(self.failure)

    def _background_done(self, error: BaseException | None) -> None:
        if isinstance(error, OSError | KafkaStorageError):
            self.fail(error)
        elif error is not None:
            logger.error("work on the data directory failed", exc_info=error)

    # ---- time

    def tick(self, now_ms: int) -> None:
        """Do what is due."""
        if self.failure is not None:
            return
        self._now_ms = now_ms
        wanted, self._flush_wanted = self._flush_wanted, {}
        for log in wanted:
            self._flush(log, log.active_segment_base_offset)
        if now_ms >= self._next_scan_ms:
            self._scan(now_ms)
        for duty in self._duties.due(now_ms):
            duty()
        if self._to_retain:
            self._retain()

    def deadline_ms(self) -> int | None:
        """When `tick` has something to do."""
        if self.failure is not None:
            return None
        if self._flush_wanted or self._to_retain:
            return self._now_ms
        return min(self._duties.next_ms, self._next_scan_ms)

    def _want_flush(self, log: PartitionLog) -> None:
        self._flush_wanted[log] = None

    def _scan(self, now_ms: int) -> None:
        """Look at every log for what comes due by itself: `flush.ms`, and deleted files whose delay is over."""
        interval_ms = _SCAN_INTERVAL_MS
        wall_ms = self._wall_ms()
        for log in self.logs.values():
            if log.config.flush_ms < INT64_MAX:
                interval_ms = min(interval_ms, max(log.config.flush_ms, _SHORTEST_SCAN_INTERVAL_MS))
                self._flush_by_time(log, now_ms)
            if log.next_doomed_ms is not None:
                for path in log.take_doomed(wall_ms):
                    self._chores.add(partial(self._files.remove, path))
        self._next_scan_ms = now_ms + interval_ms

    def _flush_by_time(self, log: PartitionLog, now_ms: int) -> None:
        if log.flushed_offset >= log.log_end_offset:
            self._unflushed_since_ms.pop(log, None)
        elif now_ms - self._unflushed_since_ms.setdefault(log, now_ms) >= log.config.flush_ms:
            self._unflushed_since_ms[log] = now_ms
            self._flush(log, None)

    def _flush(self, log: PartitionLog, upto_offset: int | None) -> None:
        if log in self._flushing:
            self._flush_wanted[log] = None
            return
        try:
            work = log.prepare_flush(upto_offset)
        except KafkaError:
            return  # it is offline, and has said so
        if work is None:
            return
        self._flushing.add(log)

        def done(error: BaseException | None) -> None:
            self._flushing.discard(log)
            if error is None:
                log.flush_done(work)
            else:
                log.flush_failed(error if isinstance(error, OSError) else OSError(str(error)))

        self.background(work.run, done)

    def _begin_retention(self) -> None:
        self._to_retain = list(self.logs.values())

    def _retain(self) -> None:
        """Delete the old segments of some logs; the others have their turn at the next tick."""
        portion, self._to_retain = self._to_retain[:_RETAINED_AT_ONCE], self._to_retain[_RETAINED_AT_ONCE:]
        for log in portion:
            try:
                log.delete_old_segments(self._wall_ms())
            except KafkaStorageError:
                return  # the folder has failed

    def _expire_producers(self) -> None:
        for log in self.logs.values():
            log.producers.remove_expired(self._wall_ms())

    # ---- checkpoints

    def _checkpoint_recovery_points(self) -> None:
        for log in self.logs.values():
            write = log.prepare_epochs()
            if write is not None:
                self._chores.add(write)
        self._store(self._recovery_points, {key: log.recovery_point for key, log in self.logs.items()})

    def _checkpoint_log_starts(self) -> None:
        self._store(self._log_starts, {key: log.log_start_offset for key, log in self.logs.items()})

    def _checkpoint_high_watermarks(self) -> None:
        self._store(self._high_watermarks, {key: log.high_watermark for key, log in self.logs.items()})

    def _store(self, checkpoint: OffsetCheckpoint, offsets: dict[Partition, int]) -> None:
        write = checkpoint.update(offsets)
        if write is not None:
            self.background(write, self._background_done)

    def _store_recovery_points_now(self, log: PartitionLog) -> None:
        write = self._recovery_points.update({key: other.recovery_point for key, other in self.logs.items()})
        if write is not None:
            write()

    # ---- the end

    def close(self) -> None:
        """Close all logs durably, write the checkpoints and the clean-shutdown marker, and give the folder back.

        If the folder has failed, or fails now, nothing is written.
        """
        logs, self.logs = self.logs, {}
        try:
            if self.failure is None:
                self._close_logs(logs)
        except (KafkaStorageError, OSError) as error:
            self.fail(error)
        finally:
            for log in logs.values():
                log.abandon()
            self._lock.release()

    def _close_logs(self, logs: dict[Partition, PartitionLog]) -> None:
        self._chores.finish()
        self._store_epochs()  # it may be that the broker never started
        waiting = list(logs.values())
        while waiting:  # each holds some descriptors until its fsyncs are done
            portion, waiting = waiting[:_CLOSED_AT_ONCE], waiting[_CLOSED_AT_ONCE:]
            works = [log.prepare_close() for log in portion]
            _side_by_side([work for work in works if work is not None])
        for checkpoint, offsets in (
            (self._recovery_points, {partition: log.log_end_offset for partition, log in logs.items()}),
            (self._log_starts, {partition: log.log_start_offset for partition, log in logs.items()}),
            (self._high_watermarks, {partition: log.high_watermark for partition, log in logs.items()}),
        ):
            write = checkpoint.update(offsets)
            if write is not None:
                write()
        if not self._unchecked:
            content = json.dumps({"version": 0, "brokerEpoch": -1}, separators=(",", ":"))
            self._files.replace(self.path / CLEAN_SHUTDOWN_MARKER, content.encode())


class _Duties:
    """Work that comes again after an interval."""

    def __init__(self, intervals: dict[Callable[[], None], int]) -> None:
        self._intervals = intervals
        self._next: dict[Callable[[], None], int] = {}
        self.next_ms = 0

    def due(self, now_ms: int) -> list[Callable[[], None]]:
        """What is due; it is due again one interval from now. The first call starts the clock."""
        if not self._next:
            self._next = {duty: now_ms + interval for duty, interval in self._intervals.items()}
        due = [duty for duty, at in self._next.items() if at <= now_ms]
        for duty in due:
            self._next[duty] = now_ms + self._intervals[duty]
        self.next_ms = min(self._next.values())
        return due


def _side_by_side(works: Sequence[Callable[[], None]]) -> None:
    """Do what blocks on several threads, where fsyncs share the journal's commits. Raises the first OSError."""
    if len(works) <= 1:
        for work in works:
            work()
        return
    with ThreadPoolExecutor(min(_FSYNC_THREADS, len(works)), thread_name_prefix="ottla-fsync") as threads:
        for _ in threads.map(lambda work: work(), works):
            pass


def run_at_once(work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
    """The background of a broker without a disk thread."""
    try:
        work()
    except OSError as error:
        done(error)
    else:
        done(None)


def _take(files: Files, folder: Path, address: str) -> FolderLock:
    try:
        if not folder.parent.is_dir():
            raise LogDirectoryError(f"data directory {folder} cannot be made: {folder.parent} is not a directory")
        folder.mkdir(exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise LogDirectoryError(f"data directory {folder} is not writable for this user")
        return FolderLock(folder, address)
    except FolderInUse as error:
        raise LogDirectoryError(
            f"data directory {folder} is in use by {error.owner}; stop it or choose another --data"
        ) from None
    except OSError as error:
        raise LogDirectoryError(describe_failure(folder, error, _free_bytes(files, folder.parent))) from error


def _free_bytes(files: Files, folder: Path) -> int | None:
    try:
        return files.free_bytes(folder)
    except OSError:
        return None
