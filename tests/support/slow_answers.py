"""A proxy in front of a broker: requests go through at once, answers take a while.

A broker that is killed has then stored records whose answers are still on their way, and they are lost with it: what
a slow network would do, and what a broker on the same machine is too fast for.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from typing import Any


class SlowAnswers:
    """Listens on 127.0.0.1:`port` until closed. Answers take `least_ms` to `most_ms`, in order."""

    def __init__(self, rng: random.Random, *, least_ms: int = 5, most_ms: int = 60) -> None:
        self.port = 0
        self.target_port = 0
        self.lost_bytes = 0  # of answers that were on their way when the broker went away
        self._rng = rng
        self._range_ms = (least_ms, most_ms)
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

    async def _serve(self) -> None:
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: Any, writer: Any) -> None:
            task = asyncio.ensure_future(self._connect(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # in which the aborted transports close their sockets

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.transport.abort()
            return
        try:
            requests = asyncio.ensure_future(self._copy(reader, upstream_writer))
            answers = asyncio.ensure_future(self._delay(upstream_reader, writer))
            _, unfinished = await asyncio.wait([requests, answers], return_when=asyncio.FIRST_COMPLETED)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)
        finally:
            writer.transport.abort()
            upstream_writer.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

    async def _delay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
