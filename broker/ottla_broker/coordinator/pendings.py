"""What handlers do with the Pendings of a coordinator: gather several, recover from errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ottla_broker.pending import Pending

T = TypeVar("T")


def gather(pendings: Sequence[Pending[T]]) -> Pending[list[T]]:
    """A Pending of all the values, in order; the first error in that order fails it."""
    gathered: Pending[list[T]] = Pending()
    missing = len(pendings)

    def count_down(_: Pending[T]) -> None:
        nonlocal missing
        missing -= 1
        if missing:
            return
        error = next((error for pending in pendings if (error := pending.error()) is not None), None)
        if error is None:
            gathered.complete([pending.result() for pending in pendings])
        else:
            gathered.fail(error)

    if not pendings:
        gathered.complete([])
    for pending in pendings:
        pending.on_done(count_down)
    return gathered


def recover(pending: Pending[T], answer: Callable[[Exception], T]) -> Pending[T]:
    """A Pending that is never failed: an error becomes the value that `answer` makes of it."""
    recovered: Pending[T] = Pending()

    def settle(done: Pending[T]) -> None:
        error = done.error()
        recovered.complete(done.result() if error is None else answer(error))

    pending.on_done(settle)
    return recovered
