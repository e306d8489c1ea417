"""What carries out a listener loop's effects: a thread for plain functions, a task for async ones.

The two are the same list of effects, once blocking and once awaited; everything that is a decision is in the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from ottla.client import AsyncKafkaConsumer, KafkaConsumer, TopicPartition
from ottla.errors import CommitFailed, Fatal, KafkaError, RebalanceInProgress, Retriable, WakeupError
from ottla.listeners.ack import AckMode, Acknowledgment, AckTracker, Offsets
from ottla.listeners.binding import BoundListener, Delivery
from ottla.listeners.listener_loop import (
    Commit,
    CommitSoon,
    Deliver,
    DeliverBatch,
    Delivered,
    Effect,
    ListenerLoop,
    LoopControl,
    Pause,
    PauseAll,
    Poll,
    Recover,
    Request,
    Resume,
    ResumeAll,
)
from ottla_wire.records import ConsumerRecord

logger = logging.getLogger("ottla.listener")


class Driver:
    """What the two drivers share: the parts that do not wait."""

    def __init__(
        self,
        loop: ListenerLoop,
        control: LoopControl,
        listener: BoundListener,
        acks: AckTracker,
        recover: Callable[[ConsumerRecord, BaseException], Any],
        wakeup: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.control = control
        self.listener = listener
        self.acks = acks
        self.recover = recover
        self.wakeup = wakeup

    def _commit_done(self, _: Any, error: BaseException | None) -> None:
        """The client's callback of `commit_async`, inside a later poll."""
        try:
            outcome = None if error is None else commit_outcome(error)
        except BaseException as fatal:  # noqa: BLE001 - it ends the loop, not the client's poll
            self.loop.commit_failed(fatal)
        else:
            self.loop.committed(outcome)

    def _delivery(self, consumer: Any, records: list[ConsumerRecord]) -> Delivery:
        if not self.listener.takes_acknowledgment:
            return Delivery(consumer)
        # Acknowledged at once means: do not sit out the poll that is under way.
        woken = self.wakeup if self.acks.mode is AckMode.MANUAL_IMMEDIATE else _nothing
        return Delivery(consumer, Acknowledgment(self.acks, records, woken))


def _nothing() -> None:
    pass


def commit_outcome(error: BaseException) -> BaseException | None:
    """What a failed commit means: the error if it may be tried again, None if the group has moved on, else raised."""
    if isinstance(error, CommitFailed):
        logger.warning("offsets were not committed, their partitions have another owner: %s", error)
        return None
    if isinstance(error, Fatal):
        raise error
    if isinstance(error, (RebalanceInProgress, Retriable, TimeoutError)):
        return error
    raise error


class ThreadDriver(Driver):
    """Carries out effects by blocking, on the container's own thread."""

    def run(self, consumer: KafkaConsumer) -> None:
        """Drive the loop to its end."""
        effects = self.loop.run()
        outcome: Any = None
        try:
            while True:
                effect = effects.send(outcome)
                outcome = self._perform(effect, consumer)
        except StopIteration:
            return

    def _perform(self, effect: Effect, consumer: KafkaConsumer) -> Any:
        match effect:
            case Poll():
                try:
                    return consumer.poll(effect.timeout)
                except WakeupError:
                    return []
            case Deliver():
                return self._deliver(effect.records, consumer)
            case DeliverBatch():
                return self._deliver_batch(list(effect.records), consumer)
            case Commit():
                return self._commit(effect.offsets, consumer)
            case CommitSoon():
                consumer.commit_async(effect.offsets, self._commit_done)
            case Recover():
                return self._recover(effect.record, effect.error)
            case Request():
                effect.call(consumer)
            case _:
                _pause_or_resume(effect, consumer)
        return None

    def _deliver(self, records: Any, consumer: KafkaConsumer) -> Delivered:
        call, control = self.listener.call, self.control
        if self.listener.takes_acknowledgment:
            return self._deliver_acknowledged(records, consumer)
        delivery = Delivery(consumer)
        count = 0
        try:
            for record in records:
                if control.stop_immediately:
                    return Delivered(count, stopped=True)
                call(record, delivery)
                count += 1
        except Exception as error:  # noqa: BLE001 - a listener is the user's code; the error handler decides
            return Delivered(count, error)
        return Delivered(count)

    def _deliver_acknowledged(self, records: Any, consumer: KafkaConsumer) -> Delivered:
        for count, record in enumerate(records):
            if self.control.stop_immediately:
                return Delivered(count, stopped=True)
            delivery = self._delivery(consumer, [record])
            try:
                self.listener.call(record, delivery)
            except Exception as error:  # noqa: BLE001 - see above
                return Delivered(count, error)
            nacked = delivery.acknowledgment.nacked if delivery.acknowledgment else None
            if nacked is not None:
                return Delivered(count, nack_delay=nacked[1])
            if self.acks.mode is AckMode.MANUAL_IMMEDIATE and self.acks.is_due(0):
                offsets = self.acks.take(0)
                if self._commit(offsets, consumer) is not None:
                    self.acks.restore(offsets)
        return Delivered(len(records))

    def _deliver_batch(self, records: list[ConsumerRecord], consumer: KafkaConsumer) -> Delivered:
        delivery = self._delivery(consumer, records)
        try:
            self.listener.call(records, delivery)
        except Exception as error:  # noqa: BLE001 - see above
            return Delivered(0, error)
        return _batch_delivered(records, delivery)

    def _recover(self, record: ConsumerRecord, error: BaseException) -> BaseException | None:
        try:
            result = self.recover(record, error)
        except Exception as failure:  # noqa: BLE001 - a recoverer is the user's code
            return failure
        if hasattr(result, "__await__"):
            result.close()
            return TypeError("an async recoverer needs an async listener")
        return None

    def _commit(self, offsets: Offsets, consumer: KafkaConsumer) -> BaseException | None:
        while True:
            try:
                consumer.commit(offsets)
            except WakeupError:
                continue  # meant for a poll; a commit is done all the same, and each wake-up ends one call only
            except (KafkaError, TimeoutError) as error:
                return commit_outcome(error)
            return None

    # -- called by the client inside poll ------------------------------------------------------------------------------

    def on_partitions_assigned(self, consumer: KafkaConsumer, partitions: Iterable[TopicPartition]) -> None:
        """Partitions have come: those that are to stay paused are paused before the first record."""
        held_back = self.loop.to_pause(partitions)
        if held_back:
            consumer.pause(held_back)

    def on_partitions_revoked(self, consumer: KafkaConsumer, partitions: Iterable[TopicPartition]) -> None:
        """Partitions go: commit what has been processed of them."""
        offsets = self.loop.revoked(partitions)
        if offsets:
            self._commit(offsets, consumer)


