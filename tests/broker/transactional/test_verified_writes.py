"""Produce in transactions: what is asked of the coordinator, when, and what its answers become (KIP-890).

Pitfalls 10 to 15 and 28 of a reimplementation, as far as transactions are concerned, are tests here.
"""

from __future__ import annotations

from typing import Any

import pytest

from ottla_broker.api import UnanswerableError
from ottla_broker.pending import Pending, Unapplied
from ottla_wire import errors
from support.fake_transactions import Asked

OUT_OF_ORDER, INVALID_EPOCH, INVALID_TXN_STATE, INVALID_MAPPING = 45, 47, 48, 49
CONCURRENT, NOT_ENOUGH, NOT_LEADER, UNKNOWN_TOPIC, INVALID_ACKS = 51, 19, 6, 3, 21
ABORTABLE, INVALID_RECORD, TXN_ID_AUTH = 120, 87, 53


class TestQuestions:
    def test_the_first_write_of_a_transaction_adds_the_partition(self, stage: Any) -> None:
        assert stage.producer().sends(b"a").error_code == 0
        assert stage.coordinator.asked == [Asked("tx", 9, 0, (("t", 0),), verify_only=False)]

    @pytest.mark.parametrize("version", [3, 10, 11])
    def test_clients_before_version_12_have_added_it_and_are_verified(self, stage: Any, version: int) -> None:
        producer = stage.producer(version=version)
        stage.coordinator.partitions["tx"].add(("t", 0))
        assert producer.sends(b"a").error_code == 0
        assert stage.coordinator.asked == [Asked("tx", 9, 0, (("t", 0),), verify_only=True)]

    def test_later_writes_of_the_transaction_ask_nothing(self, stage: Any) -> None:
        producer = stage.producer()
        for value in (b"a", b"b", b"c"):
            assert producer.sends(value).error_code == 0
        assert len(stage.coordinator.asked) == 1

    def test_each_partition_is_asked_for_once_and_those_of_a_request_together(self, stage: Any) -> None:
        producer = stage.producer()
        producer.sends(b"a")
        answer = producer.requests(
            {0: producer.batch(b"b", sequence=1), 1: producer.batch(b"c"), 2: producer.batch(b"d")}
        )
        assert [entry.error_code for entry in answer.responses[0].partition_responses] == [0, 0, 0]
        assert [asked.partitions for asked in stage.coordinator.asked] == [(("t", 0),), (("t", 1), ("t", 2))]

    @pytest.mark.parametrize("version", [11, 12])
    def test_the_next_transaction_is_asked_for_again(self, stage: Any, version: int) -> None:
        producer = stage.producer(version=version)
        for _ in range(2):
            stage.coordinator.partitions["tx"].add(("t", 0))
            assert producer.sends(b"a").error_code == 0
            assert producer.ends(commit=True) == [0]
        assert [asked.producer_epoch for asked in stage.coordinator.asked] == ([0, 0] if version == 11 else [0, 1])

    def test_records_outside_of_transactions_are_no_question(self, stage: Any) -> None:
        producer = stage.producer()
        answer = producer.requests({0: producer.batch(b"a", transactional=False)})
        assert answer.responses[0].partition_responses[0].error_code == 0
        assert stage.coordinator.asked == []

    def test_verification_of_old_clients_can_be_switched_off_but_not_the_adding(
        self, make_bench: Any, stage_of: Any
    ) -> None:
        stage = stage_of(make_bench(transaction_partition_verification_enable=False))
        assert stage.producer(version=11).sends(b"a").error_code == 0
        assert stage.coordinator.asked == []
        assert stage.producer("tx-2", 10).sends(b"a").error_code == 0
        assert [asked.transactional_id for asked in stage.coordinator.asked] == ["tx-2"]


