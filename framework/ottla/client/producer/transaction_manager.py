"""TransactionManager: who the producer is to the brokers, and what an error means for its sequences. Sans-I/O.

Theory of operation. A producer asks any broker for an id (InitProducerId), numbers its batches with it
(`producer_sequences`), and keeps it for its life. The states, and who moves them:

    UNINITIALIZED --next_request()--> INITIALIZING --answered()--> READY
         ^                                |  ^                       |
         |                                |  '--- retriable error,   |
         |                                |       after a pause      |
         '------ epochs used up ----------+--------------------------'
                                          '--> FATAL  (from anywhere; fail())

The machine performs nothing. `next_request` hands out what to ask, `answered` and `unanswered` bring what came of it,
`resolve` is called before batches are drained, and `refused` decides whether a batch that a broker refused goes out
again. FATAL is final: `error` is then what every send fails with.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from enum import Enum
from typing import Any, Final

from ottla.client.backoff import Backoff
from ottla.client.producer.producer_sequences import (
    NO_PRODUCER,
    ProducerIdAndEpoch,
    ProducerSequences,
    SequencedBatch,
)
from ottla.errors import (
    ClusterAuthorizationFailed,
    InvalidProducerIdMapping,
    KafkaError,
    OttlaError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    Retriable,
    TransactionalIdAuthorizationFailed,
    UnknownProducerId,
    UnsupportedVersion,
    error_for,
)
from ottla_wire.messages.init_producer_id import InitProducerIdRequest

logger = logging.getLogger("ottla.producer")

LAST_EPOCH: Final = 32_767

_FATAL: Final = (
    ClusterAuthorizationFailed,
    InvalidProducerIdMapping,
    ProducerFenced,
    TransactionalIdAuthorizationFailed,
    UnsupportedVersion,
)


class State(Enum):
    """Where the producer is on its way to an id; see the picture above."""

    UNINITIALIZED = "uninitialized"
    INITIALIZING = "initializing"
    READY = "ready"
    FATAL = "fatal"


_TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.UNINITIALIZED: frozenset({State.INITIALIZING, State.FATAL}),
    State.INITIALIZING: frozenset({State.READY, State.UNINITIALIZED, State.FATAL}),
    State.READY: frozenset({State.UNINITIALIZED, State.FATAL}),
    State.FATAL: frozenset({State.FATAL}),
}


class TransactionManager:
    """An idempotent producer's identity and sequences.

    Args:
        backoff: between attempts to get an id.
        max_in_flight: how many batches of a partition may be under way, at most 5.
        transaction_timeout_ms: what an InitProducerId carries.
    """

    def __init__(self, backoff: Backoff, *, max_in_flight: int = 5, transaction_timeout_ms: int = 60_000) -> None:
        self.state = State.UNINITIALIZED
        self.producer: ProducerIdAndEpoch = NO_PRODUCER
        self.error: OttlaError | None = None
        self.sequences = ProducerSequences(max_in_flight)
        self._backoff = backoff
        self._transaction_timeout_ms = transaction_timeout_ms
        self._failures = 0
        self._retry_at_ms = 0

    # --- the producer id

    def next_request(self, now_ms: int) -> InitProducerIdRequest | None:
        """What has to be asked of a broker now, or None. Each request must be `answered` or `unanswered`."""
        if self.state is not State.UNINITIALIZED or now_ms < self._retry_at_ms:
            return None
        self._move(State.INITIALIZING)
        return InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=self._transaction_timeout_ms)

    def deadline_ms(self) -> int | None:
        """When `next_request` has something again, if it is waiting for that."""
        return self._retry_at_ms if self.state is State.UNINITIALIZED else None

    def answered(self, answer: Any, now_ms: int) -> None:
        """The answer to InitProducerId is there."""
        error = error_for(answer.error_code)
        if error is not None:
            self.unanswered(error, now_ms)
            return
        if self.state is State.FATAL:
            return
        self._failures = 0
        self.producer = ProducerIdAndEpoch(answer.producer_id, answer.producer_epoch)
        self._move(State.READY)

    def unanswered(self, error: OttlaError, now_ms: int) -> None:
        """InitProducerId failed: it is asked again after a pause, unless that cannot help."""
        if self.state is State.FATAL:
            return
        if not isinstance(error, Retriable):
            self.fail(error)
            return
        self._failures += 1
        self._retry_at_ms = now_ms + self._backoff.pause_ms(self._failures)
        self._move(State.UNINITIALIZED)

    def fail(self, error: OttlaError) -> None:
        """Nothing can be sent any more."""
        self._move(State.FATAL)
        if self.error is None:
            self.error = error

    # --- batches

    def may_send(self, partition: Hashable, batch: SequencedBatch) -> bool:
        """Whether the batch at the head of a partition's queue may leave now."""
        return self.state is State.READY and self.sequences.may_send(partition, batch, self.producer)

    def number(self, partition: Hashable, batch: SequencedBatch) -> None:
        """A batch leaves for the first time."""
        self.sequences.number(partition, batch, self.producer)

    def acked(self, partition: Hashable, batch: SequencedBatch, base_offset: int) -> None:
        """A batch is stored."""
        self.sequences.acked(partition, batch, base_offset)

    def given_up(self, partition: Hashable, batch: SequencedBatch, error: BaseException) -> None:
        """A batch that was sent is given up with this error."""
        if isinstance(error, _FATAL):
            self.fail(error)
        self.sequences.given_up(partition, batch)

    def refused(self, partition: Hashable, batch: SequencedBatch, error: KafkaError, log_start_offset: int) -> bool:
        """Whether a batch that a broker refused should be sent again (time and retries permitting)."""
        if isinstance(error, OutOfOrderSequenceNumber):
            self._out_of_order(partition, batch)
            return True
        if isinstance(error, UnknownProducerId):
            # Only brokers before 2.4 say so: they forgot a producer with the last of its records. An unknown log
            # start (-1) is known after the next attempt.
            state = self.sequences.of(partition)
            if log_start_offset != -1 and state is not None and not state.restart_requested:
                self._restart(partition, batch, error)
            return True
        return isinstance(error, Retriable)

    def _out_of_order(self, partition: Hashable, batch: SequencedBatch) -> None:
        state = self.sequences.of(partition)
        if state is None or state.restart_requested:
            return
        if state.is_next(batch.base_sequence) or batch.base_sequence == state.unresolved_after:
            self._restart(partition, batch, OutOfOrderSequenceNumber())
        # Otherwise a batch before it is still to be stored, and then this one fits.

    def _restart(self, partition: Hashable, batch: SequencedBatch, error: KafkaError) -> None:
        logger.warning(
            "%s: %s for the batch that begins with sequence %d of producer %d, epoch %d: numbering starts anew",
            partition,
            type(error).__name__,
            batch.base_sequence,
            *batch.producer,
        )
        self.sequences.request_restart(partition, batch)

    def resolve(self) -> None:
        """Settle what is in doubt, and restart the partitions for which that is due."""
        if self.state is not State.READY:
            return
        due = self.sequences.due_for_restart()
        if not due:
            return
        if any(self._numbered_with(partition) == self.producer for partition in due):
            if self.producer.epoch >= LAST_EPOCH:
                self.producer = NO_PRODUCER
                self._move(State.UNINITIALIZED)
                return
            self.producer = ProducerIdAndEpoch(self.producer.producer_id, self.producer.epoch + 1)
        for partition in due:
            self.sequences.restart(partition, self.producer)

    def _numbered_with(self, partition: Hashable) -> ProducerIdAndEpoch:
        state = self.sequences.of(partition)
        assert state is not None
        return state.producer

    def _move(self, state: State) -> None:
        assert state in _TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state
