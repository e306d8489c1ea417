"""Files: everything the log asks of a file system, behind one small interface.

Theory of operation. The log writes by appending and by truncating; small state files are replaced as a whole. What is
appended is in the page cache and survives the death of the process; it survives a power failure only after
`SyncTarget.sync`, and a new, renamed or removed name only after `sync_directory`. Tests put a file system in memory
behind the same interface that loses exactly what it is allowed to lose.

One thread owns the open files. fsync may run on another: `sync_target` opens a descriptor of its own, so that nothing
else has to be shared with that thread. Small files may be written, and names changed, on any thread.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

DEFAULT_MAX_OPEN_FILES = 512


class SyncTarget(Protocol):
    """One file whose written bytes are to be made durable; used once, from any thread."""

    def sync(self) -> None:
        """Make everything written so far durable, and let go of the file. Raises OSError."""


class LogFile(Protocol):
    """A file that grows at its end."""

    @property
    def path(self) -> Path:
        """Where the file is now."""

    @property
    def size(self) -> int:
        """Bytes in the file, as the log sees it."""

    def append(self, data: Buffer) -> None:
        """Write at the end. If that fails part of the way, what was written is cut off again and OSError is raised."""

    def read(self, size: int, position: int) -> bytes:
        """Up to `size` bytes from `position`; fewer only at the end of the file."""

    def truncate(self, size: int) -> None:
        """Cut the file down to `size` bytes."""

    def close(self) -> None:
        """Let go of the descriptor; a later call opens it again."""


class UnmadeFile:
    """An empty file that is not there yet: nothing to read, and nobody may write.

    Attributes:
        path: the folder that it will be made in.
    """

    __slots__ = ("path",)

    size = 0

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def append(self, data: Buffer) -> None:
        """Not before the file was made."""
        raise AssertionError(f"a file in {self.path} is not made yet")

    def read(self, size: int, position: int) -> bytes:
        """Nothing."""
        return b""

    def truncate(self, size: int) -> None:
        """It is empty."""

    def close(self) -> None:
        """Nothing is held."""


class Files(Protocol):
    """The file system."""

    def open(self, path: Path, *, create: bool = False) -> LogFile:
        """A file to append to and read from. Raises FileNotFoundError unless `create`."""

    def exists(self, path: Path) -> bool:
        """Whether a file or folder of this name is there."""

    def list(self, folder: Path) -> list[str]:
        """The names in a folder, sorted."""

    def size(self, path: Path) -> int:
        """Bytes in a file."""

    def modified_ms(self, path: Path) -> int:
        """Wall clock time of the last write."""

    def read(self, path: Path) -> bytes:
        """The whole of a small file."""

    def write(self, path: Path, data: bytes) -> None:
        """Create or overwrite a small file, without making it durable."""

    def replace(self, path: Path, data: bytes) -> None:
        """Replace a small file durably: after a crash at any moment it is wholly the old or wholly the new one."""

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file or folder, replacing a file of that name."""

    def remove(self, path: Path) -> None:
        """Remove a file if it is there."""

    def remove_tree(self, folder: Path) -> None:
        """Remove a folder with all that is in it."""

    def make_folder(self, folder: Path) -> None:
        """Create a folder; its name is durable once its parent was synced."""

    def sync_directory(self, folder: Path) -> None:
        """Make the names in a folder durable."""

    def sync_target(self, path: Path) -> SyncTarget:
        """Take hold of a file in order to fsync it later, perhaps on another thread."""

    def free_bytes(self, folder: Path) -> int:
        """How much may still be written below a folder."""


