from __future__ import annotations

import random
import sys
import threading
from collections import defaultdict
from typing import Any

import pytest

from ottla.client.config import ProducerConfig
from ottla.client.metadata import PartitionMetadata, TopicMetadata
from ottla.client.producer.producer_batch import ProducerBatch
from ottla.client.producer.record_accumulator import NEVER_MS, RecordAccumulator
from ottla_wire.records import OpenTopics, SendFuture, iter_batches
from ottla_wire.schema import Uuid

TOPIC = "orders"


class Records:
    """An accumulator with one topic, and short words for what is done to it."""

    def __init__(self, partitions: int = 3, leaders: tuple[int, ...] = (1, 1, 1), **settings: Any) -> None:
        self.config = ProducerConfig(**{"batch_size": 400, "linger_ms": 5, "buffer_memory": 4000, **settings})
        self.accumulator = RecordAccumulator(self.config, random.Random(3))
        self.now_ms = 1000
        self.partitions = partitions
        self.leaders = leaders

    def learn(self, partitions: int | None = None) -> list[Any]:
        count = self.partitions if partitions is None else partitions
        known = {
            index: PartitionMetadata(index, leader=self.leaders[index % len(self.leaders)], leader_epoch=1)
            for index in range(count)
        }
        return self.accumulator.update_topic(TopicMetadata(TOPIC, Uuid.ZERO, False, known), self.now_ms)

    def append(self, value: bytes = b"v", partition: int | None = None, key: bytes | None = None) -> SendFuture | None:
        return self.accumulator.append(self.now_ms, TOPIC, partition, 1, key, value, None, value, key, None)

    def queue(self, index: int) -> Any:
        return self.accumulator.topics[TOPIC].queues[index]

    def counts(self) -> list[int]:
        return [sum(batch.count for batch in queue.batches) for queue in self.accumulator.topics[TOPIC].queues]


def known(**settings: Any) -> Records:
    records = Records(**settings)
    records.append(partition=0)
    records.learn()
    for batch in records.accumulator.take_all_queued():
        batch.is_done = True
        records.accumulator.release(batch)
    return records


def test_records_wait_for_their_topic_inside_buffer_memory_and_move_on_in_order() -> None:
    records = Records()
    futures = [records.append(b"%d" % number, partition=0) for number in range(5)]
    assert records.accumulator.free_bytes < 4000
    assert records.accumulator.ready(1000).nodes == set()
    assert records.accumulator.topics_waited_for() == [TOPIC]
    records.learn()
    (batch,) = records.queue(0).batches
    assert list(batch.futures) == futures
    assert records.accumulator.topics_waited_for() == []


def test_records_wait_for_a_partition_to_appear_and_hold_up_no_other() -> None:
    records = known()
    late = records.append(partition=7)
    other = records.append(partition=0)
    after = records.append(partition=7)
    assert list(records.queue(0).batches[0].futures) == [other]
    records.learn(partitions=8)
    assert list(records.queue(7).batches[0].futures) == [late, after]


def test_a_topic_that_is_not_known_is_not_open_to_senders() -> None:
    records = Records()
    records.append(partition=0)
    assert TOPIC not in records.accumulator.open_topics
    records.learn()
    assert TOPIC in records.accumulator.open_topics


def test_waiting_records_expire_after_max_block_ms() -> None:
    records = Records(max_block_ms=300)
    future = records.append()
    assert records.accumulator.ready(1000).look_again_ms == 1300
    assert records.accumulator.expired_waiting(1299) == []
    assert records.accumulator.expired_waiting(1300) == [(TOPIC, [future])]
    assert records.accumulator.free_bytes == 4000


def test_a_batch_lingers_and_is_then_ready() -> None:
    records = known()
    records.append(partition=0)
    assert records.accumulator.ready(1004).nodes == set()
    assert records.accumulator.ready(1004).look_again_ms == 1005
    assert records.accumulator.ready(1005).nodes == {1}


def test_a_full_batch_does_not_linger() -> None:
    records = known()
    records.append(b"x" * 200, partition=0)
    records.append(b"x" * 200, partition=0)
    assert len(records.queue(0).batches) == 2
    assert records.accumulator.ready(1000).nodes == {1}


@pytest.mark.parametrize("reason", ["flushes", "memory_waiters"])
def test_nothing_lingers_while_somebody_flushes_or_waits_for_memory(reason: str) -> None:
    records = known()
    records.append(partition=0)
    setattr(records.accumulator, reason, 1)
    assert records.accumulator.ready(1000).nodes == {1}


def test_closing_ends_open_batches_and_makes_all_ready() -> None:
    records = known()
    records.append(partition=0)
    records.accumulator.close()
    assert records.accumulator.ready(1000).nodes == {1}
    assert records.queue(0).open is None
    assert not records.accumulator.open_topics


def test_a_batch_without_leader_is_reported_and_not_ready() -> None:
    records = known(leaders=(1, -1, 1))
    records.append(partition=1)
    ready = records.accumulator.ready(2000)
    assert ready.leaderless == {TOPIC}
    assert ready.nodes == set()


