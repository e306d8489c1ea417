"""A proxy in front of a broker, for tests that want to see, delay or lose what passes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any


class Proxy:
    """Listens on 127.0.0.1:`port` until closed, and hands everything on to `target_port`, once that is set.

    Runs on a thread of its own. What is made of requests and answers is said by subclasses: `requests` and `answers`
    copy one direction of a connection each. The connection ends with the first of them.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.target_port = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

    def connection(self) -> Any:
        """What `requests` and `answers` of a new connection share."""
        return None

    async def requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Any) -> None:
        """Copy from the client to the broker, until the client has gone."""
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

    async def answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Any) -> None:
        """Copy from the broker to the client, until the broker has gone."""
        raise NotImplementedError

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
        await asyncio.sleep(0)  # in which the aborted transports close their sockets

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.transport.abort()
            return
        connection = self.connection()
        try:
            copies = [
                asyncio.ensure_future(self.requests(reader, up_writer, connection)),
                asyncio.ensure_future(self.answers(up_reader, writer, connection)),
            ]
            _, unfinished = await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*copies, return_exceptions=True)
        finally:
            writer.transport.abort()
            up_writer.transport.abort()


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next frame, with its size."""
    size = await reader.readexactly(4)
    return size + await reader.readexactly(int.from_bytes(size, "big"))
