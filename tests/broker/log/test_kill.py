"""A process that appends is killed; what it said it had appended is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from log_batches import NOW, append, batch, open_log, read_all

from ottla_broker.log.config import LogConfig
from ottla_broker.log.files import OsFiles

WRITER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from log_batches import append, batch, open_log
from ottla_broker.log.config import LogConfig
from ottla_broker.log.files import OsFiles
log = open_log(OsFiles(), config=LogConfig(segment_bytes=20_000, index_interval_bytes=500), folder=Path(sys.argv[1]))
sequence = log.producers.get(5).last_sequence + 1 if log.producers.get(5) else 0
while True:
    info = append(log, batch(3, value=bytes(100), producer=(5, 0, sequence)))
    sequence += 3
    print(info.last_offset, flush=True)
"""


@pytest.mark.slow
@pytest.mark.crash
def test_what_was_appended_survives_the_death_of_the_process(tmp_path: Path) -> None:
    folder = tmp_path / "orders-0"
    acknowledged = -1
    for round_number in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), *sys.path], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(200 + 50 * round_number):
            acknowledged = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().splitlines()
        child.stdout.close()
        child.wait(30)
        whole = [line for line in rest if line.isdigit()]
        acknowledged = max(acknowledged, *map(int, whole[:-1]), -1)  # the last line may be cut off

        log = open_log(OsFiles(), config=LogConfig(segment_bytes=20_000, index_interval_bytes=500), folder=folder)
        stored = read_all(log)
        assert log.log_end_offset > acknowledged
        assert sum(found.count for found in stored) == log.log_end_offset
        assert log.producers.get(5).last_sequence == log.log_end_offset - 1
        last = stored[-1]
        again = append(log, batch(3, value=bytes(100), producer=(5, 0, last.base_sequence)), now_ms=NOW)
        assert (again.duplicate, again.first_offset) == (True, last.base_offset)
        log.abandon()
