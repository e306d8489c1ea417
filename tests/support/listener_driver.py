"""A container's driver around a consumer that plays a script: no broker, no thread, no time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from ottla import AckMode, ErrorHandler, OffsetAndMetadata, TopicPartition
from ottla.client.consumer.faces import run_blocking
from ottla.listeners.ack import AckTracker
from ottla.listeners.binding import bind
from ottla.listeners.driver import Driver
from ottla.listeners.interceptors import Interceptor
from ottla.listeners.invocation import Invocation
from ottla.listeners.listener_loop import ListenerLoop, LoopControl
from ottla.listeners.replies import Replies
from ottla.listeners.unit_of_work import AcknowledgedWork

ORDERS = TopicPartition("orders", 0)


class ScriptedConsumer:
    """Hands out polls: lists of records, or functions of the consumer that give them. Writes down commits, wake-ups."""

    def __init__(self, control: LoopControl, *polls: Any) -> None:
        self.control = control
        self.polls = list(polls)
        self.timeouts: list[float] = []
        self.commits: list[dict[TopicPartition, int]] = []
        self.wakeups = 0
        self.failures: list[BaseException] = []

    def poll(self, timeout: float, max_records: int | None = None) -> Any:
        return self._poll(timeout)

    def _poll(self, timeout: float) -> list[Any]:
        self.timeouts.append(timeout)
        if not self.polls:
            self.control.stopping = True
            return []
        step = self.polls.pop(0)
        return step(self) if callable(step) else step

    def commit(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> Any:
        self._commit(offsets)

    def _commit(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.commits.append({partition: offset.offset for partition, offset in offsets.items()})

    def commit_async(self, offsets: Any, callback: Callable[..., None]) -> None:
        self._commit(offsets)
        callback(offsets, None)

    def wakeup(self) -> None:
        self.wakeups += 1

    def pause(self, partitions: Any) -> None:
        pass

    resume = pause

    def assignment(self) -> list[TopicPartition]:
        return [ORDERS]


class AsyncScriptedConsumer(ScriptedConsumer):
    async def poll(self, timeout: float, max_records: int | None = None) -> list[Any]:
        await asyncio.sleep(0)
        return self._poll(timeout)

    async def commit(self, offsets: Any) -> None:
        await asyncio.sleep(0)
        self._commit(offsets)


def drive(
    listener: Callable[..., Any],
    *polls: Any,
    ack: AckMode = AckMode.MANUAL_IMMEDIATE,
    failures: Sequence[BaseException] = (),
    interceptors: Sequence[Interceptor] = (),
    replies: Replies | None = None,
    errors: ErrorHandler | None = None,
) -> ScriptedConsumer:
    """Run the listener over these polls, then stop; `failures` are those of the first commits."""
    control = LoopControl()
    acks = AckTracker(ack)
    bound = bind(listener)
    errors = errors or ErrorHandler()
    loop = ListenerLoop(
        is_batch=bound.is_batch,
        work=AcknowledgedWork(acks, lambda: 0),
        errors=errors,
        control=control,
        now_ms=lambda: 0,
    )
    consumer = (AsyncScriptedConsumer if bound.is_async else ScriptedConsumer)(control, *polls)
    consumer.failures += failures
    invocation = Invocation(bound, interceptors, replies)
    driver = Driver(loop, control, bound, acks, errors.recover, consumer, invocation)  # type: ignore[arg-type]
    (asyncio.run if bound.is_async else run_blocking)(driver.run())
    return consumer
