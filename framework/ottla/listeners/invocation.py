"""One call of a listener, with what was asked to surround it: interceptors before and after, replies behind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from ottla.errors import ListenerError
from ottla.listeners.binding import BoundListener, Delivery
from ottla.listeners.interceptors import BatchInterceptor, Interceptor, RecordInterceptor
from ottla.listeners.replies import Replies
from ottla.send import SendFuture

logger = logging.getLogger("ottla.listener")


def interceptor_kind(listener: BoundListener) -> type[Interceptor]:
    """What an interceptor of this listener is an instance of."""
    return BatchInterceptor if listener.is_batch else RecordInterceptor


class Invocation:
    """Calls a listener. `call` is a coroutine that suspends only if the listener is async.

    Of the interceptors those are used that are of the listener's kind: for one record, or for lists.
    """

    def __init__(
        self, listener: BoundListener, interceptors: Sequence[Interceptor] = (), replies: Replies | None = None
    ) -> None:
        self._listener = listener
        self._replies = replies
        kind = interceptor_kind(listener)
        self._interceptors: Sequence[Any] = tuple(one for one in interceptors if isinstance(one, kind))
        self._after = "after_batch" if listener.is_batch else "after_record"

    @property
    def is_plain(self) -> bool:
        """Whether nothing surrounds the call."""
        return not self._interceptors and self._replies is None

    @property
    def waits_for_replies(self) -> bool:
        """Whether what was replied must be stored before its records count as done."""
        return self._replies is not None and self._replies.are_waited_for

    async def call(self, given: Any, delivery: Delivery) -> list[SendFuture]:
        """Call the listener with a record, or a list of them; gives the replies that are under way.

        Raises:
            Exception: what the listener or an interceptor raises, or what is wrong with the reply.
        """
        if not self._interceptors:
            return await self._call(given, delivery)
        taken = given
        try:
            for interceptor in self._interceptors:
                taken = await self._settled(interceptor.intercept(given, delivery.consumer))
                if taken is None:
                    return []
                self._check(given, taken)
                given = taken
            sent = await self._call(given, delivery)
            for interceptor in self._interceptors:
                await self._settled(interceptor.success(given, delivery.consumer))
        except Exception as error:
            await self._tell_all("failure", given, error, delivery.consumer)
            raise
        finally:
            await self._tell_all(self._after, given, delivery.consumer)
        return sent

    async def _call(self, given: Any, delivery: Delivery) -> list[SendFuture]:
        result = self._listener.call(given, delivery)
        if self._listener.is_async:
            result = await result
        if self._replies is None or result is None:
            return []
        return await self._replies.send(given, result, may_suspend=self._listener.is_async)

    def _check(self, given: Any, taken: Any) -> None:
        if self._listener.is_batch and len(taken) != len(given):
            raise ListenerError(
                f"a BatchInterceptor made {len(taken)} records of {len(given)}; to drop some use the listener's filter"
            )

    async def _tell_all(self, method: str, *arguments: Any) -> None:
        for interceptor in self._interceptors:
            try:
                await self._settled(getattr(interceptor, method)(*arguments))
            except Exception:
                logger.exception("%r: %s() failed", interceptor, method)

    async def _settled(self, result: Any) -> Any:
        if not hasattr(result, "__await__"):
            return result
        if self._listener.is_async:
            return await result
        close: Callable[[], None] = getattr(result, "close", lambda: None)
        close()
        raise TypeError("an async interceptor needs an async listener")
