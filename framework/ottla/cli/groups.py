"""`ottla groups`: list, describe, reset, delete."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ottla.cli.options import LOCAL, AsJson, Servers, Timeout, show
from ottla.client import TopicPartition
from ottla.client.admin import AdminClient, OffsetSpec

app = typer.Typer(no_args_is_help=True, help="Consumer groups: list, describe, reset, delete.")

Group = Annotated[str, typer.Argument(metavar="GROUP")]


@app.command("list")
def list_groups(servers: Servers = LOCAL, as_json: AsJson = False, timeout: Timeout = 10) -> None:
    """List the groups."""
    with AdminClient(bootstrap_servers=servers) as admin:
        groups = admin.list_groups(timeout=timeout)
    rows = [{"group": g.group_id, "state": g.state, "type": g.type} for g in groups]
    show(rows, ["group", "state", "type"], as_json=as_json)


@app.command()
def describe(group: Group, servers: Servers = LOCAL, as_json: AsJson = False, timeout: Timeout = 10) -> None:
    """Show a group's partitions: committed offset, end, lag, and who reads them."""
    with AdminClient(bootstrap_servers=servers) as admin:
        description = admin.describe_groups([group], timeout=timeout)[group]
        committed = admin.list_group_offsets(group, timeout=timeout)
        owners = {p: member for member in description.members for p in member.assignment}
        partitions = sorted(committed.keys() | owners.keys())
        ends = admin.list_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST), timeout=timeout) if partitions else {}
    rows: list[dict[str, Any]] = []
    for partition in partitions:
        offset, owner, end = committed.get(partition), owners.get(partition), ends[partition].offset
        rows.append(
            {
                "topic": partition.topic,
                "partition": partition.partition,
                "committed": offset.offset if offset else None,
                "end": end,
                "lag": end - offset.offset if offset else None,
                "member": owner.member_id if owner else None,
                "host": owner.host if owner else None,
            }
        )
    if not as_json:
        print(f"{group}: {description.state}, {len(description.members)} members")
    show(rows, ["topic", "partition", "committed", "end", "lag", "member"], as_json=as_json)


@app.command()
def reset(
    group: Group,
    topics: Annotated[list[str], typer.Option("--topic", "-t", help="The topics whose offsets are set.")],
    to: Annotated[str, typer.Option(metavar="earliest|latest|OFFSET|@MS", help="@MS: the first record since then.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be set.")] = False,
    servers: Servers = LOCAL,
    as_json: AsJson = False,
    timeout: Timeout = 10,
) -> None:
    """Set the offsets of a group that has no members."""
    with AdminClient(bootstrap_servers=servers) as admin:
        described = admin.describe_topics(topics, timeout=timeout)
        partitions = [TopicPartition(name, p.index) for name, topic in described.items() for p in topic.partitions]
        offsets = _targets(admin, partitions, to, timeout)
        if not dry_run:
            admin.alter_group_offsets(group, offsets, timeout=timeout)
    rows = [{"topic": p.topic, "partition": p.partition, "offset": offset} for p, offset in offsets.items()]
    show(rows, ["topic", "partition", "offset"], as_json=as_json)


def _targets(
    admin: AdminClient, partitions: list[TopicPartition], to: str, timeout: float
) -> dict[TopicPartition, int]:
    specs: dict[str, OffsetSpec] = {"earliest": OffsetSpec.EARLIEST, "latest": OffsetSpec.LATEST}
    ends = {p: i.offset for p, i in _offsets(admin, partitions, OffsetSpec.LATEST, timeout).items()}
    if to in specs:
        return {p: info.offset for p, info in _offsets(admin, partitions, specs[to], timeout).items()}
    try:
        number = int(to.removeprefix("@"))
    except ValueError:
        raise typer.BadParameter(
            f"{to!r}: give earliest, latest, an offset, or @ and milliseconds since 1970"
        ) from None
    if not to.startswith("@"):
        return dict.fromkeys(partitions, number)
    found = _offsets(admin, partitions, number, timeout)
    return {p: info.offset if info.offset >= 0 else ends[p] for p, info in found.items()}


def _offsets(admin: AdminClient, partitions: list[TopicPartition], spec: OffsetSpec | int, timeout: float) -> Any:
    return admin.list_offsets(dict.fromkeys(partitions, spec), timeout=timeout)


@app.command()
def delete(
    groups: Annotated[list[str], typer.Argument(metavar="GROUP...")], servers: Servers = LOCAL, timeout: Timeout = 10
) -> None:
    """Delete groups that have no members, with their offsets."""
    with AdminClient(bootstrap_servers=servers) as admin:
        admin.delete_groups(groups, timeout=timeout)
