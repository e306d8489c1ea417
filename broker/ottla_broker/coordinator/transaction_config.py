"""TransactionConfig: the broker settings that the transaction coordinator follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ottla_broker.shell.config import BrokerConfig


@dataclass(frozen=True)
class TransactionConfig:
    """Kafka's settings in snake_case; defaults are Kafka 4.3's.

    `marker_retry_backoff_ms` is no setting of Kafka's: how long a marker waits that a partition could not take.
    """

    transaction_state_log_num_partitions: int = 50
    transaction_max_timeout_ms: int = 900_000
    transactional_id_expiration_ms: int = 7 * 24 * 60 * 60 * 1000
    transaction_abort_timed_out_transaction_cleanup_interval_ms: int = 10_000
    transaction_remove_expired_transaction_cleanup_interval_ms: int = 3_600_000
    marker_retry_backoff_ms: int = 100

    @classmethod
    def of(cls, broker: BrokerConfig) -> TransactionConfig:
        """The part of a broker's configuration that transactions follow."""
        return cls(
            transaction_state_log_num_partitions=broker.transaction_state_log_num_partitions,
            transaction_max_timeout_ms=broker.transaction_max_timeout_ms,
            transactional_id_expiration_ms=broker.transactional_id_expiration_ms,
            transaction_abort_timed_out_transaction_cleanup_interval_ms=(
                broker.transaction_abort_timed_out_transaction_cleanup_interval_ms
            ),
            transaction_remove_expired_transaction_cleanup_interval_ms=(
                broker.transaction_remove_expired_transaction_cleanup_interval_ms
            ),
        )
