"""Idempotence, transactions and their snapshots, as one partition sees them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_batches import FOLDER, NOW, append, batch, end_transaction, open_log
from log_simulated_files import SimulatedFiles

from ottla_broker.log.batch import MAX_SEQUENCE, advance_sequence, rewind_sequence
from ottla_broker.log.partition_log import PartitionLog
from ottla_broker.log.producer_snapshot import CorruptSnapshot, decode_snapshot, encode_snapshot
from ottla_broker.log.producer_state import AppendOrigin, ProducerState, SequenceRange
from ottla_wire.errors import (
    InvalidProducerEpoch,
    InvalidTxnState,
    OutOfOrderSequenceNumber,
    TransactionCoordinatorFenced,
)

PID = 77
DAY_MS = 86_400_000


@pytest.fixture
def log() -> PartitionLog:
    return open_log(SimulatedFiles())


def send(log: PartitionLog, sequence: int, count: int = 1, *, epoch: int = 0, transactional: bool = False, **how):
    return append(log, batch(count, producer=(PID, epoch, sequence), transactional=transactional), **how)


# ---- duplicates and sequences


def test_the_first_batch_of_an_unknown_producer_may_have_any_sequence(log: PartitionLog) -> None:
    assert send(log, 500).first_offset == 0


def test_a_repeated_batch_is_answered_with_where_it_is(log: PartitionLog) -> None:
    append(log, batch(3))
    first = send(log, 0, 4)
    send(log, 4, 2)
    again = send(log, 0, 4)
    assert again.duplicate
    assert (again.first_offset, again.last_offset) == (first.first_offset, first.last_offset) == (3, 6)
    assert again.log_append_time_ms == NOW
    assert log.log_end_offset == 9


def test_the_fifth_batch_back_is_a_duplicate_and_the_sixth_is_out_of_order(log: PartitionLog) -> None:
    for sequence in range(6):
        send(log, sequence)
    assert send(log, 1).duplicate
    with pytest.raises(OutOfOrderSequenceNumber):
        send(log, 0)


def test_a_batch_that_overlaps_one_that_is_stored_is_out_of_order(log: PartitionLog) -> None:
    send(log, 0, 5)
    for sequence, count in [(3, 5), (0, 4), (0, 6), (4, 1)]:
        with pytest.raises(OutOfOrderSequenceNumber):
            send(log, sequence, count)
    assert log.log_end_offset == 5


def test_a_gap_is_out_of_order(log: PartitionLog) -> None:
    send(log, 0)
    with pytest.raises(OutOfOrderSequenceNumber):
        send(log, 2)


def test_sequences_go_on_at_zero_after_the_largest(log: PartitionLog) -> None:
    send(log, MAX_SEQUENCE - 2, 3)
    assert send(log, 0).first_offset == 3


def test_a_batch_may_span_the_largest_sequence(log: PartitionLog) -> None:
    send(log, MAX_SEQUENCE - 1, 5)
    entry = log.producers.get(PID)
    assert entry is not None
    assert entry.last_sequence == 2
    assert send(log, MAX_SEQUENCE - 1, 5).duplicate
    with pytest.raises(OutOfOrderSequenceNumber):
        send(log, 2)
    send(log, 3)


@given(sequence=st.integers(0, MAX_SEQUENCE), by=st.integers(0, MAX_SEQUENCE))
def test_sequences_wrap_without_becoming_negative(sequence: int, by: int) -> None:
    moved = advance_sequence(sequence, by)
    assert moved == (sequence + by) % (MAX_SEQUENCE + 1)
    assert rewind_sequence(moved, by) == sequence


def test_a_spanning_batch_is_a_duplicate_after_a_restart_too() -> None:
    files = SimulatedFiles()
    log = open_log(files)
    send(log, MAX_SEQUENCE - 1, 5)
    log.close()
    log = open_log(files, clean_shutdown=True, recovery_point=5)
    assert send(log, MAX_SEQUENCE - 1, 5).duplicate


# ---- epochs


def test_a_new_epoch_starts_at_sequence_zero(log: PartitionLog) -> None:
    send(log, 0)
    with pytest.raises(OutOfOrderSequenceNumber):
        send(log, 1, epoch=1)
    assert send(log, 0, epoch=1).first_offset == 1


def test_a_new_epoch_forgets_the_window_of_the_old_one(log: PartitionLog) -> None:
    send(log, 0)
    send(log, 0, epoch=1)
    with pytest.raises(InvalidProducerEpoch):
        send(log, 0, epoch=0)
    assert send(log, 0, epoch=1).duplicate


def test_a_lower_epoch_is_fenced(log: PartitionLog) -> None:
    send(log, 0, epoch=3)
    with pytest.raises(InvalidProducerEpoch):
        send(log, 1, epoch=2)


def test_replicated_batches_are_not_checked(log: PartitionLog) -> None:
    other = open_log(SimulatedFiles())
    send(other, 0, epoch=3)
    log.append_as_follower(other.read(0, 1000).records, leader_epoch=0, now_ms=NOW)
    late = open_log(SimulatedFiles())
    append(late, batch())
    send(late, 40, epoch=1)
    records = late.read(1, 1000).records
    assert log.append_as_follower(records, leader_epoch=0, now_ms=NOW)


# ---- transactions


def test_a_transaction_is_unstable_until_the_high_watermark_passes_its_marker(log: PartitionLog) -> None:
    append(log, batch(2))
    assert log.first_unstable_offset is None
    send(log, 0, 3, transactional=True)
    log.high_watermark_moved(5)
    assert log.first_unstable_offset == log.last_stable_offset == 2
    end_transaction(log, PID, 0, commit=True)
    assert log.producers.open_transactions == {}
    assert log.first_unstable_offset == 2
    log.high_watermark_moved(5)
    assert log.last_stable_offset == 2
    log.high_watermark_moved(6)
    assert log.first_unstable_offset is None
    assert log.last_stable_offset == 6


def test_the_oldest_open_transaction_holds_the_stable_offset(log: PartitionLog) -> None:
    append(log, batch(producer=(1, 0, 0), transactional=True))
    append(log, batch(producer=(2, 0, 0), transactional=True))
    end_transaction(log, 2, 0, commit=True)
    log.high_watermark_moved(3)
    assert log.first_unstable_offset == 0
    end_transaction(log, 1, 0, commit=True)
    log.high_watermark_moved(4)
    assert log.first_unstable_offset is None


def test_an_aborted_transaction_is_indexed_with_what_was_stable_then(log: PartitionLog) -> None:
    append(log, batch(producer=(1, 0, 0), transactional=True))
    append(log, batch(producer=(2, 0, 0), transactional=True))
    end_transaction(log, 2, 0, commit=False)
    end_transaction(log, 1, 0, commit=False)
    assert [tuple(entry) for entry in log.aborted_transactions(0, 10)] == [(2, 1, 2, 0), (1, 0, 3, 4)]


def test_a_marker_without_data_makes_no_index_entry(log: PartitionLog) -> None:
    end_transaction(log, PID, 0, commit=False)
    assert log.aborted_transactions(0, 10) == []


def test_a_plain_batch_inside_a_transaction_is_refused(log: PartitionLog) -> None:
    send(log, 0, transactional=True)
    with pytest.raises(InvalidTxnState):
        send(log, 1)
    assert log.log_end_offset == 1


def test_sequences_run_on_across_a_marker_of_the_same_epoch(log: PartitionLog) -> None:
    send(log, 0, 2, transactional=True)
    end_transaction(log, PID, 0, commit=True)
    assert send(log, 0, 2, transactional=True).duplicate
    assert send(log, 2, transactional=True).first_offset == 3


def test_a_marker_of_a_higher_epoch_starts_sequences_anew(log: PartitionLog) -> None:
    send(log, 0, 2, transactional=True)
    end_transaction(log, PID, 1, commit=True, transaction_version=2)
    with pytest.raises(OutOfOrderSequenceNumber):
        send(log, 2, epoch=1, transactional=True)
    with pytest.raises(InvalidProducerEpoch):
        send(log, 2, epoch=0, transactional=True)
    assert send(log, 0, epoch=1, transactional=True).first_offset == 3


def test_a_marker_of_version_2_must_have_a_higher_epoch_unless_it_is_repeated(log: PartitionLog) -> None:
    send(log, 0, transactional=True)
    with pytest.raises(InvalidProducerEpoch):
        end_transaction(log, PID, 0, commit=True, transaction_version=2)
    end_transaction(log, PID, 1, commit=True, transaction_version=2)
    end_transaction(log, PID, 1, commit=True, transaction_version=2)
    with pytest.raises(InvalidProducerEpoch):
        end_transaction(log, PID, 0, commit=True, transaction_version=2)


def test_a_marker_of_an_old_coordinator_is_fenced(log: PartitionLog) -> None:
    send(log, 0, transactional=True)
    end_transaction(log, PID, 0, commit=True, coordinator_epoch=5)
    with pytest.raises(TransactionCoordinatorFenced):
        end_transaction(log, PID, 0, commit=False, coordinator_epoch=4)
    assert log.log_end_offset == 2


# ---- verification


def verify(log: PartitionLog, sequence: int, *, epoch: int = 0, bump: bool = False):
    return log.producers.start_verification(PID, epoch, sequence, NOW, supports_epoch_bump=bump)


def test_a_transaction_must_be_verified_where_that_is_required(log: PartitionLog) -> None:
    log.producers.require_verification = True
    with pytest.raises(InvalidTxnState):
        send(log, 0, transactional=True)
    guard = verify(log, 0)
    send(log, 0, transactional=True, guard=guard)
    send(log, 1, transactional=True)
    assert verify(log, 2) is None


def test_a_marker_in_between_makes_a_guard_worthless(log: PartitionLog) -> None:
    log.producers.require_verification = True
    guard = verify(log, 0)
    end_transaction(log, PID, 0, commit=False)
    with pytest.raises(InvalidTxnState):
        send(log, 0, transactional=True, guard=guard)
    assert verify(log, 0) is not guard


def test_a_marker_of_the_same_epoch_spares_the_next_transaction_of_version_2(log: PartitionLog) -> None:
    log.producers.require_verification = True
    send(log, 0, transactional=True, guard=verify(log, 0))
    end_transaction(log, PID, 1, commit=True, transaction_version=2)
    guard = verify(log, 0, epoch=1, bump=True)
    end_transaction(log, PID, 1, commit=True, transaction_version=2)  # the coordinator's retry
    send(log, 0, epoch=1, transactional=True, guard=guard)


def test_a_batch_that_overtakes_one_that_is_being_verified_is_out_of_order(log: PartitionLog) -> None:
    guard = verify(log, 5)
    assert verify(log, 3) is guard
    with pytest.raises(OutOfOrderSequenceNumber):
        send(log, 5, transactional=True, guard=guard)
    send(log, 3, 2, transactional=True, guard=guard)
    send(log, 5, transactional=True)


def test_a_first_batch_of_version_2_must_start_at_zero(log: PartitionLog) -> None:
    guard = verify(log, 4, bump=True)
    with pytest.raises(OutOfOrderSequenceNumber):
        send(log, 4, transactional=True, guard=guard)


# ---- expiry


def test_a_producer_is_forgotten_a_day_after_its_last_record(log: PartitionLog) -> None:
    send(log, 0)
    log.producers.remove_expired(NOW + DAY_MS - 1)
    assert len(log.producers) == 1
    log.producers.remove_expired(NOW + DAY_MS)
    assert len(log.producers) == 0
    assert send(log, 700).first_offset == 1


def test_records_with_old_timestamps_let_their_producer_expire_at_once(log: PartitionLog) -> None:
    append(log, batch(timestamp_ms=NOW - 2 * DAY_MS, producer=(PID, 0, 0)))
    log.producers.remove_expired(NOW)
    assert len(log.producers) == 0


def test_an_open_transaction_does_not_expire(log: PartitionLog) -> None:
    send(log, 0, transactional=True)
    log.producers.remove_expired(NOW + 9 * DAY_MS)
    assert len(log.producers) == 1


def test_a_producer_that_expired_meanwhile_is_not_loaded() -> None:
    files = SimulatedFiles()
    log = open_log(files)
    send(log, 0)
    log.close()
    log = open_log(files, clean_shutdown=True, recovery_point=1, now_ms=NOW + 2 * DAY_MS)
    assert len(log.producers) == 0


# ---- snapshots


def test_a_snapshot_has_kafkas_bytes() -> None:
    state = ProducerState(5, 2, 3, NOW, 9)
    state.batches.append(SequenceRange(10, 14, 100, 104, NOW))
    data = encode_snapshot([state])
    assert data[:2] == b"\x00\x01"
    assert data[6:10] == b"\x00\x00\x00\x01"
    assert len(data) == 10 + 46
    assert decode_snapshot(data) == [state]


states = st.builds(
    ProducerState,
    st.integers(0, 2**63 - 1),
    st.integers(-1, 2**15 - 1),
    st.integers(-1, 2**31 - 1),
    st.integers(-1, 2**62),
    st.integers(-1, 2**62),
)


@given(st.lists(states, max_size=4), st.data())
def test_a_snapshot_keeps_the_last_batch_of_each_producer(entries: list[ProducerState], data: st.DataObject) -> None:
    for entry in entries:
        first = data.draw(st.integers(0, MAX_SEQUENCE))
        count = data.draw(st.integers(1, 1000))
        offset = data.draw(st.integers(0, 2**40))
        for _ in range(2):
            last = advance_sequence(first, count - 1)
            entry.batches.append(SequenceRange(first, last, offset, offset + count - 1, entry.last_timestamp_ms))
            first, offset = advance_sequence(last, 1), offset + count
    restored = decode_snapshot(encode_snapshot(entries))
    for entry, again in zip(entries, restored, strict=True):
        assert list(again.batches) == [entry.batches[-1]]
        assert (again.producer_id, again.epoch, again.coordinator_epoch, again.current_txn_first_offset) == (
            entry.producer_id,
            entry.epoch,
            entry.coordinator_epoch,
            entry.current_txn_first_offset,
        )


@given(position=st.integers(0, 55), bit=st.integers(0, 7))
def test_a_damaged_snapshot_is_not_believed(position: int, bit: int) -> None:
    state = ProducerState(5, 2, 3, NOW, 9)
    data = bytearray(encode_snapshot([state]))
    data[position] ^= 1 << bit
    with pytest.raises(CorruptSnapshot):
        decode_snapshot(bytes(data))


def test_recovery_goes_back_to_an_older_snapshot() -> None:
    files = SimulatedFiles()
    log = open_log(files)
    for sequence in range(6):
        send(log, sequence)
        log.roll(NOW)
    newest = FOLDER / f"{5:020d}.snapshot"
    files.names[newest].data[20] ^= 1
    log.close()
    log = open_log(files, clean_shutdown=True, recovery_point=6)
    assert log.producers.get(PID).last_sequence == 5
    assert send(log, 6).first_offset == 6


def test_the_window_is_five_deep_again_after_replay() -> None:
    files = SimulatedFiles()
    log = open_log(files)
    for sequence in range(7):
        send(log, sequence)
    log.abandon()
    log = open_log(files)
    assert send(log, 2).duplicate
    assert send(log, 6).duplicate


def test_a_refused_append_changes_nothing_of_its_producer(log: PartitionLog) -> None:
    send(log, 0, transactional=True)
    before = log.producers.get(PID).copy()
    with pytest.raises(InvalidTxnState):
        send(log, 1)
    with pytest.raises(OutOfOrderSequenceNumber):
        send(log, 5, transactional=True)
    assert log.producers.get(PID) == before
    assert log.producers.open_transactions == {0: PID}


def test_a_control_batch_of_another_kind_is_no_marker(log: PartitionLog) -> None:
    from ottla_wire.records import ControlType, control_batch

    records = control_batch([(ControlType.LEADER_CHANGE, b"...")], timestamp_ms=NOW)
    append(log, records, origin=AppendOrigin.RAFT_LEADER)
    assert len(log.producers) == 0
