"""What a send returns and what comes of it; see `SendFuture`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, overload

from ottla_wire.records.kernel import SendFuture, SendResult, complete_batch, fail_futures, first_pending
from ottla_wire.records.model import ProducerRecord, RecordMetadata, SendError

__all__ = [
    "ProducerRecord",
    "RecordMetadata",
    "SendError",
    "SendFuture",
    "SendResult",
    "complete_batch",
    "fail_futures",
    "first_pending",
    "gather",
]


@overload
async def gather(futures: Iterable[SendFuture], *, return_exceptions: Literal[False] = False) -> list[SendResult]: ...


@overload
async def gather(futures: Iterable[SendFuture], *, return_exceptions: bool) -> list[SendResult | SendError]: ...


async def gather(
    futures: Iterable[SendFuture], *, return_exceptions: bool = False
) -> list[SendResult] | list[SendResult | SendError]:
    """Wait for many sends; the results are in the order of the futures.

    All are waited for, also if some fail: then the first failure, in their order, is raised. With `return_exceptions`
    a failure takes its result's place.
    """
    # One after the other is enough: a batch's futures are all done when the first of them wakes this task.
    outcomes: list[SendResult | SendError] = []
    for future in list(futures):
        try:
            outcomes.append(await future)
        except SendError as error:
            outcomes.append(error)
    if not return_exceptions:
        for outcome in outcomes:
            if isinstance(outcome, SendError):
                raise outcome
    return outcomes
