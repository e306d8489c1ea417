"""What fails on the way: each refusal in its class, lost answers, and calls whose outcome is not known."""

from __future__ import annotations

import pytest

from ottla import errors
from ottla.client.producer.transaction_tables import RequestKind, TransactionState
from ottla.errors import (
    CommitFailed,
    DeliveryTimedOut,
    FencedInstanceId,
    GroupAuthorizationFailed,
    IllegalTransactionState,
    InvalidTransactionTimeout,
    InvalidTxnState,
    MessageTooLarge,
    NotInTransaction,
    OutOfOrderSequenceNumber,
    SendError,
    TopicAuthorizationFailed,
    TransactionAbortable,
    TransactionAborted,
    TransactionalIdAuthorizationFailed,
)
from support.produce_model import Fault
from support.transaction_model import TransactionWorld

both = pytest.mark.parametrize("version", [1, 2])


def cause(future: object) -> BaseException | None:
    error = future.exception(0)  # type: ignore[attr-defined]
    assert isinstance(error, SendError)
    return error.__cause__


def goes_on(world: TransactionWorld) -> None:
    """The producer is usable: a transaction of its own is committed, and read."""
    world.begin()
    future = world.send(value=b"afterwards")
    world.finish(world.commit())
    assert future.result(0).offset >= 0
    assert world.committed()[-1] == b"afterwards"


def loses(world: TransactionWorld, kind: RequestKind) -> None:
    """The next request of a kind is not answered, and arrives later."""
    while world.asked[0].kind is not kind:
        world.answer()
    world.answer(lost=True, arrives=True)


