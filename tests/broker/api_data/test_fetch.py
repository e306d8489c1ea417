"""Fetch: what is returned, when it is returned, and what a session leaves out."""

from __future__ import annotations

from typing import Any

import pytest

from ottla_broker.pending import Pending
from ottla_wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from ottla_wire.messages.write_txn_markers import WritableTxnMarker, WritableTxnMarkerTopic, WriteTxnMarkersRequest
from ottla_wire.schema import Uuid
from support.fake_transactions import FakeTransactions

OUT_OF_RANGE, UNKNOWN_TOPIC, NOT_LEADER, STORAGE_ERROR = 1, 3, 6, 56
FENCED_EPOCH, UNKNOWN_EPOCH, UNKNOWN_TOPIC_ID, INCONSISTENT_TOPIC_ID = 74, 75, 100, 103
SESSION_NOT_FOUND, INVALID_SESSION_EPOCH, SESSION_TOPIC_ID_ERROR = 70, 71, 106


def fill(api: Any, make_batch: Any, *payloads: bytes, index: int = 0) -> None:
    for payload in payloads:
        assert api.produce({index: make_batch(payload)}, acks=1)[index].error_code == 0


class TestReading:
    @pytest.mark.parametrize("version", range(4, 13))
    def test_every_version_with_names(self, api: Any, make_batch: Any, version: int) -> None:
        fill(api, make_batch, b"a")
        entry = api.fetch_one(0, version=version)
        assert api.values(entry.records) == [b"a"]
        assert (entry.error_code, entry.high_watermark, entry.last_stable_offset) == (0, 1, 1)

    @pytest.mark.parametrize("version", range(13, 19))
    def test_every_version_with_ids(self, bench: Any, api_of: Any, make_batch: Any, version: int) -> None:
        topic_id = bench.create_topic("t")
        api = api_of(bench)
        fill(api, make_batch, b"a")
        response = api.fetch(0, version=version, topic_id=topic_id)
        assert response.responses[0].topic_id == topic_id
        assert api.values(response.responses[0].partitions[0].records) == [b"a"]

    def test_an_offset_inside_a_batch_gets_the_whole_batch(self, api: Any, make_batch: Any) -> None:
        api.produce(make_batch(b"a", b"b", b"c"))
        assert api.values(api.fetch_one(1).records) == [b"a", b"b", b"c"]

    def test_the_end_of_the_log_is_no_error_and_beyond_it_is(self, api: Any, make_batch: Any) -> None:
        fill(api, make_batch, b"a")
        assert (api.fetch_one(1).error_code, api.fetch_one(1).records) == (0, b"")
        beyond = api.fetch_one(2)
        assert (beyond.error_code, beyond.high_watermark, beyond.log_start_offset) == (OUT_OF_RANGE, -1, -1)

    def test_deleted_offsets_are_out_of_range(self, bench: Any, api: Any, make_batch: Any) -> None:
        fill(api, make_batch, b"a", b"b")
        bench.partition("t").delete_records(1)
        assert api.fetch_one(0).error_code == OUT_OF_RANGE
        assert api.fetch_one(1).log_start_offset == 1

    def test_what_is_above_the_high_watermark_is_not_there_yet(self, bench: Any, api: Any, make_batch: Any) -> None:
        fill(api, make_batch, b"a")
        bench.partition("t").advance_high_watermark = lambda: False
        fill(api, make_batch, b"b")
        assert api.values(api.fetch_one(0).records) == [b"a"]
        at_the_limit = api.fetch_one(1)
        assert (at_the_limit.error_code, at_the_limit.records) == (0, b"")

    def test_unknown_partitions_and_ids(self, bench: Any, api: Any) -> None:
        assert api.fetch({9: 0}).responses[0].partitions[0].error_code == UNKNOWN_TOPIC
        response = api.fetch(0, version=13, topic_id=Uuid(b"\x01" * 16))
        assert response.responses[0].partitions[0].error_code == UNKNOWN_TOPIC_ID

    def test_a_recreated_topic_is_not_read_by_its_old_id(self, bench: Any, api_of: Any, make_batch: Any) -> None:
        old = bench.create_topic("t")
        bench.delete_topic("t")
        new = bench.create_topic("t")
        assert old != new
        api = api_of(bench)
        assert api.fetch(0, version=13, topic_id=old).responses[0].partitions[0].error_code == UNKNOWN_TOPIC_ID
        # The metadata is ahead of the logs for a moment: same name, other id.
        bench.partition("t").topic_id = old
        response = api.fetch(0, version=13, topic_id=new)
        assert response.responses[0].partitions[0].error_code == INCONSISTENT_TOPIC_ID

    def test_read_committed_stops_at_an_open_transaction(self, bench: Any, api: Any, make_batch: Any) -> None:
        bench.broker.transactions = FakeTransactions()
        fill(api, make_batch, b"a")
        data = make_batch(b"b", producer_id=9, producer_epoch=0, base_sequence=0, transactional=True)
        assert api.produce(data, transactional_id="tx").error_code == 0
        fill(api, make_batch, b"c")
        committed = api.fetch_one(0, isolation_level=1)
        assert api.values(committed.records) == [b"a"]
        assert (committed.high_watermark, committed.last_stable_offset) == (3, 1)
        assert committed.aborted_transactions == []
        uncommitted = api.fetch_one(0)
        assert api.values(uncommitted.records) == [b"a", b"b", b"c"]
        assert uncommitted.aborted_transactions is None

    def test_read_committed_is_told_what_was_aborted(self, bench: Any, api: Any, make_batch: Any) -> None:
        bench.broker.transactions = FakeTransactions()
        data = make_batch(b"a", producer_id=9, producer_epoch=0, base_sequence=0, transactional=True)
        assert api.produce(data, transactional_id="tx").error_code == 0
        marker = WritableTxnMarker(
            producer_id=9,
            transaction_result=False,
            topics=[WritableTxnMarkerTopic(name="t", partition_indexes=[0])],
        )
        (written,) = bench.ask(WriteTxnMarkersRequest(markers=[marker]), 2).markers
        assert written.topics[0].partitions[0].error_code == 0
        entry = api.fetch_one(0, isolation_level=1)
        assert [(t.producer_id, t.first_offset) for t in entry.aborted_transactions] == [(9, 0)]
        assert entry.last_stable_offset == 2


