"""`ottla doctor`: what is installed, how fast it can be, and what it can reach."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import platform
import resource
import time
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from ottla.client.config import parse_address
from ottla.client.connection import Connection, ConnectionOptions
from ottla.client.metadata import Node
from ottla.errors import OttlaError
from ottla_wire.messages.metadata import MetadataRequest

TIMEOUT_MS = 3_000
ENOUGH_FILES = 4096


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `advice` is empty where all is well."""

    what: str
    value: str
    advice: str = ""


def report(servers: str | None, *, as_json: bool) -> None:
    """Print the findings; exit code 1 if a server that was named cannot be reached."""
    findings = [*_versions(), _kernel(), _event_loop(), _open_files(), *asyncio.run(_servers(_split(servers)))]
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


async def _servers(servers: list[str]) -> list[Finding]:
    """Whether brokers answer at the addresses, and at those that they tell clients to use."""
    findings = []
    advertised: dict[Node, str] = {}
    for server in servers:
        try:
            node = Node(-1, *parse_address(server))
            connection, seconds = await _connect(node)
        except (OttlaError, TimeoutError) as error:
            findings.append(Finding(f"server {server}", "not reachable", str(error)))
            continue
        try:
            about, nodes = await _about(connection)
        except (OttlaError, TimeoutError) as error:
            findings.append(Finding(f"server {server}", "does not answer", str(error)))
        else:
            findings.append(Finding(f"server {server}", f"reachable, answers in {seconds * 1000:.1f} ms: {about}"))
            advertised.update(dict.fromkeys(nodes, server))
        finally:
            connection.close()
    return findings + [await _broker(node, told_by) for node, told_by in advertised.items()]


async def _connect(node: Node) -> tuple[Connection, float]:
    started = time.perf_counter()
    connection = await Connection.open(node, ConnectionOptions("ottla-doctor", TIMEOUT_MS, TIMEOUT_MS), lambda _: None)
    return connection, time.perf_counter() - started


async def _about(connection: Connection) -> tuple[str, list[Node]]:
    """The cluster in words, and its brokers at the addresses that clients are told to use."""
    answer = await connection.send(MetadataRequest(topics=[]), connection.version_for(MetadataRequest))
    nodes = [Node(broker.node_id, broker.host, broker.port) for broker in answer.brokers]
    transactions = connection.finalized_features.get("transaction.version", 0)
    count = f"{len(nodes)} broker{'s' if len(nodes) != 1 else ''}"
    return f"cluster {answer.cluster_id}, {count}, transactions version {2 if transactions >= 2 else 1}", nodes


async def _broker(node: Node, told_by: str) -> Finding:
    """A client never uses the address that it was given for long, but the one that the cluster names."""
    what = f"server {node.host}:{node.port}, broker {node.id}"
    try:
        connection, seconds = await _connect(node)
    except (OttlaError, TimeoutError) as error:
        return Finding(
            what,
            "not reachable",
            f"{told_by} tells clients to use this address (advertised.listeners): {error}",
        )
    connection.close()
    return Finding(what, f"reachable, answers in {seconds * 1000:.1f} ms")
