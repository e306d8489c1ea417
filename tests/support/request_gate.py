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


class RequestGate:
    """Listens on 127.0.0.1:`port` until closed, and hands everything on to `target_port`.

    Attributes:
        struck: set when the strike has been made. From then on everything passes again.
        seen: how many requests of each kind have arrived since `arm`.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.target_port = 0
        self.struck = threading.Event()
        self.seen: dict[int, int] = {}
        self._strike: Strike | None = None
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def arm(self, strike: Strike | None) -> None:
        """Count from now on, and strike when it is time; None lets everything pass."""
        with self._lock:
            self.struck.clear()
            self.seen = {}
            self._strike = strike

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

    async def _serve(self) -> None:
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._connect(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.transport.abort()
            return
        waiting: deque[Strike | None] = deque()  # for each request that is on its way: is its answer to be struck?
        try:
            copies = [
                asyncio.ensure_future(self._requests(reader, up_writer, waiting)),
                asyncio.ensure_future(self._answers(up_reader, writer, waiting)),
            ]
            _, unfinished = await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*copies, return_exceptions=True)
        finally:
            writer.transport.abort()
            up_writer.transport.abort()

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: deque[Strike | None]
    ) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await _frame(reader)
                strike = self._count(struct.unpack_from(">h", frame, 4)[0])
                if strike is not None and strike.moment is Moment.BEFORE:
                    await self._make(strike)
                    return
                waiting.append(strike)
                writer.write(frame)
                await writer.drain()

    async def _answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: deque[Strike | None]
    ) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await _frame(reader)
                strike = waiting.popleft()
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


async def _frame(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(int.from_bytes(size, "big"))
