"""Which leader wrote from which offset on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_batches import FOLDER, NOW, append, batch, open_log
from log_simulated_files import SimulatedFiles

from ottla_broker.log.leader_epochs import EpochEntry, LeaderEpochs


@pytest.fixture
def epochs() -> LeaderEpochs:
    return LeaderEpochs(SimulatedFiles(), Path("/data/orders-0"))


def filled(epochs: LeaderEpochs, *entries: tuple[int, int]) -> LeaderEpochs:
    for epoch, start in entries:
        epochs.assign(epoch, start)
    return epochs


def test_the_newest_epoch_ends_at_the_end_of_the_log(epochs: LeaderEpochs) -> None:
    assert filled(epochs, (1, 0), (4, 10)).end_offset_for(4, 99) == (4, 99)


def test_an_older_epoch_ends_where_the_next_one_starts(epochs: LeaderEpochs) -> None:
    filled(epochs, (1, 0), (4, 10), (6, 25))
    assert epochs.end_offset_for(1, 99) == (1, 10)
    assert epochs.end_offset_for(4, 99) == (4, 25)


def test_an_epoch_that_wrote_nothing_ends_like_the_one_before_it(epochs: LeaderEpochs) -> None:
    filled(epochs, (1, 0), (4, 10), (6, 25))
    assert epochs.end_offset_for(5, 99) == (4, 25)


def test_an_epoch_before_the_first_ends_where_the_log_begins(epochs: LeaderEpochs) -> None:
    assert filled(epochs, (3, 7), (4, 10)).end_offset_for(2, 99) == (2, 7)


def test_an_epoch_above_the_newest_is_unknown(epochs: LeaderEpochs) -> None:
    assert epochs.end_offset_for(0, 99) is None
    assert filled(epochs, (3, 7)).end_offset_for(4, 99) is None


def test_a_new_entry_removes_those_that_contradict_it(epochs: LeaderEpochs) -> None:
    filled(epochs, (1, 0), (4, 10), (6, 25), (3, 20))
    assert epochs.entries == [(1, 0), (3, 20)]
    filled(epochs, (5, 20))
    assert epochs.entries == [(1, 0), (5, 20)]


def test_an_epoch_is_durable_when_it_is_assigned() -> None:
    files = SimulatedFiles()
    filled(LeaderEpochs(files, FOLDER), (1, 0), (4, 10))
    files.power_loss()
    again = LeaderEpochs(files, FOLDER)
    again.load()
    assert again.entries == [(1, 0), (4, 10)]
    assert files.read(FOLDER / "leader-epoch-checkpoint") == b"0\n2\n1 0\n4 10\n"


def test_raising_the_start_moves_the_epoch_it_falls_into(epochs: LeaderEpochs) -> None:
    filled(epochs, (1, 0), (4, 10), (6, 25)).truncate_from_start(15)
    assert epochs.entries == [(4, 15), (6, 25)]


def test_cutting_the_end_removes_epochs_that_start_there(epochs: LeaderEpochs) -> None:
    filled(epochs, (1, 0), (4, 10), (6, 25)).truncate_from_end(25)
    assert epochs.entries == [(1, 0), (4, 10)]


entries = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 40)), max_size=12)


@given(entries=entries, cuts=st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=3))
def test_entries_always_ascend_and_every_offset_has_one_epoch(
    entries: list[tuple[int, int]], cuts: list[tuple[bool, int]]
) -> None:
    epochs = filled(LeaderEpochs(SimulatedFiles(), FOLDER), *entries)
    for from_start, offset in cuts:
        (epochs.truncate_from_start if from_start else epochs.truncate_from_end)(offset)
    kept = epochs.entries
    assert kept == sorted(set(kept))
    assert [start for _, start in kept] == sorted({start for _, start in kept})
    for offset in range(41):
        expected = [epoch for epoch, start in kept if start <= offset]
        assert epochs.epoch_for_offset(offset) == (expected[-1] if expected else None)


def test_a_log_notes_the_epochs_of_its_batches() -> None:
    files = SimulatedFiles()
    log = open_log(files)
    append(log, batch(3), leader_epoch=2)
    append(log, batch(3), leader_epoch=2)
    append(log, batch(1), leader_epoch=5)
    assert log.leader_epochs.entries == [(2, 0), (5, 6)]


def test_a_leader_notes_its_epoch_before_it_appends() -> None:
    log = open_log(SimulatedFiles())
    append(log, batch(3), leader_epoch=2)
    log.leader_epochs.assign(7, log.log_end_offset)
    assert log.leader_epochs.end_offset_for(2, log.log_end_offset) == (2, 3)
    assert log.leader_epochs.latest == 7


@pytest.mark.parametrize("damage", [None, b"", b"0\n7\n1 0\n", b"9\n1\n1 0\n", b"0\n1\nx y\n"])
def test_a_lost_or_damaged_checkpoint_is_rebuilt_from_the_log(damage: bytes | None) -> None:
    files = SimulatedFiles()
    log = open_log(files)
    for epoch in (2, 2, 5, 6):
        append(log, batch(2), leader_epoch=epoch)
    log.close()
    if damage is None:
        files.remove(FOLDER / "leader-epoch-checkpoint")
    else:
        files.write(FOLDER / "leader-epoch-checkpoint", damage)
    log = open_log(files, clean_shutdown=True, recovery_point=8)
    assert log.leader_epochs.entries == [EpochEntry(2, 0), EpochEntry(5, 4), EpochEntry(6, 6)]


def test_a_follower_takes_over_the_epochs_of_its_leader() -> None:
    leader = open_log(SimulatedFiles())
    for epoch in (2, 2, 5, 6):
        append(leader, batch(2), leader_epoch=epoch)
    follower = open_log(SimulatedFiles())
    follower.append_as_follower(leader.read(0, 10_000).records, leader_epoch=6, now_ms=NOW)
    assert follower.leader_epochs.entries == leader.leader_epochs.entries


def test_a_follower_leaves_out_batches_of_a_newer_epoch_than_it_asked_for() -> None:
    leader = open_log(SimulatedFiles())
    for epoch in (2, 2, 5, 6):
        append(leader, batch(2), leader_epoch=epoch)
    follower = open_log(SimulatedFiles())
    info = follower.append_as_follower(leader.read(0, 10_000).records, leader_epoch=5, now_ms=NOW)
    assert info is not None
    assert (info.last_offset, follower.log_end_offset) == (5, 6)
    assert follower.append_as_follower(leader.read(6, 10_000).records, leader_epoch=5, now_ms=NOW) is None
