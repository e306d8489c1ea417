"""Versioned: a mapping that is read at two points of the log, its end and the high watermark.

A coordinator decides on the newest state. What it tells others must not be taken back by a fail-over, so plain reads
are served as of the high watermark (Kafka's timeline data structures do the same). Only keys with changes above the
high watermark have more than one version, on a single node hardly ever one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Group = TypeVar("Group", bound=Hashable)
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Versioned(Generic[Group, Key, Value]):
    """Values by (group, key), each change with the log offset that made it."""

    def __init__(self) -> None:
        self.high_watermark = 0
        self._latest: dict[Group, dict[Key, Value]] = {}
        # Per changed key its versions (offset of the change, value or None), the first one committed.
        self._versions: dict[tuple[Group, Key], list[tuple[int, Value | None]]] = {}
        self._uncommitted: deque[tuple[int, tuple[Group, Key]]] = deque()

    def put(self, group: Group, key: Key, value: Value, offset: int) -> None:
        """Set a value by the record at `offset`."""
        self._remember(group, key, value, offset)
        self._latest.setdefault(group, {})[key] = value

    def remove(self, group: Group, key: Key, offset: int) -> None:
        """Remove a value by the record at `offset`; nothing happens if there is none."""
        values = self._latest.get(group)
        if values is None or key not in values:
            return
        self._remember(group, key, None, offset)
        del values[key]
        if not values:
            del self._latest[group]

    def get(self, group: Group, key: Key) -> Value | None:
        """The newest value."""
        values = self._latest.get(group)
        return None if values is None else values.get(key)

    def get_committed(self, group: Group, key: Key) -> Value | None:
        """The value as of the high watermark."""
        versions = self._versions.get((group, key)) if self._versions else None
        return self.get(group, key) if versions is None else versions[0][1]

    def group(self, group: Group) -> dict[Key, Value]:
        """The newest values of a group (a copy)."""
        return dict(self._latest.get(group, ()))

    def group_committed(self, group: Group) -> dict[Key, Value]:
        """The values of a group as of the high watermark (a copy)."""
        values = self.group(group)
        for (of_group, key), versions in self._versions.items():
            if of_group == group:
                committed = versions[0][1]
                if committed is None:
                    values.pop(key, None)
                else:
                    values[key] = committed
        return values

    def groups(self) -> Iterator[Group]:
        """The groups that have a newest value."""
        return iter(list(self._latest))

    def advance(self, high_watermark: int) -> None:
        """Take the changes below the high watermark as committed."""
        self.high_watermark = max(self.high_watermark, high_watermark)
        while self._uncommitted and self._uncommitted[0][0] < self.high_watermark:
            offset, key = self._uncommitted.popleft()
            versions = self._versions[key]
            while len(versions) > 1 and versions[1][0] <= offset:
                del versions[0]
            if len(versions) == 1:
                del self._versions[key]

    def _remember(self, group: Group, key: Key, value: Value | None, offset: int) -> None:
        if offset < self.high_watermark:
            return
        versions = self._versions.setdefault((group, key), [])
        if not versions:
            versions.append((-1, self.get(group, key)))
        versions.append((offset, value))
        self._uncommitted.append((offset, (group, key)))
