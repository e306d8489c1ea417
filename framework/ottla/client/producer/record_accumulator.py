"""RecordAccumulator: a deque of batches per partition, between the threads that send and the one that talks to brokers.

Theory of operation. `append` puts a record into the open batch of its partition, or begins a new batch, for which it
takes memory out of `buffer_memory`. `ready` says which brokers have a partition with something to send: a batch that is
full or has lingered, a retry whose pause is over, or anything at all while somebody flushes, waits for memory, or
closes. `drain` takes the first batch of each of a broker's partitions, up to `max_request_size`, and begins the next
time with those it did not get to. A batch that has to go out again is put back at the front, in sequence order.

A record whose topic is not known yet waits in its topic's own queue, inside `buffer_memory`, until `update_topic`.

Sans-I/O, and without locks of its own: every method is called with `lock` held, which whoever builds the accumulator
chooses. Nothing here finishes a future, because callbacks may send: what is to be finished is returned.

Senders append to open batches without the lock and without asking (`open_topics`), at any moment. So a batch is closed
before its size or its number of records is relied on; a closed batch refuses what comes later, and that comes to
`append`. It also means that stopping the senders is closing all open batches: `end_batches`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from ottla.client.backoff import JITTER
from ottla.client.config import ProducerConfig
from ottla.client.metadata import NO_LEADER, TopicMetadata
from ottla.client.producer.partitioner import StickyPartition, choose, partition_for_key
from ottla.client.producer.producer_batch import BATCH_OVERHEAD_BYTES, ProducerBatch, record_size
from ottla.client.producer.transaction_manager import TransactionManager
from ottla.client.topic_partition import TopicPartition
from ottla_wire.records import Compression, OpenBatches, RecordBatchBuilder, SendFuture
from ottla_wire.schema import Uuid

NEVER_MS: Final = 1 << 62

Headers = list[tuple[str, bytes | None]]
T = TypeVar("T")


class WaitingRecord(NamedTuple):
    """A record whose partition cannot be known yet."""

    future: SendFuture
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers | None
    partition: int | None
    size_bytes: int
    deadline_ms: int


class PartitionQueue:
    """The batches of one partition, oldest first. The last one may be open."""

    __slots__ = ("batches", "index", "key", "leader", "leader_epoch", "muted", "open", "topic")

    def __init__(self, topic: TopicQueues, index: int) -> None:
        self.topic = topic
        self.index = index
        self.key = TopicPartition(topic.name, index)
        self.batches: deque[ProducerBatch] = deque()
        self.open: ProducerBatch | None = None
        self.leader = NO_LEADER
        self.leader_epoch = -1
        self.muted = False

    def __repr__(self) -> str:
        return f"{self.topic.name}-{self.index}"


class TopicQueues:
    """All partitions of a topic, as far as they are known, and the records that wait until they are."""

    __slots__ = (
        "available",
        "count",
        "last_used_ms",
        "name",
        "open_batches",
        "queues",
        "sticky",
        "sticky_queue",
        "topic_id",
        "waiting",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.topic_id = Uuid.ZERO
        self.count = 0
        self.queues: list[PartitionQueue] = []
        self.available: list[int] = []
        self.sticky = StickyPartition()
        self.sticky_queue: PartitionQueue | None = None
        self.open_batches = OpenBatches()
        self.waiting: deque[WaitingRecord] = deque()
        self.last_used_ms = 0


@dataclass(slots=True)
class Ready:
    """Whom something can be sent to now, when to look again, and which topics have a partition without known leader."""

    nodes: set[int] = field(default_factory=set)
    look_again_ms: int = NEVER_MS
    leaderless: set[str] = field(default_factory=set)


class RecordAccumulator:
    """The records of one producer that are not yet acknowledged.

    Args:
        config: sizes and times.
        rng: for the choice of partitions.
        transactions: decides which batch may leave, and numbers it; None for a producer that is not idempotent.
        lock: what callers hold around every call.
    """

    def __init__(
        self,
        config: ProducerConfig,
        rng: random.Random,
        transactions: TransactionManager | None = None,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.lock: AbstractContextManager[Any] = lock if lock is not None else nullcontext()
        self.topics: dict[str, TopicQueues] = {}
        self.open_topics: dict[str, OpenBatches] = {}  # those whose records only need an open batch: see `_look_open`
        self.free_bytes = config.buffer_memory
        self.incomplete: dict[ProducerBatch, None] = {}
        self.memory_waiters = 0
        self.flushes = 0
        self.futures_are_behind = False  # batches are done whose futures, and their callbacks, the I/O thread has to do
        self.is_closed = False
        self.records_waiting = 0
        self._config = config
        self._rng = rng
        self._transactions = transactions
        self._is_transactional = transactions is not None and transactions.transactional_id is not None
        self._batch_bytes = max(1, min(config.batch_size, config.max_request_size))
        self._linger_ms = min(config.linger_ms, config.delivery_timeout_ms)
        self._one_at_a_time = config.max_in_flight_requests_per_connection == 1
        self._is_behind = False
        self._compression = Compression[config.compression_type.upper()]
        self._level = _level(config)
        self._due_ms = NEVER_MS  # when the first of what was appended since `wakes_sender` is due
        self._active: dict[PartitionQueue, None] = {}  # queues that hold batches, in the order of their turn
        self._node_ready_ms: dict[int, int] = {}  # since when a node could not be sent what was ready for it

    # --- appending

    def append(
        self,
        now_ms: int,
        topic: str,
        partition: int | None,
        timestamp_ms: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
        original_value: Any,
        original_key: Any,
        original_timestamp_ms: int | None,
    ) -> SendFuture | None:
        """Take a record in; None if `buffer_memory` has no room for it.

        Raises:
            Exception: whatever the user's own partitioner raises.
        """
        queues = self.topics.get(topic)
        if queues is None:
            queues = self.topics[topic] = TopicQueues(topic)
        record = (
            timestamp_ms,
            key,
            value,
            headers,
            topic,
            original_value,
            original_key,
            partition,
            original_timestamp_ms,
        )
        queues.last_used_ms = now_ms
        if not queues.count or (partition is not None and partition >= queues.count):
            return self._wait(now_ms, queues, record)
        queue, future = self._append(queues, partition, key, value, lambda batch: batch.builder.append_send(*record))
        if future is not None:
            return future
        need = max(self._config.batch_size, record_size(key, value, headers) + BATCH_OVERHEAD_BYTES)
        if need > self.free_bytes:
            return None
        return self._open_batch(queue, now_ms, need).builder.append_send(*record)

    def _append(
        self,
        queues: TopicQueues,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        append: Callable[[ProducerBatch], T | None],
    ) -> tuple[PartitionQueue, T | None]:
        """Try the open batch of the record's partition; returns the partition, for which a batch may have to be begun.

        A batch that has no room for this record is ended, so that no smaller record that comes later overtakes it.
        """
        partition = self._partition(queues, partition, key, value)
        queue = queues.queues[partition] if partition is not None else queues.sticky_queue
        if queue is not None:
            appended = self._append_to_open(queue, append)
            if appended is not None or partition is not None or not queues.sticky.is_due(self._batch_bytes):
                return queue, appended
        queue = self._next_sticky(queues)
        return queue, self._append_to_open(queue, append)

    def _append_to_open(self, queue: PartitionQueue, append: Callable[[ProducerBatch], T | None]) -> T | None:
        if queue.open is None:
            return None
        appended = append(queue.open)
        if appended is None:
            self._end_batch(queue, was_full=True)
        return appended

    def _partition(
        self, queues: TopicQueues, partition: int | None, key: bytes | None, value: bytes | None
    ) -> int | None:
        """The partition that the sender, the user's partitioner or the key asks for; None: any will do."""
        if partition is not None:
            return partition
        if self._config.partitioner_class is not None:
            chosen = self._config.partitioner_class(queues.name, key, value, queues.count)
            if not isinstance(chosen, int) or not 0 <= chosen < queues.count:
                raise ValueError(
                    f"the partitioner answered {chosen!r} for {queues.name}, which has {queues.count} partitions"
                )
            return chosen
        if key is not None and not self._config.partitioner_ignore_keys:
            return partition_for_key(key, queues.count)
        return None

    def _next_sticky(self, queues: TopicQueues) -> PartitionQueue:
        candidates: Sequence[int] = queues.available or range(queues.count)
        lengths = None
        if queues.available and self._config.partitioner_adaptive_partitioning_enable:
            candidates = self._within_availability(queues) or queues.available
            lengths = [len(queues.queues[index].batches) for index in candidates]
        queue = queues.queues[choose(candidates, lengths, self._rng)]
        queues.sticky.stick_to(queue.index)
        queues.sticky_queue = queue
        queues.open_batches.sticky = queue.index
        return queue

    def _within_availability(self, queues: TopicQueues) -> list[int]:
        """The partitions whose leader takes what is sent to it (partitioner.availability.timeout.ms)."""
        patience_ms = self._config.partitioner_availability_timeout_ms
        if patience_ms <= 0 or not self._node_ready_ms:
            return queues.available
        newest_ms = queues.last_used_ms
        slow = {node for node, since_ms in self._node_ready_ms.items() if newest_ms - since_ms > patience_ms}
        return [index for index in queues.available if queues.queues[index].leader not in slow]

    def _open_batch(self, queue: PartitionQueue, now_ms: int, memory_bytes: int) -> ProducerBatch:
        assert queue.open is None
        builder = RecordBatchBuilder(self._batch_bytes, compression=self._compression, level=self._level)
        batch = ProducerBatch(queue, builder, now_ms, memory_bytes)
        batch.is_transactional = self._is_transactional
        self.free_bytes -= memory_bytes
        self.incomplete[batch] = None
        queue.batches.append(batch)
        queue.open = batch
        self._due_ms = min(self._due_ms, int(now_ms + self._linger_ms) if len(queue.batches) == 1 else now_ms)
        self._active[queue] = None
        if len(queue.batches) > 1:
            self._is_behind = True
        queue.topic.open_batches.begin(queue.index, builder)
        if self._transactions is not None and self._transactions.uses(queue.key, now_ms):
            self._due_ms = now_ms
        return batch

    def _end_batch(self, queue: PartitionQueue, *, was_full: bool) -> None:
        batch = queue.open
        assert batch is not None
        batch.builder.close()  # from here on its size and count stand
        queue.open = None
        queue.topic.open_batches.end(queue.index)
        if queue.topic.sticky_queue is queue:
            queue.topic.sticky.batch_ended(batch.size_bytes, was_full=was_full, batch_size=self._batch_bytes)

    # --- topics that are not known yet

    def _wait(self, now_ms: int, queues: TopicQueues, record: tuple[Any, ...]) -> SendFuture | None:
        timestamp_ms, key, value, headers, topic, original_value, original_key, partition, original_timestamp_ms = (
            record
        )
        size = record_size(key, value, headers)
        if size > self.free_bytes:
            return None
        self.free_bytes -= size
        future = SendFuture(topic, original_value, original_key, partition, original_timestamp_ms, headers)
        deadline_ms = now_ms + min(self._config.max_block_ms, self._config.delivery_timeout_ms)
        queues.waiting.append(WaitingRecord(future, timestamp_ms, key, value, headers, partition, size, deadline_ms))
        self.records_waiting += 1
        self._due_ms = now_ms
        return future

    def update_topic(self, topic: TopicMetadata, now_ms: int) -> list[tuple[SendFuture, Exception]]:
        """Metadata of a topic has come: take over its leaders, and place the records that waited for it.

        Returns:
            What could not be placed, because the user's partitioner failed.
        """
        queues = self.topics.get(topic.name)
        if queues is None or not topic.partitions:
            return []
        queues.topic_id = topic.topic_id
        count = max(topic.partitions) + 1
        for index in range(len(queues.queues), count):
            queues.queues.append(PartitionQueue(queues, index))
        queues.count = queues.open_batches.count = count
        for queue in queues.queues:
            known = topic.partitions.get(queue.index)
            queue.leader = NO_LEADER if known is None else known.leader
            queue.leader_epoch = -1 if known is None else known.leader_epoch
        queues.available = [queue.index for queue in queues.queues[:count] if queue.leader != NO_LEADER]
        if queues.sticky_queue is not None and queues.sticky_queue.index >= count:
            queues.sticky_queue = None
            queues.open_batches.sticky = -1
        failed = self._place_waiting(queues, now_ms) if queues.waiting else []
        self._look_open(queues)
        return failed

    def _look_open(self, queues: TopicQueues) -> None:
        """Whether senders may append to a topic's open batches without asking: it is known, and nothing is special.

        What they do then is one step of `append`: take the open batch by key or the sticky one, and append to it.
        """
        own = self._config.partitioner_ignore_keys or self._config.partitioner_class is not None
        if queues.count and not own and not self.is_closed:
            self.open_topics[queues.name] = queues.open_batches
        else:
            self.open_topics.pop(queues.name, None)

    def _place_waiting(self, queues: TopicQueues, now_ms: int) -> list[tuple[SendFuture, Exception]]:
        waiting, queues.waiting = queues.waiting, deque()
        failed: list[tuple[SendFuture, Exception]] = []
        for record in waiting:
            if record.partition is not None and record.partition >= queues.count:
                queues.waiting.append(record)  # its partition may still come
                continue
            self.free_bytes += record.size_bytes
            self.records_waiting -= 1
            try:
                self._place(queues, record, now_ms)
            except Exception as error:  # noqa: BLE001 - the user's own partitioner; returned, not swallowed
                failed.append((record.future, error))
        return failed

    def _place(self, queues: TopicQueues, record: WaitingRecord, now_ms: int) -> None:
        content = (record.future, record.timestamp_ms, record.key, record.value, record.headers)

        def append(batch: ProducerBatch) -> bool | None:
            return batch.builder.append_future(*content) or None

        queue, appended = self._append(queues, record.partition, record.key, record.value, append)
        if not appended:
            # Nobody can wait for memory here: a few batches may go beyond buffer_memory.
            need = max(self._config.batch_size, record.size_bytes + BATCH_OVERHEAD_BYTES)
            append(self._open_batch(queue, now_ms, need))

    def take_waiting(self, topic: str) -> list[SendFuture]:
        """The records that wait for a topic, taken out: it cannot be sent to."""
        queues = self.topics.get(topic)
        if queues is None:
            return []
        taken = list(queues.waiting)
        queues.waiting.clear()
        return self._forget_waiting(taken)

    def expired_waiting(self, now_ms: int) -> list[tuple[str, list[SendFuture]]]:
        """The records that have waited too long for metadata of their topic, taken out."""
        expired = []
        for queues in self.topics.values():
            taken = []
            while queues.waiting and queues.waiting[0].deadline_ms <= now_ms:
                taken.append(queues.waiting.popleft())
            if taken:
                expired.append((queues.name, self._forget_waiting(taken)))
        return expired

    def _forget_waiting(self, taken: Iterable[WaitingRecord]) -> list[SendFuture]:
        futures = []
        for record in taken:
            self.free_bytes += record.size_bytes
            self.records_waiting -= 1
            futures.append(record.future)
        return futures

    def topics_waited_for(self) -> list[str]:
        """The topics whose metadata records wait for."""
        return [queues.name for queues in self.topics.values() if queues.waiting]

    def forget_idle_topics(self, now_ms: int) -> list[str]:
        """Drop topics that nothing was sent to for `metadata_max_idle_ms`; returns their names."""
        oldest_ms = now_ms - self._config.metadata_max_idle_ms
        idle = [
            queues.name
            for queues in self.topics.values()
            if queues.last_used_ms < oldest_ms and not queues.waiting and self._is_empty(queues)
        ]
        for name in idle:
            del self.topics[name]
            self.open_topics.pop(name, None)
        return idle

    def _is_empty(self, queues: TopicQueues) -> bool:
        return not any(queue.batches for queue in queues.queues) and not any(
            batch.queue.topic is queues for batch in self.incomplete
        )

    # --- sending

    def ready(self, now_ms: int) -> Ready:
        """Which nodes have something to be sent now."""
        result = Ready()
        hurry = self.flushes > 0 or self.memory_waiters > 0 or self.is_closed
        if self._transactions is not None and self._transactions.is_ending:
            hurry = True
        for queues in self.topics.values():
            if queues.waiting:
                result.look_again_ms = min(result.look_again_ms, queues.waiting[0].deadline_ms)
        for queue in self._active:
            head = queue.batches[0]
            expiry_ms = head.created_ms + self._config.delivery_timeout_ms
            result.look_again_ms = min(result.look_again_ms, expiry_ms)
            if queue.leader == NO_LEADER:
                result.leaderless.add(queue.topic.name)
                continue
            if queue.muted:
                continue
            at_ms = self._sendable_at_ms(queue, head, hurry)
            if at_ms > now_ms:
                result.look_again_ms = min(result.look_again_ms, at_ms)
            elif self._may_leave(queue, head):
                result.nodes.add(queue.leader)
        return result

    def _sendable_at_ms(self, queue: PartitionQueue, head: ProducerBatch, hurry: bool) -> int:
        """From when on the first batch of a queue should leave, other things permitting."""
        if head.attempts > 0:
            if queue.leader_epoch > head.leader_epoch >= 0:
                return 0  # another leader: what it refused or lost says nothing about this one
            return head.last_attempt_ms + self._pause_ms(head)
        if hurry or len(queue.batches) > 1 or head is not queue.open or head.builder.is_full:
            return 0
        return int(head.created_ms + self._linger_ms)

    def _pause_ms(self, batch: ProducerBatch) -> int:
        if batch.pause_ms is not None:
            return batch.pause_ms
        # The same jitter each time it is asked: a pause that changes while one waits for it has no end to wait for.
        doubled: int = self._config.retry_backoff_ms << min(batch.attempts - 1, 30)
        return int(min(doubled, self._config.retry_backoff_max_ms) * batch.jitter)

    def _may_leave(self, queue: PartitionQueue, batch: ProducerBatch) -> bool:
        return self._transactions is None or self._transactions.may_send(queue.key, batch)

    def drain(self, node_id: int, now_ms: int) -> list[ProducerBatch]:
        """Take the first batch of each of a node's partitions, as many as fit into one request."""
        drained: list[ProducerBatch] = []
        size = 0
        for queue in list(self._active):
            if queue.leader != node_id or queue.muted:
                continue
            batch = queue.batches[0]
            if batch.attempts > 0 and self._sendable_at_ms(queue, batch, hurry=False) > now_ms:
                continue
            if not self._may_leave(queue, batch):
                continue
            if queue.open is batch:
                self._end_batch(queue, was_full=batch.builder.is_full)
            if drained and size + batch.size_bytes > self._config.max_request_size:
                break
            size += batch.size_bytes
            self._take(queue, batch, now_ms)
            drained.append(batch)
        self._node_ready_ms.pop(node_id, None)
        return drained

    def _take(self, queue: PartitionQueue, batch: ProducerBatch, now_ms: int) -> None:
        queue.batches.popleft()
        del self._active[queue]
        if queue.batches:
            self._active[queue] = None  # to the end: its turn is over
        if self._transactions is not None and not batch.has_sequence:
            self._transactions.number(queue.key, batch)
        queue.muted = self._one_at_a_time
        batch.on_wire = True
        batch.attempts += 1
        batch.last_attempt_ms = now_ms
        batch.leader_epoch = queue.leader_epoch

    def node_not_ready(self, node_id: int, now_ms: int) -> None:
        """Something is ready for a node, which cannot be sent to at the moment."""
        self._node_ready_ms.setdefault(node_id, now_ms)

    # --- what came of it

    def put_back(self, batch: ProducerBatch, now_ms: int, pause_ms: int | None = None) -> None:
        """A batch has to be sent again: to the front, in the order of sequences, and after its pause.

        `pause_ms` takes the place of the pause that grows with every attempt.
        """
        batch.on_wire = False
        batch.pause_ms = pause_ms
        batch.last_attempt_ms = now_ms
        batch.jitter = 1 - JITTER + 2 * JITTER * self._rng.random()
        self._insert(batch)

    def split(self, batch: ProducerBatch) -> list[ProducerBatch]:
        """Replace a batch that is too large by smaller ones, at the front of its queue; the big one is released."""
        target = min(self._batch_bytes, batch.size_bytes // 2)
        parts = batch.split(target, self._compression, self._level)
        if self._transactions is not None and batch.has_sequence:
            state = self._transactions.sequences.of(batch.queue.key)
            assert state is not None
            state.replace(batch, parts)
        batch.on_wire = False
        batch.is_done = True
        self.release(batch)
        for part in parts:
            part.attempts = 0  # the next attempt needs no pause, and a split is none of the retries that are counted
            self.free_bytes -= part.memory_bytes
            self.incomplete[part] = None
        for part in reversed(parts):
            self._insert(part)
        return parts

    def _insert(self, batch: ProducerBatch) -> None:
        queue = batch.queue
        position = 0
        if self._transactions is not None and batch.has_sequence:
            state = self._transactions.sequences.of(queue.key)
            assert state is not None
            before = state.in_flight[: state.in_flight.index(batch)]
            while position < len(queue.batches) and queue.batches[position] in before:
                position += 1
        queue.batches.insert(position, batch)
        if queue not in self._active:
            self._active[queue] = None

    def expired(self, now_ms: int) -> list[ProducerBatch]:
        """The batches whose time is up and which are not on the wire, taken out of their queues."""
        taken: list[ProducerBatch] = []
        for queue in list(self._active):
            while queue.batches and queue.batches[0].created_ms + self._config.delivery_timeout_ms <= now_ms:
                taken.append(self._drop_head(queue))
        return taken

    def take_all_queued(self) -> list[ProducerBatch]:
        """Every batch that is not on the wire, taken out of its queue: the producer is given up."""
        taken: list[ProducerBatch] = []
        for queue in list(self._active):
            while queue.batches:
                taken.append(self._drop_head(queue))
        return taken

    def _drop_head(self, queue: PartitionQueue) -> ProducerBatch:
        batch = queue.batches.popleft()
        if queue.open is batch:
            self._end_batch(queue, was_full=False)
        if not queue.batches:
            del self._active[queue]
        return batch

    def release(self, batch: ProducerBatch) -> None:
        """All of a batch's futures are done (or about to be) and nobody uses its bytes: its memory is free again.

        A batch that is still on the wire keeps its memory until its request has ended: the request's bytes are in it.
        """
        self.futures_are_behind = True
        if batch.is_done and not batch.on_wire:
            self.free_bytes += batch.memory_bytes
            batch.memory_bytes = 0
            self.incomplete.pop(batch, None)

    def wakes_sender(self, now_ms: int, next_look_ms: int) -> bool:
        """Whether what was appended since the last call is due before the sender's next look."""
        due_ms, self._due_ms = self._due_ms, NEVER_MS
        if self.flushes or self.memory_waiters:
            due_ms = min(due_ms, now_ms)
        return due_ms < next_look_ms

    def is_behind(self) -> bool:
        """Whether, since the last call, a batch began while another of its partition waited: see `turn`."""
        behind, self._is_behind = self._is_behind, False
        return behind

    def end_batches(self) -> None:
        """Open batches take no more records: what comes later comes to `append`.

        This is how a transactional producer has no send outside of a transaction, without a question for each record:
        what was appended before this call is in a batch that is closed now, and belongs to the transaction.
        """
        for queue in self._active:
            if queue.open is not None:
                self._end_batch(queue, was_full=False)

    def close(self) -> None:
        """Take no more records: open batches end, everything is ready."""
        self.is_closed = True
        self.open_topics.clear()
        self.end_batches()

    def unfinished(self) -> list[Sequence[SendFuture]]:
        """The futures of all records that are under way now, for a flush to wait for: batch by batch, oldest first.

        A batch that is open may get more until it is closed, which it is soon while somebody flushes.
        """
        groups: list[Sequence[SendFuture]] = [batch.futures for batch in self.incomplete]
        waiting = [[record.future for record in queues.waiting] for queues in self.topics.values() if queues.waiting]
        return groups + waiting

    @property
    def has_unsent(self) -> bool:
        """Whether anything waits in a queue."""
        return bool(self._active) or self.records_waiting > 0

    @property
    def has_unfinished(self) -> bool:
        """Whether anything waits in a queue, is on the wire, or is not done."""
        return bool(self.incomplete) or self.records_waiting > 0


def _level(config: ProducerConfig) -> int | None:
    if config.compression_type in ("none", "snappy"):
        return None
    level: int = getattr(config, f"compression_{config.compression_type}_level")
    return level
