"""Cutting a log at its end, and giving up its beginning."""

from __future__ import annotations

import pytest
from log_batches import FOLDER, NOW, SMALL, append, batch, end_transaction, filled, open_log, read_all
from log_simulated_files import Crash, SimulatedFiles

from ottla_broker.log.config import LogConfig
from ottla_broker.log.partition_log import PartitionLog
from ottla_wire.errors import OffsetOutOfRange

# ---- truncation


def test_truncating_cuts_whole_batches_and_everything_derived() -> None:
    files = SimulatedFiles()
    log = filled(files=files)
    append(log, batch(producer=(5, 0, 0), transactional=True), leader_epoch=3)
    end = log.log_end_offset
    end_transaction(log, 5, 0, commit=False, leader_epoch=3)
    assert log.truncate_to(end, now_ms=NOW)
    assert (log.log_end_offset, log.producers.open_transactions) == (end, {end - 1: 5})
    assert log.aborted_transactions(0, 10**6) == []
    assert log.truncate_to(end - 1, now_ms=NOW)
    assert log.producers.get(5) is None
    assert log.leader_epochs.entries == [(0, 0)]
    assert log.high_watermark == end - 1


def test_truncating_inside_a_batch_removes_it() -> None:
    log = open_log(SimulatedFiles())
    append(log, batch(3))
    append(log, batch(3))
    log.truncate_to(4, now_ms=NOW)
    assert log.log_end_offset == 3


def test_truncating_at_or_above_the_end_cuts_only_epochs() -> None:
    log = open_log(SimulatedFiles())
    append(log, batch(3), leader_epoch=2)
    log.leader_epochs.assign(4, 3)
    assert not log.truncate_to(3, now_ms=NOW)
    assert log.log_end_offset == 3
    assert log.leader_epochs.entries == [(2, 0)]


def test_truncating_below_the_first_segment_starts_anew() -> None:
    log = filled()
    log.increment_log_start_offset(log._bases[2])
    log.delete_old_segments(NOW)
    log.truncate_to(3, now_ms=NOW)
    assert (log.log_start_offset, log.log_end_offset, log.size_bytes) == (3, 3, 0)
    assert append(log, batch()).first_offset == 3


def test_starting_anew_forgets_everything() -> None:
    files = SimulatedFiles()
    log = open_log(files)
    append(log, batch(producer=(5, 0, 0), transactional=True), leader_epoch=3)
    log.truncate_fully_and_start_at(100, now_ms=NOW)
    assert (log.log_start_offset, log.log_end_offset, log.high_watermark) == (100, 100, 100)
    assert len(log.producers) == 0
    assert log.first_unstable_offset is None
    assert log.leader_epochs.entries == []
    assert log.offset_for_timestamp(0) is None
    assert append(log, batch()).first_offset == 100


def test_whoever_stores_the_recovery_point_hears_of_it_before_fsynced_bytes_are_replaced() -> None:
    log = filled()
    log.flush()
    told: list[tuple[int, int]] = []
    log.on_recovery_point_lowered = lambda lowered: told.append((lowered.recovery_point, lowered.log_end_offset))
    before = log.log_end_offset
    log.truncate_to(log._bases[1], now_ms=NOW)
    assert told == [(log._bases[1], before)]


# ---- retention


def retained(**config: int) -> PartitionLog:
    """Ten segments of one batch each, an hour apart."""
    log = open_log(SimulatedFiles(), config=LogConfig(segment_bytes=200, **config))
    for hour in range(10):
        append(log, batch(timestamp_ms=NOW + hour * 3_600_000, value=bytes(60)), now_ms=NOW + hour * 3_600_000)
    log.high_watermark_moved(log.log_end_offset)
    return log


def test_segments_are_deleted_by_the_time_of_their_newest_record() -> None:
    log = retained(retention_ms=4 * 3_600_000)
    assert log.delete_old_segments(NOW + 9 * 3_600_000) == 5
    assert (log.log_start_offset, log._bases[0]) == (5, 5)


def test_segments_are_deleted_by_size_while_enough_is_left() -> None:
    log = retained(retention_bytes=500, retention_ms=-1)
    each = log.size_bytes // 10
    log.delete_old_segments(NOW)
    assert log.size_bytes - each < 500 <= log.size_bytes


