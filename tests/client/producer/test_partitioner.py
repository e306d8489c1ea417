from __future__ import annotations

import random
from collections import Counter

import pytest

from ottla.client.producer.partitioner import StickyPartition, choose, partition_for_key

# The hashes are those that Apache Kafka's own tests expect of its murmur2.
JAVA_HASHES = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
}


@pytest.mark.parametrize("key", JAVA_HASHES)
@pytest.mark.parametrize("partitions", [1, 2, 7, 12, 1000])
def test_a_key_reaches_the_partition_that_javas_default_partitioner_chooses(key: bytes, partitions: int) -> None:
    assert partition_for_key(key, partitions) == (JAVA_HASHES[key] & 0x7FFFFFFF) % partitions


def test_choice_without_lengths_is_even() -> None:
    rng = random.Random(1)
    counts = Counter(choose([3, 5, 8], None, rng) for _ in range(3000))
    assert set(counts) == {3, 5, 8}
    assert min(counts.values()) > 900


def test_choice_by_length_is_in_proportion_to_how_much_shorter_a_queue_is() -> None:
    rng = random.Random(1)
    counts = Counter(choose([0, 1, 2], [0, 3, 1], rng) for _ in range(7000))
    # most + 1 - length: 4, 1, 3 of 8
    assert counts[0] == pytest.approx(3500, abs=150)
    assert counts[1] == pytest.approx(875, abs=120)
    assert counts[2] == pytest.approx(2625, abs=150)


def test_a_single_candidate_is_chosen() -> None:
    assert choose([4], [9], random.Random(1)) == 4


def test_a_full_batch_is_worth_a_whole_batch_however_little_it_held() -> None:
    sticky = StickyPartition()
    sticky.stick_to(2)
    assert not sticky.is_due(100)
    sticky.batch_ended(60, was_full=True, batch_size=100)
    assert sticky.is_due(100)


def test_a_batch_that_was_sent_early_counts_for_what_it_held() -> None:
    sticky = StickyPartition()
    sticky.stick_to(2)
    sticky.batch_ended(60, was_full=False, batch_size=100)
    assert not sticky.is_due(100)
    sticky.batch_ended(60, was_full=False, batch_size=100)
    assert sticky.is_due(100)