class TaskDriver(Driver):
    """Carries out effects by awaiting, in a task on the application's loop."""

    async def run(self, consumer: AsyncKafkaConsumer) -> None:
        """Drive the loop to its end."""
        effects = self.loop.run()
        outcome: Any = None
        while True:
            try:
                effect = effects.send(outcome)
            except StopIteration:
                return
            outcome = await self._perform(effect, consumer)

    async def _perform(self, effect: Effect, consumer: AsyncKafkaConsumer) -> Any:
        match effect:
            case Poll():
                try:
                    return await consumer.poll(effect.timeout)
                except WakeupError:
                    return []
            case Deliver():
                return await self._deliver(effect.records, consumer)
            case DeliverBatch():
                return await self._deliver_batch(list(effect.records), consumer)
            case Commit():
                return await self._commit(effect.offsets, consumer)
            case CommitSoon():
                consumer.commit_async(effect.offsets, self._commit_done)
            case Recover():
                return await self._recover(effect.record, effect.error)
            case Request():
                result = effect.call(consumer)
                if hasattr(result, "__await__"):
                    await result
            case _:
                _pause_or_resume(effect, consumer)
        return None

    async def _deliver(self, records: Any, consumer: AsyncKafkaConsumer) -> Delivered:
        for count, record in enumerate(records):
            if self.control.stop_immediately:
                return Delivered(count, stopped=True)
            delivery = self._delivery(consumer, [record])
            try:
                await self.listener.call(record, delivery)
            except Exception as error:  # noqa: BLE001 - a listener is the user's code; the error handler decides
                return Delivered(count, error)
            nacked = delivery.acknowledgment.nacked if delivery.acknowledgment else None
            if nacked is not None:
                return Delivered(count, nack_delay=nacked[1])
            if self.acks.mode is AckMode.MANUAL_IMMEDIATE and self.acks.is_due(0):
                offsets = self.acks.take(0)
                if await self._commit(offsets, consumer) is not None:
                    self.acks.restore(offsets)
        return Delivered(len(records))

    async def _deliver_batch(self, records: list[ConsumerRecord], consumer: AsyncKafkaConsumer) -> Delivered:
        delivery = self._delivery(consumer, records)
        try:
            await self.listener.call(records, delivery)
        except Exception as error:  # noqa: BLE001 - see above
            return Delivered(0, error)
        return _batch_delivered(records, delivery)

    async def _recover(self, record: ConsumerRecord, error: BaseException) -> BaseException | None:
        try:
            result = self.recover(record, error)
            if hasattr(result, "__await__"):
                await result
        except Exception as failure:  # noqa: BLE001 - a recoverer is the user's code
            return failure
        return None

    async def _commit(self, offsets: Offsets, consumer: AsyncKafkaConsumer) -> BaseException | None:
        while True:
            try:
                await consumer.commit(offsets)
            except WakeupError:
                continue  # see above
            except (KafkaError, TimeoutError) as error:
                return commit_outcome(error)
            return None

    async def on_partitions_assigned(self, consumer: AsyncKafkaConsumer, partitions: Iterable[TopicPartition]) -> None:
        """Partitions have come: those that are to stay paused are paused before the first record."""
        held_back = self.loop.to_pause(partitions)
        if held_back:
            consumer.pause(held_back)

    async def on_partitions_revoked(self, consumer: AsyncKafkaConsumer, partitions: Iterable[TopicPartition]) -> None:
        """Partitions go: commit what has been processed of them."""
        offsets = self.loop.revoked(partitions)
        if offsets:
            await self._commit(offsets, consumer)


def _batch_delivered(records: list[ConsumerRecord], delivery: Delivery) -> Delivered:
    nacked = delivery.acknowledgment.nacked if delivery.acknowledgment else None
    if nacked is not None:
        return Delivered(nacked[0], nack_delay=nacked[1])
    return Delivered(len(records))


def _pause_or_resume(effect: Effect, consumer: Any) -> None:
    match effect:
        case Pause():
            consumer.pause(_assigned(effect.partitions, consumer.assignment()))
        case Resume():
            consumer.resume(_assigned(effect.partitions, consumer.assignment()))
        case PauseAll():
            consumer.pause(consumer.assignment())
        case ResumeAll():
            consumer.resume([p for p in consumer.assignment() if p not in effect.still_paused])
        case _:
            raise AssertionError(effect)


def _assigned(partitions: Iterable[TopicPartition], assignment: Iterable[TopicPartition]) -> list[TopicPartition]:
    # A pause or resume can be decided just as a rebalance takes the partition away: then there is nothing to do.
    owned = set(assignment)
    return [partition for partition in partitions if partition in owned]
