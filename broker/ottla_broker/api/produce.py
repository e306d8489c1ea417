"""Produce (key 0): append batches.

3 baseline: batches of magic 2, transactional id. 7 zstd (KIP-110). 8 record errors and message (KIP-467). 10 current
leader and its endpoint with NOT_LEADER_OR_FOLLOWER (KIP-951). 11 TRANSACTION_ABORTABLE, 12 partitions are added to the
transaction by the produce itself (KIP-890). 13 topic ids (KIP-516).

The checks come in Kafka's order; all but the whole-request ones concern one partition and leave the others alone. The
records are a view of the request's frame: the log patches them in place and writes them, nothing is copied.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from ottla_broker.api import UnanswerableError, error_code_of
from ottla_broker.api.current_leader import current_leader
from ottla_broker.controller.topic_names import is_internal
from ottla_broker.log.batch import HEADER_BYTES
from ottla_broker.log.producer_state import AppendOrigin
from ottla_broker.pending import Pending, Unapplied
from ottla_broker.replication.delayed_produce import AwaitedWrite
from ottla_broker.replication.transaction_verification import Support, TopicIndex, Verified
from ottla_wire import errors
from ottla_wire.messages.produce import (
    BatchIndexAndErrorMessage,
    LeaderIdAndEpoch,
    NodeEndpoint,
    PartitionProduceResponse,
    ProduceRequest,
    ProduceResponse,
    TopicProduceResponse,
)
from ottla_wire.schema import Buffer

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.log.producer_state import Verification

_ADMIN_CLIENT = "__admin_client"
_FIRST_VERSION_WITH_ZSTD = 7
_FIRST_VERSION_WITH_TOPIC_IDS = 13
_FIRST_VERSION_WITH_LEADER = 10
_FIRST_VERSION_WITH_ABORTABLE = 11
_FIRST_VERSION_THAT_ADDS = 12
_ZSTD = 4

_read_batch_length = Struct(">i").unpack_from  # at 8
_read_attributes = Struct(">h").unpack_from  # at 21
_read_producer = Struct(">qhi").unpack_from  # at 43: id, epoch, first sequence
_LOG_OVERHEAD = 12
_SMALLEST_LENGTH = 14
_UP_TO_MAGIC = 17
_TRANSACTIONAL_BIT = 0x10

# With these Kafka's answer has a log start offset of -1 even where the log itself refused.
_BEFORE_THE_LOG = frozenset(
    error.code
    for error in (
        errors.UnknownTopicOrPartition,
        errors.NotLeaderOrFollower,
        errors.MessageTooLarge,
        errors.RecordListTooLarge,
        errors.CorruptMessage,
        errors.KafkaStorageError,
    )
)

# A coordinator that cannot be asked, or not now.
_ABOUT_THE_COORDINATOR = (
    errors.NetworkError,
    errors.CoordinatorLoadInProgress,
    errors.CoordinatorNotAvailable,
    errors.NotCoordinator,
)


def handle(
    broker: Broker, context: RequestContext, request: ProduceRequest
) -> ProduceResponse | Pending[ProduceResponse | None] | None:
    """Append, and answer when `acks` allows. What belongs to a transaction is verified with its coordinator first."""
    produce = _Produce(broker, context, request)
    if request.transactional_id is not None:
        return produce.transactional(request.transactional_id)
    if _has_transactional_batch(request):
        raise errors.TransactionalIdAuthorizationFailed("transactional records without a transactional id")
    return produce.append()


class _Write(NamedTuple):
    """A partition's records and their place in the answer."""

    topic: str
    partition: int
    records: Buffer | None
    result: PartitionProduceResponse


