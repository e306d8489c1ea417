"""GroupConfig: the broker settings that the group coordinator follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ottla_broker.shell.config import BrokerConfig

_INT_MAX = 2**31 - 1


@dataclass(frozen=True)
class GroupConfig:
    """Kafka's settings in snake_case; defaults are Kafka 4.3's.

    `group_new_member_join_timeout_ms` is no setting of Kafka's, but a constant there too.
    """

    offsets_topic_num_partitions: int = 50
    offsets_retention_minutes: int = 7 * 24 * 60
    offsets_retention_check_interval_ms: int = 600_000
    offset_metadata_max_bytes: int = 4096
    group_initial_rebalance_delay_ms: int = 3_000
    group_min_session_timeout_ms: int = 6_000
    group_max_session_timeout_ms: int = 1_800_000
    group_max_size: int = _INT_MAX
    group_new_member_join_timeout_ms: int = 300_000

    @classmethod
    def of(cls, broker: BrokerConfig) -> GroupConfig:
        """The part of a broker's configuration that groups follow."""
        return cls(
            offsets_topic_num_partitions=broker.offsets_topic_num_partitions,
            offsets_retention_minutes=broker.offsets_retention_minutes,
            offsets_retention_check_interval_ms=broker.offsets_retention_check_interval_ms,
            offset_metadata_max_bytes=broker.offset_metadata_max_bytes,
            group_initial_rebalance_delay_ms=broker.group_initial_rebalance_delay_ms,
            group_min_session_timeout_ms=broker.group_min_session_timeout_ms,
            group_max_session_timeout_ms=broker.group_max_session_timeout_ms,
            group_max_size=broker.group_max_size,
        )