class OsSyncTarget:
    """A descriptor that is fsynced and closed."""

    __slots__ = ("_fd", "_path")

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    def sync(self) -> None:
        """Fsync and close."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            error.filename = str(self._path)
            raise
        finally:
            os.close(self._fd)


class OsLogFile:
    """A file of the operating system; its descriptor is opened when needed, and the pool may close it in between."""

    __slots__ = ("_fd", "_pool", "path", "size")

    def __init__(self, pool: OsFiles, path: Path, fd: int) -> None:
        self._pool = pool
        self._fd = fd
        self.path = path
        self.size = os.fstat(fd).st_size

    def append(self, data: Buffer) -> None:
        """Write at the end, whole or not at all."""
        fd = self._descriptor()
        size, length = self.size, len(data)
        try:
            written = os.pwrite(fd, data, size)
            while written < length:  # a full disk writes what fits and says so at the next call
                written += os.pwrite(fd, memoryview(data)[written:], size + written)
        except OSError as error:
            with suppress(OSError):  # the first error is the one to report; recovery cuts the rest off
                os.ftruncate(fd, size)
            error.filename = str(self.path)
            raise
        self.size = size + length

    def read(self, size: int, position: int) -> bytes:
        """Read a range."""
        fd = self._descriptor()
        try:
            data = os.pread(fd, size, position)
            if len(data) == size or position + len(data) >= self.size:
                return data
            parts = [data]
            got = len(data)
            while got < size and (more := os.pread(fd, size - got, position + got)):
                parts.append(more)
                got += len(more)
        except OSError as error:
            error.filename = str(self.path)
            raise
        return b"".join(parts)

    def truncate(self, size: int) -> None:
        """Cut off the end."""
        os.ftruncate(self._descriptor(), size)
        self.size = size

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            self._pool.forget(self)
            self.release()

    def release(self) -> None:
        """Close the descriptor on behalf of the pool."""
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _descriptor(self) -> int:
        fd = self._fd
        if fd < 0:
            fd = self._fd = self._pool.descriptor(self.path, os.O_RDWR)
        self._pool.touch(self)
        return fd


class OsFiles:
    """The operating system's files, with at most `max_open` descriptors held for logs."""

    def __init__(self, max_open: int = DEFAULT_MAX_OPEN_FILES) -> None:
        self._max_open = max_open
        self._open: OrderedDict[int, OsLogFile] = OrderedDict()

    @property
    def open_count(self) -> int:
        """Descriptors held at the moment."""
        return len(self._open)

    def descriptor(self, path: Path, flags: int) -> int:
        """Open a file. If the process may open no more, those of the pool give way: they can be opened again."""
        flags |= os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o644)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._open:
                raise
        while self._open:
            self._close_oldest()
        return os.open(path, flags, 0o644)

    def _close_oldest(self) -> None:
        _, oldest = self._open.popitem(last=False)
        oldest.release()

    def touch(self, file: OsLogFile) -> None:
        """Note the use of a file; the one unused for longest gives way when there are too many."""
        key = id(file)
        try:
            self._open.move_to_end(key)
        except KeyError:
            self._open[key] = file
            while len(self._open) > self._max_open:
                self._close_oldest()

    def forget(self, file: OsLogFile) -> None:
        """The file was closed by its owner."""
        self._open.pop(id(file), None)

    def open(self, path: Path, *, create: bool = False) -> OsLogFile:
        """Open a file for appending."""
        file = OsLogFile(self, path, self.descriptor(path, os.O_RDWR | (os.O_CREAT if create else 0)))
        self.touch(file)
        return file

    def exists(self, path: Path) -> bool:
        """Whether the name is there."""
        return os.path.exists(path)

    def list(self, folder: Path) -> list[str]:
        """Names, sorted."""
        return sorted(os.listdir(folder))

    def size(self, path: Path) -> int:
        """Bytes in the file."""
        return path.stat().st_size

    def modified_ms(self, path: Path) -> int:
        """Time of the last write."""
        return path.stat().st_mtime_ns // 1_000_000

    def read(self, path: Path) -> bytes:
        """The whole file."""
        return path.read_bytes()

    def write(self, path: Path, data: bytes) -> None:
        """Overwrite the file."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            written = 0
            while written < len(data):
                written += os.write(fd, memoryview(data)[written:])
        except OSError as error:
            error.filename = str(path)
            raise
        finally:
            os.close(fd)

    def replace(self, path: Path, data: bytes) -> None:
        """Write beside it, fsync, rename, fsync the folder."""
        draft = path.with_name(path.name + ".tmp")
        try:
            self.write(draft, data)
            self._fsync(draft)
            os.rename(draft, path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            error.filename = str(path)
            raise
        self.sync_directory(path.parent)

    def rename(self, source: Path, target: Path) -> None:
        """Rename."""
        os.rename(source, target)

    def remove(self, path: Path) -> None:
        """Unlink if there."""
        path.unlink(missing_ok=True)

    def remove_tree(self, folder: Path) -> None:
        """Remove the folder; a file that vanishes meanwhile is no error."""
        shutil.rmtree(folder, ignore_errors=True)

    def make_folder(self, folder: Path) -> None:
        """Create the folder."""
        folder.mkdir(exist_ok=True)

    def sync_directory(self, folder: Path) -> None:
        """Fsync the folder."""
        self._fsync(folder)

    def sync_target(self, path: Path) -> OsSyncTarget:
        """A descriptor of its own for the fsync."""
        return OsSyncTarget(self.descriptor(path, os.O_RDONLY), path)

    def free_bytes(self, folder: Path) -> int:
        """What the file system gives this user."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize

    def _fsync(self, path: Path) -> None:
        OsSyncTarget(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path).sync()
