"""`ottla topics`: list, describe, create, alter, delete."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ottla.cli.options import LOCAL, AsJson, Servers, Timeout, parse_settings, show
from ottla.client.admin import AdminClient, ConfigResource, NewTopic

app = typer.Typer(no_args_is_help=True, help="Topics: list, describe, create, alter, delete.")

Names = Annotated[list[str], typer.Argument(metavar="TOPIC...")]
Config = Annotated[list[str] | None, typer.Option("--config", "-c", metavar="NAME=VALUE", help="A topic setting.")]


@app.command("list")
def list_topics(
    servers: Servers = LOCAL,
    internal: Annotated[bool, typer.Option(help="Internal topics too.")] = False,
    as_json: AsJson = False,
    timeout: Timeout = 10,
) -> None:
    """List the topics."""
    with AdminClient(bootstrap_servers=servers) as admin:
        topics = admin.list_topics(include_internal=internal, timeout=timeout)
    rows = [{"name": name, "id": str(topic.topic_id)} for name, topic in topics.items()]
    show(rows, ["name"], as_json=as_json)


@app.command()
def describe(topics: Names, servers: Servers = LOCAL, as_json: AsJson = False, timeout: Timeout = 10) -> None:
    """Show the partitions and the settings of topics."""
    with AdminClient(bootstrap_servers=servers) as admin:
        described = admin.describe_topics(topics, timeout=timeout)
        configs = admin.describe_configs([ConfigResource.topic(name) for name in topics], timeout=timeout)
    rows: list[dict[str, Any]] = []
    for name, topic in described.items():
        own = configs[ConfigResource.topic(name)].values()
        settings = ",".join(f"{entry.name}={entry.value}" for entry in own if not entry.is_default)
        rows += [
            {
                "topic": name,
                "partition": partition.index,
                "leader": partition.leader.id if partition.leader else None,
                "replicas": ",".join(map(str, partition.replicas)),
                "isr": ",".join(map(str, partition.isr)),
                "config": settings or None,
            }
            for partition in topic.partitions
        ]
    show(rows, ["topic", "partition", "leader", "replicas", "isr", "config"], as_json=as_json)


@app.command()
def create(
    topics: Names,
    partitions: Annotated[int | None, typer.Option("--partitions", "-p", min=1)] = None,
    replication: Annotated[int | None, typer.Option("--replication", "-r", min=1)] = None,
    config: Config = None,
    servers: Servers = LOCAL,
    timeout: Timeout = 10,
) -> None:
    """Create topics."""
    settings = parse_settings(config or [])
    with AdminClient(bootstrap_servers=servers) as admin:
        admin.create_topics([NewTopic(name, partitions, replication, settings) for name in topics], timeout=timeout)


@app.command()
def alter(
    topics: Names,
    partitions: Annotated[int | None, typer.Option("--partitions", "-p", min=1, help="The new number.")] = None,
    config: Config = None,
    unset: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Go back to the default.")] = None,
    servers: Servers = LOCAL,
    timeout: Timeout = 10,
) -> None:
    """Change the settings of topics, or give them more partitions."""
    changes: dict[str, str | None] = {**parse_settings(config or []), **dict.fromkeys(unset or [])}
    if partitions is None and not changes:
        raise typer.BadParameter("nothing to change: give --partitions, --config or --unset")
    with AdminClient(bootstrap_servers=servers) as admin:
        if changes:
            admin.alter_configs({ConfigResource.topic(name): changes for name in topics}, timeout=timeout)
        if partitions is not None:
            admin.create_partitions(dict.fromkeys(topics, partitions), timeout=timeout)


@app.command()
def delete(topics: Names, servers: Servers = LOCAL, timeout: Timeout = 10) -> None:
    """Delete topics with all they hold."""
    with AdminClient(bootstrap_servers=servers) as admin:
        admin.delete_topics(topics, timeout=timeout)
