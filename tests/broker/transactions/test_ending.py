"""EndTxn: every cell of both tables, and what happens on the way from the decision to the last marker."""

from __future__ import annotations

import pytest

from ottla_broker.coordinator.transaction_ending import V1, V2, Ending, Epoch
from ottla_broker.coordinator.transaction_state import TransactionState
from ottla_wire.errors import NotEnoughReplicas
from support.transactions import T0, T1, T2, Marker, Transactions, error

STATES = ["Empty", "Ongoing", "PrepareCommit", "PrepareAbort", "CompleteCommit", "CompleteAbort"]
PREPARES, DONE, BUSY, FENCED, INVALID = (
    "prepares",
    "done",
    "ConcurrentTransactions",
    "ProducerFenced",
    "InvalidTxnState",
)


def brought_to(state: str, version: int) -> tuple[Transactions, tuple[int, int]]:
    """An id in a state, by a client of that version of EndTxn; and the producer as the coordinator knows it."""
    transactions = Transactions()
    if state == "Empty":
        # With an epoch behind it.
        transactions.started()
        return transactions, transactions.started()
    producer = transactions.begun(T0, version=5 if version == 5 else 3)
    if state != "Ongoing":
        transactions.leaders.holds = True
        transactions.end(producer, commit="Commit" in state, version=version)
        if "Complete" in state:
            transactions.answer_markers()
        transactions.leaders.holds = False
    assert transactions.state() == state
    metadata = transactions.metadata()
    return transactions, (metadata.producer_id, metadata.producer_epoch)


def outcome(transactions: Transactions, producer: tuple[int, int], *, commit: bool, version: int) -> str:
    """What an EndTxn comes to."""
    current = (transactions.metadata().producer_id, transactions.metadata().producer_epoch)
    written = transactions.log.appends
    answer = transactions.ended(producer, commit=commit, version=version)
    if isinstance(answer, str):
        assert transactions.log.appends == written
        return answer
    if transactions.log.appends == written:
        assert answer == (current if version == 5 else (-1, -1))
        return DONE
    assert answer == ((current[0], current[1] + 1) if version == 5 else (-1, -1))
    assert transactions.history()[-2:] == (
        ["PrepareCommit", "CompleteCommit"] if commit else ["PrepareAbort", "CompleteAbort"]
    )
    return PREPARES


# state, then abort and commit
V1_OUTCOMES = {
    "Empty": (INVALID, INVALID),
    "Ongoing": (PREPARES, PREPARES),
    "PrepareCommit": (BUSY, BUSY),
    "PrepareAbort": (BUSY, BUSY),
    "CompleteCommit": (INVALID, DONE),
    "CompleteAbort": (DONE, INVALID),
}

# state, then abort of a retry, abort, commit of a retry, commit
V2_OUTCOMES = {
    "Empty": (FENCED, PREPARES, FENCED, INVALID),
    "Ongoing": (FENCED, PREPARES, FENCED, PREPARES),
    "PrepareCommit": (BUSY, BUSY, BUSY, BUSY),
    "PrepareAbort": (BUSY, BUSY, BUSY, BUSY),
    "CompleteCommit": (INVALID, PREPARES, DONE, INVALID),
    "CompleteAbort": (DONE, PREPARES, INVALID, INVALID),
}


@pytest.mark.parametrize("version", range(5))
@pytest.mark.parametrize("commit", [False, True], ids=["abort", "commit"])
@pytest.mark.parametrize("state", STATES)
def test_every_cell_of_version_1(state: str, commit: bool, version: int) -> None:
    transactions, producer = brought_to(state, version)
    assert outcome(transactions, producer, commit=commit, version=version) == V1_OUTCOMES[state][commit]


