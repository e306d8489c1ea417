"""Read-committed reads of a log against a reader that knows everything (pitfall 27 of a reimplementation).

A seeded history interleaves the transactions of several producers over segments that hold a few batches each: data,
markers, plain records, empty transactions, repeated markers, a lagging high watermark, truncations, deleted segments,
clean restarts and kills. The model keeps the batches as a list and derives all else by looking through it. Then from
every offset, with several limits, a fetch with its aborted list must deliver exactly what the model says.
"""

from __future__ import annotations

import copy
import random
from typing import NamedTuple

import pytest
from log_batches import FOLDER, NOW, append, batch, end_transaction, open_log
from log_simulated_files import SimulatedFiles

from ottla_broker.log.config import LogConfig
from ottla_broker.log.indexes import TransactionIndex
from ottla_broker.log.partition_log import PartitionLog
from support.read_committed import Delivered, delivered

CONFIG = LogConfig(segment_bytes=420, index_interval_bytes=100, file_delete_delay_ms=0, retention_ms=-1)
PRODUCERS = 5
ALL = 1 << 20


class Written(NamedTuple):
    """A batch as it is known outside of the log."""

    first: int
    last: int
    producer_id: int  # -1: not in a transaction
    ends: bool | None  # None: records; else a marker: whether it commits
    values: tuple[bytes, ...] = ()


class Transaction(NamedTuple):
    """A transaction with records; `marker` and `committed` are None while it is open."""

    producer_id: int
    first: int
    marker: int | None
    committed: bool | None


class Model:
    """The batches of the log, from offset 0 on, and what follows from them."""

    def __init__(self) -> None:
        self.batches: list[Written] = []

    def cut(self, offset: int) -> None:
        self.batches = [written for written in self.batches if written.first < offset]

    def transactions(self) -> list[Transaction]:
        found: list[Transaction] = []
        begun: dict[int, int] = {}
        for written in self.batches:
            if written.producer_id < 0:
                continue
            if written.ends is None:
                begun.setdefault(written.producer_id, written.first)
            elif written.producer_id in begun:
                first = begun.pop(written.producer_id)
                found.append(Transaction(written.producer_id, first, written.first, written.ends))
        return found + [Transaction(producer_id, first, None, None) for producer_id, first in begun.items()]

    def stable(self, high_watermark: int) -> int:
        unstable = [t.first for t in self.transactions() if t.marker is None or t.marker >= high_watermark]
        return min([*unstable, high_watermark])

    def committed(self) -> list[Delivered]:
        fate = {(t.producer_id, t.first): t.committed for t in self.transactions()}
        begun: dict[int, int] = {}
        found: list[Delivered] = []
        for written in self.batches:
            if written.ends is not None:
                begun.pop(written.producer_id, None)
                continue
            first = begun.setdefault(written.producer_id, written.first)
            if written.producer_id < 0 or fate[written.producer_id, first]:
                found += [Delivered(written.first + at, value) for at, value in enumerate(written.values)]
        return found


