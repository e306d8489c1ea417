"""Which version of transactions a producer speaks, and when that changes: between two of them, never inside of one."""

from __future__ import annotations

from ottla.client.producer.transaction_tables import RequestKind
from support.transaction_model import TransactionWorld


def committed_one(world: TransactionWorld, value: bytes) -> None:
    world.begin()
    world.send(value=value)
    world.finish(world.commit())


def kinds(world: TransactionWorld) -> list[str]:
    return [kind.name for kind in world.sent_kinds if kind is not RequestKind.FIND_COORDINATOR]


def test_without_the_feature_a_producer_speaks_version_1() -> None:
    world = TransactionWorld(version=0).started()
    assert not world.machine.is_version_2
    assert world.machine.produce_versions == (3, 11)


def test_with_the_feature_it_speaks_version_2_from_its_first_transaction_on() -> None:
    world = TransactionWorld(version=2).started()
    assert world.machine.is_version_2
    assert world.machine.produce_versions[0] == 12


def test_a_feature_that_appears_inside_of_a_transaction_counts_after_it() -> None:
    """A partition that is written to without being added, by a producer that has added others, would be lost."""
    world = TransactionWorld(partitions=2, version=1).started()
    world.send(0)
    world.step()
    world.step()
    world.finalize(2, epoch=9)
    world.send(1)
    world.run()
    assert world.asked[0].kind is RequestKind.ADD_PARTITIONS
    operation = world.commit()
    world.finish(operation)
    assert world.committed(0) == [b"00000000"]
    assert world.committed(1) == [b"00000001"]
    assert kinds(world).count("END") == 1
    world.step()
    committed_one(world, b"2")
    assert world.machine.is_version_2
    assert kinds(world)[-3:] == ["END", "INIT_PRODUCER_ID", "END"]
    assert world.committed(0) == [b"00000000", b"2"]


def test_the_first_transaction_of_version_2_has_an_epoch_of_its_own() -> None:
    """Or a late write of version 1 would be taken for a part of it."""
    world = TransactionWorld(version=1).started()
    world.send()
    world.finalize(2, epoch=9)
    world.finish(world.commit())
    world.begin()
    assert world.machine.producer.epoch == 1
    world.send()
    world.run()
    (batch,) = world.batches
    assert (batch.producer.epoch, batch.base_sequence) == (1, 0)


def test_a_commit_is_told_before_the_next_epoch_is_there() -> None:
    """It is committed; what the next transaction needs is the next one's business."""
    world = TransactionWorld(version=1).started()
    world.send()
    world.finalize(2, epoch=9)
    operation = world.commit()
    while not operation.is_done:
        world.tick()
        if world.asked and not operation.is_done:
            assert world.asked[0].kind is not RequestKind.INIT_PRODUCER_ID
            world.answer()
    operation.acknowledged = True
    waits = world.machine.begin()
    assert waits is not None
    world.run()
    world.finish(waits)
    assert world.machine.begin() is None


def test_an_older_answer_changes_nothing() -> None:
    world = TransactionWorld(version=2).started()
    world.finalize(0, epoch=0)
    world.send()
    world.finish(world.commit())
    assert world.machine.is_version_2


def test_a_feature_that_is_taken_back_counts_from_the_next_transaction_on() -> None:
    world = TransactionWorld(version=2).started()
    world.send()
    world.step()
    world.step()
    world.finalize(1, epoch=9)
    world.finish(world.commit())
    committed_one(world, b"2")
    assert kinds(world) == ["INIT_PRODUCER_ID", "END", "ADD_PARTITIONS", "END"]
    assert world.committed() == [b"00000000", b"2"]


def test_a_change_that_is_seen_between_transactions_waits_for_the_end_of_the_next_one() -> None:
    """`begin` asks nobody; a transaction more in the old version does no harm."""
    world = TransactionWorld(version=1).started()
    world.send()
    world.finish(world.commit())
    world.finalize(2, epoch=9)
    committed_one(world, b"2")
    assert kinds(world) == ["INIT_PRODUCER_ID", "ADD_PARTITIONS", "END", "ADD_PARTITIONS", "END", "INIT_PRODUCER_ID"]
    committed_one(world, b"3")
    assert kinds(world)[-2:] == ["INIT_PRODUCER_ID", "END"]
    assert world.committed() == [b"00000000", b"2", b"3"]
