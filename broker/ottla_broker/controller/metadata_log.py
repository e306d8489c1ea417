"""MetadataLog: what the controller needs of the log it is the state machine of.

The contract is Raft's as a leader sees it: `append` gives the records their offsets at once, and
`committed_offset` passes them when a majority has them on disk. With a quorum of one that has happened when `append`
returns; with more voters it happens later, and the log calls `on_commit`. The controller answers nobody before.

Snapshots (`.checkpoint` files) are later work: the log is replayed from its first record. A replayed record costs some
microseconds, see tests/broker/controller for the figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from ottla_broker.controller.records import MetadataRecord, decode_record, encode_record


class MetadataLog(Protocol):
    """The log of metadata records of one node."""

    @property
    def node_id(self) -> int:
        """This node."""
        ...

    @property
    def leader_epoch(self) -> int:
        """The epoch in which this node leads."""
        ...

    @property
    def end_offset(self) -> int:
        """The offset the next record gets."""
        ...

    @property
    def committed_offset(self) -> int:
        """Records below it are on the disks of a majority: the high watermark."""
        ...

    def append(self, records: Sequence[MetadataRecord]) -> int:
        """Append the records as one batch; returns the offset of the first.

        They become durable together or not at all.

        Raises:
            KafkaStorageError: nothing was appended, and this node can go on no longer.
        """
        ...

    def read(self) -> Iterator[tuple[int, MetadataRecord]]:
        """All committed records, oldest first, with their offsets."""
        ...

    def on_commit(self, callback: Callable[[int], None]) -> None:
        """Call back with the committed offset whenever it moves."""
        ...


class MemoryMetadataLog:
    """A metadata log that is gone with its process: for tests, a quorum of one.

    Records are kept in their encoded form, so that what a test reads back went through the codec. With `hold` commits
    wait for `commit_all`, as they do with more than one voter.
    """

    def __init__(self, node_id: int = 1, leader_epoch: int = 1, *, hold: bool = False) -> None:
        self.node_id = node_id
        self.leader_epoch = leader_epoch
        self.committed_offset = 0
        self.batches: list[list[bytes]] = []
        self._hold = hold
        self._end_offset = 0
        self._callbacks: list[Callable[[int], None]] = []

    @property
    def end_offset(self) -> int:
        """The offset the next record gets."""
        return self._end_offset

    def append(self, records: Sequence[MetadataRecord]) -> int:
        """Append and, unless held, commit."""
        first = self._end_offset
        self.batches.append([encode_record(record) for record in records])
        self._end_offset += len(records)
        if not self._hold:
            self.commit_all()
        return first

    def commit_all(self) -> None:
        """Let everything be committed that was appended."""
        self.committed_offset = self._end_offset
        for callback in self._callbacks:
            callback(self.committed_offset)

    def read(self) -> Iterator[tuple[int, MetadataRecord]]:
        """All records, oldest first."""
        values = [value for batch in self.batches for value in batch]
        for offset, value in enumerate(values[: self.committed_offset]):
            yield offset, decode_record(value)

    def on_commit(self, callback: Callable[[int], None]) -> None:
        """Call back with the committed offset whenever it moves."""
        self._callbacks.append(callback)

    def reopened(self) -> MemoryMetadataLog:
        """The same log after a restart: one epoch later, with what was committed."""
        log = MemoryMetadataLog(self.node_id, self.leader_epoch + 1)
        log.batches = list(self.batches)
        log._end_offset = log.committed_offset = self.committed_offset
        return log
