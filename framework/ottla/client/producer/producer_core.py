"""ProducerCore: what the producer's two faces share, which is everything but the form in which waiting is done.

The path of a record: `send` puts it into the open batch of its partition, in the caller's thread and in one native call
(`OpenTopics`), without a lock; where it needs a serializer, `_send_otherwise` makes bytes of it before. A record that
needs a batch, memory or metadata goes through the accumulator under its lock (`_send_slowly`), and wakes the `Sender`
on the engine's I/O thread if that has to look earlier than it would.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from time import time_ns
from typing import Any, Final

from ottla.client.backoff import Backoff
from ottla.client.config import ProducerConfig, resolve
from ottla.client.engine import Engine, monotonic_ms
from ottla.client.metadata import PartitionMetadata
from ottla.client.producer.flushing import Groups, Patience, await_all, wait_for_all
from ottla.client.producer.memory_gate import MemoryGate, Place, task_waiter, thread_waiter
from ottla.client.producer.producer_batch import BATCH_OVERHEAD_BYTES, record_size
from ottla.client.producer.record_accumulator import RecordAccumulator
from ottla.client.producer.sender_task import SenderTask
from ottla.client.producer.transaction_manager import TransactionManager
from ottla.client.producer.transaction_tables import TransactionState
from ottla.client.producer.transactions_face import TransactionMethods
from ottla.errors import (
    BufferExhausted,
    ClientClosed,
    IllegalTransactionState,
    MessageTooLarge,
    NoAnswer,
    SerializationError,
    TransactionEnded,
    UnknownTopicOrPartition,
)
from ottla.serialization import as_serializer, serialize_headers, serialize_key, serialize_value
from ottla.serialization.serializers import Headers, HeadersGiven, Serializer
from ottla_wire.records import OpenTopics, SendFuture, fail_futures

logger = logging.getLogger("ottla.producer")

_numbers: Final = itertools.count(1)

STOP_SECONDS: Final = 5.0


class ProducerCore(TransactionMethods):
    """A producer, whichever face it has. Its coroutines run on any loop; those the faces wrap, on the engine's."""

    def __init__(
        self, config: Mapping[str, Any] | None = None, /, *, engine: Engine | None = None, **settings: Any
    ) -> None:
        self.config = resolve(ProducerConfig, config, settings)
        self.client_id = self.config.client_id or f"ottla-producer-{next(_numbers)}"
        self._key_serializer = as_serializer(self.config.key_serializer, "key_serializer") or serialize_key
        self._value_serializer = as_serializer(self.config.value_serializer, "value_serializer") or serialize_value
        rng = random.Random()
        self._transactions: TransactionManager | None = None
        if self.config.idempotent:
            self._transactions = TransactionManager(
                Backoff(self.config.retry_backoff_ms, self.config.retry_backoff_max_ms, rng),
                max_in_flight=self.config.max_in_flight_requests_per_connection,
                transactional_id=self.config.transactional_id,
                transaction_timeout_ms=self.config.transaction_timeout_ms,
            )
        self._lock = threading.Lock()
        self._accumulator = RecordAccumulator(self.config, rng, self._transactions, self._lock)
        open_topics = OpenTopics(self._accumulator.open_topics)
        self._append = open_topics.append
        # Where the default serializers are in place, bytes and text need no call.
        plain = self._key_serializer is serialize_key and self._value_serializer is serialize_value
        self._append_plain = open_topics.send if plain else _refuse
        self._gate = MemoryGate()
        self._closed = False
        self._owns_engine = engine is None
        self._engine = engine if engine is not None else Engine(self.config, name=self.client_id)
        self._task: SenderTask | None = None
        self._start_lock = threading.Lock()

    @property
    def _core(self) -> ProducerCore:
        return self

    # --- sending

    def send(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: HeadersGiven | None = None,
    ) -> SendFuture:
        """Send a record; returns at once. Any thread, and any event loop, may call it.

        Args:
            topic: where to. With `auto.create.topics.enable` on the brokers it need not exist.
            value: bytes, text, a pydantic model, a dataclass or anything else that JSON holds; None is a tombstone.
            key: decides on the partition, if `partition` does not. None: any partition will do.
            partition: the partition, if it is not to be chosen.
            timestamp_ms: the record's time; now, if not given.
            headers: (name, value) pairs or a mapping; text is sent as UTF-8.

        Returns:
            A future that brings the record's place, or fails with a SendError. That is how every failure is told:
            serialization, an unknown topic, memory used up, brokers out of reach.

        Raises:
            ClientClosed: the producer is closed.
            TypeError: the topic is no text, or partition or timestamp no number.
            ValueError: the topic is empty, or partition or timestamp negative.
            NotInTransaction: the producer is transactional, and no transaction is open.
        """
        append = self._append_plain  # not called as a method: looking for one costs more than the attribute
        future = append(topic, value, key, partition, timestamp_ms, headers)
        if future is not None:
            return future
        return self._send_otherwise(topic, value, key, partition, timestamp_ms, headers)

    def _send_otherwise(
        self,
        topic: str,
        value: Any,
        key: Any,
        partition: int | None,
        timestamp_ms: int | None,
        headers: HeadersGiven | None,
    ) -> SendFuture:
        """What is not plain content for an open batch: it needs a serializer, or a batch."""
        try:
            raw_headers: Headers = [] if headers is None else serialize_headers(headers)
            raw_key = None if key is None else _bytes_of("key", self._key_serializer, topic, raw_headers, key)
            raw_value = None if value is None else _bytes_of("value", self._value_serializer, topic, raw_headers, value)
        except SerializationError as error:
            return self._failed(SendFuture(topic, value, key, partition, timestamp_ms, headers), error)
        future = self._append(topic, raw_value, raw_key, raw_headers or None, value, key, partition, timestamp_ms)
        if future is not None:
            return future
        return self._send_slowly(topic, value, key, partition, timestamp_ms, raw_key, raw_value, raw_headers or None)

    def _send_slowly(
        self,
        topic: str,
        value: Any,
        key: Any,
        partition: int | None,
        timestamp_ms: int | None,
        raw_key: bytes | None,
        raw_value: bytes | None,
        raw_headers: list[tuple[str, bytes | None]] | None,
    ) -> SendFuture:
        """Whatever is not "one more record into an open batch": begins batches, waits, explains."""
        topic = _checked(topic, partition, timestamp_ms)
        self._start()
        time_ms = time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms
        asked = (value, key, timestamp_ms)
        size = record_size(raw_key, raw_value, raw_headers) + BATCH_OVERHEAD_BYTES
        refusal: Exception | None = None
        if size > self.config.max_request_size:
            refusal = MessageTooLarge(
                f"the record for {topic!r} takes {size} bytes, above max_request_size ({self.config.max_request_size})"
            )
        elif size > self.config.buffer_memory:
            refusal = MessageTooLarge(
                f"the record for {topic!r} takes {size} bytes, above buffer_memory ({self.config.buffer_memory})"
            )
        elif self._transactions is not None and self._transactions.state is TransactionState.FATAL:
            refusal = self._transactions.error
        if refusal is not None:
            return self._failed(SendFuture(topic, value, key, partition, timestamp_ms, raw_headers), refusal)
        try:
            future = self._append_or_wait((topic, partition, time_ms, raw_key, raw_value, raw_headers, *asked))
        except (BufferExhausted, NoAnswer) as error:
            return self._failed(SendFuture(topic, value, key, partition, timestamp_ms, raw_headers), error)
        except (IllegalTransactionState, TransactionEnded):
            raise  # wrong use, as the two errors of `_checked` are
        except Exception as error:
            if self._closed:
                raise
            return self._failed(SendFuture(topic, value, key, partition, timestamp_ms, raw_headers), error)
        return future

    def _append_or_wait(self, record: tuple[Any, ...]) -> SendFuture:
        future = self._try_append(record, None)
        if future is not None:
            return future
        full = f"buffer_memory ({self.config.buffer_memory} bytes) is used up by records that are not acknowledged yet"
        if _in_event_loop():
            raise BufferExhausted(f"{full}; on an event loop send does not wait: `await room()` before sending again")
        deadline = time.monotonic() + self.config.max_block_ms / 1000
        wake, wait = thread_waiter()
        with self._lock:
            place = self._gate.join(wake)
            self._accumulator.memory_waiters += 1
        try:
            while True:
                self._wake()
                if not wait(max(0.0, deadline - time.monotonic())):
                    raise BufferExhausted(f"{full}; waited max_block_ms ({self.config.max_block_ms})")
                wake, wait = thread_waiter()
                with self._lock:
                    self._gate.wait_again(place, wake)
                future = self._try_append(record, place)
                if future is not None:
                    return future
        finally:
            with self._lock:
                self._accumulator.memory_waiters -= 1
                self._gate.leave(place)

    def _try_append(self, record: tuple[Any, ...], place: Place | None) -> SendFuture | None:
        accumulator = self._accumulator
        now_ms = monotonic_ms()
        with self._lock:
            if self._closed:
                raise ClientClosed("the producer is closed")
            refusal = self._transactions.check_send() if self._transactions is not None else None
            if refusal is not None:
                raise refusal
            if not self._gate.is_first(place):
                return None
            future = accumulator.append(now_ms, *record)
            wake = accumulator.wakes_sender(now_ms, self._task.next_look_ms if self._task is not None else 0)
            is_behind = accumulator.is_behind()
        if wake:
            self._wake()
        if is_behind and self._task is not None and not self._engine.is_io_thread:
            self._task.turn.offer(now_ms, self._task.wake)
        return future

    def _failed(self, future: SendFuture, error: BaseException | None) -> SendFuture:
        """A record that goes nowhere; it makes the transaction fail, if it is one of a transaction's."""
        assert error is not None
        if self._transactions is not None and self._transactions.transactional_id is not None:
            with self._lock:
                self._transactions.check_send()
                self._transactions.send_failed(error)
            self._wake()
        fail_futures([future], error)
        return future

    def _wake(self) -> None:
        task = self._task
        if task is not None:
            task.wake()

    # --- life

    def _start(self) -> SenderTask:
        if self._task is not None:
            return self._task
        with self._start_lock:
            if self._closed:
                raise ClientClosed("the producer is closed")
            if self._task is None:
                self._engine.start()
                task = SenderTask(
                    self._engine, self.config, self._accumulator, self._transactions, self.client_id, self._after_run
                )
                self._engine.post(task.start)
                self._engine.at_exit(self._at_exit)
                self._task = task
        return self._task

    def _after_run(self) -> None:
        """On the I/O loop, after the sender looked or an answer came: memory may be free for those who wait."""
        self._accumulator.futures_are_behind = False
        if self._gate.waiting:
            with self._lock:
                self._gate.call_first()

    def _at_exit(self) -> None:
        left_s = self.config.delivery_timeout_ms / 1000
        unfinished = self._unfinished()
        if unfinished:
            logger.info("at exit: waiting for %d records, %s s at most", sum(map(len, unfinished)), left_s)
        self._close_blocking(left_s)

    def _close_blocking(self, timeout: float | None) -> None:
        self._end_transaction_blocking(timeout)
        left = self._begin_close()
        if left is None:
            return
        if not self._engine.is_io_thread:  # there nobody could bring the answers: what is left fails
            wait_for_all(left, timeout)
        stop = self._last_step()
        if stop is not None and self._engine.is_io_thread:
            asyncio.get_running_loop().create_task(stop)
        elif stop is not None:
            self._engine.submit(stop).result(STOP_SECONDS)
        if self._owns_engine:
            self._engine.close()

    async def _close_async(self, timeout: float | None) -> None:
        await self._end_transaction_async(timeout)
        left = self._begin_close()
        if left is None:
            return
        await await_all(left, timeout)
        stop = self._last_step()
        if stop is not None:
            async with asyncio.timeout(STOP_SECONDS):
                await self._engine.call(stop)
        if self._owns_engine:
            await asyncio.to_thread(self._engine.close)

    async def close_async(self, timeout: float | None = None) -> None:
        """`close`, awaited, on any event loop and whatever the face."""
        await self._close_async(timeout)

    def _begin_close(self) -> Groups | None:
        with self._start_lock, self._lock:
            if self._closed:
                return None
            self._closed = True
            self._accumulator.close()
            self._gate.call_all()
        self._engine.forget_exit(self._at_exit)
        self._wake()
        return self._unfinished()

    def _last_step(self) -> Coroutine[Any, Any, None] | None:
        """What ends the sender, to be run on the I/O loop."""
        return None if self._task is None or self._engine.is_closed else self._task.stop()

    # --- what both faces offer under the same names

    def metrics(self) -> dict[str, float]:
        """What the producer has done, and what it holds: totals since it was made, and the present state."""
        with self._lock:
            figures: dict[str, float] = {
                "buffer_total_bytes": self.config.buffer_memory,
                "buffer_available_bytes": self._accumulator.free_bytes,
                "batches_unfinished": len(self._accumulator.incomplete),
                "records_waiting_for_metadata": self._accumulator.records_waiting,
                "waiting_senders": self._gate.waiting,
            }
        if self._task is not None:
            sender = self._task.sender
            counters = sender.counters
            figures["requests_in_flight"] = sender.requests_in_flight
            figures |= {name: getattr(counters, name) for name in counters.__slots__}
            figures["request_latency_average_ms"] = counters.request_latency_ms / max(1, counters.requests_sent)
            figures["records_per_request_average"] = counters.records_sent / max(1, counters.requests_sent)
        return figures

    async def room(self, timeout: float | None = None) -> None:
        """Wait, on any event loop, until `buffer_memory` has room for a batch again.

        Raises:
            BufferExhausted: that took longer than `timeout` seconds (`max_block_ms`, if not given).
            ClientClosed: the producer is closed.
        """
        need = min(self.config.batch_size, self.config.buffer_memory)
        limit = self.config.max_block_ms / 1000 if timeout is None else timeout
        with self._lock:
            if self._closed:
                raise ClientClosed("the producer is closed")
            if not self._gate.waiting and self._accumulator.free_bytes >= need:
                return
            wake, woken = task_waiter()
            place = self._gate.join(wake)
            self._accumulator.memory_waiters += 1
        try:
            async with asyncio.timeout(limit):
                while True:
                    self._wake()
                    await woken
                    with self._lock:
                        if self._closed:
                            raise ClientClosed("the producer is closed")
                        if self._accumulator.free_bytes >= need:
                            return
                        wake, woken = task_waiter()
                        self._gate.wait_again(place, wake)
        except TimeoutError:
            raise BufferExhausted(f"no room in buffer_memory within {limit} s: the brokers do not keep up") from None
        finally:
            with self._lock:
                self._accumulator.memory_waiters -= 1
                self._gate.leave(place)

    def _unfinished(self) -> Groups:
        with self._lock:
            return self._accumulator.unfinished()

    def _flush_blocking(self, timeout: float | None) -> None:
        patience = Patience(timeout, self.config.delivery_timeout_ms)
        with self._flushing() as (unfinished, calls_back):
            if not wait_for_all(unfinished, timeout):
                raise NoAnswer(f"flush: not everything was acknowledged within {timeout} s")
            if calls_back and not self._engine.is_io_thread and not _in_event_loop():
                patience.wait_in_thread(self._behind_callbacks())

    async def flush_async(self, timeout: float | None = None) -> None:
        """Send what waits at once, and await, on any loop, that everything sent before this call is done, well or not.

        The callbacks of what was sent have been called then, too.

        Raises:
            NoAnswer: it took longer than `timeout` seconds. Without one, `delivery_timeout_ms` ends the wait.
        """
        patience = Patience(timeout, self.config.delivery_timeout_ms)
        with self._flushing() as (unfinished, calls_back):
            if not await await_all(unfinished, timeout):
                raise NoAnswer(f"flush: not everything was acknowledged within {timeout} s")
            if calls_back:
                await patience.wait_in_loop(self._behind_callbacks())

    def _behind_callbacks(self) -> Future[None] | None:
        """Done when the I/O thread has called what it has to: it does so in the turn in which it makes futures done."""
        try:
            return self._engine.submit(_nothing())
        except ClientClosed:
            return None  # nobody calls any more

    @contextmanager
    def _flushing(self) -> Iterator[tuple[Groups, bool]]:
        """While this is open, nothing lingers; it gives the futures to wait for."""
        with self._lock:
            self._accumulator.flushes += 1
            unfinished = self._accumulator.unfinished()
            calls_back = bool(unfinished) or self._accumulator.futures_are_behind
        if unfinished:
            self._wake()
        try:
            yield unfinished, calls_back
        finally:
            with self._lock:
                self._accumulator.flushes -= 1

    async def find_partitions(self, topic: str) -> list[PartitionMetadata]:
        """The partitions of a topic, with leaders and replicas; asks the brokers if they are not known.

        Raises:
            UnknownTopicOrPartition: there is no such topic, after `max_block_ms` of asking.
            NoAnswer: no broker answered in time.
        """
        cluster = self._engine.cluster
        deadline_ms = cluster.now_ms() + self.config.max_block_ms
        while True:
            known = cluster.metadata.topic(topic)
            if known is not None:
                return list(known.partitions.values())
            error = cluster.metadata.topic_error(topic)
            left_ms = deadline_ms - cluster.now_ms()
            if error is not None and (left_ms <= 0 or not isinstance(error, UnknownTopicOrPartition)):
                raise error
            await cluster.refresh([topic], timeout_ms=max(1, left_ms), create=True)


