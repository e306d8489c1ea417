"""samples/payments under `kill -9`: the demonstration itself, shorter, from a fixed seed.

`OTTLA_CRASH_ROUNDS` makes it longer (2 s for each), `OTTLA_CRASH_SEED` picks the moments.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.postgres import fresh_database, running_postgres

pytestmark = [pytest.mark.slow, pytest.mark.crash]
DEMO = Path(__file__).resolve().parents[2] / "samples" / "payments" / "demo.py"


def count(output: str, row: str) -> int:
    found = re.search(rf"{row} +│ ([\d,]+)", output)
    return int(found[1].replace(",", "")) if found else 0


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peer("postgres"))])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The SQLAlchemy URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'payments.db'}"
        return
    with running_postgres() as server, fresh_database(server, "payments") as url:
        yield url.replace("postgresql://", "postgresql+psycopg://")


@pytest.mark.timeout(600)
def test_every_payment_has_one_effect_and_one_receipt(tmp_path: Path, database: str, kill_rounds: int) -> None:
    options = {
        "--seconds": 2 * kill_rounds,
        "--seed": os.environ.get("OTTLA_CRASH_SEED", "20"),
        "--rate": 100,
        "--database": database,
        "--keep": tmp_path / "run",
    }
    command = [sys.executable, str(DEMO), *(str(part) for option in options.items() for part in option)]
    with (tmp_path / "output").open("w+b") as output:
        done = subprocess.run(command, stdout=output, stderr=output, timeout=580)
    said = (tmp_path / "output").read_text()
    print(said)
    assert done.returncode == 0, said
    assert count(said, "workers killed") > 0
    assert count(said, "broker killed") > 0
    assert count(said, "transactions committed") > 0
    assert said.count("ok  ") == 11
