"""FolderLock: one broker per data folder.

The lock is a POSIX lock on `.lock`, the file and the kind of lock that Apache Kafka uses, so neither starts on the
other's folder. It goes with its process, however that ends. Such a lock does not hold within a process; the folders
that this process has are kept beside it.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

LOCK_NAME = ".lock"

_held: dict[str, str] = {}  # real path -> address


class FolderInUse(Exception):
    """Another broker has the folder; `owner` says which, as far as it is known."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner


class FolderLock:
    """A folder that is ours until `release`."""

    def __init__(self, folder: Path, address: str) -> None:
        """Take the folder. Raises FolderInUse, OSError."""
        self._key = os.path.realpath(folder)
        if self._key in _held:
            raise FolderInUse(_owner(f"{os.getpid()} {_held[self._key]}"))
        self._fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            written = os.read(self._fd, 1000).decode("utf-8", "replace")
            os.close(self._fd)
            if isinstance(error, (BlockingIOError, PermissionError)):
                raise FolderInUse(_owner(written)) from None
            raise
        _held[self._key] = address
        with suppress(OSError):  # what is written there is only for people
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()} {address}\n".encode(), 0)

    def release(self) -> None:
        """Give the folder back."""
        if _held.pop(self._key, None) is not None:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)


def _owner(written: str) -> str:
    pid, _, address = written.strip().partition(" ")
    if not pid.isdigit():
        return "another broker"  # Apache Kafka writes nothing into the file
    return f"pid {pid} ({address})" if address else f"pid {pid}"
