"""The producer: see `kafka_producer` for its faces, and each module for one station of a record's path."""

from __future__ import annotations

from ottla.client.producer.kafka_producer import AsyncKafkaProducer, KafkaProducer
from ottla.client.producer.transaction_tables import TransactionState

__all__ = ["AsyncKafkaProducer", "KafkaProducer", "TransactionState"]