@pytest.mark.parametrize("epochs_off", [-1, 1])
@pytest.mark.parametrize("state", STATES)
def test_in_version_1_another_epoch_is_always_fenced(state: str, epochs_off: int) -> None:
    transactions, (producer_id, epoch) = brought_to(state, 4)
    for commit in (False, True):
        other = (producer_id, epoch + epochs_off)
        assert outcome(transactions, other, commit=commit, version=4) == FENCED


@pytest.mark.parametrize("commit", [False, True], ids=["abort", "commit"])
@pytest.mark.parametrize("retry", [True, False], ids=["retry", "current"])
@pytest.mark.parametrize("state", STATES)
def test_every_cell_of_version_2(state: str, retry: bool, commit: bool) -> None:
    transactions, (producer_id, epoch) = brought_to(state, 5)
    producer = (producer_id, epoch - 1) if retry else (producer_id, epoch)
    expected = V2_OUTCOMES[state][2 * commit + (not retry)]
    if expected == BUSY:
        transactions.leaders.holds = True
    assert outcome(transactions, producer, commit=commit, version=5) == expected


@pytest.mark.parametrize("epochs_off", [-2, 1])
@pytest.mark.parametrize("state", ["Empty", "Ongoing", "CompleteCommit", "CompleteAbort"])
def test_in_version_2_an_epoch_that_is_neither_is_fenced(state: str, epochs_off: int) -> None:
    transactions, (producer_id, epoch) = brought_to(state, 5)
    for commit in (False, True):
        assert outcome(transactions, (producer_id, epoch + epochs_off), commit=commit, version=5) == FENCED


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("state", ["Empty", "Ongoing", "CompleteCommit", "CompleteAbort"])
def test_another_producer_id_is_told_so(state: str, version: int) -> None:
    transactions, (producer_id, epoch) = brought_to(state, version)
    for each in (epoch, epoch - 1):
        assert (
            outcome(transactions, (producer_id + 9, each), commit=False, version=version) == "InvalidProducerIdMapping"
        )


# Behind the pending state (a Prepare state has one nearly always) the tables have these cells: they are what is left
# when the coordinator has just been loaded.
V1_PREPARED = {"PrepareCommit": (INVALID, BUSY), "PrepareAbort": (BUSY, INVALID)}
V2_PREPARED = {"PrepareCommit": (INVALID, FENCED, BUSY, FENCED), "PrepareAbort": (BUSY, FENCED, INVALID, FENCED)}


@pytest.mark.parametrize("commit", [False, True], ids=["abort", "commit"])
@pytest.mark.parametrize("state", V1_PREPARED)
def test_version_1_meets_a_prepared_transaction_that_is_not_being_finished_yet(state: str, commit: bool) -> None:
    transactions, producer = brought_to(state, 4)
    loaded_but_not_recovered(transactions)
    assert outcome(transactions, producer, commit=commit, version=4) == V1_PREPARED[state][commit]


@pytest.mark.parametrize("commit", [False, True], ids=["abort", "commit"])
@pytest.mark.parametrize("retry", [True, False], ids=["retry", "current"])
@pytest.mark.parametrize("state", V2_PREPARED)
def test_version_2_meets_a_prepared_transaction_that_is_not_being_finished_yet(
    state: str, retry: bool, commit: bool
) -> None:
    transactions, (producer_id, epoch) = brought_to(state, 5)
    loaded_but_not_recovered(transactions)
    producer = (producer_id, epoch - 1) if retry else (producer_id, epoch)
    assert outcome(transactions, producer, commit=commit, version=5) == V2_PREPARED[state][2 * commit + (not retry)]


def loaded_but_not_recovered(transactions: Transactions) -> None:
    transactions.coordinator.load(transactions.partition(), 9, transactions.now_ms)
    assert transactions.pending() is None


def test_the_tables_have_every_cell() -> None:
    states = {state for state in TransactionState if state.value < 6}
    assert set(V1) == set(V2) == states
    for state in states:
        assert set(V1[state]) == {True, False}
        assert set(V2[state]) == {(c, e) for c in (True, False) for e in (Epoch.RETRY, Epoch.CURRENT)}
    assert {cell for row in (*V1.values(), *V2.values()) for cell in row.values()} == set(Ending)


