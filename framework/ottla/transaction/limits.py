"""How long a transaction may be open: less than the coordinator allows."""

from __future__ import annotations

from ottla.errors import ConfigError


class TransactionLimits:
    """The coordinator's time-out for the producers of a factory, and what follows from it.

    Attributes:
        longest: seconds after which a transaction is aborted from here, so that its producer is not fenced by its own:
            a tenth before the time-out, and at least a third of it or five seconds, as an abort has to arrive in time.
    """

    def __init__(self, transaction_timeout_ms: int) -> None:
        self.transaction_timeout_ms = transaction_timeout_ms
        margin_ms = max(transaction_timeout_ms // 10, min(5_000, transaction_timeout_ms // 3))
        self.longest = (transaction_timeout_ms - margin_ms) / 1000

    def seconds(self, timeout: float | None) -> float:
        """The timeout of a transaction, checked.

        Raises:
            ConfigError: it is not positive, or too close to the coordinator's.
        """
        if timeout is None:
            return self.longest
        if timeout <= 0:
            raise ConfigError(f"a transaction's timeout is in seconds and positive, got {timeout!r}")
        if timeout > self.longest:
            raise ConfigError(
                f"a transaction's timeout of {timeout:g} s is too long: its coordinator aborts it after "
                f"transaction_timeout_ms ({self.transaction_timeout_ms}), so at most {self.longest:g} s are left; "
                "raise that setting of the producer"
            )
        return timeout
