"""The loops over records in plain Python: what serves where no C compiler built `_native`.

Names, results and errors are those of the native twin; the same tests run on both. Layout of a batch, big-endian
(KIP-98):

    base offset i64 | length i32 | leader epoch i32 | magic i8 = 2 | CRC u32 | attributes i16 | last offset delta i32 |
    base timestamp i64 | max timestamp i64 | producer id i64 | producer epoch i16 | base sequence i32 | count i32

The length counts what follows it; the CRC-32C covers everything from the attributes on. Then come the records: a
varint of the record's length, attributes i8, and as zigzag varints the timestamp delta (64 bit), the offset delta, key
length or -1, key, value length or -1, value, number of headers, and for each its name and its value or -1.
"""

from __future__ import annotations

import struct
from _thread import allocate_lock
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar

from ottla_wire.errors import CorruptMessage, InvalidRecord
from ottla_wire.records._pure_hashing import crc32c, murmur2, partition_for_key
from ottla_wire.records._pure_open_batches import OpenBatches, OpenTopics
from ottla_wire.records._pure_sending import SendFuture, SendResult, complete_batch, fail_futures, first_pending
from ottla_wire.records.model import TimestampType

__all__ = [
    "BatchHeader",
    "BatchWriter",
    "ConsumerRecord",
    "OpenBatches",
    "OpenTopics",
    "Record",
    "SendFuture",
    "SendResult",
    "assemble",
    "complete_batch",
    "crc32c",
    "decode_batches",
    "decode_consumer_records",
    "decode_records",
    "end_of_batches",
    "fail_futures",
    "first_pending",
    "murmur2",
    "new_buffer",
    "partition_for_key",
    "scan",
]

Buffer = bytes | bytearray | memoryview
HeaderTuple = tuple[str, bytes | None]

HEADER_BYTES = 61
_HEADER = struct.Struct(">qiibIhiqqqhii")
_LEAST_LENGTH = HEADER_BYTES - 12
_LEAST_LEGACY_LENGTH = 14
_CRC_FROM = 21
_OWN_TIMESTAMPS = -2
_CODEC = 0x07
_LOG_APPEND_TIME = 0x08
_CONTROL = 0x20


# Records


class Record:
    """A record of a batch."""

    __slots__ = ("headers", "key", "offset", "timestamp_ms", "value")

    def __init__(
        self, offset: int, timestamp_ms: int, key: bytes | None, value: bytes | None, headers: tuple[HeaderTuple, ...]
    ) -> None:
        self.offset: Final = offset
        self.timestamp_ms: Final = timestamp_ms
        self.key: Final = key
        self.value: Final = value
        self.headers: Final = headers

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return (self.offset, self.timestamp_ms, self.key, self.value, self.headers) == (
            other.offset,
            other.timestamp_ms,
            other.key,
            other.value,
            other.headers,
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"Record(offset={self.offset}, timestamp_ms={self.timestamp_ms}, key={self.key!r}, value={self.value!r}, "
            f"headers={self.headers!r})"
        )


class ConsumerRecord:
    """A record as a consumer receives it; deserializers replace `key` and `value`."""

    __slots__ = (
        "delivery_attempt",
        "headers",
        "key",
        "leader_epoch",
        "offset",
        "partition",
        "timestamp_ms",
        "timestamp_type",
        "topic",
        "value",
    )

    def __init__(
        self,
        topic: str,
        partition: int,
        offset: int,
        timestamp_ms: int = -1,
        timestamp_type: TimestampType = TimestampType.CREATE_TIME,
        key: Any = None,
        value: Any = None,
        headers: Sequence[HeaderTuple] = (),
        leader_epoch: int | None = None,
        delivery_attempt: int | None = None,
    ) -> None:
        self.topic: Final = topic
        self.partition: Final = partition
        self.offset: Final = offset
        self.timestamp_ms: Final = timestamp_ms
        self.timestamp_type: Final = timestamp_type
        self.key = key
        self.value = value
        self.headers = headers
        self.leader_epoch = leader_epoch
        self.delivery_attempt = delivery_attempt

    def header(self, name: str) -> bytes | None:
        """The last value under this name; None if there is none, or if it is null."""
        for key, value in reversed(self.headers):
            if key == name:
                return value
        return None

    def _fields(self) -> tuple[Any, ...]:
        return (
            self.topic,
            self.partition,
            self.offset,
            self.timestamp_ms,
            self.timestamp_type,
            self.key,
            self.value,
            self.headers,
            self.leader_epoch,
            self.delivery_attempt,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConsumerRecord):
            return NotImplemented
        return self._fields() == other._fields()

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return ConsumerRecord, self._fields()

    def __repr__(self) -> str:
        return (
            f"ConsumerRecord(topic={self.topic!r}, partition={self.partition}, offset={self.offset}, "
            f"timestamp_ms={self.timestamp_ms}, key={self.key!r}, value={self.value!r}, headers={self.headers!r})"
        )


