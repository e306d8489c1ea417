from __future__ import annotations

import random

from ottla.client.backoff import Backoff
from ottla.client.producer.producer_sequences import NO_PRODUCER, ProducerIdAndEpoch
from ottla.client.producer.transaction_manager import LAST_EPOCH, TransactionManager
from ottla.client.producer.transaction_requests import TransactionRequest
from ottla.client.producer.transaction_tables import TransactionState
from ottla.errors import ClusterAuthorizationFailed, Disconnected, OutOfOrderSequenceNumber, UnknownProducerId
from ottla_wire.messages.init_producer_id import InitProducerIdResponse
from support.produce_model import ProducerWorld

P = "orders-0"


def manager() -> TransactionManager:
    return TransactionManager(Backoff(100, 1000, random.Random(1)))


def ready() -> TransactionManager:
    machine = manager()
    machine.answered(asked(machine), InitProducerIdResponse(producer_id=7, producer_epoch=3), 0)
    return machine


def asked(machine: TransactionManager, now_ms: int = 0) -> TransactionRequest:
    request = machine.next_request(now_ms)
    assert request is not None
    return request


def batch() -> object:
    world = ProducerWorld()
    world.bring_metadata()
    world.send()
    world.metadata_wanted = False
    world.accumulator.update_topic(world.metadata.topic("orders"), 0)  # type: ignore[arg-type]
    (only,) = world.accumulator.incomplete
    return only


def test_an_id_is_asked_for_once() -> None:
    machine = manager()
    request = asked(machine)
    assert machine.next_request(0) is None
    machine.answered(request, InitProducerIdResponse(producer_id=7, producer_epoch=3), 5)
    assert machine.state is TransactionState.READY
    assert machine.producer == ProducerIdAndEpoch(7, 3)


def test_a_retriable_error_asks_again_after_a_growing_pause() -> None:
    machine = manager()
    pauses = []
    now_ms = 0
    for _ in range(6):
        machine.unanswered(asked(machine, now_ms), Disconnected("gone"), now_ms)
        deadline_ms = machine.deadline_ms()
        assert deadline_ms is not None
        assert machine.next_request(deadline_ms - 1) is None
        pauses.append(deadline_ms - now_ms)
        now_ms = deadline_ms
    assert 80 <= pauses[0] <= 120
    assert 800 <= pauses[-1] <= 1200
    assert pauses[1] > pauses[0]


def test_an_error_that_stays_is_fatal_and_is_what_sends_fail_with() -> None:
    machine = manager()
    machine.answered(asked(machine), InitProducerIdResponse(error_code=31), 0)
    assert machine.state is TransactionState.FATAL
    assert isinstance(machine.error, ClusterAuthorizationFailed)
    assert machine.next_request(10**9) is None


def test_out_of_order_is_retried_without_restart_while_a_batch_before_it_is_open() -> None:
    machine = ready()
    first, second = batch(), batch()
    machine.number(P, first)  # type: ignore[arg-type]
    machine.number(P, second)  # type: ignore[arg-type]
    assert machine.refused(P, second, OutOfOrderSequenceNumber(), -1)  # type: ignore[arg-type]
    machine.resolve()
    assert machine.producer.epoch == 3


def test_out_of_order_for_the_next_batch_restarts_in_the_next_epoch() -> None:
    machine = ready()
    first = batch()
    machine.number(P, first)  # type: ignore[arg-type]
    assert machine.refused(P, first, OutOfOrderSequenceNumber(), -1)  # type: ignore[arg-type]
    machine.resolve()
    assert machine.producer == ProducerIdAndEpoch(7, 4)
    assert first.producer == machine.producer  # type: ignore[attr-defined]
    assert first.base_sequence == 0  # type: ignore[attr-defined]


def test_after_the_last_epoch_comes_a_new_id() -> None:
    machine = ready()
    machine.producer = ProducerIdAndEpoch(7, LAST_EPOCH)
    first = batch()
    machine.number(P, first)  # type: ignore[arg-type]
    machine.refused(P, first, OutOfOrderSequenceNumber(), -1)  # type: ignore[arg-type]
    machine.resolve()
    assert machine.producer == NO_PRODUCER
    assert not machine.may_send(P, first)  # type: ignore[arg-type]
    machine.answered(asked(machine), InitProducerIdResponse(producer_id=8, producer_epoch=0), 0)
    machine.resolve()
    assert first.producer == ProducerIdAndEpoch(8, 0)  # type: ignore[attr-defined]
    assert machine.may_send(P, first)  # type: ignore[arg-type]


def test_unknown_producer_restarts_only_if_the_answer_says_where_the_log_begins() -> None:
    machine = ready()
    first = batch()
    machine.number(P, first)  # type: ignore[arg-type]
    assert machine.refused(P, first, UnknownProducerId(), -1)  # type: ignore[arg-type]
    machine.resolve()
    assert machine.producer.epoch == 3
    assert machine.refused(P, first, UnknownProducerId(), 0)  # type: ignore[arg-type]
    machine.resolve()
    assert machine.producer.epoch == 4
