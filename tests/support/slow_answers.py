"""A proxy in front of a broker: requests go through at once, answers take a while.

A broker that is killed has then stored records whose answers are still on their way, and they are lost with it: what
a slow network would do, and what a broker on the same machine is too fast for.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from support.proxy import Proxy


class SlowAnswers(Proxy):
    """A proxy whose answers take `least_ms` to `most_ms`, in order."""

    def __init__(self, rng: random.Random, *, least_ms: int = 5, most_ms: int = 60) -> None:
        self.lost_bytes = 0  # of answers that were on their way when the broker went away
        self._rng = rng
        self._range_ms = (least_ms, most_ms)
        super().__init__()

    async def answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Any) -> None:
        """Hand on what the broker answers, each piece later; end, and forget the rest, as soon as it is gone."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        now = asyncio.get_running_loop().time

        async def hand_on() -> None:
            while True:
                due, data = await pieces.get()
                await asyncio.sleep(due - now())
                writer.write(data)

        handing_on = asyncio.ensure_future(hand_on())
        try:
            while data := await reader.read(1 << 16):
                pieces.put_nowait((now() + self._rng.uniform(*self._range_ms) / 1000, data))
        except OSError:
            pass
        finally:
            handing_on.cancel()
            while not pieces.empty():
                self.lost_bytes += len(pieces.get_nowait()[1])
