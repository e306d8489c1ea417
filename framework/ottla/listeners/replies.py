"""What a listener returns, sent on: the `reply_to=` of `@listener` (Spring: @SendTo).

The headers that make a reply out of a record are Spring's, so either side may be a Spring application: a request names
its reply topic and partition, and has a correlation id, which the reply repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ottla.errors import BufferExhausted, ConversionError
from ottla.listeners.conversion import place_of
from ottla.listeners.message import Message
from ottla.send import SendFuture
from ottla_wire.records import ConsumerRecord

if TYPE_CHECKING:
    from ottla.template import KafkaTemplate

CORRELATION_ID = "kafka_correlationId"
REPLY_TOPIC = "kafka_replyTopic"
REPLY_PARTITION = "kafka_replyPartition"

ReplyTo = str | bool | Callable[[Any, Any], str | None]
"""A topic; True, for the topic that the request names; or a function of request and result that gives one."""


class Replies:
    """Sends what one listener returns."""

    def __init__(self, template: KafkaTemplate, reply_to: ReplyTo) -> None:
        self._template = template
        self._reply_to = reply_to

    @property
    def are_waited_for(self) -> bool:
        """Whether a record counts as done only when its reply is stored; in a transaction the commit sees to that."""
        return not self._template.in_transaction

    async def send(self, request: Any, result: Any, *, may_suspend: bool) -> list[SendFuture]:
        """Send what the listener returned for a record, or for a list of them.

        Raises:
            ConversionError: the request does not say where to.
        """
        futures = []
        for message in _messages_of(result):
            future = self._send(request, message)
            if may_suspend and _met_a_full_buffer(future):
                await self._template.room()
                future = self._send(request, message)
            futures.append(future)
        return futures

    def _send(self, request: Any, message: Message[Any]) -> SendFuture:
        key, partition = message.key, message.partition
        headers = list((message.headers or {}).items())
        if isinstance(request, ConsumerRecord):
            key = request.key if key is None else key
            named = request.header(REPLY_PARTITION)
            if partition is None and named is not None:
                partition = int.from_bytes(named, "big", signed=True)
            correlation = request.header(CORRELATION_ID)
            if correlation is not None and CORRELATION_ID not in (message.headers or {}):
                headers.append((CORRELATION_ID, correlation))
        topic = message.topic or self._topic_for(request, message.payload)
        return self._template.send(topic, message.payload, key=key, partition=partition, headers=headers)

    def _topic_for(self, request: Any, payload: Any) -> str:
        if isinstance(self._reply_to, str):
            return self._reply_to
        if callable(self._reply_to):
            topic = self._reply_to(request, payload)
            if topic is not None:
                return topic
            raise ConversionError(f"{_place(request)}: the function that was given as reply_to= knows no topic for it")
        named = request.header(REPLY_TOPIC) if isinstance(request, ConsumerRecord) else None
        if named is None:
            raise ConversionError(
                f"{_place(request)}: reply_to=True means the topic that the request names, and it has no header "
                f"{REPLY_TOPIC}; name one, as reply_to= or in a Message(..., topic=)"
            )
        return bytes(named).decode()


def _messages_of(result: Any) -> Iterator[Message[Any]]:
    """What is to be sent: nothing for None, one message, or each of a list, a tuple or what a generator yields."""
    if isinstance(result, Message):
        yield result
    elif type(result) in (list, tuple) or isinstance(result, Iterator):
        for one in result:
            if one is not None:
                yield one if isinstance(one, Message) else Message(one)
    elif result is not None:
        yield Message(result)


def _met_a_full_buffer(future: SendFuture) -> bool:
    if not future.done():
        return False
    error = future.exception(0)
    return error is not None and isinstance(error.__cause__, BufferExhausted)


def _place(request: Any) -> str:
    if isinstance(request, Sequence):
        return f"{place_of(request[0])} and {len(request) - 1} more" if request else "an empty batch"
    return place_of(request)
