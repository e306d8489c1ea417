"""What carries out a listener loop's effects: on a thread for plain functions, in a task for async ones.

Written once, as coroutines, like the client's core: around a plain listener and a KafkaConsumer everything blocks in
its place, so nothing awaited ever suspends and a thread runs the coroutine to its end in one step (`run_blocking`);
around an async listener and an AsyncKafkaConsumer the same awaits are real ones. All decisions are the loop's.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from ottla.client import AsyncKafkaConsumer, KafkaConsumer, TopicPartition
from ottla.error_handling import BatchListenerFailed
from ottla.errors import CommitFailed, Fatal, KafkaError, RebalanceInProgress, Retriable, WakeupError
from ottla.events import (
    ConsumerEvent,
    ConsumerPausedEvent,
    ConsumerResumedEvent,
    EventSource,
)
from ottla.listeners.ack import AckMode, Acknowledgment, AckTracker, Offsets
from ottla.listeners.binding import BoundListener, Delivery
from ottla.listeners.conversion import UnfitRecord
from ottla.listeners.effects import (
    Commit,
    CommitSoon,
    Deliver,
    DeliverBatch,
    Delivered,
    Effect,
    Pause,
    PauseAll,
    Perform,
    Poll,
    Recover,
    Request,
    Resume,
    ResumeAll,
)
from ottla.listeners.idle_events import IdleEvents
from ottla.listeners.invocation import Invocation
from ottla.listeners.listener_loop import ListenerLoop, LoopControl
from ottla.send import SendFuture
from ottla.transaction.sides import AWAITING, BLOCKING, Side
from ottla_wire.records import ConsumerRecord

logger = logging.getLogger("ottla.listener")


class Driver:
    """Drives one loop with one consumer, whose face is that of the listener."""

    def __init__(
        self,
        loop: ListenerLoop,
        control: LoopControl,
        listener: BoundListener,
        acks: AckTracker,
        recover: Callable[[ConsumerRecord, BaseException], Any],
        consumer: KafkaConsumer | AsyncKafkaConsumer,
        invocation: Invocation | None = None,
        events: EventSource | None = None,
        idle: IdleEvents | None = None,
    ) -> None:
        self.loop = loop
        self.control = control
        self.listener = listener
        self.acks = acks
        self.recover = recover
        self.consumer = consumer
        self._invocation = invocation or Invocation(listener)
        self._is_fast = self._invocation.is_plain and not listener.takes_acknowledgment
        self._events = events
        self._idle = idle
        self._is_polling = False
        self._side: Side = AWAITING if listener.is_async else BLOCKING

    async def run(self) -> None:
        """Drive the loop to its end."""
        effects = self.loop.run()
        outcome: Any = None
        try:
            while True:
                try:
                    effect = effects.send(outcome)
                except StopIteration:
                    return
                outcome = await self._perform(effect)
        finally:
            effects.close()  # an interrupt, or a client that failed: what is half done is let go now

    async def _perform(self, effect: Effect) -> Any:
        match effect:
            case Poll():
                return await self._poll(effect.timeout)
            case Deliver():
                if self._is_fast:
                    return await self._deliver(effect.records)
                return await self._deliver_surrounded(effect.records)
            case DeliverBatch():
                return await self._deliver_batch(effect.records)
            case Commit():
                return await self._commit(effect.offsets)
            case CommitSoon():
                self.consumer.commit_async(effect.offsets, self._commit_done)
            case Recover():
                return await self._recover(effect.record, effect.error)
            case Perform():
                return await effect.call(self.consumer, self._side)
            case Request():
                await settled(effect.call(self.consumer))
            case _:
                self._pause_or_resume(effect)
        return None

    # -- polling and committing ----------------------------------------------------------------------------------------

    async def _poll(self, timeout: float) -> Sequence[ConsumerRecord]:
        # First the flag, then a look at what is acknowledged: who acknowledges later sees the flag and wakes the poll.
        self._is_polling = True
        try:
            timeout = self.loop.work.poll_timeout(timeout)
            if self._idle is not None:
                timeout = min(timeout, self._idle.seconds_left())
            records: list[ConsumerRecord] = await settled(self.consumer.poll(timeout, **self.loop.work.poll_limit()))
        except WakeupError:
            records = []
        finally:
            self._is_polling = False
        if self._idle is not None:
            self._idle.polled(records, self.consumer.assignment(), self.loop, self.control)
        return records

    def _acknowledged(self) -> None:
        """Something was acknowledged, on whatever thread: if it counts at once, do not sit out the poll under way."""
        if self._is_polling and self.acks.mode is AckMode.MANUAL_IMMEDIATE:
            self.consumer.wakeup()

    async def _commit(self, offsets: Offsets) -> BaseException | None:
        while True:
            try:
                await settled(self.consumer.commit(offsets))
            except WakeupError:
                continue  # meant for a poll; a commit is done all the same, and each wake-up ends one call only
            except (KafkaError, TimeoutError) as error:
                return commit_outcome(error)
            return None

    def _commit_done(self, _: Any, error: BaseException | None) -> None:
        """The client's callback of `commit_async`, inside a later poll."""
        try:
            outcome = None if error is None else commit_outcome(error)
        except BaseException as fatal:  # noqa: BLE001 - it ends the loop, not the client's poll
            self.loop.work.commit_failed(fatal)
        else:
            self.loop.work.committed(outcome)

    # -- calling the application ---------------------------------------------------------------------------------------

    async def _deliver(self, records: Sequence[ConsumerRecord]) -> Delivered:
        # The path of nearly every record: nothing is looked up or made in this loop that can be outside of it.
        call, control, is_async = self.listener.call, self.control, self.listener.is_async
        delivery = Delivery(self.consumer)
        count = 0
        try:
            for record in records:
                if control.stop_immediately:
                    return Delivered(count, stopped=True)
                result = call(record, delivery)
                if is_async:
                    await result
                count += 1
        except Exception as error:  # noqa: BLE001 - a listener is the user's code; the error handler decides
            return Delivered(count, error)
        return Delivered(count)

    async def _deliver_surrounded(self, records: Sequence[ConsumerRecord]) -> Delivered:
        replies: list[tuple[int, SendFuture]] = []
        outcome = Delivered(len(records))
        for count, record in enumerate(records):
            if self.control.stop_immediately:
                outcome = Delivered(count, stopped=True)
                break
            delivery = self._new_delivery([record])
            try:
                sent = await self._invocation.call(record, delivery)
            except Exception as error:  # noqa: BLE001 - see above
                outcome = Delivered(count, error)
                break
            replies += [(count, future) for future in sent]
            if delivery.acknowledgment is not None and delivery.acknowledgment.nacked is not None:
                outcome = Delivered(count, nack_delay=delivery.acknowledgment.nacked[1])
                break
        return await self._once_replied(outcome, replies)

    async def _once_replied(self, outcome: Delivered, replies: Sequence[tuple[int, SendFuture]]) -> Delivered:
        """The outcome, when the replies are stored; of a record whose reply is not, that is the failure."""
        if not self._invocation.waits_for_replies:
            return outcome
        for count, future in replies:
            try:
                # It ends by itself, at the latest after `delivery_timeout_ms`.
                await future if self.listener.is_async else future.result()
            except Exception as error:  # noqa: BLE001 - as if the listener had waited for it
                return Delivered(count, error)
        return outcome

    def _new_delivery(self, records: Sequence[ConsumerRecord]) -> Delivery:
        if not self.listener.takes_acknowledgment:
            return Delivery(self.consumer)
        self.acks.delivered(records)
        return Delivery(self.consumer, Acknowledgment(self.acks, records, self._acknowledged))

    async def _deliver_batch(self, records: Sequence[ConsumerRecord]) -> Delivered:
        delivery = self._new_delivery(records)
        try:
            sent = await self._invocation.call(records, delivery)
        except UnfitRecord as error:
            return Delivered(0, error)
        except BatchListenerFailed as error:
            return Delivered(min(max(error.index, 0), len(records)), error)
        except Exception as error:  # noqa: BLE001 - see above
            return Delivered(0, error)
        outcome = Delivered(len(records))
        if delivery.acknowledgment is not None and delivery.acknowledgment.nacked is not None:
            index, delay = delivery.acknowledgment.nacked
            outcome = Delivered(index, nack_delay=delay)
        return await self._once_replied(outcome, [(0, future) for future in sent])

    async def _recover(self, record: ConsumerRecord, error: BaseException) -> BaseException | None:
        try:
            result = self.recover(record, error)
            if hasattr(result, "__await__"):
                if not self.listener.is_async:
                    result.close()
                    return TypeError("an async recoverer needs an async listener")
                await result
        except Exception as failure:  # noqa: BLE001 - a recoverer is the user's code
            return failure
        return None

    # -- called by the client inside a poll ----------------------------------------------------------------------------

    async def assigned(self, partitions: Iterable[TopicPartition]) -> None:
        """Partitions have come: those that are to stay paused are paused before the first record."""
        held_back = self.loop.to_pause(partitions)
        if held_back:
            self.consumer.pause(held_back)

    async def revoked(self, partitions: Iterable[TopicPartition]) -> None:
        """Partitions go: commit what has been processed of them."""
        offsets = self.loop.revoked(partitions)
        if offsets:
            await self._commit(offsets)

    async def lost(self, partitions: Iterable[TopicPartition]) -> None:
        """Partitions are gone."""
        self.loop.lost(partitions)

    # -- pausing -------------------------------------------------------------------------------------------------------

    def _pause_or_resume(self, effect: Effect) -> None:
        consumer = self.consumer
        match effect:
            case Pause():
                consumer.pause(self._assigned(effect.partitions))
            case Resume():
                consumer.resume(self._assigned(effect.partitions))
            case PauseAll():
                consumer.pause(consumer.assignment())
                self._tell_of_pause(ConsumerPausedEvent)
            case ResumeAll():
                consumer.resume([p for p in consumer.assignment() if p not in effect.still_paused])
                self._tell_of_pause(ConsumerResumedEvent)
            case _:
                raise AssertionError(effect)

    def _tell_of_pause(self, kind: type[ConsumerEvent]) -> None:
        if self._events is not None:
            self._events.say(kind, partitions=tuple(sorted(self.consumer.assignment())))

    def _assigned(self, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
        # A pause or resume can be decided just as a rebalance takes the partition away: then there is nothing to do.
        owned = set(self.consumer.assignment())
        return [partition for partition in partitions if partition in owned]


async def settled(result: Awaitable[Any] | Any) -> Any:
    """What a call of a consumer gives in the end: one of the async face is awaited."""
    return await result if hasattr(result, "__await__") else result


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
