"""PRODUCER_FENCED in the versions that do not know it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ottla_broker.pending import Pending
from ottla_wire.errors import InvalidProducerEpoch, ProducerFenced

if TYPE_CHECKING:
    from ottla_broker.context import RequestContext

T = TypeVar("T")


def for_version(answer: Pending[T], context: RequestContext, *, fenced_since: int) -> Pending[T]:
    """The answer with a failure that the version of the request knows: the older ones know INVALID_PRODUCER_EPOCH."""
    if context.api_version >= fenced_since:
        return answer
    known: Pending[T] = Pending()

    def settle(done: Pending[T]) -> None:
        error = done.error()
        if error is None:
            known.complete(done.result())
        else:
            known.fail(InvalidProducerEpoch(error.message) if isinstance(error, ProducerFenced) else error)

    answer.on_done(settle)
    return known


def code_for_version(code: int, context: RequestContext, *, fenced_since: int) -> int:
    """The same for an error code."""
    if code == ProducerFenced.code and context.api_version < fenced_since:
        return InvalidProducerEpoch.code
    return code
