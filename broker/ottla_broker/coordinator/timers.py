"""Timers: named deadlines whose action is a verb of a coordinator shard.

A session timer is moved on by every heartbeat, so moving a deadline to a later time must cost nothing: only the
table is changed, and the heap entry finds out when it comes up that it is too early. A cancelled timer's heap entry
is dropped the same way.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Action = TypeVar("Action")
Key = tuple[Hashable, ...]


class Timers(Generic[Action]):
    """Deadlines by key. The key's first element is the partition it belongs to."""

    def __init__(self) -> None:
        self._timers: dict[Key, tuple[int, Action]] = {}
        self._heap: list[tuple[int, int, Key]] = []
        self._queued: dict[Key, int] = {}  # key -> the earliest heap entry it has
        self._sequence = 0  # ties fire in the order of their scheduling; keys need not be comparable

    def schedule(self, key: Key, at_ms: int, action: Action) -> None:
        """Set the timer of `key`, instead of the one it may have."""
        self._timers[key] = (at_ms, action)
        queued = self._queued.get(key)
        if queued is None or at_ms < queued:
            self._push(key, at_ms)

    def cancel(self, key: Key) -> None:
        """Forget the timer of `key`, if there is one."""
        self._timers.pop(key, None)

    def cancel_partition(self, partition: int) -> None:
        """Forget all timers of a partition."""
        for key in [key for key in self._timers if key[0] == partition]:
            del self._timers[key]

    def deadline_of(self, key: Key) -> int | None:
        """When the timer of `key` is due, or None if there is none."""
        timer = self._timers.get(key)
        return None if timer is None else timer[0]

    def deadline_ms(self) -> int | None:
        """When the next timer is due, or None."""
        while self._heap:
            at_ms, _, key = self._heap[0]
            if self._settle_top(at_ms, key):
                return at_ms
        return None

    def pop_due(self, now_ms: int) -> Iterator[tuple[Key, Action]]:
        """Take out the timers that are due, the earliest first.

        A timer set for `now_ms` or earlier while this runs fires too.
        """
        while self._heap and self._heap[0][0] <= now_ms:
            at_ms, _, key = self._heap[0]
            if self._settle_top(at_ms, key):
                heapq.heappop(self._heap)
                del self._queued[key]
                yield key, self._timers.pop(key)[1]

    def _settle_top(self, at_ms: int, key: Key) -> bool:
        """Whether the top entry is its timer's deadline; if not, it is dropped or put where it belongs."""
        timer = self._timers.get(key)
        if timer is not None and timer[0] == at_ms and self._queued.get(key) == at_ms:
            return True
        heapq.heappop(self._heap)
        if self._queued.get(key) == at_ms:
            del self._queued[key]
            if timer is not None:
                self._push(key, timer[0])
        return False

    def _push(self, key: Key, at_ms: int) -> None:
        self._sequence += 1
        self._queued[key] = at_ms
        heapq.heappush(self._heap, (at_ms, self._sequence, key))
