"""ProducerIds: single producer ids out of blocks that the controller gives.

A block is a record in the metadata log before its first id is used, so that an id is never given twice; what is left of
a block when the broker stops is lost. The next block is asked for when a tenth of the current one is left, so that
nobody waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from ottla_broker.pending import Pending

BLOCK_SIZE: Final = 1000
_PREFETCH_AT: Final = BLOCK_SIZE // 10


class ProducerIdBlock(NamedTuple):
    """`size` ids from `first` on."""

    first: int
    size: int


class ProducerIds:
    """Hands out producer ids, each once.

    Args:
        allocate: gets the next block from the controller.
    """

    def __init__(self, allocate: Callable[[], Pending[ProducerIdBlock]]) -> None:
        self._allocate = allocate
        self._free: deque[ProducerIdBlock] = deque()
        self._allocating = False
        self._waiting: deque[Pending[int]] = deque()

    def next(self) -> Pending[int]:
        """A producer id that nobody had before."""
        answer: Pending[int] = Pending()
        self._waiting.append(answer)
        self._serve()
        return answer

    def _serve(self) -> None:
        while self._waiting and self._free:
            block = self._free.popleft()
            if block.size > 1:
                self._free.appendleft(ProducerIdBlock(block.first + 1, block.size - 1))
            self._waiting.popleft().complete(block.first)
        left = sum(block.size for block in self._free)
        if not self._allocating and (self._waiting or left <= _PREFETCH_AT):
            self._allocating = True
            try:
                self._allocate().on_done(self._allocated)
            except Exception as error:  # noqa: BLE001 - belongs to those who wait
                self._allocated(Pending.failed(error))

    def _allocated(self, answer: Pending[ProducerIdBlock]) -> None:
        self._allocating = False
        error = answer.error()
        if error is None:
            self._free.append(answer.result())
            self._serve()
            return
        waiting, self._waiting = self._waiting, deque()
        for pending in waiting:
            pending.fail(error)
