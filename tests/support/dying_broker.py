"""A broker that kills itself at the n-th write to a log: `dying_broker.py ORDERS python -m ottla_broker ...`.

It looks for the file ORDERS at every write. While that does not exist it is a broker like any other. The file says
`NUMBER before` or `NUMBER torn`: the process dies before the write with that number, counted from the file's
appearance on, or when half of the bytes are written. The logs that were written to since are in ORDERS.trace.

Nothing of this is in the broker. It is its own code, with one method wrapped.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from ottla_broker.log.segment import Segment


def watch(orders: Path) -> None:
    append = Segment.append
    writes = 0

    def watched(self: Any, data: Any, batches: Any) -> None:
        nonlocal writes
        if not orders.exists():
            writes = 0
            append(self, data, batches)
            return
        writes += 1
        number, how = orders.read_text().split()
        if writes == int(number):
            if how == "torn":
                self.log.append(memoryview(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, data, batches)
        with Path(f"{orders}.trace").open("a") as trace:
            trace.write(f"{self.folder.name}\n")

    Segment.append = watched  # type: ignore[method-assign]


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
    sys.argv = ["ottla_broker", *sys.argv[5:]]
    runpy.run_module("ottla_broker", run_name="__main__", alter_sys=True)
