"""`with template.transaction() as tx`: what a block does with the transaction that is there, or begins one."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ottla.client import OffsetAndMetadata, TopicPartition
from ottla.client.consumer.faces import run_blocking
from ottla.client.topic_partition import ConsumerGroupMetadata
from ottla.errors import AlreadyInTransaction, ConfigError, NotInTransaction
from ottla.transaction import context
from ottla.transaction.boundaries import begin, complete, leave
from ottla.transaction.sides import AWAITING, BLOCKING, Side
from ottla.transaction.transaction import Transaction, TransactionState

if TYPE_CHECKING:
    from ottla.producer_factory import ProducerFactory
    from ottla.transaction.database import DatabaseTransaction

P = ParamSpec("P")
T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])


class Propagation(Enum):
    """What a block does about a transaction that its context is part of already (Spring: Propagation)."""

    REQUIRED = "required"
    """Join it; without one, begin one."""
    REQUIRES_NEW = "requires_new"
    """Begin one in any case, with a producer of its own. It ends before the outer one, and by itself."""
    MANDATORY = "mandatory"
    """Join it; without one, raise NotInTransaction."""
    NEVER = "never"
    """Raise AlreadyInTransaction; without one, run outside of any."""


class OutsideOfTransactions(Transaction):
    """What a block with `propagation="never"` gives: there is no transaction to do anything with."""

    def __init__(self) -> None:
        self.state = TransactionState.ABORTED

    @property
    def transactional_id(self) -> str:
        """There is none.

        Raises:
            NotInTransaction: always.
        """
        raise self._not_open()

    def set_rollback_only(self) -> None:
        """There is nothing to abort.

        Raises:
            NotInTransaction: always.
        """
        raise self._not_open()

    def send_offsets(
        self, offsets: Mapping[TopicPartition, OffsetAndMetadata | int], group_metadata: ConsumerGroupMetadata
    ) -> None:
        """There is nothing to send them with.

        Raises:
            NotInTransaction: always.
        """
        raise self._not_open()

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """There is nothing to run it in.

        Raises:
            NotInTransaction: always.
        """
        raise self._not_open()

    def _not_open(self) -> Any:
        return NotInTransaction('this block has propagation="never": it is outside of every transaction')


class TransactionBlock:
    """One use of `with` or `async with`.

    Args:
        factory: whose templates' sends are part of the transaction.
        prefix: of the transactional id, if not the factory's own.
        timeout: seconds until the transaction is aborted.
        propagation: see `Propagation`.
        database: a database connection or session whose transaction is committed right before; see `database`.
    """

    def __init__(
        self,
        factory: ProducerFactory,
        *,
        prefix: str | None = None,
        timeout: float | None = None,
        propagation: Propagation | str = Propagation.REQUIRED,
        database: Any = None,
    ) -> None:
        self._factory = factory
        self._prefix = prefix
        self._timeout = timeout
        self._propagation = _propagation(propagation)
        self._database = database
        self._tx: Transaction | None = None
        self._joined = False
        self._begun: DatabaseTransaction | None = None
        self._frame: context.Frame | None = None

    def __enter__(self) -> Transaction:
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                "`with template.transaction()` would block the event loop that runs on this thread: write "
                "`async with template.transaction()`"
            )
        return run_blocking(self._enter(BLOCKING))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        run_blocking(self._exit(BLOCKING, error))

    async def __aenter__(self) -> Transaction:
        return await self._enter(AWAITING)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._exit(AWAITING, error)

    async def _enter(self, side: Side) -> Transaction:
        if self._tx is not None:
            raise RuntimeError("a transaction block is entered once: call template.transaction() anew")
        here = context.transaction_of(self._factory)
        if here is not None and here.state is TransactionState.TIMED_OUT:
            raise here.timed_out()
        is_inside = here is not None and here.is_active
        if self._propagation is Propagation.NEVER:
            return self._stay_outside(is_inside)
        if here is not None and is_inside and self._propagation is not Propagation.REQUIRES_NEW:
            return await self._join(here, side)
        if self._propagation is Propagation.MANDATORY:
            raise NotInTransaction(
                'this block has propagation="mandatory", and the code around it is in no transaction of this factory'
            )
        tx = await begin(self._factory, side, prefix=self._prefix, timeout=self._timeout)
        try:
            await self._begin_database(tx, side)
        except BaseException as error:
            await complete(tx, side, error)
            raise
        self._tx = tx
        self._frame = context.enter(self._factory, tx)
        return tx

    def _stay_outside(self, is_inside: bool) -> Transaction:
        if is_inside:
            raise AlreadyInTransaction(
                'this block has propagation="never", and the code around it is part of a transaction'
            )
        self._tx = OutsideOfTransactions()
        self._frame = context.enter(self._factory, None)
        return self._tx

    async def _join(self, tx: Transaction, side: Side) -> Transaction:
        if self._timeout is not None:
            tx.shorten(tx.limits.seconds(self._timeout))
        await self._begin_database(tx, side)
        tx.depth += 1
        self._tx, self._joined = tx, True
        return tx

    async def _begin_database(self, tx: Transaction, side: Side) -> None:
        if self._database is not None and not any(known is self._database for known, _ in tx.databases):
            database = importlib.import_module("ottla.transaction.database")  # few need it, and it is not small
            begun = await side.invoke(database.begin, self._database)
            tx.databases = [*tx.databases, (self._database, begun)]
            self._begun = begun

    async def _exit(self, side: Side, error: BaseException | None) -> None:
        tx = self._tx
        assert tx is not None
        if self._joined:
            tx.depth -= 1
            if error is not None:
                tx.fail_inside(error)
            elif self._begun is not None:
                self._begun.left()
            return
        assert self._frame is not None
        if self._propagation is Propagation.NEVER:
            context.leave(self._frame)
            return
        await leave(tx, side, error, self._frame)


def _propagation(given: Propagation | str) -> Propagation:
    if type(given) is Propagation:
        return given
    try:
        return Propagation(given)
    except ValueError:
        names = ", ".join(repr(one.value) for one in Propagation)
        raise ConfigError(f"propagation is one of {names}, got {given!r}") from None


def transactional(
    source: Any,
    /,
    *,
    timeout: float | None = None,
    propagation: Propagation | str = Propagation.REQUIRED,
    database: Any = None,
) -> Callable[[Function], Function]:
    """Decorator: each call of the function, plain or async, is a `source.transaction(...)` (Spring: @Transactional).

    Args:
        source: a KafkaTemplate or a KafkaTransactionManager.
        timeout: as for `template.transaction`, and so `propagation` and `database`.

    Raises:
        TypeError: the source has no transactions, or the function is a generator.
    """
    if not callable(getattr(source, "transaction", None)):
        raise TypeError(
            f"write @transactional(template), with a KafkaTemplate or a KafkaTransactionManager, not {source!r}"
        )
    arguments = {"timeout": timeout, "propagation": _propagation(propagation), "database": database}

    def decorate(function: Function) -> Function:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{function.__qualname__} is a generator: its transaction would be open for as long as somebody "
                "iterates; write `with template.transaction()` where the work is done"
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                async with source.transaction(**arguments):
                    return await function(*args, **kwargs)

            return awaited  # type: ignore[return-value]

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with source.transaction(**arguments):
                return function(*args, **kwargs)

        return called  # type: ignore[return-value]

    return decorate
