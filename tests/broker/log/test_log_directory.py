"""The data folder: whose it is, what it remembers, what it does as time passes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from log_batches import NOW, append, batch, read_all

from ottla_broker.log.config import LogConfig
from ottla_broker.log.files import OsFiles
from ottla_broker.log.partition_log import PartitionLog
from ottla_broker.shell.config import BrokerConfig
from ottla_broker.shell.disk_chores import PORTION
from ottla_broker.shell.log_directory import LogDirectory, LogDirectoryError, run_at_once
from ottla_broker.shell.unsynced_files import UnsyncedFiles
from ottla_wire.errors import KafkaStorageError
from ottla_wire.schema import Uuid
from support.faulty_files import FaultyFiles

TOPIC_ID = Uuid.random(random.Random(1))
OTHER_ID = Uuid.random(random.Random(2))
SMALL = LogConfig(segment_bytes=300)


class Place:
    """Opens data folders one after the other, and gives them back."""

    def __init__(self, folder: Path) -> None:
        self.config = BrokerConfig(log_dirs=str(folder / "data"), node_id=3)
        self.files: Any = OsFiles()
        self.wall_ms = NOW
        self.opened: list[LogDirectory] = []

    @property
    def path(self) -> Path:
        return self.config.data

    def open(self, **config: object) -> LogDirectory:
        directory = LogDirectory.open(
            replace(self.config, **config), files=self.files, wall_ms=lambda: self.wall_ms, address="127.0.0.1:9092"
        )
        directory.tick(0)
        self.opened.append(directory)
        return directory

    def crash(self, directory: LogDirectory) -> None:
        """As if the process had died: nothing is written, the lock goes."""
        for log in directory.logs.values():
            log.abandon()
        directory._lock.release()
        self.opened.remove(directory)

    def close(self, directory: LogDirectory) -> None:
        directory.close()
        self.opened.remove(directory)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    for directory in place.opened:
        directory.close()


def open_orders(directory: LogDirectory, config: LogConfig = SMALL, topic_id: Uuid = TOPIC_ID) -> PartitionLog:
    return directory.open_log("orders", 0, topic_id, config)


def fill(log: PartitionLog, batches: int = 10) -> None:
    for _ in range(batches):
        append(log, batch(value=bytes(60)))
    log.high_watermark_moved(log.log_end_offset)


# ---- the lock


def test_a_second_broker_is_told_who_has_the_folder(place: Place) -> None:
    place.open()
    with pytest.raises(LogDirectoryError) as raised:
        place.open()
    assert str(raised.value) == (
        f"data directory {place.path} is in use by pid {os.getpid()} (127.0.0.1:9092); stop it or choose another --data"
    )


def test_a_broker_in_another_process_is_told_too(place: Place) -> None:
    place.open()
    program = (
        "import sys\n"
        "from ottla_broker.log.files import OsFiles\n"
        "from ottla_broker.shell.config import BrokerConfig\n"
        "from ottla_broker.shell.log_directory import LogDirectory\n"
        "LogDirectory.open(BrokerConfig(log_dirs=sys.argv[1]), files=OsFiles(), wall_ms=int)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(place.path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert f"is in use by pid {os.getpid()} (127.0.0.1:9092)" in done.stderr


def test_a_folder_is_free_again_after_close(place: Place) -> None:
    place.close(place.open())
    place.open()


def test_a_folder_without_a_parent_is_refused_in_one_sentence(place: Place, tmp_path: Path) -> None:
    with pytest.raises(LogDirectoryError, match=r"nowhere/data cannot be made: .*nowhere is not a directory$"):
        place.open(log_dirs=str(tmp_path / "nowhere" / "data"))


def test_a_file_in_the_place_of_the_folder_is_refused_in_one_sentence(place: Place) -> None:
    place.path.write_text("")
    with pytest.raises(LogDirectoryError, match=r"cannot be used .*File exists; choose another --data"):
        place.open()


# ---- identity


def test_a_new_folder_gets_an_identity_and_keeps_it(place: Place) -> None:
    directory = place.open()
    identity = (directory.cluster_id, directory.directory_id)
    place.close(directory)
    lines = (place.path / "meta.properties").read_text().splitlines()
    assert {f"cluster.id={identity[0]}", f"directory.id={identity[1]}", "node.id=3", "version=1"} <= set(lines)
    again = place.open()
    assert (again.cluster_id, again.directory_id) == identity


def test_the_folder_of_another_node_is_refused(place: Place) -> None:
    place.close(place.open())
    with pytest.raises(LogDirectoryError, match=r"belongs to node 3, not 4; set node.id=3 or choose another --data"):
        place.open(node_id=4)
    place.open()  # the lock was given back


def test_an_unknown_version_of_the_identity_is_refused(place: Place) -> None:
    place.close(place.open())
    (place.path / "meta.properties").write_text("version=0\nbroker.id=3\n")
    with pytest.raises(LogDirectoryError, match="has version 0; 1 is needed"):
        place.open()


# ---- clean and other stops


def test_after_a_clean_stop_nothing_is_checked(place: Place) -> None:
    directory = place.open()
    log = open_orders(directory)
    fill(log)
    log.increment_log_start_offset(4)
    place.close(directory)
    assert json.loads((place.path / ".kafka_cleanshutdown").read_text())["version"] == 0
    directory = place.open()
    assert directory.was_clean_shutdown
    assert not (place.path / ".kafka_cleanshutdown").exists()
    log = open_orders(directory)
    assert (log.log_start_offset, log.high_watermark, log.log_end_offset, log.flushed_offset) == (4, 10, 10, 10)


def test_after_a_crash_logs_are_recovered(place: Place) -> None:
    directory = place.open()
    log = open_orders(directory)
    fill(log)
    place.crash(directory)
    with (place.path / "orders-0" / f"{log.active_segment_base_offset:020d}.log").open("ab") as file:
        file.write(b"torn")
    directory = place.open()
    assert not directory.was_clean_shutdown
    log = open_orders(directory)
    assert (log.log_end_offset, len(read_all(log))) == (10, 10)
    assert log.high_watermark == 0


def test_checkpoints_are_written_as_time_passes(place: Place) -> None:
    directory = place.open()
    fill(open_orders(directory))
    directory.tick(4_999)
    assert not (place.path / "replication-offset-checkpoint").exists()
    directory.tick(5_000)
    assert (place.path / "replication-offset-checkpoint").read_text() == "0\n1\norders 0 10\n"
    directory.logs["orders", 0].increment_log_start_offset(3)
    directory.tick(60_000)
    assert (place.path / "log-start-offset-checkpoint").read_text() == "0\n1\norders 0 3\n"
    recovery = (place.path / "recovery-point-offset-checkpoint").read_text()
    assert recovery == f"0\n1\norders 0 {directory.logs['orders', 0].recovery_point}\n"
    assert directory.logs["orders", 0].recovery_point > 0


def test_a_crash_after_a_checkpoint_keeps_high_watermark_and_start(place: Place) -> None:
    directory = place.open()
    log = open_orders(directory)
    fill(log)
    log.increment_log_start_offset(3)
    directory.tick(60_000)
    place.crash(directory)
    log = open_orders(place.open())
    assert (log.log_start_offset, log.high_watermark, log.log_end_offset) == (3, 10, 10)


def test_offsets_of_logs_that_nobody_opens_are_kept(place: Place) -> None:
    directory = place.open()
    fill(open_orders(directory))
    place.close(directory)
    directory = place.open()
    fill(directory.open_log("other", 1, OTHER_ID, SMALL))
    place.close(directory)
    assert (place.path / "replication-offset-checkpoint").read_text() == "0\n2\norders 0 10\nother 1 10\n"


def test_a_stop_is_not_clean_while_a_log_is_unchecked(place: Place) -> None:
    """A log that crashed, and was not opened by the run after it, must not be believed by the run after that."""
    directory = place.open()
    fill(open_orders(directory))
    place.crash(directory)
    place.close(place.open())
    directory = place.open()
    assert not directory.was_clean_shutdown


def test_a_stop_with_a_log_offline_is_not_clean(place: Place) -> None:
    directory = place.open()
    log = open_orders(directory)
    fill(log)
    log.flush_failed(OSError(5, "Input/output error"))
    place.close(directory)
    assert not place.open().was_clean_shutdown


def test_a_folder_that_failed_is_not_written_to_any_more(place: Place) -> None:
    directory = place.open()
    sentences: list[str] = []
    directory.on_failure = sentences.append
    log = open_orders(directory)
    other = directory.open_log("bills", 0, OTHER_ID, LogConfig(segment_bytes=300, retention_bytes=0, flush_ms=1))
    fill(log)
    fill(other)
    directory.tick(1)
    fill(other)
    fill(log)
    log.flush_failed(OSError(5, "Input/output error"))
    before = {path: path.read_bytes() for path in place.path.rglob("*") if path.is_file() and path.name != ".lock"}
    for refused in (log, other):
        with pytest.raises(KafkaStorageError):
            append(refused, batch())
        with pytest.raises(KafkaStorageError):
            refused.read(0, 100)
    with pytest.raises(KafkaStorageError):
        directory.open_log("notes", 0, OTHER_ID, SMALL)
    directory.tick(10**9)
    assert directory.deadline_ms() is None
    place.close(directory)
    assert {path: path.read_bytes() for path in before} == before
    assert sentences == [directory.failure]
    assert "Input/output error" in sentences[0]


def test_one_fsync_that_fails_at_the_end_leaves_no_marker_and_no_recovery_points(place: Place) -> None:
    place.files = FaultyFiles()
    directory = place.open()
    for index in range(3):
        fill(directory.open_log("orders", index, TOPIC_ID, SMALL))
    place.files.fail("sync", f"orders-1/{0:020d}.log")
    place.close(directory)
    assert directory.failure is not None
    assert f"orders-1/{0:020d}.log: Input/output error" in directory.failure
    assert not (place.path / ".kafka_cleanshutdown").exists()
    assert not (place.path / "recovery-point-offset-checkpoint").exists()
    place.files.heal()
    directory = place.open()
    for index in range(3):
        assert len(read_all(directory.open_log("orders", index, TOPIC_ID, SMALL))) == 10


def test_damaged_checkpoints_are_ignored(place: Place) -> None:
    directory = place.open()
    fill(open_orders(directory))
    place.close(directory)
    for name in ("recovery-point-offset-checkpoint", "replication-offset-checkpoint", "log-start-offset-checkpoint"):
        (place.path / name).write_text("0\n5\norders 0 x\n")
    log = open_orders(place.open())
    assert (log.log_start_offset, log.log_end_offset, log.high_watermark) == (0, 10, 0)


def test_the_stored_recovery_point_falls_before_a_truncation(place: Place) -> None:
    directory = place.open()
    log = open_orders(directory)
    fill(log)
    directory.tick(60_000)
    log.truncate_to(1, now_ms=NOW)
    assert (place.path / "recovery-point-offset-checkpoint").read_text() == "0\n1\norders 0 0\n"


# ---- deleting


def test_a_deleted_log_goes_with_its_folder_and_offsets(place: Place) -> None:
    directory = place.open()
    waiting: list[Callable[[], None]] = []
    directory.background = lambda work, done: waiting.append(work)
    log = open_orders(directory)
    fill(log)
    directory._checkpoint_recovery_points()
    waiting.pop()()
    assert "orders 0" in (place.path / "recovery-point-offset-checkpoint").read_text()
    directory.delete_log("orders", 0)
    (doomed,) = [name for name in os.listdir(place.path) if name.startswith("orders")]
    prefix, _, unique = doomed.removesuffix("-delete").rpartition(".")
    assert prefix == "orders-0"
    assert len(bytes.fromhex(unique)) == 16
    with pytest.raises(KafkaStorageError, match="was deleted"):
        append(log, batch())
    directory.background = run_at_once
    for work in waiting:
        work()
    assert directory.partitions_on_disk() == []
    place.close(directory)
    assert "orders" not in (place.path / "recovery-point-offset-checkpoint").read_text()


def test_a_long_topic_name_can_be_deleted(place: Place) -> None:
    directory = place.open()
    directory.open_log("t" * 249, 0, TOPIC_ID, SMALL)
    directory.delete_log("t" * 249, 0)
    assert directory.partitions_on_disk() == []


def test_what_was_left_of_deleted_logs_is_removed_at_start(place: Place) -> None:
    place.close(place.open())
    leftover = place.path / f"orders-0.{'0' * 32}-delete"
    leftover.mkdir()
    (leftover / "file").write_text("x")
    place.open()
    assert not leftover.exists()


def test_a_topic_made_anew_under_the_same_name_starts_empty(place: Place) -> None:
    directory = place.open()
    log = open_orders(directory)
    append(log, batch(producer=(5, 0, 0)), leader_epoch=9)
    fill(log)
    log.increment_log_start_offset(4)
    place.close(directory)
    directory = place.open()
    log = open_orders(directory, topic_id=OTHER_ID)
    assert (log.log_start_offset, log.log_end_offset, log.high_watermark) == (0, 0, 0)
    assert len(log.producers) == 0
    assert log.leader_epochs.entries == []
    place.close(directory)
    assert open_orders(place.open(), topic_id=OTHER_ID).topic_id == OTHER_ID


def test_many_deleted_logs_are_removed_a_few_at_a_time(place: Place) -> None:
    place.files = UnsyncedFiles()
    directory = place.open()
    for index in range(PORTION * 2):
        fill(directory.open_log("orders", index, TOPIC_ID, SMALL), 1)
    jobs: list[tuple[Callable[[], None], Callable[[BaseException | None], None]]] = []
    directory.background = lambda work, done: jobs.append((work, done))
    for index in range(PORTION * 2):
        directory.delete_log("orders", index)
    assert directory.partitions_on_disk() == []
    left = []
    while jobs:
        (work, done) = jobs.pop()
        assert not jobs
        work()
        done(None)
        left.append(len(list(place.path.glob("orders*"))))
    assert left == [PORTION * 2 - 1, PORTION - 1, 0]
    directory.background = run_at_once


def test_folders_of_topics_that_nobody_knows_are_set_aside_and_kept(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """A crash between the deletion of a topic in the metadata and that of its folders leaves them."""
    directory = place.open()
    fill(open_orders(directory))
    fill(directory.open_log("bills", 0, OTHER_ID, SMALL))
    place.crash(directory)
    directory = place.open()
    log = open_orders(directory)
    directory.started()
    (stray,) = place.path.glob("*-stray")
    assert stray.name.startswith("bills-0.")
    assert (stray / f"{0:020d}.log").exists()
    assert f"it becomes {stray.name} and may be removed" in caplog.text
    assert log.log_end_offset == 10
    place.close(directory)
    directory = place.open()
    assert directory.was_clean_shutdown
    assert stray.exists()
    assert directory.partitions_on_disk() == [("orders", 0)]


@pytest.mark.parametrize("crashes", [1, 2])
def test_a_topic_made_anew_does_not_inherit_offsets(place: Place, crashes: int) -> None:
    """The checkpoints still have those of the deleted topic; with them the next start would empty the new one."""
    directory = place.open()
    log = open_orders(directory)
    fill(log)
    log.increment_log_start_offset(8)
    directory.tick(60_000)
    directory.delete_log("orders", 0)
    if crashes == 2:
        place.crash(directory)
        directory = place.open()
    log = open_orders(directory, topic_id=OTHER_ID)
    assert (log.log_start_offset, log.log_end_offset, log.high_watermark) == (0, 0, 0)
    append(log, batch())
    place.crash(directory)
    log = open_orders(place.open(), topic_id=OTHER_ID)
    assert (log.log_start_offset, log.log_end_offset) == (0, 1)


def test_a_deleted_log_that_nobody_opened_goes_too(place: Place) -> None:
    directory = place.open()
    open_orders(directory)
    place.close(directory)
    directory = place.open()
    directory.delete_log("orders", 0)
    assert directory.partitions_on_disk() == []


# ---- duties


def test_rolled_segments_are_flushed_in_the_background(place: Place) -> None:
    directory = place.open()
    log = open_orders(directory)
    jobs: list[tuple[Callable[[], None], Callable[[BaseException | None], None]]] = []
    directory.background = lambda work, done: jobs.append((work, done))
    fill(log)
    assert directory.deadline_ms() == 0
    directory.tick(1)
    ((work, done),) = jobs
    flushed = log.active_segment_base_offset
    fill(log)
    directory.tick(2)
    assert len(jobs) == 1  # one at a time
    work()
    assert log.recovery_point == 0
    done(None)
    assert log.recovery_point == flushed > 0
    directory.background = run_at_once
    directory.tick(3)
    assert log.recovery_point == log.active_segment_base_offset > flushed


def test_a_failed_flush_takes_the_log_offline(place: Place) -> None:
    directory = place.open()
    log = open_orders(directory)
    directory.background = lambda work, done: done(OSError(5, "Input/output error"))
    fill(log)
    directory.tick(1)
    assert log.offline is not None
    directory.background = run_at_once


def test_a_topic_with_flush_ms_is_flushed_by_time(place: Place) -> None:
    directory = place.open()
    log = open_orders(directory, LogConfig(flush_ms=200))
    directory.tick(1_000)
    append(log, batch())
    directory.tick(1_200)
    assert log.flushed_offset == 0
    assert directory.deadline_ms() <= 1_400
    directory.tick(1_400)
    assert log.flushed_offset == 1


def test_retention_runs_and_deleted_files_go_after_their_delay(place: Place) -> None:
    directory = place.open()
    log = open_orders(directory, LogConfig(segment_bytes=300, retention_bytes=0, file_delete_delay_ms=60_000))
    fill(log)
    directory.tick(299_999)
    assert log.log_start_offset == 0
    directory.tick(300_000)
    assert log.log_start_offset == 10
    folder = place.path / "orders-0"
    assert [name for name in os.listdir(folder) if name.endswith(".deleted")]
    place.wall_ms += 60_000
    directory.tick(360_000)
    assert not [name for name in os.listdir(folder) if name.endswith(".deleted")]


def test_retention_looks_at_some_logs_at_a_time(place: Place) -> None:
    place.files = UnsyncedFiles()
    directory = place.open()
    config = LogConfig(segment_bytes=300, retention_bytes=0)
    logs = [directory.open_log("orders", index, TOPIC_ID, config) for index in range(120)]
    for log in logs:
        fill(log, 3)
    directory.tick(1)
    now_ms, retained = 300_000, []
    directory.tick(now_ms)
    while directory.deadline_ms() == now_ms:
        retained.append(sum(log.log_start_offset > 0 for log in logs))
        now_ms += 1
        directory.tick(now_ms)
    assert retained == [50, 100, 120]  # and then the fsync of what was rolled
    assert all(log.log_start_offset == 3 for log in logs)


def test_producers_expire(place: Place) -> None:
    directory = place.open(producer_id_expiration_ms=1_000)
    log = open_orders(directory)
    append(log, batch(producer=(5, 0, 0)))
    place.wall_ms += 999
    directory.tick(600_000)
    assert len(log.producers) == 1
    place.wall_ms += 1
    directory.tick(1_200_000)
    assert len(log.producers) == 0


def test_leader_epochs_are_stored_in_the_background(place: Place) -> None:
    directory = place.open()
    log = open_orders(directory)
    directory.started()
    fill(log)
    log.begin_epoch(3)
    jobs: list[Callable[[], None]] = []
    directory.background = lambda work, done: jobs.append(work)
    log.increment_log_start_offset(4)
    checkpoint = place.path / "orders-0" / "leader-epoch-checkpoint"
    before = checkpoint.read_text()
    directory.tick(60_000)
    assert checkpoint.read_text() == before
    log.begin_epoch(7)  # durable at once, and it knows of the new start as well
    assert checkpoint.read_text() == "0\n2\n0 4\n7 10\n"
    for job in jobs:
        job()
    assert checkpoint.read_text() == "0\n2\n0 4\n7 10\n"
    directory.background = run_at_once


@pytest.mark.parametrize("ends", ["starts", "stops"])
def test_epochs_that_begin_while_logs_are_opened_are_stored_together(place: Place, ends: str) -> None:
    place.files = UnsyncedFiles()
    directory = place.open()
    logs = [directory.open_log("orders", index, TOPIC_ID, SMALL) for index in range(20)]
    for log in logs:
        fill(log, 1)
        log.begin_epoch(3)
    stored = list(place.path.glob("orders-*/leader-epoch-checkpoint"))
    assert stored == []
    if ends == "starts":
        directory.started()
        logs[0].begin_epoch(4)
    else:
        place.close(directory)
    stored = sorted(place.path.glob("orders-*/leader-epoch-checkpoint"))
    contents = [path.read_text() for path in stored]
    assert contents == ["0\n2\n0 0\n4 1\n" if ends == "starts" else "0\n2\n0 0\n3 1\n"] + ["0\n2\n0 0\n3 1\n"] * 19


def test_leader_epochs_of_a_deleted_topic_do_not_get_into_its_successor(place: Place) -> None:
    directory = place.open()
    fill(open_orders(directory))
    jobs: list[Callable[[], None]] = []
    directory.background = lambda work, done: jobs.append(work)
    directory.tick(60_000)
    directory.delete_log("orders", 0)
    log = open_orders(directory, topic_id=OTHER_ID)
    fill(log)
    for job in jobs:
        job()
    assert not (place.path / "orders-0" / "leader-epoch-checkpoint").exists()
    directory.background = run_at_once


def test_an_idle_broker_writes_nothing(place: Place) -> None:
    directory = place.open()
    fill(open_orders(directory))
    directory.tick(300_000)
    before = {path: path.stat().st_mtime_ns for path in place.path.rglob("*")}
    for at in range(300_000, 900_000, 5_000):
        directory.tick(at)
    assert {path: path.stat().st_mtime_ns for path in place.path.rglob("*")} == before


def test_the_internal_metadata_folder_is_no_partition_of_the_directory(place: Place) -> None:
    directory = place.open()
    (place.path / "__cluster_metadata-0").mkdir()
    fill(open_orders(directory), 1)
    assert directory.partitions_on_disk() == [("orders", 0)]


# ---- folders that are made late


def test_a_partition_has_no_folder_before_its_first_append(place: Place) -> None:
    directory = place.open()
    log = open_orders(directory)
    log.leader_epochs.assign(0, 0)
    assert directory.partitions_on_disk() == []
    assert log.is_established
    fill(log, 1)
    assert (place.path / "orders-0" / "partition.metadata").exists()
    assert not log.is_established
    log.flush()
    assert log.is_established
    directory.tick(60_000)
    assert (place.path / "orders-0" / "leader-epoch-checkpoint").read_text() == "0\n1\n0 0\n"


def test_a_partition_without_a_folder_is_closed_deleted_and_opened_again(place: Place) -> None:
    directory = place.open()
    open_orders(directory)
    place.close(directory)
    directory = place.open()
    log = open_orders(directory)
    assert log.log_end_offset == 0
    assert log.delete_old_segments(NOW) == 0
    directory.delete_log("orders", 0)
    assert directory.partitions_on_disk() == []


@pytest.mark.parametrize("content", [None, b"", b"version: 0\n", bytes(40)])
def test_a_folder_whose_id_a_crash_took_is_emptied(place: Place, content: bytes | None) -> None:
    directory = place.open()
    fill(open_orders(directory), 2)
    place.crash(directory)
    metadata = place.path / "orders-0" / "partition.metadata"
    metadata.unlink()
    if content is not None:
        metadata.write_bytes(content)
    log = open_orders(place.open(), topic_id=OTHER_ID)
    assert log.log_end_offset == 0


def test_a_folder_whose_id_is_missing_after_a_clean_shutdown_is_kept(place: Place) -> None:
    directory = place.open()
    fill(open_orders(directory), 2)
    place.close(directory)
    (place.path / "orders-0" / "partition.metadata").unlink()
    assert open_orders(place.open()).log_end_offset == 2
