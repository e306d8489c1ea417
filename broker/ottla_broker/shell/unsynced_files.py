"""Files that are never fsynced: for data that does not outlive its process anyway."""

from __future__ import annotations

from pathlib import Path

from ottla_broker.log.files import OsFiles, OsSyncTarget


class _Nothing(OsSyncTarget):
    def __init__(self) -> None:
        pass

    def sync(self) -> None:
        pass


class UnsyncedFiles(OsFiles):
    """The operating system's files without a single fsync: what was written survives `kill -9`, not a power failure."""

    def replace(self, path: Path, data: bytes) -> None:
        """Write beside it, rename: still wholly the old or the new one for whoever reads it."""
        draft = path.with_name(path.name + ".tmp")
        draft.write_bytes(data)
        draft.rename(path)

    def make_folder(self, folder: Path) -> None:
        """Create a folder."""
        folder.mkdir(parents=True, exist_ok=True)

    def sync_directory(self, folder: Path) -> None:
        """Nothing to do."""

    def sync_target(self, path: Path) -> OsSyncTarget:
        """Nothing to do later."""
        return _Nothing()
