"""Acknowledgments in any order: what is committed has no gap."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottla import AckMode, ErrorHandler, Retry, TopicPartition
from ottla.errors import ConfigError
from ottla.listeners.ack import Acknowledgment
from ottla.listeners.container_properties import ContainerProperties, check_async_acks
from ottla.listeners.pending_acks import OutOfOrderAckTracker
from ottla.listeners.transactional import Transactional
from ottla_wire.records import ConsumerRecord, TimestampType

ORDERS = TopicPartition("orders", 0)


def tracker(limit: int = 1000) -> OutOfOrderAckTracker:
    return OutOfOrderAckTracker(AckMode.MANUAL, limit=limit)


def taken(acks: OutOfOrderAckTracker) -> Any:
    return {partition: offset.offset for partition, offset in acks.take(0).items()}


def test_an_acknowledgment_is_committed_when_those_before_it_have_come(make_record: Any) -> None:
    acks = tracker()
    records = [make_record(n) for n in range(3)]
    acks.delivered(records)
    acks.acknowledge(records[2])
    assert taken(acks) == {}
    acks.acknowledge(records[0])
    assert taken(acks) == {ORDERS: 1}
    acks.acknowledge(records[1])
    assert taken(acks) == {ORDERS: 3}


def test_each_partition_has_an_order_of_its_own(make_record: Any) -> None:
    acks = tracker()
    records = [make_record(0), make_record(5, partition=1)]
    acks.delivered(records)
    acks.acknowledge(records[1])
    assert taken(acks) == {TopicPartition("orders", 1): 6}


def test_a_recovered_or_filtered_record_waits_for_those_before_it(make_record: Any) -> None:
    acks = tracker()
    acks.delivered([make_record(0)])
    acks.skipped(make_record(1))
    assert taken(acks) == {}
    acks.acknowledge(make_record(0))
    assert taken(acks) == {ORDERS: 2}


def test_a_filtered_record_alone_is_committed(make_record: Any) -> None:
    acks = tracker()
    acks.skipped(make_record(7))
    assert taken(acks) == {ORDERS: 8}


def test_an_acknowledgment_for_a_partition_that_was_given_up_is_nobodys_concern(make_record: Any) -> None:
    acks = tracker(limit=1)
    acks.delivered([make_record(0)])
    assert acks.is_full
    acks.forget([ORDERS])
    assert not acks.is_full
    acks.acknowledge(make_record(0))
    assert taken(acks) == {}


def test_a_partition_that_starts_anew_commits_nothing_of_before(make_record: Any) -> None:
    acks = tracker()
    acks.delivered([make_record(10), make_record(11)])
    acks.acknowledge(make_record(11))
    acks.forget([ORDERS])
    acks.delivered([make_record(3), make_record(4)])
    acks.acknowledge(make_record(3))
    assert taken(acks) == {ORDERS: 4}


def test_acknowledging_twice_is_no_more_than_once(make_record: Any) -> None:
    acks = tracker(limit=2)
    acks.delivered([make_record(0), make_record(1)])
    for _ in range(2):
        acks.acknowledge(make_record(0))
    assert not acks.is_full
    assert taken(acks) == {ORDERS: 1}


def test_nack_is_refused(make_record: Any) -> None:
    with pytest.raises(RuntimeError, match="async_acks"):
        Acknowledgment(tracker(), [make_record(0)], lambda: None).nack()


@given(st.integers(1, 40), st.integers(0, 2**32))
def test_whatever_the_order_nothing_is_committed_past_a_missing_acknowledgment(count: int, seed: int) -> None:
    order = random.Random(seed)
    records = [
        ConsumerRecord("orders", 0, 2 * n, 0, TimestampType.CREATE_TIME, None, None, (), None, 1) for n in range(count)
    ]
    acks = tracker()
    undelivered, missing, committed = list(records), list[ConsumerRecord](), 0
    while undelivered or missing:
        if undelivered and (not missing or order.random() < 0.4):
            several = [undelivered.pop(0) for _ in range(min(len(undelivered), order.randint(1, 4)))]
            acks.delivered(several)
            missing += several
        else:
            acks.acknowledge(missing.pop(order.randrange(len(missing))))
        committed = taken(acks).get(ORDERS, committed)
        assert committed <= min((record.offset for record in missing), default=2 * count)
        first_missing = min((record.offset for record in missing), default=2 * count)
        done = [record.offset for record in records if record not in undelivered and record.offset < first_missing]
        assert committed >= max(done, default=-1) + 1
    assert committed == records[-1].offset + 1


def test_with_too_many_missing_no_record_is_taken_until_some_have_come(rig: Any, make_record: Any) -> None:
    acks = tracker(limit=2)
    run = rig(acks=acks)

    def listener(record: Any) -> None:
        acks.delivered([record])

    run.listener = listener
    effects = run.loop.run()
    run.polls = [[make_record(0), make_record(1)], [], [], [make_record(2)]]
    outcome: Any = None
    while run.polls or len(run.delivered) < 3:
        outcome = run._perform(effects.send(outcome))
        if len(run.polls) == 1 and run.all_paused:
            acks.acknowledge(make_record(1))
    assert run.events[:2] == ["PauseAll", "ResumeAll"]


def test_a_partition_that_comes_while_too_many_are_missing_starts_paused(rig: Any, make_record: Any) -> None:
    acks = tracker(limit=1)
    run = rig(acks=acks)
    run.polls = [[make_record(0)], []]
    run.listener = lambda record: acks.delivered([record])
    effects = run.loop.run()
    outcome: Any = None
    while run.polls:
        outcome = run._perform(effects.send(outcome))
    assert run.loop.to_pause([ORDERS]) == [ORDERS]
    assert not run.loop.is_paused  # nobody has asked for it


def test_a_failed_record_is_delivered_again_although_too_many_are_missing(rig: Any, make_record: Any) -> None:
    acks = tracker(limit=1)
    run = rig(acks=acks, errors=ErrorHandler(retry=Retry.fixed(0, attempts=3)))
    failures = iter([True, False])

    def listener(record: Any) -> None:
        acks.delivered([record])
        if next(failures):
            raise ZeroDivisionError
        acks.acknowledge(record)

    run.listener = listener
    run.run([make_record(0)])
    assert run.delivered == [(0, 0, 1), (0, 0, 2)]
    assert run.commits == [{("orders", 0): 1}]
    assert not run.all_paused
    assert not run.paused


@pytest.mark.parametrize(
    ("properties", "takes", "reason"),
    [
        ({"ack": AckMode.BATCH}, True, "MANUAL"),
        ({"transactional": Transactional()}, True, "exclude"),
        ({}, False, "Acknowledgment"),
        ({"max_pending_acks": 0}, True, "1 or more"),
    ],
)
def test_what_does_not_go_together_is_refused(properties: Any, takes: bool, reason: str) -> None:
    given = ContainerProperties(**{"ack": AckMode.MANUAL, "async_acks": True, **properties})
    with pytest.raises(ConfigError, match=reason):
        check_async_acks("note", given, takes_acknowledgment=takes)
