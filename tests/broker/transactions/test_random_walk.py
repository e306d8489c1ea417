"""Producers that do anything in any order, with lost answers, delayed copies, slow followers, full disks, takeovers.

The partitions are simulated with what they are there for: a write is open until a marker comes, and then it is
committed or aborted. The walk knows what its producers know. What must always hold:

- no torn transaction: the writes of one transaction all come to the same end;
- no lie: a commit that was answered is a commit in every partition, an abort that was answered an abort;
- no surprise: what nobody has asked to commit is never committed;
- no two owners: nobody is given a producer id and epoch that somebody else was given;
- no hanging: when everything works again every transaction ends, by its producer or by its time-out;
- what is in the log follows the arrows of the states, and a takeover finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ottla_broker.coordinator.transaction_state import LEGAL_SOURCES, metadata_of
from ottla_broker.pending import Pending
from ottla_wire.errors import KafkaStorageError
from ottla_wire.messages.write_txn_markers import WritableTxnMarker
from support.groups import FakeCoordinatorLog
from support.transactions import ID, FakeLeaders, TopicIndex, Transactions, error_name

PRODUCERS = st.integers(0, 2)
PARTITIONS = (("t", 0), ("t", 1), ("u", 0))
TIMEOUT_MS = 60_000
V1_ADD, V1_END, V2_ADD, V2_END = 3, 4, 5, 5


@dataclass(eq=False)
class Transaction:
    """One transaction as its producer means it."""

    asked: str = ""  # "commit" or "abort", once that was asked
    told: str = ""  # what was answered
    ends: list[str] = field(default_factory=list)  # what its writes came to
    writes: int = 0


@dataclass
class Producer:
    """What one instance of the application knows."""

    version: int
    current: tuple[int, int] | None = None
    former: tuple[int, int] | None = None  # while it starts anew: nothing is written with it any more
    transaction: Transaction | None = None


class Partitions(FakeLeaders):
    """Leaders with writes that are open until their marker comes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[tuple[TopicIndex, int], tuple[int, list[Transaction]]] = {}

    def write(self, partition: TopicIndex, producer: tuple[int, int], transaction: Transaction) -> None:
        """A write that the coordinator has allowed just now; an older epoch is refused all the same."""
        producer_id, epoch = producer
        if epoch < self._newest.get((partition, producer_id), (-1, -1))[1]:
            return
        known = self.open.get((partition, producer_id))
        if known is None or known[0] != epoch:
            assert known is None, "a write of a newer epoch while an older transaction is open"
            known = self.open[partition, producer_id] = (epoch, [])
        known[1].append(transaction)
        transaction.writes += 1

    def _take(self, partition: TopicIndex, marker: WritableTxnMarker) -> int:
        code = super()._take(partition, marker)
        if code == 0:
            epoch, transactions = self.open.pop((partition, marker.producer_id), (0, []))
            assert epoch <= marker.producer_epoch, "an old marker has ended a newer transaction"
            for transaction in transactions:
                transaction.ends.append("commit" if marker.transaction_result else "abort")
        return code


