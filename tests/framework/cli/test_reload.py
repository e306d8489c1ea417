"""`ottla run --reload`, as a developer sees it: a real process, whose lines are waited for."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

PATIENCE_SECONDS = 60

APPLICATION = """
from ottla import Ottla

app = Ottla()

@app.on_started
def started() -> None:
    {body}
"""


class Reloading:
    """`ottla run shop:app --reload` in a folder, with both its outputs."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OTTLA_")}
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "ottla", "run", "shop:app", "--reload", *options],
            cwd=folder,
            env={**environment, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.seen: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def wait_for(self, text: str) -> str:
        while True:
            try:
                line = self._lines.get(timeout=PATIENCE_SECONDS)
            except queue.Empty:
                raise AssertionError(f"no line with {text!r} came; there were:\n{''.join(self.seen)}") from None
            self.seen.append(line)
            if text in line:
                return line

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)


def write(folder: Path, body: str) -> None:
    # In one step, as editors do it: a half-written file would be a change of its own.
    half = folder / "half-written"
    half.write_text(APPLICATION.format(body=body))
    half.replace(folder / "shop.py")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[list[Reloading]]:
    started: list[Reloading] = []
    yield started
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait(PATIENCE_SECONDS)
        assert one.process.stdout is not None
        one.process.stdout.close()


@pytest.mark.slow
def test_a_change_starts_the_application_anew_on_the_same_broker(tmp_path: Path, running: list[Reloading]) -> None:
    write(tmp_path, "print('stored at', app.template.send('orders', 'first').result(10).offset)")
    ottla = Reloading(tmp_path)
    running.append(ottla)
    ottla.wait_for("watching")
    ottla.wait_for("stored at 0")
    write(tmp_path, "print('then stored at', app.template.send('orders', 'second').result(10).offset)")
    assert "shop.py" in ottla.wait_for("starting anew")
    ottla.wait_for("then stored at 1")
    assert ottla.stop() == 0


@pytest.mark.slow
def test_what_cannot_be_loaded_waits_for_a_change(tmp_path: Path, running: list[Reloading]) -> None:
    (tmp_path / "shop.py").write_text("app = Otla(")
    ottla = Reloading(tmp_path)
    running.append(ottla)
    ottla.wait_for("SyntaxError")
    ottla.wait_for("waiting for a change")
    write(tmp_path, "print('mended')")
    ottla.wait_for("mended")
    write(tmp_path, "raise RuntimeError('broken again')")
    ottla.wait_for("broken again")
    ottla.wait_for("ended by itself")
    write(tmp_path, "print('mended again')")
    ottla.wait_for("mended again")
    assert ottla.stop() == 0


@pytest.mark.slow
def test_a_change_of_the_environment_file_counts(tmp_path: Path, running: list[Reloading]) -> None:
    (tmp_path / "local.env").write_text("COLOR=red\n")
    write(tmp_path, "import os; print('color', os.environ['COLOR'])")
    ottla = Reloading(tmp_path, "--env-file", "local.env")
    running.append(ottla)
    ottla.wait_for("color red")
    (tmp_path / "local.env").write_text("COLOR=blue\n")
    ottla.wait_for("color blue")
    assert ottla.stop() == 0


def test_without_its_package_reload_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['watchfiles'] = None; from ottla.cli.commands import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "shop:app", "--reload"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'ottla[reload]'" in done.stderr
