"""Chooses the twin: compiled `_native` where it was built, plain Python otherwise or with `OTTLA_PURE=1`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The two have one interface; type checkers read it where it is written in Python.
    from ottla_wire.records import _pure as twin

    native: bool
else:
    native = not os.environ.get("OTTLA_PURE")
    if native:
        try:
            from ottla_wire.records import _native as twin
        except ImportError:
            from ottla_wire.records import _pure as twin

            native = False
    else:
        from ottla_wire.records import _pure as twin

BatchHeader = twin.BatchHeader
BatchWriter = twin.BatchWriter
ConsumerRecord = twin.ConsumerRecord
OpenBatches = twin.OpenBatches
OpenTopics = twin.OpenTopics
Record = twin.Record
SendFuture = twin.SendFuture
SendResult = twin.SendResult
assemble = twin.assemble
complete_batch = twin.complete_batch
crc32c = twin.crc32c
decode_batches = twin.decode_batches
decode_consumer_records = twin.decode_consumer_records
decode_records = twin.decode_records
end_of_batches = twin.end_of_batches
fail_futures = twin.fail_futures
first_pending = twin.first_pending
murmur2 = twin.murmur2
new_buffer = twin.new_buffer
partition_for_key = twin.partition_for_key
scan = twin.scan
