"""SenderTask: the sender's place on the engine's I/O loop. It gives the machine a clock, timers and connections."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

from ottla.client.cluster import Cluster, CoordinatorKind, FinalizedFeatures, Lane, Purpose, TopicInterest
from ottla.client.config import ProducerConfig
from ottla.client.connection import Connection
from ottla.client.engine import Engine
from ottla.client.producer.producer_batch import ProducerBatch
from ottla.client.producer.record_accumulator import NEVER_MS, RecordAccumulator
from ottla.client.producer.sender import ProduceAttempt, Sender
from ottla.client.producer.transaction_manager import TransactionManager
from ottla.client.producer.transaction_requests import TransactionRequest
from ottla.client.producer.turn import Turn
from ottla.errors import ClientClosed, NetworkError, OttlaError, UnsupportedVersion
from ottla_wire.messages.produce import ProduceRequest

logger = logging.getLogger("ottla.producer")

TIDY_MS: Final = 30_000


class SenderTask:
    """Runs a producer's sender. `wake` may be called on any thread, everything else belongs to the I/O loop."""

    def __init__(
        self,
        engine: Engine,
        config: ProducerConfig,
        accumulator: RecordAccumulator,
        transactions: TransactionManager | None,
        client_id: str,
        after_run: Callable[[], None],
    ) -> None:
        self.next_look_ms = NEVER_MS  # when the loop looks again by itself; what is due later need not wake it
        self.turn = Turn()
        self._engine = engine
        self._config = config
        self._accumulator = accumulator
        self._lane = Lane(client_id)
        self._interest = TopicInterest()
        self._after_run = after_run
        self._cluster: Cluster = engine.cluster
        self._transactions = transactions
        self._posted = False
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._tidy_at_ms = 0
        self._features: FinalizedFeatures | None = None
        self.sender = Sender(config, accumulator, self._cluster.metadata, self, transactions)

    # --- life

    def wake(self) -> None:
        """Look soon: there is something new. From any thread; many calls before the loop looks are one."""
        if not self._posted:
            self._posted = True
            self._engine.post(self._run_posted)

    def start(self) -> None:
        """On the I/O loop: take part in what the cluster learns."""
        self._cluster.add_interest(self._interest)
        self._cluster.add_listener(self._schedule)
        self._schedule()

    async def stop(self) -> None:
        """Give up all that is left, and close the producer's connections."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self.sender.give_up_all(ClientClosed("the producer was closed before the record was acknowledged"))
        self._cluster.remove_listener(self._schedule)
        self._cluster.remove_interest(self._interest)
        self._cluster.close_lane(self._lane)
        self._after_run()

    def _run_posted(self) -> None:
        self._posted = False
        self._run()

    def _schedule(self) -> None:
        """Run in this turn of the loop, once, however many reasons there are."""
        if not self._scheduled and not self._stopped:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        if self._stopped:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._see_features()
        now_ms = self._cluster.now_ms()
        self.turn.begin(now_ms)
        # Set before looking: a batch begun while the sender looks is seen by it, or wakes it because of this.
        self.next_look_ms = NEVER_MS
        look_again_ms = self.sender.run_once(now_ms)
        if now_ms >= self._tidy_at_ms:
            self._tidy(now_ms)
        self.look_again_at(look_again_ms)
        self._after_run()

    def _go_on(self) -> None:
        """In the same turn of the loop: what is next for a transaction waits for nothing."""
        if self._accumulator.has_unsent:
            self._run()
        else:
            self.look_again_at(self.sender.see_to_transactions(self._cluster.now_ms()))
            self._after_run()

    def _see_features(self) -> None:
        """Tell the transaction manager of newer finalized features."""
        features = self._cluster.features
        if features is not self._features:
            self._features = features
            self.sender.features_seen(features.epoch, features.levels.get("transaction.version", 0))

    def _tidy(self, now_ms: int) -> None:
        """Forget topics that nothing is sent to any more, so that they are not asked for for ever."""
        self._tidy_at_ms = now_ms + TIDY_MS
        with self._accumulator.lock:
            self._accumulator.forget_idle_topics(now_ms)
            self._interest.topics = set(self._accumulator.topics)

    def look_again_at(self, at_ms: int) -> None:
        """Set the timer, unless it goes off earlier anyway."""
        if at_ms >= self.next_look_ms:
            return
        self.next_look_ms = at_ms
        if self._timer is not None:
            self._timer.cancel()
        delay = max(0, at_ms - self._cluster.now_ms()) / 1000
        self._timer = asyncio.get_running_loop().call_later(delay, self._run)

    # --- the sender's network

    def is_ready(self, node_id: int) -> bool:
        """Whether there is a connection that may be used; one is opened if not, and its opening runs the sender."""
        connection = self._cluster.ready_connection(node_id, Purpose.PRODUCE, self._lane)
        now_ms = self._cluster.now_ms()
        if connection is None:
            pause_ms = self._cluster.retry_in_ms(node_id)
            if pause_ms:
                self._wake_in(pause_ms)
            if self._cluster.metadata.node(node_id) is None:
                self._cluster.request_refresh()
            return False
        if connection.is_ready(now_ms):
            return True
        self._wake_in(connection.throttled_until_ms - now_ms)
        return False

    def _wake_in(self, pause_ms: int) -> None:
        asyncio.get_running_loop().call_later(max(1, pause_ms) / 1000, self._schedule)

    def produce(self, attempt: ProduceAttempt) -> None:
        """Send a Produce request; what comes of it goes to `Sender.answered` in a later turn of the loop."""
        loop = asyncio.get_running_loop()
        try:
            connection = self._cluster.ready_connection(attempt.node_id, Purpose.PRODUCE, self._lane)
            if connection is None:
                raise NetworkError(f"the connection to broker {attempt.node_id} was lost")
            version = connection.version_for(ProduceRequest, attempt.max_version)
            if version < attempt.versions[0]:
                raise UnsupportedVersion(
                    f"{connection.node} has Produce up to version {version}; transactions of version 2, which the "
                    f"cluster has finalized, need {attempt.versions[0]}"
                )
            if version < 7 and self._config.compression_type == "zstd":
                raise UnsupportedVersion(f"{connection.node} does not know zstd: it is older than Kafka 2.1")
            acks = self._config.required_acks()
            request = attempt.build(acks, self._config.request_timeout_ms)
            if acks == 0:
                connection.send_without_answer(request, version)
                loop.call_soon(self._answered, attempt, None, None)
                return
            connection.send_then(request, version, functools.partial(self._answered, attempt))
        except OttlaError as error:
            loop.call_soon(self._answered, attempt, None, error)
            return
        except Exception as error:
            logger.exception("a Produce request could not be made")
            loop.call_soon(self._answered, attempt, None, UnsupportedVersion(f"it could not be sent: {error!r}"))

    def _answered(self, attempt: ProduceAttempt, answer: Any, error: OttlaError | None) -> None:
        self.sender.answered(attempt, answer, error, self._cluster.now_ms())
        if self._stopped:
            self._after_run()
        elif self._transactions is not None and self._transactions.is_ending:
            self._go_on()
        else:
            self._schedule()

    def ask(self, request: TransactionRequest) -> None:
        """Send a request of the transaction manager, on the coordinator's connection if that is open."""
        if request.node_id is not None and request.message is not None:
            connection = self._cluster.ready_connection(request.node_id, Purpose.COORDINATOR, self._lane)
            if connection is not None:
                try:
                    version = _version(connection, request)
                    callback = functools.partial(self._request_answered, request)
                    connection.send_then(request.message, version, callback, request.timeout_ms)
                except OttlaError as error:
                    asyncio.get_running_loop().call_soon(self._request_answered, request, None, error)
                return
        self._asking = asyncio.get_running_loop().create_task(self._ask(request), name=f"ottla {request}")

    async def _ask(self, request: TransactionRequest) -> None:
        answer, error = None, None
        try:
            if request.message is None:
                assert request.coordinator is not None
                kind, key = request.coordinator
                answer = await self._cluster.ask_for_coordinator(
                    key, CoordinatorKind(kind), timeout_ms=request.timeout_ms
                )
            elif request.node_id is None:
                answer = await self._cluster.send_to_any(request.message, max_version=request.versions[1])
            else:
                deadline_ms = self._cluster.now_ms() + (request.timeout_ms or self._config.request_timeout_ms)
                connection = await self._cluster.connect(request.node_id, Purpose.COORDINATOR, self._lane, deadline_ms)
                left_ms = max(1, deadline_ms - self._cluster.now_ms())
                answer = await connection.send(request.message, _version(connection, request), left_ms)
        except OttlaError as failure:
            error = failure
        self._request_answered(request, answer, error)

    def _request_answered(self, request: TransactionRequest, answer: Any, error: OttlaError | None) -> None:
        self._see_features()
        self.sender.request_answered(request, answer, error, self._cluster.now_ms())
        if not self._stopped:
            self._go_on()

    def refresh_metadata(self, topics: Iterable[str]) -> None:
        """Ask for the producer's topics soon, those among them."""
        self._interest.topics = set(self._accumulator.topics)
        self._cluster.request_refresh(topics)


def _version(connection: Connection, request: TransactionRequest) -> int:
    """The highest version that both sides have, and that means what the request needs."""
    lowest, highest = request.versions
    version = connection.version_for(type(request.message), highest)  # type: ignore[arg-type]
    if version < lowest:
        raise UnsupportedVersion(f"{connection.node}: {request} needs version {lowest}, there is {version}")
    return version


__all__ = ["ProducerBatch", "SenderTask"]