class _Produce:
    """One produce request between its reading and its answer."""

    def __init__(self, broker: Broker, context: RequestContext, request: ProduceRequest) -> None:
        self._broker = broker
        self._context = context
        self._acks = request.acks
        self._timeout_ms = request.timeout_ms
        self._response = ProduceResponse()
        self._writes: list[_Write] = []
        self._failed = False
        by_id = context.api_version >= _FIRST_VERSION_WITH_TOPIC_IDS
        for topic in request.topic_data:
            name = topic.name
            if by_id:
                image = broker.controller.image.topics_by_id.get(topic.topic_id)
                name = image.name if image is not None else ""
            results = []
            for data in topic.partition_data:
                result = PartitionProduceResponse(index=data.index, base_offset=-1)
                results.append(result)
                if by_id and not name:
                    error = errors.UnknownTopicId(f"there is no topic with the id {topic.topic_id}")
                    self._refuse(name, result, error)
                else:
                    self._writes.append(_Write(name, data.index, data.records, result))
            self._response.responses.append(
                TopicProduceResponse(name=name, topic_id=topic.topic_id, partition_responses=results)
            )

    def append(self) -> ProduceResponse | Pending[ProduceResponse | None] | None:
        """Append what belongs to no transaction."""
        waits: list[AwaitedWrite] = []
        for topic, index, records, result in self._writes:
            try:
                wait = self._append(topic, index, self._checked(topic, index, records), result)
                if wait is not None:
                    waits.append(wait)
            except Exception as error:  # noqa: BLE001 - one partition's failure is not the others'
                self._refuse(topic, result, error)
        return self._finish(waits)

    def _checked(self, topic: str, index: int, records: Buffer | None) -> Buffer:
        """The batch for a partition, which exists (checks 4 to 6)."""
        broker = self._broker
        if broker.replicas.find(topic, index) is None and broker.controller.image.partition(topic, index) is None:
            raise errors.UnknownTopicOrPartition(f"there is no partition {topic}-{index}")
        return _single_batch(records, self._context.api_version)

    def _append(
        self,
        topic: str,
        index: int,
        batch: Buffer,
        result: PartitionProduceResponse,
        guard: Verification | None = None,
    ) -> AwaitedWrite | None:
        """Append one batch (checks 11 to 31); what has to be waited for before it is acknowledged."""
        acks = self._acks
        if not -1 <= acks <= 1:
            raise errors.InvalidRequiredAcks(f"acks={acks}: it is -1 (all), 0 or 1")
        if is_internal(topic) and self._context.client_id != _ADMIN_CLIENT:
            raise errors.InvalidTopic(f"{topic} is the broker's own, clients do not write to it")
        partition = self._broker.replicas.find(topic, index)
        if partition is None:
            raise errors.NotLeaderOrFollower(f"{topic}-{index} has no replica here")
        # What a refusal by the log tells; `_refuse` takes it back if the log was not reached.
        result.log_start_offset = partition.log.log_start_offset
        info = partition.append(
            batch, acks=acks, wall_ms=self._broker.clock.wall_ms(), origin=AppendOrigin.CLIENT, guard=guard
        )
        result.base_offset = info.first_offset
        result.log_append_time_ms = info.log_append_time_ms
        result.log_start_offset = info.log_start_offset
        end_offset = info.last_offset + 1
        if acks == 0 or partition.acknowledged(end_offset, acks):
            return None
        return AwaitedWrite(partition, end_offset, result)

    # -- transactions ------------------------------------------------------------------------------------------------

    def transactional(self, transactional_id: str) -> ProduceResponse | Pending[ProduceResponse | None] | None:
        """Verify what is transactional, then append.

        Raises InvalidProducerIdMapping (check 7), which fails the request as a whole.
        """
        writes: list[_Write] = []
        sequences: dict[TopicIndex, int] = {}
        producers: set[tuple[int, int]] = set()
        for topic, index, records, result in self._writes:
            try:
                batch = self._checked(topic, index, records)
            except Exception as error:  # noqa: BLE001 - one partition's failure is not the others'
                self._refuse(topic, result, error)
                continue
            writes.append(_Write(topic, index, batch, result))
            if batch[22] & _TRANSACTIONAL_BIT and len(batch) >= HEADER_BYTES:
                producer_id, producer_epoch, sequence = _read_producer(batch, 43)
                if producer_id >= 0:
                    producers.add((producer_id, producer_epoch))
                    sequences[topic, index] = sequence
        self._writes = writes
        if not producers:
            return self.append()
        if len(producers) > 1:
            raise errors.InvalidProducerIdMapping("the transactional records of one request are of several producers")
        producer_id, producer_epoch = producers.pop()
        support = _support(self._context.api_version)
        verified = self._broker.verification.verify(
            transactional_id, producer_id, producer_epoch, sequences, support, retries=support is Support.ADDS
        )
        if isinstance(verified, Pending):
            answer: Unapplied[ProduceResponse | None] = Unapplied()
            verified.on_done(lambda done: self._append_late(done.result(), answer))
            return answer
        return self._append_verified(verified)

    def _append_verified(self, verified: Verified) -> ProduceResponse | Pending[ProduceResponse | None] | None:
        waits: list[AwaitedWrite] = []
        for topic, index, batch, result in self._writes:
            assert batch is not None
            refused = verified.refused.get((topic, index))
            if refused is not None:
                self._refuse(topic, result, _as_produce_error(refused, self._context.api_version))
                continue
            try:
                wait = self._append(topic, index, batch, result, verified.guards.get((topic, index)))
                if wait is not None:
                    waits.append(wait)
            except Exception as error:  # noqa: BLE001 - one partition's failure is not the others'
                self._refuse(topic, result, error)
        return self._finish(waits)

    def _append_late(self, verified: Verified, answer: Unapplied[ProduceResponse | None]) -> None:
        try:
            outcome = self._append_verified(verified)
        except UnanswerableError as error:
            answer.fail(error)
            return
        if isinstance(outcome, Pending):
            answer.follow(outcome)
        else:
            answer.complete(outcome)

    # -- the answer --------------------------------------------------------------------------------------------------

    def _finish(self, waits: list[AwaitedWrite]) -> ProduceResponse | Pending[ProduceResponse | None] | None:
        response = self._response
        if self._acks == 0:
            if self._failed:
                raise UnanswerableError(f"a produce request with acks=0 failed: {_failures(response)}")
            return None
        if waits:
            return self._broker.replicas.await_writes(
                waits, self._acks, response, timeout_ms=self._timeout_ms, now_ms=self._broker.clock.now_ms()
            )
        return response

    def _refuse(self, topic: str, result: PartitionProduceResponse, error: Exception) -> None:
        self._failed = True
        code = result.error_code = error_code_of(error)
        result.error_message = str(error) or None
        result.record_errors = [
            BatchIndexAndErrorMessage(batch_index=index, batch_index_error_message=message)
            for index, message in getattr(error, "record_errors", ())
        ]
        if code in _BEFORE_THE_LOG:
            result.log_start_offset = -1
        if code == errors.NotLeaderOrFollower.code and self._context.api_version >= _FIRST_VERSION_WITH_LEADER:
            leader = current_leader(self._broker, topic, result.index)
            result.current_leader = LeaderIdAndEpoch(leader_id=leader.node_id, leader_epoch=leader.epoch)
            leader.add_endpoint(self._response.node_endpoints, NodeEndpoint)


