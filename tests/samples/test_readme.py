"""The README's code, run as its reader would run it."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def run_until(command: list[str], folder: Path, wanted: set[str], timeout: float = 30) -> tuple[set[str], int]:
    """Start a program, read its output until all wanted lines were seen, then stop it with SIGTERM."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    seen: set[str] = set()
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector, process.stdout:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not wanted <= seen and time.monotonic() < deadline and process.poll() is None:
            if selector.select(deadline - time.monotonic()):
                seen.add(process.stdout.readline().strip())
        process.send_signal(signal.SIGTERM)
        return seen, process.wait(timeout)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [[sys.executable, "shop.py"], [sys.executable, "-m", "ottla", "run", "shop:app"]],
    ids=["as a script", "under ottla run"],
)
def test_the_application_of_the_readme_prints_both_its_lines_and_stops_cleanly(
    readme: Path, command: list[str]
) -> None:
    wanted = {"stored at 0 0", "billed 1"}
    seen, code = run_until(command, readme, wanted)
    assert wanted <= seen
    assert code == 0


@pytest.mark.slow
def test_the_test_of_the_readme_passes(readme: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shop.py"],
        cwd=readme,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
