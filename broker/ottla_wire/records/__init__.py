"""Record batches: the bytes that producers send, brokers store and consumers read, and the futures of sends."""

from ottla_wire.records.batch import (
    HEADER_BYTES,
    NO_TIMESTAMP,
    RecordBatch,
    RecordBatchBuilder,
    build_batch,
    decode_batch,
    iter_batches,
)
from ottla_wire.records.compression import MAX_DECOMPRESSED_BYTES, compress, decompress
from ottla_wire.records.control import (
    ControlType,
    control_batch,
    control_type,
    coordinator_epoch,
    end_transaction_marker,
    record_type,
)
from ottla_wire.records.kernel import (
    ConsumerRecord,
    OpenBatches,
    OpenTopics,
    Record,
    crc32c,
    murmur2,
    native,
    partition_for_key,
)
from ottla_wire.records.model import Compression, TimestampType
from ottla_wire.records.sending import (
    ProducerRecord,
    RecordMetadata,
    SendError,
    SendFuture,
    SendResult,
    complete_batch,
    fail_futures,
    gather,
)

__all__ = [
    "HEADER_BYTES",
    "MAX_DECOMPRESSED_BYTES",
    "NO_TIMESTAMP",
    "Compression",
    "ConsumerRecord",
    "ControlType",
    "OpenBatches",
    "OpenTopics",
    "ProducerRecord",
    "Record",
    "RecordBatch",
    "RecordBatchBuilder",
    "RecordMetadata",
    "SendError",
    "SendFuture",
    "SendResult",
    "TimestampType",
    "build_batch",
    "complete_batch",
    "compress",
    "control_batch",
    "control_type",
    "coordinator_epoch",
    "crc32c",
    "decode_batch",
    "decompress",
    "end_transaction_marker",
    "fail_futures",
    "gather",
    "iter_batches",
    "murmur2",
    "native",
    "partition_for_key",
    "record_type",
]
