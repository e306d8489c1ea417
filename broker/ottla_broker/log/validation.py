"""What a leader checks before it appends, in Kafka's order, and the few bytes it changes.

Nearly every batch passes on its header, one CRC and the frame of its payload: base offset and leader epoch are patched
in place, outside the CRC, and nothing is decoded. Records are decoded where a rule is about records (keys of a
compacted topic, a lower bound of timestamps) and re-encoded where the topic asks for another codec or the offsets
inside are not consecutive.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from ottla_broker.log import batch as b
from ottla_broker.log.batch import BatchHeader
from ottla_broker.log.config import INT64_MAX, LOG_APPEND_TIME, PRODUCER_COMPRESSION, LogConfig
from ottla_broker.log.files import Buffer
from ottla_broker.log.payload import check_payload
from ottla_broker.log.producer_state import AppendOrigin, EndMarker
from ottla_wire.errors import CorruptMessage, InvalidRecord, InvalidTimestamp, MessageTooLarge, RecordListTooLarge
from ottla_wire.records import (
    Compression,
    ControlType,
    Record,
    RecordBatch,
    RecordBatchBuilder,
    TimestampType,
    control_type,
    coordinator_epoch,
    crc32c,
    iter_batches,
)

_CLIENT = AppendOrigin.CLIENT
_NEWEST_CODEC = int(Compression.ZSTD)

_unpack_marker = Struct(">5shhchi").unpack_from
_BEFORE_KEY = b"\x20\x00\x00\x00\x08"  # lengths of record and key, with no attributes and no deltas in between
_BEFORE_VALUE = b"\x0c"  # the value's length
_MARKER_BYTES = b.HEADER_BYTES + 17

NO_KEY_MESSAGE = "a compacted topic takes no record without a key"

_TARGET_CODECS = {
    "uncompressed": Compression.NONE,
    "gzip": Compression.GZIP,
    "snappy": Compression.SNAPPY,
    "lz4": Compression.LZ4,
    "zstd": Compression.ZSTD,
}


class Accepted(NamedTuple):
    """Batches that may be written: their bytes, with offsets assigned, and their headers as they are in the bytes."""

    data: Buffer
    batches: list[BatchHeader]
    max_timestamp_ms: int
    log_append_time_ms: int


class LeaderValidator:
    """The checks of one partition under one configuration."""

    def __init__(self, name: str, config: LogConfig) -> None:
        self._name = name
        self._config = config
        self._is_log_append_time = config.message_timestamp_type == LOG_APPEND_TIME
        self._segment_bytes = config.segment_bytes
        self._max_message_bytes = config.max_message_bytes
        self._timestamp_after_max_ms = config.message_timestamp_after_max_ms
        self._target = (
            None if config.compression_type == PRODUCER_COMPRESSION else _TARGET_CODECS[config.compression_type]
        )
        self._level = {
            Compression.GZIP: config.compression_gzip_level,
            Compression.LZ4: config.compression_lz4_level,
            Compression.ZSTD: config.compression_zstd_level,
        }.get(self._target or Compression.NONE)
        self._has_oldest = config.message_timestamp_before_max_ms < INT64_MAX
        self._converts_batches = self._is_log_append_time or self._target is not None
        self._looks_into_batches = self._converts_batches or config.compact or self._has_oldest  # a client's, only

    def accept(
        self, records: Buffer, *, next_offset: int, leader_epoch: int, now_ms: int, origin: AppendOrigin
    ) -> Accepted:
        """Check records and give them offsets from `next_offset` on; a writable buffer is patched in place.

        Raises InvalidRecord, InvalidTimestamp, MessageTooLarge, CorruptMessage, RecordListTooLarge.
        """
        buffer = _writable(records)
        is_client = origin is _CLIENT
        header = b.whole_batch_at(buffer, 0)
        if header is None:
            raise InvalidRecord(f"the records for {self._name} hold no whole batch")
        end = header.length + b.LOG_OVERHEAD
        if end == len(buffer) or b.whole_batch_at(buffer, end) is None:
            part = buffer if end == len(buffer) else buffer[:end]
            part, placed = self._place(part, header, next_offset, leader_epoch, now_ms, is_client=is_client)
            accepted = Accepted(part, [placed], placed.max_timestamp_ms, now_ms if self._is_log_append_time else -1)
        elif is_client:
            raise InvalidRecord(f"the records for {self._name} hold more than one batch")
        else:
            accepted = self._accept_several(buffer, next_offset, leader_epoch, now_ms)
        if len(accepted.data) > self._segment_bytes:
            raise RecordListTooLarge(
                f"{len(accepted.data)} bytes of records for {self._name} are more than a segment of "
                f"{self._config.segment_bytes}"
            )
        return accepted

    def _accept_several(self, buffer: memoryview, next_offset: int, leader_epoch: int, now_ms: int) -> Accepted:
        """What a coordinator appends may be several batches."""
        parts: list[Buffer] = []
        batches: list[BatchHeader] = []
        for position, header in b.split(buffer):
            part = buffer[position : position + header.size_bytes]
            part, placed = self._place(part, header, next_offset, leader_epoch, now_ms, is_client=False)
            parts.append(part)
            batches.append(placed)
            next_offset = placed.last_offset + 1
        newest = max(placed.max_timestamp_ms for placed in batches)
        return Accepted(b"".join(parts), batches, newest, now_ms if self._is_log_append_time else -1)

    def _place(
        self,
        part: memoryview,
        header: BatchHeader,
        next_offset: int,
        leader_epoch: int,
        now_ms: int,
        *,
        is_client: bool,
    ) -> tuple[memoryview, BatchHeader]:
        """Check one batch, and write its offset and epoch."""
        self._check_batch(part, header, is_client=is_client)
        newest_ms = now_ms + self._timestamp_after_max_ms
        if (
            (self._looks_into_batches if is_client else self._converts_batches)
            or header.attributes & b.TIMESTAMP_TYPE_BIT
            or header.max_timestamp_ms > newest_ms
            or header.base_timestamp_ms > newest_ms
            or header.base_timestamp_ms < now_ms - INT64_MAX
        ):
            part = self._apply_config(part, header, now_ms, is_client=is_client)
            header = b.read_header(part)
        b.assign(part, 0, next_offset, header.length, leader_epoch)
        return part, BatchHeader(next_offset, header.length, leader_epoch, *header[3:])

    def _check_batch(self, part: memoryview, header: BatchHeader, *, is_client: bool) -> None:
        if header.magic != b.CURRENT_MAGIC:
            if 0 <= header.magic < b.CURRENT_MAGIC:
                raise InvalidRecord(f"a batch for {self._name} has the old format {header.magic}; format 2 is needed")
            raise CorruptMessage(f"a batch for {self._name} has the unknown format {header.magic}")
        if is_client and header.base_offset != 0:
            raise InvalidRecord(
                f"the base offset of a batch for {self._name} is {header.base_offset}; a producer sends 0"
            )
        if len(part) > self._max_message_bytes:
            self._check_size(len(part))
        if crc32c(part[b.CRC_START :]) != header.crc:
            raise CorruptMessage(f"the CRC of a batch for {self._name} does not match its bytes")
        if header.attributes & b.COMPRESSION_MASK > _NEWEST_CODEC:
            raise InvalidRecord(f"a batch for {self._name} has an unknown compression codec")
        if not is_client:
            return
        offsets = header.last_offset_delta + 1
        if offsets <= 0 or header.record_count <= 0 or header.record_count != offsets:
            raise InvalidRecord(f"a batch for {self._name} counts {header.record_count} records over {offsets} offsets")
        if header.is_control:
            raise InvalidRecord(f"clients may not write control records ({self._name})")
        if header.producer_id >= 0 and header.base_sequence < 0:
            raise InvalidRecord(
                f"a batch of producer {header.producer_id} for {self._name} has no sequence ({header.base_sequence})"
            )
        check_payload(header.attributes & b.COMPRESSION_MASK, part[b.HEADER_BYTES :], header.record_count, self._name)

    def _check_size(self, size: int) -> None:
        if size > self._config.max_message_bytes:
            raise MessageTooLarge(
                f"a batch of {size} bytes for {self._name} is above max.message.bytes={self._config.max_message_bytes}"
            )

    def _apply_config(self, part: memoryview, header: BatchHeader, now_ms: int, *, is_client: bool) -> memoryview:
        """Check what depends on the topic's configuration; returns the batch as it is to be written."""
        is_append_time_batch = header.attributes & b.TIMESTAMP_TYPE_BIT != 0
        needs_codec = (
            self._target is not None
            and not header.is_control
            and header.attributes & b.COMPRESSION_MASK != self._target
        )
        records: list[Record] | None = None
        if (is_client and self._must_see_records(header)) or needs_codec:
            records = self._decode(part, header)
        if is_client:
            records = self._check_records(part, records, header, now_ms)

        if records is not None and (needs_codec or _offsets_have_gaps(records, header)):
            part = memoryview(self._encode(records, header))
            self._check_size(len(part))
        if self._is_log_append_time:
            _as_batch(part).set_max_timestamp(now_ms, TimestampType.LOG_APPEND_TIME)
        elif records is not None or is_append_time_batch:
            newest = header.max_timestamp_ms if records is None else max(record.timestamp_ms for record in records)
            if is_append_time_batch or b.read_header(part).max_timestamp_ms != newest:
                _as_batch(part).set_max_timestamp(newest, TimestampType.CREATE_TIME)
        return part

    def _must_see_records(self, header: BatchHeader) -> bool:
        return self._config.compact or (
            self._has_oldest and not self._is_log_append_time and header.max_timestamp_ms != b.NO_TIMESTAMP
        )

    def _check_records(
        self, part: memoryview, records: list[Record] | None, header: BatchHeader, now_ms: int
    ) -> list[Record] | None:
        """Check the records if that is needed; returns them if they had to be decoded."""
        claims_append_time = header.attributes & b.TIMESTAMP_TYPE_BIT != 0 and (
            self._is_log_append_time or header.max_timestamp_ms == b.NO_TIMESTAMP
        )
        if records is None and not claims_append_time:
            # The largest timestamp in the header bounds all of them from above, and the first record has the base
            # timestamp. That a later record exceeds the largest in the header is not seen: its delta is not looked at.
            newest = now_ms + self._config.message_timestamp_after_max_ms
            base_ms = header.base_timestamp_ms
            if self._is_log_append_time or (
                max(header.max_timestamp_ms, base_ms) <= newest and base_ms >= now_ms - INT64_MAX
            ):
                return None
        if records is None:
            records = self._decode(part, header)
        self._blame_records(records, now_ms, claims_append_time)
        return records

    def _blame_records(self, records: list[Record], now_ms: int, claims_append_time: bool) -> None:
        """Raise the error that names the records at fault, if any. A timestamp at fault wins over a missing key."""
        oldest = now_ms - self._config.message_timestamp_before_max_ms
        newest = now_ms + self._config.message_timestamp_after_max_ms
        errors: list[tuple[int, str | None]] = []
        is_about_time = False
        for index, record in enumerate(records):
            if self._config.compact and record.key is None:
                errors.append((index, NO_KEY_MESSAGE))
            elif claims_append_time:
                is_about_time = True
                errors.append((index, "a producer may not set the timestamp type LogAppendTime"))
            elif (
                not self._is_log_append_time
                and record.timestamp_ms != b.NO_TIMESTAMP
                and not oldest <= record.timestamp_ms <= newest
            ):
                is_about_time = True
                errors.append((index, f"timestamp {record.timestamp_ms} is outside [{oldest}, {newest}]"))
        if not errors:
            return
        kind = InvalidTimestamp if is_about_time else InvalidRecord
        raise kind(f"{len(errors)} of {len(records)} records for {self._name} were refused: {errors[0][1]}", errors)

    def _decode(self, part: memoryview, header: BatchHeader) -> list[Record]:
        try:
            records = list(_as_batch(part).records())
        except CorruptMessage as error:
            raise InvalidRecord(f"a batch for {self._name} cannot be decoded: {error}") from error
        if len(records) != header.record_count:
            raise InvalidRecord(
                f"a batch for {self._name} holds {len(records)} records but announces {header.record_count}"
            )
        return records

    def _encode(self, records: list[Record], header: BatchHeader) -> bytearray:
        codec = Compression(header.attributes & b.COMPRESSION_MASK) if self._target is None else self._target
        builder = RecordBatchBuilder(2**31 - 1, compression=codec, level=self._level)
        for record in records:
            builder.append(record.timestamp_ms, record.key, record.value, record.headers)
        return bytearray(
            builder.build(
                producer_id=header.producer_id,
                producer_epoch=header.producer_epoch,
                base_sequence=header.base_sequence,
                transactional=header.is_transactional,
            )
        )


