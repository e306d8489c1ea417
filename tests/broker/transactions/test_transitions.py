"""Which state may follow which, and what each change makes of an id."""

from __future__ import annotations

from typing import Any

import pytest

from ottla_broker.coordinator.transaction_epoch_end import EpochEnd, EpochEndReason
from ottla_broker.coordinator.transaction_records import TransactionLogValue
from ottla_broker.coordinator.transaction_state import (
    LEGAL_SOURCES,
    STATES_BY_NAME,
    TransactionMetadata,
    TransactionState,
    metadata_of,
    new_id,
    prepare_add_partitions,
    prepare_complete,
    prepare_dead,
    prepare_end,
    prepare_fence,
    prepare_next_epoch,
    prepare_next_producer_id,
    value_of,
)

S = TransactionState
TIMED_OUT = EpochEnd(EpochEndReason.TIMED_OUT, 3, "", "", 9)

LEGAL = {
    # from: to
    S.EMPTY: {S.EMPTY, S.ONGOING, S.PREPARE_ABORT, S.DEAD},
    S.ONGOING: {S.ONGOING, S.PREPARE_COMMIT, S.PREPARE_ABORT, S.PREPARE_EPOCH_FENCE},
    S.PREPARE_COMMIT: {S.COMPLETE_COMMIT},
    S.PREPARE_ABORT: {S.COMPLETE_ABORT},
    S.COMPLETE_COMMIT: {S.EMPTY, S.ONGOING, S.PREPARE_ABORT, S.DEAD},
    S.COMPLETE_ABORT: {S.EMPTY, S.ONGOING, S.PREPARE_ABORT, S.DEAD},
    S.DEAD: set(),
    S.PREPARE_EPOCH_FENCE: {S.PREPARE_ABORT},
}


def an_id(state: TransactionState = S.EMPTY, **fields: Any) -> TransactionMetadata:
    partitions = frozenset({("t", 0)}) if state in (S.ONGOING, S.PREPARE_COMMIT, S.PREPARE_ABORT) else frozenset()
    given = {"producer_id": 7, "producer_epoch": 3, "state": state, "partitions": partitions, "start_ms": 5} | fields
    return new_id(7, 60_000)._replace(**given)


CHANGES = {
    S.EMPTY: lambda m: prepare_next_epoch(m, 1_000, None, 10),
    S.ONGOING: lambda m: prepare_add_partitions(m, [("t", 1)], 2, 10),
    S.PREPARE_COMMIT: lambda m: prepare_end(m, committed=True, transaction_version=2, next_producer_id=-1, now_ms=10),
    S.PREPARE_ABORT: lambda m: prepare_end(m, committed=False, transaction_version=2, next_producer_id=-1, now_ms=10),
    S.DEAD: prepare_dead,
}


@pytest.mark.parametrize("source", S)
@pytest.mark.parametrize("target", S)
def test_every_pair_of_states_is_legal_or_not(source: TransactionState, target: TransactionState) -> None:
    assert (source in LEGAL_SOURCES[target]) == (target in LEGAL[source])
    if target in CHANGES:
        if target in LEGAL[source]:
            assert CHANGES[target](an_id(source)).state is target
        else:
            with pytest.raises(AssertionError):
                CHANGES[target](an_id(source))


@pytest.mark.parametrize("source", S)
def test_only_what_is_prepared_is_completed(source: TransactionState) -> None:
    expected = {S.PREPARE_COMMIT: S.COMPLETE_COMMIT, S.PREPARE_ABORT: S.COMPLETE_ABORT}
    if source in expected:
        assert prepare_complete(an_id(source), 10).state is expected[source]
    else:
        with pytest.raises(AssertionError):
            prepare_complete(an_id(source), 10)


@pytest.mark.parametrize("source", S)
@pytest.mark.parametrize("version", [0, 2])
def test_only_what_is_open_is_fenced(source: TransactionState, version: int) -> None:
    def fence() -> TransactionMetadata:
        return prepare_fence(an_id(source), TIMED_OUT, transaction_version=version, next_producer_id=-1, now_ms=10)

    if source is S.ONGOING:
        fenced = fence()
        assert (fenced.state, fenced.producer_epoch, fenced.epoch_end) == (S.PREPARE_ABORT, 4, TIMED_OUT)
        assert fenced.last_producer_epoch == (3 if version else -1)
    else:
        with pytest.raises(AssertionError):
            fence()


@pytest.mark.parametrize("source", [S.EMPTY, S.COMPLETE_COMMIT, S.COMPLETE_ABORT])
def test_version_1_does_not_end_what_has_not_begun(source: TransactionState) -> None:
    with pytest.raises(AssertionError):
        prepare_end(an_id(source), committed=False, transaction_version=0, next_producer_id=-1, now_ms=10)