@pytest.mark.parametrize("version", [4, 5])
def test_nobody_ends_what_is_not_known(version: int) -> None:
    transactions = Transactions()
    assert transactions.ended((1, 0), version=version) == "InvalidProducerIdMapping"
    assert transactions.ended((1, 0), name="", version=version) == "InvalidRequest"


@pytest.mark.parametrize(
    ("version", "name"), [(1, "InvalidProducerEpoch"), (2, "ProducerFenced"), (5, "ProducerFenced")]
)
def test_fenced_is_told_by_version(version: int, name: str) -> None:
    transactions = Transactions()
    old = transactions.started()
    transactions.started()
    transactions.started()
    assert transactions.ended(old, version=version) == name


# the way


def test_the_markers_of_version_2_have_the_new_epoch_and_those_of_version_1_the_old_one() -> None:
    transactions = Transactions()
    transactions.ended(transactions.begun(T0, name="v2"), name="v2")
    transactions.ended(transactions.begun(T1, name="v1", version=3), name="v1", version=4, commit=False)
    assert transactions.leaders.markers == [
        Marker(T0, 101, 1, committed=True, coordinator_epoch=1, transaction_version=2),
        Marker(T1, 102, 0, committed=False, coordinator_epoch=1, transaction_version=0),
    ]


def test_the_client_is_told_when_the_decision_is_replicated_and_not_before() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    transactions.log.replicating = False
    transactions.leaders.holds = True
    answer = transactions.end(producer)
    assert not answer.done()
    assert transactions.leaders.requests == [], "whatever is not certain is not told to partitions either"
    assert transactions.pending() == "PrepareCommit"
    transactions.replicate()
    assert answer.done(), "without waiting for the markers"
    assert (answer.result().producer_id, answer.result().producer_epoch) == (101, 1)
    assert (transactions.state(), transactions.pending()) == ("PrepareCommit", "CompleteCommit")
    assert len(transactions.leaders.requests) == 1


def test_it_is_complete_when_the_last_partition_has_its_marker() -> None:
    transactions = Transactions()
    transactions.leaders.leaders = {T0: 1, T1: 2, T2: 3}
    transactions.leaders.holds = True
    producer = transactions.begun(T0, T1, T2)
    transactions.end(producer)
    for _ in range(2):
        transactions.answer_markers()
        assert transactions.state() == "PrepareCommit"
    transactions.answer_markers()
    assert (transactions.state(), transactions.pending()) == ("CompleteCommit", None)
    value = transactions.values()[-1]
    assert value is not None
    assert value.transaction_partitions == []


def test_an_end_takes_no_turn_longer_than_the_request_where_everything_is_at_hand() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    deadline_ms = transactions.coordinator.deadline_ms()
    assert transactions.ended(producer) == (101, 1)
    assert transactions.state() == "CompleteCommit"
    assert transactions.coordinator.deadline_ms() == deadline_ms, "nothing waits for a timer"


def test_what_many_end_in_one_turn_is_written_at_once() -> None:
    transactions = Transactions(transaction_state_log_num_partitions=1)
    names = [f"id-{number}" for number in range(20)]
    producers = {name: transactions.begun(T0, name=name) for name in names}
    written = transactions.log.appends
    answers = [transactions.end(producers[name], name=name, settle=False) for name in names]
    assert not any(answer.done() for answer in answers)
    transactions.settle()
    assert [error(answer) for answer in answers] == [""] * 20
    assert transactions.log.appends == written + 2, "one batch of Prepare, one of Complete"
    assert len(transactions.leaders.requests) == 1
    assert {transactions.state(name) for name in names} == {"CompleteCommit"}


