"""Broker: the parts of one broker, without sockets.

The shell (or a test) owns the event loop, calls `handle` for each request in the order of its connection, `settle`
when it has handed over what came in, and `tick` when `deadline_ms` is reached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from ottla_broker import api
from ottla_broker.context import ANONYMOUS, RequestContext
from ottla_broker.pending import Pending
from ottla_broker.replication.transaction_verification import TransactionVerification

if TYPE_CHECKING:
    from ottla_broker.controller.controller import Controller
    from ottla_broker.coordinator.group_coordinator import GroupCoordinator
    from ottla_broker.coordinator.transaction_coordinator import TransactionCoordinator
    from ottla_broker.replication.replica_manager import ReplicaManager
    from ottla_broker.shell.config import BrokerConfig
    from ottla_broker.shell.log_directory import LogDirectory
    from ottla_wire.messages.write_txn_markers import WriteTxnMarkersRequest, WriteTxnMarkersResponse

_NO_CONNECTION: Final = 0


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


class Broker:
    """One broker: configuration, controller, replicas, coordinators of groups and transactions.

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
        transactions: TransactionCoordinator,
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
        self.transactions = transactions
        self.transactions.markers.channel = LocalMarkerChannel(self)
        self.verification = TransactionVerification(
            replicas,
            clock,
            lambda: self.transactions,
            verifies=config.transaction_partition_verification_enable,
            retry_backoff_ms=config.add_partitions_to_txn_retry_backoff_ms,
            retry_max_ms=config.add_partitions_to_txn_retry_backoff_max_ms,
            request_timeout_ms=config.request_timeout_ms,
        )
        self.transactions.markers.on_over = self.verification.transaction_over
        self.log_directory = log_directory
        self.authorizer: Authorizer = authorizer or AllowAll()
        self.node_id = config.node_id
        self.host = host
        self.port = port

    def handle(self, context: RequestContext, request: Any) -> Any:
        """Handle one request: a response, a `Pending` of one, or None (no answer)."""
        return api.dispatch(self, context, request)

    def settle_answers(self, now_ms: int) -> None:
        """Do what answers wait for: a high watermark, data, the records of coordinators.

        Called once after a batch of requests, so that a fetch sees the batch and not its first record. What follows
        from it and nobody waits for (`has_follow_ups`) is left to `settle`.
        """
        self.groups.settle(now_ms)
        self.transactions.settle_answers(now_ms)
        self.replicas.settle(now_ms)

    @property
    def has_follow_ups(self) -> bool:
        """Whether `settle` has more to do than `settle_answers`: transactions that have ended want their markers."""
        return self.transactions.has_follow_ups or not self.verification.is_settled

    def settle(self, now_ms: int) -> None:
        """Do everything that became possible, and what follows from it."""
        while True:
            self.groups.settle(now_ms)
            self.transactions.settle(now_ms)
            self.verification.settle()
            self.replicas.settle(now_ms)
            if self.transactions.is_settled and self.verification.is_settled:
                return  # else what was replicated just now leads on

    def connection_lost(self, connection_id: int) -> None:
        """A client is gone. Nobody keeps state per connection yet: what it waited for ends by its own deadline."""

    def drain(self, now_ms: int) -> None:
        """The broker stops: answer what is parked with what there is."""
        self.verification.drain()
        self.replicas.drain()
        self.settle(now_ms)

    def tick(self, now_ms: int) -> None:
        """Run everything that is due."""
        self.controller.tick(now_ms)
        self.verification.tick(now_ms)
        self.replicas.tick(now_ms)
        self.groups.tick(now_ms)
        self.transactions.tick(now_ms)
        if self.log_directory is not None:
            self.log_directory.tick(now_ms)
        self.settle(now_ms)

    def deadline_ms(self) -> int | None:
        """When `tick` has something to do, or None."""
        earliest = None if self.log_directory is None else self.log_directory.deadline_ms()
        for part in (self.controller, self.replicas, self.groups, self.transactions, self.verification):
            at = part.deadline_ms()
            if at is not None and (earliest is None or at < earliest):
                earliest = at
        return earliest


class LocalMarkerChannel:
    """The way of transaction markers to the only node there is: the handler of WriteTxnMarkers, called at once."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def send(self, node_id: int, request: WriteTxnMarkersRequest, now_ms: int) -> Pending[WriteTxnMarkersResponse]:
        """Write the markers; whatever fails as a whole fails the Pending."""
        broker = self._broker
        assert node_id == broker.node_id, f"node {node_id} leads a partition, and there is only node {broker.node_id}"
        versions = request.versions
        context = RequestContext(
            _NO_CONNECTION, request.api_key, versions.max, f"broker-{node_id}", broker.host, ANONYMOUS, now_ms
        )
        try:
            answer = api.handler_module(request.api_key).handle(broker, context, request)
        except Exception as error:  # noqa: BLE001 - the sender tries again, and says what it was
            return Pending.failed(error)
        return answer if isinstance(answer, Pending) else Pending.completed(answer)