def _bytes_of(what: str, serializer: Serializer, topic: str, headers: Headers, data: Any) -> bytes | None:
    try:
        raw = serializer(topic, headers, data)
    except Exception as error:  # whatever a user's serializer raises reaches the future
        raise SerializationError(f"the {what} for {topic!r} could not be serialized: {error}") from error
    if raw is None or type(raw) is bytes:
        return raw
    if isinstance(raw, (bytes, bytearray, memoryview)):  # a union would be made at each call
        return bytes(raw)
    raise SerializationError(f"the {what}_serializer for {topic!r} answered {type(raw).__name__} in place of bytes")


def _refuse(*_: Any) -> None:
    """What `_append_plain` is where even bytes go through a serializer."""


async def _nothing() -> None:
    pass


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _checked(topic: Any, partition: Any, timestamp_ms: Any) -> str:
    """Refuse wrong use of `send`, which is the caller's fault and not the record's."""
    if not isinstance(topic, str):
        raise TypeError(f"a topic is text, got {topic!r}")
    if not topic:
        raise ValueError("the topic's name is empty")
    if partition is not None and not isinstance(partition, int):
        raise TypeError(f"a partition is a number, got {partition!r}")
    if partition is not None and partition < 0:
        raise ValueError(f"a partition is not negative, got {partition}")
    if timestamp_ms is not None and not isinstance(timestamp_ms, int):
        raise TypeError(f"timestamp_ms is a whole number of milliseconds, got {timestamp_ms!r}")
    if timestamp_ms is not None and timestamp_ms < 0:
        raise ValueError(f"timestamp_ms is not negative, got {timestamp_ms}")
    return topic if type(topic) is str else str(topic)  # a StrEnum's member, for one
