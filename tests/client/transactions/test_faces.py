"""The methods of KafkaProducer and AsyncKafkaProducer around the machine: waiting, giving up waiting, wrong use."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ottla.client import AsyncKafkaProducer, ConsumerGroupMetadata, KafkaProducer, TopicPartition
from ottla.client.config import ProducerConfig
from ottla.client.engine import Engine
from ottla.client.producer.record_accumulator import TopicQueues
from ottla.client.producer.transaction_tables import TransactionState
from ottla.errors import (
    BufferExhausted,
    ClientClosed,
    ConfigError,
    IllegalTransactionState,
    MessageTooLarge,
    NoAnswer,
    NotInTransaction,
    OttlaError,
    SendError,
    SerializationError,
    TransactionAborted,
)
from ottla_wire.messages.init_producer_id import InitProducerIdResponse
from support.produce_model import TOPIC, ProducerWorld

GROUP = ConsumerGroupMetadata("billing", 1, "m")


class StillEngine(Engine):
    """An engine whose I/O thread does nothing: whatever has to be asked of a broker is never asked."""

    def start(self) -> None:
        self._cluster = self._cluster or StillCluster()  # type: ignore[assignment]

    def post(self, function: Callable[..., object], *args: Any) -> None:
        pass

    def close(self, timeout: float | None = None) -> None:
        self._closed = True


class StillCluster:
    def __init__(self) -> None:
        self.metadata = None


def still(face: Any = KafkaProducer, **settings: Any) -> Any:
    """A producer that is initialised, knows its topic, and whose requests are never answered."""
    settings = {"transactional_id": "tx", "max_block_ms": 20, "linger_ms": 1_000, **settings}
    producer = face(engine=StillEngine(ProducerConfig()), **settings)
    machine = producer._transactions
    if machine.transactional_id is not None:
        operation = machine.init()
        machine.features_seen(1, 2)
        machine.answered(machine.next_request(0), 0, 0)
        answer = InitProducerIdResponse(producer_id=7, producer_epoch=0)
        machine.answered(machine.next_request(0), answer, 0)
        operation.acknowledged = True
    world = ProducerWorld(partitions=2)
    world.bring_metadata()
    producer._accumulator.topics[TOPIC] = TopicQueues(TOPIC)
    producer._accumulator.update_topic(world.metadata.topic(TOPIC), 0)
    return producer


def test_a_call_that_is_not_answered_ends_and_says_what_may_be_done() -> None:
    producer = still()
    producer.begin_transaction()
    producer.send(TOPIC, b"v", partition=0)
    with pytest.raises(NoAnswer, match=r"commit_transaction of transactional id 'tx'.* 0\.02 s.*1 batches") as raised:
        producer.commit_transaction()
    assert "call commit_transaction() again, and nothing else" in str(raised.value)
    for call in (producer.abort_transaction, producer.begin_transaction, producer.init_transactions):
        with pytest.raises(IllegalTransactionState, match=r"call commit_transaction\(\) again"):
            call()
    with pytest.raises(NoAnswer):
        producer.commit_transaction(timeout=0)
    assert producer.transaction_state is TransactionState.COMMITTING


def test_no_record_slips_into_a_transaction_that_is_being_committed() -> None:
    """Its batch lingers and is open, and a send into an open batch asks nobody."""
    producer = still()
    producer.begin_transaction()
    producer.send(TOPIC, b"inside", partition=0)
    with pytest.raises(NoAnswer):
        producer.commit_transaction(timeout=0)
    with pytest.raises(IllegalTransactionState, match="being committed"):
        producer.send(TOPIC, b"outside", partition=0)
    (batch,) = producer._accumulator.incomplete
    assert batch.count == 1


def test_a_send_outside_of_a_transaction_says_what_to_call() -> None:
    producer = still()
    with pytest.raises(NotInTransaction, match=r"begin_transaction\(\)"):
        producer.send(TOPIC, b"v", partition=0)
    with pytest.raises(NotInTransaction):
        producer.send(TOPIC, object(), partition=0)


@pytest.mark.parametrize(
    ("send", "kind"),
    [
        (lambda producer: producer.send(TOPIC, b"x" * 2_000_000), MessageTooLarge),
        (lambda producer: producer.send(TOPIC, object()), SerializationError),
        (lambda producer: [producer.send(TOPIC, b"x" * 9_000) for _ in range(9)][-1], BufferExhausted),
    ],
)
def test_a_failure_that_nobody_looked_at_fails_the_commit(send: Any, kind: type[Exception]) -> None:
    producer = still(buffer_memory=40_000, batch_size=10_000)
    producer.begin_transaction()
    future = send(producer)
    assert isinstance(future.exception(0), SendError)
    assert producer.transaction_state is TransactionState.ABORTABLE_ERROR
    with pytest.raises(kind):
        producer.commit_transaction()
    later = producer.send(TOPIC, b"v")
    error = later.exception(0)
    assert isinstance(error.__cause__, TransactionAborted)


def test_begin_and_an_empty_transaction_need_no_answer() -> None:
    producer = still()
    for end in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        end()
    assert producer.transaction_state is TransactionState.READY


def test_offsets_are_checked_before_anything_is_done() -> None:
    producer = still()
    producer.begin_transaction()
    for offsets, group, kind in (
        ({TopicPartition("t", 0): 1}, "billing", TypeError),
        ({TopicPartition("t", 0): "1"}, GROUP, TypeError),
        ({TopicPartition("t", 0): True}, GROUP, TypeError),
        ({TopicPartition("t", 0): -1}, GROUP, ValueError),
    ):
        with pytest.raises(kind):
            producer.send_offsets_to_transaction(offsets, group)
    with pytest.raises(TypeError, match="belong together"):
        producer.commit_transaction(offsets={})
    producer.commit_transaction()


def test_a_commit_takes_offsets_along_once() -> None:
    producer = still()
    producer.begin_transaction()
    offsets = {TopicPartition("t", 0): 5}
    for _ in range(2):
        with pytest.raises(NoAnswer):
            producer.commit_transaction(0.01, offsets=offsets, group_metadata=GROUP)
    assert len(producer._transactions._offsets) == 1


def test_a_producer_without_transactional_id_has_no_transactions() -> None:
    producer = KafkaProducer(engine=StillEngine(ProducerConfig()))
    for call in (
        producer.init_transactions,
        producer.begin_transaction,
        producer.commit_transaction,
        producer.abort_transaction,
    ):
        with pytest.raises(IllegalTransactionState, match="transactional_id"):
            call()
    with pytest.raises(IllegalTransactionState, match="transactional_id"):
        producer.send_offsets_to_transaction({}, GROUP)
    assert producer.transactional_id is None


@pytest.mark.parametrize(
    "settings",
    [
        {"transactional_id": ""},
        {"transactional_id": "tx", "acks": 1},
        {"transactional_id": "tx", "enable_idempotence": False},
        {"transactional_id": "tx", "retries": 0},
        {"transactional_id": "tx", "max_in_flight_requests_per_connection": 6},
        {"transaction_timeout_ms": 0},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        KafkaProducer(settings)


def test_a_closed_producer_refuses() -> None:
    producer = still()
    producer.begin_transaction()
    producer.close(0)
    for call in (producer.commit_transaction, producer.abort_transaction, producer.begin_transaction):
        with pytest.raises(ClientClosed):
            call()
    with pytest.raises(ClientClosed):
        producer.send(TOPIC, b"v")


def test_the_blocking_calls_name_the_async_form_on_an_event_loop() -> None:
    producer = still()

    async def block() -> None:
        with pytest.raises(RuntimeError, match=r"AsyncKafkaProducer\.begin_transaction"):
            producer.begin_transaction()

    asyncio.run(block())


def test_a_cancelled_commit_may_only_be_called_again() -> None:
    producer = still(AsyncKafkaProducer, max_block_ms=10_000)

    async def cancel() -> None:
        await producer.begin_transaction()
        producer.send(TOPIC, b"v", partition=0)
        task = asyncio.create_task(producer.commit_transaction())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(IllegalTransactionState, match=r"call commit_transaction\(\) again"):
            await producer.abort_transaction()
        with pytest.raises(NoAnswer):
            await producer.commit_transaction(0.01)

    asyncio.run(cancel())


def test_a_pooled_producer_serves_threads_and_event_loops_alike() -> None:
    producer = still()
    producer.begin_transaction()

    async def ends() -> None:
        producer.send(TOPIC, b"v", partition=0)
        with pytest.raises(NoAnswer):
            await producer.commit_transaction_async(0.01)

    asyncio.run(ends())
    with pytest.raises(NoAnswer):
        producer.commit_transaction(0.01)


def test_two_threads_that_commit_wait_for_the_same_commit() -> None:
    producer = still(max_block_ms=5_000)
    producer.begin_transaction()
    producer.send(TOPIC, b"v", partition=0)
    errors: list[OttlaError | None] = []

    def commit() -> None:
        try:
            producer.commit_transaction()
        except OttlaError as error:
            errors.append(error)
        else:
            errors.append(None)

    threads = [threading.Thread(target=commit) for _ in range(2)]
    for thread in threads:
        thread.start()
    while producer._transactions._calls.pending is None or len(producer._transactions._calls.pending._callbacks) < 2:
        assert any(thread.is_alive() for thread in threads)
    with producer._lock:
        producer._transactions.fail(ClientClosed("closed"))
        finished = producer._transactions.take_finished()
    for operation in finished:
        for callback in operation.take_callbacks():
            callback()
    for thread in threads:
        thread.join(5)
    assert [type(error) for error in errors] == [ClientClosed, ClientClosed]
