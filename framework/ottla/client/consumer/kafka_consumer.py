"""KafkaConsumer and AsyncKafkaConsumer: two faces of one core. Each method is a line."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from ottla.client.config import ConsumerConfig, resolve
from ottla.client.consumer.core import CLOSE_SECONDS, ConsumerCore
from ottla.client.consumer.faces import AsyncFace, BlockingFace, run_blocking
from ottla.client.consumer.reset_policy import ResetPolicy
from ottla.client.consumer.shared import CommitCallback
from ottla.client.engine import Engine
from ottla.client.metadata import PartitionMetadata
from ottla.client.topic_partition import (
    ConsumerGroupMetadata,
    OffsetAndMetadata,
    OffsetAndTimestamp,
    TopicPartition,
)
from ottla_wire.records import ConsumerRecord

Partitions = Iterable[TopicPartition]
Offsets = Mapping[TopicPartition, OffsetAndMetadata]
ITERATION_SECONDS = 1.0


class _Consumer:
    """What both faces have in common: everything that does not wait."""

    _core: ConsumerCore

    @property
    def config(self) -> ConsumerConfig:
        """The settings, defaults included."""
        return self._core.config

    def subscribe(
        self,
        topics: Iterable[str] | str | None = None,
        *,
        pattern: str | re.Pattern[str] | None = None,
        listener: Any = None,
    ) -> None:
        """Read topics, or all topics whose whole name matches a pattern, as a member of the group.

        The group is joined inside `poll`, and there the listener (see `RebalanceListener`) is called.
        """
        self._core.subscribe(topics, pattern, listener)

    def assign(self, partitions: Partitions) -> None:
        """Read exactly these partitions, without a group distributing them; replaces an earlier assignment."""
        self._core.assign(partitions)

    def assignment(self) -> list[TopicPartition]:
        """The partitions that are read now, by assignment or as the group's share."""
        return self._core.assignment()

    def subscription(self) -> frozenset[str]:
        """The topics subscribed to; for a pattern those that it matches at the moment."""
        return self._core.subscription()

    def pause(self, partitions: Partitions) -> None:
        """Hand out no records of these partitions until `resume`; they are kept, and so are records already fetched."""
        self._core.pause(partitions, paused=True)

    def resume(self, partitions: Partitions) -> None:
        """Hand out records of these partitions again."""
        self._core.pause(partitions, paused=False)

    def paused(self) -> list[TopicPartition]:
        """The partitions that are paused."""
        return self._core.paused()

    def seek(self, partition: TopicPartition, offset: int | OffsetAndMetadata) -> None:
        """Go on reading at `offset`; one with a leader epoch is checked against truncation first (KIP-320)."""
        self._core.seek(partition, offset)

    def seek_to_beginning(self, partitions: Partitions = ()) -> None:
        """Go on reading at the start of these partitions (none named: of all), looked up when it is needed."""
        self._core.seek_to(partitions, ResetPolicy.EARLIEST)

    def seek_to_end(self, partitions: Partitions = ()) -> None:
        """Go on reading at the end of these partitions (none named: of all), looked up when it is needed."""
        self._core.seek_to(partitions, ResetPolicy.LATEST)

    def current_lag(self, partition: TopicPartition) -> int | None:
        """How many offsets the position is behind the end that may be read; None while that is not known."""
        return self._core.current_lag(partition)

    def commit_async(self, offsets: Offsets | None = None, callback: CommitCallback | None = None) -> None:
        """Begin to commit positions (or `offsets`) and go on; tried once.

        `callback(offsets, error)` is called inside a later `poll`, `commit` or `close`.
        """
        self._core.commit_async(offsets, callback)

    def read_past(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """Where reading has led to: past what `poll` returned, and past what it never returns.

        The latter are commit and abort markers and aborted transactions. A group whose committed offset stays before
        them has a lag although it has read everything. Partitions that were sought, and not read from since, are left
        out. Does not wait.
        """
        return self._core.read_past()

    def group_metadata(self) -> ConsumerGroupMetadata:
        """The membership under which records were read, for a producer's `send_offsets_to_transaction`.

        One that has been lost since is still named, so that the coordinator refuses the transaction.
        """
        return self._core.group_metadata()

    def enforce_rebalance(self, reason: str | None = None) -> None:
        """Have the group distribute its partitions anew with the next `poll`; brokers log the reason (KIP-800)."""
        self._core.enforce_rebalance(reason)

    def wakeup(self) -> None:
        """End the wait that is under way, or the next one, with `WakeupError`. From any thread."""
        self._core.wakeup()


class KafkaConsumer(_Consumer):
    """Reads records; for threads. Every method that waits for brokers blocks.

    Settings are those of `ConsumerConfig`: in a mapping with dotted or snake-case names, as keywords, or both.
    Deserializers are callables `(topic, headers, data)`; without one keys and values are bytes.
    One thread at a time may use a consumer; `wakeup` may come from any.

    Args:
        config: settings in a mapping.
        engine: the I/O thread to share with other clients; by default the consumer has its own.
        settings: settings as keywords.
    """

    def __init__(
        self, config: Mapping[str, Any] | None = None, /, *, engine: Engine | None = None, **settings: Any
    ) -> None:
        self._core = ConsumerCore(resolve(ConsumerConfig, config, settings), engine, BlockingFace())

    def poll(self, timeout: float = 1.0, max_records: int | None = None) -> list[ConsumerRecord]:
        """The next records, at most `max_poll_records` or `max_records`; waits up to `timeout` seconds for the first.

        Joins and rebalances the group, runs listeners and commit callbacks, and with auto-commit commits what earlier
        polls returned: so call it again only when those records are dealt with.

        Raises:
            WakeupError: `wakeup` was called.
            InvalidOffset: a partition has no position and no reset policy to find one.
            RecordCorrupt, DeserializationError: the next record cannot be read; seek past it.
            KafkaError: the group or a topic cannot be read.
        """
        return run_blocking(self._core.poll(timeout, max_records))

    def __iter__(self) -> Iterator[ConsumerRecord]:
        """Record after record until the consumer is closed; the position moves with each."""
        while not self._core.is_closed:
            for record in run_blocking(self._core.poll_unread(ITERATION_SECONDS)):
                if self._core.take_unread(record):
                    yield record

    def commit(self, offsets: Offsets | None = None, timeout: float | None = None) -> None:
        """Commit positions (or `offsets`), and wait until it is done.

        Raises:
            CommitFailed: the group has given the partitions to others.
            RebalanceInProgress: the group is rebalancing: poll, then commit what is still assigned.
        """
        run_blocking(self._core.commit(offsets, timeout))

    def committed(
        self, partitions: Partitions, timeout: float | None = None
    ) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """The group's committed offsets, None where there is none."""
        return run_blocking(self._core.committed(partitions, timeout))

    def position(self, partition: TopicPartition, timeout: float | None = None) -> int:
        """The offset of the next record that `poll` returns; looked up if it is not known yet."""
        return run_blocking(self._core.position(partition, timeout))

    def offsets_for_times(
        self, timestamps: Mapping[TopicPartition, int], timeout: float | None = None
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """For each partition the first record at or after a time in milliseconds; None if all are older."""
        return run_blocking(self._core.offsets_for_times(timestamps, timeout))

    def beginning_offsets(self, partitions: Partitions, timeout: float | None = None) -> dict[TopicPartition, int]:
        """The first offset of each partition."""
        return run_blocking(self._core.beginning_offsets(partitions, timeout))

    def end_offsets(self, partitions: Partitions, timeout: float | None = None) -> dict[TopicPartition, int]:
        """The offset after the last record that may be read (with read_committed: of finished transactions)."""
        return run_blocking(self._core.end_offsets(partitions, timeout))

    def partitions_for(self, topic: str, timeout: float | None = None) -> list[PartitionMetadata]:
        """The topic's partitions with their leaders and replicas; empty if there is no such topic."""
        return run_blocking(self._core.partitions_for(topic, timeout))

    def unsubscribe(self) -> None:
        """Leave the group and forget the assignment; the listener hears of it."""
        run_blocking(self._core.unsubscribe())

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Commit (with auto-commit), leave the group (unless a static member) and end, within `timeout` seconds."""
        run_blocking(self._core.close(timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncKafkaConsumer(_Consumer):
    """Reads records; for tasks of any event loop. Every method that waits for brokers is awaited.

    See `KafkaConsumer`; rebalance listeners and commit callbacks may be plain functions or coroutines.
    """

    def __init__(
        self, config: Mapping[str, Any] | None = None, /, *, engine: Engine | None = None, **settings: Any
    ) -> None:
        self._core = ConsumerCore(resolve(ConsumerConfig, config, settings), engine, AsyncFace())

    async def poll(self, timeout: float = 1.0, max_records: int | None = None) -> list[ConsumerRecord]:
        """See `KafkaConsumer.poll`."""
        return await self._core.poll(timeout, max_records)

    async def __aiter__(self) -> AsyncIterator[ConsumerRecord]:
        """Record after record until the consumer is closed; the position moves with each."""
        while not self._core.is_closed:
            for record in await self._core.poll_unread(ITERATION_SECONDS):
                if self._core.take_unread(record):
                    yield record

    async def commit(self, offsets: Offsets | None = None, timeout: float | None = None) -> None:
        """See `KafkaConsumer.commit`."""
        await self._core.commit(offsets, timeout)

    async def committed(
        self,
        partitions: Partitions,
        timeout: float | None = None,
    ) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """See `KafkaConsumer.committed`."""
        return await self._core.committed(partitions, timeout)

    async def position(self, partition: TopicPartition, timeout: float | None = None) -> int:
        """See `KafkaConsumer.position`."""
        return await self._core.position(partition, timeout)

    async def offsets_for_times(
        self,
        timestamps: Mapping[TopicPartition, int],
        timeout: float | None = None,
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """See `KafkaConsumer.offsets_for_times`."""
        return await self._core.offsets_for_times(timestamps, timeout)

    async def beginning_offsets(
        self,
        partitions: Partitions,
        timeout: float | None = None,
    ) -> dict[TopicPartition, int]:
        """See `KafkaConsumer.beginning_offsets`."""
        return await self._core.beginning_offsets(partitions, timeout)

    async def end_offsets(
        self,
        partitions: Partitions,
        timeout: float | None = None,
    ) -> dict[TopicPartition, int]:
        """See `KafkaConsumer.end_offsets`."""
        return await self._core.end_offsets(partitions, timeout)

    async def partitions_for(self, topic: str, timeout: float | None = None) -> list[PartitionMetadata]:
        """See `KafkaConsumer.partitions_for`."""
        return await self._core.partitions_for(topic, timeout)

    async def unsubscribe(self) -> None:
        """See `KafkaConsumer.unsubscribe`."""
        await self._core.unsubscribe()

    async def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """See `KafkaConsumer.close`."""
        await self._core.close(timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
