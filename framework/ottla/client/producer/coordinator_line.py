"""CoordinatorLine: one request at a time to coordinators, where these are, and how long to wait after a refusal."""

from __future__ import annotations

import logging
from typing import Final

from ottla.client.backoff import Backoff
from ottla.client.producer.transaction_requests import Coordinator, TransactionRequest
from ottla.client.producer.transaction_tables import RequestKind
from ottla.errors import ConcurrentTransactions, OttlaError

logger = logging.getLogger("ottla.producer")

CONCURRENT_PAUSE_MS: Final = 20
"""CONCURRENT_TRANSACTIONS: the markers of the transaction before are still being written, which takes milliseconds."""


class CoordinatorLine:
    """The request that is under way, and what was learnt from those before it. Sans-I/O.

    Pauses are kept by kind: a coordinator that was looked up again does not end the pause of what it refused.
    """

    def __init__(self, backoff: Backoff) -> None:
        self.asked: TransactionRequest | None = None
        self.last_refusal: OttlaError | None = None
        self._backoff = backoff
        self._coordinators: dict[Coordinator, int] = {}
        self._failures: dict[RequestKind, int] = {}
        self._retry_at_ms: dict[RequestKind, int] = {}

    def node_of(self, coordinator: Coordinator) -> int | None:
        """Where a coordinator is, if that is known."""
        return self._coordinators.get(coordinator)

    def found(self, coordinator: Coordinator, node_id: int) -> None:
        """It was looked up."""
        self._coordinators[coordinator] = node_id

    def due_ms(self, kind: RequestKind) -> int:
        """When the pause before such a request is over."""
        return self._retry_at_ms.get(kind, 0)

    def answered(self, request: TransactionRequest) -> None:
        """All went well: the next failure is the first one again."""
        self.asked = None
        self.last_refusal = None
        self._failures.pop(request.kind, None)
        self._retry_at_ms.pop(request.kind, None)

    def again(self, request: TransactionRequest, error: OttlaError, now_ms: int, *, elsewhere: bool) -> None:
        """It is to be asked again after a pause; `elsewhere`: of the coordinator as it is looked up then."""
        kind = request.kind
        self.asked = None
        self.last_refusal = error
        if elsewhere and request.coordinator is not None:
            self._coordinators.pop(request.coordinator, None)
        self._failures[kind] = self._failures.get(kind, 0) + 1
        concurrent = isinstance(error, ConcurrentTransactions)
        pause_ms = CONCURRENT_PAUSE_MS if concurrent else self._backoff.pause_ms(self._failures[kind])
        self._retry_at_ms[kind] = now_ms + pause_ms
        logger.debug("%s: %s: %s, again in %d ms", request, type(error).__name__, error, pause_ms)
