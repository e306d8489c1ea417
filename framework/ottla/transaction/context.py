"""Which transaction a thread or task is part of: one context variable.

Its value is a chain of frames, the innermost first; a frame is a transaction that was entered, and the factory whose
sends it takes. Tasks and `asyncio.to_thread` copy the context, so they are inside of what their parent is inside of;
threads begin with an empty one. A copy cannot be taken back: after the block it still names the transaction, which is
how a straggler is told apart from code that was never in one.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ottla.transaction.transaction import Transaction


class Frame:
    """A transaction that was entered, or None for a block that is outside of any on purpose."""

    __slots__ = ("factory", "outer", "transaction")

    def __init__(self, factory: object, transaction: Transaction | None, outer: Frame | None) -> None:
        self.factory = factory
        self.transaction = transaction
        self.outer = outer


current_frame: ContextVar[Frame | None] = ContextVar("ottla_transaction", default=None)


def enter(factory: object, transaction: Transaction | None) -> Frame:
    """From here on the transaction takes what templates of the factory send."""
    frame = Frame(factory, transaction, current_frame.get())
    current_frame.set(frame)
    return frame


def leave(frame: Frame) -> None:
    """No longer. By value and not by token: a generator may be closed in another context than it was begun in."""
    current_frame.set(frame.outer)


def transaction_of(factory: object) -> Transaction | None:
    """The transaction that a send of the factory's templates belongs to here; it may have ended."""
    frame = current_frame.get()
    while frame is not None:
        if frame.factory is factory:
            return frame.transaction
        frame = frame.outer
    return None


def current_transaction() -> Transaction | None:
    """The innermost open transaction of this thread or task, whatever its factory; None outside of any."""
    frame = current_frame.get()
    while frame is not None:
        if frame.transaction is not None and frame.transaction.is_active:
            return frame.transaction
        frame = frame.outer
    return None
