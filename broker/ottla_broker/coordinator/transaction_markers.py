"""MarkerSender: brings the end of each transaction to its partitions.

Theory of operation. When the outcome of a transaction is committed, the shard hands an `EndedTransaction` over. `flush`
sorts what is due by the nodes that lead the partitions and sends each node one WriteTxnMarkers with everything that is
for it, one request at a time. A partition leaves `awaiting` when it has its marker; the transaction whose last
partition has left is finished, and its shard writes *Complete*.

A partition that was deleted needs no marker. One whose leader is not there, or says that it cannot now, is tried again
after a pause, with whoever leads it then. One that knows of a newer coordinator, or of a newer epoch, means that this
coordinator has lost the id without knowing it yet: nothing more is sent, whoever has it finishes.

When the coordinator loses a partition of `__transaction_state` the transactions of that partition are cancelled: late
answers to them mean nothing any more.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Protocol

from ottla_broker.coordinator.transaction_state import TopicPartition
from ottla_wire import errors
from ottla_wire.messages.write_txn_markers import (
    WritableTxnMarker,
    WritableTxnMarkerTopic,
    WriteTxnMarkersRequest,
    WriteTxnMarkersResponse,
)

if TYPE_CHECKING:
    from ottla_broker.pending import Pending

logger = logging.getLogger(__name__)

NO_LEADER: Final = -1

_WRITTEN: Final = frozenset(
    {
        errors.NoError,
        # The partition cannot hold transactional records at all, so there are none.
        errors.UnsupportedForMessageFormat.code,
        errors.UnsupportedVersion.code,
    }
)
_OWNED_BY_OTHERS: Final = frozenset({errors.InvalidProducerEpoch.code, errors.TransactionCoordinatorFenced.code})
_NOT_NOW: Final = frozenset(
    error.code
    for error in (
        errors.UnknownTopicOrPartition,
        errors.NotLeaderOrFollower,
        errors.NotEnoughReplicas,
        errors.NotEnoughReplicasAfterAppend,
        errors.RequestTimedOut,
        errors.KafkaStorageError,
    )
)


class MarkerChannel(Protocol):
    """The way to the leaders of partitions."""

    def send(self, node_id: int, request: WriteTxnMarkersRequest, now_ms: int) -> Pending[WriteTxnMarkersResponse]:
        """Have a node write markers; a failure of the Pending is a lost connection."""
        ...


class EndedTransaction:
    """A transaction whose outcome is certain, on its way to its partitions.

    Attributes:
        shard_partition, coordinator_epoch: the partition of `__transaction_state`, and its leader epoch, that it is of.
        awaiting: partitions that are not known to have the marker.
        cancelled: somebody else's business now.
    """

    __slots__ = (
        "awaiting",
        "cancelled",
        "committed",
        "coordinator_epoch",
        "producer_epoch",
        "producer_id",
        "shard_partition",
        "transaction_version",
        "transactional_id",
    )

    def __init__(
        self,
        shard_partition: int,
        coordinator_epoch: int,
        transactional_id: str,
        *,
        producer_id: int,
        producer_epoch: int,
        committed: bool,
        transaction_version: int,
        partitions: Iterable[TopicPartition],
    ) -> None:
        self.shard_partition = shard_partition
        self.coordinator_epoch = coordinator_epoch
        self.transactional_id = transactional_id
        self.producer_id = producer_id
        self.producer_epoch = producer_epoch
        self.committed = committed
        self.transaction_version = transaction_version
        self.awaiting = set(partitions)
        self.cancelled = False


_Errand = tuple[EndedTransaction, list[TopicPartition]]


class MarkerSender:
    """Sends markers and says which transactions have all of theirs.

    Args:
        leader_of: the node that leads a partition, NO_LEADER if none is there, None if the partition is gone.
        finished: called with a transaction that awaits nothing more.
    """

    def __init__(
        self,
        leader_of: Callable[[TopicPartition], int | None],
        finished: Callable[[EndedTransaction, int], None],
        *,
        retry_backoff_ms: int,
    ) -> None:
        self.channel: MarkerChannel | None = None
        self.on_over: Callable[[str], None] | None = None  # told the id whose next transaction may begin
        self._leader_of = leader_of
        self._finished = finished
        self._retry_backoff_ms = retry_backoff_ms
        self._due: list[_Errand] = []
        self._in_flight: dict[int, list[_Errand]] = {}  # node -> what waits until its request is answered
        self._retries: deque[tuple[int, _Errand]] = deque()
        self._of_shard: dict[int, dict[EndedTransaction, None]] = {}

    def add(self, ended: EndedTransaction) -> None:
        """Take a transaction on; it is sent with the next `flush`."""
        self._of_shard.setdefault(ended.shard_partition, {})[ended] = None
        self._due.append((ended, sorted(ended.awaiting)))

    def retry_completion(self, ended: EndedTransaction, now_ms: int) -> None:
        """The markers are written but *Complete* was not: call `finished` again after a pause."""
        self._retries.append((now_ms + self._retry_backoff_ms, (ended, [])))

    def forget(self, ended: EndedTransaction) -> None:
        """The transaction is complete."""
        self._of_shard.get(ended.shard_partition, {}).pop(ended, None)
        if self.on_over is not None:
            self.on_over(ended.transactional_id)

    def cancel_shard(self, shard_partition: int) -> None:
        """This broker coordinates the partition no more, or in another epoch: drop what is of it."""
        for ended in self._of_shard.pop(shard_partition, ()):
            ended.cancelled = True

    @property
    def has_due(self) -> bool:
        """Whether `flush` has something to do."""
        return bool(self._due)

    def flush(self, now_ms: int) -> None:
        """Send what is due."""
        due, self._due = self._due, []
        by_node: dict[int, list[_Errand]] = {}
        for ended, partitions in due:
            if not ended.cancelled:
                self._sort(ended, partitions, by_node, now_ms)
        for node_id, errands in by_node.items():
            waiting = self._in_flight.get(node_id)
            if waiting is not None:
                waiting.extend(errands)
            else:
                self._send(node_id, errands, now_ms)

    def tick(self, now_ms: int) -> None:
        """Make due what has paused long enough; `flush` sends it."""
        while self._retries and self._retries[0][0] <= now_ms:
            self._due.append(self._retries.popleft()[1])

    def deadline_ms(self) -> int | None:
        """When `tick` has something to do, or None."""
        return self._retries[0][0] if self._retries else None

    # inside

    def _sort(
        self, ended: EndedTransaction, partitions: list[TopicPartition], by_node: dict[int, list[_Errand]], now_ms: int
    ) -> None:
        of_nodes: dict[int, list[TopicPartition]] = {}
        for partition in partitions:
            leader = self._leader_of(partition)
            if leader is None:
                logger.info("%s needs no marker of %s: it was deleted", partition, ended.transactional_id)
                ended.awaiting.discard(partition)
            else:
                of_nodes.setdefault(leader, []).append(partition)
        without_leader = of_nodes.pop(NO_LEADER, None)
        if without_leader is not None:
            self._retry(ended, without_leader, now_ms)
        for node_id, its_partitions in of_nodes.items():
            by_node.setdefault(node_id, []).append((ended, its_partitions))
        if not ended.awaiting:
            self._finished(ended, now_ms)

    def _send(self, node_id: int, errands: list[_Errand], now_ms: int) -> None:
        assert self.channel is not None
        self._in_flight[node_id] = []
        request = WriteTxnMarkersRequest(markers=[_marker(ended, partitions) for ended, partitions in errands])
        answer = self.channel.send(node_id, request, now_ms)
        answer.on_done(lambda done: self._answered(node_id, errands, done, now_ms))

    def _answered(
        self, node_id: int, errands: list[_Errand], answer: Pending[WriteTxnMarkersResponse], now_ms: int
    ) -> None:
        self._due.extend(self._in_flight.pop(node_id))
        error = answer.error()
        if error is not None:
            logger.warning("markers for node %d got no answer: %r", node_id, error)
        codes = {} if error is not None else _codes_by_producer(answer.result())
        for ended, partitions in errands:
            if not ended.cancelled:
                self._take(ended, partitions, codes.get(ended.producer_id, {}), now_ms)

    def _take(
        self, ended: EndedTransaction, partitions: list[TopicPartition], codes: dict[TopicPartition, int], now_ms: int
    ) -> None:
        again = []
        for partition in partitions:
            code = codes.get(partition, errors.RequestTimedOut.code)
            if code in _WRITTEN:
                ended.awaiting.discard(partition)
            elif code in _OWNED_BY_OTHERS:
                self._stop(ended, partition, code)
                return
            else:
                level = logging.INFO if code in _NOT_NOW else logging.ERROR
                logger.log(level, "%s took no marker of %s: error %d", partition, ended.transactional_id, code)
                again.append(partition)
        if again:
            self._retry(ended, again, now_ms)
        if not ended.awaiting:
            self._finished(ended, now_ms)

    def _retry(self, ended: EndedTransaction, partitions: list[TopicPartition], now_ms: int) -> None:
        self._retries.append((now_ms + self._retry_backoff_ms, (ended, partitions)))

    def _stop(self, ended: EndedTransaction, partition: TopicPartition, code: int) -> None:
        logger.warning(
            "%s has heard of a newer coordinator or epoch than %d of transactional id %s (error %d): whoever has it "
            "finishes its transaction",
            partition,
            ended.coordinator_epoch,
            ended.transactional_id,
            code,
        )
        ended.cancelled = True
        self.forget(ended)


def _marker(ended: EndedTransaction, partitions: list[TopicPartition]) -> WritableTxnMarker:
    topics: dict[str, list[int]] = {}
    for topic, index in partitions:
        topics.setdefault(topic, []).append(index)
    return WritableTxnMarker(
        producer_id=ended.producer_id,
        producer_epoch=ended.producer_epoch,
        transaction_result=ended.committed,
        topics=[WritableTxnMarkerTopic(name=name, partition_indexes=indexes) for name, indexes in topics.items()],
        coordinator_epoch=ended.coordinator_epoch,
        transaction_version=ended.transaction_version,
    )


def _codes_by_producer(response: WriteTxnMarkersResponse) -> dict[int, dict[TopicPartition, int]]:
    return {
        marker.producer_id: {
            (topic.name, result.partition_index): result.error_code
            for topic in marker.topics
            for result in topic.partitions
        }
        for marker in response.markers
    }
