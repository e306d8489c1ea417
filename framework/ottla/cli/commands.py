"""The commands of `ottla`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ottla.cli import groups, topics, transactions
from ottla.cli.options import LOCAL, AsJson, Servers, Timeout, parse_settings
from ottla.errors import OttlaError

app = typer.Typer(
    name="ottla",
    help="Spring-style messaging with transactions, on its own Kafka-compatible broker.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.add_typer(topics.app, name="topics")
app.add_typer(groups.app, name="groups")
app.add_typer(transactions.app, name="transactions")


def run() -> None:
    """Run the command line; what a user can mend is one sentence and exit code 1."""
    try:
        app()
    except (OttlaError, OSError, TimeoutError) as error:
        print(f"ottla: {error}", file=sys.stderr)
        sys.exit(1)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Run a broker: ottla broker --port 9092 --data DIR (ottla broker --help lists its options).",
)
def broker() -> None:
    """Listed here for the help only: `ottla.cli.main` hands this command over before typer is loaded."""


@app.command(name="run")
def run_application(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="Where the Ottla application is: shop:app")],
    workers: Annotated[int, typer.Option(min=1, help="Processes that run the application; they share one broker.")] = 1,
    env_file: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Environment from a file.")] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start anew when a file of the current folder changes.")
    ] = False,
) -> None:
    """Run an application until SIGINT or SIGTERM."""
    from ottla.cli.run import run_target

    run_target(target, workers=workers, env_file=env_file, reload=reload)


@app.command()
def doctor(servers: Servers = "", as_json: AsJson = False) -> None:
    """Say what this installation is made of, and whether a Kafka can be reached."""
    from ottla.cli.doctor import report

    report(servers or None, as_json=as_json)


@app.command()
def produce(
    topic: str,
    servers: Servers = LOCAL,
    as_json: Annotated[bool, typer.Option("--json", help="Lines are objects: value, key, headers, partition.")] = False,
    key_separator: Annotated[str | None, typer.Option(help="Lines are KEY, this, VALUE.")] = None,
    header: Annotated[list[str] | None, typer.Option("--header", "-H", metavar="NAME=VALUE")] = None,
    timeout: Timeout = 30,
) -> None:
    """Send the lines of standard input."""
    from ottla.cli import records

    lines = records.parse_lines(sys.stdin, as_json=as_json, separator=key_separator)
    count = records.produce(servers, topic, lines, parse_settings(header or []), timeout=timeout)
    print(f"{count} records stored in {topic}", file=sys.stderr)


@app.command()
def consume(
    topic: str,
    servers: Servers = LOCAL,
    group: Annotated[str | None, typer.Option(help="Read as a member of this group, and commit.")] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="This partition only.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="All that is there, not only what is new.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more, until Ctrl-C.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Stop after so many records.")] = None,
    as_json: AsJson = False,
    keys: Annotated[bool, typer.Option(help="Print keys, before the values.")] = False,
    headers: Annotated[bool, typer.Option(help="Print headers, before keys and values.")] = False,
    timeout: Timeout = 10,
) -> None:
    """Print the new records of a topic; with --from-beginning or --group those up to its present end."""
    from ottla.cli import records

    try:
        records.consume(
            servers,
            topic,
            group=group,
            partition=partition,
            from_beginning=from_beginning,
            follow=follow,
            limit=limit,
            as_json=as_json,
            keys=keys,
            headers=headers,
            timeout=timeout,
        )
    except KeyboardInterrupt:
        pass