class TestAnswers:
    @pytest.mark.parametrize(
        ("told", "version", "expected"),
        [
            (errors.CoordinatorNotAvailable, 12, NOT_ENOUGH),
            (errors.CoordinatorLoadInProgress, 11, NOT_ENOUGH),
            (errors.NotCoordinator, 12, NOT_ENOUGH),
            (errors.NetworkError, 12, NOT_ENOUGH),
            (errors.ConcurrentTransactions, 11, NOT_ENOUGH),
            (errors.ProducerFenced, 12, INVALID_EPOCH),
            (errors.ProducerFenced, 3, INVALID_EPOCH),
            (errors.InvalidProducerEpoch, 12, INVALID_EPOCH),
            (errors.TransactionAbortable, 12, ABORTABLE),
            (errors.TransactionAbortable, 11, ABORTABLE),
            (errors.TransactionAbortable, 10, INVALID_TXN_STATE),
            (errors.InvalidProducerIdMapping, 12, INVALID_MAPPING),
            (errors.ClusterAuthorizationFailed, 12, INVALID_TXN_STATE),
            (errors.InvalidTxnState, 12, INVALID_TXN_STATE),
        ],
    )
    def test_each_answer_of_the_coordinator_becomes_what_a_producer_knows(
        self, stage: Any, told: type[errors.KafkaError], version: int, expected: int
    ) -> None:
        stage.coordinator.codes.append(told.code)
        result = stage.producer(version=version).sends(b"a")
        assert (result.error_code, result.base_offset, result.log_start_offset) == (expected, -1, -1)
        assert stage.latest(isolation=0) == 0

    def test_a_refused_partition_leaves_the_others_of_the_request_alone(self, stage: Any) -> None:
        producer = stage.producer(version=11)
        stage.coordinator.partitions["tx"].add(("t", 1))
        answer = producer.requests({index: producer.batch(b"a") for index in (0, 1, 7)})
        found = {entry.index: entry.error_code for entry in answer.responses[0].partition_responses}
        assert found == {0: ABORTABLE, 1: 0, 7: UNKNOWN_TOPIC}

    def test_records_behind_a_refused_first_batch_cannot_overtake_it(self, stage: Any) -> None:
        """The first batch is to be sent again; if the second were taken meanwhile the first never could be."""
        producer = stage.producer()
        stage.coordinator.codes.append(errors.NotCoordinator.code)
        assert producer.sends(b"a", sequence=0).error_code == NOT_ENOUGH
        assert producer.sends(b"b", sequence=1).error_code == OUT_OF_ORDER
        assert producer.sends(b"a", sequence=0).error_code == 0
        assert producer.sends(b"b", sequence=1).error_code == 0

    def test_a_transaction_of_version_2_begins_at_sequence_0(self, stage: Any) -> None:
        assert stage.producer().sends(b"a", sequence=4).error_code == OUT_OF_ORDER
        stage.coordinator.partitions["tx-1"].add(("t", 1))
        old = stage.producer("tx-1", 10, version=11)
        assert old.sends(b"a", partition=1, sequence=4).error_code == 0


