"""A thousand seeds of transactions under trouble, in virtual time; what that is, `support/simulation` says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).resolve().parents[1] / "support"
SEEDS = int(os.environ.get("OTTLA_SIMULATION_SEEDS", "1000"))
PROCESSES = 2


def _simulation(*arguments: str) -> subprocess.Popen[str]:
    """The simulation has a process to itself: it bends the clock, and chance."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTTLA_")}
    environment |= {"PYTHONHASHSEED": "0", "PYTHONPATH": str(SUPPORT)}
    command = [sys.executable, "-m", "simulation", *arguments]
    return subprocess.Popen(
        command, env=environment, cwd=SUPPORT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def passes(seed: int) -> None:
    process = _simulation("--seed", str(seed))
    found = process.communicate(timeout=100)[0]
    assert process.returncode == 0, found


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.timeout(7200)
def test_no_aborted_read_no_torn_lost_or_hanging_transaction_exactly_one_output_for_each_input() -> None:
    share = -(-SEEDS // PROCESSES)
    running = [_simulation("--seeds", f"{first}-{min(first + share, SEEDS) - 1}") for first in range(0, SEEDS, share)]
    found = [process.communicate()[0] for process in running]

    assert all(process.returncode == 0 for process in running), "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [5553, 5868, 14688, 16164, 17638, 18302, 19614])
def test_what_a_killed_client_had_sent_arrives_before_the_end(seed: int) -> None:
    """Inputs that lay in a stalled connection of their sender: workers must be given the time to handle them."""
    passes(seed)


@pytest.mark.slow
def test_a_commit_of_version_1_that_arrives_late_does_not_end_the_next_transaction() -> None:
    """Sent on a stalled connection, asked for again on another, committed; then the first one arrives as well."""
    passes(15271)


def test_a_seed_is_the_same_every_time() -> None:
    """Or a red build could not be repeated: `python -m simulation --seed N --trace`, with tests/support on the path."""
    running = [_simulation("--seed", "7", "--trace") for _ in range(2)]
    first, second = (process.communicate(timeout=100)[0].splitlines() for process in running)

    assert first[-1] == second[-1]
    assert "committed" in first[-1]
