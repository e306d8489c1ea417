"""What is fsynced when, disks that fail, and folders that are not in order."""

from __future__ import annotations

import pytest
from log_batches import FOLDER, NOW, SMALL, append, batch, end_transaction, filled, open_log, read_all
from log_simulated_files import SimulatedFiles

from ottla_broker.log.config import LogConfig
from ottla_broker.log.partition_log import PartitionLog
from ottla_broker.log.partition_metadata import read_topic_id
from ottla_wire.errors import InconsistentTopicId, KafkaStorageError
from ottla_wire.records import iter_batches
from ottla_wire.schema import Uuid

# ---- durability


def test_every_message_is_fsynced_where_the_topic_asks_for_it() -> None:
    files = SimulatedFiles()
    log = open_log(files, config=LogConfig(flush_messages=1))
    for _ in range(3):
        append(log, batch())
        files.power_loss()
        assert open_log(files).log_end_offset == log.log_end_offset


def test_fsync_may_run_elsewhere_while_the_log_goes_on() -> None:
    log = open_log(SimulatedFiles())
    append(log, batch(2))
    work = log.prepare_flush()
    append(log, batch(2))
    assert work is not None
    work.run()
    assert log.flushed_offset == 0
    log.flush_done(work)
    assert log.flushed_offset == 2


def test_an_fsync_that_a_truncation_overtook_counts_for_nothing() -> None:
    log = open_log(SimulatedFiles())
    append(log, batch(2))
    append(log, batch(2))
    work = log.prepare_flush()
    log.truncate_to(2, now_ms=NOW)
    append(log, batch(2))
    work.run()
    log.flush_done(work)
    assert log.flushed_offset == 0


def test_a_rolled_segment_asks_to_be_flushed_and_then_needs_no_recovery() -> None:
    log = open_log(SimulatedFiles(), config=SMALL)
    asked: list[int] = []
    log.on_flush_wanted = lambda rolled: asked.append(rolled.active_segment_base_offset)
    while not asked:
        append(log, batch(value=bytes(300)))
    assert log.recovery_point == 0
    log.flush(log.active_segment_base_offset)
    assert log.recovery_point == asked[0]
    assert log.prepare_flush(log.active_segment_base_offset) is None


def test_a_clean_close_needs_no_recovery() -> None:
    files = SimulatedFiles()
    log = filled(files=files)
    end, size = log.log_end_offset, log.size_bytes
    log.close()
    files.power_loss()
    before = files.operations
    log = open_log(files, config=SMALL, clean_shutdown=True, recovery_point=end)
    assert files.operations == before
    assert (log.log_end_offset, log.size_bytes, log.flushed_offset) == (end, size, end)
    append(log, batch())
    assert len(read_all(log)) == 41


def test_a_log_that_nothing_was_written_to_is_closed_without_a_write_or_an_fsync() -> None:
    files = SimulatedFiles()
    log = filled(files=files)
    end = log.log_end_offset
    log.close()
    for changed in (False, True):
        log = open_log(files, config=SMALL, clean_shutdown=True, recovery_point=end)
        log.read(0, 10_000)
        if changed:
            append(log, batch())
        before = files.operations
        log.close()
        assert (files.operations > before) is changed
    files.power_loss()
    log = open_log(files, config=SMALL, clean_shutdown=True, recovery_point=end + 1)
    assert log.log_end_offset == end + 1


# ---- disks that fail


def test_a_full_disk_takes_the_log_offline_and_says_which_file() -> None:
    files = SimulatedFiles()
    log = open_log(files)
    append(log, batch(2, producer=(5, 0, 0)))
    size = log.size_bytes
    files.room_bytes = 10
    for _ in range(2):
        with pytest.raises(KafkaStorageError, match=r"00000000000000000000.log: No space left on device \(errno 28\)"):
            append(log, batch(producer=(5, 0, 2)))
    with pytest.raises(KafkaStorageError):
        log.read(0, 100)
    assert log.prepare_flush() is None
    files.room_bytes = None
    log = open_log(files)
    assert (log.size_bytes, log.log_end_offset) == (size, 2)
    assert log.producers.get(5).last_sequence == 1
    append(log, batch(producer=(5, 0, 2)))


def test_a_failed_fsync_takes_the_log_offline() -> None:
    log = open_log(SimulatedFiles())
    append(log, batch())
    log.flush_failed(OSError(5, "Input/output error", "x.log"))
    with pytest.raises(KafkaStorageError, match="errno 5"):
        append(log, batch())


# ---- life