def test_an_id_that_is_being_ended_in_this_turn_is_busy_for_others() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    first = transactions.end(producer, settle=False)
    second = transactions.end(producer, commit=False, settle=False)
    assert error(second) == "ConcurrentTransactions"
    transactions.settle()
    assert error(first) == ""
    assert transactions.state() == "CompleteCommit"


@pytest.mark.parametrize("version", [4, 5])
def test_an_end_that_cannot_be_written_has_not_happened(version: int) -> None:
    transactions = Transactions()
    producer = transactions.begun(T0, version=version - 1 if version == 4 else 5)
    transactions.log.failure = NotEnoughReplicas()
    assert transactions.ended(producer, version=version) == "CoordinatorNotAvailable"
    assert (transactions.state(), transactions.pending()) == ("Ongoing", None)
    assert transactions.leaders.requests == []
    transactions.log.failure = None
    assert not isinstance(transactions.ended(producer, commit=False, version=version), str)
    assert transactions.state() == "CompleteAbort", "the client may still decide otherwise"


def test_an_abort_of_nothing_gives_a_new_epoch_all_the_same() -> None:
    transactions = Transactions()
    producer = transactions.started()
    transactions.advance(10)
    assert transactions.ended(producer, commit=False) == (101, 1)
    assert transactions.leaders.requests == []
    assert transactions.history() == ["Empty", "PrepareAbort", "CompleteAbort"]
    assert transactions.metadata().start_ms == transactions.wall_ms(), "a start is needed, so it began just now"
    assert transactions.added(producer) == "ProducerFenced"
    assert transactions.added((101, 1)) == ""


# what the answer took too long for


def test_a_decision_that_is_replicated_late_is_carried_out_although_its_client_was_told_otherwise() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0)
    transactions.log.replicating = False
    answer = transactions.end(producer)
    transactions.advance(5_000)
    assert error(answer) == "CoordinatorNotAvailable"
    assert transactions.ended(producer) == "ConcurrentTransactions", "nobody knows yet"
    transactions.advance(60_000)
    assert transactions.leaders.requests == []
    transactions.log.replicating = True
    transactions.replicate()
    assert transactions.state() == "CompleteCommit"
    assert transactions.ended(producer) == (101, 1), "the retry learns how it went"
    assert transactions.ended(producer, commit=False) == "InvalidTxnState"


# KAFKA-17754: an EndTxn that is delayed until the next transaction has begun


def test_a_delayed_end_of_version_2_does_not_end_the_next_transaction() -> None:
    for late_commit in (True, False):
        transactions = Transactions()
        producer = transactions.begun(T0)
        following = transactions.ended(producer, commit=not late_commit)
        assert isinstance(following, tuple)
        transactions.added(following, T1)
        markers = list(transactions.leaders.markers)
        assert transactions.ended(producer, commit=late_commit) == "ProducerFenced"
        assert transactions.ended(producer, commit=not late_commit) == "ProducerFenced"
        assert (transactions.state(), transactions.leaders.markers) == ("Ongoing", markers)


def test_a_delayed_end_of_version_1_does_which_is_why_there_is_a_version_2() -> None:
    transactions = Transactions()
    producer = transactions.begun(T0, version=3)
    transactions.ended(producer, commit=False, version=4)
    transactions.added(producer, T1, version=3)
    assert transactions.ended(producer, commit=False, version=4) == (-1, -1)
    assert transactions.leaders.markers[-1].partition == T1


def test_who_was_fenced_is_not_given_the_epoch_of_a_living_producer_of_version_1() -> None:
    """Apache Kafka does that: one epoch behind a Complete state it sees a retry, whoever ended the transaction."""
    transactions = Transactions()
    old = transactions.started()
    living = transactions.begun(T0, version=3)
    transactions.ended(living, version=4, commit=False)
    for commit in (False, True):
        assert transactions.ended(old, commit=commit) == "ProducerFenced"
    assert transactions.added(living, T1, version=3) == ""