class Walk(RuleBasedStateMachine):
    """Three instances of one application, which think each that the transactional id is theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.partitions = Partitions()
        self.world = Transactions(leaders=self.partitions)
        self.producers = [Producer(2), Producer(2), Producer(1)]
        self.transactions: list[Transaction] = []
        self.owners: dict[tuple[int, int], int] = {}
        self.delayed: list[Callable[[], Pending[Any]]] = []
        self.waiting: list[Pending[Any]] = []

    # what producers do

    @rule(who=PRODUCERS, goes_on=st.booleans(), insists=st.sampled_from([False, False, False, True]))
    def start(self, who: int, goes_on: bool, insists: bool) -> None:
        producer = self.producers[who]
        if not insists and any(each.current for each in self.producers):
            return
        # What was open is given up: nobody will ask for its commit any more.
        producer.transaction = None
        producer.former = producer.current or producer.former
        producer.current = None
        expected = producer.former if goes_on and producer.former else (-1, -1)

        def started(response: Any) -> None:
            if response.error_code == 0:
                producer.current = (response.producer_id, response.producer_epoch)
                assert self.owners.setdefault(producer.current, who) == who

        self._asked(self.world.init(expected=expected), started)

    @rule(who=PRODUCERS, partition=st.sampled_from(PARTITIONS))
    def write(self, who: int, partition: TopicIndex) -> None:
        producer = self.producers[who]
        if producer.current is None or (producer.transaction is not None and producer.transaction.asked):
            return
        if producer.transaction is None:
            producer.transaction = Transaction()
            self.transactions.append(producer.transaction)
        transaction, current = producer.transaction, producer.current

        def allowed(codes: dict[TopicIndex, str]) -> None:
            (code,) = codes.values()
            if code == "" and producer.version == 1:
                answer = self.world.add(current, partition, version=V2_ADD, verify_only=True)
                self._asked(answer, verified)
            else:
                verified(codes)

        def verified(codes: dict[TopicIndex, str]) -> None:
            (code,) = codes.values()
            if code == "":
                self.partitions.write(partition, current, transaction)
            elif code in ("ProducerFenced", "InvalidProducerIdMapping"):
                self._dies(producer, current)

        self._asked(self.world.add(current, partition, version=V1_ADD if producer.version == 1 else V2_ADD), allowed)

    @rule(who=PRODUCERS, commit=st.booleans(), answered=st.sampled_from([True, True, False]), copies=st.booleans())
    def end(self, who: int, commit: bool, answered: bool, copies: bool) -> None:
        """Commit or abort; what was asked before is asked again. The answer may be lost, a copy may stay behind."""
        producer = self.producers[who]
        transaction, current = producer.transaction, producer.current
        if current is None or (transaction is None and (commit or producer.version == 1)):
            return
        if transaction is not None:
            transaction.asked = transaction.asked or ("commit" if commit else "abort")
            commit = transaction.asked == "commit"
        version = V2_END if producer.version == 2 else V1_END

        def ended(response: Any) -> None:
            if not answered:
                return
            name = error_name(response.error_code)
            if name in ("ProducerFenced", "InvalidProducerIdMapping", "InvalidTxnState"):
                self._dies(producer, current)
            elif name == "" and producer.current == current:
                if transaction is not None:
                    transaction.told = transaction.asked
                producer.transaction = None
                if version == V2_END:
                    producer.current = (response.producer_id, response.producer_epoch)
                    assert self.owners.setdefault(producer.current, who) == who

        self._asked(self.world.end(current, commit=commit, version=version), ended)
        if copies and version == V2_END:  # in version 1 a late copy may end the next transaction (KAFKA-17754)
            self.delayed.append(lambda: self.world.end(current, commit=commit, version=version))

    @rule(number=st.integers(0, 9))
    def a_delayed_copy_arrives(self, number: int) -> None:
        if number < len(self.delayed):
            self.waiting.append(self.delayed.pop(number)())

    @rule(
        who=PRODUCERS,
        partitions=st.sets(st.sampled_from(PARTITIONS), min_size=1),
        commit=st.sampled_from([True, True, False]),
    )
    def one_transaction(self, who: int, partitions: set[TopicIndex], commit: bool) -> None:
        """What is done nearly always, if nothing comes between."""
        for _ in range(2):  # once to abort what is open, once for itself
            if self.producers[who].current is None:
                self.start(who=who, goes_on=False, insists=True)
        for partition in sorted(partitions):
            self.write(who=who, partition=partition)
        self.end(who=who, commit=commit, answered=True, copies=True)

    # what the world does

    @rule(milliseconds=st.sampled_from([1, 100, 6_000, 30_000]))
    def time_goes_by(self, milliseconds: int) -> None:
        self.world.advance(milliseconds)

    @rule(change=st.sampled_from(["full disk", "slow followers", "slow markers", "no leader", "all well", "all well"]))
    def the_weather(self, change: str) -> None:
        world, partitions = self.world, self.partitions
        world.log.failure = KafkaStorageError() if change == "full disk" else None
        partitions.holds = change == "slow markers"
        partitions.leaders = {PARTITIONS[0]: -1, PARTITIONS[1]: 2} if change == "no leader" else {}
        world.log.replicating = change != "slow followers"
        if world.log.replicating:
            world.replicate()

    @rule(lost=st.booleans())
    def markers_arrive(self, lost: bool) -> None:
        if self.partitions.is_holding:
            self.world.answer_markers(lost=lost)

    @rule(lost_tail=st.booleans(), really=st.sampled_from([True, False, False]))
    def another_coordinator_takes_over(self, lost_tail: bool, really: bool) -> None:
        """It has what is committed, and perhaps more. Markers of the old one may still be on their way."""
        if not really:
            return
        world = self.world
        partition = world.partition()
        end = world.log.high_watermark(partition) if lost_tail else world.log.end_offset(partition)
        copy = FakeCoordinatorLog()
        for batch in world.log.read(partition):
            if batch.next_offset <= end:
                copy.add_batch(partition, bytes(batch.data), batch.count)
        for each in range(world.config.transaction_state_log_num_partitions):
            world.coordinator.unload(each)
        assert all(pending.done() for pending in self.waiting), "unloading answers everybody"
        world.log = copy
        world.restart()

    # what must hold

    @invariant()
    def no_transaction_is_torn_and_nobody_was_told_a_lie(self) -> None:
        for transaction in self.transactions:
            assert len(set(transaction.ends)) <= 1, "torn"
            for end in transaction.ends:
                assert transaction.told in ("", end), "the answer was another one"
                assert end == "abort" or transaction.asked == "commit", "nobody has asked for this commit"

    @invariant()
    def the_log_follows_the_arrows(self) -> None:
        values = [metadata_of(value) for value in self.world.values() if value is not None]
        for before, after in pairwise(values):
            assert before.state in LEGAL_SOURCES[after.state]
            assert (after.producer_id, after.producer_epoch) >= (before.producer_id, before.producer_epoch)
            assert after.producer_id in (before.producer_id, before.next_producer_id)

    def teardown(self) -> None:
        self.the_weather("all well")
        while self.partitions.is_holding:
            self.world.answer_markers()
        self.world.advance(1_000)
        while self.delayed:
            self.waiting.append(self.delayed.pop()())
        self.world.advance(TIMEOUT_MS + 20_000)
        if self.world.state() not in ("none", "Empty"):
            # Where somebody else was believed to have the id (52 or 47), the next coordinator finishes.
            if self.world.pending() is not None:
                self.another_coordinator_takes_over(lost_tail=False, really=True)
            assert self.world.state().startswith("Complete"), self.world.state()
        assert all(pending.done() for pending in self.waiting)
        assert self.partitions.open == {}, "a transaction hangs"
        for transaction in self.transactions:
            assert len(transaction.ends) == transaction.writes
        self.no_transaction_is_torn_and_nobody_was_told_a_lie()
        self.the_log_follows_the_arrows()
        assert self.world.known(ID) is None or self.world.pending() is None

    # bookkeeping

    def _asked(self, answer: Pending[Any], then: Callable[[Any], None]) -> None:
        self.waiting = [pending for pending in self.waiting if not pending.done()]
        self.waiting.append(answer)
        answer.on_done(lambda done: then(done.result()))

    def _dies(self, producer: Producer, current: tuple[int, int]) -> None:
        if producer.current == current:
            producer.current = producer.transaction = None


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=60, stateful_step_count=50)
