from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from ottla.client.cluster import Cluster, CoordinatorKind, Lane, Purpose, TopicInterest
from ottla.client.config import ClientConfig
from ottla.client.connection import Connection
from ottla.errors import Disconnected, GroupAuthorizationFailed, NoAnswer
from ottla_wire.messages.find_coordinator import Coordinator, FindCoordinatorResponse
from ottla_wire.messages.metadata import (
    MetadataRequest,
    MetadataResponse,
    MetadataResponseBroker,
    MetadataResponsePartition,
    MetadataResponseTopic,
)
from ottla_wire.schema import Uuid
from support.scripted_broker import ScriptedBroker, Silence


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await coroutine

    asyncio.run(limited())


def cluster_of(*addresses: str, **settings: Any) -> Cluster:
    settings = {"reconnect_backoff_ms": 1, "reconnect_backoff_max_ms": 2, "retry_backoff_ms": 1, **settings}
    config = ClientConfig(bootstrap_servers=list(addresses), client_id="tester", **settings)
    return Cluster(asyncio.get_running_loop(), config, random.Random(1))


def test_refresh_brings_the_brokers_and_callers_share_one_request() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            cluster = cluster_of(broker.address)
            await asyncio.gather(*(cluster.refresh() for _ in range(10)))
            assert cluster.metadata.cluster_id == "scripted"
            assert [key for key, _, _ in broker.requests].count(3) == 1
            await cluster.close()

    run(scenario())


def test_every_purpose_and_lane_has_its_own_connection() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            cluster = cluster_of(broker.address)
            await cluster.refresh()
            before = broker.connections
            lane = Lane("producer-1")
            request = MetadataRequest(topics=[])
            for purpose in Purpose:
                await cluster.send(1, request, purpose=purpose)
                await cluster.send(1, request, purpose=purpose)
            await cluster.send(1, request, purpose=Purpose.PRODUCE, lane=lane)
            assert broker.client_ids[-1] == "producer-1"
            assert broker.connections - before == len(Purpose) + 1
            cluster.close_lane(lane)
            await cluster.close()

    run(scenario())


def test_many_callers_open_one_connection() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            cluster = cluster_of(broker.address)
            await cluster.refresh()
            before = broker.connections
            await asyncio.gather(
                *(cluster.send(1, MetadataRequest(topics=[]), purpose=Purpose.FETCH) for _ in range(20))
            )
            assert broker.connections - before == 1
            await cluster.close()

    run(scenario())


def test_a_connection_that_is_lost_while_it_is_made_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    agree, lost = Connection._agree_on_versions, []

    async def agree_and_lose(self: Connection) -> None:
        await agree(self)
        if not lost:  # the broker's last words and the end of the connection come together
            lost.append(self)
            self.fail(Disconnected("gone"))

    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            cluster = cluster_of(broker.address)
            await cluster.refresh()
            monkeypatch.setattr(Connection, "_agree_on_versions", agree_and_lose)
            with pytest.raises(Disconnected):
                await cluster.send(1, MetadataRequest(topics=[]), purpose=Purpose.FETCH)
            await cluster.send(1, MetadataRequest(topics=[]), purpose=Purpose.FETCH)
            await cluster.close()

    run(scenario())


def test_a_second_bootstrap_server_is_asked_when_the_first_is_gone() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as gone:
            pass
        async with ScriptedBroker() as broker:
            cluster = cluster_of(gone.address, broker.address)
            await cluster.refresh()
            assert [node.id for node in cluster.metadata.nodes()] == [1]
            await cluster.close()

    run(scenario())


def test_without_any_broker_a_refresh_ends_in_time_and_says_why() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as gone:
            pass
        cluster = cluster_of(gone.address)
        with pytest.raises(NoAnswer, match=f"{gone.port}.*cannot be reached"):
            await cluster.refresh(timeout_ms=100)
        await cluster.close()

    run(scenario())


def test_an_unknown_broker_is_no_reason_to_wait() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            cluster = cluster_of(broker.address)
            await cluster.refresh()
            with pytest.raises(Disconnected, match="broker 77"):
                await cluster.send(77, MetadataRequest(topics=[]))
            await cluster.close()

    run(scenario())


def test_when_no_known_broker_can_be_reached_the_bootstrap_servers_are_asked_again() -> None:
    """The whole cluster has moved (KIP-899): only the bootstrap address still leads to it."""

    async def scenario() -> None:
        async with ScriptedBroker(1) as first, ScriptedBroker(2) as second:
            cluster = cluster_of(first.address)
            moved = MetadataResponseBroker(node_id=9, host="127.0.0.1", port=second.port)
            first.handlers[3] = lambda request, version: MetadataResponse(brokers=[moved], controller_id=9)
            await cluster.refresh()
            assert [node.id for node in cluster.metadata.nodes()] == [9]
            await second.stop()
            cluster.disconnect(9)
            del first.handlers[3]
            await cluster.refresh()
            assert [node.id for node in cluster.metadata.nodes()] == [1]
            await cluster.close()

    run(scenario())


