"""Producer ids: each is given once, whatever happens in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottla_broker.controller.metadata_log import MemoryMetadataLog
from ottla_broker.controller.producer_ids import BLOCK_SIZE, ProducerIdBlock, ProducerIds
from ottla_broker.controller.records import ProducerIdsRecord, decode_record
from ottla_broker.pending import Pending
from ottla_wire.errors import KafkaStorageError, StaleBrokerEpoch, UnknownServerError


def blocks_written(log: MemoryMetadataLog) -> list[int]:
    records = [decode_record(value) for batch in log.batches for value in batch]
    return [record.next_producer_id for record in records if isinstance(record, ProducerIdsRecord)]


def test_ids_count_up_from_zero_out_of_recorded_blocks(cluster: Any) -> None:
    ids = [cluster.controller.producer_ids.next().result() for _ in range(2 * BLOCK_SIZE)]
    assert ids == list(range(2 * BLOCK_SIZE))
    assert blocks_written(cluster.log) == [1000, 2000, 3000]


def test_the_next_block_is_asked_for_when_a_tenth_is_left(cluster: Any) -> None:
    for _ in range(BLOCK_SIZE - BLOCK_SIZE // 10 - 1):
        cluster.controller.producer_ids.next()
    assert blocks_written(cluster.log) == [1000]
    cluster.controller.producer_ids.next()
    assert blocks_written(cluster.log) == [1000, 2000]


@given(st.lists(st.integers(1, 1500), min_size=1, max_size=4))
def test_no_id_is_given_twice_over_restarts(make_cluster: Callable[..., Any], runs: list[int]) -> None:
    cluster = make_cluster().start()
    given_out: list[int] = []
    for count in runs:
        given_out += [cluster.controller.producer_ids.next().result() for _ in range(count)]
        cluster = cluster.restarted()
    assert len(set(given_out)) == sum(runs)


def test_a_block_is_for_a_broker_that_is_registered_with_that_epoch(cluster: Any) -> None:
    epoch = cluster.image.brokers[1].epoch
    assert cluster.controller.allocate_producer_ids(1, epoch).result() == ProducerIdBlock(0, 1000)
    with pytest.raises(StaleBrokerEpoch):
        cluster.controller.allocate_producer_ids(1, epoch - 1)
    with pytest.raises(StaleBrokerEpoch):
        cluster.controller.allocate_producer_ids(2, epoch)


def test_the_last_id_is_not_exceeded(cluster: Any) -> None:
    cluster.image.next_producer_id = 2**63 - 1000
    with pytest.raises(UnknownServerError, match="all producer ids were given out"):
        cluster.controller.producer_ids.next().result()


class Allocations:
    """A controller far away: answers when the test says so."""

    def __init__(self) -> None:
        self.asked: deque[Pending[ProducerIdBlock]] = deque()

    def __call__(self) -> Pending[ProducerIdBlock]:
        self.asked.append(Pending())
        return self.asked[-1]


def test_who_asks_while_a_block_is_on_its_way_waits_and_is_served_in_order() -> None:
    allocations = Allocations()
    ids = ProducerIds(allocations)
    waiting = [ids.next() for _ in range(3)]
    assert len(allocations.asked) == 1
    assert not any(pending.done() for pending in waiting)
    allocations.asked.popleft().complete(ProducerIdBlock(5000, 1000))
    assert [pending.result() for pending in waiting] == [5000, 5001, 5002]


def test_a_block_too_small_for_all_who_wait_is_followed_by_another() -> None:
    allocations = Allocations()
    ids = ProducerIds(allocations)
    waiting = [ids.next() for _ in range(3)]
    allocations.asked.popleft().complete(ProducerIdBlock(0, 2))
    assert [pending.done() for pending in waiting] == [True, True, False]
    allocations.asked.popleft().complete(ProducerIdBlock(70, 1000))
    assert waiting[2].result() == 70


def test_a_failed_allocation_fails_those_who_wait_and_the_next_tries_again() -> None:
    allocations = Allocations()
    ids = ProducerIds(allocations)
    first = ids.next()
    allocations.asked.popleft().fail(KafkaStorageError("no disk"))
    with pytest.raises(KafkaStorageError):
        first.result()
    second = ids.next()
    allocations.asked.popleft().complete(ProducerIdBlock(0, 1000))
    assert second.result() == 0
