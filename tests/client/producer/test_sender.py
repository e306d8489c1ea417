"""What each answer, and each missing answer, does to a batch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from ottla.errors import (
    DeliveryTimedOut,
    InvalidRecord,
    InvalidTimestamp,
    InvalidTopic,
    MessageTooLarge,
    NotEnoughReplicas,
    SendError,
    TopicAuthorizationFailed,
    UnknownTopicOrPartition,
)
from ottla_wire.messages.metadata import MetadataResponse, MetadataResponseTopic
from ottla_wire.records import SendFuture
from support.produce_model import TOPIC, Fault, ProducerWorld


def running(**settings: Any) -> ProducerWorld:
    """A producer that has its metadata, its id, and one acknowledged record in each partition."""
    world = ProducerWorld(**settings)
    for partition in range(len(world.partitions)):
        world.send(partition)
    world.settle()
    return world


def exchange(world: ProducerWorld, node: int = 0) -> None:
    """One round: the sender looks, the broker works, the answer arrives."""
    world.run()
    while world.work(node):
        pass
    while world.deliver(node):
        pass


def cause(future: SendFuture) -> BaseException | None:
    error = future.exception(0)
    assert isinstance(error, SendError)
    return error.__cause__


def test_a_lost_answer_stores_the_record_once() -> None:
    world = running()
    future = world.send()
    world.run()
    world.disconnect(0, worked_on=1)
    world.settle()
    world.check()
    assert world.partitions[0].log == [b"00000000", b"00000001"]
    assert future.result(0).offset == 1


def test_five_requests_in_flight_survive_a_broken_connection_in_order() -> None:
    world = running()
    for _ in range(5):
        world.send()
        world.run()
    assert len(world.in_flight[0]) == 5
    world.send()
    world.run()
    assert len(world.in_flight[0]) == 5, "a sixth request has to wait"
    world.disconnect(0, worked_on=2)
    world.settle()
    world.check()
    assert len(world.partitions[0].log) == 7


def test_out_of_order_answers_behind_a_refused_batch_are_retried_until_they_fit() -> None:
    world = running()
    for _ in range(3):
        world.send()
        world.run()
    world.faults.append(Fault(19))
    for _ in range(3):
        world.work(0)
    codes = [e.answer.responses[0].partition_responses[0].error_code for e in world.in_flight[0]]
    assert codes == [19, 45, 45]
    world.settle()
    world.check()
    assert world.transactions is not None
    assert world.transactions.producer.epoch == 0, "nothing was missing, so nothing starts anew"


def test_a_batch_refused_for_good_lets_those_behind_it_start_anew() -> None:
    world = running()
    refused = world.send()
    world.run()
    behind = world.send()
    world.run()
    world.faults.append(Fault(87))
    exchange(world)
    world.settle()
    world.check()
    assert isinstance(cause(refused), InvalidRecord)
    assert behind.result(0).offset == 1
    assert world.transactions is not None
    assert world.transactions.producer.epoch == 1


def test_a_batch_that_may_be_stored_keeps_its_number_when_the_one_behind_it_is_refused() -> None:
    """A is stored but answered with NOT_ENOUGH_REPLICAS_AFTER_APPEND, B behind it is refused for good.

    Numbered anew at once, A's retry would be stored a second time.
    """
    world = running()
    first = world.send()
    world.run()
    world.send()
    world.run()
    world.faults.extend([Fault(20, stores=True), Fault(87)])
    exchange(world)
    world.settle()
    world.check()
    assert first.result(0).offset == 1
    assert world.partitions[0].log == [b"00000000", b"00000001"]


def test_a_broker_that_forgot_the_producer_is_sent_everything_anew() -> None:
    world = running()
    world.partitions[0].producers[7000].last_sequence = 99
    future = world.send()
    world.settle()
    assert future.result(0).offset == 1
    assert world.transactions is not None
    assert world.transactions.producer.epoch == 1


def test_duplicate_sequence_is_success_without_an_offset() -> None:
    world = running()
    future = world.send()
    world.faults.append(Fault(46, stores=True))
    exchange(world)
    assert future.result(0).offset == -1


def test_a_leader_named_in_the_answer_is_gone_to_without_a_pause() -> None:
    world = running()
    world.move_leader(0)
    future = world.send()
    exchange(world)
    assert not future.done()
    world.run()  # no time has passed, and no metadata was brought
    assert len(world.in_flight[1]) == 1
    exchange(world, node=1)
    assert future.result(0).offset == 1


def test_without_a_new_leader_a_retry_waits_for_its_pause() -> None:
    world = running()
    world.send()
    world.faults.append(Fault(19))
    exchange(world)
    world.run(elapsed_ms=70)
    assert not world.in_flight[0]
    world.run(elapsed_ms=60)
    assert len(world.in_flight[0]) == 1


def test_pauses_grow_with_every_attempt() -> None:
    world = running()
    world.send()
    attempts = []
    world.faults.extend([Fault(19)] * 5)
    for _ in range(600):
        world.run(elapsed_ms=10)
        if world.in_flight[0]:
            attempts.append(world.now_ms)
        exchange(world)
    gaps = [later - earlier for earlier, later in pairwise(attempts)]
    assert len(gaps) == 5
    assert 80 <= gaps[0] <= 130
    assert 790 <= gaps[4] <= 1220


def test_a_record_expires_in_the_queue_and_says_that_it_was_never_sent() -> None:
    world = running()
    world.unreachable.add(0)
    future = world.send()
    world.run(elapsed_ms=59_000)
    assert not future.done()
    world.run(elapsed_ms=1_001)
    error = cause(future)
    assert isinstance(error, DeliveryTimedOut)
    assert "never sent" in str(error)


def test_a_record_that_expires_on_the_wire_keeps_its_memory_until_its_request_ends() -> None:
    world = running()
    future = world.send()
    world.run()
    world.run(elapsed_ms=60_001)
    assert isinstance(cause(future), DeliveryTimedOut)
    assert world.accumulator.free_bytes < world.config.buffer_memory
    world.disconnect(0, worked_on=1)
    assert world.accumulator.free_bytes == world.config.buffer_memory


def test_what_follows_an_expired_batch_is_stored_once_whether_or_not_that_was() -> None:
    for stored in (0, 1):
        world = running()
        world.send()
        world.run()
        world.run(elapsed_ms=60_001)
        world.disconnect(0, worked_on=stored)
        later = world.send()
        world.settle()
        world.check()
        assert later.result(0).offset == 1 + stored


def test_retries_are_counted_and_the_last_error_is_told() -> None:
    world = running(retries=2)
    future = world.send()
    world.faults.extend([Fault(19)] * 3)
    for _ in range(3):
        exchange(world)
        world.now_ms += 2_000
    error = cause(future)
    assert isinstance(error, NotEnoughReplicas)
    assert "3 attempts" in str(error)


def test_a_batch_that_is_too_large_goes_in_parts_and_every_record_keeps_its_future() -> None:
    world = running()
    futures = [world.send() for _ in range(9)]
    world.faults.append(Fault(10))
    exchange(world)
    assert not any(future.done() for future in futures)
    world.settle()
    world.check()
    assert [future.result(0).offset for future in futures] == list(range(1, 10))
    assert world.sender.counters.batches_split >= 1


def test_a_batch_that_may_be_stored_is_never_split() -> None:
    """The limit is lowered while the answer is on its way: parts would be stored beside the whole."""
    world = running()
    futures = [world.send() for _ in range(6)]
    world.faults.append(Fault(20, stores=True))
    exchange(world)
    world.now_ms += 2_000
    world.faults.append(Fault(10))
    exchange(world)
    assert all(isinstance(cause(future), MessageTooLarge) for future in futures)
    world.settle()
    world.check()


def test_a_single_record_that_is_too_large_fails() -> None:
    world = running()
    world.size_limit = 100
    future = world.send(value=b"x" * 120)
    exchange(world)
    assert isinstance(cause(future), MessageTooLarge)


def test_record_errors_fail_the_guilty_by_name_and_the_others_in_general() -> None:
    world = running()
    futures = [world.send() for _ in range(4)]
    world.faults.append(Fault(32, guilty=(2,)))
    exchange(world)
    assert isinstance(cause(futures[2]), InvalidTimestamp)
    assert "other records" in str(cause(futures[0]))
    assert not isinstance(cause(futures[0]), InvalidTimestamp)


def test_several_guilty_records_are_invalid_records() -> None:
    world = running()
    futures = [world.send() for _ in range(4)]
    world.faults.append(Fault(32, guilty=(1, 2)))
    exchange(world)
    assert [type(cause(future)) is InvalidRecord for future in futures] == [False, True, True, False]


def test_acks_0_is_done_when_it_is_written_and_has_no_offset() -> None:
    world = ProducerWorld(acks=0)
    world.bring_metadata()
    future = world.send()
    world.run()
    (sent,) = world.in_flight[0]
    world.sender.answered(sent.attempt, None, None, world.now_ms)
    assert future.result(0).offset == -1


def test_one_request_in_flight_keeps_order_without_idempotence() -> None:
    world = ProducerWorld(enable_idempotence=False, max_in_flight_requests_per_connection=1)
    world.bring_metadata()
    for _ in range(3):
        world.send()
        world.run()
    assert len(world.in_flight[0]) == 1
    world.faults.append(Fault(19))
    world.settle()
    world.check()


def test_a_partition_with_one_request_in_flight_is_not_sent_to_its_new_leader_meanwhile() -> None:
    world = ProducerWorld(enable_idempotence=False, max_in_flight_requests_per_connection=1)
    world.bring_metadata()
    world.send()
    world.run()
    world.move_leader(0)
    world.bring_metadata()
    world.send()
    world.run()
    assert not world.in_flight[1], "the first record may still come back to be sent again, before this one"
    world.settle()
    world.check()


def test_a_broker_has_no_more_requests_at_once_than_allowed_whatever_the_partitions() -> None:
    world = running(partitions=6, nodes=1, max_in_flight_requests_per_connection=3)
    for partition in range(6):
        world.send(partition)
        world.run()
    assert len(world.in_flight[0]) == 3
    world.settle()
    world.check()


def test_a_fatal_error_fails_everything_that_waits() -> None:
    world = running()
    future = world.send()
    world.faults.append(Fault(90))
    exchange(world)
    waiting = world.send()
    world.run()
    assert future.done()
    assert waiting.done()
    assert isinstance(cause(waiting), type(cause(future)))


def test_a_topic_that_never_appears_fails_its_records_by_name() -> None:
    world = ProducerWorld(max_block_ms=500)
    future = world.send(None)
    missing = MetadataResponseTopic(name=TOPIC, error_code=3)
    world.metadata.update(MetadataResponse(topics=[missing]))
    world.run()
    assert not future.done(), "it may be created yet"
    world.run(elapsed_ms=501)
    error = cause(future)
    assert isinstance(error, UnknownTopicOrPartition)
    assert TOPIC in str(error)
    assert world.accumulator.free_bytes == world.config.buffer_memory


@pytest.mark.parametrize(("code", "kind"), [(29, TopicAuthorizationFailed), (17, InvalidTopic)])
def test_a_topic_that_is_refused_fails_its_records_at_once(code: int, kind: type[Exception]) -> None:
    world = ProducerWorld()
    future = world.send(None)
    world.metadata.update(MetadataResponse(topics=[MetadataResponseTopic(name=TOPIC, error_code=code)]))
    world.run()
    assert isinstance(cause(future), kind)


def test_every_acknowledged_offset_holds_its_record_after_a_retry_was_recognised() -> None:
    world = running()
    futures = [world.send() for _ in range(3)]
    world.run()
    world.disconnect(0, worked_on=1)
    later = [world.send() for _ in range(3)]
    world.settle()
    world.check()
    assert [future.result(0).offset for future in futures + later] == list(range(1, 7))
