"""The operating system's files; the simulated ones must behave the same, so that they may stand for the real thing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from log_batches import append, batch, open_log, read_all
from log_simulated_files import SimulatedFiles

from ottla_broker.log.config import LogConfig
from ottla_broker.log.files import Files, OsFiles


@pytest.fixture(params=["operating system", "simulated"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Files, Path]:
    if request.param == "simulated":
        return SimulatedFiles(), Path("/data")
    return OsFiles(), tmp_path


def test_a_file_grows_and_is_cut(place: tuple[Files, Path]) -> None:
    files, folder = place
    file = files.open(folder / "a.log", create=True)
    file.append(b"hello ")
    file.append(memoryview(b"world"))
    assert (file.size, file.read(5, 6), file.read(100, 6)) == (11, b"world", b"world")
    file.truncate(6)
    file.append(b"you")
    assert (file.size, file.read(100, 0)) == (9, b"hello you")
    file.close()
    assert file.read(5, 0) == b"hello"
    assert files.open(folder / "a.log").size == 9


def test_a_file_that_is_not_there_is_not_found(place: tuple[Files, Path]) -> None:
    files, folder = place
    for look in (files.open, files.read, files.size, files.sync_target):
        with pytest.raises(FileNotFoundError):
            look(folder / "missing")
    assert not files.exists(folder / "missing")
    files.remove(folder / "missing")


def test_small_files_are_replaced_as_a_whole(place: tuple[Files, Path]) -> None:
    files, folder = place
    files.replace(folder / "checkpoint", b"a long content")
    files.replace(folder / "checkpoint", b"short")
    files.write(folder / "other", b"x" * 20)
    files.write(folder / "other", b"y")
    assert files.read(folder / "checkpoint") == b"short"
    assert files.read(folder / "other") == b"y"
    assert files.list(folder) == ["checkpoint", "other"]


def test_a_folder_is_made_renamed_and_removed(place: tuple[Files, Path]) -> None:
    files, folder = place
    files.make_folder(folder / "t-0")
    files.write(folder / "t-0" / "file", b"x")
    files.rename(folder / "t-0", folder / "t-0.gone")
    assert files.read(folder / "t-0.gone" / "file") == b"x"
    files.remove_tree(folder / "t-0.gone")
    assert not files.exists(folder / "t-0.gone")


def test_syncing_a_file_and_a_folder_is_possible(place: tuple[Files, Path]) -> None:
    files, folder = place
    file = files.open(folder / "a.log", create=True)
    file.append(b"x")
    files.sync_target(folder / "a.log").sync()
    files.sync_target(folder).sync()
    files.sync_directory(folder)


def open_descriptors(folder: Path) -> int:
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith(str(folder)) for link in links if os.path.exists(link))


def test_the_number_of_descriptors_is_bounded(tmp_path: Path) -> None:
    files = OsFiles(max_open=5)
    config = LogConfig(segment_bytes=300, index_interval_bytes=100)
    logs = []
    for index in range(4):
        log = open_log(files, folder=tmp_path / f"orders-{index}", config=config)
        for _ in range(20):
            append(log, batch(value=bytes(60)))
        logs.append(log)
    for log in logs:
        assert len(read_all(log)) == 20
    assert files.open_count <= 5
    assert open_descriptors(tmp_path) <= 5
    for log in logs:
        log.close()
    assert open_descriptors(tmp_path) == 0


def test_a_write_that_fails_part_of_the_way_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = OsFiles()
    file = files.open(tmp_path / "a.log", create=True)
    file.append(b"good")
    write = os.pwrite

    def short_then_full(fd: int, data: bytes, offset: int) -> int:
        if offset > 4:
            raise OSError(28, "No space left on device")
        return write(fd, bytes(data)[:3], offset)

    monkeypatch.setattr(os, "pwrite", short_then_full)
    with pytest.raises(OSError, match="No space"):
        file.append(b"too much")
    monkeypatch.undo()
    assert file.size == 4
    assert (tmp_path / "a.log").read_bytes() == b"good"
    file.append(b" again")
    assert (tmp_path / "a.log").read_bytes() == b"good again"


def test_a_write_that_stops_short_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = OsFiles().open(tmp_path / "a.log", create=True)
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, bytes(data)[:3], offset))
    file.append(b"0123456789")
    assert file.read(100, 0) == b"0123456789"
