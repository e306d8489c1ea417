"""What `import ottla` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import ottla


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_public_name_can_be_imported_and_has_a_docstring() -> None:
    for name in ottla.__all__:
        value = getattr(ottla, name)
        assert value.__doc__ or name in ("Key", "Payload"), name


def test_the_lazy_names_are_the_public_ones() -> None:
    assert sorted(ottla._HOME_OF) == sorted(ottla.__all__)


def test_the_decorator_is_not_hidden_by_a_package_once_everything_is_imported() -> None:
    code = "import ottla.app, ottla.listeners.container; from ottla import listener; print(callable(listener))"
    assert run(code) == "True"


def test_importing_ottla_imports_nothing_heavy() -> None:
    loaded = run(
        "import sys, ottla; print(*[m for m in ('pydantic', 'typer', 'asyncio', 'ottla_broker') if m in sys.modules])"
    )
    assert loaded == ""


def test_an_application_on_another_kafka_never_imports_the_broker() -> None:
    code = (
        "import sys, ottla; app = ottla.Ottla('localhost:1'); app.template.send('t', 'x');"
        "print(*[m for m in sys.modules if m.startswith('ottla_broker')]); import os; sys.stdout.flush(); os._exit(0)"
    )
    assert run(code) == ""
