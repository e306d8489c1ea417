"""Record batches (magic 2): read, verify, patch in place, build.

A broker handles whole batches: it reads headers, checks the CRC, writes its offset and leader epoch over the
producer's, which the CRC does not cover, and stores the bytes as they came. Records are decoded where somebody asks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from ottla_wire.errors import CorruptMessage, InvalidRecord, UnsupportedCompressionType
from ottla_wire.records import kernel
from ottla_wire.records.compression import MAX_DECOMPRESSED_BYTES, check_level, compress, decompress
from ottla_wire.records.kernel import ConsumerRecord, Record
from ottla_wire.records.model import Compression, TimestampType

Buffer = bytes | bytearray | memoryview

HEADER_BYTES = 61
"""The size of a batch without records."""

NO_TIMESTAMP = -1

_CODEC_BITS = 0x07
_LOG_APPEND_TIME = 0x08
_TRANSACTIONAL = 0x10
_CONTROL = 0x20
_DELETE_HORIZON = 0x40

_CRC_POSITION = 17
_CRC_FROM = 21
_OWN_TIMESTAMPS = -2


class RecordBatch(kernel.BatchHeader):
    """A view of one batch in a buffer.

    The header's fields are attributes: base_offset, leader_epoch, magic, crc, attributes, last_offset_delta,
    base_timestamp_ms, max_timestamp_ms, producer_id, producer_epoch, base_sequence, count; beside them size_bytes (of
    the whole batch), buffer and position. A batch of magic 0 or 1 has only offset, size and magic.
    """

    __slots__ = ()

    @property
    def compression(self) -> Compression:
        """The codec of the records.

        Raises:
            UnsupportedCompressionType: the attributes name a codec that does not exist.
        """
        try:
            return Compression(self.attributes & _CODEC_BITS)
        except ValueError:
            raise UnsupportedCompressionType(f"there is no codec {self.attributes & _CODEC_BITS}") from None

    @property
    def timestamp_type(self) -> TimestampType:
        """Who wrote the timestamps."""
        return TimestampType.LOG_APPEND_TIME if self.attributes & _LOG_APPEND_TIME else TimestampType.CREATE_TIME

    @property
    def is_transactional(self) -> bool:
        """Whether the batch is part of a transaction (a marker of its end is, too)."""
        return self.attributes & _TRANSACTIONAL != 0

    @property
    def is_control(self) -> bool:
        """Whether the batch holds control records, which no application sees."""
        return self.attributes & _CONTROL != 0

    @property
    def delete_horizon_ms(self) -> int | None:
        """When compaction may remove the tombstones in this batch; None until it has set the time (KIP-534)."""
        return self.base_timestamp_ms if self.attributes & _DELETE_HORIZON else None

    @property
    def has_producer_id(self) -> bool:
        """Whether an idempotent producer wrote the batch."""
        return self.producer_id >= 0

    @property
    def last_sequence(self) -> int:
        """The sequence number of the last record; after 2^31 - 1 comes 0. -1 without a sequence."""
        if self.base_sequence < 0:
            return -1
        return (self.base_sequence + self.last_offset_delta) % (1 << 31)

    @property
    def data(self) -> memoryview:
        """The bytes of the batch, not copied."""
        return memoryview(self.buffer)[self.position : self.position + self.size_bytes]

    def verify(self) -> None:
        """Check the batch against its CRC.

        Raises:
            CorruptMessage: it does not match.
            InvalidRecord: the batch is of magic 0 or 1, which no Kafka since 4.0 writes.
        """
        self._require_magic_2()
        computed = kernel.crc32c(self.data[_CRC_FROM:])
        if computed != self.crc:
            raise CorruptMessage(
                f"the batch at offset {self.base_offset} has CRC {computed:08x}, and its header says {self.crc:08x}"
            )

    def set_base_offset(self, offset: int) -> None:
        """Write the base offset, as a broker does when it appends."""
        self._patch(">q", 0, offset)

    def set_leader_epoch(self, epoch: int) -> None:
        """Write the leader epoch, as a broker does when it appends."""
        self._patch(">i", 12, epoch)

    def set_max_timestamp(self, timestamp_ms: int, timestamp_type: TimestampType) -> None:
        """Write the greatest timestamp and whose it is, and the CRC anew.

        With LOG_APPEND_TIME this is the timestamp of every record in the batch.
        """
        self._require_magic_2()
        attributes = self.attributes & ~_LOG_APPEND_TIME
        if timestamp_type is TimestampType.LOG_APPEND_TIME:
            attributes |= _LOG_APPEND_TIME
        self._patch(">h", _CRC_FROM, attributes)
        self._patch(">q", 35, timestamp_ms)
        self._patch(">I", _CRC_POSITION, kernel.crc32c(self.data[_CRC_FROM:]))

    def records(self, *, max_bytes: int = MAX_DECOMPRESSED_BYTES) -> list[Record]:
        """The records, decoded; `max_bytes` bounds what they may take decompressed.

        Raises:
            CorruptMessage: the payload does not decompress, or is larger than `max_bytes` then.
            InvalidRecord: it is anything but as many well-formed records as the header says.
        """
        payload, start, end = self._payload(max_bytes)
        return kernel.decode_records(
            payload, start, end, self.count, self.base_offset, self.base_timestamp_ms, self._append_time_ms()
        )

    def __repr__(self) -> str:
        return f"<RecordBatch offsets {self.base_offset} to {self.last_offset}, {self.size_bytes} bytes>"

    def _require_magic_2(self) -> None:
        if self.magic != 2:
            raise InvalidRecord(f"the batch at offset {self.base_offset} has magic {self.magic}; only 2 is supported")

    def _patch(self, layout: str, where: int, value: int) -> None:
        try:
            struct.pack_into(layout, self.buffer, self.position + where, value)
        except TypeError:
            raise TypeError("a batch is patched in place, and this one lies in a read-only buffer") from None
        self._reload()

    def _append_time_ms(self) -> int:
        return self.max_timestamp_ms if self.attributes & _LOG_APPEND_TIME else _OWN_TIMESTAMPS

    def _payload(self, max_bytes: int) -> tuple[Buffer, int, int]:
        """A buffer with the decompressed records, and where in it they are."""
        self._require_magic_2()
        start, end = self.position + HEADER_BYTES, self.position + self.size_bytes
        if not self.attributes & _CODEC_BITS or start == end:
            return self.buffer, start, end
        payload = decompress(memoryview(self.buffer)[start:end], self.compression, max_bytes=max_bytes)
        return payload, 0, len(payload)


def iter_batches(buffer: Buffer, *, strict: bool = False, position: int = 0) -> Iterator[RecordBatch]:
    """The batches in a buffer, in order.

    An incomplete batch at the end is the end: a fetch cuts off where its limit is. With `strict` it is an error.

    Raises:
        CorruptMessage: a batch has an impossible length or magic, or (strict) is incomplete.
    """
    return kernel.scan(RecordBatch, buffer, position, strict)


def decode_batch(
    batch: RecordBatch,
    topic: str,
    partition: int,
    *,
    from_offset: int = 0,
    max_bytes: int = MAX_DECOMPRESSED_BYTES,
) -> list[ConsumerRecord]:
    """A consumer's records of a batch, from `from_offset` on; none of a control batch.

    The CRC is not looked at (`batch.verify()` does), the structure is: errors are those of `RecordBatch.records`.
    """
    if batch.is_control:
        return []
    payload, start, end = batch._payload(max_bytes)
    return kernel.decode_consumer_records(
        payload,
        start,
        end,
        batch.count,
        batch.base_offset,
        batch.base_timestamp_ms,
        batch._append_time_ms(),
        topic,
        partition,
        batch.timestamp_type,
        batch.leader_epoch,
        from_offset,
    )


class RecordBatchBuilder(kernel.BatchWriter):
    """Builds one batch: `append` (or `append_send`) records until one is refused, then `build`.

    `max_bytes` bounds the batch, header included, before compression; the first record always fits. Not thread-safe:
    one thread appends at a time. `delete_horizon_ms` is for compaction (KIP-534).
    """

    __slots__ = ("_compressed", "compression", "level", "timestamp_type")

    def __init__(
        self,
        max_bytes: int,
        *,
        compression: Compression = Compression.NONE,
        level: int | None = None,
        timestamp_type: TimestampType = TimestampType.CREATE_TIME,
        delete_horizon_ms: int | None = None,
    ) -> None:
        check_level(compression, level)
        super().__init__(max_bytes, _OWN_TIMESTAMPS if delete_horizon_ms is None else delete_horizon_ms)
        self.compression = compression
        self.level = level
        self.timestamp_type = timestamp_type
        self._compressed: bytes | None = None

    def build(
        self,
        *,
        base_offset: int = 0,
        producer_id: int = -1,
        producer_epoch: int = -1,
        base_sequence: int = -1,
        transactional: bool = False,
        control: bool = False,
        leader_epoch: int = -1,
        last_offset_delta: int | None = None,
    ) -> bytes:
        """The batch; it takes no record any more, but may be built again, with another sequence or epoch.

        `last_offset_delta` is for compaction: what is left of a batch covers the offsets of the whole, even if no
        record is left.
        """
        if self.count == 0 and last_offset_delta is None:
            raise ValueError("a batch needs at least one record")
        self.close()
        attributes = int(self.compression) if self.count else 0
        if self.timestamp_type is TimestampType.LOG_APPEND_TIME:
            attributes |= _LOG_APPEND_TIME
        if transactional:
            attributes |= _TRANSACTIONAL
        if control:
            attributes |= _CONTROL
        if self.horizon_ms > _OWN_TIMESTAMPS:
            attributes |= _DELETE_HORIZON
        last = self.last_offset_delta if last_offset_delta is None else last_offset_delta
        if not attributes & _CODEC_BITS:
            return self.assemble(
                base_offset, leader_epoch, attributes, last, producer_id, producer_epoch, base_sequence
            )
        if self._compressed is None:
            self._compressed = compress(self.payload(), self.compression, self.level)
            self.release()
        return kernel.assemble(
            self._compressed,
            base_offset,
            leader_epoch,
            attributes,
            last,
            self.base_timestamp_ms,
            self.max_timestamp_ms,
            producer_id,
            producer_epoch,
            base_sequence,
            self.count,
        )


def build_batch(
    records: Sequence[tuple[int, bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]],
    *,
    compression: Compression = Compression.NONE,
    **fields: Any,
) -> bytes:
    """A batch of (timestamp_ms, key, value, headers); `fields` are those of `RecordBatchBuilder.build`."""
    builder = RecordBatchBuilder((1 << 31) - 1, compression=compression)
    for timestamp_ms, key, value, headers in records:
        builder.append(timestamp_ms, key, value, headers)
    return builder.build(**fields)
