"""EmbeddedKafka: a broker for this process, on a real TCP port.

`process=False` runs it as a thread with its own event loop, `process=True` as a child process that ends with its
parent. Both serve the same protocol from the same files. Without `data` these are in a temporary folder, which is gone
afterwards and is never fsynced.

It differs from a broker started by hand in one setting: `group.initial.rebalance.delay.ms` is 0, as nobody waits for
a second member. `config` overrides this, too. The offsets topic has Kafka's 50 partitions; making them takes about
35 ms at the first use of a group (120 ms in a folder that stays).
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

logger = logging.getLogger(__name__)

START_TIMEOUT_SECONDS: Final = 60.0
STOP_TIMEOUT_SECONDS: Final = 20.0

EMBEDDED_SETTINGS: Final[Mapping[str, object]] = {
    "group.initial.rebalance.delay.ms": 0,
}


class EmbeddedKafkaError(RuntimeError):
    """The embedded broker did not start, or ended by itself; the message says why."""


class EmbeddedKafka:
    """A broker that belongs to this process.

    Args:
        nodes: number of brokers; only 1 so far.
        data: folder of the data, which stays; None takes a temporary one.
        port: port on localhost; 0 takes a free one.
        process: run it as a child process instead of a thread.
        topics: topics to create, with their numbers of partitions.
        config: broker settings under Kafka's names.

    Use it as a context manager, sync or async, or call `start` and `stop`.

    A broker that can go on no longer (its disk is full) logs the reason as an error and stops. From then on
    `bootstrap_servers`, `start` and `stop` raise it. Leaving a `with` block does too, or adds it as a note to what the
    block raised.
    """

    def __init__(
        self,
        nodes: int = 1,
        data: str | os.PathLike[str] | None = None,
        port: int = 0,
        process: bool = False,
        topics: Mapping[str, int] | None = None,
        *,
        config: Mapping[str, object] | None = None,
    ) -> None:
        if nodes != 1:
            raise ValueError(f"EmbeddedKafka(nodes={nodes}): only one node is supported so far")
        self._data = None if data is None else Path(data)
        self._port = port
        self._topics = dict(topics or {})
        self._settings: dict[str, object] = {**EMBEDDED_SETTINGS, **(config or {})}
        self._in_process = process
        self._running: _Thread | _Child | None = None
        self._temporary: Path | None = None

    @property
    def bootstrap_servers(self) -> str:
        """`HOST:PORT` of the running broker."""
        if self._running is None:
            raise EmbeddedKafkaError("the embedded broker is not running: call start(), or use it in a with block")
        if self._running.failure is not None:
            raise EmbeddedKafkaError(self._running.failure)
        return self._running.address

    @property
    def is_running(self) -> bool:
        """Whether `start` was called, `stop` was not, and the broker did not end by itself."""
        return self._running is not None and self._running.failure is None

    def start(self) -> Self:
        """Start the broker, and return when it serves. Does nothing if it runs already.

        Raises:
            EmbeddedKafkaError: it cannot; the message says why.
        """
        if self._running is not None:
            if self._running.failure is not None:
                raise EmbeddedKafkaError(self._running.failure)
            return self
        folder = self._data
        if folder is None:
            folder = self._temporary = Path(tempfile.mkdtemp(prefix="ottla-"))
        running = _Child() if self._in_process else _Thread()
        try:
            running.start(folder, self._port, self._topics, self._settings, temporary=self._data is None)
        except BaseException:
            self._remove_temporary()
            raise
        self._running = running
        atexit.register(self.stop)
        return self

    def stop(self) -> None:
        """Stop the broker cleanly; its temporary folder is removed. Does nothing if it does not run.

        Raises:
            EmbeddedKafkaError: it had ended by itself, or could not leave its data in good order.
        """
        failure = self._end()
        if failure is not None:
            raise EmbeddedKafkaError(failure)

    def _end(self) -> str | None:
        running, self._running = self._running, None
        if running is None:
            return None
        atexit.unregister(self.stop)
        try:
            running.stop()
        finally:
            self._remove_temporary()
        return running.failure

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failure = self._end()
        if failure is None:
            return
        if error is None:
            raise EmbeddedKafkaError(failure)
        error.add_note(f"the embedded broker had ended by itself: {failure}")

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, traceback)


class _Thread:
    """The broker in a thread of this process, on an event loop of its own."""

    def __init__(self) -> None:
        self.address = ""
        self.failure: str | None = None  # why it ended by itself, or could not stop in good order
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(
        self, folder: Path, port: int, topics: Mapping[str, int], settings: Mapping[str, object], *, temporary: bool
    ) -> None:
        from ottla_broker.log.files import OsFiles
        from ottla_broker.shell.config import BrokerConfigError, parse_config
        from ottla_broker.shell.node import Node
        from ottla_broker.shell.unsynced_files import UnsyncedFiles

        try:
            config = parse_config(
                {"listeners": f"PLAINTEXT://127.0.0.1:{port}"} | dict(settings) | {"log.dirs": str(folder)}
            )
        except BrokerConfigError as error:
            raise EmbeddedKafkaError(f"EmbeddedKafka: {error}") from error
        files = UnsyncedFiles() if temporary else OsFiles()
        node = Node(config, topics=topics, files=files, on_failure=lambda: self._failed(node))
        self._thread = threading.Thread(target=self._run, args=(node,), name="ottla-embedded-broker", daemon=True)
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_SECONDS):
            raise EmbeddedKafkaError(f"the embedded broker did not start within {START_TIMEOUT_SECONDS:.0f} s")
        if self._failure is not None:
            self._thread.join(STOP_TIMEOUT_SECONDS)
            raise EmbeddedKafkaError(f"EmbeddedKafka: {self._failure}") from self._failure

    def stop(self) -> None:
        assert self._loop is not None
        assert self._stopping is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(STOP_TIMEOUT_SECONDS)
        if self._thread.is_alive():
            logger.error("the embedded broker did not stop within %.0f s", STOP_TIMEOUT_SECONDS)

    def _run(self, node: Any) -> None:
        from ottla_broker.shell.loop import loop_factory

        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(self._serve(node))

    async def _serve(self, node: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        try:
            await node.start()
        except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
            self._failure = error
            self._started.set()
            return
        self.address = f"{node.host}:{node.port}"
        self._started.set()
        await self._stopping.wait()
        await node.stop()

    def _failed(self, node: Any) -> None:
        """The node can go on no longer; called on its thread."""
        assert self._stopping is not None
        if self._started.is_set():  # else `start` raises it
            self.failure = node.failure
            logger.error("the embedded broker stops: %s", node.failure)
        self._stopping.set()


class _Child:
    """The broker in a child process. It ends when its standard input does: with this process, however that ends."""

    def __init__(self) -> None:
        self.address = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    @property
    def failure(self) -> str | None:
        """Why it ended by itself, or could not stop in good order."""
        code = None if self._process is None else self._process.poll()
        if code is None or (code == 0 and self._stopped):
            return None
        return f"the broker process has ended with exit code {code}; its standard error says why"

    def start(
        self, folder: Path, port: int, topics: Mapping[str, int], settings: Mapping[str, object], *, temporary: bool
    ) -> None:
        command = [sys.executable, "-m", "ottla_broker", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--data", str(folder), "--stop-with-stdin", "--log-level", "WARNING"]
        for name, value in settings.items():
            command += ["--config", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
        for topic, partitions in topics.items():
            command += ["--topic", f"{topic}:{partitions}"]
        if temporary:
            command.append("--temporary")
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self.address = _read_ready(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        self._stopped = process.poll() is None
        process.stdin.close()
        try:
            process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            logger.error("the broker process %d did not stop, it is killed", process.pid)
            process.kill()
            process.wait()
        process.stdout.close()


def _read_ready(process: subprocess.Popen[bytes]) -> str:
    """Wait for the line `ready HOST:PORT`."""
    assert process.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    line = b""
    descriptor = process.stdout.fileno()
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise EmbeddedKafkaError(f"the broker process did not start within {START_TIMEOUT_SECONDS:.0f} s")
        data = os.read(descriptor, 4096)
        if not data:
            raise EmbeddedKafkaError("the broker process ended before it served; its standard error says why")
        line += data
    word, _, address = line.decode().strip().partition(" ")
    if word != "ready" or not address:
        raise EmbeddedKafkaError(f"the broker process said {line!r} instead of its address")
    return address
