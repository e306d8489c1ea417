"""Exponential backoff with jitter, as Kafka's clients wait between attempts (KIP-580)."""

from __future__ import annotations

import random

JITTER = 0.2


class Backoff:
    """How long to wait before attempt n: doubling from `initial_ms` up to `max_ms`, each time 20 % more or less.

    Args:
        initial_ms: the pause after the first failure.
        max_ms: what the doubling ends at, before jitter. Below `initial_ms` it wins: every pause is `max_ms`.
        rng: where the jitter comes from.
    """

    def __init__(self, initial_ms: int, max_ms: int, rng: random.Random) -> None:
        self._initial_ms = min(initial_ms, max_ms)
        self._max_ms = max_ms
        self._rng = rng

    def pause_ms(self, failures: int) -> int:
        """The pause after `failures` failures in a row; 0 if there was none."""
        if failures <= 0 or self._initial_ms == 0:
            return 0
        pause_ms: int = min(self._initial_ms << min(failures - 1, 30), self._max_ms)
        return int(pause_ms * (1 - JITTER + 2 * JITTER * self._rng.random()))
