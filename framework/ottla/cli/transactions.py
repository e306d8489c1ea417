"""`ottla transactions`: list, describe, describe-producers, find-hanging, abort."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from ottla.cli.options import LOCAL, AsJson, Servers, Timeout, show
from ottla.client import TopicPartition
from ottla.client.admin import (
    AbortTransactionSpec,
    AdminClient,
    EpochEndDescription,
    ProducerDescription,
    TransactionDescription,
)
from ottla.client.admin_transactions import OPEN_STATES

app = typer.Typer(no_args_is_help=True, help="Transactions: list, describe, find and end what hangs.")

TransactionalId = Annotated[str, typer.Argument(metavar="TRANSACTIONAL_ID")]
Topic = Annotated[str | None, typer.Option("--topic", "-t", help="Look into this topic only.")]
Partition = Annotated[int | None, typer.Option("--partition", "-p", min=0, help="Look into this partition only.")]
Broker = Annotated[int | None, typer.Option("--broker-id", help="Ask the replicas on this broker.")]

_PRODUCER_COLUMNS = [
    "producer_id",
    "producer_epoch",
    "coordinator_epoch",
    "last_sequence",
    "last_timestamp",
    "transaction_start",
]


@app.command("list")
def list_transactions(
    servers: Servers = LOCAL,
    state: Annotated[list[str] | None, typer.Option("--state", help="Only in this state: Ongoing, Empty, ...")] = None,
    running_longer_than: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Only those open for longer than this.")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="Only ids that match this regular expression as a whole.")] = None,
    as_json: AsJson = False,
    timeout: Timeout = 10,
) -> None:
    """List the transactional ids that the coordinators know."""
    longer_ms = None if running_longer_than is None else int(running_longer_than * 1000)
    with AdminClient(bootstrap_servers=servers) as admin:
        found = admin.list_transactions(
            states=state or (), running_longer_than_ms=longer_ms, pattern=pattern, timeout=timeout
        )
    rows = [
        {
            "transactional_id": listed.transactional_id,
            "coordinator": listed.coordinator.id,
            "producer_id": listed.producer_id,
            "state": listed.state,
        }
        for listed in found
    ]
    show(rows, ["transactional_id", "coordinator", "producer_id", "state"], as_json=as_json)


@app.command()
def describe(
    transactional_id: TransactionalId, servers: Servers = LOCAL, as_json: AsJson = False, timeout: Timeout = 10
) -> None:
    """Show a transactional id, what its transaction holds, and (on our brokers) why its last epoch ended."""
    with AdminClient(bootstrap_servers=servers) as admin:
        found = admin.describe_transactions([transactional_id], timeout=timeout)[transactional_id]
    row = _described(found)
    if as_json:
        show([row], row, as_json=True)
        return
    show(
        [{"what": name.replace("_", " "), "value": value} for name, value in row.items()],
        ["what", "value"],
        as_json=False,
    )


def _described(found: TransactionDescription) -> dict[str, Any]:
    # Coordinators keep the start of a transaction that has ended.
    started_ms = found.started_ms if found.state in OPEN_STATES else None
    open_ms = None if started_ms is None else max(0, _now_ms() - started_ms)
    return {
        "transactional_id": found.transactional_id,
        "state": found.state,
        "coordinator": None if found.coordinator is None else found.coordinator.id,
        "producer_id": found.producer_id,
        "producer_epoch": found.producer_epoch,
        "timeout_ms": found.timeout_ms,
        "started": None if started_ms is None else _time(started_ms),
        "open_for_ms": open_ms,
        "partitions": ", ".join(map(str, found.partitions)) or None,
        "epoch_ended": None if found.epoch_end is None else _why(found.epoch_end, found.timeout_ms),
    }


def _why(end: EpochEndDescription, timeout_ms: int) -> str:
    who = f"{end.client_id!r} on {end.client_host}"
    reasons = {
        "TIMED_OUT": f"the transaction was open for longer than its timeout of {timeout_ms} ms",
        "FENCED": f"the producer {who} took the id over",
        "ADMIN_ABORTED": f"an administrator's client, {who}, fenced it",
    }
    return f"epoch {end.producer_epoch} at {_time(end.at_ms)}: {reasons[end.reason.name]}"


@app.command("describe-producers")
def describe_producers(
    topic: Annotated[str, typer.Argument(metavar="TOPIC")],
    partition: Annotated[int, typer.Argument(metavar="PARTITION", min=0)],
    servers: Servers = LOCAL,
    broker_id: Broker = None,
    as_json: AsJson = False,
    timeout: Timeout = 10,
) -> None:
    """Show the producers that a partition remembers, and where their open transactions begin."""
    place = TopicPartition(topic, partition)
    with AdminClient(bootstrap_servers=servers) as admin:
        found = admin.describe_producers([place], node_id=broker_id, timeout=timeout)[place]
    show([_producer(producer) for producer in found], _PRODUCER_COLUMNS, as_json=as_json)


def _producer(producer: ProducerDescription) -> dict[str, Any]:
    return {
        "producer_id": producer.producer_id,
        "producer_epoch": producer.producer_epoch,
        "coordinator_epoch": producer.coordinator_epoch,
        "last_sequence": producer.last_sequence,
        "last_timestamp": _time(producer.last_timestamp_ms),
        "transaction_start": producer.transaction_start_offset,
    }


@app.command("find-hanging")
def find_hanging(
    servers: Servers = LOCAL,
    topic: Topic = None,
    partition: Partition = None,
    broker_id: Broker = None,
    max_transaction_timeout: Annotated[
        float, typer.Option(min=0, metavar="MINUTES", help="Younger transactions are taken for well.")
    ] = 15,
    as_json: AsJson = False,
    timeout: Timeout = 60,
) -> None:
    """Find transactions that are open in a partition, and that no coordinator is going to end."""
    if partition is not None and topic is None:
        raise typer.BadParameter("--partition needs --topic")
    with AdminClient(bootstrap_servers=servers) as admin:
        found = admin.find_hanging_transactions(
            None if topic is None else [topic],
            partitions=None if topic is None or partition is None else [TopicPartition(topic, partition)],
            node_id=broker_id,
            max_transaction_timeout_ms=int(max_transaction_timeout * 60_000),
            timeout=timeout,
        )
    rows = [
        {"topic": hanging.partition.topic, "partition": hanging.partition.partition} | _producer(hanging.producer)
        for hanging in found
    ]
    show(rows, ["topic", "partition", *_PRODUCER_COLUMNS], as_json=as_json)


@app.command()
def abort(
    transactional_id: Annotated[
        str | None,
        typer.Argument(metavar="[TRANSACTIONAL_ID]", help="Abort what this id has open; fences its producer."),
    ] = None,
    servers: Servers = LOCAL,
    topic: Annotated[str | None, typer.Option("--topic", "-t", help="Of a hanging transaction.")] = None,
    partition: Annotated[int | None, typer.Option("--partition", "-p", min=0)] = None,
    start_offset: Annotated[
        int | None, typer.Option(min=0, help="Where the hanging transaction begins: see find-hanging.")
    ] = None,
    timeout: Timeout = 30,
) -> None:
    """Abort a transaction: by its id, or a hanging one by where it begins in which partition."""
    by_place = (topic, partition, start_offset)
    if transactional_id is not None and all(part is None for part in by_place):
        with AdminClient(bootstrap_servers=servers) as admin:
            admin.describe_transactions([transactional_id], timeout=timeout)  # a mistyped id would be a new one
            admin.fence_producers([transactional_id], timeout=timeout)
        return
    if transactional_id is not None or topic is None or partition is None or start_offset is None:
        raise typer.BadParameter("give TRANSACTIONAL_ID, or --topic, --partition and --start-offset")
    place = TopicPartition(topic, partition)
    with AdminClient(bootstrap_servers=servers) as admin:
        producers = admin.describe_producers([place], timeout=timeout)[place]
        found = [producer for producer in producers if producer.transaction_start_offset == start_offset]
        if not found:
            raise typer.BadParameter(f"no transaction that is open in {place} begins at offset {start_offset}")
        admin.abort_transaction(AbortTransactionSpec.of(place, found[0]), timeout=timeout)


def _now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