def error_response(request: ProduceRequest, code: int, message: str | None) -> ProduceResponse:
    """The whole request is refused: every partition says so. Without an answer (acks=0) the connection says it."""
    if request.acks == 0:
        raise UnanswerableError(f"a produce request with acks=0 failed: {message}")
    return ProduceResponse(
        responses=[
            TopicProduceResponse(
                name=topic.name,
                topic_id=topic.topic_id,
                partition_responses=[
                    PartitionProduceResponse(index=data.index, error_code=code, base_offset=-1, error_message=message)
                    for data in topic.partition_data
                ],
            )
            for topic in request.topic_data
        ]
    )


def _single_batch(records: Buffer | None, version: int) -> Buffer:
    """The one batch that a partition's payload holds; what is cut off behind it is dropped, as Kafka drops it."""
    size = _batch_size(records)
    if records is None or size is None:
        raise errors.InvalidRecord("a produce request has one record batch per partition, this one has none")
    if records[16] != 2:
        raise errors.InvalidRecord(f"a record batch of magic 2 is wanted, this one has {records[16]}")
    if version < _FIRST_VERSION_WITH_ZSTD and _read_attributes(records, 21)[0] & 0x07 == _ZSTD:
        raise errors.UnsupportedCompressionType("zstd needs a produce request of version 7 or later")
    if size == len(records):
        return records
    if _batch_size(records[size:]) is not None:
        raise errors.InvalidRecord("a produce request has one record batch per partition, this one has several")
    return records[:size]


def _batch_size(records: Buffer | None) -> int | None:
    """Bytes of the first batch, None if there is no complete one."""
    if records is None or len(records) < _LOG_OVERHEAD:
        return None
    length = int(_read_batch_length(records, 8)[0])
    if length < _SMALLEST_LENGTH:
        raise errors.CorruptMessage(f"a record batch of length {length}, the smallest is {_SMALLEST_LENGTH}")
    size = _LOG_OVERHEAD + length
    if len(records) < max(size, _UP_TO_MAGIC):
        return None
    if records[16] > 2:
        raise errors.CorruptMessage(f"a record batch of magic {records[16]}")
    return size


def _has_transactional_batch(request: ProduceRequest) -> bool:
    for topic in request.topic_data:
        for data in topic.partition_data:
            records = data.records
            # Only the low byte of the attributes matters here, at 22. Garbage is refused later, with its own error.
            if records is not None and len(records) > 22 and records[16] == 2 and records[22] & _TRANSACTIONAL_BIT:
                return True
    return False


def _support(version: int) -> Support:
    if version >= _FIRST_VERSION_THAT_ADDS:
        return Support.ADDS
    return Support.KNOWS_ABORTABLE if version >= _FIRST_VERSION_WITH_ABORTABLE else Support.VERIFIES


def _as_produce_error(error: errors.KafkaError, version: int) -> errors.KafkaError:
    """What a producer understands: one before KIP-890 may take an error of a coordinator for its own.

    NOT_ENOUGH_REPLICAS has it send the records again, and not look for another leader.
    """
    if isinstance(error, errors.ConcurrentTransactions):
        is_retried = version < _FIRST_VERSION_THAT_ADDS
    else:
        is_retried = isinstance(error, _ABOUT_THE_COORDINATOR)
    if not is_retried:
        return error
    return errors.NotEnoughReplicas(
        f"the transaction could not be verified with its coordinator: {type(error).__name__}: {error}"
    )


def _failures(response: ProduceResponse) -> str:
    return ", ".join(
        f"{topic.name}-{result.index}: {result.error_message}"
        for topic in response.responses
        for result in topic.partition_responses
        if result.error_code
    )
