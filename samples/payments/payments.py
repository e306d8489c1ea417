"""The application: orders come in, accounts are charged, receipts go out; for each order exactly once.

    ottla run payments:app

Reading the order and sending the receipt are one transaction of Kafka. Charging is one of the database, and the inbox
makes it part of the same promise: an order that comes again because Kafka's transaction did not commit is recognised,
is not charged again, and its receipt is the one that the database has.
"""

from __future__ import annotations

import logging
import os

from ledger import Ledger, inbox
from models import Payment

from ottla import ConsumerRecord, ErrorHandler, Ottla, Retry

logger = logging.getLogger("payments")

app = Ottla(name="payments")
app.topic("payments", partitions=6)
app.topic("receipts", partitions=6)
ledger = Ledger(os.environ.get("PAYMENTS_DATABASE", "sqlite:///payments.db"))


def set_aside(record: ConsumerRecord, error: BaseException) -> None:
    headers = [("error", str(error))]
    app.template.send("payments-dead", record.value, key=record.key, headers=headers)


# The payments behind one that fails wait for it: a database that is away for some minutes costs time, and no payment.
patient = ErrorHandler(retry=Retry.exponential(0.05, 5, attempts=100), recover=set_aside)


@app.listener("payments", group="payments", transactional=True, on_error=patient)
def pay(payment: Payment, record: ConsumerRecord) -> None:
    with ledger.begin() as connection, inbox.handle(record, connection) as fresh:
        if fresh:
            receipt = ledger.charge(connection, payment)
        else:
            receipt = ledger.receipt_of(connection, payment.id)
            logger.info("charged before: %s", payment.id)
    app.template.send("receipts", receipt, key=payment.payer)