def _truncated() -> InvalidRecord:
    return InvalidRecord("a record ends outside its batch")


def _varint(data: bytes, position: int, end: int, most: int) -> tuple[int, int]:
    """A zigzag varint of at most `most` bits, and the position behind it."""
    result, shift = 0, 0
    while True:
        if position >= end:
            raise _truncated()
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift >= most:
            raise InvalidRecord(f"a number of a record takes more than {most} bits")
    result &= (1 << most) - 1
    return (result >> 1) ^ -(result & 1), position


def _bytes(data: bytes, position: int, end: int) -> tuple[bytes | None, int]:
    size, position = _varint(data, position, end, 32)
    if size < 0:
        return None, position
    if size > end - position:
        raise _truncated()
    return data[position : position + size], position + size


def _read_headers(data: bytes, position: int, end: int) -> tuple[tuple[HeaderTuple, ...], int]:
    count, position = _varint(data, position, end, 32)
    if count == 0:
        return (), position
    if count < 0 or count > end - position:
        raise InvalidRecord(f"a record claims to have {count} headers")
    headers: list[HeaderTuple] = []
    for _ in range(count):
        name, position = _bytes(data, position, end)
        if name is None:
            raise InvalidRecord("a record has a header without a name")
        value, position = _bytes(data, position, end)
        headers.append((name.decode("utf-8", "replace"), value))
    return tuple(headers), position


def _walk(
    payload: Buffer, start: int, end: int, count: int, base_offset: int, base_timestamp_ms: int, append_time_ms: int
) -> Iterator[tuple[int, int, bytes | None, bytes | None, tuple[HeaderTuple, ...]]]:
    """Offset, timestamp, key, value and headers of each record; `append_time_ms` below -1: records have their own."""
    data = bytes(payload[start:end])
    position, end = 0, len(data)
    if count < 0:
        raise InvalidRecord(f"a batch claims to have {count} records")
    for _ in range(count):
        size, position = _varint(data, position, end, 32)
        if size < 0 or size > end - position:
            raise _truncated()
        stop = position + size
        if size == 0:
            raise _truncated()
        timestamp_delta, position = _varint(data, position + 1, stop, 64)
        offset_delta, position = _varint(data, position, stop, 32)
        key, position = _bytes(data, position, stop)
        value, position = _bytes(data, position, stop)
        headers, position = _read_headers(data, position, stop)
        if position != stop:
            raise InvalidRecord(f"a record of {size} bytes ends {stop - position} bytes early")
        timestamp_ms = _signed64(base_timestamp_ms + timestamp_delta) if append_time_ms < -1 else append_time_ms
        yield _signed64(base_offset + offset_delta), timestamp_ms, key, value, headers
    if position != end:
        raise InvalidRecord(f"{end - position} bytes follow the last of {count} records of a batch")


