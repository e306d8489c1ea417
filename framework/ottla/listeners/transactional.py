"""How a listener's records are divided into transactions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ottla.errors import ConfigError
from ottla.listeners.ack import AckMode

if TYPE_CHECKING:
    from ottla.transaction.manager import KafkaTransactionManager


@dataclass(frozen=True, slots=True)
class Transactional:
    """For `@listener(..., transactional=Transactional(...))`; `transactional=True` is one with the defaults.

    The records that a poll brings go into one transaction, up to these bounds, together with their offsets and with all
    that the listener sends. So a quiet topic has a transaction for each record, and its outputs are visible at once; a
    busy one has many records in each. A listener that takes batches has one transaction for each batch in any case.

    If a record fails, its transaction is aborted. Those before it are delivered once more, in a transaction of their
    own, and the failed one goes to the error handler, alone.

    Attributes:
        max_records: of a transaction; 1 is a transaction for each record, as in Spring: no record is then ever
            delivered again because of another one.
        max_time: seconds of handling after which no further record is added to a transaction.
        timeout: seconds after which a transaction is aborted; if not given, a little less than
            `transaction_timeout_ms`.
        manager: whose transactions; the application's own, if not given.
    """

    max_records: int = 10_000
    max_time: float = 0.1
    timeout: float | None = None
    manager: KafkaTransactionManager | None = None

    def __post_init__(self) -> None:
        if self.max_records < 1:
            raise ConfigError(f"max_records is {self.max_records}; a transaction has at least one record")
        if self.max_time <= 0:
            raise ConfigError(f"max_time is in seconds and positive, got {self.max_time!r}")

    @classmethod
    def per_record(
        cls, *, timeout: float | None = None, manager: KafkaTransactionManager | None = None
    ) -> Transactional:
        """A transaction for each record."""
        return cls(max_records=1, timeout=timeout, manager=manager)


def transactional_of(given: Transactional | KafkaTransactionManager | bool | None) -> Transactional | None:
    """What a user may write for `transactional=`, in one form.

    Raises:
        ConfigError: it is something else.
    """
    if given is None or given is False:
        return None
    if given is True:
        return Transactional()
    if isinstance(given, Transactional):
        return given
    if callable(getattr(given, "transaction", None)):
        return Transactional(manager=given)
    raise ConfigError(f"transactional= is True, a Transactional(...) or a KafkaTransactionManager, not {given!r}")


def with_manager(transactional: Transactional, manager: KafkaTransactionManager) -> Transactional:
    """The same, with this manager if it has none of its own."""
    return transactional if transactional.manager is not None else replace(transactional, manager=manager)


def check_ack_mode(name: str, ack: AckMode) -> None:
    """Refuse what does not go together with transactions.

    Raises:
        ConfigError: the container commits by count or time.
    """
    if ack in (AckMode.COUNT, AckMode.TIME, AckMode.COUNT_TIME):
        raise ConfigError(
            f"{name}: {ack} says when offsets are committed, and in a transactional listener they are committed with "
            "each transaction; say transactional=Transactional(max_records=..., max_time=...) in its place"
        )
