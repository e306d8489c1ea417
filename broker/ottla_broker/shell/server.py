"""The server: accepted connections, and the turn that every event ends with.

A connection handles its requests in its data callback. Whatever happened (requests, an fsync that ended, a timer) ends
in one turn per loop iteration: the broker settles what became possible, connections whose answers became ready make
progress, and each connection's answers leave with one write. So requests of several connections that came together
are settled together.

What follows from a turn and no answer waits for (the markers of transactions that have ended) is done at the beginning
of the next one, when the answers are on their way; but in any case before another request is handled.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ottla_broker.shell.connection import Connection

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ottla_broker.broker import Broker
    from ottla_broker.shell.config import BrokerConfig

logger = logging.getLogger(__name__)

_IDLE_CHECK_MS = 10_000
_PAUSE_AFTER_FAILURE_MS = 1_000


class Server:
    """Serves one broker on one listening socket.

    Args:
        disk: runs what blocks; one thread is enough.
    """

    def __init__(
        self, broker: Broker, config: BrokerConfig, *, loop: asyncio.AbstractEventLoop, disk: Executor
    ) -> None:
        self.broker = broker
        self.config = config
        self._loop = loop
        self._disk = disk
        self._connections: set[Connection] = set()
        self._per_host: dict[str, int] = {}
        self._next_id = 0
        self._touched: dict[Connection, None] = {}
        self._with_output: dict[Connection, None] = {}
        self._in_turn = False
        self._turn_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_ms = 0
        self._no_tick_before_ms = 0
        self._next_idle_check_ms = broker.clock.now_ms() + _IDLE_CHECK_MS
        self._listening: asyncio.Server | None = None
        self._syncing = False
        self._disk_work = 0
        self._stopping = False
        self._stopped = False
        self._changed = asyncio.Event()  # a connection or a piece of disk work has ended

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self, listening_socket: socket.socket) -> None:
        """Accept connections from now on."""
        self._listening = await self._loop.create_server(
            self.connect, sock=listening_socket, backlog=self.config.socket_listen_backlog_size
        )
        self._turn()

    async def stop(self, timeout_seconds: float) -> None:
        """Accept nothing new, give the answers that can be given, close all connections."""
        self._stopping = True
        if self._listening is not None:
            self._listening.close()
        for connection in self._connections:
            connection.stop_reading()
        self.broker.drain(self.now_ms())
        self._turn()
        for connection in tuple(self._connections):
            connection.close()
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._connections or self._disk_work:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            for connection in tuple(self._connections):
                connection.abort()
            await asyncio.sleep(0)
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    # -- what connections call -----------------------------------------------------------------------------------------

    def admit(self, connection: Connection) -> str | None:
        """Register a connection, or say why not."""
        if len(self._connections) >= self.config.max_connections:
            return f"max.connections={self.config.max_connections} is reached"
        of_host = self._per_host.get(connection.host, 0)
        if of_host >= self.config.max_connections_per_ip:
            return f"max.connections.per.ip={self.config.max_connections_per_ip} is reached"
        self._connections.add(connection)
        self._per_host[connection.host] = of_host + 1
        connection.last_active_ms = self.broker.clock.now_ms()
        return None

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        self._touched.pop(connection, None)
        self._with_output.pop(connection, None)
        left = self._per_host[connection.host] - 1
        if left:
            self._per_host[connection.host] = left
        else:
            del self._per_host[connection.host]
        self.broker.connection_lost(connection.id)
        self._changed.set()

    def now_ms(self) -> int:
        """The broker's monotonic clock."""
        return self.broker.clock.now_ms()

    def touched(self, connection: Connection) -> None:
        """Something happened that lets `connection` make progress."""
        self._touched[connection] = None
        self.request_turn()

    def has_output(self, connection: Connection) -> None:
        """`connection` has something to write at the end of the turn."""
        self._with_output[connection] = None

    def unsupported_api_versions(self) -> Any:
        """The answer to an ApiVersions request of an unknown version."""
        from ottla_broker.api.api_versions import unsupported_version

        return unsupported_version()

    # -- turns -------------------------------------------------------------------------------------------------------

    def request_turn(self) -> None:
        """Run a turn soon, once for all that asked."""
        if not self._in_turn and not self._turn_scheduled:
            self._turn_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_scheduled = False
        if self._in_turn or self._stopped:
            return
        self._in_turn = True
        try:
            now_ms = self.broker.clock.now_ms()
            self.follow_up(now_ms)
            while True:
                while self._touched:
                    touched, self._touched = self._touched, {}
                    for connection in touched:
                        connection.progress(now_ms)
                self._guarded(self.broker.settle_answers, now_ms)
                if not self._touched:
                    break
            with_output, self._with_output = self._with_output, {}
            for connection in with_output:
                connection.flush()
        finally:
            self._in_turn = False
        if self.broker.has_follow_ups and now_ms >= self._no_tick_before_ms:
            self.request_turn()
        self._start_sync()
        if not self._turn_scheduled:  # or else it is done by the turn that follows
            self._schedule_tick(now_ms)

    def follow_up(self, now_ms: int) -> None:
        """Do what follows from earlier requests; the next one must find it done."""
        if self.broker.has_follow_ups:
            self._guarded(self.broker.settle, now_ms)

    def _guarded(self, step: Callable[[int], None], now_ms: int) -> None:
        try:
            step(now_ms)
        except Exception:  # whoever failed, the others' answers have to leave
            logger.exception("the broker failed in %s", step.__name__)
            # What failed is due still: without a pause it would fail again at once, for ever.
            self._no_tick_before_ms = now_ms + _PAUSE_AFTER_FAILURE_MS

    def _schedule_tick(self, now_ms: int) -> None:
        deadline_ms = self.broker.deadline_ms()
        if deadline_ms is None or deadline_ms > self._next_idle_check_ms:
            deadline_ms = self._next_idle_check_ms
        if deadline_ms < self._no_tick_before_ms:
            deadline_ms = self._no_tick_before_ms
        if self._timer is not None:
            if self._timer_at_ms <= deadline_ms:
                return
            self._timer.cancel()
        self._timer_at_ms = deadline_ms
        self._timer = self._loop.call_later(max(deadline_ms - now_ms, 0) / 1000, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now_ms = self.now_ms()
        self._guarded(self.broker.tick, now_ms)
        if now_ms >= self._next_idle_check_ms:
            self._close_idle(now_ms)
        self._turn()

    def _close_idle(self, now_ms: int) -> None:
        self._next_idle_check_ms = now_ms + _IDLE_CHECK_MS
        before_ms = now_ms - self.config.connections_max_idle_ms
        for connection in [c for c in self._connections if c.is_idle(before_ms)]:
            logger.debug("closing connection %d: idle for connections.max.idle.ms", connection.id)
            connection.close()

    # -- the disk thread ---------------------------------------------------------------------------------------------

    def in_background(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """Run `work` on the disk thread, then `done(error)` here."""

        def finished(future: asyncio.Future[None]) -> None:
            self._disk_work -= 1
            done(future.exception())
            self._changed.set()
            self.request_turn()

        self._disk_work += 1
        self._loop.run_in_executor(self._disk, work).add_done_callback(finished)

    def _start_sync(self) -> None:
        if self._syncing:
            return  # what came meanwhile goes into the next one: group commit
        if self._stopping and not self._connections:
            return  # nobody waits; what is left becomes durable when the logs are closed
        work = self.broker.replicas.take_sync_work()
        if work is None:
            return

        def finished(_error: BaseException | None) -> None:
            self._syncing = False
            work.finish()

        self._syncing = True
        self.in_background(work.run, finished)

    def connect(self) -> Connection:
        """The protocol of one more connection."""
        self._next_id += 1
        return Connection(self, self._next_id)