class History:
    """A log, its model, and random steps."""

    def __init__(self, seed: int, *, lagging: bool = True) -> None:
        self.rng = random.Random(seed)
        self.files = SimulatedFiles(seed)
        self.model = Model()
        self.log = open_log(self.files, config=CONFIG)
        self.lagging = lagging
        self.epochs = [0] * PRODUCERS

    def step(self) -> None:
        [step] = self.rng.choices(
            [self.write, self.write_plainly, self.end, self.truncate, self.delete_records, self.restart, self.kill],
            [50, 6, 30, 4, 2, 2, 2],
        )
        step()
        if not self.lagging:
            self.log.high_watermark_moved(self.log.log_end_offset)
        elif self.rng.random() < 0.3:
            replicated = self.log.log_end_offset - self.rng.randint(0, 20)
            self.log.high_watermark_moved(max(replicated, self.log.high_watermark))

    def write(self) -> None:
        producer_id = self.rng.randrange(PRODUCERS)
        state = self.log.producers.get(producer_id)
        sequence = 0 if state is None or state.epoch != self.epochs[producer_id] else state.last_sequence + 1
        values = tuple(b"%d/%d" % (producer_id, self.rng.randrange(1000)) for _ in range(self.rng.randint(1, 3)))
        self._append(values, producer_id, (producer_id, self.epochs[producer_id], sequence))

    def write_plainly(self) -> None:
        self._append((b"plain",), -1, None)

    def _append(self, values: tuple[bytes, ...], producer_id: int, producer: tuple[int, int, int] | None) -> None:
        records = batch(len(values), value=values[0], producer=producer, transactional=producer is not None)
        info = append(self.log, records)
        written = (values[0],) * len(values)
        self.model.batches.append(Written(info.first_offset, info.last_offset, producer_id, None, written))

    def end(self) -> None:
        """End a transaction, an empty one or one that has been ended already too; by either version's rules."""
        producer_id = self.rng.randrange(PRODUCERS)
        commit = self.rng.random() < 0.4
        if self.rng.random() < 0.5:
            self.epochs[producer_id] += 1
            info = end_transaction(
                self.log, producer_id, self.epochs[producer_id], commit=commit, transaction_version=2
            )
        else:
            info = end_transaction(self.log, producer_id, self.epochs[producer_id], commit=commit)
        self.model.batches.append(Written(info.first_offset, info.last_offset, producer_id, commit))

    def truncate(self) -> None:
        """A follower cuts back, perhaps below its high watermark; never below the log's start."""
        lowest = max(self.log.log_start_offset, self.log.log_end_offset - 12)
        if self.log.log_end_offset > lowest:
            offset = self.rng.randrange(lowest, self.log.log_end_offset)
            self.log.truncate_to(offset, now_ms=NOW)
            self.model.cut(self.log.log_end_offset)
            # the producers go on where the log is now
            for producer_id in range(PRODUCERS):
                state = self.log.producers.get(producer_id)
                self.epochs[producer_id] = 0 if state is None else state.epoch

    def delete_records(self) -> None:
        start, end = self.log.log_start_offset, self.log.high_watermark
        if end > start:
            self.log.increment_log_start_offset(self.rng.randint(start, min(end, start + 15)))
            self.log.delete_old_segments(NOW)

    def restart(self) -> None:
        self.log.close()
        self.log = self._open(self.files, clean=True)

    def kill(self) -> None:
        self.log.abandon()
        self.files.kill()
        self.log = self._open(self.files, clean=False)

    def _open(self, files: SimulatedFiles, *, clean: bool) -> PartitionLog:
        # A stored high watermark of 0 counts as unknown; transactions that ended before a snapshot are stable then.
        self.log.high_watermark_moved(max(self.log.high_watermark, min(1, self.log.log_end_offset)))
        return open_log(
            files,
            config=CONFIG,
            recovery_point=self.log.recovery_point,
            log_start_offset=self.log.log_start_offset,
            high_watermark=self.log.high_watermark,
            clean_shutdown=clean,
        )

    def reopened(self) -> PartitionLog:
        """What another process finds if this one is killed now; this one goes on."""
        return self._open(copy.deepcopy(self.files), clean=False)


def check_stable_offset(history: History) -> None:
    log = history.log
    stable = history.model.stable(log.high_watermark)
    assert log.last_stable_offset == max(stable, min(log.log_start_offset, log.high_watermark))


def check_every_fetch(history: History, max_bytes: tuple[int, ...] = (1, 300, ALL)) -> None:
    """From every offset, with every limit, against the model."""
    log, model = history.log, history.model
    upper = log.last_stable_offset
    truth = model.committed()
    aborted = [t for t in model.transactions() if t.committed is False]
    for offset in range(log.log_start_offset, upper):
        for limit in max_bytes:
            read = log.read(offset, limit, upper_offset=upper, at_least_one=True)
            assert read.next_offset > offset
            listed = log.aborted_transactions(offset, read.next_offset)
            assert {(t.producer_id, t.first_offset, t.last_offset) for t in listed} == {
                (t.producer_id, t.first, t.marker) for t in aborted if touches(t, offset, read.next_offset)
            }
            found = delivered(read.records, [(t.producer_id, t.first_offset) for t in listed], offset)
            assert found == [record for record in truth if offset <= record.offset < read.next_offset]


def touches(transaction: Transaction, from_offset: int, to_offset: int) -> bool:
    assert transaction.marker is not None
    return transaction.first < to_offset and transaction.marker >= from_offset


