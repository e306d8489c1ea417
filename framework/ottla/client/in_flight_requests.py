"""InFlightRequests: what was sent on a connection and not answered yet.

A broker answers a connection's requests in the order in which they came, so an answer always belongs to the oldest
request; a deque is all it takes. The correlation id is checked all the same: when it does not match, the connection is
of no more use.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from ottla_wire.errors import DecodeError


class Answer(Protocol):
    """Where what comes of a request is put: the part of asyncio.Future that a connection uses."""

    def done(self) -> bool:
        """Whether nobody waits any more."""

    def set_result(self, result: Any, /) -> None:
        """The answer is there."""

    def set_exception(self, exception: BaseException, /) -> None:
        """It will not come."""

    def exception(self) -> BaseException | None:
        """The error was looked at."""


@dataclass(slots=True, eq=False)
class InFlightRequest:
    """A request on the wire, who waits for its answer, and until when."""

    correlation_id: int
    response_class: Any
    version: int
    deadline_ms: int
    answer: Answer
    name: str
    sent_ms: int


class InFlightRequests:
    """A connection's requests, oldest first."""

    __slots__ = ("_requests",)

    def __init__(self) -> None:
        self._requests: deque[InFlightRequest] = deque()

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: InFlightRequest) -> None:
        """A request was written."""
        self._requests.append(request)

    def complete_oldest(self, correlation_id: int) -> InFlightRequest:
        """The request that an answer with this correlation id belongs to.

        Raises:
            DecodeError: nothing is in flight, or the oldest request has another correlation id.
        """
        if not self._requests:
            raise DecodeError(f"an answer with correlation id {correlation_id}, but no request is in flight")
        oldest = self._requests[0]
        if oldest.correlation_id != correlation_id:
            raise DecodeError(
                f"the answer has correlation id {correlation_id}, the oldest request ({oldest.name}) has "
                f"{oldest.correlation_id}"
            )
        return self._requests.popleft()

    def deadline_ms(self) -> int | None:
        """When the first of them times out; not necessarily the oldest, their timeouts differ."""
        return min((request.deadline_ms for request in self._requests), default=None)

    def first_with_deadline(self, deadline_ms: int) -> InFlightRequest:
        """The oldest of those that time out at `deadline_ms`; there is one if `deadline_ms()` said so."""
        return next(request for request in self._requests if request.deadline_ms == deadline_ms)

    def take_all(self) -> list[InFlightRequest]:
        """Empty it: the connection has failed."""
        requests = list(self._requests)
        self._requests.clear()
        return requests
