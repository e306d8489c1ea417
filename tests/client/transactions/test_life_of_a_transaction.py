"""A transaction from begin to end, in both versions, with all that can happen to it on the way that is no error."""

from __future__ import annotations

import pytest

from ottla.client.producer.transaction_tables import RequestKind, TransactionState
from ottla.errors import SendError, TransactionAborted
from support.transaction_model import TransactionWorld

both = pytest.mark.parametrize("version", [1, 2])


def kinds_of(world: TransactionWorld) -> list[str]:
    """What was asked of coordinators, in order, without the search for them."""
    return [kind.name for kind in world.sent_kinds if kind is not RequestKind.FIND_COORDINATOR]


@both
def test_what_was_sent_is_read_after_the_commit_and_not_before(version: int) -> None:
    world = TransactionWorld(version=version).started()
    future = world.send()
    world.step()
    world.step()
    assert future.result(0).offset == 0
    assert world.committed() == []
    world.finish(world.commit())
    assert world.committed() == [b"00000000"]
    assert world.machine.state is TransactionState.READY


@both
def test_what_was_aborted_is_not_read_and_the_next_transaction_is(version: int) -> None:
    world = TransactionWorld(version=version).started()
    world.send()
    world.step()
    world.step()
    world.finish(world.abort())
    world.begin()
    world.send()
    world.finish(world.commit())
    assert world.committed() == [b"00000001"]


def test_version_1_adds_a_partition_before_it_writes_to_it_and_keeps_its_epoch() -> None:
    world = TransactionWorld(partitions=2, version=1).started()
    world.send(0)
    world.run()
    assert not world.in_flight[0], "nothing is written to a partition that the coordinator does not know"
    world.send(1)
    world.step()
    world.step()
    world.finish(world.commit())
    assert kinds_of(world) == ["INIT_PRODUCER_ID", "ADD_PARTITIONS", "ADD_PARTITIONS", "END"]
    assert world.machine.producer == (7000, 0)


def test_version_1_adds_partitions_that_come_together_in_one_request() -> None:
    world = TransactionWorld(partitions=3, version=1).started()
    for partition in range(3):
        world.send(partition)
    world.finish(world.commit())
    assert kinds_of(world) == ["INIT_PRODUCER_ID", "ADD_PARTITIONS", "END"]
    assert [world.committed(partition) for partition in range(3)] == [[b"00000000"], [b"00000001"], [b"00000002"]]


def test_version_1_goes_on_with_its_sequences_from_transaction_to_transaction() -> None:
    world = TransactionWorld(version=1).started()
    for _ in range(3):
        world.send()
        world.finish(world.commit())
        world.begin()
    world.send()
    (batch,) = world.batches
    world.step()
    world.step()
    assert (batch.producer.epoch, batch.base_sequence) == (0, 3)


def test_version_2_writes_without_asking_and_begins_each_transaction_with_sequence_0_of_a_new_epoch() -> None:
    world = TransactionWorld(version=2).started()
    seen = []
    for _ in range(3):
        world.send()
        world.run()
        (batch,) = world.batches
        world.finish(world.commit())
        seen.append((batch.producer.epoch, batch.base_sequence))
        world.begin()
    assert seen == [(0, 0), (1, 0), (2, 0)]
    assert kinds_of(world) == ["INIT_PRODUCER_ID", "END", "END", "END"]


def test_version_2_takes_over_the_producer_id_that_the_coordinator_gives_it_when_epochs_are_used_up() -> None:
    world = TransactionWorld(version=2).started()
    world.send()
    world.step()
    operation = world.commit()
    request = world.asked[0]
    assert request.kind is RequestKind.END
    world.coordinator.producer_id, world.coordinator.epoch, world.coordinator.last_epoch = 9000, 0, 32766
    world.coordinator.state = "CompleteCommit"
    world.asked.clear()
    answer = type(world.coordinator.end(request.message, 2))(producer_id=9000, producer_epoch=0)
    world.sender.request_answered(request, answer, None, world.now_ms)
    assert operation.is_done
    assert world.machine.producer == (9000, 0)


@both
def test_end_txn_waits_for_every_batch_and_leaves_with_the_last_answer(version: int) -> None:
    world = TransactionWorld(partitions=2, version=version).started()
    world.send(0)
    world.send(1)
    world.step()
    world.send(0)
    operation = world.commit()
    while world.asked:
        world.answer()
    assert world.in_flight[0]
    assert RequestKind.END not in world.sent_kinds
    while world.in_flight[0]:
        world.work(0)
        world.deliver(0)
    world.run()  # no time has passed
    assert world.sent_kinds[-1] is RequestKind.END
    assert not operation.is_done
    world.answer()
    assert operation.is_done


@both
def test_a_commit_does_not_linger(version: int) -> None:
    world = TransactionWorld(version=version, linger_ms=10_000, delivery_timeout_ms=60_000).started()
    world.send()
    operation = world.commit()
    began_ms = world.now_ms
    world.finish(operation)
    assert world.now_ms - began_ms < 1_000
    assert world.committed() == [b"00000000"]


@both
def test_records_that_wait_for_metadata_are_committed_with_the_others(version: int) -> None:
    world = TransactionWorld(partitions=1, version=version)
    world.accumulator.forget_idle_topics(world.now_ms + 10**9)
    world.started()
    future = world.send(None, key=b"k")
    operation = world.commit()
    world.step()
    world.step()
    assert RequestKind.END not in world.sent_kinds or future.done()
    world.bring_metadata()
    world.finish(operation)
    assert future.result(0).offset == 0
    assert world.committed() == [b"00000000"]