def _signed64(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def decode_records(
    payload: Buffer, start: int, end: int, count: int, base_offset: int, base_timestamp_ms: int, append_time_ms: int
) -> list[Record]:
    """The records in payload[start:end], which is no longer compressed.

    `append_time_ms` is the timestamp of all records if the log's clock wrote it; below -1, each has its own.

    Raises:
        InvalidRecord: the payload is anything but `count` well-formed records.
    """
    walk = _walk(payload, start, end, count, base_offset, base_timestamp_ms, append_time_ms)
    return [Record(*fields) for fields in walk]


def decode_consumer_records(
    payload: Buffer,
    start: int,
    end: int,
    count: int,
    base_offset: int,
    base_timestamp_ms: int,
    append_time_ms: int,
    topic: str,
    partition: int,
    timestamp_type: TimestampType,
    leader_epoch: int,
    from_offset: int,
) -> list[ConsumerRecord]:
    """As `decode_records`, for a consumer: without records below `from_offset`."""
    epoch = None if leader_epoch < 0 else leader_epoch
    walk = _walk(payload, start, end, count, base_offset, base_timestamp_ms, append_time_ms)
    return [
        ConsumerRecord(topic, partition, offset, timestamp_ms, timestamp_type, key, value, headers, epoch)
        for offset, timestamp_ms, key, value, headers in walk
        if offset >= from_offset
    ]


# Batches


class BatchHeader:
    """The fields of a batch in a buffer."""

    __slots__ = (
        "attributes",
        "base_offset",
        "base_sequence",
        "base_timestamp_ms",
        "buffer",
        "count",
        "crc",
        "last_offset_delta",
        "leader_epoch",
        "magic",
        "max_timestamp_ms",
        "position",
        "producer_epoch",
        "producer_id",
        "size_bytes",
    )

    attributes: int
    base_offset: int
    base_sequence: int
    base_timestamp_ms: int
    count: int
    crc: int
    last_offset_delta: int
    leader_epoch: int
    magic: int
    max_timestamp_ms: int
    producer_epoch: int
    producer_id: int
    size_bytes: int

    def __init__(self, buffer: Buffer, position: int = 0) -> None:
        view = memoryview(buffer)
        if position < 0:
            raise ValueError(f"a batch cannot begin at position {position}")
        size = _batch_size(view, position)
        if size < 0 or size > len(view) - position:
            raise CorruptMessage(f"the buffer ends inside the batch at position {position}")
        self.buffer = buffer
        self.position = position
        self._reload()

    def _reload(self) -> None:
        view = memoryview(self.buffer)[self.position :]
        (self.base_offset, length) = struct.unpack_from(">qi", view)
        self.size_bytes = length + 12
        fields = _HEADER.unpack_from(view if view[16] == 2 else bytes(view[:17]) + bytes(HEADER_BYTES - 17))
        (
            _,
            _,
            self.leader_epoch,
            self.magic,
            self.crc,
            self.attributes,
            self.last_offset_delta,
            self.base_timestamp_ms,
            self.max_timestamp_ms,
            self.producer_id,
            self.producer_epoch,
            self.base_sequence,
            self.count,
        ) = fields

    @property
    def last_offset(self) -> int:
        """The offset of the batch's last record, also if compaction has removed it."""
        return _signed64(self.base_offset + self.last_offset_delta)

    @property
    def next_offset(self) -> int:
        """The offset behind the batch."""
        return _signed64(self.base_offset + self.last_offset_delta + 1)


def _batch_size(view: memoryview, position: int) -> int:
    """The bytes of the batch at `position`; -1 if the buffer ends before this can be told."""
    if len(view) - position < 17:
        return -1
    length: int = struct.unpack_from(">i", view, position + 8)[0]
    magic = view[position + 16]
    if magic > 2:
        raise CorruptMessage(f"the batch at position {position} has the unknown magic {magic}")
    least = _LEAST_LENGTH if magic == 2 else _LEAST_LEGACY_LENGTH
    if length < least:
        raise CorruptMessage(f"the batch at position {position} has length {length}, and {least} is the least")
    return length + 12


_Batch = TypeVar("_Batch", bound=BatchHeader)


def scan(batch_class: type[_Batch], buffer: Buffer, position: int = 0, strict: bool = False) -> Iterator[_Batch]:
    """The batches in a buffer; one that is incomplete ends it, or is a CorruptMessage if `strict`."""
    view = memoryview(buffer)
    while position < len(view):
        size = _batch_size(view, position)
        if size < 0 or size > len(view) - position:
            if strict:
                raise CorruptMessage(f"the buffer ends inside the batch at position {position}")
            return
        yield batch_class(buffer, position)
        position += size


def end_of_batches(buffer: Buffer, default: int) -> int:
    """The offset behind the last complete batch of a buffer; `default` if there is none."""
    view = memoryview(buffer)
    position = 0
    while len(view) - position >= HEADER_BYTES:
        base_offset, length = struct.unpack_from(">qi", view, position)
        if not 0 <= length <= len(view) - position - 12:
            break
        default = _signed64(base_offset + struct.unpack_from(">i", view, position + 23)[0] + 1)
        position += length + 12
    return default


def decode_batches(
    buffer: Buffer,
    position: int,
    max_records: int,
    topic: str,
    partition: int,
    from_offset: int,
    check_crcs: bool,
) -> tuple[list[ConsumerRecord], int, int, int]:
    """The records of the batches from a position on, and (position, next offset, leader epoch) behind the last.

    Batches are taken whole until there are `max_records`, and without those below `from_offset`. The first batch that
    is anything but complete, uncompressed and well-formed data with its CRC ends it: it is left to whoever looks
    closer, and so is what comes behind. Next offset and leader epoch are -1 where no batch was taken.
    """
    records: list[ConsumerRecord] = []
    next_offset = leader_epoch = -1
    try:
        for batch in scan(BatchHeader, buffer, position):
            if len(records) >= max_records or batch.magic != 2 or batch.attributes & (_CODEC | _CONTROL):
                break
            end = position + batch.size_bytes
            if check_crcs and crc32c(memoryview(buffer)[position + _CRC_FROM : end]) != batch.crc:
                break
            is_append_time = batch.attributes & _LOG_APPEND_TIME
            records += decode_consumer_records(
                buffer,
                position + HEADER_BYTES,
                end,
                batch.count,
                batch.base_offset,
                batch.base_timestamp_ms,
                batch.max_timestamp_ms if is_append_time else _OWN_TIMESTAMPS,
                topic,
                partition,
                TimestampType.LOG_APPEND_TIME if is_append_time else TimestampType.CREATE_TIME,
                batch.leader_epoch,
                from_offset,
            )
            position, next_offset, leader_epoch = end, batch.next_offset, batch.leader_epoch
    except (CorruptMessage, InvalidRecord):
        pass  # whoever looks closer at that batch will say so
    return records, position, next_offset, leader_epoch


def new_buffer(size: int) -> bytearray:
    """A bytearray of a size, whatever is in it: for someone who is about to fill it."""
    return bytearray(size)


# Building


def _write_varint(out: bytearray, value: int) -> None:
    value = value << 1 ^ value >> 63
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _write_bytes(out: bytearray, value: Buffer | None, what: str) -> None:
    if value is None:
        out.append(1)
        return
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"a {what} must be bytes or None, not {type(value).__name__}")
    data = bytes(value)
    _write_varint(out, len(data))
    out += data


