"""Recovery under crashes: random histories of a small log, killed or cut off from power in the middle of any change."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_batches import FOLDER, NOW, append, batch, end_transaction, open_log, read_all
from log_simulated_files import Crash, SimulatedFiles

from ottla_broker.log.config import LogConfig
from ottla_broker.log.indexes import AbortedTxn
from ottla_broker.log.partition_log import PartitionLog
from ottla_broker.log.producer_state import ProducerStates
from ottla_broker.log.recovery import replay

CONFIG = LogConfig(segment_bytes=2000, index_interval_bytes=150, file_delete_delay_ms=0, retention_ms=-1)


@dataclass
class History:
    """What a log must still have after a crash."""

    batches: dict[int, bytes] = field(default_factory=dict)  # base offset -> bytes
    ends: dict[int, int] = field(default_factory=dict)  # base offset -> next offset
    recovery_point: int = 0  # as stored by the owner of the log
    flushed_offset: int = 0
    log_start_offset: int = 0
    epoch: int = 0
    sequences: dict[int, int] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)

    def cut(self, offset: int) -> None:
        for base in [base for base in self.batches if self.ends[base] > offset]:
            del self.batches[base], self.ends[base]

    @property
    def end_offset(self) -> int:
        return max(self.ends.values(), default=0)


class Owner:
    """Drives a log through random operations and keeps its history."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.files = SimulatedFiles(seed)
        self.history = History()
        self.log = self._open(clean=False)

    def _open(self, *, clean: bool) -> PartitionLog:
        log = open_log(
            self.files,
            config=CONFIG,
            recovery_point=self.history.recovery_point,
            log_start_offset=self.history.log_start_offset,
            clean_shutdown=clean,
            make_later=not self.files.exists(FOLDER),
        )
        log.on_recovery_point_lowered = self._note_recovery_point
        log.high_watermark_moved(log.log_end_offset)
        return log

    def _note_recovery_point(self, log: PartitionLog) -> None:
        self.history.recovery_point = log.recovery_point
        self.history.flushed_offset = log.flushed_offset

    def step(self) -> None:
        choice = self.rng.random()
        if choice < 0.62:
            self.append()
        elif choice < 0.74:
            self.end_transaction()
        elif choice < 0.82:
            self.log.flush(self.rng.choice([None, self.log.log_end_offset]))
            self._note_recovery_point(self.log)
        elif choice < 0.87:
            self.truncate()
        elif choice < 0.91:
            self.log.roll(NOW)
        elif choice < 0.95:
            self.history.epoch += self.rng.randint(1, 3)
            self.log.leader_epochs.assign(self.history.epoch, self.log.log_end_offset)
        elif choice < 0.98:
            self.delete_records()
        else:
            self.restart()

    def append(self) -> None:
        producer_id = self.rng.choice([-1, 1, 2, 3])
        count = self.rng.randint(1, 4)
        value = self.rng.randbytes(self.rng.choice([5, 40, 300]))
        transactional = producer_id == 2 or (producer_id == 3 and producer_id in self.history.open)
        state = self.log.producers.get(producer_id)
        epoch = 0 if state is None else max(state.epoch, 0)
        last = -1 if state is None else state.last_sequence
        producer = None if producer_id < 0 else (producer_id, epoch, last + 1)
        if producer_id == 3 and state is not None and state.current_txn_first_offset >= 0:
            transactional = True
        elif producer_id == 3:
            transactional = self.rng.random() < 0.5
        records = batch(
            count,
            value=value,
            producer=producer,
            transactional=transactional,
            timestamp_ms=NOW + self.rng.randint(-50, 50),
        )
        info = append(self.log, records, leader_epoch=self.history.epoch)
        self.keep(info.first_offset, info.last_offset, records)

    def end_transaction(self) -> None:
        producer_id = self.rng.choice([2, 3])
        state = self.log.producers.get(producer_id)
        if state is None:
            return
        bump = self.rng.randint(0, 1)
        info = end_transaction(
            self.log, producer_id, state.epoch + bump, commit=self.rng.random() < 0.5, leader_epoch=self.history.epoch
        )
        self.keep(info.first_offset, info.last_offset, self.log.read(info.first_offset, 1 << 20).records)
        self.log.high_watermark_moved(self.log.log_end_offset)

    def keep(self, first: int, last: int, records: bytes | bytearray) -> None:
        self.history.batches[first] = bytes(records)
        self.history.ends[first] = last + 1
        self.log.high_watermark_moved(self.log.log_end_offset)

    def truncate(self) -> None:
        bases = [base for base in self.history.batches if base >= self.log.log_start_offset]
        if bases:
            offset = self.rng.choice(sorted(bases)[-6:])
            # whether the crash comes before or after the cut, what is above is no longer promised
            self.history.cut(offset)
            self.log.truncate_to(offset, now_ms=NOW)

    def delete_records(self) -> None:
        if self.log.log_end_offset > self.log.log_start_offset:
            offset = self.rng.randint(self.log.log_start_offset, self.log.log_end_offset)
            self.log.increment_log_start_offset(offset)
            self.log.delete_old_segments(NOW)
            if self.rng.random() < 0.5:
                self.history.log_start_offset = self.log.log_start_offset
            for path in self.log.take_doomed(NOW):
                self.files.remove(path)

    def restart(self) -> None:
        self.log.close()
        self.history.recovery_point = self.history.flushed_offset = self.log.log_end_offset
        self.history.log_start_offset = self.log.log_start_offset
        self.log = self._open(clean=True)
        check_invariants(self.log)

    def crash(self, *, power: bool) -> None:
        if power:
            self.files.power_loss()
        else:
            self.files.kill()


