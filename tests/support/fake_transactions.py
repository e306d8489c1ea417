"""A transaction coordinator that says what the test wants, for those that ask one."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

from ottla_broker.pending import Pending
from ottla_wire.errors import TransactionAbortable

TopicIndex = tuple[str, int]


class Asked(NamedTuple):
    """One question."""

    transactional_id: str
    producer_id: int
    producer_epoch: int
    partitions: tuple[TopicIndex, ...]
    verify_only: bool


class FakeTransactions:
    """Knows which partitions are part of which transaction.

    Attributes:
        partitions: by transactional id.
        asked: every question so far.
        codes: error codes for the next questions, each for all its partitions; then it answers by what it knows.
        held: questions that are answered when the test calls `answer`, if `holds`.
    """

    def __init__(self) -> None:
        self.partitions: dict[str, set[TopicIndex]] = defaultdict(set)
        self.asked: list[Asked] = []
        self.codes: deque[int] = deque()
        self.holds = False
        self.held: deque[tuple[Asked, Pending[dict[TopicIndex, int]]]] = deque()

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
        question = Asked(transactional_id, producer_id, producer_epoch, tuple(partitions), verify_only)
        self.asked.append(question)
        answer: Pending[dict[TopicIndex, int]] = Pending()
        self.held.append((question, answer))
        if not self.holds:
            self.answer()
        return answer

    def answer(self) -> None:
        """Answer the oldest question."""
        question, answer = self.held.popleft()
        known = self.partitions[question.transactional_id]
        if self.codes:
            code = self.codes.popleft()
            answer.complete(dict.fromkeys(question.partitions, code))
            return
        if not question.verify_only:
            known.update(question.partitions)
        answer.complete({each: 0 if each in known else TransactionAbortable.code for each in question.partitions})

    def end(self, transactional_id: str) -> None:
        """The transaction is over, as far as the coordinator is concerned."""
        self.partitions.pop(transactional_id, None)

    # what a broker does with its coordinators

    is_settled = True

    def settle(self, now_ms: int) -> None:
        pass

    def tick(self, now_ms: int) -> None:
        pass

    def deadline_ms(self) -> int | None:
        return None
