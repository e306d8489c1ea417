"""Files that are never fsynced: for data that does not outlive its process anyway."""

from __future__ import annotations

from pathlib import Path

from ottla_broker.log.files import OsFiles, OsSyncTarget


class _Nothing(OsSyncTarget):
    __slots__ = ()

    def __init__(self) -> None:
        pass

    def sync(self) -> None:
        pass


class UnsyncedFiles(OsFiles):
    """The operating system's files without a single fsync: what was written survives `kill -9`, not a power failure."""

    def sync_target(self, path: Path) -> OsSyncTarget:
        """Nothing to do later."""
        return _Nothing()

    def _fsync(self, path: Path) -> None:
        pass
