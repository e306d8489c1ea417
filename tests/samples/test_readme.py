"""The README's code, run as its reader would run it."""

from __future__ import annotations

import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.apache_kafka import free_port

ROOT = Path(__file__).resolve().parents[2]
SHELL_BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def shell_lines() -> list[str]:
    """Every command of the README's shell blocks, without its comment."""
    blocks = SHELL_BLOCK.findall((ROOT / "README.md").read_text())
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def run_until(command: list[str], folder: Path, wanted: set[str], timeout: float = 30) -> tuple[set[str], int]:
    """Start a program, read its output until all wanted lines were seen, then stop it with SIGTERM."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    output = b""
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector, process.stdout:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not wanted <= (seen := set(output.decode().splitlines())) and time.monotonic() < deadline:
            if selector.select(deadline - time.monotonic()):
                chunk = os.read(process.stdout.fileno(), 4096)
                if not chunk:
                    break
                output += chunk
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
def test_the_transactions_of_the_readme_print_both_credits(readme: Path) -> None:
    wanted = {"credited 1", "credited 2"}
    seen, code = run_until([sys.executable, "transfers.py"], readme, wanted)
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


@pytest.mark.slow
@pytest.mark.parametrize("line", shell_lines())
def test_the_shell_lines_of_the_readme_do_what_they_say(readme: Path, line: str) -> None:
    program, *arguments = shlex.split(line)
    if program == "make":
        # The target is there; what it does has its own tests.
        done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        return
    assert program == "ottla", f"no test knows how to run {line!r}"
    port = free_port()
    words = [word.replace("9092", str(port)).replace("DIR", str(readme / "data")) for word in arguments]
    command = [sys.executable, "-m", "ottla", *words]
    wanted = {"run": {"billed 1"}, "broker": {f"ready localhost:{port}"}}.get(arguments[0])
    if wanted is None:
        assert subprocess.run(command, cwd=readme, capture_output=True, timeout=30, check=False).returncode == 0
        return
    seen, code = run_until(command, readme, wanted)
    assert wanted <= seen
    assert code == 0
