"""ErrorHandler: retry, then recover (Spring: DefaultErrorHandler)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ottla.error_handling.retry import Retry
from ottla.errors import ConversionError, ListenerError
from ottla_wire.records import ConsumerRecord

logger = logging.getLogger("ottla.listener")

Recoverer = Callable[[ConsumerRecord, BaseException], Awaitable[None] | None]
"""Called with a record that no delivery has succeeded for, and the last error. Raising means: not recovered."""


class BatchListenerFailed(ListenerError):
    """Raised by a batch listener to say which record it failed on (Spring: BatchListenerFailedException).

    What comes before it in the batch counts as processed; it and what follows is delivered again.
    """

    def __init__(self, index: int, cause: BaseException | None = None) -> None:
        super().__init__(f"the listener failed on record {index} of its batch" + (f": {cause}" if cause else ""))
        self.index = index
        self.__cause__ = cause


class StopContainer(ListenerError):
    """Raised by a recoverer that wants the container to stop; the record is delivered again after a restart."""


def log_and_skip(record: ConsumerRecord, error: BaseException) -> None:
    """The default: log the error with the record's place (never its content) and pass over the record."""
    place = f"{record.topic}-{record.partition}@{record.offset}"
    logger.error("%s: no delivery succeeded, the record is passed over: %r", place, error, exc_info=error)


def stop_container(record: ConsumerRecord, error: BaseException) -> None:
    """Stop the container at the record (Spring: CommonContainerStoppingErrorHandler)."""
    place = f"{record.topic}-{record.partition}@{record.offset}"
    raise StopContainer(f"{place}: the container stops, as its error handler asks: {error}") from error


@dataclass(frozen=True, slots=True)
class ErrorHandler:
    """What happens after a listener has raised.

    Attributes:
        retry: how often and how long apart the record is delivered again. Meanwhile its partition is paused; the others
            go on, and the consumer keeps its place in the group.
        recover: called when no delivery succeeded; when it returns, the record counts as processed.
        not_retryable: errors (or causes of errors) that a further delivery cannot mend: recovered at once.
        retry_on: if given, only these are retried.
        on_retry: called before each further delivery with record, error and the number of failed deliveries.
        reset_on_change: an error of another type starts the policy anew, as in Spring.
    """

    retry: Retry = field(default_factory=Retry)
    recover: Recoverer = log_and_skip
    not_retryable: tuple[type[BaseException], ...] = (ConversionError,)
    retry_on: tuple[type[BaseException], ...] | None = None
    on_retry: Callable[[ConsumerRecord, BaseException, int], None] | None = None
    reset_on_change: bool = True

    def next_delay(self, attempt: int, error: BaseException) -> float | None:
        """Seconds until the next delivery, or None: recover now."""
        chain = list(_causes(error))
        if any(isinstance(one, self.not_retryable) for one in chain):
            return None
        if self.retry_on is not None and not any(isinstance(one, self.retry_on) for one in chain):
            return None
        return self.retry.next_delay(attempt, error)


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__
    return chain