def test_nothing_above_the_high_watermark_is_deleted() -> None:
    log = retained(retention_ms=1)
    log.high_watermark_moved(3)
    log.delete_old_segments(NOW + 10**10)
    assert log.log_start_offset == 3


def test_when_all_segments_go_offsets_do_not_start_again() -> None:
    log = retained(retention_ms=1)
    log.delete_old_segments(NOW + 10**10)
    assert (log.log_start_offset, log.log_end_offset, log.size_bytes) == (10, 10, 0)
    assert append(log, batch()).first_offset == 10


def test_a_record_from_the_future_keeps_its_segment() -> None:
    log = retained(retention_ms=3_600_000)
    assert log.delete_old_segments(NOW - 10) == 0


def test_segments_below_the_log_start_are_deleted_whatever_the_policy() -> None:
    log = retained(retention_ms=-1)
    log.update_config(LogConfig(segment_bytes=200, cleanup_policy=("compact",), retention_ms=1))
    log.increment_log_start_offset(4)
    assert log.delete_old_segments(NOW + 10**10) == 4
    assert log._bases[0] == 4


def test_deleted_segments_stay_as_files_for_a_while() -> None:
    log = retained(retention_ms=1, file_delete_delay_ms=500)
    log.delete_old_segments(NOW + 10**10)
    assert log.next_doomed_ms == NOW + 10**10 + 500
    assert log.take_doomed(NOW + 10**10 + 499) == []
    doomed = log.take_doomed(NOW + 10**10 + 500)
    assert FOLDER / f"{0:020d}.log.deleted" in doomed
    assert log.next_doomed_ms is None


def test_the_log_start_moves_up_to_the_high_watermark_only() -> None:
    log = filled()
    log.high_watermark_moved(20)
    assert log.increment_log_start_offset(20)
    assert not log.increment_log_start_offset(7)
    with pytest.raises(OffsetOutOfRange):
        log.increment_log_start_offset(21)
    assert log.log_start_offset == 20


# ---- deleting, and crashes


def log_names(files: SimulatedFiles) -> list[str]:
    return [name for name in files.list(FOLDER) if name.endswith(".log")]


@pytest.mark.parametrize("seed", range(8))
def test_deleted_segments_do_not_come_back_after_a_power_failure(seed: int) -> None:
    """They may never have been fsynced, and lie below an offset that counts as durable."""
    files = SimulatedFiles(seed)
    log = filled(files=files)
    files.sync_directory(FOLDER)
    files.sync_directory(FOLDER.parent)
    log.increment_log_start_offset(log._bases[3])
    log.delete_old_segments(NOW)
    first = f"{log._bases[0]:020d}.log"
    files.power_loss()
    assert log_names(files)[0] == first


@pytest.mark.parametrize("seed", range(8))
def test_segments_that_were_fsynced_are_deleted_without_an_fsync(seed: int) -> None:
    """It would hold everybody up; should they come back after a power failure they are whole, and go again."""
    files = SimulatedFiles(seed)
    log = filled(files=files)
    log.flush(log.active_segment_base_offset)
    expected = [(stored.base_offset, stored.count) for stored in read_all(log)]
    files.fsyncs = 0
    log.increment_log_start_offset(log._bases[4])
    log.delete_old_segments(NOW)
    assert files.fsyncs == 0
    recovery_point, start, end = log.recovery_point, log._bases[0], log.log_end_offset
    assert recovery_point == log.active_segment_base_offset
    files.power_loss()
    log = open_log(files, config=SMALL, recovery_point=recovery_point)
    assert log.log_start_offset <= start
    assert log.log_end_offset >= recovery_point
    found = [(stored.base_offset, stored.count) for stored in read_all(log)]
    assert found == [entry for entry in expected if log.log_start_offset <= entry[0] < log.log_end_offset]
    assert log.log_end_offset <= end


def test_a_crash_while_truncating_leaves_no_hole() -> None:
    """Segments go from the last to the first, so that at every moment a beginning of the log is left."""
    changes = 0
    while True:
        files = SimulatedFiles()
        log = filled(files=files)
        names = log_names(files)
        assert len(names) > 4
        changes += 1
        files.crash_after(changes)
        try:
            log.truncate_to(3, now_ms=NOW)
        except Crash:
            left = log_names(files)
            assert left == names[: len(left)]
            continue
        break
    assert changes > 10
