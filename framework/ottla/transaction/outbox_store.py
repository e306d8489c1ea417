"""The outbox as its relay sees it: which rows may be sent, the position in the database, and the lease.

Theory of operation. *Order is the order of ids.* A transaction that locks what it changes and then writes to the outbox
gets a higher id than the one that it waited for. But ids become visible in another order: a lower one may be committed
after a higher one was seen, or never, because its transaction was rolled back. A relay that remembers the highest id
it has sent would lose the first kind. So it sends only up to a *settled* id: one below which no row can appear any
more.

SQLite has one writer at a time, from its first change to its commit: what can be seen is settled.

PostgreSQL. The relay looks for the highest id M that can be seen, and *after that* asks for a transaction number X of
its own (`pg_current_xact_id`): that is a mark. Once the oldest running transaction (`pg_snapshot_xmin`) is younger than
X, everything up to M is settled. Proof: let id i <= M belong to a transaction T. `Outbox.send` has T's number given
before it takes i from the sequence, and i was taken before M was, since a sequence counts up; M was seen before X was
given. So T's number is below X, and when X is below the oldest that runs, T has ended: its row is visible, or never
will be. Rolled back ids hold nobody up. A transaction that stays open holds the relay up, if it has changed anything in
the database cluster: `blocked_by` names it.

The number of the row's transaction as the order, which is what other outboxes use, would be settled sooner but is no
order: a transaction may change a row after another one has, and have the lower number because it changed something else
before.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, Engine, Text, cast, delete, func, inspect, literal, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql import ColumnElement

from ottla.errors import ConfigError, OutboxStopped
from ottla.transaction.outbox import Outbox, OutboxRow, row_of
from ottla.transaction.statements import DIALECTS, insert_into

SLOT = 1


@dataclass(frozen=True, slots=True)
class State:
    """What the database knows about the relays: the outbox's own name, and a position that was reached for certain."""

    outbox_id: str
    position: int


@dataclass(frozen=True, slots=True)
class _Mark:
    highest: int
    transaction: int