def run(seed: int, steps: int, crash_at: int, *, power: bool) -> Owner:
    owner = Owner(seed)
    owner.files.crash_after(crash_at)
    try:
        for _ in range(steps):
            owner.step()
    except Crash:
        pass
    owner.crash(power=power)
    return owner


def check_invariants(log: PartitionLog) -> None:
    stored = read_all(log)
    for before, after in pairwise(stored):
        assert before.last_offset < after.base_offset
    check_indexes(log)
    check_derived_state(log)


def check_indexes(log: PartitionLog) -> None:
    """Every lookup through an index finds what a walk over all batches finds."""
    for segment in log._segments:
        scanned = list(segment.headers(0))
        segment.need_indexes()
        for offset in range(segment.base_offset, segment.next_offset):
            expected = next((at for at, header in scanned if header.last_offset >= offset), segment.size)
            assert segment._walk_to(offset, segment.offset_index.position_before(offset)) == expected
        largest = max((header.max_timestamp_ms for _, header in scanned), default=-1)
        assert segment.max_timestamp_ms == largest
        for timestamp_ms in range(NOW - 51, NOW + 52, 13):
            expected = next((at for at, header in scanned if header.max_timestamp_ms >= timestamp_ms), None)
            start = segment.first_position_at(timestamp_ms, segment.base_offset)
            found = next((at for at, header in segment.headers(start) if header.max_timestamp_ms >= timestamp_ms), None)
            assert found == expected


