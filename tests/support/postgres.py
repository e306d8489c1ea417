"""A PostgreSQL of one's own for tests: from the machine's packages, else from testcontainers, or at an address.

The server writes nothing through to the disk (it lives as long as the tests), listens on 127.0.0.1 only, and each test
that asks for `fresh_database` gets an empty database of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

ADDRESS = "OTTLA_POSTGRES"  # postgresql://user:password@host:port of a server that runs already and may be written to
_IMAGE = "postgres:16-alpine"
_START_SECONDS = 30


class PostgresNotAvailableError(Exception):
    """There is no PostgreSQL here; the message says what was looked for."""


@cache
def binaries() -> Path | None:
    """The folder with `initdb` and `postgres`, the newest version first; Debian keeps them off the PATH."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    found = [folder for folder in Path("/usr/lib/postgresql").glob("*/bin") if (folder / "initdb").exists()]
    return max(found, key=lambda folder: float(folder.parent.name), default=None)


def missing() -> str | None:
    """Why there is no PostgreSQL here, or None if there is."""
    if os.environ.get(ADDRESS) or binaries() is not None or shutil.which("docker"):
        return None
    return f"no initdb on the PATH or in /usr/lib/postgresql, no Docker, and {ADDRESS} names no server"


@contextmanager
def running_postgres() -> Iterator[str]:
    """A server; yields its URL without a database, `postgresql://user[:password]@host:port`."""
    if address := os.environ.get(ADDRESS):
        yield address.rstrip("/")
    elif (folder := binaries()) is not None:
        with _from_packages(folder) as url:
            yield url
    elif shutil.which("docker"):
        with _from_container() as url:
            yield url
    else:
        raise PostgresNotAvailableError(missing())


@contextmanager
def fresh_database(server: str, name: str) -> Iterator[str]:
    """An empty database; yields its URL. It is dropped afterwards, whoever is still connected."""
    import psycopg
    from psycopg import sql

    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield f"{server}/{name}"
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def _from_packages(folder: Path) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ottla-postgres-") as root:
        data = Path(root) / "data"
        data.mkdir()
        as_user = _unprivileged(Path(root), data)
        initdb = [*as_user, str(folder / "initdb"), "-D", str(data), "-U", "ottla", "-A", "trust", "-N", "-E", "UTF8"]
        made = subprocess.run(initdb, capture_output=True, text=True, timeout=_START_SECONDS * 2, check=False, cwd=root)
        if made.returncode:
            raise PostgresNotAvailableError(f"initdb failed: {made.stderr.strip() or made.stdout.strip()}")
        port = _free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": 50,
        }
        command = [*as_user, str(folder / "postgres"), "-D", str(data)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (Path(root) / "log").open("w+") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=root)
            try:
                _wait_until_ready(folder, port, server, log.name)
                yield f"postgresql://ottla@127.0.0.1:{port}"
            finally:
                server.send_signal(signal.SIGINT)  # SIGTERM would wait for clients that were left behind
                try:
                    server.wait(5)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait(5)


def _unprivileged(*folders: Path) -> list[str]:
    """PostgreSQL refuses to run as root: give the folders to a user without rights, and become that user."""
    if os.geteuid() != 0:
        return []
    for folder in folders:
        shutil.chown(folder, "nobody", "nogroup")
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]


def _wait_until_ready(folder: Path, port: int, server: subprocess.Popen[bytes], log: str) -> None:
    question = [str(folder / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-t", "1", "-q"]
    deadline = time.monotonic() + _START_SECONDS
    while subprocess.run(question, check=False, timeout=10).returncode:
        if server.poll() is not None or time.monotonic() > deadline:
            raise PostgresNotAvailableError(f"PostgreSQL does not start: {Path(log).read_text()[-2000:]}")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _from_container() -> Iterator[str]:
    from testcontainers.postgres import PostgresContainer

    with PostgresContainer(_IMAGE, driver=None) as container:
        host, port = container.get_container_host_ip(), container.get_exposed_port(5432)
        yield f"postgresql://{container.username}:{container.password}@{host}:{port}"