class TestFailedSends:
    @both
    def test_a_commit_after_a_failed_send_raises_what_the_send_failed_with(self, version: int) -> None:
        """Also if the application never looked at the future."""
        world = TransactionWorld(version=version).started()
        world.send()
        world.step()
        world.step()
        refused = world.send()
        world.run()
        world.faults.append(Fault(29))
        world.step()
        assert isinstance(cause(refused), TopicAuthorizationFailed)
        with pytest.raises(TopicAuthorizationFailed):
            world.commit()
        world.finish(world.abort())
        assert world.committed() == []
        goes_on(world)

    @both
    def test_a_send_that_fails_during_the_commit_fails_the_commit(self, version: int) -> None:
        world = TransactionWorld(version=version).started()
        world.send()
        operation = world.commit()
        while world.asked:
            world.answer()
        world.faults.append(Fault(29))
        world.finish(operation, TopicAuthorizationFailed)
        assert world.sent_kinds[-1] is not RequestKind.END
        world.finish(world.abort())
        goes_on(world)

    @both
    def test_a_record_that_never_reached_a_batch_fails_the_transaction_too(self, version: int) -> None:
        world = TransactionWorld(version=version).started()
        world.send()
        with world.accumulator.lock:
            world.machine.send_failed(MessageTooLarge("too large"))
        world.step()
        with pytest.raises(MessageTooLarge):
            world.commit()
        world.finish(world.abort())
        goes_on(world)

    @both
    def test_what_was_not_sent_when_the_transaction_failed_is_dropped_with_the_reason(self, version: int) -> None:
        world = TransactionWorld(version=version, linger_ms=10_000, delivery_timeout_ms=60_000).started()
        waiting = world.send()
        world.run()
        with world.accumulator.lock:
            world.machine.send_failed(MessageTooLarge("a large one"))
        world.run()
        error = cause(waiting)
        assert isinstance(error, TransactionAborted)
        assert "a large one" in str(error)
        assert isinstance(error.__cause__, MessageTooLarge)

    @both
    def test_sends_after_the_failure_fail_and_name_it(self, version: int) -> None:
        world = TransactionWorld(version=version).started()
        world.machine.send_failed(MessageTooLarge("a large one"))
        refusal = world.machine.check_send()
        assert isinstance(refusal, TransactionAborted)
        assert "a large one" in str(refusal)
        with pytest.raises(MessageTooLarge):
            world.send_offsets(3)

    @both
    def test_a_delivery_timeout_leaves_numbers_in_doubt_and_the_next_transaction_begins_anew(
        self, version: int
    ) -> None:
        world = TransactionWorld(version=version).started()
        world.send()
        world.step()
        world.step()
        late = world.send()
        world.run()
        world.run(elapsed_ms=60_001)
        assert isinstance(cause(late), DeliveryTimedOut)
        with pytest.raises(DeliveryTimedOut):
            world.commit()
        operation = world.abort()
        assert RequestKind.END not in world.sent_kinds, "it is on the wire, and may still be stored"
        world.disconnect(0, worked_on=1)
        world.finish(operation)
        goes_on(world)
        assert world.committed() == [b"afterwards"]

    @both
    def test_a_batch_that_expires_before_it_was_sent_fails_the_transaction(self, version: int) -> None:
        world = TransactionWorld(version=version).started()
        world.unreachable.add(0)
        world.send()
        world.run()
        world.run(elapsed_ms=60_001)
        with pytest.raises(DeliveryTimedOut):
            world.commit()

    def test_a_gap_in_the_sequences_fails_the_transaction_and_is_not_closed_by_a_new_epoch_of_its_own(self) -> None:
        """An idempotent producer would go on in the next epoch; a transaction would be torn by that."""
        world = TransactionWorld(version=2).started()
        world.send()
        world.step()
        world.step()
        world.partitions[0].producers[7000].last_sequence = 99
        future = world.send()
        world.step()
        assert isinstance(cause(future), OutOfOrderSequenceNumber)
        with pytest.raises(OutOfOrderSequenceNumber):
            world.commit()
        world.finish(world.abort())
        goes_on(world)

    @both
    def test_a_retry_that_was_stored_before_is_recognised(self, version: int) -> None:
        world = TransactionWorld(version=version).started()
        world.send()
        world.step()
        world.step()
        world.send()
        world.run()
        world.disconnect(0, worked_on=1)
        world.finish(world.commit())
        assert world.committed() == [b"00000000", b"00000001"]

    @pytest.mark.parametrize("code", [48, 120])
    def test_a_partition_that_knows_nothing_of_the_transaction_makes_it_fail(self, code: int) -> None:
        world = TransactionWorld(version=2).started()
        world.send()
        world.run()
        world.faults.append(Fault(code))
        world.step()
        with pytest.raises((InvalidTxnState, TransactionAbortable)):
            world.commit()
        world.finish(world.abort())
        goes_on(world)

    @pytest.mark.parametrize("code", [49, 53])
    def test_what_cannot_be_mended_ends_the_producer(self, code: int) -> None:
        world = TransactionWorld(version=2).started()
        world.send()
        world.run()
        world.faults.append(Fault(code))
        world.step()
        assert world.machine.state is TransactionState.FATAL
        for call in (world.commit, world.abort, world.machine.begin, world.init):
            with pytest.raises(errors.Fatal):
                call()

    def test_concurrent_transactions_on_a_write_are_tried_again_soon(self) -> None:
        """The markers of the transaction before are still being written: the broker has waited for them already."""
        world = TransactionWorld(version=2).started()
        world.send()
        world.run()
        world.faults.append(Fault(51))
        while world.work(0):
            pass
        world.deliver(0)
        world.run(elapsed_ms=25)
        assert len(world.in_flight[0]) == 1


