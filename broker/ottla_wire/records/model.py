"""The plain values of record batches and of sends: enums, what a caller sent, where it was stored, why it was not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from ottla_wire.errors import OttlaError

Headers = Sequence[tuple[str, "bytes | str | None"]]
"""Record headers as a sender may give them; a `str` value travels as UTF-8."""


class Compression(IntEnum):
    """The codec of a batch: bits 0-2 of its attributes."""

    NONE = 0
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4


class TimestampType(IntEnum):
    """Who wrote a batch's timestamps: the producer, or the broker as it appended (bit 3 of the attributes)."""

    CREATE_TIME = 0
    LOG_APPEND_TIME = 1


@dataclass(frozen=True, slots=True)
class ProducerRecord:
    """A record to send, as its sender gave it: before serialization, and before a partition or time was chosen."""

    topic: str
    value: Any = None
    key: Any = None
    partition: int | None = None
    timestamp_ms: int | None = None
    headers: Any = None


@dataclass(frozen=True, slots=True)
class RecordMetadata:
    """Where a record was stored, and under which timestamp.

    The offset is -1 where the broker did not tell it (`acks=0`); a size is -1 for a null key or value.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    serialized_key_size: int = -1
    serialized_value_size: int = -1


class SendError(OttlaError):
    """A record that was not stored, or of which it is not known; `__cause__` says why, `record` is what was sent."""

    def __init__(self, message: str, record: ProducerRecord) -> None:
        super().__init__(message)
        self.record = record

    @classmethod
    def of(cls, record: ProducerRecord, cause: BaseException, partition: int | None = None) -> SendError:
        """The error of a record that failed because of `cause`; `partition` is the one that was chosen for it."""
        chosen = partition if partition is not None else record.partition
        where = record.topic if chosen is None else f"{record.topic}-{chosen}"
        error = cls(f"a record for {where} was not sent: {type(cause).__name__}: {cause}", record)
        error.__cause__ = cause
        return error
