"""ProducerStates: what a partition knows of the producers that wrote into it: idempotence and open transactions.

Theory of operation. An append is checked against a copy of the producer's entry (`prepare`); only when the bytes are in
the log does the copy take the place of the entry (`commit`). So a refused or failed append leaves no trace. Recovery
and truncation rebuild the entries from the latest snapshot and the batches behind it: replay is the same `prepare` and
`commit` with the lenient origin REPLICATION.

A transaction is open from its first batch to its marker. After the marker it is *unreplicated* until the high watermark
has passed the marker; the first unstable offset is the first offset of the oldest transaction of either kind.
"""

from __future__ import annotations

import enum
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ottla_broker.log.batch import (
    CONTROL_BIT,
    MAX_SEQUENCE,
    NO_SEQUENCE,
    TRANSACTIONAL_BIT,
    BatchHeader,
    rewind_sequence,
)
from ottla_wire.errors import (
    InvalidProducerEpoch,
    InvalidTxnState,
    OutOfOrderSequenceNumber,
    TransactionCoordinatorFenced,
)

logger = logging.getLogger(__name__)

BATCHES_KEPT = 5
NO_EPOCH = -1
NO_OFFSET = -1
MAX_PRODUCER_EPOCH = 2**15 - 1


class AppendOrigin(enum.Enum):
    """Who appends, and so how much is checked."""

    CLIENT = "client"
    COORDINATOR = "coordinator"
    REPLICATION = "replication"
    RAFT_LEADER = "raft leader"


class SequenceRange(NamedTuple):
    """One of the last batches of a producer."""

    first_sequence: int
    last_sequence: int
    first_offset: int
    last_offset: int
    timestamp_ms: int


class EndMarker(NamedTuple):
    """The content of a transaction marker."""

    is_abort: bool
    coordinator_epoch: int


class CompletedTxn(NamedTuple):
    """A transaction that a marker has ended."""

    producer_id: int
    first_offset: int
    last_offset: int
    is_aborted: bool


@dataclass(slots=True)
class ProducerState:
    """One producer, as this partition knows it. -1 stands for none."""

    producer_id: int
    epoch: int = NO_EPOCH
    coordinator_epoch: int = -1
    last_timestamp_ms: int = -1
    current_txn_first_offset: int = NO_OFFSET
    batches: deque[SequenceRange] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.batches is None:
            self.batches = deque(maxlen=BATCHES_KEPT)

    @property
    def last_sequence(self) -> int:
        """Sequence of the last record, -1 if none is known in this epoch."""
        return self.batches[-1].last_sequence if self.batches else NO_SEQUENCE

    @property
    def last_offset(self) -> int:
        """Offset of the last record, -1 if none is known in this epoch."""
        return self.batches[-1].last_offset if self.batches else NO_OFFSET

    def copy(self) -> ProducerState:
        """A copy that can be changed without changing this one."""
        return ProducerState(
            self.producer_id,
            self.epoch,
            self.coordinator_epoch,
            self.last_timestamp_ms,
            self.current_txn_first_offset,
            self.batches.copy(),
        )

    def set_epoch(self, epoch: int) -> None:
        """Take over an epoch; another epoch starts with an empty window."""
        if epoch != self.epoch:
            self.batches.clear()
            self.epoch = epoch


@dataclass(slots=True)
class Verification:
    """A transaction that is being verified with its coordinator (KIP-890), until its first append.

    The object itself is the guard: an append must present the very one that is still kept here. A marker that is
    written in between removes it, so that a late batch of the ended transaction finds nothing to match.
    """

    started_ms: int
    lowest_sequence: int
    epoch: int
    supports_epoch_bump: bool


class PreparedAppend:
    """Entries as they will be once the batches are in the log."""

    __slots__ = ("completed", "entries", "finished_verifications", "started")

    def __init__(self) -> None:
        self.entries: dict[int, ProducerState] = {}
        self.started: list[tuple[int, int]] = []  # (first offset, producer id)
        self.completed: list[CompletedTxn] = []
        self.finished_verifications: list[int] = []


