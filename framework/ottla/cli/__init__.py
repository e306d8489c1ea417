"""The command line. Each command's module is imported when it runs, so that `ottla --help` answers at once."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `ottla`; errors that a user can mend are one sentence on standard error and exit code 1."""
    if len(sys.argv) > 1 and sys.argv[1] == "broker":
        # A broker's process has neither typer nor pydantic in it.
        from ottla_broker.__main__ import main as broker

        sys.exit(broker(sys.argv[2:]))
    from ottla.cli.commands import run

    run()
