"""A server without an event loop: a loop the test turns, transports that remember, a broker with given answers."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from ottla_broker.pending import Pending
from ottla_broker.shell.config import BrokerConfig
from ottla_broker.shell.connection import Connection
from ottla_broker.shell.server import Server
from ottla_wire.framing import FrameReader, encode_request
from ottla_wire.schema import Request


class ManualClock:
    def __init__(self) -> None:
        self.ms = 1_000_000

    def now_ms(self) -> int:
        return self.ms

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + self.ms


class ManualLoop:
    """`call_soon` and `call_later` under the test's control."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._ready: deque[Callable[..., Any]] = deque()
        self._timers: list[tuple[int, int, Any]] = []
        self._count = 0

    def call_soon(self, callback: Callable[..., Any]) -> None:
        self._ready.append(callback)

    def call_later(self, seconds: float, callback: Callable[..., Any]) -> Any:
        self._count += 1
        timer = _Timer(callback)
        heapq.heappush(self._timers, (self._clock.ms + round(seconds * 1000), self._count, timer))
        return timer

    def turn(self) -> None:
        """Run until nothing is ready."""
        while self._ready:
            self._ready.popleft()()

    def advance(self, ms: int) -> None:
        """Let time pass, running what becomes due."""
        end = self._clock.ms + ms
        while self._timers and self._timers[0][0] <= end:
            at, _, timer = heapq.heappop(self._timers)
            self._clock.ms = max(self._clock.ms, at)
            if not timer.cancelled:
                timer.callback()
            self.turn()
        self._clock.ms = end


class _Timer:
    def __init__(self, callback: Callable[..., Any]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeTransport:
    """Remembers what was written; `writes` has one entry per call."""

    def __init__(self, host: str = "192.0.2.1", port: int = 50_000) -> None:
        self.writes: list[bytes] = []
        self.reading = True
        self.closed = False
        self.aborted = False
        self.protocol: Connection | None = None
        self._peer = (host, port)

    def get_extra_info(self, name: str) -> Any:
        return self._peer if name == "peername" else None

    def writelines(self, parts: list[Any]) -> None:
        assert not self.closed
        self.writes.append(b"".join(parts))

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            assert self.protocol is not None
            self.protocol.connection_lost(None)

    def abort(self) -> None:
        self.aborted = True
        self.close()


class FakeReplicas:
    def __init__(self) -> None:
        self.sync_work: list[Any] = []

    def take_sync_work(self) -> Any:
        return self.sync_work.pop(0) if self.sync_work else None


class ScriptedBroker:
    """Answers what the test put into `answers`, by API key; notes what it was asked, in order."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.replicas = FakeReplicas()
        self.asked: list[tuple[int, int, Any]] = []  # (connection, API key, request)
        self.contexts: list[Any] = []
        self.answers: dict[int, deque[Any]] = {}
        self.settled = 0
        self.has_follow_ups = False
        self.followed_up: Callable[[], None] = lambda: None
        self.ticks: list[int] = []
        self.deadline: int | None = None
        self.on_settle: Callable[[], None] | None = None
        self.lost: list[int] = []

    def will_answer(self, api_key: int, *answers: Any) -> None:
        self.answers.setdefault(api_key, deque()).extend(answers)

    def handle(self, context: Any, request: Any) -> Any:
        self.asked.append((context.connection_id, context.api_key, request))
        self.contexts.append(context)
        answer = self.answers[context.api_key].popleft()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def settle(self, now_ms: int) -> None:
        self.followed_up()
        self.has_follow_ups = False

    def settle_answers(self, now_ms: int) -> None:
        self.settled += 1
        if self.on_settle is not None:
            self.on_settle()

    def tick(self, now_ms: int) -> None:
        self.ticks.append(now_ms)
        if self.on_settle is None:
            self.deadline = None

    def deadline_ms(self) -> int | None:
        return self.deadline

    def connection_lost(self, connection_id: int) -> None:
        self.lost.append(connection_id)


class Peer:
    """The client's end of one connection."""

    def __init__(self, harness: Harness, host: str, port: int) -> None:
        self._harness = harness
        self.transport = FakeTransport(host, port)
        self.connection = harness.server.connect()
        self.transport.protocol = self.connection
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def sends(self, *requests: tuple[Request, int, int]) -> None:
        """Send (request, version, correlation id)s in one read, and let the server turn."""
        frames = b"".join(
            bytes(part)
            for request, version, number in requests
            for part in encode_request(request, version, number, "test")
        )
        self.sends_bytes(frames)

    def sends_bytes(self, data: bytes) -> None:
        """Send bytes as one or several reads, and let the server turn."""
        while data:
            buffer = self.connection.get_buffer(-1)
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            self.connection.buffer_updated(count)
            data = data[count:]
        self._harness.loop.turn()

    @property
    def answered(self) -> list[int]:
        """The correlation ids of all answers so far, in order."""
        reader = FrameReader(1 << 30, 1 << 20)
        frames = []
        for write in self.transport.writes:
            reader.get_buffer(-1)[: len(write)] = write
            frames += reader.received(len(write))
        return [int.from_bytes(frame[:4], "big") for frame in frames]


class Harness:
    def __init__(self, **config: Any) -> None:
        self.clock = ManualClock()
        self.loop = ManualLoop(self.clock)
        self.broker = ScriptedBroker(self.clock)
        self.executor = ManualExecutor()
        self.server = Server(
            self.broker,  # type: ignore[arg-type]
            BrokerConfig(**config),
            loop=self.loop,  # type: ignore[arg-type]
            disk=self.executor,  # type: ignore[arg-type]
        )
        self._port = 50_000

    def connects(self, host: str = "192.0.2.1") -> Peer:
        self._port += 1
        return Peer(self, host, self._port)

    def completes(self, pending: Pending[Any], value: Any) -> None:
        """Finish a pending answer, and let the server turn."""
        pending.complete(value)
        self.loop.turn()


class ManualExecutor:
    """Unused unless a test syncs."""


@pytest.fixture
def harness() -> Harness:
    return Harness()


@pytest.fixture
def make_harness() -> Callable[..., Harness]:
    return Harness
