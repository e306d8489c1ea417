"""Any requests in any order, where everything is at hand: each answer is the one of a small model of its own.

The model is written from the protocol's description, not from the coordinator: it knows no records, no pending states
and no tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ottla_broker.coordinator.transaction_state import value_of
from ottla_wire.records import build_batch
from support.transactions import Transactions, error_name

PARTITIONS = [("t", 0), ("t", 1), ("u", 0)]
Answer = Any


@dataclass
class Model:
    """One transactional id, as a producer sees its coordinator."""

    next_id: int
    producer_id: int = -1
    epoch: int = -1
    exists: bool = False
    open: set[tuple[str, int]] | None = None
    last_result: str = ""  # "", "commit", "abort": what the last transaction came to, "" after a start
    id_before: int = -1  # of the record before the last one
    epoch_before: int = -1  # the one whose owner may not have heard of the current one
    last_version: int = 0
    ends: list[tuple[tuple[str, int], int, int, bool]] = field(default_factory=list)

    def another_coordinator(self) -> None:
        # Only where each end makes a new epoch the one before is certain.
        if self.last_version != 2 or not self.last_result:
            self.epoch_before = -1

    def fresh(self) -> int:
        self.next_id += 1
        return self.next_id

    def init(self, expected: tuple[int, int] | None) -> Answer:
        if not self.exists:
            self.exists = True
            self.producer_id = self.id_before = self.fresh()
            self.epoch, self.epoch_before = 0, -1
            return self.producer_id, 0
        if expected is not None:
            lost_the_rotation = expected[0] == self.id_before and expected[1] >= 32_766
            if expected[0] != self.producer_id and not lost_the_rotation:
                return "ProducerFenced"
        if self.open is not None:
            self.finish(commit=False, version=2)
            return "ConcurrentTransactions"
        before = self.producer_id
        if self.epoch >= 32_766 and (expected is None or expected[1] == self.epoch):
            self.epoch_before = -1 if expected is None else self.epoch
            self.producer_id, self.epoch = self.fresh(), 0
        elif expected is None or expected[1] == self.epoch:
            self.epoch_before = -1 if expected is None else self.epoch
            self.epoch += 1
        elif expected[1] != self.epoch_before:
            return "ProducerFenced"
        self.id_before, self.last_result = before, ""
        return self.producer_id, self.epoch

    def check(self, producer: tuple[int, int]) -> str:
        if not self.exists or producer[0] != self.producer_id:
            return "InvalidProducerIdMapping"
        return "" if producer[1] == self.epoch else "ProducerFenced"

    def add(self, producer: tuple[int, int], partition: tuple[str, int]) -> str:
        if refusal := self.check(producer):
            return refusal
        if self.open is None or partition not in self.open:
            self.id_before, self.last_result = self.producer_id, ""
            self.open = (self.open or set()) | {partition}
        return ""

    def verify(self, producer: tuple[int, int], partition: tuple[str, int]) -> str:
        if refusal := self.check(producer):
            return refusal
        return "" if self.open is not None and partition in self.open else "TransactionAbortable"

    def end(self, producer: tuple[int, int], *, commit: bool, version: int) -> Answer:
        if not self.exists:
            return "InvalidProducerIdMapping"
        wish = "commit" if commit else "abort"
        if version == 1:
            if refusal := self.check(producer):
                return refusal
            if self.open is not None:
                self.finish(commit=commit, version=1)
                return -1, -1
            return (-1, -1) if self.last_result == wish else "InvalidTxnState"
        over_the_overflow = producer == (self.id_before, 32_766) and self.epoch == 0
        if producer[0] != self.producer_id and not over_the_overflow:
            return "InvalidProducerIdMapping"
        is_retry = over_the_overflow or (producer[1] == self.epoch - 1 and self.last_version == 2)
        if is_retry:
            if self.open is not None or not self.last_result:
                return "ProducerFenced"
            return (self.producer_id, self.epoch) if self.last_result == wish else "InvalidTxnState"
        if producer[1] != self.epoch:
            return "ProducerFenced"
        if self.open is None and commit:
            return "InvalidTxnState"
        self.finish(commit=commit, version=2)
        return self.producer_id, self.epoch

    def finish(self, *, commit: bool, version: int) -> None:
        before = (self.producer_id, self.epoch)
        self.last_version = version
        if version == 2:
            self.epoch_before = self.epoch
            self.epoch = min(self.epoch + 1, 32_767)
        self.ends += [(partition, self.producer_id, self.epoch, commit) for partition in sorted(self.open or ())]
        if version == 2 and before[1] >= 32_766:
            self.producer_id, self.epoch, self.epoch_before = self.fresh(), 0, 32_766
        self.id_before = before[0]
        self.open, self.last_result = None, "commit" if commit else "abort"


def requests() -> st.SearchStrategy[tuple[Any, ...]]:
    # A producer is one that was told (by its number, the newest is 0), give or take an epoch.
    producer = st.tuples(st.integers(0, 3), st.sampled_from([0, 0, 0, 0, -1, 1]))
    commit, partition = st.booleans(), st.sampled_from(PARTITIONS)
    return st.one_of(
        st.tuples(st.just("init"), st.none() | producer),
        st.tuples(st.just("add"), producer, partition, st.sampled_from([2, 3, 4, 5])),
        st.tuples(st.just("verify"), producer, partition),
        st.tuples(st.just("end"), producer, commit, st.sampled_from([2, 4, 5, 5, 5])),
    )


@settings(max_examples=300)
@given(st.sampled_from([0, 0, 32_762, 32_764]), st.lists(requests(), max_size=40), st.sets(st.integers(0, 39)))
def test_every_answer_and_every_marker_is_the_models(
    first_epoch: int, conversation: list[tuple[Any, ...]], restarts: set[int]
) -> None:
    transactions, model = Transactions(), Model(next_id=100)
    told: list[tuple[int, int]] = [(7, 0)]
    if first_epoch:
        transactions.started()
        model.init(None)
        model.epoch = first_epoch
        metadata = transactions.metadata()._replace(producer_epoch=first_epoch)
        (record,) = transactions.log.records(transactions.partition())
        later = build_batch([(0, record.key, value_of(metadata).encode_with_version(1), ())])
        transactions.log.add_batch(transactions.partition(), later, 1)
        transactions.restart()
        told.append((101, first_epoch))
    for number, (what, *arguments) in enumerate(conversation):
        if number in restarts:
            transactions.restart()
            model.another_coordinator()
        answer, expected = play(transactions, model, told, what, arguments)
        assert answer == expected, (number, what, arguments, told)
        if isinstance(expected, tuple) and expected != (-1, -1):
            told.append(expected)
    markers = [(m.partition, m.producer_id, m.producer_epoch, m.committed) for m in transactions.leaders.markers]
    assert markers == model.ends


def play(
    transactions: Transactions, model: Model, told: list[tuple[int, int]], what: str, arguments: list[Any]
) -> tuple[Answer, Answer]:
    """One request to both; their answers."""

    def meant(producer: tuple[int, int]) -> tuple[int, int]:
        back, off = producer
        producer_id, epoch = told[-1 - min(back, len(told) - 1)]
        return producer_id, max(epoch + off, 0)

    if what == "init":
        expected = None if arguments[0] is None else meant(arguments[0])
        response = transactions.init(expected=expected or (-1, -1)).result()
        answer = error_name(response.error_code) or (response.producer_id, response.producer_epoch)
        return answer, model.init(expected)
    producer = meant(arguments[0])
    if what == "add":
        answer = transactions.added(producer, arguments[1], version=arguments[2])
        return answer, model.add(producer, arguments[1])
    if what == "verify":
        return transactions.verify(producer, arguments[1])[arguments[1]], model.verify(producer, arguments[1])
    commit, version = arguments[1], arguments[2]
    answer = transactions.ended(producer, commit=commit, version=version)
    return answer, model.end(producer, commit=commit, version=2 if version == 5 else 1)
