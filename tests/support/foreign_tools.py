"""Other people's command lines: kcat, and the tools of Apache Kafka. Members of groups are processes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from support.apache_kafka import VERSIONS, java_command
from support.foreign_clients import CODECS, WAIT_SECONDS, Member, Rec, isolation

_NULL = "<null>"
_TOOLS = "org.apache.kafka.tools"


def run(command: Sequence[str], text: str = "") -> str:
    """Run a program to its end; returns what it printed."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=WAIT_SECONDS * 2, check=False)
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


def java(main_class: str, *arguments: str) -> list[str]:
    return java_command(VERSIONS["4.3"], f"{_TOOLS}.{main_class}", *arguments, heap="128m")


class ProcessMember:
    """A member that is a program; `understand(self, line)` reads what it prints on either stream."""

    def __init__(self, command: Sequence[str], understand: Callable[[ProcessMember, str], None]) -> None:
        self.assigned: set[int] = set()
        self.values: list[str] = []
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._readers = [
            threading.Thread(target=self._read, args=(stream, understand), daemon=True)
            for stream in (self._process.stdout, self._process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, understand: Callable[[ProcessMember, str], None]) -> None:
        with stream:
            for line in stream:
                self.lines.append(line)
                understand(self, line.rstrip("\n"))

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(WAIT_SECONDS)
        finally:
            self._process.kill()
            for reader in self._readers:
                reader.join(WAIT_SECONDS)


class Kcat:
    """kcat: librdkafka as distributions ship it, some years older than the Python package."""

    name = "kcat"

    def codecs(self) -> Sequence[str]:
        return CODECS

    def produce(self, servers: str, topic: str, records: Sequence[Rec], codec: str) -> None:
        for headers, same in groupby(records, key=lambda record: record.headers):
            command = ["kcat", "-P", "-b", servers, "-t", topic, "-K", "\t", "-Z", "-z", codec]
            command += ["-X", "enable.idempotence=true"]
            for name, value in headers:
                command += ["-H", f"{name}={value}"]
            run(command, "".join(f"{r.key or ''}\t{r.value or ''}\n" for r in same))  # -Z: what is empty is null

    def consume(self, servers: str, topic: str, count: int, *, committed: bool = False) -> list[Rec]:
        command = ["kcat", "-C", "-b", servers, "-t", topic, "-o", "beginning", "-c", str(count), "-J", "-q"]
        command += ["-X", f"isolation.level={isolation(committed)}"]
        found = []
        for line in run(command).splitlines():
            told = json.loads(line)
            flat = told.get("headers", [])
            headers = tuple(zip(flat[::2], flat[1::2], strict=True))
            found.append(Rec(told["key"], told["payload"], headers))
        return found

    def member(self, servers: str, topic: str, group: str) -> Member:
        command = ["kcat", "-b", servers, "-X", "auto.offset.reset=earliest", "-X", "heartbeat.interval.ms=300"]
        command += ["-X", "partition.assignment.strategy=range", "-u", "-f", "value %s\\n", "-G", group, topic]

        def understand(me: ProcessMember, line: str) -> None:
            if line.startswith("value "):
                me.values.append(line.removeprefix("value "))
            elif "rebalanced" in line and "assigned:" in line:
                me.assigned = {int(index) for index in re.findall(r"\[(\d+)\]", line.partition("assigned:")[2])}
            elif "rebalanced" in line and "revoked:" in line:
                me.assigned = set()

        return ProcessMember(command, understand)


class Java:
    """The Java client, in its console tools and, for groups, the one that Apache Kafka's own system tests use."""

    name = "java"

    def codecs(self) -> Sequence[str]:
        return CODECS

    def produce(self, servers: str, topic: str, records: Sequence[Rec], codec: str) -> None:
        command = java("ConsoleProducer", "--bootstrap-server", servers, "--topic", topic)
        command += ["--compression-codec", codec]
        for setting in ("parse.key=true", "parse.headers=true", f"null.marker={_NULL}"):
            command += ["--reader-property", setting]
        lines = []
        for record in records:
            headers = ",".join(f"{name}:{value}" for name, value in record.headers) or _NULL
            lines.append("\t".join([headers, _NULL if record.key is None else record.key, record.value or _NULL]))
        run(command, "\n".join(lines) + "\n")

    def consume(self, servers: str, topic: str, count: int, *, committed: bool = False) -> list[Rec]:
        command = java("consumer.ConsoleConsumer", "--bootstrap-server", servers, "--topic", topic)
        command += ["--isolation-level", isolation(committed)]
        command += ["--from-beginning", "--max-messages", str(count), "--timeout-ms", str(WAIT_SECONDS * 1000)]
        for setting in ("print.key=true", "print.headers=true", f"null.literal={_NULL}"):
            command += ["--formatter-property", setting]
        found = []
        for line in run(command).splitlines():
            headers, key, value = line.split("\t")
            pairs = [] if headers == "NO_HEADERS" else [header.split(":") for header in headers.split(",")]
            found.append(
                Rec(
                    None if key == _NULL else key,
                    None if value == _NULL else value,
                    tuple((name, text) for name, text in pairs),
                )
            )
        return found

    def member(self, servers: str, topic: str, group: str) -> Member:
        command = java("VerifiableConsumer", "--bootstrap-server", servers, "--topic", topic, "--group-id", group)
        command += ["--verbose", "--session-timeout", "10000"]

        def understand(me: ProcessMember, line: str) -> None:
            if not line.startswith("{"):
                return
            event = json.loads(line)
            partitions = {entry["partition"] for entry in event.get("partitions", ()) if "partition" in entry}
            if event["name"] == "partitions_assigned":
                me.assigned = me.assigned | partitions
            elif event["name"] == "partitions_revoked":
                me.assigned = me.assigned - partitions
            elif event["name"] == "record_data":
                me.values.append(event["value"])

        return ProcessMember(command, understand)

    def verifiable_producer(self, servers: str, topic: str, count: int) -> list[dict[str, Any]]:
        """What the VerifiableProducer says it did: one event for each of the values "0" to `count`."""
        command = java("VerifiableProducer", "--bootstrap-server", servers, "--topic", topic)
        events = run([*command, "--max-messages", str(count)]).splitlines()
        return [json.loads(line) for line in events]
