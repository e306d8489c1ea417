"""What a listener can ask for by type: the message, its metadata, an acknowledgment, a header, a dependency."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ottla_wire.records import ConsumerRecord, TimestampType

PayloadType = TypeVar("PayloadType")


@dataclass(frozen=True, slots=True)
class Header:
    """`Annotated[str | None, Header("source")]`: the last header of that name, converted to the hinted type.

    A header that is not there is `None` where the hint allows it, else the parameter's default, else a ConversionError.
    """

    name: str


class _Marker:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


Key = _Marker("Key")
"""`Annotated[str, Key]`: the record's key, converted to the hinted type."""

Payload = _Marker("Payload")
"""`Annotated[Order, Payload]`: says which parameter is the payload where that is not plain from the types."""


@dataclass(frozen=True, slots=True)
class Depends:
    """`Annotated[Session, Depends(session)]`: the result of `function`, whose own parameters are bound in the same way.

    Called once for each delivery; an `async def` function is awaited, in async listeners only.
    """

    function: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class RecordMetadata:
    """Where a received record stands and which delivery of it this is (Spring: ConsumerRecordMetadata)."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    timestamp_type: TimestampType
    leader_epoch: int | None
    delivery_attempt: int
    """1 for the first delivery."""

    @classmethod
    def of(cls, record: ConsumerRecord) -> RecordMetadata:
        """The metadata of one record."""
        return cls(
            record.topic,
            record.partition,
            record.offset,
            record.timestamp_ms,
            record.timestamp_type,
            record.leader_epoch,
            record.delivery_attempt or 1,
        )


@dataclass(frozen=True, slots=True)
class Message(Generic[PayloadType]):
    """A payload with its key, headers and metadata (Spring: Message)."""

    payload: PayloadType
    key: Any = None
    headers: Mapping[str, bytes | None] | None = None
    """The last value of each header name."""
    metadata: RecordMetadata | None = None
    """Where it was received; None for one that is to be sent."""
    topic: str | None = None
    """Where it is to be sent, if not to the default topic or that of a reply. A received message has none."""
    partition: int | None = None
    """To which partition it is to be sent."""
