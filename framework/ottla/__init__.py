"""Ottla: Spring-style messaging with transactions, on its own Kafka-compatible broker.

Names are imported when they are first used (PEP 562), so that `import ottla` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ottla.app import Ottla
    from ottla.client import OffsetAndMetadata, TopicPartition
    from ottla.consumer_factory import ConsumerFactory
    from ottla.error_handling import BatchListenerFailed, ErrorHandler, Retry, log_and_skip, stop_container
    from ottla.listeners.ack import AckMode, Acknowledgment
    from ottla.listeners.class_listener import handler
    from ottla.listeners.container import ConcurrentMessageListenerContainer, ContainerProperties, ContainerState
    from ottla.listeners.endpoint import listener
    from ottla.listeners.group_positions import AssignmentCommit
    from ottla.listeners.interceptors import BatchInterceptor, RecordInterceptor
    from ottla.listeners.message import Depends, Header, Key, Message, Payload, RecordMetadata
    from ottla.listeners.transactional import Transactional
    from ottla.producer_factory import ProducerFactory
    from ottla.send import ProducerRecord, SendFuture, SendResult, gather
    from ottla.template import KafkaTemplate
    from ottla.transaction.blocks import Propagation, transactional
    from ottla.transaction.context import current_transaction
    from ottla.transaction.manager import KafkaTransactionManager
    from ottla.transaction.transaction import Transaction
    from ottla_wire.records import ConsumerRecord

__all__ = [
    # the application
    "Ottla",
    "handler",
    "listener",
    # sending
    "KafkaTemplate",
    "ProducerFactory",
    "ProducerRecord",
    "SendFuture",
    "SendResult",
    "gather",
    # transactions
    "KafkaTransactionManager",
    "Propagation",
    "Transaction",
    "Transactional",
    "current_transaction",
    "transactional",
    # listening
    "AckMode",
    "Acknowledgment",
    "AssignmentCommit",
    "BatchInterceptor",
    "ConcurrentMessageListenerContainer",
    "ConsumerFactory",
    "ConsumerRecord",
    "ContainerProperties",
    "ContainerState",
    "Depends",
    "Header",
    "Key",
    "Message",
    "Payload",
    "RecordInterceptor",
    "RecordMetadata",
    # errors in listeners
    "BatchListenerFailed",
    "ErrorHandler",
    "Retry",
    "log_and_skip",
    "stop_container",
    # places
    "OffsetAndMetadata",
    "TopicPartition",
]

_HOMES = {
    "ottla.app": ("Ottla",),
    "ottla.client": ("OffsetAndMetadata", "TopicPartition"),
    "ottla.consumer_factory": ("ConsumerFactory",),
    "ottla.error_handling": ("BatchListenerFailed", "ErrorHandler", "Retry", "log_and_skip", "stop_container"),
    "ottla.listeners.ack": ("AckMode", "Acknowledgment"),
    "ottla.listeners.class_listener": ("handler",),
    "ottla.listeners.container": ("ConcurrentMessageListenerContainer", "ContainerProperties", "ContainerState"),
    "ottla.listeners.endpoint": ("listener",),
    "ottla.listeners.group_positions": ("AssignmentCommit",),
    "ottla.listeners.interceptors": ("BatchInterceptor", "RecordInterceptor"),
    "ottla.listeners.message": ("Depends", "Header", "Key", "Message", "Payload", "RecordMetadata"),
    "ottla.listeners.transactional": ("Transactional",),
    "ottla.producer_factory": ("ProducerFactory",),
    "ottla.send": ("ProducerRecord", "SendFuture", "SendResult", "gather"),
    "ottla.template": ("KafkaTemplate",),
    "ottla.transaction.blocks": ("Propagation", "transactional"),
    "ottla.transaction.context": ("current_transaction",),
    "ottla.transaction.manager": ("KafkaTransactionManager",),
    "ottla.transaction.transaction": ("Transaction",),
    "ottla_wire.records": ("ConsumerRecord",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'ottla' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