class OutboxStore:
    """One relay's access to the tables. Each method is a transaction of its own; one thread.

    Raises:
        ConfigError: the engine is async, or of a database that is not known.
    """

    def __init__(self, outbox: Outbox, engine: Engine) -> None:
        if not isinstance(engine, Engine):
            raise ConfigError(
                f"a relay runs on its own thread and needs a plain engine (sqlalchemy.create_engine), not {engine!r}"
            )
        if engine.dialect.name not in DIALECTS:
            raise ConfigError(f"an outbox is known for PostgreSQL and SQLite, not for {engine.dialect.name}")
        self._is_postgres = engine.dialect.name == "postgresql"
        # Each statement must see what has been committed by then, whatever the application likes.
        self._engine = engine.execution_options(isolation_level="READ COMMITTED") if self._is_postgres else engine
        self._messages = outbox.table
        self._state = outbox.state_table
        self._columns = outbox.row_columns
        self._mark: _Mark | None = None
        self._settled = 0

    def check_tables(self) -> None:
        """Raise ConfigError if the tables are not there."""
        inspector = inspect(self._engine)
        for table in (self._messages, self._state):
            if not inspector.has_table(table.name, schema=table.schema):
                raise ConfigError(
                    f"the outbox needs the table {table.fullname}: call outbox.metadata.create_all(engine), or create "
                    "it in a migration (docs/database.md has the statements)"
                )

    # -- state and lease -----------------------------------------------------------------------------------------------

    def state(self) -> State:
        """The state; the first relay ever gives the outbox a name that no other one in the world has."""
        fresh = {"slot": SLOT, "outbox_id": secrets.token_hex(8), "position": 0, "lease_until_ms": 0}
        with self._engine.begin() as connection:
            connection.execute(
                insert_into(self._state, self._engine.dialect.name).values(fresh).on_conflict_do_nothing()
            )
            found = connection.execute(
                select(self._state.c.outbox_id, self._state.c.position).where(self._state.c.slot == SLOT)
            ).one()
        return State(found.outbox_id, found.position)

    def lease(self, owner: str, seconds: float) -> bool:
        """Take or renew the right to be the active relay. It keeps relays from fencing each other, no more."""
        state = self._state.c
        now = self._now_ms()
        is_free = (state.owner == owner) | state.owner.is_(None) | (state.lease_until_ms < now)
        until = now + literal(int(seconds * 1000), BigInteger)
        with self._engine.begin() as connection:
            taken = connection.execute(
                update(self._state).where(state.slot == SLOT, is_free).values(owner=owner, lease_until_ms=until)
            )
            return taken.rowcount == 1

    def release(self, owner: str) -> None:
        """Another relay may take over at once."""
        with self._engine.begin() as connection:
            mine = (self._state.c.slot == SLOT) & (self._state.c.owner == owner)
            connection.execute(update(self._state).where(mine).values(owner=None, lease_until_ms=0))

    def _now_ms(self) -> ColumnElement[int]:
        if self._is_postgres:  # relays on several hosts, one clock
            return cast(func.extract("epoch", func.clock_timestamp()) * 1000, BigInteger)
        return literal(time.time_ns() // 1_000_000, BigInteger)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def settled(self, position: int) -> int:
        """The id up to which every row is there that will ever be; at least `position`, which was settled before."""
        self._settled = max(self._settled, position)
        with self._engine.begin() as connection:
            if self._is_postgres:
                self._look(connection)
            else:
                self._settled = max(self._settled, self._highest(connection))
        return self._settled

    @property
    def is_waiting(self) -> bool:
        """Whether rows are there that are not settled yet."""
        return self._mark is not None

    def _look(self, connection: Connection) -> None:
        if self._mark is not None:
            oldest = func.pg_snapshot_xmin(func.pg_current_snapshot())
            if connection.scalars(select(_number(oldest))).one() <= self._mark.transaction:
                return
            self._settled = max(self._settled, self._mark.highest)
            self._mark = None
        highest = self._highest(connection)
        if highest > self._settled:  # the two statements must not be one: X has to come after M
            self._mark = _Mark(highest, connection.scalars(select(_number(func.pg_current_xact_id()))).one())

    def _highest(self, connection: Connection) -> int:
        return int(connection.scalars(select(func.coalesce(func.max(self._messages.c.id), 0))).one())

    def batch(self, position: int, settled: int, max_rows: int, max_bytes: int) -> list[OutboxRow]:
        """The next rows behind the position, no further than `settled`; at least one, if there is one."""
        messages = self._messages.c
        query = (
            select(*self._columns)
            .where(messages.id > position, messages.id <= settled, messages.error.is_(None))
            .order_by(messages.id)
            .limit(max_rows)
        )
        found: list[OutboxRow] = []
        size = 0
        options = {"stream_results": True, "max_row_buffer": 50}
        with self._engine.connect() as connection, connection.execute(query, execution_options=options) as result:
            for row in result:
                found.append(row_of(row))
                size += len(found[-1].key or b"") + len(found[-1].value or b"")
                if size >= max_bytes:
                    break
        return found

    def advance(self, position: int, *, forget: bool) -> None:
        """Kafka has everything up to here. `forget`: delete those rows."""
        with self._engine.begin() as connection:
            behind = (self._state.c.slot == SLOT) & (self._state.c.position < position)
            connection.execute(update(self._state).where(behind).values(position=position))
            if forget:
                connection.execute(self._delete(position))

    def purge(self, position: int, written_before_ms: int) -> int:
        """Delete rows that were relayed and are old. Returns how many."""
        with self._engine.begin() as connection:
            old = self._messages.c.written_ms < written_before_ms
            return int(connection.execute(self._delete(position).where(old)).rowcount)

    def _delete(self, position: int) -> Any:
        return delete(self._messages).where(self._messages.c.id <= position, self._messages.c.error.is_(None))

    def park(self, row: OutboxRow, error: str) -> None:
        """Keep a row out of the line."""
        with self._engine.begin() as connection:
            connection.execute(update(self._messages).where(self._messages.c.id == row.id).values(error=error))

    # -- trouble -------------------------------------------------------------------------------------------------------

    def check_not_older(self, position: int) -> None:
        """Raise OutboxStopped if the database has never given an id as high as what was relayed: it was restored."""
        with self._engine.connect() as connection:
            if self._is_postgres:
                preparer = self._engine.dialect.identifier_preparer
                name = preparer.format_table(self._messages)
                sequence = func.pg_get_serial_sequence(name, "id")
                last = connection.execute(
                    select(func.pg_sequence_last_value(cast(sequence, postgresql.REGCLASS)))
                ).scalar_one()
            else:
                row = connection.execute(
                    text("SELECT seq FROM sqlite_sequence WHERE name = :name"), {"name": self._messages.name}
                ).first()
                last = None if row is None else row[0]
        if (last or 0) < position:
            raise OutboxStopped(
                f"{self._messages.fullname} has given ids up to {last or 0} only, and rows up to {position} were "
                "relayed from it: the database was restored to an earlier state, or its tables were made anew. Rows "
                "that it is going to write would be taken for ones that are sent already. If what it has now is to be "
                f"sent, give it another name: UPDATE {self._state.fullname} SET outbox_id = '...', position = 0"
            )

    def blocked_by(self) -> list[str]:
        """The running transactions that may still bring rows with lower ids."""
        if not self._is_postgres or self._mark is None:
            return []
        query = text(
            "SELECT pid, usename, state, extract(epoch from now() - xact_start)::int FROM pg_stat_activity "
            "WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 5"
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [f"pid {pid} of {user} ({state}, {seconds} s)" for pid, user, state, seconds in rows]


def _number(transaction: Any) -> ColumnElement[int]:
    """xid8 has no cast to a number but by text."""
    return cast(cast(transaction, Text), BigInteger)
