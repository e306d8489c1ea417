"""The engine: one I/O thread with one asyncio loop, on which all connections of an application to a cluster live.

Producers, consumers and admin clients of an application share one engine (`engine=`); a client that is not given one
makes its own. Nothing starts before the first use. Blocking callers enter through `run`, tasks of any loop through
`call`, and whoever must not wait through `post`.

The thread is a daemon, so that it never keeps a program alive; what has to be finished at interpreter exit (unfinished
sends) registers with `at_exit`. In a forked child the thread does not exist: an engine of the parent refuses
to work there, by name, instead of hanging.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import logging
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from ottla.client.cluster import Cluster
from ottla.client.config import ClientConfig
from ottla.errors import ClientClosed, NoAnswer
from ottla_wire.records import SendFuture

T = TypeVar("T")

logger = logging.getLogger("ottla.client")

CLOSE_SECONDS: Final = 30.0

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """An I/O thread and the cluster it talks to.

    Args:
        config: addresses, timeouts and backoffs, shared by all clients of this engine.
        name: of the thread.
        rng: where backoff jitter and choices come from.
    """

    def __init__(self, config: ClientConfig, *, name: str = "ottla-client", rng: random.Random | None = None) -> None:
        self.config = config
        self._name = name
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._cluster: Cluster | None = None
        self._closed = False
        self._forked = False
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._post_scheduled = False
        self._exit_duties: list[Callable[[], None]] = []
        _engines.add(self)

    # --- life

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The I/O loop; starts the thread."""
        if self._loop is None or self._closed or self._forked:
            self.start()
        assert self._loop is not None
        return self._loop

    @property
    def cluster(self) -> Cluster:
        """The connections and metadata. To be used on the I/O loop only; starts the thread."""
        if self._cluster is None:
            self.start()
        assert self._cluster is not None
        return self._cluster

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called, or the engine belongs to another process."""
        return self._closed or self._forked

    def start(self) -> None:
        """Start the I/O thread if it does not run.

        Raises:
            ClientClosed: the engine was closed, or made in the parent of this process.
        """
        with self._lock:
            if self._forked:
                raise ClientClosed(
                    "this client was made before the process forked, and its connections stayed with the parent: "
                    "make clients after the fork"
                )
            if self._closed:
                raise ClientClosed("the client is closed")
            if self._thread is not None:
                return
            loop = _new_event_loop()
            self._loop = loop
            self._cluster = Cluster(loop, self.config, self._rng)
            self._thread = threading.Thread(target=self._run_thread, args=(loop,), name=self._name, daemon=True)
            self._thread.start()
            _register_exit()

    def close(self, timeout: float | None = CLOSE_SECONDS) -> None:
        """Close all connections and end the thread, waiting `timeout` seconds at most. What is in flight fails."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread, loop, cluster = self._thread, self._loop, self._cluster
        if thread is None or loop is None or cluster is None or self._forked:
            return
        if threading.current_thread() is thread:
            loop.create_task(self._shut_down(cluster))
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(cluster), loop)
        thread.join(timeout)
        if thread.is_alive():
            logger.warning("the I/O thread %s did not end within %s s", self._name, timeout)

    async def _shut_down(self, cluster: Cluster) -> None:
        await cluster.close()
        asyncio.get_running_loop().stop()

    def _run_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        SendFuture.forbid_waiting_on_this_thread()
        try:
            loop.run_forever()
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    # --- ways in

    @property
    def is_io_thread(self) -> bool:
        """Whether this is the I/O thread itself."""
        return threading.current_thread() is self._thread

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_seconds: float | None = None, *, name: str = "") -> T:
        """Run a coroutine on the I/O loop and wait for it: the blocking face.

        Args:
            coroutine: what to run; it should have time limits of its own.
            timeout_seconds: after this the coroutine is cancelled; `default_api_timeout_ms` and a little if not given.
            name: the async form, to be named to those who must use it.

        Raises:
            RuntimeError: called on a thread that runs an event loop, or on the I/O thread (in a callback).
            NoAnswer: it took too long.
        """
        try:
            self.check_may_wait(name)
        except BaseException:
            coroutine.close()
            raise
        if timeout_seconds is None:
            timeout_seconds = self.config.default_api_timeout_ms / 1000 + 1.0
        future = self.submit(coroutine)
        try:
            return future.result(timeout_seconds)
        except concurrent.futures.TimeoutError:
            if future.done():
                raise  # the coroutine's own
            future.cancel()
            trouble = self._cluster.metadata.trouble if self._cluster is not None else ""
            raise NoAnswer(f"{name or 'the call'} did not finish within {timeout_seconds} s{trouble}") from None
        except concurrent.futures.CancelledError:
            raise ClientClosed("the client was closed during the call") from None
        except BaseException:
            future.cancel()
            raise

    async def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the I/O loop and await it from any loop: the async face."""
        if asyncio.get_running_loop() is self._loop:
            return await coroutine
        return await asyncio.wrap_future(self.submit(coroutine))

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine on the I/O loop from any thread; the future tells what came of it.

        Raises:
            ClientClosed: there is no loop any more; the coroutine is closed.
        """
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError as error:
            coroutine.close()
            if isinstance(error, ClientClosed):
                raise
            raise ClientClosed("the client is closed") from error  # the loop ended between the two steps

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function on the I/O loop soon. Many posts before the loop gets to them wake it once."""
        self._posted.append((function, args))
        if not self._post_scheduled:
            self._post_scheduled = True
            try:
                self.loop.call_soon_threadsafe(self._run_posted)
            except (RuntimeError, ClientClosed):  # closed, or being closed: nobody is there to do it
                self._post_scheduled = False
                self._posted.clear()

    def _run_posted(self) -> None:
        # Cleared first: a post from now on either is still taken by the loop below or schedules another round.
        self._post_scheduled = False
        posted = self._posted
        while posted:
            function, args = posted.popleft()
            try:
                function(*args)
            except Exception:
                logger.exception("a posted call failed: %r", function)

    def at_exit(self, duty: Callable[[], None]) -> None:
        """Call `duty` at interpreter exit, before the thread ends, unless `forget_exit` was called."""
        self._exit_duties.append(duty)

    def forget_exit(self, duty: Callable[[], None]) -> None:
        """The duty was done already."""
        if duty in self._exit_duties:
            self._exit_duties.remove(duty)

    def check_may_wait(self, name: str) -> None:
        """Refuse to wait on this thread where nothing else could go on meanwhile; `name` is the form to await.

        Raises:
            RuntimeError: it is the I/O thread, or runs an event loop.
        """
        if self.is_io_thread:
            raise RuntimeError(
                "this call waits for the client's I/O thread, and was made on it (in a callback): hand the work to "
                "another thread or task"
            )
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        form = f"use `await {name}`" if name else "use the async client"
        raise RuntimeError(f"this call would block the event loop that runs on this thread: {form} in place of it")

    # --- the ends of processes

    def _after_fork_in_child(self) -> None:
        self._forked = True
        self._lock = threading.Lock()
        self._exit_duties.clear()

    def _at_exit(self) -> None:
        for duty in list(self._exit_duties):
            try:
                duty()
            except Exception:
                logger.exception("at exit: %r failed", duty)
        self.close(1.0)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed: its socket calls cost half."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


@functools.cache
def _register_exit() -> None:
    """Once per process, and as late as the first engine's start: exit functions run last in, first out."""
    atexit.register(_close_all)


def _close_all() -> None:
    for engine in list(_engines):
        engine._at_exit()


def _after_fork_in_child() -> None:
    for engine in list(_engines):
        engine._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def monotonic_ms() -> int:
    """The clock that `now_ms` arguments come from; the same as the I/O loop's."""
    return int(time.monotonic() * 1000)