def test_an_end_of_version_1_leaves_the_epochs_alone() -> None:
    before = an_id(S.ONGOING, last_producer_epoch=2)
    ended = prepare_end(before, committed=True, transaction_version=0, next_producer_id=-1, now_ms=10)
    assert (ended.producer_epoch, ended.last_producer_epoch) == (3, 2)
    completed = prepare_complete(ended, 11)
    assert (completed.producer_id, completed.producer_epoch, completed.partitions) == (7, 3, frozenset())
    assert completed.start_ms == 5


def test_an_end_of_version_2_takes_the_epoch_one_up_and_remembers_the_one_before() -> None:
    ended = prepare_end(an_id(S.ONGOING), committed=True, transaction_version=2, next_producer_id=-1, now_ms=10)
    assert (ended.producer_epoch, ended.last_producer_epoch, ended.transaction_version) == (4, 3, 2)
    completed = prepare_complete(ended, 11)
    assert (completed.producer_epoch, completed.last_producer_epoch) == (4, 3)


def test_an_end_with_the_last_epoch_goes_on_with_the_next_producer_id() -> None:
    before = an_id(S.ONGOING, producer_epoch=32_766)
    ended = prepare_end(before, committed=True, transaction_version=2, next_producer_id=8, now_ms=10)
    assert (ended.producer_id, ended.producer_epoch, ended.next_producer_id) == (7, 32_767, 8)
    completed = prepare_complete(ended, 11)
    assert (completed.producer_id, completed.producer_epoch, completed.next_producer_id) == (8, 0, -1)
    assert (completed.previous_producer_id, completed.last_producer_epoch) == (7, 32_766)


def test_a_start_after_the_last_epoch_takes_a_fresh_producer_id() -> None:
    exhausted = an_id(S.COMPLETE_ABORT, producer_epoch=32_767)
    for expected, last in ((None, -1), (32_767, 32_767)):
        started = prepare_next_producer_id(exhausted, 8, 1_000, expected, 10)
        assert (started.producer_id, started.producer_epoch, started.last_producer_epoch) == (8, 0, last)
        assert (started.previous_producer_id, started.timeout_ms, started.start_ms) == (7, 1_000, -1)
    with pytest.raises(AssertionError):
        prepare_next_epoch(exhausted, 1_000, None, 10)


def test_a_retry_of_the_start_that_took_the_last_epoch_is_told_it_again() -> None:
    last = an_id(producer_epoch=32_766, last_producer_epoch=32_765)
    assert prepare_next_epoch(last, 1_000, 32_765, 10).producer_epoch == 32_766


def test_every_record_names_the_producer_id_before_it() -> None:
    for state, change in CHANGES.items():
        source = next(iter(LEGAL_SOURCES[state]))
        assert change(an_id(source, previous_producer_id=1)).previous_producer_id == 7


def test_the_names_are_kafkas() -> None:
    assert list(STATES_BY_NAME) == [
        "Empty",
        "Ongoing",
        "PrepareCommit",
        "PrepareAbort",
        "CompleteCommit",
        "CompleteAbort",
        "Dead",
        "PrepareEpochFence",
    ]


@pytest.mark.parametrize("state", list(S)[:6])
@pytest.mark.parametrize("end", [None, EpochEnd(EpochEndReason.FENCED, 2, "client", "host", 1_234)])
def test_what_is_written_is_what_is_read(state: TransactionState, end: EpochEnd | None) -> None:
    before = an_id(state, previous_producer_id=6, next_producer_id=9, transaction_version=2, epoch_end=end)
    value = TransactionLogValue.decode_with_version(value_of(before).encode_with_version(1))
    read = metadata_of(value)
    assert read._replace(last_producer_epoch=-1) == before
    # Version 2 has taken the epoch one up with the end, so the one before is certain.
    assert read.last_producer_epoch == (2 if state in (S.PREPARE_COMMIT, S.PREPARE_ABORT) or state >= 4 else -1)


@pytest.mark.parametrize("state", list(S)[:6])
def test_version_0_of_a_record_knows_less_and_reads_as_that(state: TransactionState) -> None:
    before = an_id(state, previous_producer_id=6, next_producer_id=9, transaction_version=2, epoch_end=TIMED_OUT)
    read = metadata_of(TransactionLogValue.decode_with_version(value_of(before).encode_with_version(0)))
    assert read == before._replace(previous_producer_id=-1, next_producer_id=-1, transaction_version=0, epoch_end=None)
