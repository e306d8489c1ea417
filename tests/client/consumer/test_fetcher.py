"""Fetching and keeping positions against brokers that say whatever a test wants them to."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ottla.client.backoff import Backoff
from ottla.client.cluster import Lane
from ottla.client.config import ConsumerConfig
from ottla.client.consumer.collector import Collector
from ottla.client.consumer.fetcher import Fetcher
from ottla.client.consumer.offset_lookup import OffsetLookup
from ottla.client.consumer.position_keeper import PositionKeeper
from ottla.client.consumer.shared import Shared
from ottla.client.consumer.subscription_state import FetchState
from ottla.client.metadata import Metadata
from ottla.client.topic_partition import OffsetAndMetadata, TopicPartition
from ottla.errors import Disconnected, LogTruncation, OffsetsOutOfRange, TopicAuthorizationFailed, error_for
from ottla_wire.messages.fetch import (
    AbortedTransaction,
    FetchableTopicResponse,
    FetchRequest,
    FetchResponse,
    LeaderIdAndEpoch,
    NodeEndpoint,
    PartitionData,
)
from ottla_wire.messages.list_offsets import (
    ListOffsetsPartitionResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
    ListOffsetsTopicResponse,
)
from ottla_wire.messages.metadata import (
    MetadataResponse,
    MetadataResponseBroker,
    MetadataResponsePartition,
    MetadataResponseTopic,
)
from ottla_wire.messages.offset_for_leader_epoch import (
    EpochEndOffset,
    OffsetForLeaderEpochResponse,
    OffsetForLeaderTopicResult,
)
from ottla_wire.schema import Uuid

A0, A1 = TopicPartition("a", 0), TopicPartition("a", 1)
TOPIC_ID = Uuid(b"a" * 16)
NOT_LEADER, OFFSET_OUT_OF_RANGE, TOPIC_AUTH, CORRUPT, SESSION_ID_NOT_FOUND = 6, 1, 29, 2, 70


class FakeCluster:
    """Two brokers: 1 leads a-0 and a-1 in epoch 5. Each request is answered by `answers`, one after the other."""

    def __init__(self) -> None:
        self.metadata = Metadata()
        self.config = ConsumerConfig()
        self.requests: list[tuple[int, Any]] = []
        self.answers: list[Any] = []
        self.refreshes = 0
        self.max_versions: list[int | None] = []
        self.parked: list[asyncio.Future[Any]] = []
        self.lead(1, 5)

    def lead(self, leader: int, epoch: int, topic_id: Uuid = TOPIC_ID) -> None:
        partitions = [
            MetadataResponsePartition(partition_index=index, leader_id=leader, leader_epoch=epoch) for index in (0, 1)
        ]
        self.metadata.update(
            MetadataResponse(
                brokers=[MetadataResponseBroker(node_id=node, host="h", port=node) for node in (1, 2)],
                topics=[MetadataResponseTopic(name="a", topic_id=topic_id, partitions=partitions)],
            )
        )

    def now_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000)

    def leader(self, topic: str, partition: int) -> int | None:
        return self.metadata.leader(topic, partition)

    def request_refresh(self, topics: Any = ()) -> None:
        self.refreshes += 1

    def close_lane(self, lane: Lane) -> None:
        pass

    async def send(self, node_id: int, request: Any, **options: Any) -> Any:
        self.requests.append((node_id, request))
        self.max_versions.append(options.get("max_version"))
        await asyncio.sleep(0)
        if not self.answers:
            # a long poll: nothing to say for as long as the test takes
            self.parked.append(asyncio.get_running_loop().create_future())
            return await self.parked[-1]
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def fetches(self) -> list[FetchRequest]:
        return [request for _, request in self.requests if isinstance(request, FetchRequest)]


class World:
    """A consumer without its polling side."""

    def __init__(self, **settings: Any) -> None:
        self.shared = Shared(
            ConsumerConfig(retry_backoff_ms=1, **{"auto_offset_reset": "earliest", **settings}), random.Random(1)
        )
        self.cluster = FakeCluster()
        backoff = Backoff(5, 10, random.Random(1))
        lookup = OffsetLookup(self.cluster, read_committed=False, request_timeout_ms=1_000)  # type: ignore[arg-type]
        self.fetcher = Fetcher(
            self.shared,
            self.cluster,  # type: ignore[arg-type]
            Lane("c"),
            backoff,
            lambda: self.keeper.step(),
        )
        self.keeper = PositionKeeper(self.shared, self.cluster, lookup, None, backoff, self.fetcher.wake)  # type: ignore[arg-type]
        self.collector = Collector(
            self.shared.lock, self.shared.subscription, self.shared.buffer, give_way=self.shared.receiving.give_way
        )

    def assign(self, *partitions: TopicPartition, offset: int | None = 0, epoch: int | None = None) -> None:
        self.shared.subscription.assign_by_user(partitions)
        if offset is not None:
            for partition in partitions:
                self.shared.subscription.seek(partition, offset, epoch)

    def wake(self) -> None:
        self.keeper.release()
        self.fetcher.wake()

    async def settle(self) -> None:
        """Let everything happen that does not need an answer which is not there."""
        for _ in range(30):
            await asyncio.sleep(0.001)

    def state(self, partition: TopicPartition = A0) -> Any:
        return self.shared.subscription.require(partition)

    def collected(self) -> list[tuple[int, int]]:
        return [(record.partition, record.offset) for record in self.collector.collect(1000)]


def fetched(*partitions: PartitionData, session: int = 7, error: int = 0, nodes: Any = ()) -> FetchResponse:
    topics = [FetchableTopicResponse(topic_id=TOPIC_ID, partitions=list(partitions))] if partitions else []
    return FetchResponse(error_code=error, session_id=session, responses=topics, node_endpoints=list(nodes))


def data(index: int, records: bytes = b"", error: int = 0, **fields: Any) -> PartitionData:
    return PartitionData(
        partition_index=index,
        error_code=error,
        high_watermark=100,
        last_stable_offset=90,
        records=memoryview(records),
        **fields,
    )


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    def run(log: SimpleNamespace) -> None:
        async def guarded() -> None:
            async with asyncio.timeout(20):
                await test(log)

        asyncio.run(guarded())

    run.__name__ = test.__name__
    return run


@in_loop
async def test_one_request_is_under_way_per_broker_and_it_names_what_has_room(log: SimpleNamespace) -> None:
    world = World()
    world.assign(A0, A1, offset=3)
    world.wake()
    world.wake()
    await world.settle()
    ((node, request),) = world.cluster.requests
    (topic,) = request.topics
    assert (node, topic.topic_id, request.session_epoch) == (1, TOPIC_ID, 0)
    assert [(p.partition, p.fetch_offset, p.current_leader_epoch) for p in topic.partitions] == [(0, 3, 5), (1, 3, 5)]


@in_loop
async def test_records_are_buffered_and_the_next_chunk_is_fetched_ahead(log: SimpleNamespace) -> None:
    world = World()
    world.assign(A0)
    world.cluster.answers = [fetched(data(0, log.batch(0, [b"x"] * 3)))]
    world.wake()
    await world.settle()
    second = world.cluster.fetches[1]
    assert second.topics[0].partitions[0].fetch_offset == 3
    assert (second.session_id, second.session_epoch) == (7, 1)
    assert world.state().offset == 0
    assert world.collected() == [(0, 0), (0, 1), (0, 2)]
    assert (world.state().offset, world.state().high_watermark) == (3, 100)


@in_loop
async def test_a_partition_with_enough_waiting_is_not_fetched_until_records_are_handed_out(
    log: SimpleNamespace,
) -> None:
    world = World(max_partition_fetch_bytes=100)
    world.assign(A0)
    world.cluster.answers = [fetched(data(0, log.batch(0, [b"x" * 200])))]
    world.wake()
    await world.settle()
    assert len(world.cluster.fetches) == 1
    world.collected()
    world.wake()
    await world.settle()
    assert len(world.cluster.fetches) == 2


@in_loop
async def test_the_next_chunk_is_asked_for_while_a_whole_one_waits(log: SimpleNamespace) -> None:
    """Apache Kafka cuts batches off, so that an answer has exactly what was asked for."""
    first, second = log.batch(0, [b"x" * 200]), log.batch(1, [b"x" * 200])
    world = World(max_partition_fetch_bytes=len(first))
    world.assign(A0)
    world.cluster.answers = [fetched(data(0, first)), fetched(data(0, second))]
    world.wake()
    await world.settle()

    assert [fetch.topics[0].partitions[0].fetch_offset for fetch in world.cluster.fetches] == [0, 1], "and no third one"


@in_loop
async def test_the_next_request_leaves_before_the_application_hears_of_an_answer(log: SimpleNamespace) -> None:
    """It would take the interpreter, and the broker would wait for us meanwhile."""
    world = World()
    world.assign(A0)
    sent_when_told: list[int] = []
    world.shared.notify = lambda: sent_when_told.append(len(world.cluster.fetches))
    world.cluster.answers = [fetched(data(0, log.batch(0, [b"x"])))]
    world.wake()
    await world.settle()

    assert sent_when_told == [2]


@in_loop
async def test_partitions_at_their_end_are_not_waited_for_while_another_of_their_leader_is_full(
    log: SimpleNamespace,
) -> None:
    world = World(max_partition_fetch_bytes=100)
    world.shared.subscription.assign_by_user([A0, A1])
    world.shared.subscription.seek(A0, 0, None)
    world.shared.subscription.seek(A1, 100, None)
    world.cluster.answers = [fetched(data(0, log.batch(0, [b"x" * 200])), data(1))]
    world.wake()
    await world.settle()
    assert len(world.cluster.fetches) == 1, "a long poll for a-1 would stand before a-0 when that has room"

    world.collected()
    world.wake()
    await world.settle()

    (_, both) = world.cluster.fetches
    assert [(p.partition, p.fetch_offset) for p in both.topics[0].partitions] == [(0, 1)], "a-1 is in the session"
    assert not both.forgotten_topics_data


@in_loop
async def test_a_partition_that_has_more_is_asked_for_while_another_of_its_leader_is_full(log: SimpleNamespace) -> None:
    world = World(max_partition_fetch_bytes=100)
    world.assign(A0, A1)
    world.cluster.answers = [fetched(data(0, log.batch(0, [b"x" * 200])), data(1, log.batch(0, [b"y"])))]
    world.wake()
    await world.settle()
    assert len(world.cluster.fetches) == 2


@in_loop
async def test_an_answer_from_before_a_seek_is_dropped(log: SimpleNamespace) -> None:
    world = World()
    world.assign(A0)
    world.wake()
    await world.settle()
    world.shared.subscription.seek(A0, 50)
    world.cluster.parked[0].set_result(fetched(data(0, log.batch(0, [b"x"] * 3))))
    await world.settle()
    assert world.collected() == []
    assert world.cluster.fetches[1].topics[0].partitions[0].fetch_offset == 50


@in_loop
async def test_answers_of_an_old_and_a_new_leader_to_the_same_question_count_once(log: SimpleNamespace) -> None:
    """Without an epoch to validate the position is fetched from the new leader while the old one has not answered."""
    world = World()
    world.assign(A0)
    world.wake()
    await world.settle()
    world.cluster.lead(2, 6)
    world.wake()
    await world.settle()
    assert [node for node, _ in world.cluster.requests] == [1, 2]
    for parked in world.cluster.parked[:2]:
        parked.set_result(fetched(data(0, log.batch(0, [b"x"] * 2))))
    await world.settle()
    assert world.collected() == [(0, 0), (0, 1)]


@in_loop
async def test_a_paused_partition_is_not_fetched(log: SimpleNamespace) -> None:
    world = World()
    world.assign(A0, A1)
    world.shared.subscription.pause([A0], paused=True)
    world.wake()
    await world.settle()
    assert [p.partition for p in world.cluster.fetches[0].topics[0].partitions] == [1]


@in_loop
async def test_a_lost_connection_is_followed_by_a_full_request_that_closes_the_session(log: SimpleNamespace) -> None:
    world = World()
    world.assign(A0)
    world.cluster.answers = [fetched(data(0)), Disconnected("gone")]
    world.wake()
    await world.settle()
    assert [(r.session_id, r.session_epoch) for r in world.cluster.fetches] == [(0, 0), (7, 1), (7, 0)]
    assert world.cluster.refreshes > 0


@in_loop
async def test_an_evicted_session_is_begun_anew(log: SimpleNamespace) -> None:
    world = World()
    world.assign(A0)
    world.cluster.answers = [fetched(data(0)), fetched(error=SESSION_ID_NOT_FOUND)]
    world.wake()
    await world.settle()
    assert [(r.session_id, r.session_epoch) for r in world.cluster.fetches] == [(0, 0), (7, 1), (0, 0)]


@in_loop
async def test_brokers_without_topic_ids_are_asked_by_name(log: SimpleNamespace) -> None:
    world = World()
    world.cluster.lead(1, 5, Uuid.ZERO)
    world.assign(A0)
    world.wake()
    await world.settle()
    assert world.cluster.max_versions == [12]
    assert world.cluster.fetches[0].topics[0].topic == "a"


@pytest.mark.parametrize("code", [3, 5, 6, 9, 56, 74, 75, 78, 100, 103])
def test_errors_that_metadata_may_cure_keep_the_position_and_ask_again(code: int, log: SimpleNamespace) -> None:
    async def run() -> None:
        world = World()
        world.assign(A0, offset=3)
        world.cluster.answers = [fetched(data(0, error=code))]
        world.wake()
        await world.settle()
        assert len(world.cluster.fetches) == 2
        assert world.cluster.fetches[1].session_epoch == 1
        assert (world.state().offset, world.state().state) == (3, FetchState.FETCHING)
        assert world.collected() == []
        error = error_for(code)
        assert error is not None
        assert (world.cluster.refreshes > 0) == error.refresh_metadata

    asyncio.run(run())


@in_loop
async def test_a_leader_hint_is_followed_at_once_after_validating_the_position(log: SimpleNamespace) -> None:
    world = World()
    world.assign(A0, offset=3, epoch=5)
    ends = [EpochEndOffset(partition=0, leader_epoch=5, end_offset=10)]
    validation = OffsetForLeaderEpochResponse(topics=[OffsetForLeaderTopicResult(topic="a", partitions=ends)])
    hint = LeaderIdAndEpoch(leader_id=2, leader_epoch=6)
    world.cluster.answers = [
        validation,
        fetched(data(0, error=NOT_LEADER, current_leader=hint), nodes=[NodeEndpoint(node_id=2, host="h2", port=9)]),
        validation,
    ]
    world.wake()
    await world.settle()
    assert [(node, type(request).__name__.removesuffix("Request")) for node, request in world.cluster.requests] == [
        (1, "OffsetForLeaderEpoch"),
        (1, "Fetch"),
        (2, "OffsetForLeaderEpoch"),
        (2, "Fetch"),
    ]
    assert world.cluster.refreshes == 0


@in_loop
async def test_an_offset_out_of_range_is_told_after_the_records_before_it(log: SimpleNamespace) -> None:
    world = World(auto_offset_reset="none")
    world.assign(A0)
    world.cluster.answers = [fetched(data(0, log.batch(0, [b"x"]))), fetched(data(0, error=OFFSET_OUT_OF_RANGE))]
    world.wake()
    await world.settle()
    assert len(world.cluster.fetches) == 2, "nothing more is fetched until somebody has seen the error"
    assert world.collected() == [(0, 0)]
    with pytest.raises(OffsetsOutOfRange):
        world.collected()


@in_loop
async def test_an_offset_out_of_range_is_reset_by_policy(log: SimpleNamespace) -> None:
    world = World()
    world.assign(A0, offset=50)
    found = [ListOffsetsPartitionResponse(partition_index=0, timestamp=-1, offset=20, leader_epoch=4)]
    world.cluster.answers = [
        fetched(data(0, error=OFFSET_OUT_OF_RANGE)),
        ListOffsetsResponse(topics=[ListOffsetsTopicResponse(name="a", partitions=found)]),
    ]
    world.wake()
    await world.settle()
    assert world.collected() == []
    world.wake()
    await world.settle()
    (asked,) = [request for _, request in world.cluster.requests if isinstance(request, ListOffsetsRequest)]
    assert asked.topics[0].partitions[0].timestamp == -2
    assert world.state().position is not None
    assert world.state().position.offset == 20
    assert world.cluster.fetches[-1].topics[0].partitions[0].fetch_offset == 20


@in_loop
async def test_a_reset_that_fails_for_now_is_tried_again_and_a_seek_meanwhile_wins(log: SimpleNamespace) -> None:
    world = World()
    world.assign(A0, offset=None)
    failed = [ListOffsetsPartitionResponse(partition_index=0, error_code=NOT_LEADER)]
    world.cluster.answers = [ListOffsetsResponse(topics=[ListOffsetsTopicResponse(name="a", partitions=failed)])]
    world.wake()
    await world.settle()
    assert [type(request) for _, request in world.cluster.requests] == [ListOffsetsRequest] * 2
    assert world.cluster.refreshes > 0
    world.shared.subscription.seek(A0, 77)
    found = [ListOffsetsPartitionResponse(partition_index=0, timestamp=-1, offset=20)]
    world.cluster.parked[0].set_result(
        ListOffsetsResponse(topics=[ListOffsetsTopicResponse(name="a", partitions=found)])
    )
    await world.settle()
    assert world.state().offset == 77


@in_loop
async def test_topics_that_may_not_be_read_are_told_once_per_look(log: SimpleNamespace) -> None:
    world = World()
    world.assign(A0)
    world.cluster.answers = [fetched(data(0, error=TOPIC_AUTH))]
    world.wake()
    await world.settle()
    with pytest.raises(TopicAuthorizationFailed):
        world.collected()


@in_loop
async def test_read_committed_uses_the_brokers_list_of_aborted_transactions(log: SimpleNamespace) -> None:
    world = World(isolation_level="read_committed")
    world.assign(A0)
    records = log.batch(0, [b"x"], producer_id=9, transactional=True) + log.marker(1, 9, commit=False)
    aborted = [AbortedTransaction(producer_id=9, first_offset=0)]
    world.cluster.answers = [fetched(data(0, records + log.batch(2, [b"y"]), aborted_transactions=aborted))]
    world.wake()
    await world.settle()
    assert world.cluster.fetches[0].isolation_level == 1
    assert world.collected() == [(0, 2)]


async def validated(log: SimpleNamespace, policy: str, leader_epoch: int, end_offset: int) -> World:
    """A position at 50 in epoch 5 meets a leader of epoch 6, which says where epoch 5 ends."""
    world = World(auto_offset_reset=policy)
    world.assign(A0, offset=50, epoch=5)
    world.cluster.lead(2, 6)
    ends = [EpochEndOffset(partition=0, leader_epoch=leader_epoch, end_offset=end_offset)]
    world.cluster.answers = [
        OffsetForLeaderEpochResponse(topics=[OffsetForLeaderTopicResult(topic="a", partitions=ends)])
    ]
    world.wake()
    await world.settle()
    return world


@in_loop
async def test_a_position_that_the_new_leader_has_is_kept(log: SimpleNamespace) -> None:
    world = await validated(log, "earliest", 5, 60)
    assert (world.state().offset, world.state().is_fetchable) == (50, True)
    assert world.cluster.fetches[0].topics[0].partitions[0].current_leader_epoch == 6


@in_loop
async def test_a_position_behind_a_truncated_log_goes_back_to_where_it_diverges(log: SimpleNamespace) -> None:
    world = await validated(log, "earliest", 4, 30)
    assert (world.state().offset, world.state().offset_epoch) == (30, 4)
    assert world.cluster.fetches[0].topics[0].partitions[0].fetch_offset == 30


@in_loop
async def test_a_truncated_log_without_a_policy_is_told_to_the_application(log: SimpleNamespace) -> None:
    world = await validated(log, "none", 4, 30)
    with world.shared.lock:
        error = world.shared.take_partition_error()
    assert isinstance(error, LogTruncation)
    assert (error.positions, error.divergent_offsets) == ({A0: 50}, {A0: OffsetAndMetadata(30, 4)})
    assert not world.cluster.fetches


@in_loop
async def test_a_truncation_found_after_the_application_sought_elsewhere_is_no_news(log: SimpleNamespace) -> None:
    world = World(auto_offset_reset="none")
    world.assign(A0, offset=50, epoch=5)
    world.cluster.lead(2, 6)
    world.wake()
    await world.settle()
    world.shared.subscription.seek(A0, 10)
    ends = [EpochEndOffset(partition=0, leader_epoch=4, end_offset=30)]
    world.cluster.parked[0].set_result(
        OffsetForLeaderEpochResponse(topics=[OffsetForLeaderTopicResult(topic="a", partitions=ends)])
    )
    await world.settle()
    assert not world.shared.partition_errors
    assert world.state().offset == 10


@in_loop
async def test_a_leader_that_knows_no_such_epoch_makes_the_policy_decide(log: SimpleNamespace) -> None:
    world = await validated(log, "earliest", -1, -1)
    assert world.state().state is FetchState.AWAIT_RESET
    assert isinstance(world.cluster.requests[-1][1], ListOffsetsRequest)


@in_loop
async def test_a_new_assignment_is_left_alone_until_the_application_polls(log: SimpleNamespace) -> None:
    world = World()
    world.assign(A0, offset=None)
    world.fetcher.wake()
    await world.settle()
    assert not world.cluster.requests
    world.wake()
    await world.settle()
    assert world.cluster.requests


@in_loop
async def test_closing_gives_the_session_up(log: SimpleNamespace) -> None:
    world = World()
    world.assign(A0)
    world.cluster.answers = [fetched(data(0))]
    world.wake()
    await world.settle()
    world.cluster.answers = [fetched()]
    await world.fetcher.close(1)
    last = world.cluster.fetches[-1]
    assert (last.session_id, last.session_epoch, last.topics) == (7, -1, [])
    world.wake()
    await world.settle()
    assert world.cluster.fetches[-1] is last