class TestOrderOfChecks:
    def test_transactional_records_without_an_id_refuse_the_whole_request(self, stage: Any) -> None:
        producer = stage.producer()
        answer = producer.requests(
            {0: producer.batch(b"a", transactional=False), 1: producer.batch(b"a")}, transactional_id=None
        )
        assert [entry.error_code for entry in answer.responses[0].partition_responses] == [TXN_ID_AUTH] * 2

    def test_two_producers_in_one_request_refuse_the_whole_of_it(self, stage: Any) -> None:
        producer, other = stage.producer(), stage.producer(producer_id=10)
        answer = producer.requests({0: producer.batch(b"a"), 1: other.batch(b"b"), 2: b""})
        assert [entry.error_code for entry in answer.responses[0].partition_responses] == [INVALID_MAPPING] * 3
        assert stage.coordinator.asked == []

    def test_two_epochs_of_one_producer_are_two_producers(self, stage: Any) -> None:
        producer = stage.producer()
        answer = producer.requests({0: producer.batch(b"a"), 1: producer.batch(b"b", producer_epoch=1)})
        assert [entry.error_code for entry in answer.responses[0].partition_responses] == [INVALID_MAPPING] * 2

    def test_a_producer_that_is_fenced_here_is_told_so_without_asking(self, stage: Any) -> None:
        producer = stage.producer(epoch=3)
        producer.sends(b"a")
        producer.ends(commit=True)
        stage.coordinator.asked.clear()
        zombie = stage.producer(epoch=3)
        assert zombie.sends(b"z").error_code == INVALID_EPOCH
        assert stage.coordinator.asked == []

    def test_a_partition_that_is_led_elsewhere_is_not_asked_for(self, stage: Any) -> None:
        stage.bench.partition("t", 0).leader = 2
        assert stage.producer().sends(b"a").error_code == NOT_LEADER
        assert stage.coordinator.asked == []

    def test_what_is_no_batch_is_refused_before_anybody_is_asked(self, stage: Any) -> None:
        producer = stage.producer()
        answer = producer.requests({0: producer.batch(b"a") * 2})
        assert answer.responses[0].partition_responses[0].error_code == INVALID_RECORD
        assert stage.coordinator.asked == []

    def test_wrong_acks_are_found_after_the_coordinator_was_asked(self, stage: Any) -> None:
        assert stage.producer().sends(b"a", acks=7).error_code == INVALID_ACKS
        assert len(stage.coordinator.asked) == 1

    def test_records_outside_of_the_transaction_are_refused_while_it_is_open(self, stage: Any) -> None:
        producer = stage.producer()
        producer.sends(b"a")
        outside = producer.requests({0: producer.batch(b"b", sequence=1, transactional=False)}, transactional_id=None)
        assert outside.responses[0].partition_responses[0].error_code == INVALID_TXN_STATE

    def test_a_duplicate_is_answered_even_after_its_transaction_has_ended(self, stage: Any) -> None:
        producer = stage.producer(version=11)
        stage.coordinator.partitions["tx"].add(("t", 0))
        assert producer.sends(b"a", sequence=0).base_offset == 0
        producer.ends(commit=True)
        stage.coordinator.partitions["tx"].add(("t", 0))
        again = producer.sends(b"a", sequence=0)
        assert (again.error_code, again.base_offset) == (0, 0)
        assert stage.latest(isolation=1) == 2


class TestGuard:
    def test_a_late_write_after_the_abort_is_refused(self, stage: Any) -> None:
        """Pitfall 28: the coordinator has timed the transaction out, then a delayed Produce arrives."""
        producer = stage.producer(version=11)
        stage.coordinator.partitions["tx"].add(("t", 0))
        producer.sends(b"a")
        producer.ends(commit=False)
        assert producer.sends(b"late").error_code == ABORTABLE
        assert (stage.latest(isolation=1), stage.values()) == (2, [])

    @pytest.mark.parametrize("commit", [True, False])
    def test_an_answer_about_the_transaction_before_opens_none(self, stage: Any, commit: bool) -> None:
        """While the coordinator's answer is under way the transaction ends: the answer is about the old one."""
        producer = stage.producer(version=11)
        stage.coordinator.partitions["tx"].add(("t", 0))
        stage.coordinator.holds = True
        late = producer.sends(b"late")
        assert isinstance(late, Pending)
        stage.writes_marker(9, commit=commit, epoch=0, transaction_version=1)
        stage.coordinator.answer()
        assert late.result().responses[0].partition_responses[0].error_code == INVALID_TXN_STATE
        assert stage.bench.partition("t").log.producers.open_transactions == {}
        assert stage.latest(isolation=1) == stage.latest(isolation=0) == 1

    def test_of_version_2_the_late_write_is_fenced_by_the_markers_epoch(self, stage: Any) -> None:
        producer = stage.producer()
        stage.coordinator.holds = True
        late = producer.sends(b"late")
        stage.writes_marker(9, commit=False, epoch=1)
        stage.coordinator.answer()
        assert late.result().responses[0].partition_responses[0].error_code == INVALID_EPOCH
        assert stage.bench.partition("t").log.producers.open_transactions == {}

    def test_the_next_transactions_guard_survives_a_repeated_marker_of_the_one_before(self, stage: Any) -> None:
        """The coordinator repeats a marker it got no answer for, while the producer's next transaction begins."""
        producer = stage.producer()
        producer.sends(b"a")
        producer.ends(commit=True)
        stage.coordinator.holds = True
        following = producer.sends(b"b")
        assert stage.writes_marker(9, commit=True, epoch=1) == [0]
        stage.coordinator.answer()
        assert following.result().responses[0].partition_responses[0].error_code == 0

    def test_an_answer_that_is_not_waited_for_any_more_opens_nothing(self, stage: Any) -> None:
        producer = stage.producer()
        stage.coordinator.holds = True
        late = producer.sends(b"a")
        stage.bench.advance(30_000)
        assert late.result().responses[0].partition_responses[0].error_code == NOT_ENOUGH
        stage.coordinator.answer()
        assert stage.latest(isolation=0) == 0

    def test_the_guard_is_spent_by_the_first_write(self, stage: Any) -> None:
        producer = stage.producer()
        producer.sends(b"a")
        assert stage.bench.partition("t").log.producers.verification(9) is None


