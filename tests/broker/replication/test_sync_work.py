"""Group fsyncs: what goes into one, and what its end means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ottla_broker.log.producer_state import AppendOrigin
from ottla_broker.replication.replica_manager import ESTABLISHED_AT_ONCE, ESTABLISHED_BESIDE_WRITES
from ottla_wire.errors import KafkaStorageError
from support.faulty_files import FaultyFiles


class SyncBench:
    """A broker on the bench whose files count their fsyncs and may fail."""

    def __init__(self, bench: Any, make_records: Callable[..., bytes]) -> None:
        self.bench = bench
        self.files = CountingFiles()
        bench.storage.files = self.files
        self._records = make_records

    def append(self, topic: str, index: int = 0) -> None:
        batch = bytearray(self._records(b"value"))
        wall_ms = self.bench.clock.wall_ms()
        self.bench.partition(topic, index).append(batch, acks=-1, wall_ms=wall_ms, origin=AppendOrigin.CLIENT)

    def established(self, topic: str) -> int:
        return sum(partition.log.is_established for partition in self.bench.replicas if partition.topic == topic)


class CountingFiles(FaultyFiles):
    def __init__(self) -> None:
        super().__init__()
        self.synced: list[Path] = []

    def check(self, operation: str, path: Path) -> None:
        super().check(operation, path)
        if operation == "sync":
            self.synced.append(path)


@pytest.fixture
def sync(make_bench: Any, make_records: Any) -> SyncBench:
    return SyncBench(make_bench(), make_records)


def test_nothing_new_is_nothing_to_do(sync: SyncBench) -> None:
    assert sync.bench.replicas.take_sync_work() is None


def test_new_folders_are_made_durable_so_many_at_once_and_their_parent_once(sync: SyncBench) -> None:
    many = ESTABLISHED_AT_ONCE * 2 + 1
    sync.bench.create_topic("orders", partitions=many)
    counts = []
    while (work := sync.bench.replicas.take_sync_work()) is not None:
        sync.files.synced.clear()
        work.run()
        assert sync.files.synced.count(sync.bench.storage.folder) == 1
        before = sync.established("orders")
        work.finish()
        counts.append(sync.established("orders") - before)
        assert len(sync.files.synced) == 2 * counts[-1] + 1  # each folder, and the topic's id in it
    assert counts == [ESTABLISHED_AT_ONCE, ESTABLISHED_AT_ONCE, 1]


def test_writes_that_are_waited_for_all_go_into_one_with_only_a_few_new_folders(sync: SyncBench) -> None:
    writes = ESTABLISHED_AT_ONCE + 8
    sync.bench.create_topic("awaited", partitions=writes, flush_messages="1")
    sync.bench.create_topic("orders", partitions=ESTABLISHED_AT_ONCE)
    for index in range(writes):
        sync.append("awaited", index)
    work = sync.bench.replicas.take_sync_work()
    work.run()
    assert all(sync.bench.partition("awaited", index).high_watermark == 0 for index in range(writes))
    work.finish()
    assert all(sync.bench.partition("awaited", index).high_watermark == 1 for index in range(writes))
    assert sync.established("orders") == ESTABLISHED_BESIDE_WRITES
    rest = sync.bench.replicas.take_sync_work()
    rest.run()
    rest.finish()
    assert sync.established("orders") == ESTABLISHED_AT_ONCE
    assert sync.bench.replicas.take_sync_work() is None


def test_what_is_written_during_an_fsync_waits_for_the_next_one(sync: SyncBench) -> None:
    sync.bench.create_topic("awaited", flush_messages="1")
    sync.append("awaited")
    work = sync.bench.replicas.take_sync_work()
    sync.append("awaited")
    work.run()
    work.finish()
    partition = sync.bench.partition("awaited")
    assert (partition.high_watermark, partition.log.log_end_offset) == (1, 2)
    work = sync.bench.replicas.take_sync_work()
    work.run()
    work.finish()
    assert partition.high_watermark == 2


def test_one_fsync_that_fails_is_not_the_others_failure(sync: SyncBench) -> None:
    sync.bench.create_topic("awaited", partitions=2, flush_messages="1")
    for index in range(2):
        sync.append("awaited", index)
    work = sync.bench.replicas.take_sync_work()
    sync.files.fail("sync", "awaited-0/00000000000000000000.log")
    work.run()
    work.finish()
    with pytest.raises(KafkaStorageError, match="Input/output error"):
        sync.bench.partition("awaited", 0).check_leader()
    assert sync.bench.partition("awaited", 0).high_watermark == 0
    assert sync.bench.partition("awaited", 1).high_watermark == 1


def test_a_parent_that_cannot_be_fsynced_fails_all_that_are_new_in_it(sync: SyncBench) -> None:
    sync.bench.create_topic("orders", partitions=3)
    work = sync.bench.replicas.take_sync_work()
    sync.files.fail("sync", sync.bench.storage.folder.name)
    work.run()
    work.finish()
    assert sync.established("orders") == 0
    assert all(partition.log.offline is not None for partition in sync.bench.replicas)
