"""The operating system's files, of which the test may let one operation fail."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ottla_broker.log.files import Buffer, OsFiles, OsLogFile, OsSyncTarget


class FaultyFiles(OsFiles):
    """After `fail(operation, name)` that operation fails on every path that ends so.

    Operations: open, append, read, write, replace, rename, make_folder, sync, remove, remove_tree.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failures = 0
        self._faults: list[tuple[str, str, int]] = []

    def fail(self, operation: str, name: str = "", number: int = errno.EIO) -> None:
        self._faults.append((operation, name, number))

    def heal(self) -> None:
        self._faults.clear()

    def check(self, operation: str, path: Path) -> None:
        for what, name, number in self._faults:
            if what == operation and str(path).endswith(name):
                self.failures += 1
                raise OSError(number, os.strerror(number), str(path))

    def open(self, path: Path, *, create: bool = False) -> OsLogFile:
        self.check("open", path)
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        file = _FaultyLogFile(self, path, os.open(path, flags, 0o644))
        self.touch(file)
        return file

    def read(self, path: Path) -> bytes:
        self.check("read", path)
        return super().read(path)

    def write(self, path: Path, data: bytes) -> None:
        self.check("write", path)
        super().write(path, data)

    def replace(self, path: Path, data: bytes) -> None:
        self.check("replace", path)
        super().replace(path, data)

    def rename(self, source: Path, target: Path) -> None:
        self.check("rename", source)
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self.check("remove", path)
        super().remove(path)

    def remove_tree(self, folder: Path) -> None:
        self.check("remove_tree", folder)
        super().remove_tree(folder)

    def make_folder(self, folder: Path) -> None:
        self.check("make_folder", folder)
        super().make_folder(folder)

    def sync_target(self, path: Path) -> OsSyncTarget:
        return _FaultySyncTarget(self, path)

    def _fsync(self, path: Path) -> None:
        self.check("sync", path)
        super()._fsync(path)


class _FaultyLogFile(OsLogFile):
    def append(self, data: Buffer) -> None:
        self._files.check("append", self.path)
        super().append(data)

    def read(self, size: int, position: int) -> bytes:
        self._files.check("read", self.path)
        return super().read(size, position)

    @property
    def _files(self) -> FaultyFiles:
        assert isinstance(self._pool, FaultyFiles)
        return self._pool


class _FaultySyncTarget(OsSyncTarget):
    def __init__(self, files: FaultyFiles, path: Path) -> None:
        super().__init__(files.descriptor(path, os.O_RDONLY), path)
        self._files = files

    def sync(self) -> None:
        try:
            self._files.check("sync", self._path)
        except OSError:
            os.close(self._fd)
            raise
        super().sync()
