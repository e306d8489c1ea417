"""ProducerBatch: records on their way to one partition, from the first append until all their futures are done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ottla.client.producer.producer_sequences import NO_PRODUCER, NO_SEQUENCE, ProducerIdAndEpoch
from ottla_wire.records import Compression, RecordBatchBuilder, SendFuture, iter_batches

if TYPE_CHECKING:
    from ottla.client.producer.record_accumulator import PartitionQueue

RECORD_OVERHEAD_BYTES: Final = 21
"""The most that a record without headers costs beside its key and value: its lengths, deltas and attributes."""

BATCH_OVERHEAD_BYTES: Final = 61


class ProducerBatch:
    """One batch.

    `memory_bytes` is what it counts for in `buffer_memory`. `on_wire` is true from the moment it is handed to a
    connection until its request has ended, however that may be; only then may its memory be given back. `in_doubt` is
    true once an attempt has ended in a way that leaves open whether the batch was stored.
    """

    __slots__ = (
        "attempts",
        "base_sequence",
        "builder",
        "created_ms",
        "in_doubt",
        "is_done",
        "is_split",
        "is_transactional",
        "jitter",
        "last_attempt_ms",
        "leader_epoch",
        "memory_bytes",
        "on_wire",
        "pause_ms",
        "producer",
        "queue",
        "sealed_bytes",
    )

    def __init__(self, queue: PartitionQueue, builder: RecordBatchBuilder, created_ms: int, memory_bytes: int) -> None:
        self.queue = queue
        self.builder = builder
        self.created_ms = created_ms
        self.memory_bytes = memory_bytes
        self.attempts = 0
        self.last_attempt_ms = created_ms
        self.leader_epoch = -1
        self.sealed_bytes = 0
        self.on_wire = False
        self.in_doubt = False
        self.is_done = False
        self.is_split = False
        self.is_transactional = False
        self.jitter = 1.0
        self.pause_ms: int | None = None
        self.producer: ProducerIdAndEpoch = NO_PRODUCER
        self.base_sequence = NO_SEQUENCE

    @property
    def count(self) -> int:
        """How many records it holds."""
        return self.builder.count

    @property
    def futures(self) -> Sequence[SendFuture]:
        """The futures of its records, in order."""
        return self.builder.futures

    @property
    def size_bytes(self) -> int:
        """Its size before compression, header included."""
        return self.sealed_bytes or self.builder.size_bytes

    @property
    def has_sequence(self) -> bool:
        """Whether it was sent before, as far as sequences are concerned."""
        return self.base_sequence != NO_SEQUENCE

    def encode(self) -> bytes:
        """The bytes to send, with its present sequence; it takes no record any more."""
        self.sealed_bytes = self.size_bytes  # the builder gives its memory back and no longer knows
        return self.builder.build(
            producer_id=self.producer.producer_id,
            producer_epoch=self.producer.epoch,
            base_sequence=self.base_sequence,
            transactional=self.is_transactional,
        )

    def split(self, target_bytes: int, compression: Compression, level: int | None) -> list[ProducerBatch]:
        """Its records in batches of at most `target_bytes`, each of at least one record; the futures move along."""
        (view,) = iter_batches(self.encode(), strict=True)
        parts: list[ProducerBatch] = []
        builder = None
        for record, future in zip(view.records(), self.builder.futures, strict=True):
            content = (record.timestamp_ms, record.key, record.value, record.headers)
            if builder is None or not builder.append_future(future, *content):
                builder = RecordBatchBuilder(target_bytes, compression=compression, level=level)
                fits = builder.append_future(future, *content)
                assert fits, "the first record of a batch always fits"
                part = ProducerBatch(self.queue, builder, self.created_ms, 0)
                part.attempts = self.attempts
                part.last_attempt_ms = self.last_attempt_ms
                part.is_split = True
                part.is_transactional = self.is_transactional
                parts.append(part)
        for part in parts:
            part.memory_bytes = part.size_bytes
        return parts

    def __repr__(self) -> str:
        return f"<ProducerBatch {self.queue} {self.count} records, sequence {self.base_sequence}>"


def record_size(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]] | None) -> int:
    """What a record takes in a batch, at most."""
    size = RECORD_OVERHEAD_BYTES + (len(key) if key is not None else 0) + (len(value) if value is not None else 0)
    for name, content in headers or ():
        size += 10 + 4 * len(name) + (len(content) if content is not None else 0)
    return size