def _write_headers(out: bytearray, headers: Sequence[tuple[str, Any]] | None) -> None:
    if not headers:
        out.append(0)
        return
    _write_varint(out, len(headers))
    for header in headers:
        name, value = header
        if not isinstance(name, str):
            raise TypeError(f"the name of a header must be str, not {type(name).__name__}")
        _write_bytes(out, name.encode(), "header's name")
        _write_bytes(out, value.encode() if isinstance(value, str) else value, "header's value")


class BatchWriter:
    """The records of a batch that is being built, encoded. Any thread may append, or close it.

    `limit` is how many bytes the batch may have, header included; its first record always fits. `horizon_ms` is the
    delete horizon of compaction, which takes the place of the base timestamp; below -1 there is none.
    """

    __slots__ = (
        "_guard",
        "_payload",
        "base_timestamp_ms",
        "closed",
        "count",
        "futures",
        "horizon_ms",
        "last_offset_delta",
        "limit",
        "max_timestamp_ms",
    )

    def __init__(self, limit: int, horizon_ms: int = -2) -> None:
        self.limit = limit
        self.horizon_ms = horizon_ms
        self.count = 0
        self.closed = False
        self.last_offset_delta = -1
        self.base_timestamp_ms = horizon_ms if horizon_ms >= -1 else -1
        self.max_timestamp_ms = -1
        self.futures: list[SendFuture] = []
        self._payload = bytearray()
        self._guard = allocate_lock()  # makes one step of an append, and of closing

    @property
    def size_bytes(self) -> int:
        """The bytes of the batch so far, uncompressed, header included."""
        return HEADER_BYTES + len(self._payload)

    @property
    def is_full(self) -> bool:
        """Whether no further record will be taken."""
        return self.closed or (self.count > 0 and self.size_bytes >= self.limit)

    def append(
        self,
        timestamp_ms: int,
        key: Buffer | None,
        value: Buffer | None,
        headers: Sequence[tuple[str, Any]] | None = None,
        offset_delta: int = -1,
    ) -> bool:
        """Add a record; False if it does not fit, and then the batch is closed.

        `offset_delta` is for compaction, which leaves gaps; otherwise records follow each other.
        """
        return self._put(timestamp_ms, _content(key, value, headers), offset_delta, None)

    def _put(self, timestamp_ms: int, content: bytes | bytearray, offset_delta: int, future: SendFuture | None) -> bool:
        with self._guard:
            if self.closed:
                return False
            if offset_delta < 0:
                offset_delta = self.last_offset_delta + 1
            elif offset_delta <= self.last_offset_delta:
                raise ValueError(f"offset delta {offset_delta} does not follow {self.last_offset_delta}")
            first = self.count == 0
            base = timestamp_ms if first and self.horizon_ms < -1 else self.base_timestamp_ms
            body = bytearray(1)
            _write_varint(body, _signed64(timestamp_ms - base))
            _write_varint(body, offset_delta)
            body += content
            size = bytearray()
            _write_varint(size, len(body))
            if not first and self.size_bytes + len(size) + len(body) > self.limit:
                self.closed = True
                return False
            self._payload += size
            self._payload += body
            if future is not None:
                self.futures.append(future)
            self.base_timestamp_ms = base
            self.max_timestamp_ms = timestamp_ms if first else max(self.max_timestamp_ms, timestamp_ms)
            self.last_offset_delta = offset_delta
            self.count += 1
            return True

    def append_send(
        self,
        timestamp_ms: int,
        key: Buffer | None,
        value: Buffer | None,
        headers: Sequence[tuple[str, Any]] | None,
        topic: str,
        original_value: Any = None,
        original_key: Any = None,
        partition: int | None = None,
        original_timestamp_ms: int | None = None,
    ) -> SendFuture | None:
        """Add a record and make its future, which is kept in `futures`; None if the record does not fit.

        What the sender gave (the `original` values, the partition it asked for) is kept for the future's record.
        """
        future = SendFuture(topic, original_value, original_key, partition, original_timestamp_ms, headers)
        return future if self.append_future(future, timestamp_ms, key, value, headers) else None

    def append_future(
        self,
        future: SendFuture,
        timestamp_ms: int,
        key: Buffer | None,
        value: Buffer | None,
        headers: Sequence[tuple[str, Any]] | None = None,
    ) -> bool:
        """Add a record whose future exists (it waited for metadata, or its batch was split); False if it does not fit.

        A future that is done is added all the same: whoever finishes the batch leaves it as it is.
        """
        content = _content(key, value, headers)
        future._written(timestamp_ms, -1 if key is None else len(key), -1 if value is None else len(value))
        return self._put(timestamp_ms, content, -1, future)

    def close(self) -> None:
        """Take no more records."""
        with self._guard:
            self.closed = True

    def payload(self) -> bytes:
        """The records, encoded, not compressed."""
        return bytes(self._payload)

    def assemble(
        self,
        base_offset: int,
        leader_epoch: int,
        attributes: int,
        last_offset_delta: int,
        producer_id: int,
        producer_epoch: int,
        base_sequence: int,
    ) -> bytes:
        """The batch with the records as they are, not compressed; it takes no more."""
        self.close()
        return assemble(
            self._payload,
            base_offset,
            leader_epoch,
            attributes,
            last_offset_delta,
            self.base_timestamp_ms,
            self.max_timestamp_ms,
            producer_id,
            producer_epoch,
            base_sequence,
            self.count,
        )

    def release(self) -> None:
        """Close the batch and give the encoded records back to the memory."""
        self.close()
        self._payload = bytearray()


def _content(key: Buffer | None, value: Buffer | None, headers: Sequence[tuple[str, Any]] | None) -> bytearray:
    """Key, value and headers of a record, which are the same wherever in a batch it comes to lie."""
    content = bytearray()
    _write_bytes(content, key, "key")
    _write_bytes(content, value, "value")
    _write_headers(content, headers)
    return content


def assemble(
    payload: Buffer,
    base_offset: int,
    leader_epoch: int,
    attributes: int,
    last_offset_delta: int,
    base_timestamp_ms: int,
    max_timestamp_ms: int,
    producer_id: int,
    producer_epoch: int,
    base_sequence: int,
    count: int,
) -> bytes:
    """Header and payload, with length and checksum."""
    batch = bytearray(HEADER_BYTES)
    _HEADER.pack_into(
        batch,
        0,
        base_offset,
        _LEAST_LENGTH + len(payload),
        leader_epoch,
        2,
        0,
        attributes,
        last_offset_delta,
        base_timestamp_ms,
        max_timestamp_ms,
        producer_id,
        producer_epoch,
        base_sequence,
        count,
    )
    batch += payload
    struct.pack_into(">I", batch, 17, crc32c(memoryview(batch)[21:]))
    return bytes(batch)
