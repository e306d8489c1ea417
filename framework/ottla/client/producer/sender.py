"""Sender: takes ready batches out of the accumulator, to the brokers, and decides what their answers mean. Sans-I/O.

Theory of operation. `run_once` looks at everything once: settles what is in doubt, asks for a producer id where one is
missing, gives up what has taken too long, and sends one request after the other to each broker that is ready for one
and has fewer than `max_in_flight_requests_per_connection` of ours under way. The answers come back through `answered`.

A batch is finished in exactly one of four ways: stored (also: recognised as stored before), refused for good, given up
when `delivery_timeout_ms` is over, or given up with the whole producer. Until then it is in a queue of the accumulator,
or on the wire, never both and never neither. A batch whose time is over while it is on the wire fails towards its
sender at once, but keeps its memory and its sequence until its request has ended: what was stored is known only then.

The network is what is handed in: `SenderTask` on the engine's loop, or a test's.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from ottla.client.config import ProducerConfig
from ottla.client.metadata import Metadata, Node
from ottla.client.producer.coordinator_line import CONCURRENT_PAUSE_MS
from ottla.client.producer.producer_batch import ProducerBatch
from ottla.client.producer.record_accumulator import NEVER_MS, RecordAccumulator
from ottla.client.producer.transaction_manager import TransactionManager
from ottla.client.producer.transaction_operation import Operation
from ottla.client.producer.transaction_requests import TransactionRequest
from ottla.client.producer.transaction_tables import PRODUCE_VERSIONS, TransactionState
from ottla.errors import (
    Abortable,
    ConcurrentTransactions,
    DeliveryTimedOut,
    DuplicateSequenceNumber,
    InvalidProducerEpoch,
    InvalidRecord,
    InvalidTopic,
    KafkaError,
    MessageTooLarge,
    NetworkError,
    NoAnswer,
    NotEnoughReplicas,
    OttlaError,
    OutOfOrderSequenceNumber,
    RecordsRefused,
    Retriable,
    TopicAuthorizationFailed,
    TransactionAborted,
    UnknownProducerId,
    UnknownTopicId,
    UnknownTopicOrPartition,
    UnsupportedVersion,
    error_for,
)
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.records import SendFuture, complete_batch, fail_futures
from ottla_wire.schema import Uuid

logger = logging.getLogger("ottla.producer")


TOPIC_IDS: Final = 13
"""The version of Produce with topic ids in place of names."""

_NOT_STORED: Final = (
    ConcurrentTransactions,
    NotEnoughReplicas,
    OutOfOrderSequenceNumber,
    UnknownProducerId,
    UnknownTopicId,
    UnknownTopicOrPartition,
)
"""Retried errors that say for certain that the batch was not stored. A timeout, a broken connection, and also
NOT_LEADER_OR_FOLLOWER or NOT_ENOUGH_REPLICAS_AFTER_APPEND, do not."""


@dataclass(slots=True, eq=False)
class ProduceAttempt:
    """One Produce request: the batches in it, and to whom it goes."""

    node_id: int
    batches: list[ProducerBatch]
    sent_ms: int
    transactional_id: str | None = None
    versions: tuple[int, int] = PRODUCE_VERSIONS

    def build(self, acks: int, timeout_ms: int) -> ProduceRequest:
        """The request. Topics carry name and id: each version takes the one it knows."""
        topics: dict[str, TopicProduceData] = {}
        for batch in self.batches:
            queue = batch.queue
            topic = topics.get(queue.topic.name)
            if topic is None:
                topic = TopicProduceData(name=queue.topic.name, topic_id=queue.topic.topic_id, partition_data=[])
                topics[queue.topic.name] = topic
            topic.partition_data.append(PartitionProduceData(index=queue.index, records=batch.encode()))
        return ProduceRequest(
            transactional_id=self.transactional_id, acks=acks, timeout_ms=timeout_ms, topic_data=list(topics.values())
        )

    @property
    def max_version(self) -> int:
        """The highest version that can be used: without topic ids it is 12, in transactions of version 1 it is 11."""
        highest = self.versions[1]
        named = highest >= TOPIC_IDS and any(batch.queue.topic.topic_id == Uuid.ZERO for batch in self.batches)
        return TOPIC_IDS - 1 if named else highest


class Network(Protocol):
    """What the sender needs of the world. Nothing here waits, and nothing calls back before it has returned."""

    def is_ready(self, node_id: int) -> bool:
        """Whether a request can be sent to a node now; if not, see to it that it can be, and run the sender then."""

    def produce(self, attempt: ProduceAttempt) -> None:
        """Send; `Sender.answered` brings what came of it, exactly once."""

    def ask(self, request: TransactionRequest) -> None:
        """Send a request of the transaction manager; `Sender.request_answered` brings what came of it, exactly once."""

    def refresh_metadata(self, topics: Iterable[str]) -> None:
        """Ask for metadata soon; `Sender.metadata_changed` is called when it is there."""


@dataclass(slots=True)
class Counters:
    """What the producer has done since it began."""

    records_sent: int = 0
    records_failed: int = 0
    records_retried: int = 0
    bytes_sent: int = 0
    batches_sent: int = 0
    batches_split: int = 0
    requests_sent: int = 0
    request_latency_ms: int = 0


Failure = tuple[Sequence[SendFuture], BaseException, int]


@dataclass(slots=True)
class _Outcome:
    """What has to be done once the lock is given back: futures run callbacks, and callbacks may send."""

    stored: list[tuple[ProducerBatch, int, int]] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    finished: list[Operation] = field(default_factory=list)

    def deliver(self) -> None:
        for batch, base_offset, log_append_time_ms in self.stored:
            queue = batch.queue
            complete_batch(batch.futures, queue.topic.name, queue.index, base_offset, log_append_time_ms)
        for futures, error, partition in self.failed:
            fail_futures(futures, error, partition)
        for operation in self.finished:  # after the futures: who committed finds them done
            for callback in operation.take_callbacks():
                callback()


class Sender:
    """The producer's side of the conversation with the brokers."""

    def __init__(
        self,
        config: ProducerConfig,
        accumulator: RecordAccumulator,
        metadata: Metadata,
        network: Network,
        transactions: TransactionManager | None = None,
    ) -> None:
        self.counters = Counters()
        self._config = config
        self._accumulator = accumulator
        self._metadata = metadata
        self._network = network
        self._transactions = transactions
        self._acks = config.required_acks()
        self._in_flight: dict[int, set[ProduceAttempt]] = defaultdict(set)
        self._unexplained: list[tuple[ProducerBatch, KafkaError]] = []
        self._metadata_version = -1

    @property
    def requests_in_flight(self) -> int:
        """How many Produce requests are not answered yet."""
        return sum(map(len, self._in_flight.values()))

    # --- one look at everything

    def run_once(self, now_ms: int) -> int:
        """Do all that can be done now; returns when to look again at the latest, unless something happens first."""
        outcome = _Outcome()
        with self._accumulator.lock:
            attempts, request, look_again_ms = self._decide(now_ms, outcome)
        outcome.deliver()
        if request is not None:
            self._network.ask(request)
        for attempt in attempts:  # compresses: without the lock
            self._network.produce(attempt)
        return look_again_ms

    def see_to_transactions(self, now_ms: int) -> int:
        """The part of `run_once` that is left where nothing waits to be sent: a transaction on its way to its end."""
        outcome = _Outcome()
        with self._accumulator.lock:
            request, look_again_ms = self._see_to_transactions(now_ms, outcome)
        outcome.deliver()
        if request is not None:
            self._network.ask(request)
        return look_again_ms

    def _decide(self, now_ms: int, outcome: _Outcome) -> tuple[list[ProduceAttempt], TransactionRequest | None, int]:
        self._take_metadata(now_ms, outcome)
        self._give_up_expired(now_ms, outcome)
        request, look_again_ms = self._see_to_transactions(now_ms, outcome)
        attempts, ready_again_ms = self._drain(now_ms)
        waited_for = self._accumulator.topics_waited_for()
        if waited_for:
            self._network.refresh_metadata(waited_for)
        return attempts, request, min(look_again_ms, ready_again_ms, self._next_expiry_on_wire())

    def _drain(self, now_ms: int) -> tuple[list[ProduceAttempt], int]:
        accumulator = self._accumulator
        attempts: list[ProduceAttempt] = []
        while True:
            ready = accumulator.ready(now_ms)
            sent = False
            for node_id in ready.nodes:
                if len(self._in_flight[node_id]) >= self._config.max_in_flight_requests_per_connection:
                    accumulator.node_not_ready(node_id, now_ms)
                    continue
                if not self._network.is_ready(node_id):
                    accumulator.node_not_ready(node_id, now_ms)
                    continue
                batches = accumulator.drain(node_id, now_ms)
                if batches:
                    attempt = self._attempt(node_id, batches, now_ms)
                    self._in_flight[node_id].add(attempt)
                    attempts.append(attempt)
                    sent = True
            if not sent:
                if ready.leaderless:
                    self._network.refresh_metadata(ready.leaderless)
                return attempts, ready.look_again_ms

    def _attempt(self, node_id: int, batches: list[ProducerBatch], now_ms: int) -> ProduceAttempt:
        transactions = self._transactions
        if transactions is None:
            return ProduceAttempt(node_id, batches, now_ms)
        return ProduceAttempt(node_id, batches, now_ms, transactions.transactional_id, transactions.produce_versions)

    def _see_to_transactions(self, now_ms: int, outcome: _Outcome) -> tuple[TransactionRequest | None, int]:
        """What is to be asked for the sake of producer id and transaction, and when to look again for that."""
        transactions = self._transactions
        if transactions is None:
            return None, NEVER_MS
        transactions.resolve()
        if self._unexplained and not transactions.asks_why:
            self._give_up_explained(outcome)
        if transactions.state is TransactionState.FATAL:
            assert transactions.error is not None
            self._give_up_queued(transactions.error, outcome)
        elif transactions.drops_unsent:
            self._drop_unsent(transactions.error, outcome)
        nobody = transactions.transactional_id is None and not self._accumulator.has_unsent
        if nobody and transactions.state is TransactionState.UNINITIALIZED:
            return None, NEVER_MS  # nobody needs an id before there is something to send
        unfinished = self._accumulator.has_unfinished
        request = transactions.next_request(now_ms, unfinished=unfinished)
        outcome.finished += transactions.take_finished()
        if request is not None:
            return request, NEVER_MS  # its answer comes, or the lack of one
        deadline_ms = transactions.deadline_ms(unfinished=unfinished)
        return None, NEVER_MS if deadline_ms is None else deadline_ms

    def features_seen(self, epoch: int, transaction_version: int) -> None:
        """A broker said which features the cluster has."""
        if self._transactions is not None:
            with self._accumulator.lock:
                self._transactions.features_seen(epoch, transaction_version)

    # --- giving up

    def _give_up_expired(self, now_ms: int, outcome: _Outcome) -> None:
        timeout_ms = self._config.delivery_timeout_ms
        for batch in self._accumulator.expired(now_ms):
            waited_ms = now_ms - batch.created_ms
            sent = f"sent {batch.attempts} times, it may be stored" if batch.attempts else "never sent"
            expired = DeliveryTimedOut(f"{batch.queue}: not acknowledged within {waited_ms} ms ({sent})")
            self._give_up(batch, expired, outcome)
        for attempts in self._in_flight.values():
            for attempt in attempts:
                for batch in attempt.batches:
                    if not batch.is_done and batch.created_ms + timeout_ms <= now_ms:
                        text = (
                            f"{batch.queue}: not acknowledged within {now_ms - batch.created_ms} ms; it may be stored"
                        )
                        error = DeliveryTimedOut(text)
                        batch.is_done = True
                        outcome.failed.append((batch.futures, error, batch.queue.index))
                        self.counters.records_failed += batch.count
                        if self._transactions is not None:
                            self._transactions.send_failed(error)
        for topic, futures in self._accumulator.expired_waiting(now_ms):
            self._fail_unplaced(futures, self._no_metadata(topic), outcome)

    def _no_metadata(self, topic: str) -> OttlaError:
        waited = f"{self._config.max_block_ms} ms"
        reason = self._metadata.topic_error(topic)
        if isinstance(reason, UnknownTopicOrPartition):
            return UnknownTopicOrPartition(
                f"there is no topic {topic!r} (asked for {waited}): create it, or check the name"
            )
        if self._metadata.topic(topic) is not None:
            return UnknownTopicOrPartition(f"topic {topic!r} does not have this partition (waited {waited})")
        if reason is not None:
            return NoAnswer(f"topic {topic!r} cannot be written to, after {waited}: {reason}")
        return NoAnswer(
            f"no metadata of topic {topic!r} within {waited}{self._metadata.trouble or ': can the brokers be reached?'}"
        )

    def _next_expiry_on_wire(self) -> int:
        timeout_ms = self._config.delivery_timeout_ms
        return min(
            (
                batch.created_ms + timeout_ms
                for attempts in self._in_flight.values()
                for attempt in attempts
                for batch in attempt.batches
                if not batch.is_done
            ),
            default=NEVER_MS,
        )

    def _fail_unplaced(self, futures: Sequence[SendFuture], error: BaseException, outcome: _Outcome) -> None:
        """Records that never came into a batch fail."""
        outcome.failed.append((futures, error, -1))
        self.counters.records_failed += len(futures)
        if self._transactions is not None and futures:
            self._transactions.send_failed(error)

    def _give_up(self, batch: ProducerBatch, error: BaseException, outcome: _Outcome) -> None:
        """A batch that is not on the wire fails for good."""
        if self._transactions is not None:
            if batch.has_sequence:
                self._transactions.given_up(batch.queue.key, batch)
            self._transactions.send_failed(error)
        if not batch.is_done:
            batch.is_done = True
            self.counters.records_failed += batch.count
            outcome.failed.append((batch.futures, error, batch.queue.index))
        self._accumulator.release(batch)

    def _give_up_explained(self, outcome: _Outcome) -> None:
        """The coordinator was asked why the epoch is over: what was refused because of it fails with the reason."""
        assert self._transactions is not None
        unexplained, self._unexplained = self._unexplained, []
        for batch, error in unexplained:
            self._give_up(batch, self._transactions.error or error, outcome)

    def _give_up_queued(self, error: BaseException, outcome: _Outcome) -> None:
        for batch in self._accumulator.take_all_queued():
            self._give_up(batch, error, outcome)
        for topic in self._accumulator.topics_waited_for():
            outcome.failed.append((self._accumulator.take_waiting(topic), error, -1))

    def _drop_unsent(self, failure: OttlaError | None, outcome: _Outcome) -> None:
        """The transaction is, or has to be, aborted: what was not sent will not be."""
        if self._accumulator.has_unsent:
            why = "" if failure is None else f", because it has failed: {failure}"
            error = TransactionAborted(f"the record was not sent: its transaction is aborted{why}")
            error.__cause__ = failure
            self._give_up_queued(error, outcome)

    def give_up_all(self, error: OttlaError) -> None:
        """The producer is closed without waiting any longer: everything that is under way fails."""
        outcome = _Outcome()
        with self._accumulator.lock:
            self._give_up_queued(error, outcome)
            for batch, _ in self._unexplained:
                self._give_up(batch, error, outcome)
            self._unexplained.clear()
            if self._transactions is not None and self._transactions.transactional_id is not None:
                self._transactions.fail(error)
                outcome.finished += self._transactions.take_finished()
            for attempts in self._in_flight.values():
                for attempt in attempts:
                    for batch in attempt.batches:
                        if not batch.is_done:
                            batch.is_done = True
                            self.counters.records_failed += batch.count
                            outcome.failed.append((batch.futures, error, batch.queue.index))
        outcome.deliver()

    # --- metadata

    def _take_metadata(self, now_ms: int, outcome: _Outcome) -> None:
        """Hand to the accumulator what has been learnt of its topics since the last time."""
        waited_for = self._accumulator.topics_waited_for()
        if self._metadata.version == self._metadata_version and not waited_for:
            return
        changed = self._metadata.version != self._metadata_version
        self._metadata_version = self._metadata.version
        for name in list(self._accumulator.topics) if changed else waited_for:
            topic = self._metadata.topic(name)
            if topic is not None:
                for future, error in self._accumulator.update_topic(topic, now_ms):
                    self._fail_unplaced([future], error, outcome)
                continue
            refusal = self._metadata.topic_error(name)
            if isinstance(refusal, TopicAuthorizationFailed | InvalidTopic):
                error = type(refusal)(f"topic {name!r}: {refusal}")
                self._fail_unplaced(self._accumulator.take_waiting(name), error, outcome)

    # --- answers

    def request_answered(self, request: TransactionRequest, answer: Any, error: OttlaError | None, now_ms: int) -> None:
        """What came of `Network.ask`: an answer, or the error that took its place."""
        assert self._transactions is not None
        outcome = _Outcome()
        with self._accumulator.lock:
            if error is not None:
                self._transactions.unanswered(request, error, now_ms)
            else:
                self._transactions.answered(request, answer, now_ms)
            if self._unexplained and not self._transactions.asks_why:
                self._give_up_explained(outcome)
            outcome.finished += self._transactions.take_finished()
        outcome.deliver()

    def answered(self, attempt: ProduceAttempt, answer: Any, error: OttlaError | None, now_ms: int) -> None:
        """What came of `Network.produce`: an answer, None for acks=0, or the error that took its place."""
        self._in_flight[attempt.node_id].discard(attempt)
        outcome = _Outcome()
        with self._accumulator.lock:
            if error is not None:
                for batch in attempt.batches:
                    self._failed_request(batch, error, now_ms, outcome)
            elif answer is None:
                for batch in attempt.batches:
                    self._stored(batch, -1, -1, outcome)
            else:
                self._take_answer(attempt, answer, now_ms, outcome)
            self.counters.requests_sent += 1
            self.counters.request_latency_ms += now_ms - attempt.sent_ms
            if self._transactions is not None:
                outcome.finished += self._transactions.take_finished()
        outcome.deliver()

    def _failed_request(self, batch: ProducerBatch, error: OttlaError, now_ms: int, outcome: _Outcome) -> None:
        kafka_error = error if isinstance(error, KafkaError) else UnsupportedVersion(str(error))
        self._refused(batch, kafka_error, -1, now_ms, outcome)

    def _take_answer(self, attempt: ProduceAttempt, answer: Any, now_ms: int, outcome: _Outcome) -> None:
        by_place: dict[tuple[object, int], Any] = {}
        for topic in answer.responses:
            for partition in topic.partition_responses:
                by_place[topic.name, partition.index] = partition
                if topic.topic_id != Uuid.ZERO:
                    by_place[topic.topic_id, partition.index] = partition
        nodes = [Node(n.node_id, n.host, n.port, n.rack) for n in answer.node_endpoints]
        for batch in attempt.batches:
            queue = batch.queue
            found = by_place.get((queue.topic.topic_id, queue.index)) or by_place.get((queue.topic.name, queue.index))
            if found is None:
                self._refused(batch, NetworkError("the answer leaves this partition out"), -1, now_ms, outcome)
            elif found.error_code == 0:
                self._stored(batch, found.base_offset, found.log_append_time_ms, outcome)
            else:
                self._take_refusal(batch, found, nodes, now_ms, outcome)

    def _take_refusal(
        self, batch: ProducerBatch, found: Any, nodes: list[Node], now_ms: int, outcome: _Outcome
    ) -> None:
        error = error_for(found.error_code, found.error_message)
        assert error is not None
        queue = batch.queue
        leader = found.current_leader
        if error.refresh_metadata and self._metadata.update_leader(
            queue.topic.name, queue.index, leader.leader_id, leader.leader_epoch, nodes
        ):
            queue.leader, queue.leader_epoch = leader.leader_id, leader.leader_epoch
        if found.record_errors and not isinstance(error, Retriable):
            self._refuse_records(batch, error, found, outcome)
        else:
            self._refused(batch, error, found.log_start_offset, now_ms, outcome)

    def _stored(self, batch: ProducerBatch, base_offset: int, log_append_time_ms: int, outcome: _Outcome) -> None:
        self._off_the_wire(batch)
        if self._transactions is not None:
            self._transactions.acked(batch.queue.key, batch, base_offset)
        if not batch.is_done:
            batch.is_done = True
            self.counters.records_sent += batch.count
            self.counters.batches_sent += 1
            self.counters.bytes_sent += batch.size_bytes
            outcome.stored.append((batch, base_offset, log_append_time_ms))
        self._accumulator.release(batch)

    def _refused(
        self, batch: ProducerBatch, error: KafkaError, log_start_offset: int, now_ms: int, outcome: _Outcome
    ) -> None:
        """A batch was not taken, or nothing is known of it: once more, in smaller parts, or no more."""
        self._off_the_wire(batch)
        queue = batch.queue
        if error.refresh_metadata:
            self._network.refresh_metadata([queue.topic.name])
        if batch.is_done:  # its time was over while it was on the wire
            self._give_up(batch, error, outcome)
        elif isinstance(error, MessageTooLarge) and batch.count > 1 and not batch.in_doubt:
            # One that may be stored already is never split: its parts have other sequences, and would be stored again.
            logger.info("%s: %d records in %d bytes are too large, sent in parts", queue, batch.count, batch.size_bytes)
            self._accumulator.split(batch)
            self.counters.batches_split += 1
        elif self._may_retry(batch, error, log_start_offset, now_ms):
            logger.debug("%s: attempt %d: %s: %s", queue, batch.attempts, type(error).__name__, error)
            self.counters.records_retried += batch.count
            batch.in_doubt = batch.in_doubt or not isinstance(error, _NOT_STORED)
            concurrent = isinstance(error, ConcurrentTransactions)
            self._accumulator.put_back(batch, now_ms, CONCURRENT_PAUSE_MS if concurrent else None)
        elif isinstance(error, DuplicateSequenceNumber):
            # The broker has it, but no longer knows where: stored, without an offset.
            self._stored(batch, -1, -1, outcome)
        elif isinstance(error, InvalidProducerEpoch) and self._transactions is not None:
            self._epoch_is_over(batch, error, now_ms, outcome)
        else:
            self._give_up(batch, self._explained(batch, error), outcome)

    def _epoch_is_over(self, batch: ProducerBatch, error: KafkaError, now_ms: int, outcome: _Outcome) -> None:
        """The batch fails with the reason for that, once the coordinator has been asked for it."""
        assert self._transactions is not None
        if self._transactions.doubt(error, now_ms):
            self._unexplained.append((batch, self._explained(batch, error)))
        else:
            self._give_up(batch, self._transactions.error or self._explained(batch, error), outcome)

    def _may_retry(self, batch: ProducerBatch, error: KafkaError, log_start_offset: int, now_ms: int) -> bool:
        if self._transactions is not None:
            # Asked in any case: it learns from the error, also if time or retries are over.
            again = self._transactions.refused(batch.queue.key, batch, error, log_start_offset)
        else:
            again = isinstance(error, Retriable)
        in_time = now_ms < batch.created_ms + self._config.delivery_timeout_ms
        return again and in_time and batch.attempts <= self._config.retries

    def _refuse_records(self, batch: ProducerBatch, error: KafkaError, found: Any, outcome: _Outcome) -> None:
        """Some records made the broker refuse the whole batch (KIP-467): each future says which kind it is."""
        self._off_the_wire(batch)
        if self._transactions is not None:
            self._transactions.given_up(batch.queue.key, batch)
            self._transactions.send_failed(self._explained(batch, error))
        if not batch.is_done:
            batch.is_done = True
            self.counters.records_failed += batch.count
            guilty = {entry.batch_index: entry.batch_index_error_message for entry in found.record_errors}
            kind = type(error) if len(guilty) == 1 else InvalidRecord
            innocent = Abortable(f"{batch.queue}: stored with none of its batch, because other records were refused")
            for index, future in enumerate(batch.futures):
                if index in guilty:
                    message = guilty[index] or found.error_message or str(error)
                    cause = RecordsRefused if not issubclass(kind, RecordsRefused) else kind
                    outcome.failed.append(([future], cause(f"{batch.queue}: {message}"), batch.queue.index))
                else:
                    outcome.failed.append(([future], innocent, batch.queue.index))
        self._accumulator.release(batch)

    def _explained(self, batch: ProducerBatch, error: KafkaError) -> KafkaError:
        """The same error, saying where it happened."""
        if batch.attempts > self._config.retries and isinstance(error, Retriable):
            return type(error)(f"{batch.queue}: after {batch.attempts} attempts: {error}")
        return type(error)(f"{batch.queue}: {error}")

    def _off_the_wire(self, batch: ProducerBatch) -> None:
        batch.on_wire = False
        batch.queue.muted = False
