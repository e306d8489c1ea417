"""SenderTask: the sender's place on the engine's I/O loop. It gives the machine a clock, timers and connections."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

from ottla.client.cluster import Cluster, Lane, Purpose, TopicInterest
from ottla.client.config import ProducerConfig
from ottla.client.engine import Engine
from ottla.client.producer.producer_batch import ProducerBatch
from ottla.client.producer.record_accumulator import NEVER_MS, RecordAccumulator
from ottla.client.producer.sender import ProduceAttempt, Sender
from ottla.client.producer.transaction_manager import TransactionManager
from ottla.errors import ClientClosed, NetworkError, OttlaError, UnsupportedVersion
from ottla_wire.messages.produce import ProduceRequest
from ottla_wire.schema import Request

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
        self._engine = engine
        self._config = config
        self._accumulator = accumulator
        self._lane = Lane(client_id)
        self._interest = TopicInterest()
        self._after_run = after_run
        self._cluster: Cluster = engine.cluster
        self._posted = False
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._tidy_at_ms = 0
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
        now_ms = self._cluster.now_ms()
        # Set before looking: a batch begun while the sender looks is seen by it, or wakes it because of this.
        self.next_look_ms = NEVER_MS
        look_again_ms = self.sender.run_once(now_ms)
        if now_ms >= self._tidy_at_ms:
            self._tidy(now_ms)
        self.look_again_at(look_again_ms)
        self._after_run()

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
            if version < 7 and self._config.compression_type == "zstd":
                raise UnsupportedVersion(f"{connection.node} does not know zstd: it is older than Kafka 2.1")
            acks = self._config.required_acks()
            request = attempt.build(acks, self._config.request_timeout_ms)
            if acks == 0:
                connection.send_without_answer(request, version)
                loop.call_soon(self._answered, attempt, None, None)
                return
            answer = connection.send(request, version)
        except OttlaError as error:
            loop.call_soon(self._answered, attempt, None, error)
            return
        except Exception as error:
            logger.exception("a Produce request could not be made")
            loop.call_soon(self._answered, attempt, None, UnsupportedVersion(f"it could not be sent: {error!r}"))
            return
        answer.add_done_callback(lambda done: self._answered_by(attempt, done))

    def _answered_by(self, attempt: ProduceAttempt, answer: asyncio.Future[Any]) -> None:
        if answer.cancelled():
            self._answered(attempt, None, NetworkError("the request was cancelled"))
            return
        error = answer.exception()
        if error is None:
            self._answered(attempt, answer.result(), None)
        elif isinstance(error, OttlaError):
            self._answered(attempt, None, error)
        else:
            self._answered(attempt, None, NetworkError(repr(error)))

    def _answered(self, attempt: ProduceAttempt, answer: Any, error: OttlaError | None) -> None:
        self.sender.answered(attempt, answer, error, self._cluster.now_ms())
        if self._stopped:
            self._after_run()
        else:
            self._schedule()

    def ask_for_producer_id(self, request: Request) -> None:
        """Ask any broker."""

        async def ask() -> None:
            answer, error = None, None
            try:
                # Version 6 is for two-phase commit, which Kafka has not finished.
                answer = await self._cluster.send_to_any(request, max_version=5)
            except OttlaError as failure:
                error = failure
            self.sender.producer_id_answered(answer, error, self._cluster.now_ms())
            self._schedule()

        self._asking = asyncio.get_running_loop().create_task(ask(), name="ottla producer id")

    def refresh_metadata(self, topics: Iterable[str]) -> None:
        """Ask for the producer's topics soon, those among them."""
        self._interest.topics = set(self._accumulator.topics)
        self._cluster.request_refresh(topics)


__all__ = ["ProducerBatch", "SenderTask"]
