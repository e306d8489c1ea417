"""How often and how long apart a failed record is delivered again. The strategies are tenacity's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tenacity import RetryCallState, stop_after_attempt, wait_exponential, wait_fixed, wait_random


@dataclass(frozen=True, slots=True)
class Retry:
    """A retry policy out of tenacity's `wait_*` and `stop_*` strategies.

    By default as in Spring: ten deliveries in all, one right after the other.
    """

    wait: Any = field(default_factory=lambda: wait_fixed(0))
    stop: Any = field(default_factory=lambda: stop_after_attempt(10))

    @classmethod
    def fixed(cls, seconds: float, *, attempts: int = 10) -> Retry:
        """`attempts` deliveries in all, `seconds` apart (Spring: FixedBackOff)."""
        return cls(wait_fixed(seconds), stop_after_attempt(attempts))

    @classmethod
    def exponential(
        cls, initial: float = 0.1, maximum: float = 30.0, *, jitter: float = 0.1, attempts: int = 10
    ) -> Retry:
        """`attempts` deliveries in all; the pause doubles from `initial` to `maximum` seconds, plus up to `jitter`."""
        wait = wait_exponential(multiplier=initial, max=maximum) + wait_random(0, jitter)
        return cls(wait, stop_after_attempt(attempts))

    @classmethod
    def never(cls) -> Retry:
        """One delivery."""
        return cls(wait_fixed(0), stop_after_attempt(1))

    def next_delay(self, attempt: int, error: BaseException) -> float | None:
        """Seconds until the next delivery after `attempt` failed ones (1 and up), or None when there is to be none."""
        # The strategies look at the state of a call; they have no other input, and never at the caller.
        state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
        state.attempt_number = attempt
        state.set_exception((type(error), error, error.__traceback__))
        if self.stop(state):
            return None
        return float(self.wait(state))