@both
def test_an_abort_drops_what_was_not_sent_and_says_so(version: int) -> None:
    world = TransactionWorld(version=version, linger_ms=10_000, delivery_timeout_ms=60_000).started()
    future = world.send()
    world.finish(world.abort())
    error = future.exception(0)
    assert isinstance(error, SendError)
    assert isinstance(error.__cause__, TransactionAborted)
    assert world.partitions[0].log == []
    assert not world.batches
    assert RequestKind.END not in world.sent_kinds or version == 1


@both
def test_an_abort_waits_for_what_is_on_the_wire(version: int) -> None:
    world = TransactionWorld(version=version).started()
    first = world.send()
    world.step()
    world.send()
    world.run()
    assert world.in_flight[0]
    world.send()
    operation = world.abort()
    assert RequestKind.END not in world.sent_kinds
    world.finish(operation)
    assert first.done()
    assert world.committed() == []
    assert world.coordinator.state == "CompleteAbort"


@both
def test_a_transaction_in_which_nothing_was_sent_asks_nobody(version: int) -> None:
    world = TransactionWorld(version=version).started()
    asked = len(world.sent_kinds)
    for end in (world.commit, world.abort):
        operation = end()
        assert operation.is_done
        operation.acknowledged = True
        assert world.machine.state is TransactionState.READY
        world.begin()
    assert len(world.sent_kinds) == asked


def test_version_2_ends_a_transaction_of_which_the_coordinator_may_have_heard() -> None:
    world = TransactionWorld(version=2).started()
    world.send()
    world.run()
    world.disconnect(0, worked_on=1)
    assert world.coordinator.state == "Ongoing"
    world.finish(world.abort())
    assert world.coordinator.state == "CompleteAbort"
    assert world.machine.producer.epoch == 1


def test_version_2_may_abort_what_never_arrived() -> None:
    world = TransactionWorld(version=2).started()
    world.send()
    world.run()
    world.disconnect(0, worked_on=0)
    world.finish(world.abort())
    world.begin()
    world.send()
    world.finish(world.commit())
    assert world.committed() == [b"00000001"]


@pytest.mark.parametrize("arrived", [True, False])
def test_version_1_aborts_a_transaction_whose_first_request_was_not_answered(arrived: bool) -> None:
    world = TransactionWorld(version=1).started()
    world.send()
    world.run()
    world.answer(lost=True, works=arrived)
    world.finish(world.abort())
    assert world.coordinator.state != "Ongoing", "nothing may stay open until it times out"
    world.begin()
    world.send()
    world.finish(world.commit())
    assert world.committed() == [b"00000001"]


def test_version_1_asks_for_its_next_epoch_after_a_batch_was_given_up() -> None:
    """Whether its numbers were used is not known, and the next transaction would continue them."""
    world = TransactionWorld(version=1).started()
    world.send()
    world.step()
    world.step()
    world.send()
    world.run()
    world.disconnect(0, worked_on=1)
    world.finish(world.abort())
    assert world.machine.producer.epoch == 1
    world.begin()
    world.send()
    (batch,) = world.batches
    world.finish(world.commit())
    assert (batch.producer.epoch, batch.base_sequence) == (1, 0)
    assert world.committed() == [b"00000002"]


@both
def test_offsets_are_committed_with_the_transaction(version: int) -> None:
    world = TransactionWorld(version=version).started()
    world.finish(world.send_offsets(5))
    assert world.coordinator.committed_offsets == {}
    world.finish(world.commit())
    assert world.coordinator.committed_offsets == {("input", 0): 5}
    expected = ["COMMIT_OFFSETS", "END"] if version == 2 else ["ADD_OFFSETS", "COMMIT_OFFSETS", "END"]
    assert kinds_of(world)[1:] == expected


@both
def test_offsets_of_an_aborted_transaction_are_not_committed(version: int) -> None:
    world = TransactionWorld(version=version).started()
    world.finish(world.send_offsets(5))
    world.finish(world.abort())
    assert world.coordinator.committed_offsets == {}
    assert world.coordinator.state == "CompleteAbort"


@both
def test_a_commit_waits_for_offsets_that_nobody_waited_for(version: int) -> None:
    world = TransactionWorld(version=version).started()
    world.send_offsets(5)
    world.finish(world.commit())
    assert world.coordinator.committed_offsets == {("input", 0): 5}


def test_no_offsets_are_no_transaction() -> None:
    world = TransactionWorld().started()
    assert world.machine.send_offsets({}, None, world.now_ms).is_done
    assert world.commit().is_done


def test_requests_leave_in_the_order_of_their_kinds() -> None:
    world = TransactionWorld(version=1).started()
    world.send_offsets(5)
    world.answer()  # the offsets' group takes part
    world.send()
    operation = world.commit()
    world.finish(operation)
    assert kinds_of(world) == ["INIT_PRODUCER_ID", "ADD_OFFSETS", "ADD_PARTITIONS", "COMMIT_OFFSETS", "END"]


@both
def test_a_batch_that_is_too_large_goes_in_parts_that_are_committed_together(version: int) -> None:
    world = TransactionWorld(version=version).started()
    for _ in range(6):
        world.send()
    world.run()
    while world.asked:
        world.answer()
    world.size_limit = 130
    world.finish(world.commit())
    assert world.sender.counters.batches_split >= 1
    assert world.committed() == [b"%08d" % number for number in range(6)]


@both
def test_memory_comes_back(version: int) -> None:
    world = TransactionWorld(version=version).started()
    for end in (world.commit, world.abort, world.commit):
        for _ in range(20):
            world.send()
        world.finish(end())
        world.begin()
    assert world.accumulator.free_bytes == world.config.buffer_memory