class TestEpochs:
    def test_a_client_with_an_older_or_newer_epoch_is_told(self, bench: Any, api: Any) -> None:
        partition = bench.partition("t")
        partition.leader_epoch = 5
        assert api.fetch_one(0, current_leader_epoch=5).error_code == 0
        assert api.fetch_one(0, current_leader_epoch=-1).error_code == 0
        assert api.fetch_one(0, current_leader_epoch=4).error_code == FENCED_EPOCH
        assert api.fetch_one(0, current_leader_epoch=6).error_code == UNKNOWN_EPOCH

    def test_another_leader_is_named_with_its_address_from_version_16(self, bench: Any, api_of: Any) -> None:
        topic_id = bench.create_topic("t")
        api = api_of(bench)
        bench.partition("t").leader = 2
        response = api.fetch(0, version=16, topic_id=topic_id)
        entry = response.responses[0].partitions[0]
        assert entry.error_code == NOT_LEADER
        assert (entry.current_leader.leader_id, entry.current_leader.leader_epoch) == (1, 0)
        assert [(n.node_id, n.host, n.port) for n in response.node_endpoints] == [(1, "bench.example", 9092)]
        assert api.fetch(0, version=15, topic_id=topic_id).node_endpoints == []

    def test_a_reader_whose_last_epoch_ended_earlier_here_diverges(self, bench: Any, api: Any, make_batch: Any) -> None:
        fill(api, make_batch, b"a", b"b")
        partition = bench.partition("t")
        image = bench.controller.image.partition("t", 0)
        partition.apply(image._replace(leader_epoch=3))
        assert partition.log.leader_epochs.latest == 3
        diverging = api.fetch_one(3 - 1, last_fetched_epoch=0)
        assert diverging.diverging_epoch.epoch == -1
        assert api.fetch_one(2, last_fetched_epoch=3).diverging_epoch.epoch == -1
        entry = api.fetch_one(2, last_fetched_epoch=2, max_wait_ms=1000)
        assert (entry.diverging_epoch.epoch, entry.diverging_epoch.end_offset) == (0, 2)
        assert entry.records == b""

    def test_a_storage_error_has_another_name_for_old_clients(self, bench: Any, api: Any) -> None:
        bench.partition("t").log.flush_failed(OSError(5, "gone"))
        assert api.fetch_one(0, version=6).error_code == STORAGE_ERROR
        assert api.fetch_one(0, version=5).error_code == NOT_LEADER

    def test_a_node_that_is_no_replica_is_refused(self, api: Any) -> None:
        assert api.fetch_one(0, replica_id=9).error_code == NOT_LEADER
        assert api.fetch_one(0, replica_id=9, current_leader_epoch=0).error_code == UNKNOWN_EPOCH

    def test_a_debugging_consumer_reads_to_the_end_of_the_log(self, bench: Any, api: Any, make_batch: Any) -> None:
        bench.partition("t").advance_high_watermark = lambda: False
        fill(api, make_batch, b"a")
        assert api.values(api.fetch_one(0, replica_id=-2).records) == [b"a"]
        assert api.fetch_one(0).records == b""