class TestWaiting:
    def test_where_the_coordinator_answers_at_once_nothing_is_waited_for(self, stage: Any) -> None:
        answer = stage.bench.broker.handle(*_request(stage, stage.producer(), acks=-1))
        assert not isinstance(answer, Pending)
        assert only(answer).base_offset == 0
        assert stage.bench.broker.verification.deadline_ms() is None

    def test_what_waits_for_the_coordinator_holds_up_its_connection(self, stage: Any) -> None:
        stage.coordinator.holds = True
        assert isinstance(stage.producer().sends(b"a"), Pending)
        producer = stage.producer("tx-2", 10)
        answer = stage.bench.broker.handle(*_request(stage, producer, acks=-1))
        assert isinstance(answer, Unapplied)

    def test_the_append_follows_the_answer(self, stage: Any) -> None:
        stage.coordinator.holds = True
        answer = stage.producer().sends(b"a")
        assert stage.latest(isolation=0) == 0
        stage.coordinator.answer()
        assert answer.result().responses[0].partition_responses[0].base_offset == 0
        assert stage.latest(isolation=0) == 1

    def test_then_acks_all_waits_for_the_replicas(self, stage: Any) -> None:
        catch_up = stage.stops_replicating()
        stage.coordinator.holds = True
        answer = stage.producer().sends(b"a")
        stage.coordinator.answer()
        assert not answer.done()
        catch_up()
        assert answer.result().responses[0].partition_responses[0].error_code == 0

    def test_the_wait_for_replicas_counts_from_the_append(self, stage: Any) -> None:
        stage.stops_replicating()
        stage.coordinator.holds = True
        answer = stage.producer().sends(b"a")
        stage.bench.advance(900)
        stage.coordinator.answer()
        stage.bench.advance(900)
        assert not answer.done()
        stage.bench.advance(100)
        assert answer.result().responses[0].partition_responses[0].error_code == 7

    def test_acks_0_is_held_up_too_and_answered_by_nothing(self, stage: Any) -> None:
        stage.coordinator.holds = True
        producer = stage.producer()
        answer = stage.bench.broker.handle(*_request(stage, producer, acks=0))
        assert isinstance(answer, Unapplied)
        stage.coordinator.answer()
        assert answer.result() is None
        assert stage.latest(isolation=0) == 1

    def test_acks_0_that_is_refused_closes_the_connection(self, stage: Any) -> None:
        stage.coordinator.holds = True
        producer = stage.producer()
        answer = stage.bench.broker.handle(*_request(stage, producer, acks=0))
        stage.coordinator.codes.append(errors.ProducerFenced.code)
        stage.coordinator.answer()
        assert isinstance(answer.error(), UnanswerableError)

    @pytest.mark.parametrize("transactional_id", [None, "tx"])
    def test_acks_0_that_is_refused_as_a_whole_closes_the_connection(
        self, stage: Any, transactional_id: str | None
    ) -> None:
        producer, other = stage.producer(), stage.producer(producer_id=10)
        with pytest.raises(UnanswerableError):
            producer.requests(
                {0: producer.batch(b"a"), 1: other.batch(b"b")}, acks=0, transactional_id=transactional_id
            )


