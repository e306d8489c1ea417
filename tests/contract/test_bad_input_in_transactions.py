"""What an application can do wrong with transactions: an error that says what to do, and nothing that is there by half.

On our broker and on Apache Kafka. Two producers with one id, and time-outs above the broker's limit, are with the
other tests of the producer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ottla import ErrorHandler, Ottla, Retry
from ottla.client import ConsumerGroupMetadata, KafkaProducer, TopicPartition
from ottla.client.admin import OffsetSpec
from ottla.errors import (
    ConfigError,
    IllegalTransactionState,
    MessageTooLarge,
    NotInTransaction,
    SendError,
    TransactionAborted,
)
from ottla_wire.errors import error_for
from ottla_wire.messages.add_partitions_to_txn import AddPartitionsToTxnRequest, AddPartitionsToTxnTopic
from ottla_wire.messages.end_txn import EndTxnRequest
from ottla_wire.messages.find_coordinator import FindCoordinatorRequest
from ottla_wire.messages.init_producer_id import InitProducerIdRequest
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.messages.txn_offset_commit import (
    TxnOffsetCommitRequest,
    TxnOffsetCommitRequestPartition,
    TxnOffsetCommitRequestTopic,
)
from support.clusters import eventually

TOO_LARGE = b"x" * 5_000


@pytest.fixture
def place(cluster: Any) -> TopicPartition:
    """A partition that refuses large records; there is another one beside it."""
    return TopicPartition(cluster.create_topic(2, max_message_bytes="2000"), 0)


@pytest.fixture
def read(cluster: Any, make_consumer: Any, place: TopicPartition) -> Callable[..., list[bytes]]:
    """The committed records of a partition, once no transaction is open in it."""

    def everything(where: TopicPartition = place) -> list[bytes]:
        def end(read_committed: bool) -> int:
            found = cluster.admin.list_offsets({where: OffsetSpec.LATEST}, read_committed=read_committed)
            return int(found[where].offset)

        eventually(lambda: end(True) == end(False))
        consumer = make_consumer(isolation_level="read_committed", fetch_max_wait_ms=20)
        consumer.assign([where])
        found: list[bytes] = []

        def is_read() -> bool:
            found.extend(record.value for record in consumer.poll(0.05))
            return bool(consumer.position(where) >= end(True))

        eventually(is_read)
        return found

    return everything


@pytest.fixture
def producer(cluster: Any, make_producer: Any) -> KafkaProducer:
    made: KafkaProducer = make_producer(transactional_id=cluster.fresh("tx"))
    made.init_transactions()
    return made


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_ms", [0, -1, 2**31])
def test_a_timeout_that_cannot_be_is_refused_with_its_range(make_producer: Any, timeout_ms: int) -> None:
    with pytest.raises(ConfigError, match=rf"transaction_timeout_ms must be from 1 to 2147483647, got {timeout_ms}"):
        make_producer(transactional_id="tx", transaction_timeout_ms=timeout_ms)


def test_a_timeout_that_another_client_asks_for_and_that_cannot_be_is_refused(connect: Any) -> None:
    for timeout_ms in (0, -1, 2**31 - 1):
        request = InitProducerIdRequest(transactional_id="tx", transaction_timeout_ms=timeout_ms)
        answer = eventually(lambda request=request: answered(connect().ask(request, 4)))
        assert name(answer.error_code) == "InvalidTransactionTimeout"
        assert answer.producer_id == -1


def test_an_empty_id_is_refused_with_the_way_out(make_producer: Any) -> None:
    with pytest.raises(ConfigError, match=r"transactional_id is empty; .*leave it out"):
        make_producer(transactional_id="")


# -- calls in the wrong order ------------------------------------------------------------------------------------------


def test_a_producer_that_was_not_initialised_says_what_to_call(make_producer: Any, place: TopicPartition) -> None:
    producer = make_producer(transactional_id="tx")
    calls: list[Callable[[], Any]] = [
        producer.begin_transaction,
        producer.commit_transaction,
        producer.abort_transaction,
        lambda: producer.send(place.topic, b"a"),
    ]
    for call in calls:
        with pytest.raises(IllegalTransactionState, match=r"'tx': call init_transactions\(\) first"):
            call()


def test_without_a_begin_nothing_is_sent_and_the_error_says_what_to_call(
    producer: KafkaProducer, place: TopicPartition, read: Any
) -> None:
    calls: list[Callable[[], Any]] = [
        producer.commit_transaction,
        producer.abort_transaction,
        lambda: producer.send(place.topic, b"outside", partition=0),
        lambda: producer.send_offsets_to_transaction({place: 1}, ConsumerGroupMetadata("g")),
    ]
    for call in calls:
        with pytest.raises(NotInTransaction, match=r"call begin_transaction\(\) first"):
            call()
    producer.begin_transaction()
    producer.send(place.topic, b"inside", partition=0)
    producer.commit_transaction()
    with pytest.raises(NotInTransaction, match=r"call begin_transaction\(\) first"):
        producer.commit_transaction()
    assert read() == [b"inside"]


def test_a_second_begin_is_refused_and_the_open_transaction_goes_on(
    producer: KafkaProducer, place: TopicPartition, read: Any
) -> None:
    producer.begin_transaction()
    producer.send(place.topic, b"1", partition=0)
    with pytest.raises(IllegalTransactionState, match=r"is open: end it with commit_transaction\(\)"):
        producer.begin_transaction()
    producer.send(place.topic, b"2", partition=0)
    producer.commit_transaction()
    assert read() == [b"1", b"2"]


# -- going on after a failure ------------------------------------------------------------------------------------------


def test_what_is_sent_after_a_refused_record_fails_and_names_it_until_the_transaction_is_aborted(
    producer: KafkaProducer, place: TopicPartition, read: Any
) -> None:
    producer.begin_transaction()
    producer.send(place.topic, b"before", partition=0).result(10)
    refused = producer.send(place.topic, TOO_LARGE, partition=0).exception(10)
    assert isinstance(refused, SendError)
    assert isinstance(refused.__cause__, MessageTooLarge)

    late = producer.send(place.topic, b"after", partition=0).exception(10)
    assert isinstance(late, SendError)
    assert isinstance(late.__cause__, TransactionAborted)
    assert str(refused.__cause__) in str(late), "it names what failed first"
    with pytest.raises(MessageTooLarge):
        producer.send_offsets_to_transaction({place: 1}, ConsumerGroupMetadata("g"))
    for _ in range(2):
        with pytest.raises(MessageTooLarge):
            producer.commit_transaction()
    with pytest.raises(IllegalTransactionState, match=r"has failed: call abort_transaction\(\)"):
        producer.begin_transaction()

    producer.abort_transaction()
    producer.begin_transaction()
    producer.send(place.topic, b"next", partition=0)
    producer.commit_transaction()
    assert read() == [b"next"]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_listener_that_swallows_the_error_of_a_send_commits_nothing_of_its_attempt(
    cluster: Any, place: TopicPartition, read: Any, is_async: bool
) -> None:
    source = cluster.create_topic()
    app = Ottla(cluster.bootstrap_servers, name=cluster.fresh("swallow"), producer={"linger_ms": 0})
    attempts: list[str] = []
    recovered: list[tuple[bytes, str]] = []

    def recover(record: Any, error: BaseException) -> None:
        recovered.append((record.value, str(error)))
        app.template.send(place.topic, b"given up: " + record.value, partition=0)

    handler = ErrorHandler(retry=Retry.fixed(0, attempts=2), recover=recover)
    listens = app.listener(source, group=app.name, transactional=True, on_error=handler)

    def swallow(value: bytes) -> None:
        attempts.append(value.decode())
        app.template.send(place.topic, b"first of " + value, partition=0)
        if value == b"bad":
            try:
                app.template.send(place.topic, TOO_LARGE, partition=0).result(10)
            except SendError:
                pass  # as if it did not matter
        app.template.send(place.topic, b"last of " + value, partition=0)

    async def swallow_async(value: bytes) -> None:
        attempts.append(value.decode())
        await app.template.send(place.topic, b"first of " + value, partition=0)
        if value == b"bad":
            try:
                await app.template.send(place.topic, TOO_LARGE, partition=0)
            except SendError:
                pass
        app.template.send(place.topic, b"last of " + value, partition=0)

    listens(swallow_async if is_async else swallow)
    with KafkaProducer(bootstrap_servers=cluster.bootstrap_servers) as plain:
        for value in (b"a", b"bad", b"b"):
            plain.send(source, value, partition=0).result(10)
    with app:
        eventually(lambda: b"last of b" in read())
    assert read() == [b"first of a", b"last of a", b"given up: bad", b"first of b", b"last of b"]
    ((value, error),) = recovered
    assert value == b"bad"
    assert "MessageTooLarge" in error
    assert attempts.count("bad") >= 2


# -- somebody else's producer id ---------------------------------------------------------------------------------------


def name(code: int) -> str:
    error = error_for(code)
    return "" if error is None else type(error).__name__


def answered(answer: Any) -> Any:
    """None while the coordinator is not there yet."""
    waits = ("CoordinatorNotAvailable", "CoordinatorLoadInProgress", "NotCoordinator", "ConcurrentTransactions")
    return None if name(answer.error_code) in waits else answer


def test_who_does_not_own_a_producer_id_adds_nothing_to_its_transaction_and_does_not_end_it(
    cluster: Any,
    connect: Any,
    make_batch: Any,
    producer: KafkaProducer,
    make_producer: Any,
    place: TopicPartition,
    read: Any,
) -> None:
    other = make_producer(transactional_id=cluster.fresh("other"))
    other.init_transactions()
    producer.begin_transaction()
    producer.send(place.topic, b"1", partition=0).result(10)
    described = cluster.admin.describe_transactions([producer.transactional_id])[producer.transactional_id]
    stranger = {
        "transactional_id": other.transactional_id,
        "producer_id": described.producer_id,
        "producer_epoch": described.producer_epoch,
    }
    wire = connect()

    batch = bytes(
        make_batch(
            b"foreign",
            producer_id=described.producer_id,
            producer_epoch=described.producer_epoch,
            base_sequence=0,
            transactional=True,
        )
    )
    data = [TopicProduceData(name=place.topic, partition_data=[PartitionProduceData(index=1, records=batch)])]
    produce = ProduceRequest(transactional_id=other.transactional_id, acks=-1, timeout_ms=5_000, topic_data=data)
    (partition,) = wire.ask(produce, cluster.newest(ProduceRequest, at_most=12)).responses[0].partition_responses
    assert name(partition.error_code) == "InvalidProducerIdMapping"

    add = AddPartitionsToTxnRequest(
        **{f"v3_and_below_{field}": value for field, value in stranger.items()},
        v3_and_below_topics=[AddPartitionsToTxnTopic(name=place.topic, partitions=[1])],
    )
    (topic,) = wire.ask(add, 3).results_by_topic_v3_and_below
    assert name(topic.results_by_partition[0].partition_error_code) == "InvalidProducerIdMapping"

    partitions = [TxnOffsetCommitRequestPartition(partition_index=0, committed_offset=99)]
    offsets = TxnOffsetCommitRequest(
        **stranger, group_id="g", topics=[TxnOffsetCommitRequestTopic(name=place.topic, partitions=partitions)]
    )
    (topic,) = wire.ask(offsets, cluster.newest(TxnOffsetCommitRequest, at_most=5)).topics
    assert name(topic.partitions[0].error_code) == "InvalidProducerIdMapping"

    for committed in (True, False):
        end = EndTxnRequest(**stranger, committed=committed)
        assert name(wire.ask(end, cluster.newest(EndTxnRequest, at_most=5)).error_code) == "InvalidProducerIdMapping"

    producer.send(place.topic, b"2", partition=0).result(10)
    producer.commit_transaction()
    assert read() == [b"1", b"2"]
    assert read(TopicPartition(place.topic, 1)) == []


# -- version 1: an end that arrives for the second time, later ---------------------------------------------------------


@pytest.mark.every_version
@pytest.mark.parametrize(("in_between", "state"), [(None, "CompleteCommit"), ("the next epoch", "Ongoing")])
def test_a_late_end_of_version_1_ends_the_next_transaction_unless_that_has_an_epoch_of_its_own(
    cluster: Any, connect: Any, place: TopicPartition, in_between: str | None, state: str
) -> None:
    """Why our producer asks for the next epoch where the answer to an EndTxn of version 1 was lost."""
    wire = connect()
    tx = cluster.fresh("tx")
    wire.ask(FindCoordinatorRequest(key_type=1, coordinator_keys=[tx]), 4)  # what makes Kafka create its topic

    def identify(producer_id: int = -1, epoch: int = -1) -> tuple[int, int]:
        request = InitProducerIdRequest(
            transactional_id=tx, transaction_timeout_ms=60_000, producer_id=producer_id, producer_epoch=epoch
        )
        answer = eventually(lambda: answered(wire.ask(request, 4)))
        assert name(answer.error_code) == ""
        return answer.producer_id, answer.producer_epoch

    def begin(producer_id: int, epoch: int) -> None:
        request = AddPartitionsToTxnRequest(
            v3_and_below_transactional_id=tx,
            v3_and_below_producer_id=producer_id,
            v3_and_below_producer_epoch=epoch,
            v3_and_below_topics=[AddPartitionsToTxnTopic(name=place.topic, partitions=[place.partition])],
        )

        def is_added() -> bool:
            (topic,) = wire.ask(request, 3).results_by_topic_v3_and_below
            return topic.results_by_partition[0].partition_error_code == 0

        eventually(is_added)

    first = identify()
    begin(*first)
    commit = EndTxnRequest(transactional_id=tx, producer_id=first[0], producer_epoch=first[1], committed=True)
    assert name(eventually(lambda: answered(wire.ask(commit, 3))).error_code) == ""
    begin(*(first if in_between is None else identify(*first)))

    late = eventually(lambda: answered(wire.ask(commit, 3)))

    assert name(late.error_code) == ("" if in_between is None else "ProducerFenced")
    eventually(lambda: cluster.admin.describe_transactions([tx])[tx].state == state)
