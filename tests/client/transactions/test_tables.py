"""The tables, spelled out a second time: states, methods, and what each refusal of each request means."""

from __future__ import annotations

import pytest

from ottla import errors
from ottla.client.producer.transaction_operation import Calls
from ottla.client.producer.transaction_tables import (
    HINTS,
    METHODS,
    REQUEST_NAMES,
    TRANSITIONS,
    VERDICTS,
    RequestKind,
    TransactionState,
    Verdict,
    produce_verdict,
    verdict,
)
from ottla_wire.errors import error_class, error_codes

R, L, A, B, D, F, X = (
    Verdict.RETRY,
    Verdict.LOOK_UP,
    Verdict.ABORT,
    Verdict.BUMP,
    Verdict.DOUBT,
    Verdict.FATAL,
    Verdict.REFUSE,
)

#                                     find   init   parts  group  offs   end
REFUSALS = {
    "CoordinatorLoadInProgress":     (R,     R,     R,     R,     R,     R),
    "CoordinatorNotAvailable":       (R,     L,     L,     L,     L,     L),
    "NotCoordinator":                (R,     L,     L,     L,     L,     L),
    "Disconnected":                  (R,     L,     L,     L,     L,     L),
    "NoAnswer":                      (R,     L,     L,     L,     L,     L),
    "RequestTimedOut":               (R,     L,     L,     L,     L,     L),
    "ConcurrentTransactions":        (R,     R,     R,     R,     R,     R),
    "NotEnoughReplicas":             (R,     R,     R,     R,     R,     R),
    "UnknownTopicOrPartition":       (R,     R,     R,     R,     R,     R),
    "ProducerFenced":                (F,     D,     D,     D,     D,     D),
    "InvalidProducerEpoch":          (F,     D,     D,     D,     D,     D),
    "InvalidTxnState":               (F,     D,     D,     D,     D,     D),
    "InvalidProducerIdMapping":      (F,     F,     F,     F,     F,     F),
    "TransactionalIdAuthorizationFailed": (F, X,    F,     F,     F,     F),
    "ClusterAuthorizationFailed":    (F,     X,     A,     F,     F,     F),
    "TransactionAbortable":          (A,     X,     A,     A,     A,     A),
    "UnknownProducerId":             (F,     F,     B,     B,     B,     B),
    "TopicAuthorizationFailed":      (F,     F,     A,     F,     A,     F),
    "GroupAuthorizationFailed":      (A,     F,     A,     A,     A,     F),
    "OperationNotAttempted":         (F,     F,     R,     F,     F,     F),
    "InvalidGroupId":                (A,     F,     A,     F,     A,     F),
    "FencedInstanceId":              (F,     F,     A,     F,     A,     F),
    "IllegalGeneration":             (F,     F,     A,     F,     A,     F),
    "UnknownMemberId":               (F,     F,     A,     F,     A,     F),
    "StaleMemberEpoch":              (F,     F,     A,     F,     A,     F),
    "GroupIdNotFound":               (F,     F,     A,     F,     A,     F),
    "RebalanceInProgress":           (F,     F,     A,     F,     A,     F),
    "OffsetMetadataTooLarge":        (F,     F,     A,     F,     A,     F),
    "InvalidCommitOffsetSize":       (F,     F,     A,     F,     A,     F),
    "InvalidTransactionTimeout":     (F,     F,     A,     F,     F,     F),
    "UnsupportedVersion":            (F,     F,     F,     F,     F,     F),
    "UnknownServerError":            (F,     F,     A,     F,     F,     F),
}  # fmt: skip
COLUMNS = (
    RequestKind.FIND_COORDINATOR,
    RequestKind.INIT_PRODUCER_ID,
    RequestKind.ADD_PARTITIONS,
    RequestKind.ADD_OFFSETS,
    RequestKind.COMMIT_OFFSETS,
    RequestKind.END,
)


@pytest.mark.parametrize("name", REFUSALS)
def test_what_a_refusal_of_each_request_means(name: str) -> None:
    error = getattr(errors, name)("no")
    assert tuple(verdict(kind, error) for kind in COLUMNS) == REFUSALS[name]


def test_every_error_of_the_tables_is_in_this_one() -> None:
    listed = {error.__name__ for table in VERDICTS.values() for error in table}
    assert listed - set(REFUSALS) - {"KafkaError", "NetworkError"} == set()