class TestRefusedRequests:
    @pytest.mark.parametrize("kind", ["INIT_PRODUCER_ID", "ADD_PARTITIONS", "ADD_OFFSETS", "COMMIT_OFFSETS", "END"])
    @pytest.mark.parametrize("code", [14, 15, 16, 51])
    def test_what_passes_is_tried_again(self, kind: str, code: int) -> None:
        world = TransactionWorld(version=1)
        refused = 0
        for _ in range(3):
            operation = world.init() if world.machine.state is TransactionState.UNINITIALIZED else None
            while operation is not None and not operation.is_done:
                refused += self.refuse_or_step(world, kind, code, refused)
            if operation is not None:
                operation.acknowledged = True
            world.begin()
            world.send()
            world.send_offsets(4)
            operation = world.commit()
            while not operation.is_done:
                refused += self.refuse_or_step(world, kind, code, refused)
            operation.acknowledged = True
        assert refused == 2
        assert len(world.committed()) == 3
        if code in (15, 16):
            assert world.sent_kinds.count(RequestKind.FIND_COORDINATOR) == 4, "and looked for anew: group, transaction"

    @staticmethod
    def refuse_or_step(world: TransactionWorld, kind: str, code: int, refused: int) -> int:
        if not world.asked:
            world.tick()
        elif world.asked[0].kind.name == kind and refused < 2:
            world.answer(code)
            return 1
        else:
            world.answer()
        return 0

    @both
    @pytest.mark.parametrize("works", [True, False])
    def test_a_lost_answer_to_end_txn_is_asked_for_again_as_the_same(self, version: int, works: bool) -> None:
        for end, expected in (("commit", [b"00000000"]), ("abort", [])):
            world = TransactionWorld(version=version).started()
            world.send()
            world.step()
            world.step()
            operation = getattr(world, end)()
            world.answer(lost=True, works=works)
            assert not operation.is_done
            world.finish(operation)
            assert world.committed() == expected
            assert len(world.coordinator.ended) == 1
            goes_on(world)

    def test_the_first_added_partition_waits_20_ms_for_the_markers_of_the_transaction_before(self) -> None:
        world = TransactionWorld(version=1).started()
        world.send()
        world.run()
        world.answer(51)
        world.run(elapsed_ms=19)
        assert not world.asked
        world.run(elapsed_ms=1)
        assert world.asked[0].kind is RequestKind.ADD_PARTITIONS

    def test_pauses_grow_between_other_attempts(self) -> None:
        world = TransactionWorld(version=1).started()
        world.send()
        world.run()
        pauses = []
        for _ in range(5):
            world.answer(14)
            refused_ms = world.now_ms
            while not world.asked:
                world.run(elapsed_ms=10)
            pauses.append(world.now_ms - refused_ms)
        assert 80 <= pauses[0] <= 130
        assert 800 <= pauses[-1] <= 1210

    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            (22, CommitFailed),
            (25, CommitFailed),
            (82, FencedInstanceId),
            (30, GroupAuthorizationFailed),
            (120, TransactionAbortable),
            (12, errors.OffsetMetadataTooLarge),
        ],
    )
    @both
    def test_refused_offsets_fail_the_transaction(self, version: int, code: int, kind: type[Exception]) -> None:
        world = TransactionWorld(version=version).started()
        world.send()
        operation = world.send_offsets(4)
        while world.asked[0].kind is not RequestKind.COMMIT_OFFSETS:
            world.answer()
        world.answer(code)
        world.finish(operation, kind)
        with pytest.raises(kind):
            world.commit()
        world.finish(world.abort())
        goes_on(world)
        assert world.coordinator.committed_offsets == {}

    def test_of_several_errors_the_gravest_decides(self) -> None:
        """A partition that was not attempted says nothing; another one says why."""
        world = TransactionWorld(partitions=2, version=1).started()
        world.send(0)
        world.send(1)
        world.run()
        request = world.asked.popleft()
        answer = world._refused(request, 55)
        answer.results_by_topic_v3_and_below[0].results_by_partition[1].partition_error_code = 29
        world.sender.request_answered(request, answer, None, world.now_ms)
        world.run()
        with pytest.raises(TopicAuthorizationFailed, match="orders-1"):
            world.commit()

    @pytest.mark.parametrize(("code", "kind"), [(53, TransactionalIdAuthorizationFailed), (120, TransactionAbortable)])
    def test_an_init_that_is_refused_may_be_called_again(self, code: int, kind: type[Exception]) -> None:
        world = TransactionWorld()
        operation = world.init()
        world.answer()
        world.answer(code)
        world.finish(operation, kind)
        world.finish(world.init())
        goes_on(world)

    def test_a_transaction_timeout_above_the_brokers_limit_names_both(self) -> None:
        world = TransactionWorld(transaction_timeout_ms=3_600_000)
        operation = world.init()
        world.answer()
        world.answer(50)
        error = world.finish(operation, InvalidTransactionTimeout)
        assert "3600000" in str(error)
        assert "transaction.max.timeout.ms" in str(error)

    @both
    def test_an_abort_that_the_coordinator_calls_abortable_is_fatal(self, version: int) -> None:
        """Aborting again would go round in circles."""
        world = TransactionWorld(version=version).started()
        world.send()
        world.step()
        world.step()
        operation = world.abort()
        world.answer(120)
        world.finish(operation, TransactionAbortable)
        assert world.machine.state is TransactionState.FATAL

    @both
    def test_a_commit_that_the_coordinator_calls_abortable_can_be_aborted(self, version: int) -> None:
        world = TransactionWorld(version=version).started()
        world.send()
        world.step()
        world.step()
        operation = world.commit()
        world.answer(120)
        world.finish(operation, TransactionAbortable)
        world.finish(world.abort())
        assert world.committed() == []
        goes_on(world)


