"""Transactions over crashes of the broker: nothing of an open one is lost, doubled or shown.

Pitfalls 10 and 11 of a reimplementation, inside transactions.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

INVALID_EPOCH, COORDINATOR_FENCED = 47, 52


def test_an_open_transaction_goes_on_without_being_asked_for_again(stage: Any) -> None:
    producer = stage.producer()
    producer.sends(b"a")
    stage.crashes()
    assert (stage.latest(isolation=0), stage.latest(isolation=1)) == (1, 0)
    assert producer.sends(b"b").error_code == 0
    assert len(stage.coordinator.asked) == 1
    producer.ends(commit=True)
    assert stage.values() == [b"a", b"b"]


def test_the_five_batches_in_flight_are_recognised_when_they_are_sent_again(stage: Any) -> None:
    producer = stage.producer()
    batches = [producer.batch(b"%d" % number, sequence=number) for number in range(5)]
    offsets = [producer.requests({0: data}).responses[0].partition_responses[0].base_offset for data in batches]
    stage.crashes()
    again = [producer.requests({0: data}).responses[0].partition_responses[0] for data in batches]
    assert [(entry.error_code, entry.base_offset) for entry in again] == [(0, offset) for offset in offsets]
    assert producer.sends(b"5", sequence=5).error_code == 0
    producer.ends(commit=True)
    assert stage.values() == [b"%d" % number for number in range(6)]


@pytest.mark.parametrize("commit", [True, False])
def test_a_marker_that_was_written_before_the_crash_may_be_written_again(stage: Any, commit: bool) -> None:
    producer = stage.producer()
    producer.sends(b"a")
    producer.ends(commit=commit)
    stage.crashes()
    assert stage.latest(isolation=1) == 2
    assert stage.writes_marker(9, commit=commit, epoch=1) == [0]
    assert stage.values() == ([b"a"] if commit else [])


def test_fences_are_remembered(stage: Any) -> None:
    producer = stage.producer()
    producer.sends(b"a")
    producer.ends(commit=True, coordinator_epoch=5)
    stage.crashes()
    assert stage.producer(epoch=0).sends(b"zombie").error_code == INVALID_EPOCH
    assert stage.writes_marker(9, commit=False, epoch=2, coordinator_epoch=4) == [COORDINATOR_FENCED]
    (entry,) = stage.described()
    assert (entry.producer_epoch, entry.coordinator_epoch, entry.current_txn_start_offset) == (1, 5, -1)


@pytest.mark.parametrize("seed", range(12))
def test_each_record_is_there_once_whatever_answers_are_lost(stage: Any, seed: int) -> None:
    """Answers are lost at random, with or without the broker; the client sends again what it has no answer for."""
    rng = random.Random(seed)
    producer = stage.producer()
    expected: list[bytes] = []
    for _ in range(12):
        values = [b"%d" % rng.randrange(10_000) for _ in range(rng.randint(1, 6))]
        for sequence, value in enumerate(values):
            data = producer.batch(value, sequence=sequence)
            while True:
                entry = producer.requests({0: data}).responses[0].partition_responses[0]
                assert entry.error_code == 0
                fate = rng.random()
                if fate < 0.1:
                    stage.crashes()
                elif fate > 0.4:
                    break
        commit = rng.random() < 0.5
        epoch = producer.epoch + 1
        while True:
            assert stage.writes_marker(9, commit=commit, epoch=epoch) == [0]
            fate = rng.random()
            if fate < 0.2:
                stage.crashes()
            elif fate > 0.4:
                break
        stage.coordinator.end("tx")
        producer.epoch = epoch
        expected += values if commit else []
    assert stage.values() == expected
    assert stage.latest(isolation=1) == stage.latest(isolation=0)
