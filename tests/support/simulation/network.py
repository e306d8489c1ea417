"""The network: connections whose bytes arrive in order, late, in pieces, or not at all.

A connection has two directions, each a queue of pieces with the time at which they arrive. Within a direction nothing
overtakes; between connections anything may. When one end closes, what it has sent is still on its way, and may arrive
long after the other end has made a new connection and gone on: so do the delayed Produce and the delayed EndTxn come
about. A cut takes what is on its way with it, or leaves it to arrive.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from typing import Any

from simulation.processes import CURRENT, Process


class Faults:
    """What goes wrong on the network. Rates are per piece of data sent."""

    def __init__(self) -> None:
        self.stall_rate = 0.0
        self.longest_stall_seconds = 0.0
        self.cut_rate = 0.0
        self.refuse_rate = 0.0
        self.split_rate = 0.0

    def heal(self) -> None:
        """From now on nothing goes wrong."""
        self.__init__()  # type: ignore[misc]


class Network:
    """All connections, and who listens."""

    def __init__(self, rng: random.Random) -> None:
        self.faults = Faults()
        self.cuts = self.stalls = 0
        self._rng = rng
        self._listeners: dict[int, tuple[Any, Process | None]] = {}
        self._ports = 9000
        self.connections: set[Connection] = set()

    def free_port(self) -> int:
        self._ports += 1
        return self._ports

    def disk_seconds(self) -> float:
        return self._rng.uniform(0.0005, 0.01)

    def listen(self, factory: Any, port: int) -> Listener:
        self._listeners[port] = (factory, CURRENT.get())
        return Listener(self, port)

    def stop_listening(self, port: int) -> None:
        self._listeners.pop(port, None)

    @property
    def has_late_bytes(self) -> bool:
        """Whether something is on its way yet from an end that is closed: what a client sent before it was killed."""
        return any(connection.has_late_bytes for connection in self.connections)

    async def connect(self, factory: Any, host: str, port: int) -> tuple[Transport, Any]:
        await asyncio.sleep(self._rng.uniform(0.0002, 0.002))
        listening = self._listeners.get(port)
        if listening is None or (listening[1] is not None and listening[1].is_dead):
            raise ConnectionRefusedError(f"nobody listens on {host}:{port}")
        if self._rng.random() < self.faults.refuse_rate:
            raise ConnectionResetError("the network is not in the mood")
        connection = Connection(self, self._rng)
        client = connection.attach(factory(), CURRENT.get())
        server = connection.attach(listening[0](), listening[1])
        server.made()
        client.protocol.connection_made(client)
        return client, client.protocol

    def cut(self, process: Process, *, lossy: bool) -> None:
        """Cut all connections of a process."""
        for connection in sorted(self.connections, key=lambda each: each.number):
            if any(end.process is process for end in connection.ends):
                connection.cut(lossy=lossy)


class Listener:
    """What asyncio calls a server."""

    def __init__(self, network: Network, port: int) -> None:
        self._network = network
        self._port = port

    def close(self) -> None:
        self._network.stop_listening(self._port)


class Connection:
    """Two ends."""

    _numbers = 0

    def __init__(self, network: Network, rng: random.Random) -> None:
        Connection._numbers += 1
        self.number = Connection._numbers
        self.network = network
        self.rng = rng
        self.ends: list[Transport] = []
        network.connections.add(self)

    def attach(self, protocol: Any, process: Process | None) -> Transport:
        end = Transport(self, protocol, process)
        self.ends.append(end)
        return end

    def other(self, end: Transport) -> Transport:
        return self.ends[1] if end is self.ends[0] else self.ends[0]

    @property
    def has_late_bytes(self) -> bool:
        return any(end.awaits_bytes and self.other(end).is_gone for end in self.ends)

    def cut(self, *, lossy: bool) -> None:
        """Break it: both ends learn of it, after what is on its way has arrived, or without it."""
        self.network.cuts += 1
        for end in self.ends:
            if lossy:
                end.lose_what_is_under_way()
            end.finish(ConnectionResetError("the connection was cut"))

    def ended(self) -> None:
        if all(end.is_closed for end in self.ends):
            self.network.connections.discard(self)


class Transport:
    """One end: what its protocol writes to, and what arrives for it."""

    def __init__(self, connection: Connection, protocol: Any, process: Process | None) -> None:
        self.protocol = protocol
        self.process = process
        self.is_closed = False
        self._connection = connection
        self._incoming: deque[tuple[float, bytes | BaseException | None]] = deque()
        self._last_arrival = 0.0
        self._reading = True
        self._closing = False
        self._context = contextvars.Context()
        if process is not None:
            self._context.run(CURRENT.set, process)
        self._loop = asyncio.get_running_loop()

    # -- what protocols call -----------------------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if self._closing or self.is_closed:
            return
        faults, rng, network = self._connection.network.faults, self._connection.rng, self._connection.network
        if rng.random() < faults.cut_rate:
            self._connection.cut(lossy=rng.random() < 0.5)
            return
        delay = rng.uniform(0.0002, 0.002)
        if rng.random() < faults.stall_rate:
            network.stalls += 1
            delay += rng.uniform(0.0, faults.longest_stall_seconds)
        other = self._connection.other(self)
        content = bytes(data)
        if len(content) > 1 and rng.random() < faults.split_rate:
            at = rng.randrange(1, len(content))
            other.arrive(content[:at], delay)
            other.arrive(content[at:], delay + rng.uniform(0.0, 0.01))
        else:
            other.arrive(content, delay)

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def close(self) -> None:
        """Nothing more is sent; what was sent is on its way."""
        if not self._closing:
            self._closing = True
            self._connection.other(self).arrive(None, self._connection.rng.uniform(0.0002, 0.002))
            self.finish(None)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closing or self.is_closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("10.0.0.1", self._connection.number) if name == "peername" else default

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._schedule()

    # -- what the network does ---------------------------------------------------------------------------------------

    def made(self) -> None:
        self._context.copy().run(self._loop.call_soon, self.protocol.connection_made, self)

    def arrive(self, content: bytes | BaseException | None, delay: float) -> None:
        at = max(self._last_arrival, self._loop.time() + delay)
        self._last_arrival = at
        self._incoming.append((at, content))
        self._schedule()

    @property
    def is_gone(self) -> bool:
        return self.is_closed or (self.process is not None and self.process.is_dead)

    @property
    def awaits_bytes(self) -> bool:
        return not self.is_gone and any(isinstance(content, bytes) for _, content in self._incoming)

    def lose_what_is_under_way(self) -> None:
        self._incoming.clear()

    def finish(self, error: BaseException | None) -> None:
        """This end is told soon; what has not arrived by then is for nobody."""
        if self.is_closed:
            return
        if error is None:
            self._closing = self.is_closed = True
            self._incoming.clear()
            self._context.copy().run(self._loop.call_soon, self.protocol.connection_lost, None)
            self._connection.ended()
        else:
            self.arrive(error, 0.0)

    def _schedule(self) -> None:
        if self._incoming and self._reading and not self.is_closed:
            self._context.copy().run(self._loop.call_at, self._incoming[0][0], self._deliver)

    def _deliver(self) -> None:
        now = self._loop.time()
        while self._incoming and self._reading and not self.is_closed and self._incoming[0][0] <= now:
            _, content = self._incoming.popleft()
            if isinstance(content, bytes):
                self._feed(content)
            else:
                self._closing = self.is_closed = True
                self._incoming.clear()
                self.protocol.connection_lost(content)
                self._connection.ended()
        if self._incoming and not self.is_closed and self._reading:
            self._schedule()

    def _feed(self, content: bytes) -> None:
        view = memoryview(content)
        while view and not self.is_closed:
            buffer = self.protocol.get_buffer(len(view))
            size = min(len(buffer), len(view))
            buffer[:size] = view[:size]
            view = view[size:]
            self.protocol.buffer_updated(size)