@pytest.mark.parametrize("seed", range(8))
def test_the_topic_id_is_durable_with_the_first_flush_and_checked_when_opening(seed: int) -> None:
    files = SimulatedFiles(seed)
    log = open_log(files, make_later=True)
    assert not files.exists(FOLDER)
    assert log.prepare_flush() is None
    append(log, batch())
    log.flush()
    files.power_loss()
    assert read_topic_id(files, FOLDER) == log.topic_id
    assert open_log(files).log_end_offset == 1
    assert files.read(FOLDER / "partition.metadata").startswith(b"version: 0\ntopic_id: ")
    other = Uuid(bytes(range(16)))
    with pytest.raises(InconsistentTopicId):
        PartitionLog.open(files, FOLDER, "orders", 0, other, LogConfig(), now_ms=NOW)


def test_a_log_that_ends_before_its_start_is_emptied() -> None:
    files = SimulatedFiles()
    filled(files=files).abandon()
    log = open_log(files, log_start_offset=1000)
    assert (log.log_start_offset, log.log_end_offset, log.size_bytes) == (1000, 1000, 0)
    assert log.leader_epochs.entries == []


@pytest.mark.parametrize("suffix", [".index", ".timeindex"])
@pytest.mark.parametrize("damage", ["missing", "torn", "shuffled"])
@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_lost_or_damaged_index_is_rebuilt(suffix: str, damage: str, which: int) -> None:
    files = SimulatedFiles()
    log = filled(200, files=files)
    end = log.log_end_offset
    path = FOLDER / f"{log._bases[which]:020d}{suffix}"
    log.close()
    good = files.read(path)
    entry = 8 if suffix == ".index" else 12
    if damage == "missing":
        files.remove(path)
    elif damage == "torn":
        files.write(path, good[:-1])
    else:
        files.write(path, good[-entry:] + good)
    log = open_log(files, config=SMALL, clean_shutdown=True, recovery_point=end)
    assert len(read_all(log)) == 200
    for offset in range(0, end, 3):
        found = next(iter_batches(log.read(offset, 1, at_least_one=True).records))
        assert found.base_offset <= offset <= found.last_offset
    for segment in log._segments:
        segment.need_indexes()
        segment.save_indexes()
    assert files.read(path) == good


def test_an_index_without_a_segment_is_removed() -> None:
    files = SimulatedFiles()
    files.make_folder(FOLDER)
    files.write(FOLDER / f"{7:020d}.index", bytes(8))
    log = open_log(files)
    assert log.log_end_offset == 0
    assert not files.exists(FOLDER / f"{7:020d}.index")


def test_files_that_were_to_be_removed_are_removed_at_start() -> None:
    files = SimulatedFiles()
    filled(files=files).close()
    for name in (f"{0:020d}.log.deleted", f"{3:020d}.log.cleaned", "leader-epoch-checkpoint.tmp"):
        files.write(FOLDER / name, b"x")
    open_log(files, config=SMALL, clean_shutdown=True)
    assert not [name for name in files.list(FOLDER) if name.endswith((".deleted", ".cleaned", ".tmp"))]


def test_an_interrupted_swap_is_finished_or_undone() -> None:
    """Compaction replaces segments by renaming .cleaned to .swap, removing the originals, and renaming .swap."""
    files = SimulatedFiles()
    log = filled(files=files)
    first, second, third = log._bases[:3]
    stored = read_all(log)
    log.close()
    keep = [found for found in stored if first <= found.base_offset < third][::2]
    compacted = b"".join(bytes(f.buffer[f.position : f.position + f.size_bytes]) for f in keep)
    files.write(FOLDER / f"{first:020d}.log.swap", compacted)
    crashed_before_removal = dict(files.names)
    log = open_log(files, config=SMALL, clean_shutdown=True)
    assert [f.base_offset for f in read_all(log) if f.base_offset < third] == [f.base_offset for f in keep]
    assert second not in log._bases or keep[-1].base_offset < second

    files.names = crashed_before_removal
    files.write(FOLDER / f"{first:020d}.log.cleaned", b"")
    log = open_log(files, config=SMALL, clean_shutdown=True)
    assert not [name for name in files.list(FOLDER) if name.endswith(".swap")]


def test_a_snapshot_from_before_the_first_segment_is_not_believed() -> None:
    """A power failure may leave it behind while the segments after it are gone: what they said would be missing."""
    files = SimulatedFiles()
    log = open_log(files)
    append(log, batch(producer=(5, 0, 0), transactional=True))
    log.roll(NOW)
    end_transaction(log, 5, 0, commit=False)
    log.roll(NOW)
    append(log, batch(producer=(5, 0, 1), transactional=True))
    end_transaction(log, 5, 0, commit=False)
    log.abandon()
    kept = (f"{1:020d}.snapshot", f"{2:020d}.log")
    for name in files.list(FOLDER):
        if name[:1] == "0" and name not in kept:
            files.remove(FOLDER / name)
    log = open_log(files)
    assert (log.log_start_offset, log.log_end_offset) == (2, 4)
    assert [tuple(entry) for entry in log.aborted_transactions(0, 10)] == [(5, 2, 3, 4)]
