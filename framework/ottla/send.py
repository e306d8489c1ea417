"""What a send returns and what comes of it: SendFuture, SendResult, and the record as its sender gave it."""

from __future__ import annotations

from ottla_wire.records.sending import (
    ProducerRecord,
    RecordMetadata,
    SendError,
    SendFuture,
    SendResult,
    gather,
)

__all__ = ["ProducerRecord", "RecordMetadata", "SendError", "SendFuture", "SendResult", "gather"]
