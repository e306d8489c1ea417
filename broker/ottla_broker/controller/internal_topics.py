"""How topics look that nobody described: the broker's own, and those created because somebody asked for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.controller.topic_names import OFFSETS_TOPIC, TRANSACTION_STATE_TOPIC
from ottla_wire.messages.create_topics import CreatableTopic, CreatableTopicConfig

if TYPE_CHECKING:
    from ottla_broker.shell.config import BrokerConfig


def undescribed_topic(name: str, config: BrokerConfig) -> CreatableTopic:
    """The topic that is created when `name` is needed and does not exist.

    Internal topics are compacted and have sizes of their own; `compression.type=producer` keeps coordinator batches as
    they are written.
    """
    if name == OFFSETS_TOPIC:
        return _internal(
            name,
            config.offsets_topic_num_partitions,
            config.offsets_topic_replication_factor,
            {
                "cleanup.policy": "compact",
                "compression.type": "producer",
                "segment.bytes": str(config.offsets_topic_segment_bytes),
            },
        )
    if name == TRANSACTION_STATE_TOPIC:
        return _internal(
            name,
            config.transaction_state_log_num_partitions,
            config.transaction_state_log_replication_factor,
            {
                "cleanup.policy": "compact",
                "compression.type": "uncompressed",
                "min.insync.replicas": str(config.transaction_state_log_min_isr),
                "segment.bytes": str(config.transaction_state_log_segment_bytes),
                "unclean.leader.election.enable": "false",
            },
        )
    return CreatableTopic(name=name, num_partitions=-1, replication_factor=-1, assignments=[], configs=[])


def _internal(name: str, partitions: int, replication_factor: int, configs: dict[str, str]) -> CreatableTopic:
    return CreatableTopic(
        name=name,
        num_partitions=partitions,
        replication_factor=replication_factor,
        assignments=[],
        configs=[CreatableTopicConfig(name=key, value=value) for key, value in configs.items()],
    )
