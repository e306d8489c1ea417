from __future__ import annotations

from dataclasses import dataclass

import pytest

from ottla.client.producer.producer_sequences import (
    NO_PRODUCER,
    NO_SEQUENCE,
    SEQUENCES,
    PartitionSequences,
    ProducerIdAndEpoch,
    ProducerSequences,
    last_sequence,
    sequence_after,
)

PRODUCER = ProducerIdAndEpoch(7, 0)
NEXT_LIFE = ProducerIdAndEpoch(7, 1)
P = "orders-0"


@dataclass(eq=False)
class Batch:
    count: int
    producer: ProducerIdAndEpoch = NO_PRODUCER
    base_sequence: int = NO_SEQUENCE
    on_wire: bool = False


def sent(sequences: ProducerSequences, *counts: int) -> list[Batch]:
    batches = [Batch(count) for count in counts]
    for batch in batches:
        sequences.number(P, batch, PRODUCER)
    return batches


def test_sequences_run_to_the_last_and_then_begin_with_0() -> None:
    assert sequence_after(SEQUENCES - 1, 1) == 0
    assert sequence_after(SEQUENCES - 3, 5) == 2
    state = PartitionSequences(PRODUCER)
    state.next_sequence = SEQUENCES - 3
    first, across, after = Batch(2), Batch(4), Batch(1)
    for batch in (first, across, after):
        state.number(batch)
    assert [batch.base_sequence for batch in (first, across, after)] == [SEQUENCES - 3, SEQUENCES - 1, 3]
    assert last_sequence(across) == 2


def test_an_acknowledgement_across_the_wrap_moves_forward() -> None:
    state = PartitionSequences(PRODUCER)
    state.next_sequence = SEQUENCES - 2
    before, across = Batch(1), Batch(3)
    state.number(before)
    state.number(across)
    state.acked(before, 10)
    state.acked(across, 11)
    assert state.last_acked == 1
    assert state.is_next(2)


def test_a_late_acknowledgement_does_not_move_backward() -> None:
    sequences = ProducerSequences(5)
    first, second = sent(sequences, 3, 3)
    sequences.acked(P, second, 3)
    sequences.acked(P, first, 0)
    state = sequences.of(P)
    assert state is not None
    assert state.last_acked == 5


def test_the_first_batch_of_a_partition_goes_alone_until_it_is_acknowledged() -> None:
    sequences = ProducerSequences(5)
    (first,) = sent(sequences, 1)
    assert not sequences.may_send(P, Batch(1), PRODUCER)
    sequences.acked(P, first, 0)
    assert sequences.may_send(P, Batch(1), PRODUCER)


def test_no_more_than_five_batches_of_a_partition_are_under_way() -> None:
    sequences = ProducerSequences(5)
    (first,) = sent(sequences, 1)
    sequences.acked(P, first, 0)
    sent(sequences, 1, 1, 1, 1, 1)
    assert not sequences.may_send(P, Batch(1), PRODUCER)


def test_only_the_first_retry_of_a_partition_may_leave() -> None:
    sequences = ProducerSequences(5)
    first, second = sent(sequences, 1, 1)
    assert sequences.may_send(P, first, PRODUCER)
    assert not sequences.may_send(P, second, PRODUCER)


def test_new_batches_wait_for_those_of_an_older_epoch() -> None:
    sequences = ProducerSequences(5)
    first, second = sent(sequences, 1, 1)
    sequences.acked(P, first, 0)
    assert not sequences.may_send(P, Batch(1), NEXT_LIFE)
    sequences.acked(P, second, 1)
    assert sequences.may_send(P, Batch(1), NEXT_LIFE)
    later = Batch(1)
    sequences.number(P, later, NEXT_LIFE)
    assert (later.producer, later.base_sequence) == (NEXT_LIFE, 0)


def test_a_batch_that_is_given_up_stops_new_ones_until_a_later_one_is_acknowledged() -> None:
    sequences = ProducerSequences(5)
    done, lost, later = sent(sequences, 1, 1, 1)
    sequences.acked(P, done, 0)
    sequences.given_up(P, lost)
    assert not sequences.may_send(P, Batch(1), PRODUCER)
    sequences.acked(P, later, 2)
    assert sequences.due_for_restart() == []
    assert sequences.may_send(P, Batch(1), PRODUCER)


def test_a_gap_with_nothing_under_way_asks_for_a_restart() -> None:
    sequences = ProducerSequences(5)
    done, lost = sent(sequences, 1, 1)
    sequences.acked(P, done, 0)
    sequences.given_up(P, lost)
    assert sequences.due_for_restart() == [P]


def test_a_restart_waits_for_what_is_on_the_wire_and_for_what_lies_before_the_gap() -> None:
    sequences = ProducerSequences(5)
    done, before, lost, after = sent(sequences, 1, 1, 1, 2)
    sequences.acked(P, done, 0)
    sequences.given_up(P, lost)
    after.on_wire = True
    sequences.request_restart(P, after)
    assert sequences.due_for_restart() == []
    after.on_wire = False
    assert sequences.due_for_restart() == [], "the batch before the gap may be stored under its old number"
    assert sequences.may_send(P, before, PRODUCER)
    assert not sequences.may_send(P, after, PRODUCER)
    sequences.acked(P, before, 1)
    assert sequences.due_for_restart() == [P]
    sequences.restart(P, NEXT_LIFE)
    assert (after.producer, after.base_sequence) == (NEXT_LIFE, 0)
    state = sequences.of(P)
    assert state is not None
    assert state.next_sequence == 2


def test_the_parts_of_a_split_batch_share_its_sequences_and_its_place() -> None:
    sequences = ProducerSequences(5)
    done, big, after = sent(sequences, 1, 5, 1)
    state = sequences.of(P)
    assert state is not None
    parts = [Batch(2), Batch(3)]
    state.replace(big, parts)
    assert [part.base_sequence for part in parts] == [1, 3]
    assert state.in_flight == [done, *parts, after]


def test_a_restart_waits_until_the_wire_is_empty() -> None:
    sequences = ProducerSequences(5)
    done, gap, behind = sent(sequences, 1, 1, 1)
    sequences.acked(P, done, 0)
    behind.on_wire = True
    sequences.request_restart(P, gap)
    assert sequences.due_for_restart() == []
    behind.on_wire = False
    assert sequences.due_for_restart() == [P]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_several_batches_in_doubt_the_last_one_counts(order: tuple[int, int]) -> None:
    sequences = ProducerSequences(5)
    done, *lost = sent(sequences, 1, 2, 2)
    sequences.acked(P, done, 0)
    for index in order:
        sequences.given_up(P, lost[index])
    state = sequences.of(P)
    assert state is not None
    assert state.unresolved_after == 5
