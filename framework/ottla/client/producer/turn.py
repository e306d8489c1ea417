"""Turn: a sender that has filled a batch lets the I/O thread have the interpreter lock.

A thread that computes is asked to give the lock away 5 ms (the switch interval) after another began to wait for it. An
I/O thread beside it therefore looks at its sockets every 5 ms, and has the broker's answers waiting meanwhile: a
partition then gets at most five batches in 5 ms, which is 16 MB/s of 16 KiB batches, however fast the broker is. A
library does not change the interval of its user's process; but it may sleep inside its own call until the I/O thread
has begun its turn, which takes as long as waking two threads.

It does so where a batch begins while another of its partition waits, and not more often than once in a millisecond.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable
from typing import Final

PATIENCE_SECONDS: Final = 0.001
"""The longest that a sender waits for the I/O thread, which may be busy in a callback."""

_NOT_SINCE: Final = 1 << 62


class Turn:
    """Whether the I/O thread has had its turn; `begin` is its method, `offer` the senders'."""

    __slots__ = ("_begun", "_begun_ms")

    def __init__(self) -> None:
        self._begun = allocate_lock()  # free: it began, and no sender has noticed
        self._begun_ms = 0

    def begin(self, now_ms: int) -> None:
        """The I/O thread looks at what there is to send."""
        self._begun_ms = now_ms
        if self._begun.locked():
            self._begun.release()

    def offer(self, now_ms: int, wake: Callable[[], object]) -> None:
        """Let the I/O thread begin a turn, waiting 1 ms at most, unless it has had one in this millisecond.

        Where it does not come, in a callback that takes its time, nobody waits for it again until it has begun one.

        Args:
            now_ms: the present.
            wake: sees to it that the I/O thread has a reason to.
        """
        if now_ms <= self._begun_ms:
            return
        self._begun_ms = _NOT_SINCE  # nobody else waits meanwhile, nor after us if the I/O thread is held up for longer
        self._begun.acquire(blocking=False)  # what began before does not count
        wake()
        self._begun.acquire(timeout=PATIENCE_SECONDS)
