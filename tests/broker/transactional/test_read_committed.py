"""What readers see of transactions: the last stable offset, the aborted list, when a fetch is woken, ListOffsets.

Pitfalls 25 and 27 of a reimplementation; the log's side of 27 is in tests/broker/log/test_abort_index.py.
"""

from __future__ import annotations

from typing import Any

from ottla_broker.pending import Pending


class TestLastStableOffset:
    def test_nothing_behind_an_open_transaction_is_read(self, stage: Any) -> None:
        one, other = stage.producer("one", 1), stage.producer("other", 2)
        one.sends(b"a")
        other.sends(b"b")
        other.ends(commit=True)
        assert stage.values() == []
        assert (stage.latest(isolation=1), stage.latest(isolation=0)) == (0, 3)
        one.ends(commit=True)
        assert stage.values() == [b"a", b"b"]

    def test_it_waits_for_the_oldest_of_several(self, stage: Any) -> None:
        producers = [stage.producer(f"tx-{number}", number) for number in range(4)]
        for producer in producers:
            producer.sends(b"%d" % producer.id)
        for number, stable in ((2, 0), (0, 1), (3, 1), (1, 8)):
            producers[number].ends(commit=number != 3)
            assert stage.fetch().last_stable_offset == stable
        assert stage.values() == [b"0", b"1", b"2"]

    def test_records_outside_of_transactions_wait_too(self, stage: Any) -> None:
        producer = stage.producer()
        producer.sends(b"a")
        other = stage.producer("", 3)
        other.requests({0: other.batch(b"plain", producer_id=-1, producer_epoch=-1, sequence=-1, transactional=False)})
        assert stage.values() == []
        producer.ends(commit=False)
        assert stage.values() == [b"plain"]

    def test_readers_of_everything_are_told_it_and_wait_for_nothing(self, stage: Any) -> None:
        stage.producer().sends(b"a")
        entry = stage.fetch(isolation=0)
        assert (entry.last_stable_offset, entry.high_watermark) == (0, 1)
        assert entry.records
        assert entry.aborted_transactions is None


class TestAbortedList:
    def test_a_fetch_names_the_aborted_transactions_it_touches_and_no_others(self, stage: Any) -> None:
        producers = [stage.producer(f"tx-{number}", number) for number in range(3)]
        for producer in producers:  # [0 m][2 m][4 m]
            producer.sends(b"x")
            producer.ends(commit=False)
        for offset, ids in ((0, [0, 1, 2]), (1, [0, 1, 2]), (2, [1, 2]), (5, [2])):
            assert [found.producer_id for found in stage.fetch(offset).aborted_transactions] == ids

    def test_a_fetch_may_begin_at_a_marker(self, stage: Any) -> None:
        producer = stage.producer()
        producer.sends(b"a")
        producer.ends(commit=False)
        producer.sends(b"b")
        producer.ends(commit=True)
        assert stage.values(1) == [b"b"]

    def test_a_marker_without_a_transaction_is_in_no_list(self, stage: Any) -> None:
        """Pitfall 27: clients must not be surprised by an abort marker that ends nothing."""
        stage.writes_marker(9, commit=False, epoch=1)
        entry = stage.fetch()
        assert (entry.aborted_transactions, entry.last_stable_offset) == ([], 1)
        assert stage.values() == []

    def test_only_the_end_is_left_of_a_partition_of_markers(self, stage: Any) -> None:
        """Pitfall 25: a reader at the tail of markers gets past them, and "latest" is behind them."""
        producer = stage.producer()
        producer.sends(b"a")
        producer.ends(commit=False)
        assert stage.latest(isolation=1) == 2
        entry = stage.fetch(2)
        assert (entry.error_code, entry.records) == (0, b"")


