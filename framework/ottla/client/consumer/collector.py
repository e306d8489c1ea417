"""What has been fetched and not yet handed out, and how it is handed out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ottla.client.consumer.completed_fetch import CompletedFetch
from ottla.client.consumer.subscription_state import SubscriptionState
from ottla.client.topic_partition import TopicPartition
from ottla.errors import DeserializationError, OffsetsOutOfRange
from ottla_wire.errors import OffsetOutOfRange
from ottla_wire.records import ConsumerRecord

Deserialize = Callable[[str, Any, bytes], Any]
"""`(topic, headers, data) -> value`; not called where the data is None."""


class FetchBuffer:
    """Completed fetches in the order in which they came; whoever uses it holds the consumer's lock.

    Args:
        answer_bytes: what one answer has of a partition at most, unless a single batch is larger.
    """

    def __init__(self, answer_bytes: int) -> None:
        self._answer_bytes = answer_bytes
        self._fetches: deque[CompletedFetch] = deque()
        self._bytes: dict[TopicPartition, int] = {}

    def __len__(self) -> int:
        return len(self._fetches)

    def add(self, fetch: CompletedFetch) -> None:
        """A fetch answer came; it goes behind all that came before."""
        self._fetches.append(fetch)
        self._bytes[fetch.partition] = self._bytes.get(fetch.partition, 0) + fetch.remaining_bytes

    def bytes_of(self, partition: TopicPartition) -> int:
        """How many bytes of a partition wait to be handed out."""
        return self._bytes.get(partition, 0)

    def has_room(self, partition: TopicPartition) -> bool:
        """Whether more of a partition is to be fetched: beside one whole answer that waits, the next may come."""
        return self.bytes_of(partition) <= self._answer_bytes

    def failed_partitions(self) -> set[TopicPartition]:
        """Partitions whose last answer was an error that nobody has seen yet: fetching them again would be vain."""
        return {fetch.partition for fetch in self._fetches if fetch.error is not None}

    def consumed(self, partition: TopicPartition, count_bytes: int) -> None:
        """So many bytes of a partition are no longer waiting."""
        left = self._bytes.get(partition, 0) - count_bytes
        if left > 0:
            self._bytes[partition] = left
        else:
            self._bytes.pop(partition, None)

    def head(self, subscription: SubscriptionState) -> CompletedFetch | None:
        """The first fetch that may be handed out. Void ones are dropped on the way, paused ones stay where they are."""
        position = 0
        while position < len(self._fetches):
            fetch = self._fetches[position]
            state = subscription.current(fetch.partition, fetch.version)
            if state is None:
                self._drop(position)
            elif state.is_fetchable:
                return fetch
            else:
                position += 1
        return None

    def remove(self, fetch: CompletedFetch) -> None:
        """This fetch has nothing more to give."""
        if self._fetches and self._fetches[0] is fetch:
            self._drop(0)
        elif fetch in self._fetches:
            self._drop(self._fetches.index(fetch))

    def _drop(self, position: int) -> None:
        fetch = self._fetches[position]
        del self._fetches[position]
        self.consumed(fetch.partition, fetch.remaining_bytes)

    def drop_void(self, subscription: SubscriptionState) -> None:
        """Free the memory of what will never be handed out (after a seek or a rebalance)."""
        void = [fetch for fetch in self._fetches if subscription.current(fetch.partition, fetch.version) is None]
        for fetch in void:
            self.remove(fetch)

    def __iter__(self) -> Iterator[CompletedFetch]:
        return iter(self._fetches)


class Collector:
    """Takes records out of the buffer for `poll`. Runs in the polling thread; batches are decoded outside the lock."""

    def __init__(
        self,
        lock: threading.Lock,
        subscription: SubscriptionState,
        buffer: FetchBuffer,
        *,
        give_way: Callable[[], None],
        deserialize_key: Deserialize | None = None,
        deserialize_value: Deserialize | None = None,
    ) -> None:
        self._lock = lock
        self._subscription = subscription
        self._buffer = buffer
        self._give_way = give_way
        self._deserialize_key = deserialize_key
        self._deserialize_value = deserialize_value
        self._deserializes = deserialize_key is not None or deserialize_value is not None
        self.wants_fetch = False
        """Set when a partition has room for more; whoever wakes the fetcher clears it."""

    def collect(self, max_records: int) -> list[ConsumerRecord]:
        """Up to `max_records`; positions are moved past them. Errors are raised only while there is nothing to return.

        So an error in the middle of a partition costs none of the records before it: they are returned now, and the
        next call raises.
        """
        collected: list[ConsumerRecord] = []
        while len(collected) < max_records:
            with self._lock:
                fetch = self._buffer.head(self._subscription)
            if fetch is None or (fetch.error is not None and collected):
                break
            try:
                records = self._take(fetch, max_records - len(collected))
            except Exception:
                if collected:
                    break
                raise
            collected += records
        return collected

    def _take(self, fetch: CompletedFetch, max_records: int) -> list[ConsumerRecord]:
        if fetch.error is not None:
            self._fail(fetch)
            return []
        before = fetch.remaining_bytes
        records: list[ConsumerRecord] = []
        self._give_way()
        try:
            records = fetch.take(max_records)
            if self._deserializes and records:
                records = self._deserialized(fetch, records)
        finally:
            # an error too may come after batches that are skipped for good
            still_wanted = self._moved(fetch, before, bool(records))
        return records if still_wanted else []

    def _moved(self, fetch: CompletedFetch, bytes_before: int, has_records: bool) -> bool:
        """Move the position to where the fetch stands; False if a seek or a truncation check came in between."""
        partition = fetch.partition
        with self._lock:
            had_room = self._buffer.has_room(partition)
            self._buffer.consumed(partition, bytes_before - fetch.remaining_bytes)
            if fetch.exhausted:
                self._buffer.remove(fetch)
            if (self._buffer.has_room(partition) and not had_room) or fetch.exhausted:
                self.wants_fetch = True
            state = self._subscription.current(partition, fetch.version)
            if state is None:
                return False
            state.advance(*fetch.position)
            if has_records:
                state.sought = False
            return True

    def _fail(self, fetch: CompletedFetch) -> None:
        error = fetch.error
        assert error is not None
        with self._lock:
            self._buffer.remove(fetch)
            self.wants_fetch = True
            if isinstance(error, OffsetOutOfRange) and self._subscription.default_policy.kind != "none":
                self._subscription.request_reset(fetch.partition)
                return
        if isinstance(error, OffsetOutOfRange):
            raise OffsetsOutOfRange({fetch.partition: fetch.fetch_offset}) from error
        raise error

    def _deserialized(self, fetch: CompletedFetch, records: list[ConsumerRecord]) -> list[ConsumerRecord]:
        """The records up to the first that cannot be deserialized; raises if that is the first of all."""
        for index, record in enumerate(records):
            try:
                self._deserialize(record)
            except DeserializationError:
                fetch.give_back(len(records) - index)
                if index == 0:
                    raise
                return records[:index]
        return records

    def _deserialize(self, record: ConsumerRecord) -> None:
        part, key, value = "key", record.key, record.value
        try:
            if self._deserialize_key is not None and key is not None:
                key = self._deserialize_key(record.topic, record.headers, key)
            part = "value"
            if self._deserialize_value is not None and value is not None:
                value = self._deserialize_value(record.topic, record.headers, value)
        except Exception as error:
            raise DeserializationError(record, part, error) from error
        record.key, record.value = key, value
