"""The world of one simulation: loop, network, broker, and clocks and chance that come from the seed alone."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from ottla.client.cluster import Cluster
from ottla.client.config import ClientConfig
from ottla.client.connection import Connection
from ottla.client.engine import Engine
from ottla_broker.log.files import OsLogFile
from ottla_broker.shell import node as node_module
from ottla_broker.shell.config import parse_config
from ottla_broker.shell.node import Node
from ottla_broker.shell.unsynced_files import UnsyncedFiles
from simulation.network import Network
from simulation.processes import CURRENT, Killed, Process
from simulation.virtual_loop import VirtualLoop

logger = logging.getLogger("simulation")

PORT = 9092
ADDRESS = f"127.0.0.1:{PORT}"
_BEGINNING_OF_TIME_NS = 1_700_000_000 * 10**9


class World:
    """See the module. `trace` is told what happens, with the virtual time."""

    def __init__(self, seed: int, loop: VirtualLoop, network: Network, rng: random.Random, folder: Path) -> None:
        self.seed = seed
        self.rng = rng
        self.loop = loop
        self.network = network
        self.folder = folder
        self.speaks_v1: set[str] = set()  # names of processes whose clients know transactions version 1 only
        self.broker: SimulatedBroker | None = None

    def trace(self, text: str, *arguments: Any) -> None:
        logger.debug(f"%9.3f  {text}", self.loop.time(), *arguments)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability


class SimulatedBroker:
    """Our broker as a process: started, crashed, started again on the same folder."""

    def __init__(self, world: World, topics: dict[str, int], settings: dict[str, object]) -> None:
        self._world = world
        self._topics = topics
        self._settings = {"listeners": f"PLAINTEXT://127.0.0.1:{PORT}", "log.dirs": str(world.folder), **settings}
        self._files = UnsyncedFiles()
        self.process = Process("broker")
        self.process.is_dead = True
        self.node: Node | None = None
        self.starts = 0
        self.writes_left: int | None = None
        """It is killed in the middle of the last of so many writes to its logs, if a number is set."""

    @property
    def parts(self) -> Any:
        """The `Broker` inside."""
        assert self.node is not None
        return self.node._broker

    async def start(self) -> None:
        self.starts += 1
        self.process = Process(f"broker {self.starts}")
        self._files = UnsyncedFiles()
        rng = random.Random(self._world.rng.getrandbits(64))
        self.node = Node(parse_config(self._settings), topics=self._topics, files=self._files, rng=rng)
        await self.process.start(self.node.start())

    def crash(self) -> None:
        """`kill -9`: memory and connections are gone, files are as they were written."""
        assert self.node is not None
        self._world.network.stop_listening(PORT)
        self._world.network.cut(self.process, lossy=self._world.chance(0.3))
        self.process.kill()
        self.writes_left = None
        directory = self.parts.log_directory
        directory._lock.release()
        while self._files.open_count:
            self._files._close_oldest()

    def before_write(self, file: OsLogFile, data: Any, write: Callable[[OsLogFile, Any], None]) -> None:
        """Called before a log's file is written to. Of the last write nothing gets there, or a part.

        Raises:
            Killed: there are no more writes.
        """
        if self.writes_left is not None and file._pool is self._files:
            self.writes_left -= 1
            if self.writes_left <= 0:
                if self._world.chance(0.3):
                    write(file, bytes(data)[: self._world.rng.randrange(len(data))])
                self._world.trace("the broker is killed while it writes %s", file.path.parent.name)
                self.crash()
        if self.process.is_dead or file._pool is not self._files:
            raise Killed


class SimulatedEngine(Engine):
    """An engine without a thread: the one loop is everybody's."""

    def __init__(self, client_id: str) -> None:
        loop = asyncio.get_running_loop()
        config = ClientConfig(
            bootstrap_servers=ADDRESS,
            client_id=client_id,
            request_timeout_ms=3_000,
            reconnect_backoff_ms=20,
            reconnect_backoff_max_ms=300,
            retry_backoff_ms=20,
            retry_backoff_max_ms=300,
            default_api_timeout_ms=15_000,
            socket_connection_setup_timeout_ms=2_000,
            socket_connection_setup_timeout_max_ms=4_000,
        )
        super().__init__(config, rng=random.Random())
        self._loop = loop
        self._cluster = Cluster(loop, config, self._rng)

    def start(self) -> None:
        """It runs already."""

    def close(self, timeout: float | None = None) -> None:
        """Ends with its process."""
        self._closed = True
        assert self._cluster is not None
        asyncio.get_running_loop().create_task(self._cluster.close())


class _Socket:
    """What `Node` binds."""

    def __enter__(self) -> _Socket:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", PORT


@contextmanager
def world(seed: int) -> Iterator[World]:
    """A world in which nothing has happened yet. Clocks and chance of the whole process are its own until it ends."""
    rng = random.Random(seed)
    network = Network(random.Random(rng.getrandbits(64)))
    loop = VirtualLoop(network)
    loop.set_exception_handler(
        lambda _loop, context: logger.error("%s", context.get("exception") or context["message"])
    )
    folder = Path(tempfile.mkdtemp(prefix="ottla-simulation-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    here = World(seed, loop, network, rng, folder)
    chance = random.Random(rng.getrandbits(64))
    make_random = random.Random

    def seeded(*given: Any) -> random.Random:
        return make_random(*given) if given else make_random(chance.getrandbits(64))

    agree = Connection._agree_on_versions

    async def agree_on_versions(self: Connection) -> None:
        await agree(self)
        process = CURRENT.get()
        if process is not None and process.name in here.speaks_v1:
            self.finalized_features = {**self.finalized_features, "transaction.version": 1}

    write = OsLogFile.append

    def append(self: OsLogFile, data: Any) -> None:
        if here.broker is not None:
            here.broker.before_write(self, data, write)
        write(self, data)

    def wall_ns() -> int:
        return _BEGINNING_OF_TIME_NS + int(loop.time() * 1e9)

    patches: list[tuple[object, str, object]] = [
        (time, "monotonic", loop.time),
        (time, "monotonic_ns", lambda: int(loop.time() * 1e9)),
        (time, "time_ns", wall_ns),
        (time, "time", lambda: wall_ns() / 1e9),
        (random, "Random", seeded),
        (node_module, "_bind", lambda host, port: _Socket()),
        (Connection, "_agree_on_versions", agree_on_versions),
        (OsLogFile, "append", append),
    ]
    try:
        with _patched(patches):
            asyncio.set_event_loop(loop)
            yield here
    finally:
        asyncio.set_event_loop(None)
        if here.broker is not None and not here.broker.process.is_dead:
            here.broker.crash()
        _bury(loop)
        shutil.rmtree(folder, ignore_errors=True)


def _bury(loop: VirtualLoop) -> None:
    """End the loop, and let go of what killed processes have left: what their coroutines complain of is no news."""
    loop._ready.clear()
    loop._scheduled.clear()
    loop.close()
    with mock.patch.object(sys, "unraisablehook"):
        loop._tasks.clear()
        gc.collect()


@contextmanager
def _patched(patches: list[tuple[object, str, object]]) -> Iterator[None]:
    started: list[Callable[[], object]] = []
    try:
        for target, name, replacement in patches:
            patch = mock.patch.object(target, name, replacement)
            patch.start()
            started.append(patch.stop)
        yield
    finally:
        for stop in reversed(started):
            stop()
