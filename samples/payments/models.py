"""What is on the two topics."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, PositiveInt


class Payment(BaseModel):
    """An order to move money. `number` counts the payments of a payer, in the order in which they were given."""

    id: str
    number: int
    payer: str
    payee: str
    cents: PositiveInt


class Status(StrEnum):
    PAID = "paid"
    DECLINED = "declined"


class Receipt(BaseModel):
    """What became of a payment, and what the payer had after it."""

    payment_id: str
    number: int
    payer: str
    payee: str
    cents: int
    status: Status
    balance: int