def check_replicated(records: Buffer, name: str, leader_epoch: int) -> Accepted:
    """The batches of a fetch answer that a follower may append as they are.

    Those of an epoch above `leader_epoch` are left out. Raises CorruptMessage, InvalidRecord.
    """
    batches: list[BatchHeader] = []
    end, next_offset, max_timestamp_ms = 0, -1, b.NO_TIMESTAMP
    view = memoryview(records)
    for position, header in b.split(records):
        if header.leader_epoch > leader_epoch:
            break
        if header.magic != b.CURRENT_MAGIC:
            raise CorruptMessage(f"a replicated batch for {name} has the format {header.magic}")
        end = position + header.size_bytes
        if crc32c(view[position + b.CRC_START : end]) != header.crc:
            raise CorruptMessage(f"the CRC of a replicated batch for {name} does not match its bytes")
        if header.base_offset < next_offset or header.last_offset_delta < 0:
            raise InvalidRecord(f"replicated batches for {name} are out of order at offset {header.base_offset}")
        next_offset = header.last_offset + 1
        max_timestamp_ms = max(max_timestamp_ms, header.max_timestamp_ms)
        batches.append(header)
    return Accepted(view[:end], batches, max_timestamp_ms, -1)


def read_marker(part: Buffer) -> EndMarker | None:
    """The transaction marker in a control batch; None if it is of another kind. Raises InvalidRecord."""
    if len(part) == _MARKER_BYTES:
        # As everybody writes it: one record of a 4-byte key and a 6-byte value. A coordinator writes many of these, and
        # recovery reads all of them.
        before_key, key_version, kind, before_value, version, epoch = _unpack_marker(part, b.HEADER_BYTES)
        if (
            before_key == _BEFORE_KEY
            and before_value == _BEFORE_VALUE
            and kind in (0, 1)
            and key_version == version == 0
        ):
            return EndMarker(is_abort=kind == ControlType.ABORT, coordinator_epoch=epoch)
    batch = _as_batch(part)
    kind = control_type(batch)
    if kind is not ControlType.ABORT and kind is not ControlType.COMMIT:
        return None
    return EndMarker(is_abort=kind is ControlType.ABORT, coordinator_epoch=coordinator_epoch(batch))


def _as_batch(part: Buffer) -> RecordBatch:
    return next(iter_batches(part))


def _offsets_have_gaps(records: list[Record], header: BatchHeader) -> bool:
    return any(record.offset != header.base_offset + index for index, record in enumerate(records))


def _writable(records: Buffer) -> memoryview:
    view = memoryview(records)
    return memoryview(bytearray(view)) if view.readonly else view
