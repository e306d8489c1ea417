"""Sequences: the numbers by which a broker recognises the retry of a batch that it has stored already. Sans-I/O.

Theory of operation. Per partition a broker knows a producer's epoch and its last five batches, and takes a batch only
if its first sequence follows on the last one. So batches are numbered when they are sent for the first time, and keep
their number through every retry: a retry of a stored batch is recognised, a batch after a missing one is refused
(OUT_OF_ORDER_SEQUENCE_NUMBER) until the missing one is there.

A batch that is given up (expired, refused for good) leaves its number *unresolved*: whether it was stored may not be
known. Until that is settled no new batch of the partition is numbered. It is settled in one of three ways:

- a later batch is acknowledged: then the one given up had been stored after all, nothing is missing;
- the batch right after it is refused as out of order: then it had not been stored, there is a gap;
- nothing of the partition is under way any more: there is a gap, unless the last number was acknowledged.

A gap is closed by a *restart*: the producer's epoch grows by one, and what is under way for the partition is numbered
anew from 0. No request is needed for that (idempotent producers only; a transactional one aborts, and has a new epoch
afterwards, in which all partitions `start_over`). A restart waits until none of the partition's batches is on the wire,
and until those before the gap are settled under their old number: otherwise this would happen:

1. batch A is stored, but answered with NOT_ENOUGH_REPLICAS_AFTER_APPEND, and waits for its retry;
2. batch B behind it is refused for good, and its number is missing;
3. A is numbered anew in the new epoch, retried, and stored a second time.

A broker that knows nothing of a producer takes any sequence for the first one. So until the first batch of a partition
is acknowledged no second one is sent, or this would happen:

1. batches A and B are under way to a new partition; A is not stored (NOT_ENOUGH_REPLICAS), B is, although it is second;
2. A's retry is out of order, and begins a restart;
3. A and B are sent anew, and stored: B for the second time.

Other partitions go on under the old epoch with what they have under way, and take the new one when that is done.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final, NamedTuple, Protocol

SEQUENCES: Final = 1 << 31
"""Sequences run from 0 to 2^31 - 1, and then from 0 again."""

NO_SEQUENCE: Final = -1


class ProducerIdAndEpoch(NamedTuple):
    """Who writes: an id that the cluster gave, and which life of it."""

    producer_id: int
    epoch: int

    @property
    def is_valid(self) -> bool:
        """Whether the cluster has given an id."""
        return self.producer_id >= 0


NO_PRODUCER: Final = ProducerIdAndEpoch(-1, -1)


class SequencedBatch(Protocol):
    """What this module needs of a batch."""

    producer: ProducerIdAndEpoch
    base_sequence: int
    on_wire: bool

    @property
    def count(self) -> int: ...  # noqa: D102


def sequence_after(sequence: int, count: int) -> int:
    """The sequence `count` after `sequence`; after the last one comes 0."""
    return (sequence + count) % SEQUENCES


def last_sequence(batch: SequencedBatch) -> int:
    """The sequence of a batch's last record."""
    return sequence_after(batch.base_sequence, batch.count - 1)


def _is_before(sequence: int, other: int) -> bool:
    """Whether `sequence` comes before `other`, which is never as far away as half of all sequences."""
    return 0 < (other - sequence) % SEQUENCES < SEQUENCES // 2


