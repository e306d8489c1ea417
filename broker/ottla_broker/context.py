"""RequestContext: what a handler knows about where a request came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RequestContext:
    """The origin of one request.

    `now_ms` is the monotonic clock at arrival, the clock of every `tick`, `deadline_ms` and time-out in the broker.
    Times that are written into a record or compared with one come from `broker.clock.wall_ms()`.
    """

    connection_id: int
    api_key: int
    api_version: int
    client_id: str | None
    client_host: str
    principal: str
    now_ms: int


ANONYMOUS = "User:ANONYMOUS"
