"""TransactionCoordinator: transactional ids and their transactions, as the handlers and the replicas see them.

A facade: it finds the partition of `__transaction_state` an id lives in and hands the request to that partition's
`TransactionShard` through the `CoordinatorRuntime`. What cannot be done fails the `Pending` with a `KafkaError`; the
handlers in `ottla_broker.api` know which version of a request wants to see it how.

`settle_answers` writes what a turn's requests have decided, those of one partition in one batch; they are answered with
it. `settle` does the rest as well: the markers of what has ended, and the records of *Complete*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from ottla_broker.coordinator.group_coordinator import java_abs, java_hash
from ottla_broker.coordinator.pendings import gather, recover
from ottla_broker.coordinator.runtime import CoordinatorLog, CoordinatorRuntime, Decision, Verb
from ottla_broker.coordinator.transaction_config import TransactionConfig
from ottla_broker.coordinator.transaction_epoch_end import Peer
from ottla_broker.coordinator.transaction_id import ProducerIdAndEpoch
from ottla_broker.coordinator.transaction_markers import EndedTransaction, MarkerSender
from ottla_broker.coordinator.transaction_queries import TransactionFilter, described, listed
from ottla_broker.coordinator.transaction_shard import TransactionShard
from ottla_broker.coordinator.transaction_state import NO_PRODUCER_ID, TRANSACTIONS_V2, TopicPartition
from ottla_broker.pending import Pending
from ottla_wire.errors import (
    ConcurrentTransactions,
    InvalidRequest,
    InvalidTransactionTimeout,
    KafkaError,
)

if TYPE_CHECKING:
    from ottla_broker.context import RequestContext
    from ottla_wire.messages.describe_transactions import TransactionState as DescribedTransaction
    from ottla_wire.messages.end_txn import EndTxnRequest
    from ottla_wire.messages.init_producer_id import InitProducerIdRequest
    from ottla_wire.messages.list_transactions import TransactionState as ListedTransaction

T = TypeVar("T")

_OFFSETS_TOPIC = "__consumer_offsets"
_FIRST_END_OF_V2 = 5


class TransactionCoordinator:
    """The transactional ids of the `__transaction_state` partitions that this broker leads.

    Args:
        log: the partitions of `__transaction_state`.
        config: the broker's transaction settings.
        new_producer_id: a producer id that nobody had before.
        leader_of: the node that leads a partition: NO_LEADER if none is there, None if the partition is gone.
        transaction_version: the finalized `transaction.version` of the cluster.
        wall_ms: the wall clock, which the times in records are of; `now_ms` of the calls is the monotonic one.

    Attributes:
        markers: sends the ends of transactions; its `channel` is to be set before anything is loaded.
    """

    def __init__(
        self,
        log: CoordinatorLog,
        config: TransactionConfig,
        *,
        new_producer_id: Callable[[], Pending[int]],
        leader_of: Callable[[TopicPartition], int | None],
        transaction_version: Callable[[], int],
        wall_ms: Callable[[], int],
    ) -> None:
        self.config = config
        self.markers = MarkerSender(leader_of, self._markers_written, retry_backoff_ms=config.marker_retry_backoff_ms)
        self._new_producer_id = new_producer_id
        self._transaction_version = transaction_version
        self._wall_ms = wall_ms
        self._epochs: dict[int, int] = {}  # the newest leader epoch that was told, by partition
        self._next_time_out_scan_ms = 0
        self._next_expiry_scan_ms = 0
        self.runtime: CoordinatorRuntime[TransactionShard] = CoordinatorRuntime(
            log,
            lambda partition, timers, outbox: TransactionShard(
                partition,
                self._epochs[partition],
                config,
                timers=timers,
                outbox=outbox,
                markers=self.markers,
                transaction_version=transaction_version,
                wall_ms=wall_ms,
            ),
        )

    # what the replicas tell

    def load(self, partition: int, epoch: int, now_ms: int) -> None:
        """This broker has become the leader of a partition of `__transaction_state`, in leader epoch `epoch`."""
        if not self.runtime.partitions():
            self._next_time_out_scan_ms = (
                now_ms + self.config.transaction_abort_timed_out_transaction_cleanup_interval_ms
            )
            self._next_expiry_scan_ms = now_ms + self.config.transaction_remove_expired_transaction_cleanup_interval_ms
        self._epochs[partition] = max(epoch, self._epochs.get(partition, epoch))
        self.runtime.load(partition, epoch, now_ms)

    def unload(self, partition: int, epoch: int | None = None) -> None:
        """This broker no longer leads the partition (since `epoch`); requests that wait get NOT_COORDINATOR."""
        self.runtime.unload(partition, epoch)

    def high_watermark_moved(self, partition: int, offset: int, now_ms: int) -> None:
        """The partition is replicated up to `offset`; answers that waited for it leave."""
        self.runtime.high_watermark_moved(partition, offset, now_ms)

    # time

    def settle_answers(self, now_ms: int) -> None:
        """Write what this loop turn has decided; the ends of transactions are answered with it."""
        self.runtime.flush(now_ms)

    @property
    def has_follow_ups(self) -> bool:
        """Whether transactions have ended whose markers `settle` has to send."""
        return self.markers.has_due

    def settle(self, now_ms: int) -> None:
        """Write what this loop turn has decided, and everything that follows from it."""
        self.runtime.flush(now_ms)
        while self.markers.has_due:
            self.markers.flush(now_ms)
            self.runtime.flush(now_ms)

    @property
    def is_settled(self) -> bool:
        """Whether `settle` would find nothing to do."""
        return not self.markers.has_due and not self.runtime.has_coalesced

    def tick(self, now_ms: int) -> None:
        """Run everything that is due."""
        self.runtime.tick(now_ms)
        self.markers.tick(now_ms)
        if now_ms >= self._next_time_out_scan_ms:
            self._next_time_out_scan_ms = (
                now_ms + self.config.transaction_abort_timed_out_transaction_cleanup_interval_ms
            )
            self._abort_timed_out(now_ms)
        if now_ms >= self._next_expiry_scan_ms:
            self._next_expiry_scan_ms = now_ms + self.config.transaction_remove_expired_transaction_cleanup_interval_ms
            for partition in self.runtime.partitions():
                self.runtime.run(partition, lambda shard, _now: shard.expire(), now_ms)

    def deadline_ms(self) -> int | None:
        """When `tick` has something to do, or None."""
        if not self.runtime.has_partitions:
            return None
        earliest = min(self._next_time_out_scan_ms, self._next_expiry_scan_ms)
        for at in (self.runtime.deadline_ms(), self.markers.deadline_ms()):
            if at is not None and at < earliest:
                earliest = at
        return earliest

    def _abort_timed_out(self, now_ms: int) -> None:
        for partition in self.runtime.partitions():
            try:
                timed_out = self.runtime.read(partition, lambda shard: shard.timed_out())
            except KafkaError:
                continue  # still loading
            for transactional_id in timed_out:
                self._time_out(partition, transactional_id, now_ms)

    def _time_out(self, partition: int, transactional_id: str, now_ms: int) -> None:
        # A refused one is still open at the next scan.
        self._with_producer_id(
            partition,
            lambda shard: shard.wants_producer_id_to_fence(transactional_id),
            lambda shard, fresh: shard.time_out(transactional_id, fresh),
            now_ms,
        )

    # where an id lives

    def partition_for(self, transactional_id: str) -> int:
        """The partition of `__transaction_state` that keeps this id; its leader is the id's coordinator."""
        return java_abs(java_hash(transactional_id)) % self.config.transaction_state_log_num_partitions

    # what producers want

    def init_producer_id(self, context: RequestContext, request: InitProducerIdRequest) -> Pending[ProducerIdAndEpoch]:
        """InitProducerId with a transactional id: what the producer writes with; older producers are fenced.

        Fails with InvalidTransactionTimeout, ConcurrentTransactions, ProducerFenced and a coordinator's errors.
        """
        transactional_id, timeout_ms = request.transactional_id, request.transaction_timeout_ms
        if not transactional_id:
            return Pending.failed(InvalidRequest("a transactional id cannot be empty"))
        if not 0 < timeout_ms <= self.config.transaction_max_timeout_ms:
            longest = self.config.transaction_max_timeout_ms
            return Pending.failed(
                InvalidTransactionTimeout(f"transaction.timeout.ms is {timeout_ms}; this broker allows 1 to {longest}")
            )
        expected: ProducerIdAndEpoch | None = None
        if request.producer_id != NO_PRODUCER_ID:
            expected = ProducerIdAndEpoch(request.producer_id, request.producer_epoch)
        peer = Peer(context.client_id or "", context.client_host, request.fences_only)
        started = self._with_producer_id(
            self.partition_for(transactional_id),
            lambda shard: shard.wants_producer_id_to_start(transactional_id, expected),
            lambda shard, fresh: shard.start_producer(transactional_id, timeout_ms, expected, fresh, peer),
            context.now_ms,
        )
        return started.then(_or_concurrent)

    def add_partitions(
        self,
        transactional_id: str,
        producer_id: int,
        producer_epoch: int,
        partitions: Sequence[TopicPartition],
        *,
        verify_only: bool,
        now_ms: int,
    ) -> Pending[dict[TopicPartition, int]]:
        """What AddPartitionsToTxn 4 and 5 do for one transaction: an error code for each partition.

        An error of the whole transaction is the error of each partition; the Pending does not fail.
        """
        return self.add_partitions_as(
            TRANSACTIONS_V2,
            transactional_id,
            ProducerIdAndEpoch(producer_id, producer_epoch),
            partitions,
            verify_only=verify_only,
            now_ms=now_ms,
        )

    def add_group_offsets(
        self,
        transactional_id: str,
        producer_id: int,
        producer_epoch: int,
        offsets_partition: int,
        *,
        verify_only: bool,
        now_ms: int,
    ) -> Pending[int]:
        """`add_partitions` of the one partition of `__consumer_offsets` that a group lives in: its error code."""
        partition = (_OFFSETS_TOPIC, offsets_partition)
        added = self.add_partitions(
            transactional_id, producer_id, producer_epoch, [partition], verify_only=verify_only, now_ms=now_ms
        )
        return added.then(lambda codes: codes[partition])

    def add_partitions_as(
        self,
        transaction_version: int,
        transactional_id: str,
        producer: ProducerIdAndEpoch,
        partitions: Sequence[TopicPartition],
        *,
        verify_only: bool,
        now_ms: int,
    ) -> Pending[dict[TopicPartition, int]]:
        """`add_partitions` for a client of that version of the protocol."""
        answer: Pending[dict[TopicPartition, int]]
        if not transactional_id:
            answer = Pending.failed(InvalidRequest("a transactional id cannot be empty"))
        elif verify_only:
            answer = self._run(
                transactional_id,
                lambda shard, _now: shard.verify_partitions(transactional_id, producer, partitions),
                now_ms,
            )
        else:
            answer = self._run(
                transactional_id,
                lambda shard, _now: shard.add_partitions(transactional_id, producer, partitions, transaction_version),
                now_ms,
            )
        if answer.done() and answer.error() is None:
            return answer
        return recover(answer, lambda error: dict.fromkeys(partitions, _code_of(error)))

    def end_transaction(self, context: RequestContext, request: EndTxnRequest) -> Pending[ProducerIdAndEpoch]:
        """EndTxn: answered as soon as the outcome is certain; from version 5 on with what comes next.

        Fails with InvalidProducerIdMapping, ProducerFenced, ConcurrentTransactions, InvalidTxnState and a
        coordinator's errors.
        """
        transactional_id, committed = request.transactional_id, request.committed
        if not transactional_id:
            return Pending.failed(InvalidRequest("a transactional id cannot be empty"))
        producer = ProducerIdAndEpoch(request.producer_id, request.producer_epoch)
        partition = self.partition_for(transactional_id)
        if context.api_version < _FIRST_END_OF_V2:
            return self.runtime.run_coalesced(
                partition,
                lambda shard, _now: shard.end_v1(transactional_id, producer, committed=committed),
                context.now_ms,
            )
        return self._with_producer_id(
            partition,
            lambda shard: shard.wants_producer_id_to_end(transactional_id, producer, committed=committed),
            lambda shard, fresh: shard.end_v2(transactional_id, producer, fresh, committed=committed),
            context.now_ms,
        )

    # administration

    def describe_transaction(
        self, context: RequestContext, transactional_id: str, *, with_epoch_end: bool
    ) -> Pending[DescribedTransaction]:
        """One id with its transaction.

        Fails with InvalidRequest, TransactionalIdNotFound and a coordinator's errors.
        """
        if not transactional_id:
            return Pending.failed(InvalidRequest("a transactional id cannot be empty"))
        return self._run(
            transactional_id,
            lambda shard, _now: Decision(described(shard, transactional_id, with_epoch_end=with_epoch_end)),
            context.now_ms,
        )

    def list_transactions(self, context: RequestContext, wanted: TransactionFilter) -> Pending[list[ListedTransaction]]:
        """All ids coordinated here that pass the filter.

        Fails with CoordinatorLoadInProgress while that would not be all of them.
        """
        wall_ms = self._wall_ms()
        of_partitions = [
            self.runtime.run(partition, lambda shard, _now: Decision(listed(shard, wanted, wall_ms)), context.now_ms)
            for partition in self.runtime.partitions()
        ]
        return gather(of_partitions).then(lambda lists: [each for one in lists for each in one])

    # inside

    def _run(self, transactional_id: str, verb: Verb[TransactionShard, T], now_ms: int) -> Pending[T]:
        return self.runtime.run(self.partition_for(transactional_id), verb, now_ms)

    def _with_producer_id(
        self,
        partition: int,
        wants: Callable[[TransactionShard], bool],
        verb: Callable[[TransactionShard, int | None], Decision[T]],
        now_ms: int,
    ) -> Pending[T]:
        """Run a verb that may need a fresh producer id, which may take a while to come."""
        try:
            is_wanted = self.runtime.read(partition, wants)
        except KafkaError as error:
            return Pending.failed(error)
        if not is_wanted:
            return self.runtime.run_coalesced(partition, lambda shard, _now: verb(shard, None), now_ms)
        answer: Pending[T] = Pending()

        def settle(done: Pending[T]) -> None:
            error = done.error()
            if error is None:
                answer.complete(done.result())
            else:
                answer.fail(error)

        def run(fresh: Pending[int]) -> None:
            error = fresh.error()
            if error is not None:
                answer.fail(error)
                return
            producer_id = fresh.result()
            self.runtime.run(partition, lambda shard, _now: verb(shard, producer_id), now_ms).on_done(settle)

        self._new_producer_id().on_done(run)
        return answer

    def _markers_written(self, ended: EndedTransaction, now_ms: int) -> None:
        self.runtime.run_coalesced(ended.shard_partition, lambda shard, _now: shard.complete(ended), now_ms)


def _or_concurrent(started: ProducerIdAndEpoch | None) -> ProducerIdAndEpoch:
    if started is None:
        raise ConcurrentTransactions("the transaction of the producer before is aborted first; come again")
    return started


def _code_of(error: Exception) -> int:
    if not isinstance(error, KafkaError):
        raise error
    return error.code