def check_derived_state(log: PartitionLog) -> None:
    """Producer state, aborted transactions and leader epochs are what the batches say."""
    states = ProducerStates("model", log.producers.expiration_ms)
    aborted: list[AbortedTxn] = []
    epochs: dict[int, int] = {}
    for segment in log._segments:
        for at, header in segment.headers(0):
            aborted += replay(states, header, segment.batch_bytes(at, header))
            epochs.setdefault(header.leader_epoch, header.base_offset)
    stored = [entry for segment in log._segments for entry in segment.txn_index.entries]
    # below the log's first segment a transaction's beginning, or an older open one, is no longer there to be found
    if log._segments[0].base_offset == 0:
        assert stored == aborted
        assert log.producers.open_transactions == states.open_transactions
        known = {state.producer_id: state for state in log.producers}
        for expected in states:
            state = known.pop(expected.producer_id)
            assert (state.epoch, state.last_sequence, state.last_offset, state.current_txn_first_offset) == (
                expected.epoch,
                expected.last_sequence,
                expected.last_offset,
                expected.current_txn_first_offset,
            )
            assert (state.coordinator_epoch, state.last_timestamp_ms) == (
                expected.coordinator_epoch,
                expected.last_timestamp_ms,
            )
        assert not known
    else:
        assert [entry.last_offset for entry in stored] == [
            entry.last_offset for entry in stored if entry.last_offset >= log._segments[0].base_offset
        ]
    for epoch, first_offset in epochs.items():
        if first_offset >= log.log_start_offset:
            assert dict(log.leader_epochs.entries)[epoch] <= first_offset
            assert log.leader_epochs.epoch_for_offset(first_offset) == epoch
    assert all(start <= log.log_end_offset for _, start in log.leader_epochs.entries)


def check_recovered(owner: Owner, *, power: bool) -> None:
    history = owner.history
    flushed = history.flushed_offset
    log = owner._open(clean=False)
    assert log.log_end_offset >= flushed
    assert log.log_start_offset <= log.log_end_offset
    assert log.high_watermark <= log.log_end_offset
    check_invariants(log)
    stored = {found.base_offset: found for found in read_all(log)}
    for base, records in history.batches.items():
        if (history.ends[base] <= flushed or not power) and base >= log.log_start_offset:
            assert base in stored, f"the batch at {base} is lost"
        if base in stored and base >= log.log_start_offset:
            found = stored[base]
            assert bytes(found.buffer[found.position : found.position + found.size_bytes]) == records
    check_idempotent(owner, log)


def check_idempotent(owner: Owner, log: PartitionLog) -> None:
    """A second recovery finds nothing to change."""
    log.abandon()
    before = {path.name: bytes(node.data) for path, node in owner.files.names.items()}
    again = owner._open(clean=False)
    after = {path.name: bytes(node.data) for path, node in owner.files.names.items()}
    assert after == before
    assert (again.log_start_offset, again.log_end_offset) == (log.log_start_offset, log.log_end_offset)
    assert list(again.producers) == list(log.producers)
    assert again.leader_epochs.entries == log.leader_epochs.entries


@pytest.mark.slow
@settings(max_examples=150)
@given(seed=st.integers(0, 10**6), crash_at=st.integers(1, 300), power=st.booleans())
def test_a_log_recovers_from_a_crash_at_any_change(seed: int, crash_at: int, power: bool) -> None:
    owner = run(seed, steps=80, crash_at=crash_at, power=power)
    check_recovered(owner, power=power)


@pytest.mark.slow
@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), crash_at=st.integers(1, 40))
def test_a_crash_during_recovery_is_recovered_from(seed: int, crash_at: int) -> None:
    owner = run(seed, steps=60, crash_at=200, power=True)
    owner.files.crash_after(crash_at)
    try:
        owner._open(clean=False)
    except Crash:
        pass
    owner.files.power_loss()
    check_recovered(owner, power=True)


@pytest.mark.slow
@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_a_log_goes_on_after_recovery(seed: int) -> None:
    owner = run(seed, steps=60, crash_at=150, power=True)
    owner.log = owner._open(clean=False)
    owner.history.cut(owner.log.log_end_offset)
    owner._note_recovery_point(owner.log)
    for _ in range(40):
        owner.step()
    check_invariants(owner.log)
    owner.files.power_loss()
    check_recovered(owner, power=True)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), crash_at=st.integers(1, 150), power=st.booleans())
def test_a_log_recovers_from_a_crash(seed: int, crash_at: int, power: bool) -> None:
    """The quick one."""
    owner = run(seed, steps=40, crash_at=crash_at, power=power)
    check_recovered(owner, power=power)
