"""The shortest way of a record into its batch, in plain Python; a part of `_pure`.

Nothing here is locked: that a batch takes a record, or is closed, is one step of the batch itself. A batch that is
closed between the look and the step refuses the record.
"""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from ottla_wire.records._pure_hashing import partition_for_key

if TYPE_CHECKING:
    from ottla_wire.records._pure import BatchWriter
    from ottla_wire.records._pure_sending import SendFuture

_NOT_PLAIN: Final = object()
_MOST: Final = (1 << 63) - 1


class OpenBatches:
    """The open batches of one topic, one at most for each partition.

    `count` is how many partitions keys are spread over, `sticky` the partition of records without a key, -1 if none is
    chosen.
    """

    __slots__ = ("_writers", "count", "sticky")

    def __init__(self) -> None:
        self._writers: list[BatchWriter | None] = []
        self.count = 0
        self.sticky = -1

    def begin(self, partition: int, writer: BatchWriter) -> None:
        """A batch takes the records of a partition from now on."""
        if partition < 0:
            raise ValueError(f"there is no partition {partition}")
        while partition >= len(self._writers):
            self._writers.append(None)
        self._writers[partition] = writer

    def end(self, partition: int) -> None:
        """No batch does any more."""
        if 0 <= partition < len(self._writers):
            self._writers[partition] = None

    def writer_for(self, partition: int | None, key: bytes | None) -> BatchWriter | None:
        """Where a record goes, if a batch is open there; without a partition, the key or the sticky one decides."""
        if partition is None:
            if key is None:
                partition = self.sticky
            elif self.count > 0:
                partition = partition_for_key(key, self.count)
        if partition is not None and 0 <= partition < min(self.count, len(self._writers)):
            return self._writers[partition]
        return None


class OpenTopics:
    """The way into the open batches of all topics: time, partition, batch, bytes and future in one call, and no lock.

    `topics` is the producer's own table, which it changes as batches begin and end. The two methods return the record's
    future, or None: then nothing has happened, and the record has to go the way on which batches are begun.
    """

    __slots__ = ("topics",)

    def __init__(self, topics: dict[str, OpenBatches]) -> None:
        self.topics: Final = topics

    def send(
        self,
        topic: Any,
        value: Any = None,
        key: Any = None,
        partition: Any = None,
        timestamp_ms: Any = None,
        headers: Any = None,
    ) -> SendFuture | None:
        """Send what needs no serializer: key and value are bytes, text or None, and so are the values of headers."""
        return self.append(topic, value, key, headers, value, key, partition, timestamp_ms)

    def append(
        self,
        topic: Any,
        raw_value: Any,
        raw_key: Any,
        raw_headers: Any,
        original_value: Any = None,
        original_key: Any = None,
        partition: Any = None,
        timestamp_ms: Any = None,
    ) -> SendFuture | None:
        """Send what was serialized: key, value and headers are what goes into the batch."""
        value, key = _plain_bytes(raw_value), _plain_bytes(raw_key)
        if type(topic) is not str or value is _NOT_PLAIN or key is _NOT_PLAIN:
            return None
        if raw_headers is not None and not _are_plain_headers(raw_headers):
            return None
        if not (_is_plain_number(partition) and _is_plain_number(timestamp_ms)):
            return None
        batches = self.topics.get(topic)
        writer = None if batches is None else batches.writer_for(partition, key)
        if writer is None:
            return None
        time_ms = time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms
        return writer.append_send(
            time_ms, key, value, raw_headers, topic, original_value, original_key, partition, timestamp_ms
        )


def _plain_bytes(data: Any) -> Any:
    if type(data) is str:
        try:
            return data.encode()
        except UnicodeEncodeError:
            return _NOT_PLAIN
    return data if data is None or type(data) is bytes else _NOT_PLAIN


def _are_plain_headers(headers: Any) -> bool:
    if type(headers) not in (list, tuple):
        return False
    for header in headers:
        if type(header) is not tuple or len(header) != 2 or type(header[0]) is not str:
            return False
        if _NOT_PLAIN in (_plain_bytes(header[0]), _plain_bytes(header[1])):
            return False
    return True


def _is_plain_number(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value <= _MOST)