def test_buffer_memory_bounds_what_is_taken_in_and_comes_back() -> None:
    records = known(buffer_memory=1000)
    assert records.append(partition=0) is not None
    assert records.append(partition=1) is not None
    assert records.append(partition=2) is None, "two batches of 400 bytes are what 1000 have room for"
    assert records.append(partition=1) is not None, "an open batch takes more without new memory"
    for batch in records.accumulator.drain(1, 2000):
        batch.is_done = True
        records.accumulator.release(batch)
        assert records.accumulator.free_bytes < 1000, "a batch on the wire keeps its memory"
        batch.on_wire = False
        records.accumulator.release(batch)
        records.accumulator.release(batch)
    assert records.accumulator.free_bytes == 1000


def test_a_request_takes_one_batch_of_each_partition_up_to_max_request_size() -> None:
    records = known(max_request_size=900)
    for index in range(3):
        for _ in range(2):
            records.append(b"x" * 300, partition=index)
    first = records.accumulator.drain(1, 2000)
    assert [batch.queue.index for batch in first] == [0, 1]
    second = records.accumulator.drain(1, 2000)
    assert [batch.queue.index for batch in second] == [2, 0], "the partition that was left out comes first"


def test_a_batch_larger_than_max_request_size_goes_alone_rather_than_never() -> None:
    records = known(max_request_size=500)
    records.append(b"x" * 450, partition=0)
    records.append(b"x" * 450, partition=1)
    assert [batch.queue.index for batch in records.accumulator.drain(1, 2000)] == [0]


def test_records_with_the_same_key_share_a_partition() -> None:
    records = known()
    for _ in range(20):
        records.append(key=b"customer-7")
    assert sorted(records.counts()) == [0, 0, 20]


def test_records_without_key_stick_to_a_partition_for_a_batch_and_then_change() -> None:
    records = known(buffer_memory=1 << 20)
    seen = []
    for _ in range(400):
        records.append(b"x" * 40)
        queue = records.accumulator.topics[TOPIC].sticky_queue
        if not seen or seen[-1] is not queue:
            seen.append(queue)
    assert len(seen) > 10
    assert min(records.counts()) > 60, "all partitions get their share"


def test_small_batches_count_towards_the_change_of_partition() -> None:
    records = known(linger_ms=0, buffer_memory=1 << 20)
    before = None
    sizes = []
    taken = 0
    for _ in range(200):
        records.append(b"x" * 20)
        (batch,) = records.accumulator.drain(1, records.now_ms)
        if before is not None and batch.queue is not before:
            sizes.append(taken)
            taken = 0
        before = batch.queue
        taken += batch.size_bytes
    assert sizes
    assert min(sizes) >= 400


def test_adaptive_partitioning_prefers_short_queues() -> None:
    records = known(buffer_memory=1 << 20)
    for _ in range(30):
        records.append(b"x" * 390, partition=0)
    before = records.counts()
    for _ in range(120):
        records.append(b"x" * 390)
    gained = [after - earlier for earlier, after in zip(before, records.counts(), strict=True)]
    assert gained[0] < min(gained[1:])


def test_partitions_without_leader_get_no_records_without_key() -> None:
    records = known(leaders=(1, -1, 1), buffer_memory=1 << 20)
    for _ in range(200):
        records.append(b"x" * 200)
    assert records.counts()[1] == 0


def test_partitions_of_a_slow_broker_are_left_out_after_the_availability_timeout() -> None:
    records = known(leaders=(1, 2, 1), partitioner_availability_timeout_ms=100, buffer_memory=1 << 20)
    records.accumulator.node_not_ready(2, records.now_ms)
    records.now_ms += 101
    for _ in range(100):
        records.append(b"x" * 390)
    assert records.counts()[1] == 0


def test_a_users_partitioner_decides_and_its_nonsense_is_refused() -> None:
    records = known(partitioner_class=lambda topic, key, value, count: count - 1 if value == b"v" else 99)
    records.append()
    assert records.counts() == [0, 0, 1]
    with pytest.raises(ValueError, match="99"):
        records.append(b"other")


def test_ignored_keys_do_not_decide() -> None:
    records = known(partitioner_ignore_keys=True, buffer_memory=1 << 20)
    for _ in range(60):
        records.append(b"x" * 390, key=b"k")
    assert min(records.counts()) > 0


def test_the_sender_is_woken_only_for_what_is_due_before_it_looks_again() -> None:
    records = known()
    wakes = records.accumulator.wakes_sender
    assert wakes(1000, 0) is False
    records.append(partition=0)
    assert wakes(1000, NEVER_MS) is True, "somebody has to look when the linger time is over"
    records.append(partition=1)
    assert wakes(1000, 1005) is False, "it looks then anyway"
    records.append(b"x" * 390, partition=0)
    assert wakes(1000, 1005) is True, "a full batch need not linger"


def test_idle_topics_are_forgotten_but_not_with_records_under_way() -> None:
    records = known()
    records.append(partition=0)
    later = records.now_ms + 400_000
    assert records.accumulator.forget_idle_topics(later) == []
    (batch,) = records.accumulator.take_all_queued()
    assert records.accumulator.forget_idle_topics(later) == []
    batch.is_done = True
    records.accumulator.release(batch)
    assert records.accumulator.forget_idle_topics(later) == [TOPIC]
    assert TOPIC not in records.accumulator.open_topics