def test_every_error_that_a_broker_can_answer_has_a_meaning_for_every_request() -> None:
    for code in error_codes():
        kind_of_error = error_class(code)
        assert kind_of_error is not None
        for kind in RequestKind:
            ruling = verdict(kind, kind_of_error("no"))
            if issubclass(kind_of_error, errors.Retriable):
                assert ruling in (Verdict.RETRY, Verdict.LOOK_UP), (kind, kind_of_error)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("InvalidProducerEpoch", D),
        ("ProducerFenced", F),
        ("InvalidProducerIdMapping", F),
        ("TransactionalIdAuthorizationFailed", F),
        ("ClusterAuthorizationFailed", F),
        ("UnsupportedVersion", F),
        ("InvalidTxnState", A),
        ("TransactionAbortable", A),
        ("OutOfOrderSequenceNumber", A),
        ("UnknownProducerId", A),
        ("TopicAuthorizationFailed", A),
        ("MessageTooLarge", A),
        ("NotEnoughReplicas", A),
        ("DeliveryTimedOut", A),
        ("SerializationError", A),
        ("BufferExhausted", A),
    ],
)
def test_what_the_error_of_a_batch_means_for_the_producer(name: str, expected: Verdict) -> None:
    assert produce_verdict(getattr(errors, name)("no")) is expected


def test_requests_leave_coordinator_first_and_end_last() -> None:
    assert [REQUEST_NAMES[kind] for kind in sorted(RequestKind)] == [
        "FindCoordinator",
        "DescribeTransactions",
        "InitProducerId",
        "AddPartitionsToTxn",
        "AddOffsetsToTxn",
        "TxnOffsetCommit",
        "EndTxn",
    ]


S = TransactionState
#                        begin  send   offs   commit abort  init    N: NotInTransaction, I: IllegalTransactionState,
CALLS = {  #                                                        E: the error itself, .: allowed
    S.UNINITIALIZED:   ("I",   "N",   "N",   "N",   "N",   "."),
    S.INITIALIZING:    (".",   "N",   "N",   "N",   "N",   "I"),
    S.READY:           (".",   "N",   "N",   "N",   "N",   "I"),
    S.IN_TRANSACTION:  ("I",   ".",   ".",   ".",   ".",   "I"),
    S.COMMITTING:      ("I",   "I",   "I",   "I",   "I",   "I"),
    S.ABORTING:        ("I",   "I",   "I",   "I",   "I",   "I"),
    S.ABORTABLE_ERROR: ("I",   "E",   "E",   "E",   ".",   "I"),
    S.FATAL:           ("E",   "E",   "E",   "E",   "E",   "E"),
}  # fmt: skip
ORDER = (
    "begin_transaction",
    "send",
    "send_offsets_to_transaction",
    "commit_transaction",
    "abort_transaction",
    "init_transactions",
)


@pytest.mark.parametrize("state", list(CALLS))
def test_which_call_is_allowed_when(state: TransactionState) -> None:
    failure = errors.CommitFailed("the group moved on")
    for method, expected in zip(ORDER, CALLS[state], strict=True):
        calls = Calls("tx")
        if expected == ".":
            assert calls.check(method, state, None) is None
            continue
        with pytest.raises(errors.OttlaError) as raised:
            calls.check(method, state, failure if state in (S.ABORTABLE_ERROR, S.FATAL) else None)
        kinds = {"N": errors.NotInTransaction, "I": errors.IllegalTransactionState, "E": errors.CommitFailed}
        assert type(raised.value) is kinds[expected], method
        if expected != "E":
            assert "'tx'" in str(raised.value)
            assert "()" in str(raised.value), "it names what to call"


def test_the_tables_know_every_state() -> None:
    assert set(TRANSITIONS) == set(HINTS) == set(CALLS) == set(TransactionState)
    assert set(METHODS) == set(ORDER)


def test_every_state_is_reached_and_every_state_but_fatal_can_be_left() -> None:
    reached = set().union(*(targets - {state} for state, targets in TRANSITIONS.items()))
    assert reached == set(TransactionState)
    assert [state for state, targets in TRANSITIONS.items() if targets <= {state}] == [TransactionState.FATAL]
    assert all(TransactionState.FATAL in targets for targets in TRANSITIONS.values())


def test_a_commit_is_never_turned_into_an_abort_by_the_table() -> None:
    assert TransactionState.ABORTING not in TRANSITIONS[TransactionState.COMMITTING]
