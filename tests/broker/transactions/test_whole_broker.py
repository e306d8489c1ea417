"""Coordinator and partitions of one broker, with real logs: what a transaction does to those who read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ottla.client import AdminClient, KafkaProducer, TopicPartition
from ottla.client.admin import OffsetSpec
from ottla.embedded import EmbeddedKafka
from ottla_broker.context import ANONYMOUS, RequestContext
from ottla_wire.messages.describe_transactions import DescribeTransactionsRequest
from ottla_wire.messages.end_txn import EndTxnRequest
from ottla_wire.messages.find_coordinator import FindCoordinatorRequest
from ottla_wire.messages.init_producer_id import InitProducerIdRequest
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.records import build_batch
from support.transactions import error_name

ID, TIMEOUT_MS = "orders", 60_000


class Shop:
    """A producer of one transactional id on a bench, and what its readers are allowed to see."""

    def __init__(self, bench: Any, **config: str) -> None:
        self.bench = bench
        bench.create_topic("t", 2, **config)
        bench.ask(FindCoordinatorRequest(key_type=1, coordinator_keys=[ID]), 6)

    def start(self) -> tuple[int, int]:
        answer = self.bench.ask(InitProducerIdRequest(transactional_id=ID, transaction_timeout_ms=TIMEOUT_MS), 5)
        assert answer.error_code in (0, 51)
        return self.start() if answer.error_code else (answer.producer_id, answer.producer_epoch)

    def produce_request(self, producer: tuple[int, int], value: bytes, *, partition: int = 0) -> ProduceRequest:
        batch = build_batch(
            [(self.bench.clock.wall_ms(), b"k", value, ())],
            producer_id=producer[0],
            producer_epoch=producer[1],
            base_sequence=0,
            transactional=True,
        )
        data = TopicProduceData(name="t", partition_data=[PartitionProduceData(index=partition, records=batch)])
        return ProduceRequest(transactional_id=ID, acks=-1, timeout_ms=1_000, topic_data=[data])

    def produce(self, producer: tuple[int, int], value: bytes, *, partition: int = 0) -> str:
        answer = self.bench.ask(self.produce_request(producer, value, partition=partition), 12)
        return error_name(answer.responses[0].partition_responses[0].error_code)

    def end(self, producer: tuple[int, int], *, commit: bool) -> tuple[int, int] | str:
        request = EndTxnRequest(
            transactional_id=ID, producer_id=producer[0], producer_epoch=producer[1], committed=commit
        )
        answer = self.bench.ask(request, 5)
        return error_name(answer.error_code) or (answer.producer_id, answer.producer_epoch)

    def is_stable(self) -> bool:
        partitions = [self.bench.partition("t", index) for index in (0, 1)]
        return all(each.last_stable_offset == each.log.log_end_offset for each in partitions)

    def state(self) -> str:
        (state,) = self.bench.ask(DescribeTransactionsRequest(transactional_ids=[ID]), 0).transaction_states
        return str(state.transaction_state)


@pytest.fixture
def shop(bench: Any) -> Shop:
    return Shop(bench)


def test_a_transaction_is_over_before_the_next_request(shop: Shop) -> None:
    producer = shop.start()
    deadline_ms = shop.bench.broker.deadline_ms()
    for number in range(3):
        assert shop.produce(producer, b"a") == ""
        assert shop.produce(producer, b"b", partition=1) == ""
        assert not shop.is_stable()
        following = shop.end(producer, commit=number != 1)
        assert following == (producer[0], producer[1] + 1)
        assert shop.is_stable()
        assert shop.state() == ("CompleteAbort" if number == 1 else "CompleteCommit")
        assert shop.bench.broker.deadline_ms() == deadline_ms, "nothing waits for a timer"
        assert isinstance(following, tuple)
        producer = following


def test_its_end_is_answered_before_its_markers_are_written(shop: Shop) -> None:
    broker, now_ms = shop.bench.broker, shop.bench.clock.now_ms()
    producer = shop.start()
    shop.produce(producer, b"a")
    request = EndTxnRequest(transactional_id=ID, producer_id=producer[0], producer_epoch=producer[1], committed=True)
    context = RequestContext(1, request.api_key, 5, "c", "h", ANONYMOUS, now_ms)
    answer = broker.handle(context, request)
    assert not answer.done()
    broker.settle_answers(now_ms)
    assert (answer.done(), answer.result().error_code) == (True, 0)
    assert not shop.is_stable()
    assert broker.has_follow_ups
    broker.settle(now_ms)
    assert shop.is_stable()
    assert not broker.has_follow_ups


def test_where_writes_are_fsynced_before_they_count_a_commit_is_answered_before_readers_see_it(bench: Any) -> None:
    def sync() -> None:
        work = bench.replicas.take_sync_work()
        work.run()
        work.finish()
        bench.broker.settle(bench.clock.now_ms())

    shop = Shop(bench, flush_messages="1")
    producer = shop.start()
    stored = bench.ask(shop.produce_request(producer, b"a"), 12)
    sync()
    assert stored.result().responses[0].partition_responses[0].error_code == 0
    following = shop.end(producer, commit=True)
    assert following == (producer[0], producer[1] + 1)
    assert not shop.is_stable(), "the marker is not on the disk"
    next_write = bench.ask(shop.produce_request(following, b"b"), 12)
    assert not next_write.done(), "it waits for the end of the transaction before it"
    sync()
    assert bench.partition("t").last_stable_offset == 2
    bench.advance(100)
    sync()
    assert next_write.result().responses[0].partition_responses[0].error_code == 0


def test_a_reader_on_another_connection_sees_a_commit_that_has_returned(tmp_path: Path) -> None:
    place = TopicPartition("t", 0)
    with EmbeddedKafka(data=tmp_path / "data", topics={"t": 1}) as kafka:
        producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=ID)
        with producer, AdminClient(bootstrap_servers=kafka.bootstrap_servers) as admin:
            producer.init_transactions()
            for round_ in range(50):
                producer.begin_transaction()
                producer.send("t", b"%d" % round_, partition=0)
                producer.commit_transaction()
                end = admin.list_offsets({place: OffsetSpec.LATEST}, read_committed=True)[place].offset
                assert end == 2 * (round_ + 1), "record and marker of each"


def test_a_write_that_comes_after_its_transaction_has_timed_out_opens_nothing(shop: Shop) -> None:
    """A hanging transaction (KIP-890): the readers of the partition would wait for ever."""
    producer = shop.start()
    assert shop.produce(producer, b"in time", partition=1) == ""
    held = shop.produce_request(producer, b"held up")
    shop.bench.advance(TIMEOUT_MS + 10_000)
    assert shop.state() == "CompleteAbort"
    answer = shop.bench.ask(held, 12)
    assert error_name(answer.responses[0].partition_responses[0].error_code) == "InvalidProducerEpoch"
    assert shop.produce(producer, b"late", partition=1) == "InvalidProducerEpoch"
    assert shop.is_stable()


@pytest.mark.parametrize("late_commit", [True, False])
def test_an_end_that_comes_during_the_next_transaction_ends_nothing(shop: Shop, late_commit: bool) -> None:
    """KAFKA-17754: it committed or aborted half of the next transaction."""
    producer = shop.start()
    shop.produce(producer, b"first")
    following = shop.end(producer, commit=not late_commit)
    assert isinstance(following, tuple)
    assert shop.produce(following, b"second") == ""
    assert shop.end(producer, commit=late_commit) == "ProducerFenced"
    assert not shop.is_stable(), "the second transaction is still open"
    assert shop.produce(following, b"second", partition=1) == ""
    assert shop.end(following, commit=True) == (producer[0], producer[1] + 2)
    assert shop.is_stable()


def test_a_newcomer_ends_what_its_predecessor_has_left_open(shop: Shop) -> None:
    old = shop.start()
    shop.produce(old, b"half")
    new = shop.start()
    assert shop.is_stable()
    assert shop.produce(old, b"half", partition=1) == "InvalidProducerEpoch"
    assert shop.produce(new, b"whole") == ""
    assert shop.end(old, commit=True) == "ProducerFenced"
    assert shop.end(new, commit=True) == (new[0], new[1] + 1)


def test_a_topic_that_is_deleted_takes_its_marker_with_it(shop: Shop) -> None:
    producer = shop.start()
    shop.produce(producer, b"a")
    shop.bench.delete_topic("t")
    assert shop.end(producer, commit=True) == (producer[0], producer[1] + 1)
    assert shop.state() == "CompleteCommit"


def test_without_the_state_topic_there_is_no_coordinator_any_more(shop: Shop) -> None:
    producer = shop.start()
    shop.produce(producer, b"a")
    shop.bench.delete_topic("__transaction_state")
    assert shop.end(producer, commit=True) == "NotCoordinator"
    assert shop.bench.broker.transactions.deadline_ms() is None
