"""A proxy in front of a broker that strikes at a request: when the n-th of its kind arrives, or when it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from ottla_wire.messages import ApiKey
from support.proxy import Proxy, read_frame


class Moment(Enum):
    """When to strike. In both cases the client hears nothing of the request any more."""

    BEFORE = "before the broker has it"
    ANSWERED = "when the broker has answered it"


@dataclass
class Strike:
    """What to do at the `count`-th request of this kind from now on."""

    api_key: ApiKey
    count: int
    moment: Moment
    action: Callable[[], object]


class RequestGate(Proxy):
    """A proxy that strikes.

    Attributes:
        struck: set when the strike has been made. From then on everything passes again.
        seen: how many requests of each kind have arrived since `arm`.
    """

    def __init__(self) -> None:
        self.struck = threading.Event()
        self.seen: dict[int, int] = {}
        self._strike: Strike | None = None
        self._lock = threading.Lock()
        super().__init__()

    def arm(self, strike: Strike | None) -> None:
        """Count from now on, and strike when it is time; None lets everything pass."""
        with self._lock:
            self.struck.clear()
            self.seen = {}
            self._strike = strike

    def connection(self) -> deque[Strike | None]:
        """For each request that is on its way: the strike, if its answer is to be struck."""
        return deque()

    async def requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: deque[Strike | None]
    ) -> None:
        """See Proxy."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await read_frame(reader)
                strike = self._count(struct.unpack_from(">h", frame, 4)[0])
                if strike is not None and strike.moment is Moment.BEFORE:
                    await self._make(strike)
                    return
                connection.append(strike)
                writer.write(frame)
                await writer.drain()

    async def answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: deque[Strike | None]
    ) -> None:
        """See Proxy."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await read_frame(reader)
                strike = connection.popleft()
                if strike is not None:
                    await self._make(strike)
                    return
                writer.write(frame)
                await writer.drain()

    def _count(self, api_key: int) -> Strike | None:
        with self._lock:
            self.seen[api_key] = count = self.seen.get(api_key, 0) + 1
            strike = self._strike
            if strike is None or (strike.api_key, strike.count) != (api_key, count):
                return None
            self._strike = None
            return strike

    async def _make(self, strike: Strike) -> None:
        # The gate stands still meanwhile, so nothing that was on its way gets through after the blow.
        strike.action()
        self.struck.set()


def names(seen: Mapping[int, int]) -> dict[str, int]:
    """The counts with the names of the requests."""
    return {ApiKey(key).name: count for key, count in seen.items()}