class TestRequestsThatArriveLate:
    """The connection broke, the request was asked again on another one; then what was on the first is read as well."""

    @both
    @pytest.mark.parametrize("end", ["commit", "abort"])
    def test_an_end_does_not_end_the_transaction_after_its_own(self, version: int, end: str) -> None:
        world = TransactionWorld(version=version).started()
        world.send(value=b"first")
        world.step()
        world.step()
        operation = getattr(world, end)()
        loses(world, RequestKind.END)
        world.finish(operation)
        world.begin()
        world.send(value=b"one half")
        world.step()
        world.step()
        world.late_request_arrives()
        assert world.coordinator.state == "Ongoing"
        world.send(value=b"the other half")
        world.finish(world.commit())
        assert world.committed() == [b"first"] * (end == "commit") + [b"one half", b"the other half"]

    def test_the_next_epoch_is_asked_for_without_a_caller_waiting_for_the_commit(self) -> None:
        world = TransactionWorld(version=1).started()
        world.send()
        world.step()
        world.step()
        operation = world.commit()
        loses(world, RequestKind.END)
        world.finish(operation)
        world.step()
        assert world.sent_kinds[-1] is RequestKind.INIT_PRODUCER_ID
        assert (world.coordinator.state, world.coordinator.epoch) == ("Empty", 1)

    @pytest.mark.parametrize("kind", [RequestKind.ADD_PARTITIONS, RequestKind.ADD_OFFSETS])
    def test_an_addition_does_not_open_a_transaction_that_nobody_ends(self, kind: RequestKind) -> None:
        world = TransactionWorld(version=1).started()
        world.send()
        world.send_offsets(4)
        operation = world.commit()
        loses(world, kind)
        world.finish(operation)
        world.step()
        world.late_request_arrives()
        assert world.coordinator.state == "Empty"

    @both
    def test_offsets_do_not_take_the_place_of_those_of_the_next_transaction(self, version: int) -> None:
        world = TransactionWorld(version=version).started()
        operation = world.send_offsets(4)
        loses(world, RequestKind.COMMIT_OFFSETS)
        world.finish(operation)
        world.finish(world.commit())
        world.begin()
        world.finish(world.send_offsets(5))
        world.late_request_arrives()
        world.finish(world.commit())
        assert world.coordinator.committed_offsets == {("input", 0): 5}

    @both
    @pytest.mark.parametrize("at_once", [True, False])
    def test_offsets_do_not_take_the_place_of_later_ones_of_the_same_transaction(
        self, version: int, at_once: bool
    ) -> None:
        """No epoch is between them: the transaction fails, and is done again."""
        world = TransactionWorld(version=version).started()
        first = world.send_offsets(4)
        second = world.send_offsets(5) if at_once else None
        loses(world, RequestKind.COMMIT_OFFSETS)
        world.finish(first)
        second = second or world.send_offsets(5)
        assert "might arrive last" in str(world.finish(second, TransactionAborted))
        with pytest.raises(TransactionAborted):
            world.commit()
        world.finish(world.abort())
        world.late_request_arrives()
        goes_on(world)
        assert world.coordinator.committed_offsets == {}

    @both
    def test_offsets_of_other_partitions_may_follow(self, version: int) -> None:
        world = TransactionWorld(version=version).started()
        first = world.send_offsets(4)
        loses(world, RequestKind.COMMIT_OFFSETS)
        world.finish(first)
        world.finish(world.send_offsets(7, partition=1))
        world.late_request_arrives()
        world.finish(world.commit())
        assert world.coordinator.committed_offsets == {("input", 0): 4, ("input", 1): 7}


