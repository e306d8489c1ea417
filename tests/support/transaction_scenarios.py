"""Conversations of producers with a transaction coordinator, whichever it is, written down as a transcript.

What a coordinator answers becomes one line each. Producer ids have names (`P1`, `P2`, ...) in the order in which they
appear, times are left out, and after each end the markers are waited for, so that the transcripts of two coordinators
can be compared. The last lines are what is written about the ids in `__transaction_state`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ottla_broker.coordinator.decision import CoordinatorRecord
from ottla_broker.coordinator.group_coordinator import java_abs, java_hash
from ottla_broker.coordinator.transaction_records import TransactionLogValue, read_transaction
from ottla_broker.coordinator.transaction_state import TransactionState
from ottla_wire.messages.add_offsets_to_txn import AddOffsetsToTxnRequest
from ottla_wire.messages.add_partitions_to_txn import AddPartitionsToTxnTopic
from ottla_wire.messages.describe_transactions import DescribeTransactionsRequest
from ottla_wire.messages.end_txn import EndTxnRequest
from ottla_wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from ottla_wire.messages.init_producer_id import InitProducerIdRequest
from ottla_wire.messages.list_transactions import ListTransactionsRequest
from ottla_wire.records import iter_batches
from ottla_wire.schema import Request
from support.transactions import add_partitions_request, error_name

TOPIC = "t"
STATE_TOPIC = "__transaction_state"
STATE_PARTITIONS = 4
SETTINGS = {
    "transaction.state.log.num.partitions": str(STATE_PARTITIONS),
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "100",
}
NOBODY = 10**15  # a producer id that is nobody's
_WAIT_SECONDS = 30

Producer = tuple[int, int]


class Play:
    """One performance of a scenario.

    Args:
        ask: sends a request and returns the answer.
        name: the transactional id; others begin with it.
    """

    def __init__(self, ask: Callable[[Request, int], Any], name: str) -> None:
        self.ask = ask
        self.name = name
        self.lines: list[str] = []
        self.raw: list[CoordinatorRecord] = []
        self._producers: dict[int, str] = {-1: "-", NOBODY: "nobody"}

    # requests

    def init(
        self, *, version: int = 5, name: str | None = None, expected: Producer = (-1, -1), timeout_ms: int = 60_000
    ) -> Producer:
        request = InitProducerIdRequest(
            transactional_id=self.name if name is None else name,
            transaction_timeout_ms=timeout_ms,
            producer_id=expected[0],
            producer_epoch=expected[1],
        )
        answer = self.ask(request, version)
        asked = "" if expected == (-1, -1) else f" as {self._who(expected)}"
        told = (answer.producer_id, answer.producer_epoch)
        self._note(f"init v{version}{asked}", answer.error_code, self._who(told))
        return told

    def idempotent(self, version: int, expected: Producer = (-1, -1)) -> None:
        request = InitProducerIdRequest(
            transactional_id=None, transaction_timeout_ms=0, producer_id=expected[0], producer_epoch=expected[1]
        )
        answer = self.ask(request, version)
        self._note(
            f"init v{version} without an id",
            answer.error_code,
            self._who((answer.producer_id, answer.producer_epoch)),
        )

    def add(
        self,
        producer: Producer,
        *partitions: int,
        version: int = 5,
        verify: bool = False,
        topic: str = TOPIC,
        name: str | None = None,
    ) -> None:
        topics = [AddPartitionsToTxnTopic(name=topic, partitions=list(partitions or (0,)))]
        name = self.name if name is None else name
        request = add_partitions_request(name, producer, topics, version, verify_only=verify)
        answer = self.ask(request, version)
        results = answer.results_by_topic_v3_and_below
        if version >= 4:
            assert answer.error_code == 0
            (only,) = answer.results_by_transaction
            results = only.topic_results
        told = sorted(
            f"{each.name}-{result.partition_index} {error_name(result.partition_error_code) or 'ok'}"
            for each in results
            for result in each.results_by_partition
        )
        what = "verify" if verify else "add"
        self.lines.append(f"{what} v{version} {self._who(producer)}: {', '.join(told)}")

    def add_offsets(self, producer: Producer, version: int = 4, *, group: str = "g") -> None:
        request = AddOffsetsToTxnRequest(
            transactional_id=self.name, producer_id=producer[0], producer_epoch=producer[1], group_id=group
        )
        self._note(f"add offsets v{version} {self._who(producer)}", self.ask(request, version).error_code)

    def end(
        self, producer: Producer, *, commit: bool, version: int = 5, name: str | None = None, waits: bool = True
    ) -> Producer:
        """EndTxn; then wait until the transaction is over, if there is one."""
        request = EndTxnRequest(
            transactional_id=self.name if name is None else name,
            producer_id=producer[0],
            producer_epoch=producer[1],
            committed=commit,
        )
        answer = self.ask(request, version)
        told = (answer.producer_id, answer.producer_epoch)
        what = "commit" if commit else "abort"
        self._note(f"{what} v{version} {self._who(producer)}", answer.error_code, self._who(told))
        if waits:
            self.rest()
        return told

    def rest(self) -> None:
        """Wait until no transaction of the id is on its way to its end."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while self._state().startswith("Prepare"):
            assert time.monotonic() < deadline, "the transaction does not come to its end"
            time.sleep(0.01)

    def await_state(self, state: str) -> None:
        """Wait for a state that comes by itself."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while self._state() != state:
            assert time.monotonic() < deadline, f"it is not {state}, but {self._state()}"
            time.sleep(0.01)

    def describe(self, name: str | None = None) -> None:
        request = DescribeTransactionsRequest(transactional_ids=[self.name if name is None else name])
        (state,) = self.ask(request, 0).transaction_states
        partitions = sorted(f"{topic.topic}-{index}" for topic in state.topics for index in topic.partitions)
        who = "-" if state.error_code else self._who((state.producer_id, state.producer_epoch))
        started = "" if state.transaction_start_time_ms <= 0 else " started"
        self._note(
            "describe",
            state.error_code,
            f"{state.transaction_state} {who} {state.transaction_timeout_ms} ms{started} {partitions}",
        )

    def list(self, version: int = 2, **filters: Any) -> None:
        answer = self.ask(ListTransactionsRequest(**filters), version)
        mine = sorted(
            f"{each.transactional_id.removeprefix(self.name)} {self._who_is(each.producer_id)} {each.transaction_state}"
            for each in answer.transaction_states
            if each.transactional_id.startswith(self.name)
        )
        self._note(f"list v{version}", answer.error_code, f"{mine} unknown {answer.unknown_state_filters}")

    # what is written

    def written(self) -> None:
        """Note the records about the ids of this play."""
        for partition in range(STATE_PARTITIONS):
            for record in self._records(partition):
                read = read_transaction(record)
                assert read is not None, "a record of an unknown kind"
                name, value = read
                if name.startswith(self.name):
                    assert java_abs(java_hash(name)) % STATE_PARTITIONS == partition
                    self.raw.append(record)
                    version = "-" if record.value is None else record.value[1]
                    self.lines.append(f"record{name.removeprefix(self.name)} v{version}: {self._shown(value)}")

    def _records(self, partition: int) -> list[CoordinatorRecord]:
        records: list[CoordinatorRecord] = []
        offset = 0
        while True:
            wanted = FetchPartition(partition=partition, fetch_offset=offset, partition_max_bytes=1 << 20)
            request = FetchRequest(
                max_wait_ms=0,
                min_bytes=0,
                max_bytes=1 << 20,
                topics=[FetchTopic(topic=STATE_TOPIC, partitions=[wanted])],
            )
            (topic,) = self.ask(request, 12).responses
            (found,) = topic.partitions
            assert found.error_code == 0, error_name(found.error_code)
            batches = list(iter_batches(bytearray(found.records or b"")))
            if not batches:
                return records
            records += [
                CoordinatorRecord(record.key or b"", record.value) for batch in batches for record in batch.records()
            ]
            offset = batches[-1].next_offset

    def _shown(self, value: TransactionLogValue | None) -> str:
        if value is None:
            return "forgotten"
        state = TransactionState(value.transaction_status).kafka_name
        partitions = value.transaction_partitions
        listed = (
            None
            if partitions is None
            else sorted(f"{topic.topic}-{index}" for topic in partitions for index in topic.partition_ids)
        )
        started = "" if value.transaction_start_timestamp_ms <= 0 else " started"
        return (
            f"{state} {self._who((value.producer_id, value.producer_epoch))} "
            f"before {self._who_is(value.previous_producer_id)} next {self._who_is(value.next_producer_id)} "
            f"{value.next_producer_epoch} {value.transaction_timeout_ms} ms{started} {listed} "
            f"version {value.client_transaction_version}"
        )

    # inside

    def _state(self) -> str:
        (state,) = self.ask(DescribeTransactionsRequest(transactional_ids=[self.name]), 0).transaction_states
        return str(state.transaction_state)

    def _who_is(self, producer_id: int) -> str:
        return self._producers.setdefault(producer_id, f"P{len(self._producers) - 1}")

    def _who(self, producer: Producer) -> str:
        return f"{self._who_is(producer[0])}:{producer[1]}"

    def _note(self, what: str, code: int, told: str = "ok") -> None:
        name = error_name(code)
        self.lines.append(f"{what}: {told if not name else f'{name} {told}' if told != 'ok' else name}")


SCENARIOS: dict[str, Callable[[Play], None]] = {}


def scenario(play: Callable[[Play], None]) -> Callable[[Play], None]:
    SCENARIOS[play.__name__] = play
    return play


@scenario
def starts(play: Play) -> None:
    for version in range(6):
        play.idempotent(version)
        play.init(version=version)
    play.idempotent(5, (NOBODY, 3))
    play.idempotent(5, (NOBODY, -1))
    play.init(name="")
    for timeout_ms in (0, -1, 900_001, 900_000):
        play.init(timeout_ms=timeout_ms)
    play.describe()
    play.written()


@scenario
def starts_that_go_on(play: Play) -> None:
    first = play.init(expected=(NOBODY, 4))
    for version in (3, 4, 5):
        following = play.init(version=version, expected=first)
        play.init(version=version, expected=first)
        first = following
    newest = play.init()
    for version in (3, 4):
        play.init(version=version, expected=first)
        play.init(version=version, expected=(newest[0], newest[1] + 1))
        play.init(version=version, expected=(NOBODY, 0))
        play.init(version=version, expected=(newest[0], -1))
        play.init(version=version, expected=(-1, 3))
    play.written()


@scenario
def adding(play: Play) -> None:
    play.add((NOBODY, 0))
    play.add((NOBODY, 0), verify=True)
    play.add_offsets((NOBODY, 0))
    old = play.init()
    producer = play.init()
    for version in range(6):
        play.add(old, version=version)
        play.add((producer[0], producer[1] + 1), version=version)
        play.add((NOBODY, 0), version=version)
        play.add(producer, 0, 9, version=version)
        play.add(producer, 0, topic="not there", version=version)
        play.add((NOBODY, 0), version=version, name="")
    play.describe()
    for version in range(5):
        play.add_offsets(old, version)
        play.add_offsets((NOBODY, 0), version)
    for version in range(6):
        play.add(producer, version % 3, version=version)
    play.add(producer, 0, 1, version=4)
    play.add_offsets(producer)
    play.add(producer, 0, 1, verify=True)
    play.add(producer, 2, 3, verify=True)
    play.add(old, 0, verify=True)
    play.describe()
    play.written()


@scenario
def ends_of_version_1(play: Play) -> None:
    play.end((NOBODY, 0), commit=True, version=4)
    play.end((NOBODY, 0), commit=True, version=4, name="")
    old = play.init()
    producer = play.init()
    for commit in (True, False):
        play.end(producer, commit=commit, version=4)
    for version in range(5):
        for first in (True, False):
            play.add(producer, 0, 1, version=min(version, 3))
            play.add_offsets(producer, version=version)
            play.end(old, commit=first, version=version)
            play.end((producer[0], producer[1] + 1), commit=first, version=version)
            play.end((NOBODY, producer[1]), commit=first, version=version)
            play.end(producer, commit=first, version=version)
            play.end(producer, commit=first, version=version)
            play.end(producer, commit=not first, version=version)
            play.end(old, commit=first, version=version)
    play.describe()
    play.written()


@scenario
def ends_of_version_2(play: Play) -> None:
    play.end((NOBODY, 0), commit=True)
    play.end((NOBODY, 0), commit=False, name="")
    old = play.init()
    producer = play.init()
    for first in (True, False):
        for commit in (True, False):
            play.end(old, commit=commit)
        play.end(producer, commit=True)
        producer = play.end(producer, commit=False)
        play.add(producer, 0, 1)
        for commit in (True, False):
            play.end((producer[0], producer[1] - 1), commit=commit)
            play.end((producer[0], producer[1] + 1), commit=commit)
            play.end((NOBODY, producer[1]), commit=commit)
        following = play.end(producer, commit=first)
        play.end(producer, commit=first)
        play.end(producer, commit=not first)
        play.end((producer[0], producer[1] - 1), commit=first)
        play.end((following[0], following[1] + 1), commit=first)
        play.end(following, commit=True)
        producer = play.end(following, commit=False)
        play.end(following, commit=False)
        play.end(following, commit=True)
        play.add(following)
        play.add(producer, verify=True)
    play.describe()
    play.written()


@scenario
def a_delayed_end(play: Play) -> None:
    producer = play.init()
    play.add(producer, 0)
    following = play.end(producer, commit=False)
    play.add(following, 1)
    play.end(producer, commit=True)
    play.end(producer, commit=False)
    play.describe()
    following = play.end(following, commit=True)
    # And as it was before: the next transaction of version 1 is ended by it.
    play.add(following, 2, version=3)
    play.end(following, commit=True, version=4)
    play.add(following, 0, version=3)
    play.end(following, commit=True, version=4)
    play.describe()
    play.written()


@scenario
def clients_of_both_versions(play: Play) -> None:
    producer = play.init()
    play.add(producer, 0, version=3)
    following = play.end(producer, commit=True, version=5)
    play.end(producer, commit=True, version=4)
    play.end(following, commit=True, version=4)
    play.end(following, commit=False, version=4)
    play.add(following, 1, version=5)
    play.end(following, commit=False, version=4)
    play.end(following, commit=False, version=4)
    play.end(following, commit=False, version=5)
    play.describe()
    play.written()


@scenario
def a_newcomer(play: Play) -> None:
    for version in (3, 5):
        old = play.init()
        play.add(old, 0, 1, version=version)
        play.init(expected=(NOBODY, 0))
        play.init()
        play.rest()
        play.describe()
        for each in (3, 5):
            play.add(old, 0, version=each)
            play.add_offsets(old, 1 if each == 3 else 4)
        play.add(old, 0, verify=True)
        newcomer = play.init()
        for each in (1, 2, 4, 5):
            play.end(old, commit=True, version=each)
            play.end(old, commit=False, version=each)
        play.init(expected=old)
        play.init(version=3, expected=old)
        play.add(newcomer, 2)
        play.end(newcomer, commit=True)
    play.written()


@scenario
def a_newcomer_that_is_the_old_one(play: Play) -> None:
    producer = play.init()
    play.add(producer, 0)
    play.init(expected=producer)
    play.rest()
    play.init(expected=producer)
    play.init(expected=producer)
    play.written()


@scenario
def between_the_fence_and_the_newcomer(play: Play) -> None:
    old = play.init()
    play.add(old, 0)
    play.init()
    play.rest()
    play.end(old, commit=True)
    following = play.end(old, commit=False)
    play.add(following, 1)
    play.init()
    play.rest()
    play.end(following, commit=False)
    play.init()
    play.end(following, commit=False)
    play.written()


@scenario
def a_time_out(play: Play) -> None:
    for version in (3, 5):
        producer = play.init(timeout_ms=200)
        play.add(producer, 0, 1, version=version)
        play.await_state("CompleteAbort")
        play.describe()
        play.add(producer, 0, version=version)
        play.add(producer, 0, verify=True)
        play.end(producer, commit=True, version=version)
        play.end(producer, commit=False, version=version)
        play.init(expected=producer)
        play.init(expected=producer)
        play.init()
    play.written()


@scenario
def administrators(play: Play) -> None:
    play.describe()
    play.describe("")
    play.list()
    open_one, ended_one = f"{play.name}-open", f"{play.name}-ended"
    play.init()
    producer = play.init(name=open_one)
    play.add(producer, 0, name=open_one)
    play.describe(open_one)
    play.init(name=ended_one)
    for version in range(3):
        play.list(version)
    play.list(state_filters=["Ongoing"])
    play.list(state_filters=["Ongoing", "Empty", "CompleteCommit"])
    play.list(state_filters=["ongoing", "Dead", "PrepareEpochFence", "x"])
    play.list(producer_id_filters=[producer[0], NOBODY])
    play.list(producer_id_filters=[NOBODY])
    play.list(duration_filter=3_600_000)
    play.list(duration_filter=0)
    play.list(transactional_id_pattern=f"{play.name}-o.*")
    play.list(transactional_id_pattern="o")
    play.list(transactional_id_pattern="")
    play.list(transactional_id_pattern="(")
    play.end(producer, commit=True, name=open_one, waits=False)
