"""Broker: the parts of one broker, without sockets.

The shell (or a test) owns the event loop, calls `handle` for each request in the order of its connection, `settle`
when it has handed over what came in, and `tick` when `deadline_ms` is reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ottla_broker import api
from ottla_broker.replication.transaction_verification import TransactionVerification

if TYPE_CHECKING:
    from ottla_broker.context import RequestContext
    from ottla_broker.controller.controller import Controller
    from ottla_broker.coordinator.group_coordinator import GroupCoordinator
    from ottla_broker.pending import Pending
    from ottla_broker.replication.replica_manager import ReplicaManager
    from ottla_broker.shell.config import BrokerConfig
    from ottla_broker.shell.log_directory import LogDirectory


class Clock(Protocol):
    """The two clocks. Logic never reads them itself: they are read at the edge and handed on as `now_ms`."""

    def now_ms(self) -> int:
        """Monotonic milliseconds: time-outs, deadlines, ticks."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970: what is written into records and compared with record timestamps."""
        ...


class Authorizer(Protocol):
    """The one authorization step of every request."""

    def authorize(self, context: RequestContext, request: Any) -> None:
        """Return if `context.principal` may make this request; raise the KafkaError that refuses it otherwise."""
        ...


class AllowAll:
    """No identities yet: everybody may do everything."""

    def authorize(self, context: RequestContext, request: Any) -> None:
        """Allow it."""


class Transactions(Protocol):
    """What request handlers ask the transaction coordinator. While a broker has none, they answer for it."""

    def partition_for(self, transactional_id: str) -> int:
        """The partition of `__transaction_state` that keeps this id; its leader is the id's coordinator."""
        ...

    def add_partitions(
        self,
        transactional_id: str,
        producer_id: int,
        producer_epoch: int,
        partitions: Sequence[tuple[str, int]],
        *,
        verify_only: bool,
        now_ms: int,
    ) -> Pending[dict[tuple[str, int], int]]:
        """Add partitions to a transaction, or verify that they are part of it: an error code for each."""
        ...

    def init_producer_id(self, context: RequestContext, request: Any) -> Any:
        """Handle InitProducerId with a transactional id; the response or a `Pending` of it."""
        ...


class Broker:
    """One broker: configuration, controller, replicas, group coordinator.

    Attributes:
        node_id: this broker's id.
        host, port: what clients are told (`advertised.listeners`).
    """

    def __init__(
        self,
        config: BrokerConfig,
        *,
        clock: Clock,
        controller: Controller,
        replicas: ReplicaManager,
        groups: GroupCoordinator,
        host: str,
        port: int,
        log_directory: LogDirectory | None = None,
        authorizer: Authorizer | None = None,
    ) -> None:
        self.config = config
        self.clock = clock
        self.controller = controller
        self.replicas = replicas
        self.groups = groups
        self.transactions: Transactions | None = None
        self.verification = TransactionVerification(
            replicas,
            clock,
            lambda: self.transactions,
            verifies=config.transaction_partition_verification_enable,
            retry_backoff_ms=config.add_partitions_to_txn_retry_backoff_ms,
            retry_max_ms=config.add_partitions_to_txn_retry_backoff_max_ms,
            request_timeout_ms=config.request_timeout_ms,
        )
        self.log_directory = log_directory
        self.authorizer: Authorizer = authorizer or AllowAll()
        self.node_id = config.node_id
        self.host = host
        self.port = port

    def handle(self, context: RequestContext, request: Any) -> Any:
        """Handle one request: a response, a `Pending` of one, or None (no answer)."""
        return api.dispatch(self, context, request)

    def settle(self, now_ms: int) -> None:
        """Do what became possible: answers that waited for a high watermark, fetches that waited for data.

        Called once after a batch of requests, so that a fetch sees the batch and not its first record.
        """
        self.groups.settle(now_ms)
        self.replicas.settle(now_ms)

    def connection_lost(self, connection_id: int) -> None:
        """A client is gone. Nobody keeps state per connection yet: what it waited for ends by its own deadline."""

    def drain(self, now_ms: int) -> None:
        """The broker stops: answer what is parked with what there is."""
        self.verification.drain()
        self.replicas.drain()
        self.settle(now_ms)

    def tick(self, now_ms: int) -> None:
        """Run everything that is due."""
        self.verification.tick(now_ms)
        self.replicas.tick(now_ms)
        self.groups.tick(now_ms)
        if self.log_directory is not None:
            self.log_directory.tick(now_ms)
        self.settle(now_ms)

    def deadline_ms(self) -> int | None:
        """When `tick` has something to do, or None."""
        deadlines = [self.replicas.deadline_ms(), self.groups.deadline_ms(), self.verification.deadline_ms()]
        if self.log_directory is not None:
            deadlines.append(self.log_directory.deadline_ms())
        return min((at for at in deadlines if at is not None), default=None)
