"""A disk that runs full: a small file system of its own, seen only by whoever is started in its mount namespace.

It needs root, or a kernel that gives users namespaces. It is gone with the test's process, whatever happens to that.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import IO, cast


class NoSmallDisk(Exception):
    """This machine gives none; the message says why."""


class SmallDisk:
    """`size_bytes` of tmpfs at `path`.

    Attributes:
        path: where it is for programs that were started with `prefix`.
        outside: the same folder for everybody else.
        prefix: what to put before a command.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        path.mkdir()
        as_root = os.geteuid() == 0
        mount = f"mount -t tmpfs -o size={size_bytes} tmpfs {path} && echo ready && exec cat"
        try:
            self._keeper = subprocess.Popen(
                ["unshare", *([] if as_root else ["--user", "--map-root-user"]), "--mount", "sh", "-c", mount],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError as error:
            raise NoSmallDisk(str(error)) from error
        if self._pipe("stdout").readline() != b"ready\n":
            reason = self._pipe("stderr").read().decode().strip()
            self.close()
            raise NoSmallDisk(reason)
        self.path = path
        self.outside = Path(f"/proc/{self._keeper.pid}/root{path}")
        self.prefix = ["nsenter", "--target", str(self._keeper.pid), "--mount"]
        if not as_root:
            self.prefix += ["--user", "--preserve-credentials"]

    def fill(self, name: str, size_bytes: int | None = None) -> None:
        """Take room away with a file of this size, or of all that is left."""
        with (self.outside / name).open("wb", buffering=0) as file, contextlib.suppress(OSError):
            left = size_bytes
            while left is None or left > 0:
                written = cast(int, file.write(bytes(4096 if left is None else min(left, 4096))))
                left = None if left is None else left - written

    def free_bytes(self) -> int:
        found = os.statvfs(self.outside)
        return found.f_bavail * found.f_frsize

    def close(self) -> None:
        for name in ("stdin", "stdout", "stderr"):
            self._pipe(name).close()
        self._keeper.wait(10)

    def _pipe(self, name: str) -> IO[bytes]:
        return cast(IO[bytes], getattr(self._keeper, name))