class TestUnknownOutcomes:
    @both
    def test_a_commit_that_took_too_long_may_only_be_called_again(self, version: int) -> None:
        """The caller has stopped waiting; nobody has told it how the commit ended."""
        world = TransactionWorld(version=version).started()
        world.send()
        world.step()
        world.step()
        operation = world.commit()
        for call in (world.abort, world.machine.begin, world.init):
            with pytest.raises(IllegalTransactionState, match="commit_transaction"):
                call()
        with pytest.raises(IllegalTransactionState):
            world.machine.check_send()
        assert world.commit() is operation, "it joins what is under way"
        assert world.sent_kinds.count(RequestKind.END) == 1
        world.finish(operation)
        assert world.committed() == [b"00000000"]

    @both
    def test_a_commit_that_ended_unseen_is_told_to_the_next_caller_and_forbids_an_abort(self, version: int) -> None:
        world = TransactionWorld(version=version).started()
        world.send()
        operation = world.commit()
        while not operation.is_done:
            world.step()
        with pytest.raises(IllegalTransactionState, match="call commit_transaction"):
            world.abort()
        with pytest.raises(IllegalTransactionState):
            world.machine.begin()
        assert world.commit() is operation
        operation.acknowledged = True
        goes_on(world)

    def test_a_commit_that_failed_unseen_may_be_followed_by_an_abort(self) -> None:
        world = TransactionWorld(version=2).started()
        world.send()
        operation = world.commit()
        world.faults.append(Fault(29))
        while not operation.is_done:
            world.step()
        world.finish(world.abort())
        goes_on(world)

    def test_an_abort_that_took_too_long_may_only_be_called_again(self) -> None:
        world = TransactionWorld(version=2).started()
        world.send()
        world.step()
        operation = world.abort()
        with pytest.raises(IllegalTransactionState, match="abort_transaction"):
            world.commit()
        assert world.abort() is operation
        world.finish(operation)
        goes_on(world)

    def test_an_init_that_took_too_long_may_only_be_called_again(self) -> None:
        world = TransactionWorld()
        operation = world.init()
        with pytest.raises(IllegalTransactionState, match="init_transactions"):
            world.machine.begin()
        assert world.init() is operation

    def test_what_is_waited_for_is_named(self) -> None:
        world = TransactionWorld(version=2).started()
        world.send()
        world.commit()
        assert "1 batches" in world.machine.waits_for(len(world.batches))
        while world.in_flight[0]:
            world.work(0)
            world.deliver(0)
        world.run()
        assert "EndTxn from broker 0" in world.machine.waits_for(0)
        world.answer(14)
        assert "CoordinatorLoadInProgress" in world.machine.waits_for(0)


class TestWrongUse:
    def test_a_producer_without_transactional_id_names_the_setting(self) -> None:
        world = TransactionWorld(version=2)
        machine = type(world.machine)(world.machine._line._backoff)
        for call in (machine.init, machine.begin, machine.commit, machine.abort):
            with pytest.raises(IllegalTransactionState, match="transactional_id"):
                call()

    def test_each_call_at_the_wrong_moment_names_the_right_one(self) -> None:
        world = TransactionWorld()
        for call in (world.machine.begin, world.commit, world.abort, lambda: world.send()):
            with pytest.raises(IllegalTransactionState, match=r"init_transactions\(\)"):
                call()
        world.finish(world.init())
        for call in (world.commit, world.abort, lambda: world.send(), lambda: world.send_offsets(1)):
            with pytest.raises(NotInTransaction, match=r"begin_transaction\(\)"):
                call()
        world.begin()
        with pytest.raises(IllegalTransactionState, match=r"commit_transaction\(\)"):
            world.machine.begin()

    @both
    def test_closing_aborts_what_is_open(self, version: int) -> None:
        world = TransactionWorld(version=version).started()
        world.send()
        world.step()
        world.step()
        operation = world.machine.abort_at_close()
        world.called(operation)
        world.finish(operation)
        assert world.coordinator.state == "CompleteAbort"

    def test_closing_waits_for_a_commit_that_is_under_way(self) -> None:
        world = TransactionWorld().started()
        world.send()
        operation = world.commit()
        assert world.machine.abort_at_close() is operation
