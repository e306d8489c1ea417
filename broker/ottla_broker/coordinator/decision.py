"""What the coordinator runtime and its shards say to each other; the story is told in `runtime`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from ottla_broker.pending import Pending
from ottla_wire.errors import KafkaError
from ottla_wire.records import RecordBatch

if TYPE_CHECKING:
    from ottla_broker.log.producer_state import Verification

T = TypeVar("T")
S = TypeVar("S")


class CoordinatorRecord(NamedTuple):
    """A record of an internal topic; a value of None is a tombstone."""

    key: bytes
    value: bytes | None


class TransactionalProducer(NamedTuple):
    """In whose transaction records are written, with the guard of its verification (None: it is open here already)."""

    producer_id: int
    producer_epoch: int
    guard: Verification | None = None


class TransactionEnd(NamedTuple):
    """What a marker says."""

    producer_id: int
    producer_epoch: int
    coordinator_epoch: int
    committed: bool
    transaction_version: int


class CoordinatorLog(Protocol):
    """The log of an internal topic's partitions, as far as this broker leads them."""

    def append(
        self,
        partition: int,
        records: Sequence[CoordinatorRecord],
        now_ms: int,
        producer: TransactionalProducer | None = None,
    ) -> int:
        """Append the records as one batch; return the offset after it. Raises the KafkaErrors of an append."""
        ...

    def append_marker(self, partition: int, end: TransactionEnd, now_ms: int) -> int:
        """Append a transaction's marker; return the offset after it. Raises the KafkaErrors of an append."""
        ...

    def high_watermark(self, partition: int) -> int:
        """The offset up to which the partition is replicated."""
        ...

    def read(self, partition: int) -> Iterable[RecordBatch]:
        """All batches, from the log start offset to the log end offset."""
        ...


class Outbox:
    """Answers that leave when the machine is consistent again, in the order in which they were given."""

    def __init__(self) -> None:
        self._answers: deque[Callable[[], None]] = deque()
        self._sending = False

    def complete(self, pending: Pending[T], value: T) -> None:
        """Answer with `value`."""
        self._answers.append(lambda: pending.complete(value))

    def fail(self, pending: Pending[Any], error: KafkaError) -> None:
        """Answer with an error."""
        self._answers.append(lambda: pending.fail(error))

    def send(self) -> None:
        """Hand the answers out. What an answer's callback makes the machine answer goes out by the outer call."""
        if self._sending:
            return
        self._sending = True
        try:
            while self._answers:
                self._answers.popleft()()
        finally:
            self._sending = False


@dataclass(slots=True)
class Decision(Generic[T]):
    """What a verb decided; see the module's text for the order in which its parts happen.

    Attributes:
        response: the answer, or a `Pending` that the machine completes itself.
        records: what makes it durable.
        applied: runs after the records are replayed.
        refused: runs instead of all that follows, with the error for the client, if the append fails.
        committed: runs when the high watermark has passed the records.
        timed_out: runs instead of `committed`, with the error for the client, if nobody knows whether it ever will.
        outlives_time_out: only the answer is given up then; `committed` runs whenever the records are committed.
        atomic: the records must go into one batch.
    """

    response: T | Pending[T]
    records: Sequence[CoordinatorRecord] = ()
    applied: Callable[[], None] | None = None
    refused: Callable[[KafkaError, int], None] | None = None
    committed: Callable[[int], None] | None = None
    timed_out: Callable[[KafkaError, int], None] | None = None
    atomic: bool = True
    outlives_time_out: bool = False


class Shard(Protocol):
    """The state machine of one partition."""

    def replay(self, offset: int, record: CoordinatorRecord, producer_id: int, producer_epoch: int) -> None:
        """Change the durable state as the record says. `producer_id` is NO_PRODUCER outside of a transaction."""
        ...

    def replay_end_marker(self, offset: int, producer_id: int, producer_epoch: int, *, committed: bool) -> None:
        """A transaction of this producer has ended here, by the marker at `offset`."""
        ...

    def high_watermark_moved(self, high_watermark: int) -> None:
        """What lies below is committed."""
        ...

    def loaded(self, now_ms: int) -> None:
        """The log has been replayed: set the timers that are not in it."""
        ...

    def unloaded(self, error: KafkaError) -> None:
        """This broker no longer leads the partition: answer all parked requests with `error`."""
        ...


Verb = Callable[[S, int], Decision[T]]
