"""The client below the framework: producer, consumer and admin client over one engine, each in two faces."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ottla.client.admin import AdminClient as AdminClient
    from ottla.client.admin import AsyncAdminClient as AsyncAdminClient
    from ottla.client.consumer import AsyncKafkaConsumer as AsyncKafkaConsumer
    from ottla.client.consumer import KafkaConsumer as KafkaConsumer
    from ottla.client.consumer import RebalanceListener as RebalanceListener
    from ottla.client.producer import AsyncKafkaProducer as AsyncKafkaProducer
    from ottla.client.producer import KafkaProducer as KafkaProducer
    from ottla.client.producer import TransactionState as TransactionState
    from ottla.client.topic_partition import ConsumerGroupMetadata as ConsumerGroupMetadata
    from ottla.client.topic_partition import OffsetAndMetadata as OffsetAndMetadata
    from ottla.client.topic_partition import OffsetAndTimestamp as OffsetAndTimestamp
    from ottla.client.topic_partition import TopicPartition as TopicPartition

_HOMES: Final = {
    "AdminClient": "ottla.client.admin",
    "AsyncAdminClient": "ottla.client.admin",
    "AsyncKafkaConsumer": "ottla.client.consumer",
    "KafkaConsumer": "ottla.client.consumer",
    "RebalanceListener": "ottla.client.consumer",
    "AsyncKafkaProducer": "ottla.client.producer",
    "KafkaProducer": "ottla.client.producer",
    "TransactionState": "ottla.client.producer",
    "ConsumerGroupMetadata": "ottla.client.topic_partition",
    "OffsetAndMetadata": "ottla.client.topic_partition",
    "OffsetAndTimestamp": "ottla.client.topic_partition",
    "TopicPartition": "ottla.client.topic_partition",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
