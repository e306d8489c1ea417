"""Our broker as other programs meet it: a process of its own, on a data folder that survives it."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

READY_SECONDS = 60


class BrokerProcess:
    """`python -m ottla_broker` on 127.0.0.1. After `kill` or `stop` it can be started again, on the same port.

    Args:
        data: the data folder, which stays.
        config: broker settings under Kafka's names.
        port: where it listens; at first any free port, then always the same.
        prefix: a command that runs the broker, such as `nsenter ...`.
    """

    def __init__(
        self, data: Path, config: Mapping[str, str] | None = None, *, port: int = 0, prefix: Sequence[str] = ()
    ) -> None:
        self.data = data
        self.port = port
        self._prefix = list(prefix)
        self._config = dict(config or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the object

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.launch()
        assert self._process is not None
        assert self._process.stdout is not None
        readable = select.select([self._process.stdout], [], [], READY_SECONDS)[0]
        line = self._process.stdout.readline().decode() if readable else ""
        if not line.startswith("ready "):
            self.kill()
            raise AssertionError(f"the broker did not become ready: {self.errors()}")
        self.port = self.port or int(line.strip().rpartition(":")[2])

    def launch(self) -> None:
        """Start it without waiting until it serves."""
        assert self._process is None, "it runs already"
        command = [sys.executable, "-m", "ottla_broker", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--data", str(self.data), "--log-level", "WARNING", "--stop-with-stdin"]
        for name, value in self._config.items():
            command += ["--config", f"{name}={value}"]
        self._process = subprocess.Popen(
            self._prefix + command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0
        )

    def kill(self) -> None:
        """`kill -9`: nothing is flushed, closed or said."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Stop it cleanly; returns its exit code."""
        return self._end(signal.SIGTERM)

    def ends(self) -> int:
        """Wait until it ends by itself; returns its exit code."""
        return self._end(None)

    def errors(self) -> str:
        """What it logged, of all its lives."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def __enter__(self) -> BrokerProcess:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self.stop()
        self.forget()

    def forget(self) -> None:
        """The end of it: if it still runs it is killed."""
        if self._process is not None:
            self.kill()
        self._errors.close()

    def _end(self, number: int | None) -> int:
        process, self._process = self._process, None
        assert process is not None, "it does not run"
        if number is not None:
            process.send_signal(number)
        try:
            return process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
            raise AssertionError(f"the broker did not stop within 30 s: {self.errors()}") from None
        finally:
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