class TestSizes:
    def test_the_first_batch_is_returned_however_large(self, api: Any, make_batch: Any) -> None:
        fill(api, make_batch, b"x" * 5000, b"y")
        entry = api.fetch_one(0, partition_max_bytes=10, max_bytes=10)
        assert api.values(entry.records) == [b"x" * 5000]

    def test_only_the_first_partition_with_data_may_exceed_a_limit(self, api: Any, make_batch: Any) -> None:
        for index in (1, 2):
            fill(api, make_batch, b"x" * 500, index=index)
        response = api.fetch({0: 0, 1: 0, 2: 0}, partition_max_bytes=100)
        assert [len(p.records) > 0 for p in response.responses[0].partitions] == [False, True, False]

    def test_the_response_limit_is_shared(self, api: Any, make_batch: Any) -> None:
        for index in (0, 1, 2):
            fill(api, make_batch, b"x" * 500, b"x" * 500, index=index)
        response = api.fetch({0: 0, 1: 0, 2: 0}, max_bytes=1800)
        counts = [len(api.values(p.records)) for p in response.responses[0].partitions]
        assert counts == [2, 1, 0]

    def test_the_brokers_own_limit_holds(self, make_bench: Any, api_of: Any, make_batch: Any) -> None:
        bench = make_bench(fetch_max_bytes=1024)
        bench.create_topic("t")
        api = api_of(bench)
        fill(api, make_batch, b"x" * 500, b"x" * 500, b"x" * 500)
        assert len(api.values(api.fetch_one(0).records)) == 1

    def test_a_full_response_still_tells_errors(self, bench: Any, api: Any, make_batch: Any) -> None:
        fill(api, make_batch, b"x" * 500)
        fill(api, make_batch, b"x" * 500, index=1)
        bench.partition("t", 1).delete_records(1)
        response = api.fetch({0: 0, 1: 0}, max_bytes=100)
        assert [p.error_code for p in response.responses[0].partitions] == [0, OUT_OF_RANGE]

    def test_batches_are_never_cut(self, api: Any, make_batch: Any) -> None:
        fill(api, make_batch, *(b"x" * 300 for _ in range(20)))
        for limit in range(0, 3000, 97):
            entry = api.fetch_one(0, partition_max_bytes=limit)
            whole = max(1, limit // 370)
            assert api.values(entry.records) == [b"x" * 300] * len(api.values(entry.records))
            assert abs(len(api.values(entry.records)) - whole) <= 1
            assert len(entry.records) <= max(limit, 400)

    def test_a_small_limit_serves_all_partitions_of_a_session_in_turn(
        self, bench: Any, api: Any, make_batch: Any
    ) -> None:
        for index in (0, 1, 2):
            fill(api, make_batch, *(b"x" * 500 for _ in range(3)), index=index)
        response = api.fetch({0: 0, 1: 0, 2: 0}, session=(0, 0), max_bytes=600)
        offsets, served = {0: 0, 1: 0, 2: 0}, []
        for epoch in range(1, 10):
            for entry in response.responses[0].partitions if response.responses else ():
                if entry.records:
                    served.append(entry.partition_index)
                    offsets[entry.partition_index] += len(api.values(entry.records))
            response = api.fetch(dict(offsets), session=(response.session_id, epoch), max_bytes=600)
        # The full request opens the session in the order it names; from then on each takes its turn.
        assert sorted(served[1:4]) == [0, 1, 2]
        assert sorted(served[4:7]) == [0, 1, 2]


class TestWaiting:
    def test_an_empty_fetch_waits_until_max_wait(self, bench: Any, api: Any) -> None:
        pending = api.fetch(0, max_wait_ms=500)
        bench.advance(499)
        assert not pending.done()
        bench.advance(1)
        entry = pending.result().responses[0].partitions[0]
        assert (entry.error_code, entry.records, entry.high_watermark) == (0, b"", 0)

    def test_data_wakes_it(self, bench: Any, api: Any, make_batch: Any) -> None:
        pending = api.fetch(0, max_wait_ms=500)
        fill(api, make_batch, b"a")
        assert api.values(pending.result().responses[0].partitions[0].records) == [b"a"]

    def test_an_append_that_is_not_committed_does_not(self, bench: Any, api: Any, make_batch: Any) -> None:
        pending = api.fetch(0, max_wait_ms=500)
        partition = bench.partition("t")
        partition.advance_high_watermark = lambda: False
        fill(api, make_batch, b"a")
        partition._on_moved(partition)
        bench.broker.settle(bench.clock.ms)
        assert not pending.done()
        del partition.advance_high_watermark
        partition.advance_high_watermark()
        bench.broker.settle(bench.clock.ms)
        assert api.values(pending.result().responses[0].partitions[0].records) == [b"a"]

    def test_it_waits_for_min_bytes_over_all_partitions(self, api: Any, make_batch: Any) -> None:
        pending = api.fetch({0: 0, 1: 0}, max_wait_ms=500, min_bytes=1500)
        fill(api, make_batch, b"x" * 600)
        assert not pending.done()
        fill(api, make_batch, b"x" * 100, index=2)
        assert not pending.done()
        fill(api, make_batch, b"x" * 900, index=1)
        assert pending.done()
        assert [len(p.records) > 0 for p in pending.result().responses[0].partitions] == [True, True]

    def test_what_exceeds_a_partitions_limit_does_not_count(self, api: Any, make_batch: Any) -> None:
        pending = api.fetch({0: 0, 1: 0}, max_wait_ms=500, min_bytes=1000, partition_max_bytes=700)
        fill(api, make_batch, *(b"x" * 600 for _ in range(3)))
        assert not pending.done()
        fill(api, make_batch, b"x" * 600, index=1)
        assert pending.done()

    def test_it_waits_on_if_less_became_visible_than_was_appended(self, bench: Any, api: Any, make_batch: Any) -> None:
        partition = bench.partition("t")
        pending = api.fetch(0, max_wait_ms=500, min_bytes=1000)
        partition.advance_high_watermark = lambda: False
        fill(api, make_batch, b"x" * 600, b"x" * 600)
        for visible in (1, 2):
            assert not pending.done()
            partition.log.high_watermark_moved(visible)
            partition._on_moved(partition)
            bench.broker.settle(bench.clock.ms)
        assert api.values(pending.result().responses[0].partitions[0].records) == [b"x" * 600] * 2

    def test_partitions_that_did_not_move_are_not_read_again(self, bench: Any, api: Any, make_batch: Any) -> None:
        bench.broker.settle(bench.clock.ms)
        read: list[int] = []
        for index in (0, 1, 2):
            partition = bench.partition("t", index)
            original = partition.read
            partition.read = lambda *a, _i=index, _o=original, **k: read.append(_i) or _o(*a, **k)
        pending = api.fetch({0: 0, 1: 0, 2: 0}, max_wait_ms=500)
        assert read == [0, 1, 2]
        fill(api, make_batch, b"a", index=1)
        assert read == [0, 1, 2, 1]
        entries = pending.result().responses[0].partitions
        assert [(p.partition_index, p.high_watermark) for p in entries] == [(0, 0), (1, 1), (2, 0)]

    def test_a_partition_that_is_named_twice_is_read_twice(self, bench: Any, api: Any, make_batch: Any) -> None:
        partitions = [FetchPartition(partition=0, fetch_offset=o, partition_max_bytes=1000) for o in (0, 1)]
        request = FetchRequest(
            max_bytes=1000, max_wait_ms=500, min_bytes=1, topics=[FetchTopic(topic="t", partitions=partitions)]
        )
        fill(api, make_batch, b"a")
        bench.partition("t").log.high_watermark = 0
        pending = bench.ask(request, 12)
        bench.partition("t").advance_high_watermark()
        bench.broker.settle(bench.clock.ms)
        entries = pending.result().responses[0].partitions
        assert [(p.high_watermark, len(p.records) > 0) for p in entries] == [(1, True), (1, False)]

    def test_min_bytes_above_max_bytes_is_max_bytes(self, api: Any, make_batch: Any) -> None:
        pending = api.fetch(0, max_wait_ms=500, min_bytes=10_000, max_bytes=500)
        fill(api, make_batch, b"x" * 600)
        assert pending.done()

    def test_a_request_of_several_partitions_wakes_it_once_with_all(
        self, bench: Any, api: Any, make_batch: Any
    ) -> None:
        pending = api.fetch({0: 0, 1: 0}, max_wait_ms=500)
        api.produce({0: make_batch(b"a"), 1: make_batch(b"b")}, acks=1)
        partitions = pending.result().responses[0].partitions
        assert [api.values(p.records) for p in partitions] == [[b"a"], [b"b"]]

    def test_many_small_appends_do_not_read_the_log_again_each_time(
        self, bench: Any, api: Any, make_batch: Any
    ) -> None:
        log = bench.partition("t").log
        reads = []
        read = log.read
        log.read = lambda *a, **k: reads.append(a) or read(*a, **k)
        pending = api.fetch(0, max_wait_ms=500, min_bytes=100 * 170)
        fill(api, make_batch, *(b"x" * 100 for _ in range(99)))
        assert not pending.done()
        assert len(reads) <= 2

    def test_an_error_is_answered_at_once_and_an_unknown_partition_is_not(self, bench: Any, api: Any) -> None:
        assert not isinstance(api.fetch({0: 99, 1: 0}, max_wait_ms=500), Pending)
        pending = api.fetch({0: 0, 9: 0}, max_wait_ms=500)
        assert isinstance(pending, Pending)
        bench.advance(500)
        assert [p.error_code for p in pending.result().responses[0].partitions] == [0, UNKNOWN_TOPIC]

    def test_a_lost_leadership_ends_the_wait(self, bench: Any, api: Any) -> None:
        pending = api.fetch(0, max_wait_ms=500)
        image = bench.controller.image.partition("t", 0)
        bench.partition("t").apply(image._replace(leader=2, leader_epoch=1))
        bench.broker.settle(bench.clock.ms)
        assert pending.result().responses[0].partitions[0].error_code == NOT_LEADER

    def test_a_deleted_topic_ends_the_wait(self, bench: Any, api: Any) -> None:
        pending = api.fetch(0, max_wait_ms=500)
        bench.delete_topic("t")
        bench.broker.settle(bench.clock.ms)
        assert pending.result().responses[0].partitions[0].error_code == UNKNOWN_TOPIC

    def test_a_stopping_broker_answers_with_what_there_is(self, bench: Any, api: Any) -> None:
        pending = api.fetch(0, max_wait_ms=500_000)
        bench.broker.drain(bench.clock.ms)
        assert pending.result().responses[0].partitions[0].error_code == 0


class TestSessions:
    def test_a_session_tells_changes_only(self, bench: Any, api: Any, make_batch: Any) -> None:
        first = api.fetch({0: 0, 1: 0, 2: 0}, session=(0, 0))
        assert first.session_id > 0
        assert api.told(first) == [0, 1, 2]
        fill(api, make_batch, b"a", index=1)
        second = api.fetch({}, session=(first.session_id, 1))
        assert (second.error_code, second.session_id, api.told(second)) == (0, first.session_id, [1])
        third = api.fetch({1: 1}, session=(first.session_id, 2))
        assert api.told(third) == []

    def test_a_parked_session_is_woken_by_a_partition_named_long_ago(
        self, bench: Any, api: Any, make_batch: Any
    ) -> None:
        first = api.fetch({0: 0, 1: 0}, session=(0, 0))
        pending = api.fetch({}, session=(first.session_id, 1), max_wait_ms=500)
        fill(api, make_batch, b"a", index=1)
        assert api.told(pending.result()) == [1]

    def test_an_empty_session_answer_leaves_at_max_wait(self, bench: Any, api: Any) -> None:
        first = api.fetch({0: 0}, session=(0, 0))
        pending = api.fetch({}, session=(first.session_id, 1), max_wait_ms=500)
        bench.advance(500)
        assert api.told(pending.result()) == []

    def test_forgotten_partitions_are_gone(self, api: Any, make_batch: Any) -> None:
        first = api.fetch({0: 0, 1: 0}, session=(0, 0))
        fill(api, make_batch, b"a", index=0)
        fill(api, make_batch, b"b", index=1)
        assert api.told(api.fetch({}, session=(first.session_id, 1), forgotten=[0])) == [1]

    def test_wrong_session_ids_and_epochs(self, api: Any) -> None:
        first = api.fetch({0: 0}, session=(0, 0))
        unknown = api.fetch({}, session=(first.session_id + 1, 1))
        assert (unknown.error_code, unknown.session_id, unknown.responses) == (SESSION_NOT_FOUND, 0, [])
        assert api.fetch({}, session=(first.session_id, 5)).error_code == INVALID_SESSION_EPOCH
        changed = api.fetch({}, session=(first.session_id, 1), version=13)
        assert changed.error_code == SESSION_TOPIC_ID_ERROR

    def test_an_unknown_topic_id_is_resolved_when_the_topic_comes(self, bench: Any, api_of: Any) -> None:
        api = api_of(bench)
        missing = Uuid(b"\x07" * 16)
        first = api.fetch({0: 0}, session=(0, 0), version=13, topic_id=missing)
        assert first.responses[0].partitions[0].error_code == UNKNOWN_TOPIC_ID
        topic_id = bench.create_topic("late")
        session = next(iter(bench.replicas.fetch_sessions))
        target = next(iter(session.targets.values()))
        target.topic_id = topic_id
        entry = api.fetch({}, session=(first.session_id, 1), version=13).responses[0].partitions[0]
        assert (entry.error_code, entry.high_watermark) == (0, 0)

    def test_an_error_of_one_round_is_followed_by_its_recovery(self, bench: Any, api: Any) -> None:
        first = api.fetch({0: 0}, session=(0, 0))
        partition = bench.partition("t")
        partition.leader = 2
        failed = api.fetch({}, session=(first.session_id, 1))
        assert failed.responses[0].partitions[0].error_code == NOT_LEADER
        partition.leader = 1
        recovered = api.fetch({}, session=(first.session_id, 2))
        assert [p.error_code for p in recovered.responses[0].partitions] == [0]
        assert api.fetch({}, session=(first.session_id, 3)).responses == []

    def test_a_fetch_without_session_leaves_none(self, bench: Any, api: Any) -> None:
        assert api.fetch({0: 0}).session_id == 0
        assert len(bench.replicas.fetch_sessions) == 0

    def test_neighbours_of_one_topic_share_an_entry(self, bench: Any, make_batch: Any) -> None:
        for name in ("a", "b"):
            bench.create_topic(name, 2)
        partitions = [FetchPartition(partition=i, fetch_offset=0, partition_max_bytes=100) for i in (0, 1)]
        request = FetchRequest(
            max_bytes=1000, topics=[FetchTopic(topic=n, partitions=list(partitions)) for n in ("a", "b")]
        )
        response = bench.ask(request, 12)
        assert [(t.topic, [p.partition_index for p in t.partitions]) for t in response.responses] == [
            ("a", [0, 1]),
            ("b", [0, 1]),
        ]