class TestLongPoll:
    def test_a_reader_is_woken_by_the_marker_not_by_the_records(self, stage: Any) -> None:
        producer = stage.producer()
        waiting = stage.fetch(max_wait_ms=500)
        assert isinstance(waiting, Pending)
        producer.sends(b"a")
        assert not waiting.done()
        producer.ends(commit=True)
        assert waiting.result().responses[0].partitions[0].last_stable_offset == 2

    def test_what_was_there_before_it_waited_counts(self, stage: Any) -> None:
        """The marker is smaller than what it makes readable: its size says nothing about what is to be read."""
        producer = stage.producer()
        producer.sends(b"x" * 5000)
        waiting = stage.fetch(max_wait_ms=500, min_bytes=4000)
        producer.ends(commit=True)
        assert len(waiting.result().responses[0].partitions[0].records) > 5000

    def test_a_reader_that_wants_more_goes_on_waiting(self, stage: Any) -> None:
        producer = stage.producer()
        producer.sends(b"x")
        waiting = stage.fetch(max_wait_ms=500, min_bytes=4000)
        producer.ends(commit=True)
        assert not waiting.done()
        producer.sends(b"x" * 5000)
        assert not waiting.done()
        producer.ends(commit=True)
        assert waiting.done()

    def test_an_abort_wakes_too_for_the_reader_has_to_get_past_it(self, stage: Any) -> None:
        producer = stage.producer()
        producer.sends(b"x")
        waiting = stage.fetch(max_wait_ms=500)
        producer.ends(commit=False)
        (aborted,) = waiting.result().responses[0].partitions[0].aborted_transactions
        assert (aborted.producer_id, aborted.first_offset) == (9, 0)

    def test_replicas_lagging_behind_the_marker_do_not_wake_early(self, stage: Any) -> None:
        producer = stage.producer()
        producer.sends(b"a")
        waiting = stage.fetch(max_wait_ms=500)
        catch_up = stage.stops_replicating()
        stage.writes_marker(9, commit=True, epoch=1)
        assert not waiting.done()
        catch_up()
        assert waiting.done()


class TestListOffsets:
    def test_latest_depends_on_the_isolation(self, stage: Any) -> None:
        producer = stage.producer()
        producer.sends(b"a", b"b")
        assert (stage.latest(isolation=0), stage.latest(isolation=1)) == (2, 0)
        producer.ends(commit=True)
        assert (stage.latest(isolation=0), stage.latest(isolation=1)) == (3, 3)

    def test_a_time_is_only_found_where_the_reader_may_read(self, stage: Any) -> None:
        producer = stage.producer()
        wall_ms = stage.bench.clock.wall_ms()
        producer.sends(b"a")
        assert stage.latest(isolation=0, timestamp=wall_ms) == 0
        assert stage.latest(isolation=1, timestamp=wall_ms) == -1
        producer.ends(commit=True)
        assert stage.latest(isolation=1, timestamp=wall_ms) == 0

    def test_the_largest_time_is_only_found_where_the_reader_may_read(self, stage: Any) -> None:
        producer = stage.producer()
        producer.sends(b"a")
        assert stage.latest(isolation=1, timestamp=-3) == -1
        producer.ends(commit=True)
        assert stage.latest(isolation=1, timestamp=-3) == 0


class TestDescribeProducers:
    def test_an_open_transaction_shows_where_it_begins(self, stage: Any) -> None:
        producer = stage.producer(epoch=2)
        other = stage.producer("other", 10)
        other.sends(b"x")
        producer.sends(b"a", b"b")
        described = {entry.producer_id: entry for entry in stage.described()}
        entry = described[9]
        assert (entry.producer_epoch, entry.last_sequence, entry.current_txn_start_offset) == (2, 1, 1)
        assert (entry.coordinator_epoch, entry.last_timestamp) == (-1, stage.bench.clock.wall_ms())

    def test_a_marker_shows_its_coordinator_and_its_time(self, stage: Any) -> None:
        producer = stage.producer(version=11)
        stage.coordinator.partitions["tx"].add(("t", 0))
        producer.sends(b"a")
        stage.bench.advance(5_000)
        producer.ends(commit=True, coordinator_epoch=8)
        (entry,) = stage.described()
        assert (entry.producer_epoch, entry.last_sequence, entry.current_txn_start_offset) == (0, 0, -1)
        assert (entry.coordinator_epoch, entry.last_timestamp) == (8, stage.bench.clock.wall_ms())

    def test_a_marker_of_version_2_leaves_the_next_epoch_without_a_sequence(self, stage: Any) -> None:
        producer = stage.producer()
        producer.sends(b"a")
        producer.ends(commit=True)
        (entry,) = stage.described()
        assert (entry.producer_epoch, entry.last_sequence, entry.current_txn_start_offset) == (1, -1, -1)

    def test_a_producer_with_an_open_transaction_is_not_forgotten(self, stage: Any) -> None:
        """Pitfall 15: with records of long ago, too."""
        producer = stage.producer()
        old = producer.batch(b"a", sequence=0)
        log = stage.bench.partition("t").log
        producer.requests({0: old})
        day_ms = 86_400_000
        log.producers.remove_expired(stage.bench.clock.wall_ms() + 3 * day_ms)
        assert [entry.current_txn_start_offset for entry in stage.described()] == [0]
        producer.ends(commit=True)
        log.producers.remove_expired(stage.bench.clock.wall_ms() + 3 * day_ms)
        assert stage.described() == []
