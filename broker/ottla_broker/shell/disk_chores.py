"""DiskChores: work on the disk that nobody waits for, in small portions.

There is one disk thread, and answers wait for its fsyncs. A topic of a thousand partitions that is deleted, or a
thousand files to be rewritten, must not come before them all: a portion is handed over when the one before it is done,
so that what was handed over meanwhile has its turn in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

PORTION = 16

Background = Callable[[Callable[[], None], Callable[[BaseException | None], None]], None]
"""`background(work, done)`: run `work` where it may block, then `done(error)` on the broker's thread."""


class DiskChores:
    """A queue of pieces of work, done in order.

    Args:
        background: the way to the disk thread.
        failed: told of the error that ended a portion; its other pieces are not done then.
    """

    def __init__(self, background: Background, failed: Callable[[BaseException], None]) -> None:
        self._background = background
        self._failed = failed
        self._pieces: deque[Callable[[], None]] = deque()
        self._is_under_way = False

    def add(self, piece: Callable[[], None]) -> None:
        """Do this, too, soon."""
        self._pieces.append(piece)
        if not self._is_under_way:
            self._start()

    def finish(self) -> None:
        """Do what is left here and now: the disk thread is gone."""
        while self._pieces:
            self._pieces.popleft()()

    def _start(self) -> None:
        portion = [self._pieces.popleft() for _ in range(min(PORTION, len(self._pieces)))]
        if not portion:
            return
        self._is_under_way = True

        def work() -> None:
            for piece in portion:
                piece()

        self._background(work, self._done)

    def _done(self, error: BaseException | None) -> None:
        self._is_under_way = False
        if error is not None:
            self._failed(error)
        self._start()
