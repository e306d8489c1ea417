"""FileMetadataLog: `__cluster_metadata-0` on this node's disk, for a quorum of one.

Opening it wins the election: the next epoch is written to quorum-state, and a LeaderChange control record starts it in
the log. From then on a batch is committed when `append` has fsynced it. What a crash leaves unfinished at the end is
cut off when the log is opened again; it was never answered. The fsync happens on the calling thread: metadata changes
are rare, about a millisecond each, and nothing may be answered before it anyway.

The files are Kafka's, so `dump-log --cluster-metadata-decoder` shows them. The log is kept whole and replayed from its
start; snapshots, and with them the deletion of old records, are later work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ottla_broker.controller.quorum_state import QuorumState, read_quorum_state, write_quorum_state
from ottla_broker.controller.records import (
    CLUSTER_METADATA_TOPIC,
    CLUSTER_METADATA_TOPIC_ID,
    MetadataRecord,
    decode_record,
    encode_record,
)
from ottla_broker.log.config import INT64_MAX, LogConfig
from ottla_broker.log.files import Files
from ottla_broker.log.partition_log import PartitionLog
from ottla_broker.log.producer_state import AppendOrigin
from ottla_wire.errors import KafkaStorageError
from ottla_wire.messages.control_records import LeaderChangeMessage, Voter
from ottla_wire.records import ControlType, build_batch, control_batch, iter_batches
from ottla_wire.schema import Uuid

FOLDER_NAME: Final = f"{CLUSTER_METADATA_TOPIC}-0"
_READ_BYTES: Final = 1024 * 1024

# Nothing but the controller writes here, and nothing is deleted by age or size.
_CONFIG: Final = LogConfig(
    cleanup_policy=(),
    max_message_bytes=2**31 - 1,
    message_timestamp_after_max_ms=INT64_MAX,
    retention_ms=-1,
)


class FileMetadataLog:
    """The metadata log of a node that is the only voter. Made by `open`.

    Attributes:
        node_id: this node.
        leader_epoch: the epoch that this run leads.
    """

    def __init__(self, log: PartitionLog, node_id: int, leader_epoch: int, wall_ms: Callable[[], int]) -> None:
        self.node_id = node_id
        self.leader_epoch = leader_epoch
        self._log = log
        self._wall_ms = wall_ms
        self._callbacks: list[Callable[[int], None]] = []

    @classmethod
    def open(
        cls,
        files: Files,
        data: Path,
        *,
        node_id: int,
        directory_id: Uuid,
        wall_ms: Callable[[], int],
        on_offline: Callable[[KafkaStorageError], None] | None = None,
    ) -> FileMetadataLog:
        """Open or create the log in the data folder, and begin a new epoch.

        Args:
            data: the folder of all logs (`log.dirs`), held by this process.
            directory_id: the id of that folder, from meta.properties.
            wall_ms: the clock of record timestamps.
            on_offline: told when the log, once it is open, can be read and written no longer.

        Raises:
            KafkaStorageError: the log cannot be read or written.
        """
        folder = data / FOLDER_NAME
        log = PartitionLog.open(
            files, folder, CLUSTER_METADATA_TOPIC, 0, CLUSTER_METADATA_TOPIC_ID, _CONFIG, now_ms=wall_ms()
        )
        last = read_quorum_state(files, folder)
        epoch = max(last.leader_epoch, log.leader_epochs.latest or 0) + 1
        try:
            write_quorum_state(files, folder, QuorumState(epoch, node_id, node_id, directory_id))
        except OSError as error:
            raise KafkaStorageError(f"the vote for epoch {epoch} cannot be written to {folder}: {error}") from error
        log.on_offline = on_offline
        opened = cls(log, node_id, epoch, wall_ms)
        opened._begin_epoch()
        return opened

    def _begin_epoch(self) -> None:
        voters = [Voter(voter_id=self.node_id)]
        message = LeaderChangeMessage(version=0, leader_id=self.node_id, voters=voters, granting_voters=voters)
        records = [(ControlType.LEADER_CHANGE, message.encode(0))]
        self._write(control_batch(records, timestamp_ms=self._wall_ms()))

    @property
    def end_offset(self) -> int:
        """The offset the next record gets."""
        return self._log.log_end_offset

    @property
    def committed_offset(self) -> int:
        """The end of what is on the disk."""
        return self._log.high_watermark

    def append(self, records: Sequence[MetadataRecord]) -> int:
        """Append the records as one batch and fsync it; returns the offset of the first.

        Raises:
            KafkaStorageError: it is not known what is on the disk; every later append fails, too.
        """
        timestamp_ms = self._wall_ms()
        first = self._write(build_batch([(timestamp_ms, None, encode_record(record), ()) for record in records]))
        for callback in self._callbacks:
            callback(self.committed_offset)
        return first

    def _write(self, batch: bytes) -> int:
        info = self._log.append(
            bytearray(batch), leader_epoch=self.leader_epoch, now_ms=self._wall_ms(), origin=AppendOrigin.RAFT_LEADER
        )
        self._log.flush()
        self._log.high_watermark_moved(self._log.log_end_offset)
        return info.first_offset

    def read(self) -> Iterator[tuple[int, MetadataRecord]]:
        """All metadata records, oldest first, with their offsets."""
        offset = self._log.log_start_offset
        while offset < self._log.high_watermark:
            found = self._log.read(offset, _READ_BYTES, upper_offset=self._log.high_watermark, at_least_one=True)
            for batch in iter_batches(found.records):
                if not batch.is_control:
                    for record in batch.records():
                        assert record.value is not None, f"metadata record {record.offset} has no value"
                        yield record.offset, decode_record(record.value)
            assert found.next_offset > offset, "the metadata log has a hole"
            offset = found.next_offset

    def on_commit(self, callback: Callable[[int], None]) -> None:
        """Call back with the committed offset whenever it moves."""
        self._callbacks.append(callback)

    def take_offline(self, reason: KafkaStorageError) -> None:
        """Append nothing any more: the folder that the log lies in has failed elsewhere."""
        self._log.take_offline(reason)

    def close(self) -> None:
        """Let go of the files. `on_offline` hears of what cannot be written; it is made anew when the log is opened."""
        try:
            self._log.close()
        except KafkaStorageError:
            self._log.abandon()