def test_fewer_partitions_after_a_topic_was_made_again_are_respected() -> None:
    records = known()
    records.learn(partitions=1)
    for number in range(30):
        records.append(key=b"%d" % number)
    assert records.counts() == [30, 0, 0]


def test_senders_append_without_asking_until_the_batch_is_closed() -> None:
    records = known()
    records.append(partition=0)
    (batch,) = records.queue(0).batches
    fast = OpenTopics(records.accumulator.open_topics)
    assert fast.send(TOPIC, b"v", None, 0) is not None
    assert records.accumulator.drain(1, 2000) == [batch]
    assert batch.count == 2
    assert fast.send(TOPIC, b"v", None, 0) is None
    assert fast.send(TOPIC, b"v", None, 1) is None, "no batch is open there"
    assert batch.builder.append_send(1, None, b"v", None, TOPIC) is None, "nor does it take what found it before"
    assert batch.count == 2


def test_a_batch_is_closed_before_its_size_is_relied_on() -> None:
    """A sender that appends between the look at the size and the end would make the request too large."""
    records = known(max_request_size=500)
    records.append(b"x" * 200, partition=0)
    records.append(b"x" * 200, partition=1)
    fast = OpenTopics(records.accumulator.open_topics)
    first, second = (records.queue(index).open for index in (0, 1))
    assert records.accumulator.drain(1, 2000) == [first], "the other one is closed, and its size is looked at"
    assert fast.send(TOPIC, b"v", None, 1) is None
    assert records.accumulator.drain(1, 2000) == [second]


def test_senders_are_stopped_by_closing_the_batches_that_they_append_to() -> None:
    """Which is how a transaction ends: what comes later asks, and is refused."""
    records = known()
    future = records.append(partition=0)
    fast = OpenTopics(records.accumulator.open_topics)
    records.accumulator.end_batches()
    assert fast.send(TOPIC, b"v", None, 0) is None
    (batch,) = records.accumulator.drain(1, records.now_ms)
    assert list(batch.futures) == [future], "what was sent before is ready, and does not linger"
    assert records.append(partition=0) is not None
    assert fast.send(TOPIC, b"v", None, 0) is not None


@pytest.mark.slow
def test_many_threads_send_while_batches_are_drained_and_nothing_is_lost_doubled_or_reordered() -> None:
    records = known(buffer_memory=1 << 22, linger_ms=0)
    traffic = Traffic(records)
    stored = traffic.run(threads=4, per_thread=10_000)
    assert sum(map(len, stored.values())) == 4 * 10_000
    for (name, _), numbers in stored.items():
        assert numbers == sorted(set(numbers)), f"thread {name} sent them in this order, each once"
    assert records.accumulator.free_bytes == 1 << 22
    assert not records.accumulator.incomplete
    assert not records.accumulator.has_unsent


class Traffic:
    """Threads that send to the same partitions, and one that drains them, takes the batches apart and releases them."""

    def __init__(self, records: Records) -> None:
        self.accumulator = records.accumulator
        self.lock = threading.Lock()
        self.fast = OpenTopics(records.accumulator.open_topics)
        self.now_ms = records.now_ms
        self.stored: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.done = threading.Event()
        self.drained = 0

    def run(self, threads: int, per_thread: int) -> dict[tuple[str, int], list[int]]:
        senders = [threading.Thread(target=self.send, args=(f"t{name}", per_thread)) for name in range(threads)]
        drainer = threading.Thread(target=self.drain_all)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for thread in (drainer, *senders):
                thread.start()
            for thread in senders:
                thread.join()
            self.done.set()
            drainer.join()
        finally:
            sys.setswitchinterval(interval)
        assert self.drained > 100
        return self.stored

    def send(self, name: str, count: int) -> None:
        for number in range(count):
            value, partition = f"{name}:{number}", number % 3
            future = self.fast.send(TOPIC, value, None, partition)
            while future is None:  # as `KafkaProducer.send` goes on
                with self.lock:
                    future = self.accumulator.append(
                        self.now_ms, TOPIC, partition, 1, None, value.encode(), None, value, None, None
                    )

    def drain_all(self) -> None:
        finished = False
        while not finished:
            finished = self.done.is_set()  # before the look: what comes later is drained in another round
            with self.lock:
                batches = self.accumulator.drain(1, self.now_ms)
            while batches:
                for batch in batches:
                    self.take_apart(batch)
                with self.lock:
                    batches = self.accumulator.drain(1, self.now_ms)

    def take_apart(self, batch: ProducerBatch) -> None:
        (view,) = iter_batches(batch.encode())
        values = [record.value for record in view.records()]
        assert values == [str(future.record.value).encode() for future in batch.futures]
        for value in values:
            assert value is not None
            name, _, number = value.decode().partition(":")
            self.stored[name, batch.queue.index].append(int(number))
        self.drained += 1
        with self.lock:
            batch.on_wire = False
            batch.is_done = True
            self.accumulator.release(batch)
