"""The ledger: what clients were told, against what readers see. It knows nothing of producers, brokers or logs.

A transaction is *committed* if its client was told so, *aborted* if it was told so or never asked for a commit, and
*unknown* if it asked and was told neither. Of a committed one all records are read, of an aborted one none, of an
unknown one all or none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class Outcome(Enum):
    ABORTED = "aborted"
    UNKNOWN = "unknown"
    COMMITTED = "committed"


class Place(NamedTuple):
    topic: str
    partition: int
    offset: int


@dataclass
class Transaction:
    """One transaction of one instance of a client, as that instance knows it."""

    client: str
    number: int
    outcome: Outcome = Outcome.ABORTED
    records: list[str] = field(default_factory=list)


class Violation(AssertionError):
    """Something that must never happen has happened."""


class Ledger:
    """Everything that the clients of one simulation were told, and everything that its readers saw."""

    def __init__(self) -> None:
        self.transactions: list[Transaction] = []
        self.seen: dict[Place, str] = {}
        self.inputs_stored: dict[str, Place] = {}  # acknowledged, not in a transaction
        self.inputs_sent: set[str] = set()

    def begin(self, client: str) -> Transaction:
        number = sum(1 for each in self.transactions if each.client == client)
        transaction = Transaction(client, number)
        self.transactions.append(transaction)
        return transaction

    def saw(self, place: Place, value: str) -> None:
        """A read-committed reader was given a record, at any time."""
        before = self.seen.setdefault(place, value)
        if before != value:
            raise Violation(f"{place} was {before!r} and is {value!r}")

    def check(self, final: dict[Place, str]) -> Counter[Outcome]:
        """Compare with what a reader finds at the end; returns how many transactions there were of each outcome."""
        self._check_seen(final)
        where: dict[str, list[Place]] = defaultdict(list)
        for place, value in final.items():
            where[value].append(place)
        for transaction in self.transactions:
            self._check_whole(transaction, where)
        self._check_order(where)
        self._check_inputs(where)
        known = {value for each in self.transactions for value in each.records} | self.inputs_sent
        for place, value in final.items():
            if place.topic != "out" and value not in known:
                raise Violation(f"{place} holds {value!r}, which nobody has sent")
        return Counter(each.outcome for each in self.transactions)

    def _check_seen(self, final: dict[Place, str]) -> None:
        for place, value in self.seen.items():
            if place not in final:
                raise Violation(f"aborted read: {value!r} at {place} was read and is not committed")
            if final[place] != value:
                raise Violation(f"{place} was {value!r} and is {final[place]!r}")

    def _check_whole(self, transaction: Transaction, where: dict[str, list[Place]]) -> None:
        counts = [len(where[value]) for value in transaction.records]
        name = f"transaction {transaction.number} of {transaction.client} ({transaction.outcome.value})"
        if any(count > 1 for count in counts):
            raise Violation(f"{name}: a record is there more than once: {counts}")
        if transaction.outcome is Outcome.COMMITTED and not all(counts):
            raise Violation(f"{name}: lost: {counts}")
        if transaction.outcome is Outcome.ABORTED and any(counts):
            raise Violation(f"{name}: is read all the same: {counts}")
        if any(counts) and not all(counts):
            raise Violation(f"{name}: torn: {counts}")

    def _check_order(self, where: dict[str, list[Place]]) -> None:
        last: dict[tuple[str, str, int], int] = {}
        for transaction in self.transactions:
            for value in transaction.records:
                for topic, partition, offset in where[value]:
                    key = (transaction.client, topic, partition)
                    if offset <= last.get(key, -1):
                        raise Violation(f"{value!r} of {transaction.client} comes before what was sent before it")
                    last[key] = offset

    def _check_inputs(self, where: dict[str, list[Place]]) -> None:
        for value, place in self.inputs_stored.items():
            found = [each for each in where[value] if each.topic == "in"]
            if found != [place]:
                raise Violation(f"input {value!r} was acknowledged at {place} and is at {found}")
        outputs = Counter(value for value, places in where.items() for each in places if each.topic == "out")
        inputs = Counter(value for value, places in where.items() for each in places if each.topic == "in")
        if any(count > 1 for count in inputs.values()):
            raise Violation(f"an input is there twice: {inputs.most_common(1)}")
        if outputs != inputs:
            raise Violation(f"not exactly once: {outputs - inputs} too many, {inputs - outputs} missing")
