"""What Apache Kafka has on the command line for transactions: programs that write in them, and those that look at them.

The Java client in them speaks transactions v2 where the broker has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support.foreign_tools import java, run

Row = dict[str, str]


def copier_command(
    servers: str,
    source: str,
    partition: int,
    target: str,
    *,
    group: str,
    transactional_id: str,
    size: int = 10,
    random_aborts: bool = False,
) -> list[str]:
    """The command of the TransactionalMessageCopier: copies what one partition has now, its position with it."""
    command = java("TransactionalMessageCopier", "--broker-list", servers, "--input-topic", source)
    command += ["--input-partition", str(partition), "--output-topic", target, "--consumer-group", group]
    command += ["--transaction-size", str(size), "--transactional-id", transactional_id, "--use-group-metadata"]
    return [*command, *(["--enable-random-aborts"] if random_aborts else [])]


def copier_result(output: str) -> dict[str, Any]:
    """The last thing that a copier said."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def producer_performance(servers: str, topic: str, transactional_id: str, count: int, duration_ms: int) -> str:
    """Write records of 20 bytes, 1,000 a second, in transactions of a duration; returns what the program says of it."""
    command = java("ProducerPerformance", "--bootstrap-server", servers, "--topic", topic, "--record-size", "20")
    command += ["--num-records", str(count), "--throughput", "1000", "--transactional-id", transactional_id]
    return run([*command, "--transaction-duration-ms", str(duration_ms)])


class TransactionsTool:
    """kafka-transactions.sh. Tables come as one dictionary for each row."""

    def __init__(self, servers: str) -> None:
        self._servers = servers

    def _table(self, *arguments: str) -> list[Row]:
        head, *rows = run(java("TransactionsCommand", "--bootstrap-server", self._servers, *arguments)).splitlines()
        names = [name.strip() for name in head.split("\t")]
        return [{name: cell.strip() for name, cell in zip(names, row.split("\t"), strict=True) if name} for row in rows]

    def listed(self) -> list[Row]:
        return self._table("list")

    def describe(self, transactional_id: str) -> Row:
        (row,) = self._table("describe", "--transactional-id", transactional_id)
        return row

    def describe_producers(self, topic: str) -> list[Row]:
        return self._table("describe-producers", "--topic", topic, "--partition", "0")

    def find_hanging(self) -> list[Row]:
        """Those of the whole broker, however short a time they are open."""
        return self._table("find-hanging", "--broker-id", "1", "--max-transaction-timeout", "0")

    def abort(self, topic: str, start_offset: int) -> None:
        run(self._command("abort", "--topic", topic, "--partition", "0", "--start-offset", str(start_offset)))

    def force_terminate(self, transactional_id: str) -> None:
        run(self._command("forceTerminateTransaction", "--transactionalId", transactional_id))

    def _command(self, *arguments: str) -> list[str]:
        return java("TransactionsCommand", "--bootstrap-server", self._servers, *arguments)


class LogDump:
    """What kafka-dump-log.sh reads in files of a broker: the lines of each, and the records of the transaction log."""

    def __init__(self, files: Iterable[Path], *, transaction_log: bool = False) -> None:
        command = java("DumpLogSegments", "--print-data-log", "--files", ",".join(map(str, files)))
        command += ["--transaction-log-decoder", "--skip-record-metadata"] if transaction_log else []
        self.lines: dict[Path, list[str]] = {}
        for line in run(command).splitlines():
            if line.startswith("Dumping "):
                here = self.lines.setdefault(Path(line.removeprefix("Dumping ")), [])
            else:
                here.append(line)

    def transaction_states(self, transactional_id: str) -> list[dict[str, Any]]:
        """Every value that the transaction log has for an id, in order."""
        key = f'| key: {{"type":"0","data":{{"transactionalId":"{transactional_id}"}}}} payload: '
        every = [line for lines in self.lines.values() for line in lines]
        return [json.loads(line.removeprefix(key))["data"] for line in every if line.startswith(key)]
