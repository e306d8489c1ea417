"""TransactionVerification: before a transaction's first write to a partition its coordinator is asked (KIP-890).

Theory of operation
===================

A transaction may only be open in partitions that its coordinator knows of: those are the ones that get a marker at its
end, and one that gets none holds up its readers for ever. So for each partition where (producer id, epoch) has no open
transaction yet:

1. `Partition.start_verification` makes a *guard*.
2. The coordinator is asked. Clients of transactions v1 have added the partition themselves, and it is only verified;
   for those of v2 (Produce 12, TxnOffsetCommit 5) the question adds it.
3. The append presents the guard. A marker that was written in between has removed it from the partition, and then the
   append is refused: the answer was about the transaction before.

Where the transaction is open already nothing is asked and nothing is waited for.

A coordinator that is still ending the previous transaction says CONCURRENT_TRANSACTIONS. That is an everyday matter of
v2, where nothing precedes the first write, so it is asked again every `retry_backoff_ms`, up to `retry_max_ms`: cheaper
than to send the client its records back. A coordinator on this node says when the transaction is over
(`transaction_over`), and then it is asked at once.

Of one transactional id one question is under way. Behind it waits at most one: the one with the newer epoch, or, of the
same epoch, the later one, since its client has given up the earlier one.

Source: Kafka's ReplicaManager.handleProduceAppend and AddPartitionsToTxnManager.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ottla_broker.pending import Pending
from ottla_wire import errors

if TYPE_CHECKING:
    from ottla_broker.log.producer_state import Verification
    from ottla_broker.replication.replica_manager import ReplicaManager

TopicIndex = tuple[str, int]


class Clock(Protocol):
    """The broker's two clocks."""

    def now_ms(self) -> int:
        """Monotonic milliseconds."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970."""
        ...


class Coordinator(Protocol):
    """What is asked of the transaction coordinator: AddPartitionsToTxn v4+, for one transaction."""

    def add_partitions(
        self,
        transactional_id: str,
        producer_id: int,
        producer_epoch: int,
        partitions: Sequence[TopicIndex],
        *,
        verify_only: bool,
        now_ms: int,
    ) -> Pending[dict[TopicIndex, int]]:
        """The error code of each partition, 0 for those that are part of the transaction now."""
        ...


class Support(enum.Enum):
    """What a client can do, by the version of its request."""

    VERIFIES = "partitions are added by the client, TRANSACTION_ABORTABLE is not known to it"
    KNOWS_ABORTABLE = "partitions are added by the client"
    ADDS = "partitions are added by the write"


class Verified(NamedTuple):
    """The outcome: which partitions may not be written to, and the guards of those that may.

    A partition in neither has the transaction open already. One in both may not be written to.
    """

    guards: Mapping[TopicIndex, Verification]
    refused: Mapping[TopicIndex, errors.KafkaError]


_Found = tuple[dict[TopicIndex, "Verification"], dict[TopicIndex, errors.KafkaError]]
_NOTHING_TO_ASK = Verified({}, {})


class _Question:
    """One request's question, from its start to its answer."""

    __slots__ = (
        "answer",
        "deadline_ms",
        "guards",
        "producer_epoch",
        "producer_id",
        "refused",
        "retries_until_ms",
        "sequences",
        "support",
        "transactional_id",
    )

    def __init__(
        self,
        transactional_id: str,
        producer_id: int,
        producer_epoch: int,
        sequences: Mapping[TopicIndex, int],
        support: Support,
        retries_until_ms: int,
        found: _Found,
    ) -> None:
        self.transactional_id = transactional_id
        self.producer_id = producer_id
        self.producer_epoch = producer_epoch
        self.sequences = sequences
        self.support = support
        self.retries_until_ms = retries_until_ms
        self.guards, self.refused = found
        self.deadline_ms = 0
        self.answer: Pending[Verified] = Pending()

    def refuse_all(self, error: errors.KafkaError) -> None:
        """The coordinator said nothing about these partitions."""
        for partition in self.guards:
            self.refused[partition] = error

    def finish(self) -> None:
        """Give the answer."""
        self.answer.complete(Verified(self.guards, self.refused))


