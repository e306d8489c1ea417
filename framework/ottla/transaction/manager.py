"""KafkaTransactionManager: transactions of a producer factory, for code that has no template at hand."""

from __future__ import annotations

from typing import Any

from ottla.producer_factory import ProducerFactory, checked_prefix
from ottla.transaction.blocks import Propagation, TransactionBlock


class KafkaTransactionManager:
    """Transactions of a factory, with a prefix and a timeout of one's own (Spring: KafkaTransactionManager).

    Args:
        producer_factory: the sends of its templates are part of the transactions.
        transaction_id_prefix: of the transactional ids, if not the factory's own.
        timeout: seconds after which a transaction is aborted, unless a block says otherwise.

    Raises:
        ConfigError: the prefix is empty, or the factory's settings rule transactions out (acks, retries, idempotence).
    """

    def __init__(
        self,
        producer_factory: ProducerFactory,
        *,
        transaction_id_prefix: str | None = None,
        timeout: float | None = None,
    ) -> None:
        producer_factory.check_transactions()
        self.producer_factory = producer_factory
        self.transaction_id_prefix = checked_prefix(transaction_id_prefix)
        self.timeout = timeout

    def transaction(
        self,
        timeout: float | None = None,
        propagation: Propagation | str = Propagation.REQUIRED,
        database: Any = None,
    ) -> TransactionBlock:
        """A block, for `with` and `async with`; see `KafkaTemplate.transaction`."""
        return TransactionBlock(
            self.producer_factory,
            prefix=self.transaction_id_prefix,
            timeout=self.timeout if timeout is None else timeout,
            propagation=propagation,
            database=database,
        )
