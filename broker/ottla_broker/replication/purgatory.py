"""The purgatory: operations that wait until something moved, or until their time is over.

An operation watches keys (partitions). When a key moved, `check(key)` lets every operation that watches it try to
complete; `tick` expires those whose deadline has passed. Whichever comes first removes the operation everywhere.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable
from typing import Protocol


class DelayedOperation(Protocol):
    """What can wait in a purgatory."""

    def try_complete(self, key: Hashable) -> bool:
        """`key` moved: answer if that is enough, and say whether you did."""
        ...

    def expire(self) -> None:
        """The deadline has passed: answer with what there is."""
        ...


class _Watched:
    __slots__ = ("keys", "operation")

    def __init__(self, operation: DelayedOperation, keys: tuple[Hashable, ...]) -> None:
        self.operation = operation
        self.keys: tuple[Hashable, ...] | None = keys  # None once the operation has left


class Purgatory:
    """Waiting operations by key and by deadline."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, dict[_Watched, None]] = {}
        self._by_deadline: list[tuple[int, int, _Watched]] = []
        self._sequence = 0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def watch(self, operation: DelayedOperation, keys: Iterable[Hashable], deadline_ms: int) -> None:
        """Hold `operation` until one of `keys` completes it, or `deadline_ms` comes."""
        watched = _Watched(operation, tuple(keys))
        for key in watched.keys or ():
            self._by_key.setdefault(key, {})[watched] = None
        self._sequence += 1
        self._waiting += 1
        heapq.heappush(self._by_deadline, (deadline_ms, self._sequence, watched))
        self._drop_completed_deadlines()

    def is_watched(self, key: Hashable) -> bool:
        """Whether anything waits for `key`."""
        return key in self._by_key

    def check(self, key: Hashable) -> int:
        """Let those who wait for `key` try; returns how many completed."""
        watchers = self._by_key.get(key)
        if watchers is None:
            return 0
        completed = 0
        for watched in tuple(watchers):
            # An earlier operation's answer may have completed this one, too.
            if watched.keys is not None and watched.operation.try_complete(key):
                self._remove(watched)
                completed += 1
        return completed

    def tick(self, now_ms: int) -> None:
        """Expire what has waited long enough."""
        due = self._by_deadline
        while due and (due[0][2].keys is None or due[0][0] <= now_ms):
            watched = heapq.heappop(due)[2]
            if watched.keys is not None:
                self._remove(watched)
                watched.operation.expire()

    def deadline_ms(self) -> int | None:
        """When the next operation expires, or None."""
        due = self._by_deadline
        while due and due[0][2].keys is None:
            heapq.heappop(due)
        return due[0][0] if due else None

    def _remove(self, watched: _Watched) -> None:
        keys, watched.keys = watched.keys, None
        assert keys is not None
        self._waiting -= 1
        for key in keys:
            watchers = self._by_key.get(key)
            if watchers is not None and watchers.pop(watched, watched) is None and not watchers:
                del self._by_key[key]

    def _drop_completed_deadlines(self) -> None:
        # Most operations complete long before their deadline. Without this a produce time-out of 30 s would keep
        # every request of the last 30 s in memory.
        if len(self._by_deadline) > 64 and len(self._by_deadline) > 4 * self._waiting:
            self._by_deadline = [entry for entry in self._by_deadline if entry[2].keys is not None]
            heapq.heapify(self._by_deadline)