class TransactionVerification:
    """Asks the coordinators of transactions about partitions; one for all requests of a broker.

    Args:
        coordinator: gives whom to ask.
        verifies: `transaction.partition.verification.enable`; without it only clients of transactions v2 are asked for.
    """

    def __init__(
        self,
        replicas: ReplicaManager,
        clock: Clock,
        coordinator: Callable[[], Coordinator],
        *,
        verifies: bool = True,
        retry_backoff_ms: int = 20,
        retry_max_ms: int = 100,
        request_timeout_ms: int = 30_000,
    ) -> None:
        self._coordinator = coordinator
        self._replicas = replicas
        self._clock = clock
        self._verifies = verifies
        self._retry_backoff_ms = retry_backoff_ms
        self._retry_max_ms = retry_max_ms
        self._request_timeout_ms = request_timeout_ms
        self._asked: dict[str, _Question] = {}  # by transactional id, the oldest first
        self._waiting: dict[str, _Question] = {}
        self._retries: deque[tuple[int, _Question]] = deque()
        self._over: set[str] = set()  # transactional ids that a retry waits for no more

    def verify(
        self,
        transactional_id: str,
        producer_id: int,
        producer_epoch: int,
        sequences: Mapping[TopicIndex, int],
        support: Support,
        *,
        retries: bool = False,
    ) -> Verified | Pending[Verified]:
        """Verify or add the partitions of `sequences` (with the first sequence to be written to each).

        Args:
            retries: whether to ask again while the coordinator is ending the previous transaction.
        """
        if support is not Support.ADDS and not self._verifies:
            return _NOTHING_TO_ASK
        found = guards, refused = self._start(producer_id, producer_epoch, sequences, support)
        if not guards:
            return Verified({}, refused) if refused else _NOTHING_TO_ASK
        until_ms = self._clock.now_ms() + self._retry_max_ms if retries else 0
        question = _Question(transactional_id, producer_id, producer_epoch, sequences, support, until_ms, found)
        self._ask(question)
        if question.answer.done():
            return question.answer.result()
        return question.answer

    def transaction_over(self, transactional_id: str) -> None:
        """The transaction of this id has ended: who waits for that asks again with the next `settle`."""
        if self._retries:
            self._over.add(transactional_id)

    @property
    def is_settled(self) -> bool:
        """Whether `settle` would find nothing to do."""
        return not self._over

    def settle(self) -> None:
        """Ask again for transactional ids whose previous transaction is over."""
        if not self._over:
            return
        over, self._over = self._over, set()
        freed = [question for _, question in self._retries if question.transactional_id in over]
        self._retries = deque(entry for entry in self._retries if entry[1].transactional_id not in over)
        for question in freed:
            self._ask_again(question)

    def tick(self, now_ms: int) -> None:
        """Ask again where it is time, and give up on coordinators that do not answer."""
        while self._retries and self._retries[0][0] <= now_ms:
            self._ask_again(self._retries.popleft()[1])
        overdue = [question for question in self._asked.values() if question.deadline_ms <= now_ms]
        for question in overdue:
            self._end(question, errors.NetworkError("the transaction coordinator did not answer in time"))

    def deadline_ms(self) -> int | None:
        """When `tick` has something to do, or None."""
        if not self._asked and not self._retries:
            return None
        deadlines = [question.deadline_ms for question in self._asked.values()]
        deadlines += [at_ms for at_ms, _ in self._retries]
        return min(deadlines)

    def drain(self) -> None:
        """The broker stops: answer everybody."""
        while self._retries:
            self._retries.popleft()[1].finish()
        while self._asked:
            self._end(next(iter(self._asked.values())), errors.NetworkError("the broker is stopping"))

    # -- inside ------------------------------------------------------------------------------------------------------

    def _start(
        self, producer_id: int, producer_epoch: int, sequences: Mapping[TopicIndex, int], support: Support
    ) -> _Found:
        """Get the guards, and the refusals that need no question."""
        wall_ms = self._clock.wall_ms()
        adds = support is Support.ADDS
        guards: dict[TopicIndex, Verification] = {}
        refused: dict[TopicIndex, errors.KafkaError] = {}
        for (topic, index), sequence in sequences.items():
            try:
                guard = self._replicas.partition(topic, index).start_verification(
                    producer_id, producer_epoch, sequence, wall_ms=wall_ms, adds=adds
                )
            except errors.KafkaError as error:
                refused[topic, index] = error
            else:
                if guard is not None:
                    guards[topic, index] = guard
        return guards, refused

    def _ask_again(self, question: _Question) -> None:
        question.guards, question.refused = self._start(
            question.producer_id, question.producer_epoch, question.sequences, question.support
        )
        if question.guards:
            self._ask(question)
        else:
            question.finish()

    def _ask(self, question: _Question) -> None:
        if question.transactional_id not in self._asked:
            self._send(question)
            return
        waiting = self._waiting.get(question.transactional_id)
        if waiting is not None:
            if waiting.producer_epoch > question.producer_epoch:
                question.refuse_all(_fenced(question))
                question.finish()
                return
            is_fenced = waiting.producer_epoch < question.producer_epoch
            waiting.refuse_all(
                _fenced(waiting) if is_fenced else errors.NetworkError("a later request has replaced it")
            )
        self._waiting[question.transactional_id] = question
        if waiting is not None:
            waiting.finish()

    def _send(self, question: _Question) -> None:
        now_ms = self._clock.now_ms()
        question.deadline_ms = now_ms + self._request_timeout_ms
        self._asked[question.transactional_id] = question
        self._coordinator().add_partitions(
            question.transactional_id,
            question.producer_id,
            question.producer_epoch,
            list(question.guards),
            verify_only=question.support is not Support.ADDS,
            now_ms=now_ms,
        ).on_done(lambda answered: self._answered(question, answered))

    def _answered(self, question: _Question, answered: Pending[dict[TopicIndex, int]]) -> None:
        if self._asked.get(question.transactional_id) is not question:
            return  # it came too late
        error = answered.error()
        if error is not None:
            known = error if isinstance(error, errors.KafkaError) else errors.UnknownServerError(str(error))
            self._end(question, _translated(known, question.support))
            return
        codes = answered.result()
        for partition in question.guards:
            found = errors.error_for(codes[partition])
            if found is not None:
                question.refused[partition] = _translated(found, question.support)
        self._end(question)

    def _end(self, question: _Question, error: errors.KafkaError | None = None) -> None:
        """A question has its answer: tell it, or come back to it later, and let the next one of the id be asked."""
        del self._asked[question.transactional_id]
        if error is not None:
            question.refuse_all(error)
        now_ms = self._clock.now_ms()
        if now_ms < question.retries_until_ms and _is_concurrent(question):
            self._retries.append((now_ms + self._retry_backoff_ms, question))
        else:
            question.finish()
        waiting = self._waiting.pop(question.transactional_id, None)
        if waiting is not None:
            self._ask(waiting)


def _is_concurrent(question: _Question) -> bool:
    return any(isinstance(error, errors.ConcurrentTransactions) for error in question.refused.values())


def _fenced(question: _Question) -> errors.InvalidProducerEpoch:
    return errors.InvalidProducerEpoch(
        f"a newer epoch than {question.producer_epoch} of the producer {question.producer_id} is writing"
    )


def _translated(error: errors.KafkaError, support: Support) -> errors.KafkaError:
    """The coordinator's error as those understand it who write to partitions."""
    if isinstance(error, errors.ProducerFenced):
        return errors.InvalidProducerEpoch(error.message)
    if isinstance(error, errors.TransactionAbortable) and support is Support.VERIFIES:
        return errors.InvalidTxnState(error.message)
    if isinstance(error, errors.ClusterAuthorizationFailed):
        return errors.InvalidTxnState(error.message)
    return error
