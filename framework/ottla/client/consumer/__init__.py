"""KafkaConsumer: subscription and positions, fetching ahead, and the membership in a group."""

from __future__ import annotations

from ottla.client.consumer.kafka_consumer import AsyncKafkaConsumer, KafkaConsumer
from ottla.client.consumer.rebalance import RebalanceListener

__all__ = ["AsyncKafkaConsumer", "KafkaConsumer", "RebalanceListener"]