def known(log: PartitionLog) -> dict[str, object]:
    """What a log knows of transactions; of each producer as much as a snapshot keeps."""
    indexes = {}
    for base in log._bases:
        index = TransactionIndex(FOLDER / f"{base:020d}.txnindex")
        index.load(log._files)
        indexes[base] = index.entries
    return {
        "open": log.producers.open_transactions,
        "producers": {
            state.producer_id: (state.epoch, state.last_sequence, state.last_offset, state.current_txn_first_offset)
            for state in log.producers
        },
        "coordinators": {
            state.producer_id: (state.coordinator_epoch, state.last_timestamp_ms) for state in log.producers
        },
        "aborted": indexes,
        "stable": log.last_stable_offset,
    }


def run(seed: int, steps: int, *, lagging: bool = True) -> History:
    history = History(seed, lagging=lagging)
    for _ in range(steps):
        history.step()
        check_stable_offset(history)
    return history


@pytest.mark.parametrize("seed", range(30))
def test_every_fetch_delivers_what_is_committed_and_nothing_else(seed: int) -> None:
    history = run(seed, 80)
    check_every_fetch(history)


def test_histories_have_what_is_to_be_tested() -> None:
    histories = [run(seed, 80) for seed in range(30)]
    spanning = [
        transaction
        for history in histories
        for transaction in history.model.transactions()
        if transaction.committed is False
        and history.log._segment_index(transaction.first) + 2 < history.log._segment_index(transaction.marker or 0)
    ]
    assert len(spanning) > 20
    assert max(history.log.segment_count for history in histories) > 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30, 130))
def test_every_fetch_delivers_what_is_committed_and_nothing_else_in_many_histories(seed: int) -> None:
    history = run(seed, 160)
    check_every_fetch(history)


@pytest.mark.parametrize("seed", range(6))
def test_a_kill_between_any_two_appends_loses_nothing_of_transactions(seed: int) -> None:
    history = History(seed, lagging=False)
    for _ in range(60):
        history.step()
        log = history.reopened()
        assert known(log) == known(history.log)
        log.abandon()


@pytest.mark.parametrize("seed", range(4))
def test_a_reader_goes_through_the_whole_log_while_it_grows(seed: int) -> None:
    """One pass, each fetch as of its moment: nothing is delivered twice, out of order, or later taken back."""
    history = History(seed)
    history.truncate = lambda: None  # type: ignore[method-assign]  # what was delivered stays
    history.delete_records = lambda: None  # type: ignore[method-assign]
    position, found = 0, []
    for _ in range(200):
        history.step()
        upper = history.log.last_stable_offset
        while position < upper:
            read = history.log.read(position, 200, upper_offset=upper, at_least_one=True)
            aborted = history.log.aborted_transactions(position, read.next_offset)
            found += delivered(read.records, [(t.producer_id, t.first_offset) for t in aborted], position)
            position = read.next_offset
    assert found == [record for record in history.model.committed() if record.offset < position]
    assert len(found) > 30


def test_a_restart_at_the_high_watermark_leaves_nothing_unstable() -> None:
    """All is replicated, and the process is killed: what ended before is stable at once, without another append."""
    files = SimulatedFiles()
    log = open_log(files)
    append(log, batch(producer=(9, 0, 0), transactional=True))
    end_transaction(log, 9, 0, commit=True)
    log.high_watermark_moved(2)
    log.abandon()
    again = open_log(files, high_watermark=2)
    assert (again.high_watermark, again.last_stable_offset) == (2, 2)


def test_a_truncation_above_the_high_watermark_leaves_nothing_unstable_below_it() -> None:
    log = open_log(SimulatedFiles())
    append(log, batch(producer=(9, 0, 0), transactional=True))
    end_transaction(log, 9, 0, commit=True)
    log.high_watermark_moved(2)
    append(log, batch())
    log.truncate_to(2, now_ms=NOW)
    assert (log.high_watermark, log.last_stable_offset) == (2, 2)


def test_a_truncated_marker_opens_its_transaction_again() -> None:
    log = open_log(SimulatedFiles())
    append(log, batch(producer=(9, 0, 0), transactional=True))
    end_transaction(log, 9, 0, commit=False)
    log.truncate_to(1, now_ms=NOW)
    log.high_watermark_moved(1)
    assert (log.last_stable_offset, log.aborted_transactions(0, 1)) == (0, [])
    end_transaction(log, 9, 0, commit=True)
    log.high_watermark_moved(2)
    assert (log.last_stable_offset, log.aborted_transactions(0, 2)) == (2, [])
