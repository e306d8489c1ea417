"""A connection against a server that does what the test says. Real sockets, no sleeps: every wait is for an answer."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Coroutine
from typing import Any

import pytest

from ottla.client.connection import Connection, ConnectionOptions
from ottla.client.metadata import Node
from ottla.client.receiving import Receiving
from ottla.errors import Disconnected, NoAnswer, UnsupportedVersion
from ottla_wire.framing import encode_response
from ottla_wire.messages.find_coordinator import FindCoordinatorRequest, FindCoordinatorResponse
from ottla_wire.messages.init_producer_id import InitProducerIdRequest
from ottla_wire.messages.list_groups import ListGroupsRequest
from ottla_wire.messages.metadata import MetadataRequest, MetadataResponse, MetadataResponseBroker
from support.scripted_broker import HangUp, Raw, ScriptedBroker, Silence


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await coroutine

    asyncio.run(limited())


async def connected(broker: ScriptedBroker, lost: list[Connection] | None = None, **options: Any) -> Connection:
    options = {"client_id": "tester", "request_timeout_ms": 5000, "setup_timeout_ms": 5000, **options}
    gone: list[Connection] = [] if lost is None else lost
    return await Connection.open(Node(1, "127.0.0.1", broker.port), ConnectionOptions(**options), gone.append)


def test_the_highest_version_that_both_have_is_used() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            broker.versions[3] = (0, 9)
            connection = await connected(broker)
            assert connection.version_for(MetadataRequest) == 9
            assert connection.version_for(MetadataRequest, max_version=7) == 7
            await connection.send(MetadataRequest(topics=[]), 9)
            assert broker.requests[-1][:2] == (3, 9)
            assert broker.client_ids[-1] == "tester"
            connection.close()

    run(scenario())


def test_a_version_that_is_still_unstable_is_not_used() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            broker.versions[22] = (0, 6)
            connection = await connected(broker)
            assert connection.version_for(InitProducerIdRequest) == 5
            connection.close()

    run(scenario())


@pytest.mark.parametrize("highest", [0, 2, 3])
def test_an_older_broker_names_its_api_versions_and_is_asked_again(highest: int) -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            broker.highest_api_versions = highest
            connection = await connected(broker)
            assert connection.versions[3] == (0, 13)
            assert [version for key, version, _ in broker.requests if key == 18] == [highest]
            connection.close()

    run(scenario())


def test_what_a_broker_does_not_have_is_refused_by_name() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            broker.versions[10] = (7, 9)
            connection = await connected(broker)
            with pytest.raises(UnsupportedVersion, match="FindCoordinator in versions 7 to 9"):
                connection.version_for(FindCoordinatorRequest)
            with pytest.raises(UnsupportedVersion, match="does not have ListGroups"):
                connection.version_for(ListGroupsRequest)
            connection.close()

    run(scenario())


def test_answers_belong_to_the_oldest_request() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            broker.handlers[10] = lambda request, version: FindCoordinatorResponse(error_code=15)
            connection = await connected(broker)
            first = connection.send(FindCoordinatorRequest(key="a"), 1)
            second = connection.send(MetadataRequest(topics=[]), 9)
            assert isinstance(await first, FindCoordinatorResponse)
            assert isinstance(await second, MetadataResponse)
            connection.close()

    run(scenario())


def test_a_request_that_is_late_takes_the_whole_connection_with_it() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            broker.handlers[10] = lambda request, version: Silence()
            lost: list[Connection] = []
            connection = await connected(broker, lost)
            late = connection.send(FindCoordinatorRequest(key="a"), 1, timeout_ms=50)
            behind = connection.send(FindCoordinatorRequest(key="b"), 1, timeout_ms=5000)
            with pytest.raises(NoAnswer, match="FindCoordinator"):
                await late
            with pytest.raises(Disconnected):
                await behind
            assert lost == [connection]
            assert not connection.is_usable
            with pytest.raises(Disconnected):
                connection.send(FindCoordinatorRequest(key="c"), 1)

    run(scenario())


def test_a_short_timeout_behind_a_long_one_is_kept() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            broker.handlers[10] = lambda request, version: Silence()
            connection = await connected(broker)
            long = connection.send(FindCoordinatorRequest(key="a"), 1, timeout_ms=100_000)
            short = connection.send(FindCoordinatorRequest(key="b"), 1, timeout_ms=30)
            with pytest.raises(NoAnswer):
                await short
            with pytest.raises(Disconnected):
                await long

    run(scenario())


def test_a_connection_that_the_broker_closes_fails_all_that_is_in_flight() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            broker.handlers[10] = lambda request, version: HangUp()
            lost: list[Connection] = []
            connection = await connected(broker, lost)
            answers = [connection.send(FindCoordinatorRequest(key="a"), 1) for _ in range(5)]
            for answer in answers:
                with pytest.raises(Disconnected):
                    await answer
            assert lost == [connection]

    run(scenario())


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack(">i", -5),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        struct.pack(">ii", 4, 99),  # another correlation id
        struct.pack(">i", 2) + b"xx",
        struct.pack(">iih", 6, 2, 0),  # an answer that ends early
    ],
)
def test_what_is_no_answer_gives_the_connection_up(garbage: bytes) -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            broker.handlers[10] = lambda request, version: Raw(garbage)
            connection = await connected(broker)
            answer = connection.send(FindCoordinatorRequest(key="a"), 1)
            with pytest.raises(Disconnected):
                await answer
            assert not connection.is_usable

    run(scenario())


def test_an_answer_to_another_request_is_not_taken_for_this_ones() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            answer_to_99 = b"".join(encode_response(FindCoordinatorResponse(), 1, 99))
            broker.handlers[10] = lambda request, version: Raw(answer_to_99)
            connection = await connected(broker)
            with pytest.raises(Disconnected, match="correlation id 99"):
                await connection.send(FindCoordinatorRequest(key="a"), 1)

    run(scenario())


def test_a_caller_that_goes_away_disturbs_nobody() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            broker.handlers[10] = lambda request, version: FindCoordinatorResponse()
            connection = await connected(broker)
            gone = connection.send(FindCoordinatorRequest(key="a"), 1)
            gone.cancel()
            assert isinstance(await connection.send(MetadataRequest(topics=[]), 9), MetadataResponse)
            connection.close()

    run(scenario())


def test_a_throttled_connection_asks_for_a_rest() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            broker.handlers[10] = lambda request, version: FindCoordinatorResponse(throttle_time_ms=60_000)
            connection = await connected(broker)
            now_ms = int(asyncio.get_running_loop().time() * 1000)
            assert connection.is_ready(now_ms)
            await connection.send(FindCoordinatorRequest(key="a"), 1)
            assert not connection.is_ready(now_ms + 50_000)
            assert connection.is_ready(now_ms + 70_000)
            connection.close()

    run(scenario())


def test_nobody_at_the_address_is_told_with_the_address() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            port = broker.port
        with pytest.raises(Disconnected, match=f"127.0.0.1:{port}"):
            await connected(broker)

    run(scenario())


def test_a_server_that_never_answers_the_first_question_is_given_up() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            broker.handlers[18] = lambda request, version: Silence()
            with pytest.raises(Disconnected, match="ApiVersions"):
                await connected(broker, request_timeout_ms=50)

    run(scenario())


def test_an_answer_that_somebody_is_called_with_comes_in_order_with_the_others() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            connection = await connected(broker)
            taken: list[Any] = []

            def take(answer: Any, error: Any) -> None:
                taken.append((type(answer), error))
                if len(taken) == 1:
                    connection.send_then(MetadataRequest(topics=[]), 9, take)
                raise RuntimeError("what fails here must not close the connection")

            connection.send_then(MetadataRequest(topics=[]), 9, take)
            assert taken == [], "never before the call has returned"
            await connection.send(MetadataRequest(topics=[]), 9)
            await connection.send(MetadataRequest(topics=[]), 9)
            assert taken == [(MetadataResponse, None), (MetadataResponse, None)]
            connection.close()

    run(scenario())


def test_who_is_called_with_an_answer_is_called_with_the_error_in_its_place() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            broker.handlers[3] = lambda request, version: HangUp()
            connection = await connected(broker)
            taken = asyncio.get_running_loop().create_future()

            def take(answer: Any, error: Any) -> None:
                assert not connection.is_usable, "the connection has come to its end before that"
                taken.set_result((answer, error))

            connection.send_then(MetadataRequest(topics=[]), 9, take)
            answer, error = await taken
            assert answer is None
            assert isinstance(error, Disconnected)
            with pytest.raises(Disconnected):
                connection.send_then(MetadataRequest(topics=[]), 9, take)

    run(scenario())


def large_answer(correlation_id: int) -> bytes:
    """About 3 MB, of 100 brokers."""
    brokers = [MetadataResponseBroker(node_id=n, host=f"{n:02}" * 15_000, port=n) for n in range(100)]
    return b"".join(encode_response(MetadataResponse(brokers=brokers), 9, correlation_id))


def is_whole(answer: Any) -> bool:
    return [broker.host for broker in answer.brokers] == [f"{n:02}" * 15_000 for n in range(100)]


@pytest.mark.parametrize("receiving", [None, Receiving()])
@pytest.mark.parametrize("cut", [500_000, 2_999_000, None])
def test_a_large_answer_that_stops_midway_goes_on_and_the_next_follows_it(
    receiving: Receiving | None, cut: int | None
) -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            pieces = iter([large_answer(2)[:cut], large_answer(2)[cut:] if cut else b"", large_answer(4)])
            broker.handlers[3] = lambda request, version: Raw(next(pieces))
            broker.handlers[10] = lambda request, version: Raw(
                next(pieces) + b"".join(encode_response(FindCoordinatorResponse(error_code=15), 1, 3))
            )
            connection = await connected(broker, receiving=receiving)
            first = connection.send(MetadataRequest(topics=[]), 9)
            second = connection.send(FindCoordinatorRequest(key="a"), 1)
            assert is_whole(await first)
            assert (await second).error_code == 15
            assert is_whole(await connection.send(MetadataRequest(topics=[]), 9))
            connection.close()

    run(scenario())


def test_a_connection_lost_midway_in_a_large_answer_is_found_out() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            broker.handlers[3] = lambda request, version: Raw(large_answer(2)[:1_000_000])
            broker.handlers[10] = lambda request, version: HangUp()
            lost: list[Connection] = []
            connection = await connected(broker, lost, receiving=Receiving())
            halved = connection.send(MetadataRequest(topics=[]), 9)
            behind = connection.send(FindCoordinatorRequest(key="a"), 1)
            for answer in (halved, behind):
                with pytest.raises(Disconnected):
                    await answer
            assert lost == [connection]

    run(scenario())


def test_a_closed_connection_is_closed_for_the_broker_too() -> None:
    async def scenario() -> None:
        async with ScriptedBroker() as broker:
            connection = await connected(broker, receiving=Receiving())
            connection.close()
            await broker.idle.wait()

    run(scenario())
