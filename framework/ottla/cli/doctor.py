"""`ottla doctor`: what is installed, how fast it can be, and what it can reach."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import resource
import socket
import time
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

CONNECT_TIMEOUT_SECONDS = 3.0
ENOUGH_FILES = 4096


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `advice` is empty where all is well."""

    what: str
    value: str
    advice: str = ""


def report(servers: str | None, *, as_json: bool) -> None:
    """Print the findings; exit code 1 if a server that was named cannot be reached."""
    findings = [*_versions(), _kernel(), _event_loop(), _open_files(), *(_reach(server) for server in _split(servers))]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        table = Table(show_header=False)
        for finding in findings:
            table.add_row(finding.what, finding.value, finding.advice, style="yellow" if finding.advice else "")
        Console().print(table)
    if any(finding.what.startswith("server ") and finding.advice for finding in findings):
        raise SystemExit(1)


def _versions() -> list[Finding]:
    packages = ("ottla", "pydantic", "cramjam", "tenacity", "opentelemetry-api")
    python = Finding("python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    return [python, *(Finding(name, importlib.metadata.version(name)) for name in packages)]


def _kernel() -> Finding:
    from ottla_wire import records

    if records.native:
        return Finding("record kernel", "native")
    return Finding("record kernel", "pure Python", "about ten times slower; install again with a C compiler at hand")


def _event_loop() -> Finding:
    try:
        return Finding("event loop", f"uvloop {importlib.metadata.version('uvloop')}")
    except importlib.metadata.PackageNotFoundError:
        return Finding("event loop", "asyncio", "uvloop is faster: pip install uvloop")


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = "" if soft >= ENOUGH_FILES else f"a broker with many partitions needs more: ulimit -n {min(hard, 65536)}"
    return Finding("open files", f"{soft} (at most {hard})", advice)


def _split(servers: str | None) -> list[str]:
    return [server.strip() for server in (servers or "").split(",") if server.strip()]


def _reach(server: str) -> Finding:
    host, _, port = server.rpartition(":")
    started = time.perf_counter()
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_SECONDS):
            return Finding(f"server {server}", f"reachable in {(time.perf_counter() - started) * 1000:.1f} ms")
    except (OSError, ValueError) as error:
        return Finding(f"server {server}", "not reachable", str(error))
