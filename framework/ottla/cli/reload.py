"""`ottla run module:app --reload`: the application in a child process, and a new one whenever its files change.

An embedded broker belongs to this process, so its records are still there for the next child. Whether the application
wants one, a first child says: none of the application's code is ever imported here. So what is wrong with that code can
be mended, and is then seen like any other change.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ottla.embedded import EmbeddedKafka
from ottla.errors import ConfigError

STOP_TIMEOUT_SECONDS = 40.0
# With ".env" a file that has no other name is meant as well.
WATCHED_SUFFIXES = (".toml", ".env")


def run_reloading(target: str, *, workers: int, env_file: Path | None) -> None:
    """Run the application until SIGINT or SIGTERM, anew after each change of a file in the current folder.

    Raises:
        ConfigError: what watches files is not installed.
    """
    folder = Path.cwd()
    stop = threading.Event()
    with _stopped_by_signals(stop):
        changes = _changes(folder, stop)
        next(changes)  # from here on no change is missed
        say(f"watching {folder}")
        supervisor = _Supervisor(target, workers, env_file, stop)
        try:
            supervisor.start()
            for changed in changes:
                say(f"starting anew: {', '.join(sorted(changed))}")
                supervisor.stop_application()
                supervisor.start()
        finally:
            supervisor.close()


class _Supervisor:
    """Owns the application's process, and the broker if there is to be one."""

    def __init__(self, target: str, workers: int, env_file: Path | None, stop: threading.Event) -> None:
        self._target = target
        self._workers = workers
        self._env_file = env_file
        self._stop = stop
        self._environment = dict(os.environ)
        self._knows_broker = False
        self._broker: EmbeddedKafka | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the application, if its code can be loaded."""
        if not self._knows_broker and not self._start_broker():
            say("the application could not be loaded; waiting for a change")
            return
        command = [sys.executable, "-m", "ottla", "run", self._target, "--workers", str(self._workers)]
        if self._env_file is not None:
            command += ["--env-file", str(self._env_file)]
        self._child = child = subprocess.Popen(command, env=self._environment)
        threading.Thread(target=self._await_end, args=(child,), daemon=True).start()

    def _start_broker(self) -> bool:
        ask = "import sys; from ottla.cli.reload import answer; answer(*sys.argv[1:])"
        command = [sys.executable, "-c", ask, self._target, *([str(self._env_file)] if self._env_file else [])]
        asked = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        if asked.returncode != 0:
            return False  # its reason is on standard error
        wanted: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
        if wanted["servers"] is None:
            self._broker = EmbeddedKafka(data=wanted["data"], process=True).start()
            self._environment["OTTLA_BOOTSTRAP_SERVERS"] = self._broker.bootstrap_servers
        self._knows_broker = True
        return True

    def _await_end(self, child: subprocess.Popen[bytes]) -> None:
        code = child.wait()
        if self._child is child and not self._stop.is_set():
            say(f"the application ended by itself, exit code {code}; waiting for a change")

    def stop_application(self) -> None:
        """Let it stop cleanly; end it if it does not within 40 seconds."""
        child, self._child = self._child, None
        if child is None or child.poll() is not None:
            return
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            say(f"the application has not stopped after {STOP_TIMEOUT_SECONDS:g} s and is killed")
            child.kill()
            child.wait()

    def close(self) -> None:
        """Stop all."""
        self.stop_application()
        if self._broker is not None:
            self._broker.stop()


def _changes(folder: Path, stop: threading.Event) -> Iterator[set[str]]:
    """First an empty set, when watching has begun; then the files that have changed, until `stop` is set."""
    try:
        from watchfiles import PythonFilter, watch
    except ModuleNotFoundError:
        raise ConfigError("--reload needs the package watchfiles: pip install 'ottla[reload]'") from None

    watched = PythonFilter(extra_extensions=WATCHED_SUFFIXES)
    begun = False
    # The first round ends at once, after the watch is set up; the other ones look at `stop` four times a second.
    for changed in watch(folder, watch_filter=watched, stop_event=stop, rust_timeout=250, yield_on_timeout=True):
        if changed or not begun:
            begun = True
            yield {os.path.relpath(path, folder) for _, path in changed}


def answer(target: str, env_file: str | None = None) -> None:
    """In a child process: load the application and print what it wants of a broker."""
    from ottla.cli.run import load, load_environment

    try:
        load_environment(Path(env_file) if env_file else None)
        settings = load(target).settings
    except ConfigError as error:
        say(str(error))
        sys.exit(1)
    print(json.dumps({"servers": settings.bootstrap_servers, "data": str(settings.data) if settings.data else None}))


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    numbers: Iterable[signal.Signals] = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(text: str) -> None:
    """Tell the developer; on standard error, where logs go, too."""
    print(f"ottla: {text}", file=sys.stderr, flush=True)