class ProducerStates:
    """All producers of one partition."""

    def __init__(self, name: str, expiration_ms: int, *, require_verification: bool = False) -> None:
        self.name = name
        self.expiration_ms = expiration_ms
        self.require_verification = require_verification
        self.entries: dict[int, ProducerState] = {}
        self._open: dict[int, int] = {}  # first offset -> producer id, ascending: offsets only grow
        self._unreplicated: dict[int, int] = {}  # first offset -> offset of the marker
        self._verifications: dict[int, Verification] = {}

    def __iter__(self) -> Iterator[ProducerState]:
        """All entries (DescribeProducers)."""
        return iter(self.entries.values())

    def __len__(self) -> int:
        return len(self.entries)

    # ---- questions

    def get(self, producer_id: int) -> ProducerState | None:
        """What is known of a producer."""
        return self.entries.get(producer_id)

    def find_duplicate(self, batch: BatchHeader) -> SequenceRange | None:
        """The batch with exactly these sequences, if it is among the last five of the same epoch."""
        entry = self.entries.get(batch.producer_id)
        if entry is None or entry.epoch != batch.producer_epoch:
            return None
        first, last = batch.base_sequence, batch.last_sequence
        for known in entry.batches:
            if known.first_sequence == first and known.last_sequence == last:
                return known
        return None

    def has_open_transaction(self, producer_id: int, epoch: int) -> bool:
        """Whether a transaction of exactly this producer and epoch is open here."""
        entry = self.entries.get(producer_id)
        return entry is not None and entry.current_txn_first_offset >= 0 and entry.epoch == epoch

    @property
    def open_transactions(self) -> dict[int, int]:
        """First offset -> producer id of every open transaction."""
        return dict(self._open)

    @property
    def first_undecided_offset(self) -> int | None:
        """First offset of the oldest open transaction."""
        return min(self._open, default=None)

    @property
    def first_unstable_offset(self) -> int | None:
        """First offset of the oldest transaction that is open, or whose marker the high watermark has not passed."""
        if not self._open and not self._unreplicated:
            return None
        return min(min(self._open, default=2**63), min(self._unreplicated, default=2**63))

    def last_stable_offset_after(self, completed: CompletedTxn) -> int:
        """What is stable once this transaction has ended: up to the oldest other open one, else up to its marker."""
        others = (first for first, producer_id in self._open.items() if producer_id != completed.producer_id)
        return min(others, default=completed.last_offset + 1)

    # ---- verification (KIP-890)

    def start_verification(
        self, producer_id: int, epoch: int, sequence: int, now_ms: int, *, supports_epoch_bump: bool
    ) -> Verification | None:
        """The guard to present with the append; None if the transaction is open here already and needs none.

        The lowest sequence seen is remembered, so that a later batch that overtakes a retried earlier one is refused.
        Raises InvalidProducerEpoch: the coordinator need not be asked about a producer that is fenced here.
        """
        entry = self.entries.get(producer_id)
        if entry is not None:
            if epoch < entry.epoch:
                raise InvalidProducerEpoch(
                    f"producer {producer_id} in {self.name}: epoch {epoch} is below {entry.epoch}"
                )
            if entry.current_txn_first_offset >= 0 and entry.epoch == epoch:
                return None
        guard = self._verifications.get(producer_id)
        if guard is None:
            guard = self._verifications[producer_id] = Verification(now_ms, sequence, epoch, supports_epoch_bump)
        elif epoch > guard.epoch:
            guard.epoch, guard.lowest_sequence = epoch, sequence
        elif epoch == guard.epoch and sequence < guard.lowest_sequence:
            guard.lowest_sequence = sequence
        return guard

    def verification(self, producer_id: int) -> Verification | None:
        """The guard that is current for a producer."""
        return self._verifications.get(producer_id)

    # ---- change

    def prepare(
        self,
        prepared: PreparedAppend,
        batch: BatchHeader,
        origin: AppendOrigin,
        *,
        marker: EndMarker | None = None,
        guard: Verification | None = None,
        transaction_version: int = 0,
    ) -> None:
        """Check one batch that has its final offsets, and note what it changes.

        Raises InvalidProducerEpoch, OutOfOrderSequenceNumber, InvalidTxnState, TransactionCoordinatorFenced.
        """
        producer_id = batch.producer_id
        entry = prepared.entries.get(producer_id)
        if entry is None:
            known = self.entries.get(producer_id)
            entry = prepared.entries[producer_id] = ProducerState(producer_id) if known is None else known.copy()
        is_transactional = batch.attributes & TRANSACTIONAL_BIT
        if is_transactional:
            self._check_verified(entry, batch, origin, guard)
        if batch.attributes & CONTROL_BIT:
            if marker is not None:
                self._prepare_marker(prepared, entry, batch, marker, origin, transaction_version)
        else:
            self._prepare_data(prepared, entry, batch, origin)
        if is_transactional and not self._is_next_transaction_under_way(batch):
            prepared.finished_verifications.append(producer_id)

    def _check_verified(
        self, entry: ProducerState, batch: BatchHeader, origin: AppendOrigin, guard: Verification | None
    ) -> None:
        if origin is AppendOrigin.REPLICATION or origin is AppendOrigin.RAFT_LEADER:
            return
        if entry.current_txn_first_offset >= 0 and entry.epoch == batch.producer_epoch:
            return
        if batch.producer_epoch < entry.epoch:
            raise InvalidProducerEpoch(self._about(batch, f"epoch {batch.producer_epoch} is below {entry.epoch}"))
        if self.require_verification and not batch.is_control:
            current = self._verifications.get(batch.producer_id)
            if current is None or current is not guard:
                raise InvalidTxnState(self._about(batch, "the record is not part of an ongoing transaction"))

    def _is_next_transaction_under_way(self, batch: BatchHeader) -> bool:
        # A marker of transactions v2 carries the bumped epoch; if the producer's next transaction, with that same
        # epoch, is being verified already, its guard is not about the transaction this marker ends.
        current = self._verifications.get(batch.producer_id)
        return (
            current is not None
            and current.supports_epoch_bump
            and batch.is_control
            and batch.producer_epoch == current.epoch
        )

    def _prepare_data(
        self, prepared: PreparedAppend, entry: ProducerState, batch: BatchHeader, origin: AppendOrigin
    ) -> None:
        epoch = batch.producer_epoch
        if epoch < entry.epoch:
            message = self._about(batch, f"epoch {epoch} is below {entry.epoch}")
            if origin is not AppendOrigin.REPLICATION:
                raise InvalidProducerEpoch(message)
            logger.warning("%s", message)
        if origin is AppendOrigin.CLIENT:
            self._check_sequence(entry, batch)
        entry.set_epoch(epoch)
        last_offset = batch.last_offset
        entry.batches.append(
            SequenceRange(
                batch.base_sequence, batch.last_sequence, batch.base_offset, last_offset, batch.max_timestamp_ms
            )
        )
        entry.last_timestamp_ms = batch.max_timestamp_ms
        if entry.current_txn_first_offset >= 0:
            if not batch.is_transactional:
                message = self._about(batch, "a transaction is open, but the batch is not part of one")
                if origin is not AppendOrigin.REPLICATION:
                    raise InvalidTxnState(message)
                logger.warning("%s", message)  # it is in the log; a replica cannot refuse it
        elif batch.is_transactional:
            entry.current_txn_first_offset = batch.base_offset
            prepared.started.append((batch.base_offset, batch.producer_id))

    def _check_sequence(self, entry: ProducerState, batch: BatchHeader) -> None:
        first = batch.base_sequence
        verification = self._verifications.get(batch.producer_id)
        if verification is not None:
            if verification.supports_epoch_bump and first != 0 and not entry.batches:
                raise OutOfOrderSequenceNumber(
                    self._about(batch, f"sequence {first} without a batch before it; a transaction starts at 0")
                )
            if first > verification.lowest_sequence:
                raise OutOfOrderSequenceNumber(
                    self._about(batch, f"sequence {first}, but {verification.lowest_sequence} is still to come")
                )
        if entry.epoch == NO_EPOCH:
            return
        if batch.producer_epoch != entry.epoch:
            if first != 0:
                raise OutOfOrderSequenceNumber(
                    self._about(batch, f"epoch {batch.producer_epoch} starts at sequence {first} instead of 0")
                )
            return
        last = entry.last_sequence
        if first != last + 1 and not (first == 0 and last == MAX_SEQUENCE):
            raise OutOfOrderSequenceNumber(self._about(batch, f"sequence {first} follows {last}"))

    def _prepare_marker(
        self,
        prepared: PreparedAppend,
        entry: ProducerState,
        batch: BatchHeader,
        marker: EndMarker,
        origin: AppendOrigin,
        transaction_version: int,
    ) -> None:
        if origin is not AppendOrigin.REPLICATION:
            self._check_marker_epoch(entry, batch, transaction_version)
            if marker.coordinator_epoch < entry.coordinator_epoch:
                raise TransactionCoordinatorFenced(
                    self._about(
                        batch, f"coordinator epoch {marker.coordinator_epoch} is below {entry.coordinator_epoch}"
                    )
                )
        if entry.current_txn_first_offset >= 0:
            prepared.completed.append(
                CompletedTxn(
                    batch.producer_id, entry.current_txn_first_offset, batch.base_offset, is_aborted=marker.is_abort
                )
            )
        entry.set_epoch(batch.producer_epoch)
        entry.coordinator_epoch = marker.coordinator_epoch
        entry.current_txn_first_offset = NO_OFFSET
        entry.last_timestamp_ms = batch.max_timestamp_ms

    def _check_marker_epoch(self, entry: ProducerState, batch: BatchHeader, transaction_version: int) -> None:
        epoch = batch.producer_epoch
        if transaction_version < 2:
            if epoch < entry.epoch:
                raise InvalidProducerEpoch(self._about(batch, f"the marker's epoch {epoch} is below {entry.epoch}"))
        elif epoch <= entry.epoch:
            # the coordinator repeats a marker whose answer it did not get: the transaction is over, the epoch is the
            # bumped one
            is_retry = epoch == entry.epoch and (entry.current_txn_first_offset < 0 or epoch == MAX_PRODUCER_EPOCH)
            if not is_retry:
                raise InvalidProducerEpoch(self._about(batch, f"the marker's epoch {epoch} is not above {entry.epoch}"))

    def commit(self, prepared: PreparedAppend) -> None:
        """The prepared batches are in the log. `end` has to follow for each transaction they completed."""
        self.entries.update(prepared.entries)
        for first_offset, producer_id in prepared.started:
            self._open[first_offset] = producer_id
        for producer_id in prepared.finished_verifications:
            self._verifications.pop(producer_id, None)

    def end(self, completed: CompletedTxn) -> None:
        """A transaction is no longer open; it is unstable until the high watermark has passed its marker."""
        self._open.pop(completed.first_offset, None)
        self._unreplicated[completed.first_offset] = completed.last_offset

    def forget_unreplicated(self, below_offset: int) -> None:
        """Transactions whose marker is below the high watermark (or the log's start) are stable."""
        if self._unreplicated:
            for first in [first for first, marker in self._unreplicated.items() if marker < below_offset]:
                del self._unreplicated[first]

    def remove_expired(self, now_ms: int) -> None:
        """Forget producers that wrote nothing for `producer.id.expiration.ms`, by the time of their records.

        Not while a transaction is open.
        """
        expired = [entry.producer_id for entry in self.entries.values() if self.is_expired(entry, now_ms)]
        for producer_id in expired:
            del self.entries[producer_id]
        stale = [pid for pid, guard in self._verifications.items() if now_ms - guard.started_ms >= self.expiration_ms]
        for producer_id in stale:
            del self._verifications[producer_id]

    def is_expired(self, entry: ProducerState, now_ms: int) -> bool:
        """Whether an entry may be forgotten."""
        return entry.current_txn_first_offset < 0 and now_ms - entry.last_timestamp_ms >= self.expiration_ms

    def clear(self) -> None:
        """Forget everything but the verifications under way."""
        self.entries.clear()
        self._open.clear()
        self._unreplicated.clear()

    def restore(self, entry: ProducerState) -> None:
        """Take over an entry of a snapshot."""
        self.entries[entry.producer_id] = entry
        if entry.current_txn_first_offset >= 0:
            self._open[entry.current_txn_first_offset] = entry.producer_id

    def _about(self, batch: BatchHeader, what: str) -> str:
        return f"producer {batch.producer_id} in {self.name} at offset {batch.base_offset}: {what}"


def snapshot_range(last_sequence: int, last_offset: int, offset_delta: int, timestamp_ms: int) -> SequenceRange:
    """The one batch a snapshot keeps of a producer."""
    first_sequence = NO_SEQUENCE if last_sequence == NO_SEQUENCE else rewind_sequence(last_sequence, offset_delta)
    return SequenceRange(first_sequence, last_sequence, last_offset - offset_delta, last_offset, timestamp_ms)