class PartitionSequences:
    """The sequences of one partition."""

    __slots__ = (
        "in_flight",
        "last_acked",
        "last_acked_offset",
        "next_sequence",
        "producer",
        "restart_requested",
        "settle_first",
        "unresolved_after",
    )

    def __init__(self, producer: ProducerIdAndEpoch) -> None:
        self.in_flight: list[SequencedBatch] = []  # numbered and not finished: on the wire, or waiting for a retry
        self.start(producer)
        self.last_acked_offset = -1

    def start(self, producer: ProducerIdAndEpoch) -> None:
        """Number from 0 under this producer, beginning with what is under way."""
        self.producer = producer
        self.next_sequence = 0
        self.last_acked = NO_SEQUENCE
        self.unresolved_after: int | None = None
        self.restart_requested = False
        self.settle_first: list[SequencedBatch] = []
        for batch in self.in_flight:
            assert not batch.on_wire, "a batch on the wire is not numbered anew"
            self._number(batch)

    def number(self, batch: SequencedBatch) -> None:
        """A batch leaves for the first time."""
        self._number(batch)
        self.in_flight.append(batch)

    def _number(self, batch: SequencedBatch) -> None:
        batch.producer = self.producer
        batch.base_sequence = self.next_sequence
        self.next_sequence = sequence_after(self.next_sequence, batch.count)

    def is_next(self, sequence: int) -> bool:
        """Whether a batch that begins with `sequence` follows on the last one that was acknowledged."""
        expected = 0 if self.last_acked == NO_SEQUENCE else sequence_after(self.last_acked, 1)
        return sequence == expected

    def acked(self, batch: SequencedBatch, base_offset: int) -> None:
        """A batch is stored. The broker took it, so everything before it is stored as well."""
        self.in_flight.remove(batch)
        last = last_sequence(batch)
        if self.last_acked == NO_SEQUENCE or _is_before(self.last_acked, last):
            self.last_acked = last
        if self.unresolved_after is not None and not _is_before(last, self.unresolved_after):
            self.unresolved_after = None  # what was in doubt lies before, so it is stored
        if base_offset >= 0:
            self.last_acked_offset = max(self.last_acked_offset, base_offset + batch.count - 1)

    def given_up(self, batch: SequencedBatch) -> None:
        """A batch failed for good; its number is in doubt."""
        self.in_flight.remove(batch)
        after = sequence_after(last_sequence(batch), 1)
        # Several in doubt: what follows on the last of them tells about all.
        if self.unresolved_after is None or not _is_before(after, self.unresolved_after):
            self.unresolved_after = after

    def replace(self, batch: SequencedBatch, parts: Iterable[SequencedBatch]) -> None:
        """A batch was too large and is sent in parts, which share its sequences among them."""
        position = self.in_flight.index(batch)
        sequence = batch.base_sequence
        numbered = []
        for part in parts:
            part.producer = batch.producer
            part.base_sequence = sequence
            sequence = sequence_after(sequence, part.count)
            numbered.append(part)
        self.in_flight[position : position + 1] = numbered
        if batch in self.settle_first:
            at = self.settle_first.index(batch)
            self.settle_first[at : at + 1] = numbered

    def request_restart(self, gap: SequencedBatch | None) -> None:
        """There is a gap right before `gap`, or after everything that was sent."""
        before = self.in_flight[: self.in_flight.index(gap)] if gap is not None else []
        if self.restart_requested:
            before = [batch for batch in self.settle_first if batch in before]
        self.restart_requested = True
        self.settle_first = before

    @property
    def may_restart(self) -> bool:
        """Whether the restart that was requested can be made now."""
        if any(batch.on_wire for batch in self.in_flight):
            return False
        return not any(batch in self.in_flight for batch in self.settle_first)


class ProducerSequences:
    """The sequences of all partitions that a producer writes to."""

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        self._partitions: dict[Hashable, PartitionSequences] = {}
        self._unsettled: set[Hashable] = set()  # those with something in doubt, or a restart to come

    def start_over(self) -> None:
        """A new epoch, in which every partition is numbered from 0. Nothing is under way."""
        assert not any(state.in_flight for state in self._partitions.values()), "a batch keeps its epoch"
        self._partitions.clear()
        self._unsettled.clear()

    def of(self, partition: Hashable) -> PartitionSequences | None:
        """The state of a partition; None if nothing was sent there yet."""
        return self._partitions.get(partition)

    def may_send(self, partition: Hashable, batch: SequencedBatch, producer: ProducerIdAndEpoch) -> bool:
        """Whether a batch at the head of its partition's queue may leave now."""
        state = self._partitions.get(partition)
        if state is None:
            return True
        if batch.base_sequence != NO_SEQUENCE:
            # A retry: one at a time and in order, or the broker would refuse those behind it.
            if state.in_flight[0] is not batch:
                return False
            return not state.restart_requested or batch in state.settle_first
        if state.restart_requested or state.unresolved_after is not None:
            return False
        if state.in_flight and state.producer != producer:
            return False
        if state.last_acked == NO_SEQUENCE and state.in_flight:
            return False  # the first one goes alone, see above
        # The brokers' window is five batches, wherever they were sent to: also across a change of leader.
        return len(state.in_flight) < self._max_in_flight

    def number(self, partition: Hashable, batch: SequencedBatch, producer: ProducerIdAndEpoch) -> None:
        """A batch leaves for the first time: give it its sequence."""
        state = self._partitions.get(partition)
        if state is None:
            state = self._partitions[partition] = PartitionSequences(producer)
        elif state.producer != producer:
            assert not state.in_flight
            state.start(producer)
        state.number(batch)

    def acked(self, partition: Hashable, batch: SequencedBatch, base_offset: int) -> None:
        """A batch is stored."""
        self._partitions[partition].acked(batch, base_offset)

    def given_up(self, partition: Hashable, batch: SequencedBatch) -> None:
        """A batch that was sent failed for good."""
        self._partitions[partition].given_up(batch)
        self._unsettled.add(partition)

    def request_restart(self, partition: Hashable, gap: SequencedBatch | None) -> None:
        """Numbers are missing before `gap`: number anew as soon as that is safe."""
        self._partitions[partition].request_restart(gap)
        self._unsettled.add(partition)

    def due_for_restart(self) -> list[Hashable]:
        """Settle what is in doubt as far as it can be; returns the partitions that can be restarted now."""
        due = []
        for partition in list(self._unsettled):
            state = self._partitions[partition]
            if not state.restart_requested and not state.in_flight:
                if state.is_next(state.next_sequence):
                    state.unresolved_after = None
                else:
                    state.request_restart(None)
            if state.restart_requested:
                if state.may_restart:
                    due.append(partition)
            elif state.unresolved_after is None:
                self._unsettled.discard(partition)
        return due

    def restart(self, partition: Hashable, producer: ProducerIdAndEpoch) -> None:
        """Number a partition anew."""
        self._partitions[partition].start(producer)
        self._unsettled.discard(partition)
