"""The commands of `ottla`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ottla.errors import OttlaError

app = typer.Typer(
    name="ottla",
    help="Spring-style messaging with transactions, on its own Kafka-compatible broker.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Servers = Annotated[
    str,
    typer.Option("--bootstrap-servers", "-b", envvar="OTTLA_BOOTSTRAP_SERVERS", help="HOST:PORT[,HOST:PORT...]"),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


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
) -> None:
    """Run an application until SIGINT or SIGTERM."""
    from ottla.cli.run import run_target

    run_target(target, workers=workers, env_file=env_file)


@app.command()
def doctor(servers: Servers = "", as_json: AsJson = False) -> None:
    """Say what this installation is made of, and whether a Kafka can be reached."""
    from ottla.cli.doctor import report

    report(servers or None, as_json=as_json)
