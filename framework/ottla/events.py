"""What an application can be told about its listeners while they run (Spring: the container's ApplicationEvents).

@app.events.on(ListenerContainerIdleEvent)
def idle(event: ListenerContainerIdleEvent) -> None: ...

async for event in app.events.stream(ConsumerStoppedEvent): ...
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from ottla.client import TopicPartition

if TYPE_CHECKING:
    from ottla.listeners.container import ConcurrentMessageListenerContainer

logger = logging.getLogger("ottla.events")

STREAM_EVENTS = 1_000
"""How many events wait for a reader of `stream`; of more the oldest are dropped."""

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerEvent:
    """Something happened in a container."""

    container: ConcurrentMessageListenerContainer = field(repr=False)
    container_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerEvent(ListenerEvent):
    """Something happened to one consumer of a container."""

    consumer: str
    """Its name: the container's id and a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerStartingEvent(ConsumerEvent):
    """Its thread or task has begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerStartedEvent(ConsumerEvent):
    """It has subscribed and is about to poll."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerFailedEvent(ConsumerEvent):
    """It failed, and another one takes its place in a second."""

    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerStoppingEvent(ConsumerEvent):
    """It handles no more records, and is about to be closed."""


class StopReason(Enum):
    """Why a consumer has stopped."""

    NORMAL = "normal"
    """It was asked to."""
    ABNORMAL = "abnormal"
    """Its error handler wanted it to."""
    FENCED = "fenced"
    """Another instance has taken its place."""
    ERROR = "error"
    """An error that a new consumer would meet again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerStoppedEvent(ConsumerEvent):
    """It is closed."""

    reason: StopReason
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrentContainerStoppedEvent(ListenerEvent):
    """The last consumer of a container is closed."""

    reason: StopReason
    """NORMAL if that of each consumer is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerPausedEvent(ConsumerEvent):
    """A pause of the container has taken effect."""

    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerResumedEvent(ConsumerEvent):
    """The pause is over."""

    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerPartitionPausedEvent(ConsumerEvent):
    """A pause of a partition has taken effect."""

    partition: TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerPartitionResumedEvent(ConsumerEvent):
    """The pause of a partition is over."""

    partition: TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerContainerIdleEvent(ConsumerEvent):
    """No record has come for `idle_event_interval` seconds; again after each further interval."""

    idle_time: float
    """Seconds since the last record, or since the start."""
    partitions: tuple[TopicPartition, ...]
    is_paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerContainerNoLongerIdleEvent(ConsumerEvent):
    """A record has come after an idle event."""

    idle_time: float
    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerContainerPartitionIdleEvent(ConsumerEvent):
    """No record of a partition has come for `idle_partition_event_interval` seconds; again after each interval."""

    idle_time: float
    partition: TopicPartition
    is_paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerContainerPartitionNoLongerIdleEvent(ConsumerEvent):
    """A record of a partition has come after an idle event of it."""

    idle_time: float
    partition: TopicPartition


class Events:
    """The events of an application: `app.events`. Safe to use from any thread.

    Args:
        event_loop: gives the loop that async functions run on.
    """

    def __init__(self, event_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._event_loop = event_loop
        self._lock = threading.Lock()
        self._functions: list[tuple[tuple[type, ...], Callable[[Any], Any]]] = []
        self._streams: list[tuple[tuple[type, ...], _Stream]] = []

    def on(self, *types: type[ListenerEvent]) -> Callable[[Function], Function]:
        """Decorator: call the function with each event of these types (none named: of all).

        A plain function is called where the event happens, on the consumer's thread or loop: it should be quick. An
        `async def` one runs on the application's event loop. What either raises is logged.
        """

        def decorate(function: Function) -> Function:
            with self._lock:
                self._functions.append((types or (ListenerEvent,), function))
            return function

        return decorate

    async def stream(self, *types: type[ListenerEvent]) -> AsyncIterator[Any]:
        """The events of these types (none named: all) from now on, for `async for`.

        A reader that falls behind by more than a thousand loses the oldest; the log says so.
        """
        mine = (types or (ListenerEvent,), _Stream(asyncio.get_running_loop()))
        with self._lock:
            self._streams.append(mine)
        try:
            while True:
                yield await mine[1].queue.get()
        finally:
            with self._lock:
                self._streams.remove(mine)

    def publish(self, event: ListenerEvent) -> None:
        """Tell all who want to know."""
        with self._lock:
            functions = [function for types, function in self._functions if isinstance(event, types)]
            streams = [stream for types, stream in self._streams if isinstance(event, types)]
        for stream in streams:
            stream.put(event)
        for function in functions:
            self._call(function, event)

    def _call(self, function: Callable[[Any], Any], event: ListenerEvent) -> None:
        try:
            if inspect.iscoroutinefunction(function):
                loop = self._event_loop()
                future = asyncio.run_coroutine_threadsafe(function(event), loop)
                future.add_done_callback(lambda done: _log_failure(function, event, done))
            else:
                function(event)
        except Exception:
            logger.exception("%r failed on %r", function, event)


class _Stream:
    """The events that one reader has not read yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.queue: asyncio.Queue[ListenerEvent] = asyncio.Queue(STREAM_EVENTS)

    def put(self, event: ListenerEvent) -> None:
        try:
            self._loop.call_soon_threadsafe(self._put, event)
        except RuntimeError:
            pass  # the reader's loop has ended

    def _put(self, event: ListenerEvent) -> None:
        if self.queue.full():
            logger.warning("a reader of app.events.stream() is %s events behind: the oldest is dropped", STREAM_EVENTS)
            self.queue.get_nowait()
        self.queue.put_nowait(event)


class EventSource:
    """One consumer of a container, as events name it."""

    def __init__(
        self,
        publish: Callable[[ListenerEvent], None] | None,
        container: ConcurrentMessageListenerContainer,
        consumer: str,
    ) -> None:
        self._publish = publish
        self._container = container
        self._consumer = consumer

    def say(self, kind: type[ConsumerEvent], **more: Any) -> None:
        """Publish an event of this kind."""
        if self._publish is not None:
            container = self._container
            self._publish(kind(container=container, container_id=container.id, consumer=self._consumer, **more))


def _log_failure(function: Callable[[Any], Any], event: ListenerEvent, done: Future[Any]) -> None:
    if not done.cancelled() and done.exception() is not None:
        logger.error("%r failed on %r", function, event, exc_info=done.exception())
