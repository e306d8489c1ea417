"""KafkaProducer and AsyncKafkaProducer: the two faces of a producer."""

from __future__ import annotations

from typing import Self

from ottla.client.engine import monotonic_ms
from ottla.client.faces import awaited, blocking
from ottla.client.producer.producer_core import ProducerCore
from ottla.client.producer.transactions_face import Offsets, checked_offsets
from ottla.client.topic_partition import ConsumerGroupMetadata
from ottla.errors import InvalidTransactionTimeout


class KafkaProducer(ProducerCore):
    """A producer for threads. It is thread-safe, and one for all threads is faster than one for each.

    Settings are Java's, as keywords in snake case (`linger_ms=5`), in a mapping with dotted names, or both; see
    `ottla.client.config.ProducerConfig`. It starts with the first send. `send` may also be called on event loops; the
    methods that wait may not, they have a form to be awaited in `AsyncKafkaProducer`.

    Args:
        config: settings in a mapping.
        engine: the I/O thread to share with other clients; the producer's own, if not given.
        settings: settings as keywords; they win over the mapping.

    Raises:
        ConfigError: a setting is unknown, wrong, or contradicts another.
    """

    def flush(self, timeout: float | None = None) -> None:
        """Send what waits at once, and wait until everything sent before this call is done, well or not.

        The callbacks of what was sent have been called then, too.

        Raises:
            NoAnswer: it took longer than `timeout` seconds. Without one, `delivery_timeout_ms` ends the wait.
        """
        self._flush_blocking(timeout)

    partitions_for = blocking(ProducerCore.find_partitions)

    def init_transactions(self, timeout: float | None = None) -> None:
        """Get a producer id, and with it the right to this transactional id. Once, before the first transaction.

        A transaction that an earlier instance left open is aborted, and that instance is fenced if it still runs.

        Raises:
            NoAnswer: it took longer than `timeout` seconds (`max_block_ms`); call it again.
            InvalidTransactionTimeout: `transaction_timeout_ms` is above what the brokers allow.
            TransactionalIdAuthorizationFailed: the id may not be used.
            IllegalTransactionState: it was called already, or the producer has no transactional id.
        """
        try:
            self._wait_for("init_transactions", lambda machine: machine.init(), timeout)
        except InvalidTransactionTimeout as error:
            raise self._engine.run(self._with_limit(error), 10) from None

    def begin_transaction(self) -> None:
        """Begin a transaction: what is sent from now on is visible to read_committed readers after the commit.

        Asks no broker, unless the transaction before was one after which the producer needs its next epoch.

        Raises:
            IllegalTransactionState: a transaction is open, or `init_transactions` was not called.
            ProducerFenced, ...: the producer is of no more use.
        """
        while not self._wait_for("begin_transaction", lambda machine: machine.begin(), None):
            pass

    def send_offsets_to_transaction(
        self, offsets: Offsets, group_metadata: ConsumerGroupMetadata, timeout: float | None = None
    ) -> None:
        """Commit a group's offsets with the transaction: they are the next to read, and count if it is committed.

        `group_metadata` is what the consumer's `group_metadata()` returns, so that a replaced member is refused.

        Raises:
            NotInTransaction: no transaction is open.
            CommitFailed: the group has moved on without this member. The transaction must be aborted.
            NoAnswer: it took longer than `timeout` seconds (`max_block_ms`); call it again, or abort.
        """
        wanted = checked_offsets(offsets, group_metadata)
        self._wait_for(
            "send_offsets_to_transaction",
            lambda machine: machine.send_offsets(wanted, group_metadata, monotonic_ms()),
            timeout,
        )

    def commit_transaction(
        self,
        timeout: float | None = None,
        *,
        offsets: Offsets | None = None,
        group_metadata: ConsumerGroupMetadata | None = None,
    ) -> None:
        """Commit: waits until all that was sent is stored, and the coordinator has taken the commit.

        `offsets` and `group_metadata` are committed with it, as `send_offsets_to_transaction` does, without waiting for
        that first.

        Raises:
            NotInTransaction: no transaction is open.
            NoAnswer: it took longer than `timeout` seconds (`max_block_ms`). Whether it is committed is not known: only
                this call may be repeated, and it then tells.
            TransactionTimedOut: the coordinator has aborted it, because it was open for too long.
            ProducerFenced: another producer has taken over the transactional id; close this one.
            OttlaError: whatever a send or the offsets failed with, whether or not that was seen.
                `abort_transaction` is next, for all but what is Fatal.
        """
        self._wait_for("commit_transaction", self._commit(offsets, group_metadata), timeout)

    def abort_transaction(self, timeout: float | None = None) -> None:
        """Abort: nobody who reads committed records sees any of it, and what was not sent is dropped.

        The futures of dropped records fail with TransactionAborted. After it the next transaction may begin, also after
        a failure.

        Raises:
            NotInTransaction: no transaction is open.
            NoAnswer: it took longer than `timeout` seconds (`max_block_ms`); only this call may be repeated.
            ProducerFenced: another producer has taken over the transactional id; close this one.
        """
        self._wait_for("abort_transaction", lambda machine: machine.abort(), timeout)

    def close(self, timeout: float | None = None) -> None:
        """Take no more records, wait for those under way (`timeout` seconds at most), then close the connections.

        What is not acknowledged by then fails with ClientClosed. Called in a callback it does not wait. Closing twice
        is closing once.
        """
        self._close_blocking(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncKafkaProducer(ProducerCore):
    """The producer for event loops: what waits is awaited. `send` is the same, and is not awaited; its future is."""

    flush = ProducerCore.flush_async

    partitions_for = awaited(ProducerCore.find_partitions)

    init_transactions = ProducerCore.init_transactions_async
    begin_transaction = ProducerCore.begin_transaction_async
    send_offsets_to_transaction = ProducerCore.send_offsets_to_transaction_async
    commit_transaction = ProducerCore.commit_transaction_async
    abort_transaction = ProducerCore.abort_transaction_async

    async def close(self, timeout: float | None = None) -> None:
        """Take no more records, wait for those under way (`timeout` seconds at most), then close the connections."""
        await self._close_async(timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
