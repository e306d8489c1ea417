"""FlushWork: the fsyncs of one log, named on the thread that owns it and done on any."""

from __future__ import annotations

from pathlib import Path

from ottla_broker.log.files import Files, SyncTarget
from ottla_broker.log.segment import Segment


class FlushWork:
    """What must be fsynced for the log to be durable up to an offset. `run` may be called on any thread, once."""

    __slots__ = ("_files", "_targets", "newest_base_offset", "parent", "segments", "truncations", "upto_offset")

    def __init__(
        self,
        upto_offset: int,
        segments: list[Segment],
        targets: list[SyncTarget],
        *,
        newest_base_offset: int,
        truncations: int,
        files: Files,
        parent: Path | None,
    ) -> None:
        self.parent = parent
        self._files = files
        self.upto_offset = upto_offset
        self.segments = segments
        self.newest_base_offset = newest_base_offset
        self.truncations = truncations
        self._targets = targets

    def run(self, synced_parents: set[Path] | None = None) -> None:
        """Fsync the files, then the folder, then its name. Raises OSError.

        Args:
            synced_parents: folders whose names were fsynced since this work was prepared; that is not done again.
        """
        for target in self._targets:
            target.sync()
        if self.parent is not None and (synced_parents is None or self.parent not in synced_parents):
            self._files.sync_directory(self.parent)
            if synced_parents is not None:
                synced_parents.add(self.parent)
