"""What the commands share: their common options, and how they print."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

Servers = Annotated[
    str,
    typer.Option("--bootstrap-servers", "-b", envvar="OTTLA_BOOTSTRAP_SERVERS", help="HOST:PORT[,HOST:PORT...]"),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the brokers.")]

LOCAL = "localhost:9092"


def show(rows: Sequence[dict[str, Any]], columns: Iterable[str], *, as_json: bool) -> None:
    """Print rows as a table, or as one JSON document with all they hold."""
    if as_json:
        print(json.dumps(list(rows), indent=2))
        return
    table = Table(box=None)
    names = list(columns)
    for name in names:
        table.add_column(name.upper().replace("_", " "))
    for row in rows:
        table.add_row(*("-" if row[name] is None else str(row[name]) for name in names))
    Console(soft_wrap=True).print(table)


def parse_settings(pairs: Sequence[str]) -> dict[str, str]:
    """`name=value` pairs as a mapping.

    Raises:
        typer.BadParameter: a pair has no `=`.
    """
    settings = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE")
        settings[name] = value
    return settings
