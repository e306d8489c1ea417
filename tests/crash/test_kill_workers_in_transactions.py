"""samples/payments under `kill -9`: the demonstration itself, shorter, from a fixed seed.

`OTTLA_CRASH_ROUNDS` makes it longer (2 s for each), `OTTLA_CRASH_SEED` picks the moments.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.crash]
DEMO = Path(__file__).resolve().parents[2] / "samples" / "payments" / "demo.py"


def count(output: str, row: str) -> int:
    found = re.search(rf"{row} +│ ([\d,]+)", output)
    return int(found[1].replace(",", "")) if found else 0


@pytest.mark.timeout(600)
def test_every_payment_has_one_effect_and_one_receipt(tmp_path: Path, kill_rounds: int) -> None:
    seed = os.environ.get("OTTLA_CRASH_SEED", "20")
    command = [sys.executable, str(DEMO), "--seconds", str(2 * kill_rounds), "--seed", seed, "--rate", "100"]
    with (tmp_path / "output").open("w+b") as output:
        done = subprocess.run([*command, "--keep", str(tmp_path / "run")], stdout=output, stderr=output, timeout=580)
    said = (tmp_path / "output").read_text()
    print(said)
    assert done.returncode == 0, said
    assert count(said, "workers killed") > 0
    assert count(said, "broker killed") > 0
    assert count(said, "transactions committed") > 0
    assert said.count("ok  ") == 11
