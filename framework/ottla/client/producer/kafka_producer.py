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
        """See `init_transactions_async`."""
        try:
            self._wait_for("init_transactions", lambda machine: machine.init(), timeout)
        except InvalidTransactionTimeout as error:
            raise self._engine.run(self._with_limit(error), 10) from None

    def begin_transaction(self) -> None:
        """See `begin_transaction_async`."""
        while not self._wait_for("begin_transaction", lambda machine: machine.begin(), None):
            pass

    def send_offsets_to_transaction(
        self, offsets: Offsets, group_metadata: ConsumerGroupMetadata, timeout: float | None = None
    ) -> None:
        """See `send_offsets_to_transaction_async`."""
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
        """See `commit_transaction_async`."""
        self._wait_for("commit_transaction", self._commit(offsets, group_metadata), timeout)

    def abort_transaction(self, timeout: float | None = None) -> None:
        """See `abort_transaction_async`."""
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
