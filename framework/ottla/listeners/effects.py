"""What a listener loop asks of its driver. Each effect's outcome is sent back into the loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ottla.client import TopicPartition
from ottla.listeners.ack import Offsets
from ottla_wire.records import ConsumerRecord

if TYPE_CHECKING:
    from ottla.transaction.sides import Side


class Effect:
    """Something the driver does for the loop; its outcome is sent back."""


Outcome = TypeVar("Outcome")
Effects = Generator[Effect, Any, Outcome]
"""A part of the loop: effects to be carried out one after the other, and what comes of them in the end."""


@dataclass(frozen=True, slots=True)
class Poll(Effect):
    """Ask the client for records, waiting at most so many seconds. Outcome: the records."""

    timeout: float


@dataclass(frozen=True, slots=True)
class Deliver(Effect):
    """Call the listener with one record after the other, up to the first failure. Outcome: a Delivered."""

    records: Sequence[ConsumerRecord]


@dataclass(frozen=True, slots=True)
class DeliverBatch(Effect):
    """Call the listener once with all records. Outcome: a Delivered."""

    records: Sequence[ConsumerRecord]


@dataclass(frozen=True, slots=True)
class Delivered:
    """How far a delivery came: `count` records are done; then `error`, or a nack, if either is set.

    A batch may fail at a record beyond those (`BatchListenerFailed.index`): what lies between has not failed.
    """

    count: int
    error: BaseException | None = None
    nack_delay: float | None = None
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Recover(Effect):
    """Call the error handler's recoverer. Outcome: None, or the error it raised."""

    record: ConsumerRecord
    error: BaseException


@dataclass(frozen=True, slots=True)
class Commit(Effect):
    """Commit these offsets and wait for it. Outcome: None, or the error that may be tried again."""

    offsets: Offsets


@dataclass(frozen=True, slots=True)
class CommitSoon(Effect):
    """Begin to commit these offsets and go on; `UnitOfWork.committed` is told the outcome inside a later poll."""

    offsets: Offsets


@dataclass(frozen=True, slots=True)
class Pause(Effect):
    """Stop the client from handing out records of these partitions."""

    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class Resume(Effect):
    """Let the client hand out records of these partitions again."""

    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class PauseAll(Effect):
    """Stop the client from handing out records at all."""


@dataclass(frozen=True, slots=True)
class ResumeAll(Effect):
    """Let the client hand out records again, except of these partitions."""

    still_paused: frozenset[TopicPartition]


@dataclass(frozen=True, slots=True)
class Perform(Effect):
    """Call something that waits as the listener's side does, with the client and the side. Outcome: what it gives."""

    call: Callable[[Any, Side], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Request(Effect):
    """Call something with the client, for another thread that asked."""

    call: Callable[[Any], Any]
