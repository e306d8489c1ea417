"""The accounts, in SQLite or PostgreSQL: each payment changes two of them, and leaves one row that says so."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from models import Payment, Receipt, Status
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, String, Table, create_engine, event, select
from sqlalchemy.engine import Row

from ottla.transaction import Inbox

LOCK_SECONDS = 30  # a writer that was frozen by the operating system keeps the others waiting

metadata = MetaData()
inbox = Inbox("payments", metadata)
accounts = Table(
    "accounts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("balance", Integer, nullable=False),
)
# Nothing here forbids a second row for a payment: that there is none is what the inbox is for.
charges = Table(
    "charges",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("payment_id", String(64), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("payer", String(64), nullable=False),
    Column("payee", String(64), nullable=False),
    Column("cents", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("balance", Integer, nullable=False),
)


class Ledger:
    """The accounts of one database. All work is done in a transaction of `begin`."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)

    def open_accounts(self, balances: Mapping[str, int]) -> None:
        """Create the tables and these accounts; those that exist are left alone."""
        with self.begin() as connection:
            metadata.create_all(connection)
            known = set(connection.scalars(select(accounts.c.id)))
            for name, balance in balances.items():
                if name not in known:
                    connection.execute(accounts.insert().values(id=name, balance=balance))

    def begin(self) -> AbstractContextManager[Connection]:
        """A database transaction: committed at the end of the block, rolled back if the block raises."""
        return self.engine.begin()

    def charge(self, connection: Connection, payment: Payment) -> Receipt:
        """Move the money, if it is there, and write down what became of the payment."""
        names = sorted({payment.payer, payment.payee})  # two payments lock in the same order
        query = select(accounts).where(accounts.c.id.in_(names)).order_by(accounts.c.id).with_for_update()
        balances = {row.id: row.balance for row in connection.execute(query)}
        paid = balances.get(payment.payer, 0) >= payment.cents and payment.payee in balances
        if paid:
            for name, change in ((payment.payer, -payment.cents), (payment.payee, payment.cents)):
                where = accounts.update().where(accounts.c.id == name)
                connection.execute(where.values(balance=accounts.c.balance + change))
        receipt = Receipt(
            payment_id=payment.id,
            **payment.model_dump(exclude={"id"}),
            status=Status.PAID if paid else Status.DECLINED,
            balance=balances.get(payment.payer, 0) - (payment.cents if paid and payment.payer != payment.payee else 0),
        )
        connection.execute(charges.insert().values(receipt.model_dump(mode="json")))
        return receipt

    def receipt_of(self, connection: Connection, payment_id: str) -> Receipt:
        """The receipt of a payment that was charged before."""
        return _receipt(connection.execute(select(charges).where(charges.c.payment_id == payment_id)).one())

    def receipts(self) -> list[Receipt]:
        """Everything that was ever charged or declined, in the order of the database."""
        with self.begin() as connection:
            return [_receipt(row) for row in connection.execute(select(charges).order_by(charges.c.id))]

    def balances(self) -> dict[str, int]:
        """What is on each account."""
        with self.begin() as connection:
            return {row.id: row.balance for row in connection.execute(select(accounts))}


def _receipt(row: Row[Any]) -> Receipt:
    return Receipt.model_validate({name: getattr(row, name) for name in Receipt.model_fields})


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url)
    engine = create_engine(url, connect_args={"timeout": LOCK_SECONDS})

    # SQLite's driver begins a transaction at the first write, which may then find that another process was faster.
    # One that says at once that it is going to write waits for its turn in place of that.
    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # survives kill -9; FULL is for power failures, and slow

    @event.listens_for(engine, "begin")
    def begins(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
