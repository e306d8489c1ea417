"""An asyncio event loop without sockets, whose clock jumps to the next timer when there is nothing else to do."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from simulation.processes import CURRENT

if TYPE_CHECKING:
    from simulation.network import Network


class NothingLeftToDo(Exception):
    """No callback and no timer, and yet somebody waits: a hang that would last for ever."""


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module. `network` takes connections and listeners."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self
        self._network = network
        # A killed process's coroutines must not be collected before the end: their `finally` would run.
        self._tasks: list[asyncio.Task[Any]] = []

    def create_task(self, coro: Any, **given: Any) -> Any:
        task = super().create_task(coro, **given)
        self._tasks.append(task)
        return task

    # -- what BaseEventLoop asks of a loop ---------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise NothingLeftToDo
        self._now += max(0.0, timeout)
        return []

    def _process_events(self, events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    # -- processes ---------------------------------------------------------------------------------------------------

    def _call_soon(self, callback: Any, args: Any, context: Any) -> asyncio.Handle:
        return super()._call_soon(*_owned(callback, args, context))  # type: ignore[misc]

    def call_at(
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        callback, args, context = _owned(callback, args, context)
        return super().call_at(when, callback, *args, context=context)

    # -- the outer world ---------------------------------------------------------------------------------------------

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return await self._network.connect(protocol_factory, host, port)

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **given: Any) -> Any:
        return self._network.listen(protocol_factory, given["sock"].getsockname()[1])

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Another thread's work is done at one moment, a little later."""
        future = self.create_future()

        def work() -> None:
            if future.done():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:  # noqa: BLE001 - it is the caller's
                future.set_exception(error)

        self.call_later(self._network.disk_seconds(), work)
        return future


def _owned(callback: Any, args: Any, context: Any) -> tuple[Any, Any, Any]:
    context = context if context is not None else contextvars.copy_context()
    process = context.get(CURRENT)
    if process is None:
        return callback, args, context
    return process.run, (callback, args), context
