"""The machine's clocks."""

from __future__ import annotations

import time


class SystemClock:
    """The clock of a running broker; see `ottla_broker.broker.Clock`."""

    def now_ms(self) -> int:
        """Monotonic milliseconds."""
        return time.monotonic_ns() // 1_000_000

    def wall_ms(self) -> int:
        """Milliseconds since 1970."""
        return time.time_ns() // 1_000_000
