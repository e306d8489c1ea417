"""Transactional listeners without threads, brokers and time: a loop, a strategy, and a Kafka made of lists."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from ottla import (
    AckMode,
    BatchListenerFailed,
    ErrorHandler,
    KafkaTemplate,
    KafkaTransactionManager,
    OffsetAndMetadata,
    Retry,
    TopicPartition,
    current_transaction,
)
from ottla.client.consumer.faces import run_blocking
from ottla.client.topic_partition import ConsumerGroupMetadata
from ottla.errors import (
    CannotBeginTransaction,
    CommitFailed,
    CoordinatorNotAvailable,
    IllegalGeneration,
    InvalidProducerIdMapping,
    InvalidRecord,
    NoAnswer,
    NotEnoughReplicas,
    ProducerFenced,
    TransactionalIdAuthorizationFailed,
    TransactionOutcomeUnknown,
    TransactionTimedOut,
    UnexpectedRollback,
)
from ottla.listeners.ack import Acknowledgment, AckTracker
from ottla.listeners.effects import (
    Commit,
    Deliver,
    DeliverBatch,
    Delivered,
    Pause,
    Perform,
    Poll,
    Recover,
    Resume,
)
from ottla.listeners.group_positions import GroupPositions
from ottla.listeners.listener_loop import ListenerLoop, LoopControl
from ottla.listeners.transactional import Transactional
from ottla.listeners.transactional_work import TransactionalWork
from ottla.testing import wait_for
from ottla.transaction.sides import BLOCKING
from ottla_wire.records import ConsumerRecord, TimestampType

MEMBER = ConsumerGroupMetadata("billing", 3, "member-1")


def record(offset: int, partition: int = 0, value: Any = None) -> ConsumerRecord:
    return ConsumerRecord(
        topic="orders",
        partition=partition,
        offset=offset,
        timestamp_ms=1000,
        timestamp_type=TimestampType.CREATE_TIME,
        key=None,
        value=value,
        headers=(),
        leader_epoch=7,
        delivery_attempt=1,
    )


class Consumer:
    """What the strategy asks of a client."""

    def __init__(self) -> None:
        self.positions: dict[TopicPartition, OffsetAndMetadata] = {}
        self.committed_before: dict[TopicPartition, OffsetAndMetadata] = {}
        self.lookups = 0

    def group_metadata(self) -> ConsumerGroupMetadata:
        return MEMBER

    def read_past(self) -> dict[TopicPartition, OffsetAndMetadata]:
        return dict(self.positions)

    def committed(self, partitions: Iterable[TopicPartition], timeout: float) -> dict[TopicPartition, Any]:
        self.lookups += 1
        return {partition: self.committed_before.get(partition) for partition in partitions}


class Rig:
    """Plays driver and client for a loop whose listener sends one output for each record."""

    def __init__(
        self,
        factory: Any,
        *,
        ack: AckMode = AckMode.BATCH,
        errors: ErrorHandler | None = None,
        batch: bool = False,
        positions: GroupPositions | None = None,
        starts_in_transaction: bool = False,
        sub_batches: bool = False,
        record_filter: Callable[[ConsumerRecord], bool] | None = None,
        **division: Any,
    ) -> None:
        self.kafka = factory.kafka
        self.template = KafkaTemplate(factory)
        self.consumer = Consumer()
        self.now_ms = 0
        self.takes_ms = 0
        self.control = LoopControl()
        self.errors = errors or ErrorHandler()
        self.acks = AckTracker(ack)
        manager = KafkaTransactionManager(factory)
        self.work = TransactionalWork(
            Transactional(manager=manager, **division),
            self.acks,
            lambda: self.now_ms,
            positions=positions,
            starts_in_transaction=starts_in_transaction,
        )
        self.loop = ListenerLoop(
            is_batch=batch,
            work=self.work,
            errors=self.errors,
            control=self.control,
            now_ms=lambda: self.now_ms,
            sub_batches=sub_batches,
            record_filter=record_filter,
        )
        self.polls: deque[list[ConsumerRecord]] = deque()
        self.listener: Callable[[Any], Any] = lambda _: None
        self.deliveries: list[Any] = []
        self.consumer_commits: list[Any] = []
        self.runs: list[int] = []
        self.idle_polls = 0

    def run(self, *polls: Iterable[ConsumerRecord], idle: int = 1) -> Rig:
        """Through these polls, then through idle ones until nothing is held, and `idle` more; then stop."""
        self.polls.extend(list(poll) for poll in polls)
        self.idle_polls = idle
        self.control.stopping = False
        effects = self.loop.run()
        outcome: Any = None
        try:
            while True:
                outcome = self._perform(effects.send(outcome))
        except StopIteration:
            return self
        finally:
            effects.close()

    def _perform(self, effect: Any) -> Any:
        match effect:
            case Poll():
                return self._poll()
            case Deliver():
                self.runs.append(len(effect.records))
                return self._deliver(effect.records)
            case DeliverBatch():
                return self._deliver_batch(effect.records)
            case Perform():
                return run_blocking(effect.call(self.consumer, BLOCKING))
            case Recover():
                try:
                    self.errors.recover(effect.record, effect.error)
                except Exception as failure:  # noqa: BLE001 - as the driver does
                    return failure
            case Commit():
                self.consumer_commits.append(effect.offsets)
            case Pause() | Resume():
                pass
            case _:
                raise AssertionError(effect)
        return None

    def _poll(self) -> list[ConsumerRecord]:
        if self.polls:
            records = self.polls.popleft()
            for one in records:
                partition = TopicPartition(one.topic, one.partition)
                self.consumer.positions[partition] = OffsetAndMetadata(one.offset + 1, one.leader_epoch)
            return records
        self.now_ms += 1000
        if not self.loop._held:
            self.idle_polls -= 1
            self.control.stopping = self.idle_polls < 0
        return []

    def _deliver(self, records: Any) -> Delivered:
        for count, one in enumerate(records):
            if self.control.stop_immediately:
                return Delivered(count, stopped=True)
            self.deliveries.append((one.offset, one.delivery_attempt))
            self.now_ms += self.takes_ms
            self.template.send("out", f"{one.partition}:{one.offset}")
            try:
                outcome = self.listener(one)
            except Exception as error:  # noqa: BLE001 - as the driver does
                return Delivered(count, error)
            if isinstance(outcome, float):
                return Delivered(count, nack_delay=outcome)
        return Delivered(len(records))

    def _deliver_batch(self, records: Any) -> Delivered:
        self.deliveries.append([one.offset for one in records])
        for one in records:
            self.template.send("out", f"{one.partition}:{one.offset}")
        try:
            outcome = self.listener(records)
        except BatchListenerFailed as error:
            return Delivered(error.index, error)
        except Exception as error:  # noqa: BLE001 - as the driver does
            return Delivered(0, error)
        return outcome if isinstance(outcome, Delivered) else Delivered(len(records))

    @property
    def offsets(self) -> dict[int, int]:
        return {partition.partition: offset for partition, offset in self.kafka.offsets.items()}


@pytest.fixture
def rig(make_factory: Callable[..., Any]) -> Callable[..., Rig]:
    def make(**arguments: Any) -> Rig:
        settings = arguments.pop("factory", {})
        return Rig(make_factory(transaction_id_prefix="tx-", **settings), **arguments)

    return make


def steps(kafka: Any) -> list[str]:
    return [what for what, _ in kafka.journal if what in ("begin", "offsets", "commit", "abort")]


# -- one transaction for each record -----------------------------------------------------------------------------------


def test_a_record_listener_begins_delivers_sends_offsets_and_commits_each_record(rig: Any) -> None:
    loop = rig(max_records=1)
    loop.listener = lambda one: loop.kafka.note("deliver", str(one.offset))
    loop.run([record(0), record(1)])
    journal = [what for what, _ in loop.kafka.journal if what in ("begin", "deliver", "send", "offsets", "commit")]
    assert journal == ["begin", "send", "deliver", "offsets", "commit"] * 2
    assert loop.offsets == {0: 2}
    assert loop.kafka.groups == [MEMBER, MEMBER], "the member's metadata goes along (KIP-447)"
    assert loop.kafka.visible == ["0:0", "0:1"]
    assert loop.consumer_commits == []


def test_the_leader_epoch_of_a_record_goes_with_its_offset(rig: Any) -> None:
    loop = rig()
    committed: list[Any] = []

    def remember(one: Any) -> None:
        producer: Any = current_transaction().producer  # type: ignore[union-attr]
        committed.append(producer.offsets)

    loop.listener = remember
    loop.run([record(4)])
    (offsets, group), *_ = committed[0]
    assert (offsets, group) == ({TopicPartition("orders", 0): OffsetAndMetadata(5, 7)}, MEMBER)


def test_ack_mode_record_means_one_record_for_each_transaction(rig: Any) -> None:
    loop = rig(ack=AckMode.RECORD).run([record(0), record(1)])
    assert steps(loop.kafka) == ["begin", "offsets", "commit"] * 2


# -- many records in a transaction -------------------------------------------------------------------------------------


def test_the_records_of_a_poll_are_one_transaction(rig: Any) -> None:
    loop = rig().run([record(offset, partition) for partition in (0, 1) for offset in range(3)])
    assert steps(loop.kafka) == ["begin", "offsets", "commit"]
    assert loop.offsets == {0: 3, 1: 3}


def test_a_transaction_has_no_more_records_than_max_records(rig: Any) -> None:
    loop = rig(max_records=4).run([record(offset) for offset in range(10)])
    assert steps(loop.kafka) == ["begin", "offsets", "commit"] * 3
    assert loop.offsets == {0: 10}


def test_a_slow_listener_has_short_transactions_and_a_quick_one_long_runs(rig: Any) -> None:
    slow = rig(max_time=0.1)
    slow.takes_ms = 30
    slow.run([record(offset) for offset in range(40)])
    commits = steps(slow.kafka).count("commit")
    assert 8 <= commits <= 12, "after the first run it is known to be slow: some 100 ms each"
    quick = rig(max_time=0.1).run([record(offset) for offset in range(1000)])
    assert quick.runs == [1, 2, 4, 8, 16, 32, 64, 128, 256, 489]


def test_a_poll_brings_what_one_transaction_holds(rig: Any) -> None:
    """More would only wait, and the next poll with it: a slow listener must not be thought dead (max_poll_interval)."""
    slow = rig(max_time=0.1)
    slow.takes_ms = 20
    assert slow.work.poll_limit() == {}, "nothing is known yet: the client's own setting"
    slow.run([record(offset) for offset in range(20)])
    assert slow.work.poll_limit() == {"max_records": 5}
    quick = rig(max_records=2000).run([record(offset) for offset in range(500)])
    assert quick.work.poll_limit() == {"max_records": 2000}
    assert rig(batch=True).run([record(0)]).work.poll_limit() == {}, "a batch is what the client is set to"


def test_an_empty_poll_begins_no_transaction(rig: Any) -> None:
    assert steps(rig().run([], idle=3).kafka) == []


# -- failures ----------------------------------------------------------------------------------------------------------


def fails_times(times: int, offset: int = 1) -> Callable[[Any], None]:
    left = [times]

    def listener(one: Any) -> None:
        if one.offset == offset and left[0] > 0:
            left[0] -= 1
            raise ValueError(offset)

    return listener


def test_a_listener_that_raises_aborts_and_the_record_comes_again(rig: Any) -> None:
    loop = rig(max_records=1)
    loop.listener = fails_times(1)
    loop.run([record(0), record(1), record(2)])
    assert steps(loop.kafka) == ["begin", "offsets", "commit", "begin", "abort", *["begin", "offsets", "commit"] * 2]
    assert loop.deliveries == [(0, 1), (1, 1), (1, 2), (2, 1)]
    assert loop.kafka.visible == ["0:0", "0:1", "0:2"], "nobody sees the failed attempt's output"
    assert loop.offsets == {0: 3}


def test_the_failing_record_is_isolated_those_before_it_commit_by_themselves(rig: Any) -> None:
    loop = rig()
    loop.listener = fails_times(2, offset=3)
    loop.run([record(offset) for offset in range(6)])
    assert loop.deliveries == [
        *[(0, 1), (1, 1), (2, 1), (3, 1)],  # aborted
        *[(0, 2), (1, 2), (2, 2)],  # once more, by themselves
        (3, 2),  # alone, and fails again
        *[(3, 3), (4, 1), (5, 1)],
    ]
    assert steps(loop.kafka) == [
        *["begin", "abort"],
        *["begin", "offsets", "commit"],
        *["begin", "abort"],
        *["begin", "offsets", "commit"] * 2,
    ]
    assert loop.kafka.visible == [f"0:{offset}" for offset in range(6)]
    assert loop.offsets == {0: 6}


def test_other_partitions_go_on_while_a_failed_record_waits(rig: Any) -> None:
    loop = rig(errors=ErrorHandler(retry=Retry.fixed(5)))
    loop.listener = fails_times(1, offset=0)
    loop.run([record(0), record(1), record(7, partition=1)])
    assert loop.kafka.visible == ["1:7", "0:0", "0:1"]


def test_after_a_rollback_the_default_is_ten_deliveries_then_the_recoverer(rig: Any) -> None:
    recovered = []
    loop = rig(max_records=1, errors=ErrorHandler(recover=lambda one, error: recovered.append((one.offset, error))))
    loop.listener = fails_times(100, offset=0)
    loop.run([record(0), record(1)])
    assert [attempt for offset, attempt in loop.deliveries if offset == 0] == list(range(1, 11))
    assert [(offset, type(error)) for offset, error in recovered] == [(0, ValueError)]
    assert loop.offsets == {0: 2}
    assert loop.kafka.visible == ["0:1"]


def test_recovery_and_offset_are_one_new_transaction(rig: Any) -> None:
    loop = rig(max_records=1)

    def to_dead_letters(one: Any, error: BaseException) -> None:
        loop.kafka.note("recover", str(one.offset))
        loop.template.send("dead", "letter")

    loop.errors = ErrorHandler(retry=Retry.never(), recover=to_dead_letters)
    loop.loop._errors = loop.errors
    loop.listener = fails_times(1, offset=0)
    loop.run([record(0)])
    assert [what for what, _ in loop.kafka.journal if what not in ("init", "send", "close")] == [
        *["begin", "abort"],
        *["begin", "recover", "offsets", "commit"],
    ]
    assert loop.kafka.visible == ["letter"]
    assert loop.offsets == {0: 1}


def test_a_recoverer_that_fails_leaves_nothing_behind_and_the_record_comes_again(rig: Any) -> None:
    loop, calls = rig(max_records=1), []

    def fails_once(one: Any, error: BaseException) -> None:
        loop.template.send("dead", "letter")
        calls.append(one.offset)
        if len(calls) == 1:
            raise OSError("no dead letters today")

    loop.errors = ErrorHandler(retry=Retry.never(), recover=fails_once)
    loop.loop._errors = loop.errors
    loop.listener = fails_times(2, offset=0)
    loop.run([record(0)])
    assert loop.kafka.visible == ["letter"]
    assert steps(loop.kafka) == [*["begin", "abort"] * 3, "begin", "offsets", "commit"]
    assert len(loop.deliveries) == 2


def test_a_recovery_whose_commit_fails_is_not_one(rig: Any) -> None:
    loop = rig(max_records=1, errors=ErrorHandler(retry=Retry.never(), recover=lambda one, error: None))
    loop.listener = fails_times(1, offset=0)
    loop.kafka.fail("commit", NotEnoughReplicas())
    loop.run([record(0)])
    assert [offset for offset, _ in loop.deliveries] == [0, 0], "it was delivered again, and went well"
    assert loop.offsets == {0: 1}


# -- commits that fail -------------------------------------------------------------------------------------------------


def test_a_send_that_is_refused_is_traced_to_its_record_by_halving(rig: Any) -> None:
    recovered: list[int] = []
    loop = rig(
        errors=ErrorHandler(retry=Retry.never(), recover=lambda one, error: recovered.append(one.offset)),
    )
    loop.kafka.refused_values = {"0:5": InvalidRecord("refused")}
    loop.run([record(offset) for offset in range(16)])
    assert recovered == [5]
    assert sorted(loop.kafka.visible) == sorted(f"0:{offset}" for offset in range(16) if offset != 5)
    assert loop.offsets == {0: 16}
    assert steps(loop.kafka).count("abort") <= 5


def test_brokers_that_do_not_answer_are_no_records_fault(rig: Any) -> None:
    """Halving would only ask them more often; the back-off decides."""
    loop = rig(errors=ErrorHandler(retry=Retry.fixed(5)))
    loop.kafka.refused_values = {"0:0": NotEnoughReplicas()}

    def get_well(one: Any) -> None:
        if one.delivery_attempt == 2:
            loop.kafka.refused_values = {}

    loop.listener = get_well
    loop.run([record(offset) for offset in range(8)])
    assert loop.deliveries[:9] == [*[(offset, 1) for offset in range(8)], (0, 2)]
    assert loop.offsets == {0: 8}


def test_a_timed_out_transaction_goes_to_the_retry_policy(rig: Any) -> None:
    loop = rig(max_records=1, errors=ErrorHandler(retry=Retry.fixed(5)))

    def too_long(one: Any) -> None:
        if one.delivery_attempt == 1:
            tx: Any = current_transaction()
            tx.deadline = 0.0
            tx._pools.engine.submit(_check(tx._pools.watchdog)).result(5)

    loop.listener = too_long
    loop.run([record(0)])
    assert loop.deliveries == [(0, 1), (0, 2)]
    assert steps(loop.kafka) == ["begin", "abort", "begin", "offsets", "commit"]
    assert loop.kafka.visible == ["0:0"]


async def _check(watchdog: Any) -> None:
    watchdog.check()


def test_a_send_after_the_timeout_blames_the_record_that_was_handled(rig: Any) -> None:
    errors: list[BaseException] = []
    loop = rig(errors=ErrorHandler(on_retry=lambda one, error, failures: errors.append(error)))

    def too_long(one: Any) -> None:
        if (one.offset, one.delivery_attempt) == (1, 1):
            tx: Any = current_transaction()
            tx.deadline = 0.0
            tx._pools.engine.submit(_check(tx._pools.watchdog)).result(5)
            loop.template.send("out", "too late")

    loop.listener = too_long
    loop.run([record(0), record(1)])
    assert [type(error) for error in errors] == [TransactionTimedOut]
    assert loop.kafka.visible == ["0:0", "0:1"]


def test_a_fenced_producer_ends_the_loop_without_error_handler_and_without_the_rest_of_the_poll(rig: Any) -> None:
    asked: list[Any] = []
    loop = rig(max_records=1, errors=ErrorHandler(on_retry=lambda *all: asked.append(all)))
    loop.listener = lambda one: loop.kafka.fence("tx-0")
    with pytest.raises(ProducerFenced):
        loop.run([record(0), record(1)])
    assert loop.deliveries == [(0, 1)]
    assert asked == []
    assert loop.offsets == {}


def test_a_fence_that_shows_in_the_abort_ends_the_loop_whatever_the_listener_raised(rig: Any) -> None:
    loop = rig()

    def fenced(one: Any) -> None:
        loop.kafka.fence("tx-0")
        raise ValueError("own")

    loop.listener = fenced
    with pytest.raises(ProducerFenced) as caught:
        loop.run([record(0)])
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("error", [CommitFailed.because_of(IllegalGeneration())])
def test_a_member_that_was_replaced_aborts_and_ends_the_loop_so_that_it_rejoins(rig: Any, error: Any) -> None:
    loop = rig()
    loop.kafka.fail("offsets", error)
    with pytest.raises(CommitFailed):
        loop.run([record(0)])
    assert steps(loop.kafka) == ["begin", "abort"]
    assert (loop.kafka.visible, loop.offsets) == ([], {})


def test_a_commit_of_unknown_outcome_ends_the_loop_so_that_it_starts_from_what_is_committed(rig: Any) -> None:
    loop = rig()
    loop.kafka.fail("commit", NoAnswer("commit"))
    with pytest.raises(TransactionOutcomeUnknown):
        loop.run([record(0)])
    assert steps(loop.kafka) == ["begin", "offsets"]


def test_an_id_that_expired_is_mended_by_a_new_producer(rig: Any) -> None:
    loop = rig()
    loop.kafka.fail("commit", InvalidProducerIdMapping())
    loop.run([record(0)])
    assert loop.kafka.visible == ["0:0"]
    assert loop.kafka.happened("init") == ["init tx-0@0", "init tx-0@1"]


def test_a_transaction_that_cannot_begin_is_tried_again_later(rig: Any) -> None:
    errors: list[BaseException] = []
    loop = rig(errors=ErrorHandler(retry=Retry.fixed(5), on_retry=lambda one, error, failures: errors.append(error)))
    loop.kafka.fail("init", CoordinatorNotAvailable())
    loop.run([record(0)])
    assert [type(error) for error in errors] == [CannotBeginTransaction]
    assert loop.kafka.visible == ["0:0"]


def test_rights_that_are_missing_end_the_loop(rig: Any) -> None:
    loop = rig()
    loop.kafka.fail("init", TransactionalIdAuthorizationFailed())
    with pytest.raises(TransactionalIdAuthorizationFailed):
        loop.run([record(0)])


def test_a_listener_that_asks_for_a_rollback_has_not_handled_its_record(rig: Any) -> None:
    errors: list[BaseException] = []
    loop = rig(max_records=1, errors=ErrorHandler(on_retry=lambda one, error, failures: errors.append(error)))

    def roll_back_once(one: Any) -> None:
        if one.delivery_attempt == 1:
            tx = current_transaction()
            assert tx is not None
            tx.set_rollback_only()

    loop.listener = roll_back_once
    loop.run([record(0)])
    assert [type(error) for error in errors] == [UnexpectedRollback]
    assert loop.kafka.visible == ["0:0"]


def test_a_driver_that_is_interrupted_in_a_delivery_lets_the_producer_go(rig: Any) -> None:
    loop = rig()

    def interrupted(one: Any) -> None:
        raise KeyboardInterrupt

    loop.listener = interrupted
    with pytest.raises(KeyboardInterrupt):
        loop.run([record(0)])
    assert current_transaction() is None
    pools = loop.template.producer_factory.producer_pools()
    assert pools.pool("tx-")._count == 0


def test_and_so_it_does_if_the_transaction_had_timed_out(rig: Any) -> None:
    loop = rig(timeout=0.01)

    def interrupted(one: Any) -> None:
        wait_for(lambda: loop.kafka.happened("abort"))
        raise KeyboardInterrupt

    loop.listener = interrupted
    with pytest.raises(KeyboardInterrupt):
        loop.run([record(0)])
    pools = loop.template.producer_factory.producer_pools()
    assert pools.pool("tx-")._count == 0


def test_stopping_at_once_commits_what_is_done(rig: Any) -> None:
    loop = rig()

    def stop(one: Any) -> None:
        loop.control.stop_immediately = loop.control.stopping = one.offset == 1

    loop.listener = stop
    loop.run([record(offset) for offset in range(5)])
    assert loop.kafka.visible == ["0:0", "0:1"]
    assert loop.offsets == {0: 2}


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_transaction_with_an_offset_for_each_partition(rig: Any) -> None:
    loop = rig(batch=True).run([record(0), record(1), record(5, partition=1)])
    assert steps(loop.kafka) == ["begin", "offsets", "commit"]
    assert loop.offsets == {0: 2, 1: 6}


def test_a_batch_of_any_size_is_one_transaction(rig: Any) -> None:
    assert steps(rig(batch=True, max_records=2).run([record(offset) for offset in range(9)]).kafka).count("begin") == 1


def test_a_failed_batch_comes_again_and_is_recovered_in_the_end(rig: Any) -> None:
    """Spring repeats it for ever by default; here a policy that ends is the default, and each record is recovered."""
    recovered: list[int] = []
    retry = ErrorHandler(retry=Retry.fixed(0, attempts=3), recover=lambda one, error: recovered.append(one.offset))
    loop = rig(batch=True, errors=retry)

    def fails(records: Any) -> None:
        raise ValueError

    loop.listener = fails
    loop.run([record(0), record(1)])
    assert loop.deliveries == [[0, 1]] * 3
    assert recovered == [0, 1]
    assert loop.offsets == {0: 2}
    assert loop.kafka.visible == []


def test_a_batch_that_points_at_its_record_commits_those_before_it(rig: Any) -> None:
    recovered: list[int] = []
    loop = rig(
        batch=True, errors=ErrorHandler(retry=Retry.never(), recover=lambda one, error: recovered.append(one.offset))
    )

    def points(records: Any) -> None:
        for index, one in enumerate(records):
            if one.offset == 2:
                raise BatchListenerFailed(index, ValueError("2"))

    loop.listener = points
    loop.run([record(offset) for offset in range(5)])
    assert recovered == [2]
    assert loop.deliveries == [[0, 1, 2, 3, 4], [0, 1], [3, 4]]
    assert loop.kafka.visible == ["0:0", "0:1", "0:3", "0:4"]
    assert loop.offsets == {0: 5}


def test_with_sub_batches_each_partition_is_a_transaction_of_its_own_and_the_others_go_on(rig: Any) -> None:
    loop = rig(batch=True, sub_batches=True)
    failed: list[int] = []

    def second_fails_once(records: Any) -> None:
        if records[0].partition == 1 and not failed:
            failed.append(1)
            raise ValueError

    loop.listener = second_fails_once
    loop.run([record(offset, partition) for partition in range(3) for offset in range(2)])
    assert steps(loop.kafka) == [
        *["begin", "offsets", "commit"],
        *["begin", "abort"],
        *["begin", "offsets", "commit"] * 2,
    ]
    assert loop.kafka.visible == ["0:0", "0:1", "2:0", "2:1", "1:0", "1:1"]
    assert loop.offsets == {0: 2, 1: 2, 2: 2}


# -- manual acknowledgment ---------------------------------------------------------------------------------------------


def test_without_acknowledgment_the_sends_commit_and_no_offset_does(rig: Any) -> None:
    loop = rig(ack=AckMode.MANUAL).run([record(0)])
    assert steps(loop.kafka) == ["begin", "commit"]
    assert loop.kafka.visible == ["0:0"]
    assert loop.offsets == {}


def test_only_what_is_acknowledged_is_in_the_transaction(rig: Any) -> None:
    loop = rig(ack=AckMode.MANUAL)
    loop.listener = lambda one: loop.acks.acknowledge(one) if one.offset == 1 else None
    loop.run([record(0), record(1), record(2)])
    assert loop.offsets == {0: 2}


def test_a_nack_in_a_batch_commits_the_offsets_before_it_and_the_rest_comes_again(rig: Any) -> None:
    loop = rig(batch=True, ack=AckMode.MANUAL)
    nacked: list[int] = []

    def nack_once(records: Any) -> Delivered | None:
        acknowledgment = Acknowledgment(loop.acks, records, lambda: None)
        if not nacked:
            nacked.append(1)
            acknowledgment.nack(1, delay=0.0)
            assert acknowledgment.nacked is not None
            return Delivered(acknowledgment.nacked[0], nack_delay=acknowledgment.nacked[1])
        acknowledgment.acknowledge()
        return None

    loop.listener = nack_once
    loop.run([record(0), record(1), record(2)])
    assert loop.deliveries == [[0, 1, 2], [1, 2]]
    assert loop.offsets == {0: 3}
    assert steps(loop.kafka) == ["begin", "offsets", "commit"] * 2


def test_an_acknowledgment_that_comes_late_is_committed_in_a_transaction_of_its_own(rig: Any) -> None:
    loop = rig(ack=AckMode.MANUAL)
    loop.run([record(0)], idle=1)
    loop.acks.acknowledge(record(0))
    loop.run(idle=1)
    assert steps(loop.kafka) == ["begin", "commit", "begin", "offsets", "commit"]
    assert loop.offsets == {0: 1}
    assert loop.consumer_commits == []


def test_what_was_acknowledged_in_an_aborted_transaction_is_not_committed(rig: Any) -> None:
    loop = rig(ack=AckMode.MANUAL, max_records=1, errors=ErrorHandler(retry=Retry.fixed(100)))

    def acknowledge_and_fail(one: Any) -> None:
        loop.acks.acknowledge(one)
        raise ValueError

    loop.listener = acknowledge_and_fail
    effects = loop.loop.run()
    loop.polls.append([record(0)])
    outcome: Any = None
    for _ in range(30):
        outcome = loop._perform(effects.send(outcome))
    effects.close()
    assert loop.offsets == {}
    assert steps(loop.kafka) == ["begin", "abort"]


# -- filtered records --------------------------------------------------------------------------------------------------


def test_offsets_of_filtered_records_go_with_the_next_transaction_or_with_one_of_their_own(rig: Any) -> None:
    loop = rig(record_filter=lambda one: one.offset >= 1).run([record(0), record(1)], [record(2)])
    assert loop.deliveries == [(0, 1)]
    assert loop.offsets == {0: 3}
    assert steps(loop.kafka) == ["begin", "offsets", "commit"] * 2


def test_a_filtered_record_behind_a_failed_one_is_not_committed_before_it(rig: Any) -> None:
    loop = rig(record_filter=lambda one: one.offset == 1, errors=ErrorHandler(retry=Retry.fixed(5)))
    offsets_seen: list[dict[int, int]] = []

    def fails_once(one: Any) -> None:
        offsets_seen.append(loop.offsets)
        if one.delivery_attempt == 1:
            raise ValueError

    loop.listener = fails_once
    loop.run([record(0), record(1)])
    assert offsets_seen == [{}, {}]
    assert loop.offsets == {0: 2}


# -- past markers ------------------------------------------------------------------------------------------------------


P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)


def test_when_idle_the_offset_is_committed_past_the_marker_in_a_transaction(rig: Any) -> None:
    loop = rig(positions=GroupPositions())
    loop.run([record(0)], idle=0)
    loop.consumer.positions = {P0: OffsetAndMetadata(2, 9)}
    loop.run(idle=2)
    assert loop.offsets == {0: 2}
    assert loop.consumer_commits == []
    assert steps(loop.kafka) == ["begin", "offsets", "commit"] * 2
    assert loop.kafka.producers[0].offsets == []


def test_several_markers_in_a_row_and_a_group_that_has_just_come_are_caught_up_too(rig: Any) -> None:
    loop = rig(positions=GroupPositions())
    loop.consumer.committed_before = {P0: OffsetAndMetadata(1)}
    loop.consumer.positions = {P0: OffsetAndMetadata(5), P1: OffsetAndMetadata(0)}
    loop.run(idle=3)
    assert loop.offsets == {0: 5}, "the partition without a committed offset is left alone"
    assert loop.consumer.lookups == 1, "asked once"


def test_nothing_is_committed_past_a_record_that_waits_for_its_next_delivery(rig: Any) -> None:
    loop = rig(positions=GroupPositions(), max_records=1, errors=ErrorHandler(retry=Retry.fixed(30)))
    loop.consumer.committed_before = {P0: OffsetAndMetadata(0)}
    seen: list[dict[int, int]] = []

    def fails_once(one: Any) -> None:
        seen.append(loop.offsets)
        if one.delivery_attempt == 1:
            raise ValueError

    loop.listener = fails_once
    loop.run([record(0)])
    assert seen == [{}, {}], "although there were idle polls between the two, and the position is past it"
    assert loop.offsets == {0: 1}


def test_a_partition_that_the_user_sought_is_left_alone(rig: Any) -> None:
    """The client leaves it out of `read_past`; and what was known of it is forgotten."""
    loop = rig(positions=GroupPositions())
    loop.run([record(0)], idle=0)
    loop.loop.seeking(P0)
    loop.consumer.positions = {}
    loop.run(idle=2)
    assert loop.offsets == {0: 1}


@pytest.mark.parametrize("in_transaction", [False, True])
def test_the_start_of_a_partition_is_committed_where_that_is_wanted(rig: Any, in_transaction: bool) -> None:
    loop = rig(positions=GroupPositions(commits_start=True), starts_in_transaction=in_transaction)
    loop.consumer.committed_before = {P0: OffsetAndMetadata(40)}
    loop.consumer.positions = {P0: OffsetAndMetadata(40), P1: OffsetAndMetadata(100)}
    loop.run(idle=2)
    if in_transaction:
        assert (loop.offsets, loop.consumer_commits) == ({1: 100}, [])
    else:
        assert (loop.offsets, loop.consumer_commits) == ({}, [{P1: OffsetAndMetadata(100)}])


def test_partitions_that_were_given_up_are_asked_for_anew(rig: Any) -> None:
    loop = rig(positions=GroupPositions())
    loop.run([record(0)], idle=0)
    loop.loop.lost([P0])
    loop.consumer.committed_before = {P0: OffsetAndMetadata(8)}
    loop.consumer.positions = {P0: OffsetAndMetadata(9)}
    loop.run(idle=2)
    assert loop.consumer.lookups == 1
    assert loop.offsets == {0: 9}