class TestConcurrentTransactions:
    """Pitfall 33: the previous transaction's markers are still under way."""

    def test_version_2_waits_for_the_previous_transaction_a_little(self, stage: Any) -> None:
        stage.coordinator.codes.extend([CONCURRENT] * 3)
        answer = stage.producer().sends(b"a")
        stage.bench.advance(59)
        assert not answer.done()
        stage.bench.advance(1)
        assert answer.result().responses[0].partition_responses[0].error_code == 0
        assert len(stage.coordinator.asked) == 4

    def test_and_tells_the_client_after_a_tenth_of_a_second(self, stage: Any) -> None:
        stage.coordinator.codes.extend([CONCURRENT] * 50)
        answer = stage.producer().sends(b"a")
        stage.bench.advance(99)
        assert not answer.done()
        stage.bench.advance(1)
        assert answer.result().responses[0].partition_responses[0].error_code == CONCURRENT
        assert len(stage.coordinator.asked) == 6
        assert stage.bench.broker.verification.deadline_ms() is None

    def test_a_coordinator_on_this_node_says_when_it_is_over(self, stage: Any) -> None:
        stage.coordinator.codes.extend([CONCURRENT] * 2)
        answer, other = stage.producer().sends(b"a"), stage.producer("tx-2", 10).sends(b"b", partition=1)
        verification = stage.bench.broker.verification
        assert verification.is_settled
        verification.transaction_over("tx")
        assert not verification.is_settled
        stage.bench.broker.settle(stage.bench.clock.now_ms())
        assert answer.result().responses[0].partition_responses[0].error_code == 0
        assert not other.done()
        stage.bench.advance(20)
        assert other.result().responses[0].partition_responses[0].error_code == 0

    def test_what_is_over_when_nobody_waits_is_no_work(self, stage: Any) -> None:
        stage.bench.broker.verification.transaction_over("tx")
        assert stage.bench.broker.verification.is_settled

    def test_old_clients_are_told_at_once_to_send_again(self, stage: Any) -> None:
        stage.coordinator.codes.append(CONCURRENT)
        assert stage.producer(version=11).sends(b"a").error_code == NOT_ENOUGH

    def test_the_producer_may_be_fenced_while_it_waits(self, stage: Any) -> None:
        stage.coordinator.codes.append(CONCURRENT)
        answer = stage.producer().sends(b"a")
        stage.writes_marker(9, commit=False, epoch=1)
        stage.bench.advance(20)
        assert answer.result().responses[0].partition_responses[0].error_code == INVALID_EPOCH
        assert len(stage.coordinator.asked) == 1

    def test_a_broker_that_stops_answers_who_waits(self, stage: Any) -> None:
        stage.coordinator.codes.append(CONCURRENT)
        retrying = stage.producer().sends(b"a")
        stage.coordinator.holds = True
        asking = stage.producer("tx-2", 10).sends(b"b")
        stage.bench.broker.verification.drain()
        assert retrying.result().responses[0].partition_responses[0].error_code == CONCURRENT
        assert asking.result().responses[0].partition_responses[0].error_code == NOT_ENOUGH