def test_rebootstrap_can_be_switched_off() -> None:
    async def scenario() -> None:
        async with ScriptedBroker(1) as first, ScriptedBroker(2) as second:
            cluster = cluster_of(first.address, metadata_recovery_strategy="none")
            moved = MetadataResponseBroker(node_id=9, host="127.0.0.1", port=second.port)
            first.handlers[3] = lambda request, version: MetadataResponse(brokers=[moved], controller_id=9)
            await cluster.refresh()
            await second.stop()
            cluster.disconnect(9)
            with pytest.raises(NoAnswer):
                await cluster.refresh(timeout_ms=100)
            await cluster.close()

    run(scenario())


def test_a_broker_may_ask_for_the_bootstrap_servers() -> None:
    async def scenario() -> None:
        async with ScriptedBroker(1) as broker:
            cluster = cluster_of(broker.address)
            await cluster.refresh()
            answers = [MetadataResponse(error_code=129)]
            own = broker._handle_3
            broker.handlers[3] = lambda request, version: answers.pop() if answers else own(request, version)
            await cluster.refresh()
            assert not answers
            assert [node.id for node in cluster.metadata.nodes()] == [1]
            await cluster.close()

    run(scenario())


@pytest.mark.parametrize("highest", [3, 6])
def test_a_coordinator_is_looked_for_until_there_is_one_and_is_remembered(highest: int) -> None:
    async def scenario() -> None:
        async with ScriptedBroker(4) as broker:
            broker.versions[10] = (0, highest)
            codes = [15, 14]

            def find(request: Any, version: int) -> FindCoordinatorResponse:
                code = codes.pop(0) if codes else 0
                fields = {"error_code": code, "node_id": 4, "host": "127.0.0.1", "port": broker.port}
                if version < 4:
                    return FindCoordinatorResponse(**fields)
                return FindCoordinatorResponse(coordinators=[Coordinator(key="g", **fields)])

            broker.handlers[10] = find
            cluster = cluster_of(broker.address)
            assert await cluster.find_coordinator("g", CoordinatorKind.GROUP) == 4
            assert await cluster.find_coordinator("g", CoordinatorKind.GROUP) == 4
            assert [key for key, _, _ in broker.requests].count(10) == 3
            cluster.forget_coordinator("g", CoordinatorKind.GROUP)
            await cluster.find_coordinator("g", CoordinatorKind.GROUP)
            assert [key for key, _, _ in broker.requests].count(10) == 4
            await cluster.close()

    run(scenario())


def test_a_coordinator_that_is_refused_is_not_looked_for_again() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            broker.handlers[10] = lambda request, version: FindCoordinatorResponse(
                coordinators=[Coordinator(key="g", node_id=-1, host="", port=-1, error_code=30)]
            )
            cluster = cluster_of(broker.address)
            with pytest.raises(GroupAuthorizationFailed):
                await cluster.find_coordinator("g", CoordinatorKind.GROUP)
            await cluster.close()

    run(scenario())


def test_topics_of_interest_are_asked_for_and_creation_only_where_it_is_allowed() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            cluster = cluster_of(broker.address)
            cluster.add_interest(TopicInterest({"a"}, allow_auto_create=True))
            cluster.add_interest(TopicInterest({"b"}, allow_auto_create=False))
            await cluster.refresh(["c"])
            await cluster.refresh(["d"], create=True)
            asked = {
                tuple(topic.name for topic in request.topics): request.allow_auto_topic_creation
                for key, _, request in broker.requests
                if key == 3
            }
            assert asked == {("a",): True, ("b", "c"): False, ("a", "d"): True, ("b",): False}
            await cluster.close()

    run(scenario())


def test_a_pattern_asks_for_all_topics_and_forgets_those_that_are_gone() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            names = ["a", "b"]

            def answer(request: Any, version: int) -> MetadataResponse:
                assert request.topics is None
                own = broker._handle_3(request, version)
                partition = MetadataResponsePartition(partition_index=0, leader_id=1, leader_epoch=0)
                own.topics = [
                    MetadataResponseTopic(name=name, topic_id=Uuid(name.encode() * 16), partitions=[partition])
                    for name in names
                ]
                return own

            broker.handlers[3] = answer
            cluster = cluster_of(broker.address)
            cluster.add_interest(TopicInterest(all_topics=True))
            await cluster.refresh()
            assert {topic.name for topic in cluster.metadata.topics()} == {"a", "b"}
            names.remove("a")
            await cluster.refresh()
            assert {topic.name for topic in cluster.metadata.topics()} == {"b"}
            await cluster.close()

    run(scenario())


def test_beside_a_pattern_topics_that_may_be_created_are_still_asked_for_by_name() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            cluster = cluster_of(broker.address)
            cluster.add_interest(TopicInterest(all_topics=True))
            cluster.add_interest(TopicInterest({"new"}))
            await cluster.refresh()
            asked = [
                (request.topics, request.allow_auto_topic_creation) for key, _, request in broker.requests if key == 3
            ]
            assert asked[0] == (None, False)
            assert [topic.name for topic in asked[1][0]] == ["new"]
            assert asked[1][1]
            await cluster.close()

    run(scenario())


def test_closing_fails_what_is_in_flight() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            cluster = cluster_of(broker.address)
            await cluster.refresh()
            arrived = asyncio.Event()

            def never(request: Any, version: int) -> Silence:
                arrived.set()
                return Silence()

            broker.handlers[3] = never
            parked = asyncio.ensure_future(cluster.send(1, MetadataRequest(topics=[]), purpose=Purpose.FETCH))
            await arrived.wait()
            await cluster.close()
            with pytest.raises(Disconnected):
                await parked

    run(scenario())
