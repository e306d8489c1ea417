"""A file system in memory that can crash.

After `kill` (the process died) everything written is there. After `power_loss` a file has what was fsynced and perhaps
some of the rest, cut anywhere and with sectors missing; names that were created, changed or removed since the folder
was fsynced are as they were, or as they became, in order. `crash_after` lets the process die in the middle of the n-th
change, which for a write may be anywhere in it.
"""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

SECTOR_BYTES = 512


class Crash(BaseException):
    """The process is dead; not an Exception, so that nothing handles it."""


class Node:
    """A file, apart from its names."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = b""
        self.modified_ms = 0


class SimulatedSyncTarget:
    def __init__(self, files: SimulatedFiles, node: Node) -> None:
        self._files = files
        self._node = node

    def sync(self) -> None:
        self._files.step("sync")
        self._node.durable = bytes(self._node.data)


class FolderSyncTarget:
    def __init__(self, files: SimulatedFiles, folder: Path) -> None:
        self._files = files
        self._folder = folder

    def sync(self) -> None:
        self._files.sync_directory(self._folder)


class SimulatedLogFile:
    def __init__(self, files: SimulatedFiles, path: Path, node: Node) -> None:
        self._files = files
        self._node = node
        self.path = path
        self.size = len(node.data)

    def append(self, data: bytes | bytearray | memoryview) -> None:
        files, node = self._files, self._node
        if files.room_bytes is not None and len(data) > files.room_bytes:
            files.room_bytes = 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        assert len(node.data) == self.size
        try:
            files.step("append")
        except Crash:
            node.data += bytes(data)[: files.rng.randint(0, len(data))]
            raise
        node.data += data
        self.size += len(data)

    def read(self, size: int, position: int) -> bytes:
        return bytes(self._node.data[position : position + size])

    def truncate(self, size: int) -> None:
        self._files.step("truncate")
        del self._node.data[size:]
        self.size = size

    def close(self) -> None:
        pass


class SimulatedFiles:
    """The file system; see the module."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.names: dict[Path, Node] = {}
        self.folders: set[Path] = {Path("/"), Path("/data")}
        self.room_bytes: int | None = None
        self.operations = 0
        self.fsyncs = 0
        self._durable_names: dict[Path, Node] = {}
        self._undurable_folders: set[Path] = set()
        self._pending: list[tuple[Path, tuple[str, Path, Path | Node | None]]] = []  # (folder, change)
        self._crash_at: int | None = None

    # ---- crashes

    def crash_after(self, changes: int) -> None:
        self._crash_at = self.operations + changes

    def step(self, what: str) -> None:
        self.operations += 1
        self.fsyncs += what in ("sync", "sync directory")
        if self._crash_at is not None and self.operations >= self._crash_at:
            raise Crash(what)

    def kill(self) -> None:
        """The process died; the machine did not."""
        self._crash_at = None

    def power_loss(self) -> None:
        self._crash_at = None
        names = dict(self._durable_names)
        kept: dict[Path, int] = {}
        for folder in dict.fromkeys(folder for folder, _ in self._pending):
            kept[folder] = self.rng.randint(0, sum(1 for other, _ in self._pending if other == folder))
        for folder, change in self._pending:
            if kept[folder] > 0:
                kept[folder] -= 1
                _apply(names, change)
        for folder in sorted(self._undurable_folders):
            if self.rng.random() < 0.5:
                self.folders.discard(folder)
                names = {path: node for path, node in names.items() if folder not in path.parents}
        self._undurable_folders.clear()
        self.names = names
        self._durable_names = dict(names)
        self._pending.clear()
        for node in dict.fromkeys(self.names.values()):
            node.data = self._survivor(node)
            node.durable = bytes(node.data)

    def _survivor(self, node: Node) -> bytearray:
        common = _common_length(node.durable, node.data)
        if self.rng.random() < 0.2:
            return bytearray(node.durable)
        rest = node.data[common : common + self.rng.randint(0, len(node.data) - common)]
        if len(rest) > SECTOR_BYTES and self.rng.random() < 0.5:
            start = self.rng.randrange(len(rest)) // SECTOR_BYTES * SECTOR_BYTES
            rest[start : start + SECTOR_BYTES] = bytes(len(rest[start : start + SECTOR_BYTES]))
        return node.data[:common] + rest

    # ---- Files

    def open(self, path: Path, *, create: bool = False) -> SimulatedLogFile:
        node = self.names.get(path)
        if node is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            node = self._create(path)
        return SimulatedLogFile(self, path, node)

    def _create(self, path: Path) -> Node:
        self.step("create")
        node = Node()
        self._change(path.parent, ("create", path, node))
        return node

    def exists(self, path: Path) -> bool:
        return path in self.names or path in self.folders

    def list(self, folder: Path) -> list[str]:
        return sorted(path.name for path in self.names if path.parent == folder)

    def size(self, path: Path) -> int:
        return len(self._node(path).data)

    def modified_ms(self, path: Path) -> int:
        return self._node(path).modified_ms

    def read(self, path: Path) -> bytes:
        return bytes(self._node(path).data)

    def write(self, path: Path, data: bytes) -> None:
        node = self.names.get(path) or self._create(path)
        try:
            self.step("write")
        except Crash:
            node.data[:] = data[: self.rng.randint(0, len(data))]
            raise
        node.data[:] = data

    def replace(self, path: Path, data: bytes) -> None:
        draft = path.with_name(path.name + ".tmp")
        self.write(draft, data)
        self.sync_target(draft).sync()
        self.rename(draft, path)
        self.sync_directory(path.parent)

    def rename(self, source: Path, target: Path) -> None:
        self.step("rename")
        self._change(source.parent, ("rename", source, target))
        if source in self.folders:
            self.folders.remove(source)
            self.folders.add(target)

    def remove(self, path: Path) -> None:
        if path in self.names:
            self.step("remove")
            self._change(path.parent, ("remove", path, None))

    def remove_tree(self, folder: Path) -> None:
        for path in [path for path in self.names if folder in path.parents]:
            self.remove(path)
        self.folders.discard(folder)

    def make_folder(self, folder: Path) -> None:
        self.step("make folder")
        if folder not in self.folders:
            self.folders.add(folder)
            self._undurable_folders.add(folder)

    def sync_directory(self, folder: Path) -> None:
        self.step("sync directory")
        self._undurable_folders = {made for made in self._undurable_folders if made.parent != folder}
        for where, change in self._pending:
            if where == folder:
                _apply(self._durable_names, change)
        self._pending = [entry for entry in self._pending if entry[0] != folder]

    def sync_target(self, path: Path) -> SimulatedSyncTarget | FolderSyncTarget:
        if path in self.folders:
            return FolderSyncTarget(self, path)
        return SimulatedSyncTarget(self, self._node(path))

    def _node(self, path: Path) -> Node:
        try:
            return self.names[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None

    def _change(self, folder: Path, change: tuple[str, Path, Path | Node | None]) -> None:
        _apply(self.names, change)
        self._pending.append((folder, change))


def _common_length(one: bytes, other: bytearray) -> int:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


def _apply(names: dict[Path, Node], change: tuple[str, Path, Path | Node | None]) -> None:
    kind, path, other = change
    if kind == "create":
        assert isinstance(other, Node)
        names[path] = other
    elif kind == "remove":
        names.pop(path, None)
    else:
        assert isinstance(other, Path)
        for name in [name for name in names if name == path or path in name.parents]:
            names[other / name.relative_to(path) if name != path else other] = names.pop(name)