class TestCoalescing:
    """Of one transactional id one question is under way, and one waits."""

    @pytest.fixture
    def asking(self, stage: Any) -> Any:
        stage.coordinator.holds = True
        return stage.producer().sends(b"a")

    def code(self, answer: Any) -> int:
        assert answer.done()
        return int(answer.result().responses[0].partition_responses[0].error_code)

    def test_the_one_behind_is_asked_when_the_first_has_its_answer(self, stage: Any, asking: Any) -> None:
        behind = stage.producer().sends(b"b", partition=1)
        assert len(stage.coordinator.asked) == 1
        stage.coordinator.answer()
        assert self.code(asking) == 0
        assert not behind.done()
        stage.coordinator.answer()
        assert self.code(behind) == 0

    def test_a_later_one_of_the_same_epoch_replaces_the_one_that_waits(self, stage: Any, asking: Any) -> None:
        waiting = stage.producer().sends(b"b", partition=1)
        later = stage.producer().sends(b"b", partition=2)
        assert self.code(waiting) == NOT_ENOUGH
        stage.coordinator.answer()
        stage.coordinator.answer()
        assert (self.code(asking), self.code(later)) == (0, 0)

    def test_a_newer_epoch_fences_the_one_that_waits(self, stage: Any, asking: Any) -> None:
        waiting = stage.producer().sends(b"b", partition=1)
        stage.producer(epoch=1).sends(b"b", partition=2)
        assert self.code(waiting) == INVALID_EPOCH

    def test_an_older_epoch_is_fenced_by_the_one_that_waits(self, stage: Any, asking: Any) -> None:
        waiting = stage.producer(epoch=1).sends(b"b", partition=1)
        assert stage.producer().sends(b"b", partition=2).error_code == INVALID_EPOCH
        assert not waiting.done()

    def test_other_transactional_ids_do_not_wait(self, stage: Any, asking: Any) -> None:
        stage.producer("tx-2", 10).sends(b"b")
        assert [asked.transactional_id for asked in stage.coordinator.asked] == ["tx", "tx-2"]


class TestSequences:
    def test_sequences_go_on_over_transactions_of_version_1(self, stage: Any) -> None:
        producer = stage.producer(version=11)
        for value in (b"a", b"b"):
            stage.coordinator.partitions["tx"].add(("t", 0))
            assert producer.sends(value).error_code == 0
            producer.ends(commit=True)
        assert producer.sends(b"c", sequence=0).error_code == ABORTABLE
        stage.coordinator.partitions["tx"].add(("t", 0))
        assert producer.sends(b"c", sequence=3).error_code == OUT_OF_ORDER
        assert stage.described()[0].last_sequence == 1

    def test_each_transaction_of_version_2_begins_anew(self, stage: Any) -> None:
        producer = stage.producer()
        for value in (b"a", b"b"):
            assert producer.sends(value, sequence=0).error_code == 0
            producer.ends(commit=True)
        assert producer.sends(b"c", sequence=1).error_code == OUT_OF_ORDER

    def test_a_batch_that_overlaps_one_of_its_transaction_is_out_of_order(self, stage: Any) -> None:
        """Pitfall 12."""
        producer = stage.producer()
        assert producer.sends(b"a", b"b", b"c", b"d", b"e", sequence=0).error_code == 0
        assert producer.sends(b"d", b"e", b"f", b"g", b"h", sequence=3).error_code == OUT_OF_ORDER

    def test_the_sixth_batch_back_is_no_duplicate_any_more(self, stage: Any) -> None:
        """Pitfall 14."""
        producer = stage.producer()
        for number in range(6):
            producer.sends(b"%d" % number)
        assert producer.sends(b"1", sequence=1).base_offset == 1
        assert producer.sends(b"0", sequence=0).error_code == OUT_OF_ORDER

    def test_sequences_wrap_inside_a_transaction(self, stage: Any) -> None:
        """Pitfall 13."""
        producer = stage.producer(version=11)
        stage.coordinator.partitions["tx"].add(("t", 0))
        assert producer.sends(b"a", b"b", sequence=2**31 - 2).error_code == 0
        assert producer.sends(b"c", b"d", sequence=0).error_code == 0
        again = producer.sends(b"c", b"d", sequence=0)
        assert (again.error_code, again.base_offset) == (0, 2)


def only(answer: Any) -> Any:
    (topic,) = answer.responses
    return topic.partition_responses[0]


def _request(stage: Any, producer: Any, *, acks: int) -> tuple[Any, Any]:
    from ottla_broker.context import ANONYMOUS, RequestContext
    from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData

    data = PartitionProduceData(index=0, records=memoryview(bytearray(producer.batch(b"a"))))
    request = ProduceRequest(
        transactional_id=producer.transactional_id,
        acks=acks,
        timeout_ms=1000,
        topic_data=[TopicProduceData(name="t", partition_data=[data])],
    )
    context = RequestContext(1, 0, producer.version, "c", "192.0.2.1", ANONYMOUS, stage.bench.clock.now_ms())
    return context, request
