"""The order of a connection, its limits, and what closes it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from ottla_broker.api import UnanswerableError
from ottla_broker.pending import Pending
from ottla_broker.shell.connection import MAX_PIPELINED
from ottla_wire.framing import decode_response
from ottla_wire.messages.api_versions import ApiVersionsRequest, ApiVersionsResponse
from ottla_wire.messages.fetch import FetchRequest, FetchResponse
from ottla_wire.messages.metadata import MetadataRequest, MetadataResponse
from ottla_wire.messages.produce import ProduceRequest, ProduceResponse

PRODUCE, FETCH, METADATA = 0, 1, 3


def produce(number: int) -> tuple[Any, int, int]:
    return ProduceRequest(acks=-1, timeout_ms=1000), 9, number


def fetch(number: int) -> tuple[Any, int, int]:
    return FetchRequest(max_wait_ms=500), 12, number


def metadata(number: int) -> tuple[Any, int, int]:
    return MetadataRequest(), 9, number


def asked_keys(harness: Any) -> list[int]:
    return [key for _, key, _ in harness.broker.asked]


class TestOrder:
    def test_requests_of_one_read_are_handled_and_answered_in_order_with_one_write(self, harness: Any) -> None:
        harness.broker.will_answer(PRODUCE, ProduceResponse(), ProduceResponse())
        harness.broker.will_answer(METADATA, MetadataResponse())
        peer = harness.connects()
        peer.sends(produce(1), metadata(2), produce(3))
        assert asked_keys(harness) == [PRODUCE, METADATA, PRODUCE]
        assert peer.answered == [1, 2, 3]
        assert len(peer.transport.writes) == 1

    def test_nothing_is_handled_behind_a_parked_fetch(self, harness: Any) -> None:
        parked: Pending[Any] = Pending()
        harness.broker.will_answer(FETCH, parked)
        harness.broker.will_answer(METADATA, MetadataResponse())
        peer = harness.connects()
        peer.sends(fetch(1), metadata(2))
        assert asked_keys(harness) == [FETCH]
        assert peer.answered == []
        assert not peer.transport.reading

        harness.completes(parked, FetchResponse())
        assert asked_keys(harness) == [FETCH, METADATA]
        assert peer.answered == [1, 2]
        assert peer.transport.reading

    def test_a_produce_behind_a_parked_fetch_waits_too(self, harness: Any) -> None:
        parked: Pending[Any] = Pending()
        harness.broker.will_answer(FETCH, parked)
        harness.broker.will_answer(PRODUCE, ProduceResponse())
        peer = harness.connects()
        peer.sends(fetch(1), produce(2))
        assert asked_keys(harness) == [FETCH]
        harness.completes(parked, FetchResponse())
        assert peer.answered == [1, 2]

    def test_produces_are_appended_while_earlier_ones_wait_and_answered_in_order(self, harness: Any) -> None:
        first: Pending[Any] = Pending()
        second: Pending[Any] = Pending()
        harness.broker.will_answer(PRODUCE, first, second, ProduceResponse())
        peer = harness.connects()
        peer.sends(produce(1), produce(2))
        peer.sends(produce(3))
        assert asked_keys(harness) == [PRODUCE] * 3
        harness.completes(second, ProduceResponse())
        assert peer.answered == []
        harness.completes(first, ProduceResponse())
        assert peer.answered == [1, 2, 3]

    def test_another_request_waits_until_all_produces_before_it_are_answered(self, harness: Any) -> None:
        first: Pending[Any] = Pending()
        harness.broker.will_answer(PRODUCE, first, ProduceResponse())
        harness.broker.will_answer(METADATA, MetadataResponse())
        peer = harness.connects()
        peer.sends(produce(1), metadata(2), produce(3))
        assert asked_keys(harness) == [PRODUCE]
        harness.completes(first, ProduceResponse())
        assert asked_keys(harness) == [PRODUCE, METADATA, PRODUCE]
        assert peer.answered == [1, 2, 3]

    def test_produces_in_flight_are_bounded(self, harness: Any) -> None:
        waiting: list[Pending[Any]] = [Pending() for _ in range(MAX_PIPELINED + 1)]
        harness.broker.will_answer(PRODUCE, *waiting)
        peer = harness.connects()
        peer.sends(*(produce(number) for number in range(MAX_PIPELINED + 1)))
        assert len(harness.broker.asked) == MAX_PIPELINED
        assert not peer.transport.reading
        harness.completes(waiting[0], ProduceResponse())
        assert len(harness.broker.asked) == MAX_PIPELINED + 1
        assert peer.answered == [0]

    def test_one_connection_does_not_wait_for_another(self, harness: Any) -> None:
        harness.broker.will_answer(FETCH, Pending())
        harness.broker.will_answer(METADATA, MetadataResponse())
        slow, quick = harness.connects(), harness.connects()
        slow.sends(fetch(1))
        quick.sends(metadata(7))
        assert quick.answered == [7]
        assert slow.answered == []

    def test_an_answer_that_becomes_ready_while_the_broker_settles_leaves_in_the_same_turn(self, harness: Any) -> None:
        parked: Pending[Any] = Pending()
        harness.broker.will_answer(FETCH, parked)
        harness.broker.will_answer(PRODUCE, ProduceResponse())
        consumer, producer = harness.connects(), harness.connects()
        consumer.sends(fetch(1))
        harness.broker.on_settle = lambda: parked.done() or parked.complete(FetchResponse())
        producer.sends(produce(2))
        assert producer.answered == [2]
        assert consumer.answered == [1]

    def test_what_only_follows_from_a_request_is_done_when_its_answer_has_left_and_before_the_next_one(
        self, harness: Any
    ) -> None:
        harness.broker.will_answer(METADATA, MetadataResponse(), MetadataResponse())
        peer = harness.connects()
        seen: list[tuple[list[int], int]] = []
        harness.broker.followed_up = lambda: seen.append((list(peer.answered), len(harness.broker.asked)))

        def leads_on() -> None:
            harness.broker.has_follow_ups = len(harness.broker.asked) == 1 and not seen

        harness.broker.on_settle = leads_on
        peer.sends(metadata(1))
        peer.sends(metadata(2))
        assert peer.answered == [1, 2]
        assert seen == [([1], 1)]

    def test_a_request_that_has_come_already_finds_done_what_follows_from_the_one_before(self, harness: Any) -> None:
        harness.broker.will_answer(PRODUCE, ProduceResponse(), ProduceResponse())
        peer = harness.connects()
        seen: list[int] = []
        harness.broker.followed_up = lambda: seen.append(len(harness.broker.asked))
        handle = harness.broker.handle

        def leads_on(context: Any, request: Any) -> Any:
            harness.broker.has_follow_ups = len(harness.broker.asked) == 0
            return handle(context, request)

        harness.broker.handle = leads_on
        peer.sends(produce(1), produce(2))
        assert peer.answered == [1, 2]
        assert seen == [1]

    def test_a_frame_may_come_in_any_number_of_pieces(self, harness: Any) -> None:
        harness.broker.will_answer(METADATA, MetadataResponse(), MetadataResponse())
        peer = harness.connects()
        from ottla_wire.framing import encode_request

        data = b"".join(bytes(p) for n in (1, 2) for p in encode_request(MetadataRequest(), 9, n, "test"))
        for byte in data:
            peer.sends_bytes(bytes([byte]))
        assert peer.answered == [1, 2]

    def test_the_context_names_the_client(self, harness: Any) -> None:
        harness.broker.will_answer(METADATA, MetadataResponse())
        harness.connects(host="192.0.2.77").sends(metadata(1))
        context = harness.broker.contexts[0]
        assert context.client_id == "test"
        assert context.client_host == "192.0.2.77"
        assert context.principal == "User:ANONYMOUS"
        assert context.api_version == 9
        assert context.now_ms == harness.clock.ms


class TestBackPressure:
    def test_a_client_that_does_not_read_is_not_served_until_it_does(self, harness: Any) -> None:
        harness.broker.will_answer(METADATA, MetadataResponse(), MetadataResponse())
        peer = harness.connects()
        peer.connection.pause_writing()
        peer.sends(metadata(1))
        assert harness.broker.asked == []
        assert not peer.transport.reading
        peer.connection.resume_writing()
        harness.loop.turn()
        assert peer.answered == [1]
        assert peer.transport.reading

    def test_an_answer_without_bytes_waiting_leaves_reading_on(self, harness: Any) -> None:
        harness.broker.will_answer(PRODUCE, None)
        peer = harness.connects()
        peer.sends(produce(1))
        assert peer.answered == []
        assert peer.transport.reading


class TestClosing:
    def closed_with(self, caplog: pytest.LogCaptureFixture) -> str:
        warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(warnings) == 1, warnings
        return warnings[0].getMessage()

    @pytest.mark.parametrize(
        ("frame", "reason"),
        [
            (b"\x00\x00\x00\x0a" + b"\x03\xe7" + b"\x00" * 8, "unknown API key 999"),
            (b"\x00\x00\x00\x0a" + b"\x00\x03\x00\x63" + b"\x00" * 6, "metadata version 99 is not supported"),
            (b"\x00\x00\x00\x0a" + b"\x00\x00\x00\x02" + b"\x00" * 6, "produce version 2 is not supported"),
            (b"\x00\x00\x00\x03abc", "a request of 3 bytes"),
            (b"GET / HTTP/1.1\r\n\r\n", "a frame announces"),
            (b"\xff\xff\xff\xff", "a frame announces -1 bytes"),
            (b"\x00\x00\x00\x0c\x00\x03\x00\x09\x00\x00\x00\x01\x00\xffab", "cannot be read"),
            (b"\x00\x00\x00\x0c\x00\x03\x00\x09\x00\x00\x00\x01\xff\xff\x00\x09", ""),
        ],
    )
    def test_what_cannot_be_answered_closes_the_connection_with_one_line(
        self, harness: Any, caplog: pytest.LogCaptureFixture, frame: bytes, reason: str
    ) -> None:
        harness.broker.will_answer(METADATA, MetadataResponse())
        other = harness.connects()
        peer = harness.connects(host="192.0.2.9")
        peer.sends_bytes(frame)
        assert peer.transport.closed
        line = self.closed_with(caplog)
        assert "192.0.2.9:" in line
        assert reason in line
        other.sends(metadata(5))
        assert other.answered == [5]

    def test_a_frame_above_the_limit_closes_before_it_is_read(
        self, make_harness: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        peer = make_harness(socket_request_max_bytes=100).connects()
        peer.sends_bytes((101).to_bytes(4, "big"))
        assert peer.transport.closed
        assert "between 0 and 100 are allowed" in self.closed_with(caplog)

    def test_answers_of_earlier_requests_leave_before_the_connection_closes(self, harness: Any) -> None:
        waiting: Pending[Any] = Pending()
        harness.broker.will_answer(PRODUCE, waiting, UnanswerableError("acks=0 failed"))
        peer = harness.connects()
        peer.sends(produce(1), produce(2))
        assert not peer.transport.closed
        harness.completes(waiting, ProduceResponse())
        assert peer.answered == [1]
        assert peer.transport.closed

    def test_nothing_is_handled_after_a_request_that_closes(self, harness: Any) -> None:
        harness.broker.will_answer(PRODUCE, UnanswerableError("acks=0 failed"), ProduceResponse())
        peer = harness.connects()
        peer.sends(produce(1), produce(2))
        assert len(harness.broker.asked) == 1
        assert peer.transport.closed

    def test_a_pending_that_fails_closes(self, harness: Any, caplog: pytest.LogCaptureFixture) -> None:
        waiting: Pending[Any] = Pending()
        harness.broker.will_answer(FETCH, waiting)
        peer = harness.connects()
        peer.sends(fetch(1))
        waiting.fail(UnanswerableError("no place for the error"))
        harness.loop.turn()
        assert peer.transport.closed
        assert "no place for the error" in self.closed_with(caplog)

    def test_a_bug_in_a_handler_closes_only_its_own_connection(
        self, harness: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        harness.broker.will_answer(METADATA, RuntimeError("bug"), MetadataResponse())
        peer, other = harness.connects(), harness.connects()
        peer.sends(metadata(1))
        other.sends(metadata(2))
        assert peer.transport.closed
        assert other.answered == [2]
        assert "bug" in caplog.text

    def test_an_answer_for_a_client_that_left_goes_nowhere(self, harness: Any) -> None:
        waiting: Pending[Any] = Pending()
        harness.broker.will_answer(FETCH, waiting)
        peer = harness.connects()
        peer.sends(fetch(1))
        peer.transport.close()
        harness.completes(waiting, FetchResponse())
        assert peer.transport.writes == []
        assert harness.broker.lost == [1]


class TestApiVersions:
    def test_an_unknown_version_is_answered_in_version_0_with_the_versions_served(self, harness: Any) -> None:
        peer = harness.connects()
        body = b"\x00\x12\x00\x63\x00\x00\x00\x2a\x00\x04test\x00\x00\x00"
        peer.sends_bytes(len(body).to_bytes(4, "big") + body)
        correlation_id, answer = decode_response(ApiVersionsResponse, 0, peer.transport.writes[0][4:])
        assert correlation_id == 42
        assert answer.error_code == 35
        assert [(k.api_key, k.min_version, k.max_version) for k in answer.api_keys] == [(18, 0, 4)]
        assert not peer.transport.closed

    def test_its_response_header_is_version_0_even_where_the_response_is_flexible(self, harness: Any) -> None:
        harness.broker.will_answer(18, ApiVersionsResponse(error_code=7))
        peer = harness.connects()
        peer.sends((ApiVersionsRequest(client_software_name="a", client_software_version="1"), 3, 42))
        assert peer.transport.writes[0][4:10] == b"\x00\x00\x00\x2a\x00\x07"


class TestLimits:
    def test_connections_beyond_the_limit_are_closed(self, make_harness: Any, caplog: pytest.LogCaptureFixture) -> None:
        harness = make_harness(max_connections=1)
        first, second = harness.connects(), harness.connects()
        assert not first.transport.closed
        assert second.transport.closed
        assert "max.connections=1" in caplog.text
        first.transport.close()
        assert not harness.connects().transport.closed

    def test_connections_of_one_address_are_limited_on_their_own(self, make_harness: Any) -> None:
        harness = make_harness(max_connections_per_ip=1)
        assert not harness.connects(host="192.0.2.1").transport.closed
        assert not harness.connects(host="192.0.2.2").transport.closed
        assert harness.connects(host="192.0.2.1").transport.closed

    def test_idle_connections_are_closed_and_those_that_wait_for_an_answer_are_not(self, make_harness: Any) -> None:
        harness = make_harness(connections_max_idle_ms=60_000)
        harness.broker.will_answer(FETCH, Pending())
        harness.broker.will_answer(METADATA, MetadataResponse(), MetadataResponse())
        idle, waiting, active = harness.connects(), harness.connects(), harness.connects()
        idle.sends(metadata(1))
        waiting.sends(fetch(2))
        harness.loop.advance(50_000)
        active.sends(metadata(3))
        harness.loop.advance(30_000)
        assert idle.transport.closed
        assert not waiting.transport.closed
        assert not active.transport.closed


class TestTurns:
    def test_the_broker_ticks_when_its_deadline_comes(self, harness: Any) -> None:
        harness.broker.will_answer(METADATA, MetadataResponse())
        harness.broker.deadline = harness.clock.ms + 250
        harness.connects().sends(metadata(1))
        harness.loop.advance(249)
        assert harness.broker.ticks == []
        harness.broker.deadline = None
        harness.loop.advance(1)
        assert harness.broker.ticks == [harness.clock.ms]

    def test_an_earlier_deadline_moves_the_timer_forward(self, harness: Any) -> None:
        harness.broker.will_answer(METADATA, MetadataResponse(), MetadataResponse())
        peer = harness.connects()
        harness.broker.deadline = harness.clock.ms + 5_000
        peer.sends(metadata(1))
        harness.broker.deadline = harness.clock.ms + 100
        peer.sends(metadata(2))
        harness.loop.advance(100)
        assert len(harness.broker.ticks) >= 1

    def test_a_broker_that_fails_to_settle_does_not_hold_back_answers_nor_spin(
        self, harness: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        harness.broker.will_answer(METADATA, MetadataResponse())
        harness.broker.deadline = harness.clock.ms

        def fail() -> None:
            raise RuntimeError("settling failed")

        harness.broker.on_settle = fail
        peer = harness.connects()
        peer.sends(metadata(1))
        assert peer.answered == [1]
        harness.loop.advance(2_000)
        assert len(harness.broker.ticks) <= 3
        assert "settling failed" in caplog.text

    def test_nor_does_one_that_fails_in_what_follows(self, harness: Any) -> None:
        harness.broker.will_answer(METADATA, MetadataResponse(), MetadataResponse())
        attempts: list[int] = []

        def fail() -> None:
            attempts.append(1)
            raise RuntimeError("following up failed")

        harness.broker.followed_up = fail
        harness.broker.has_follow_ups = True
        peer = harness.connects()
        peer.sends(metadata(1))
        peer.sends(metadata(2))
        assert peer.answered == [1, 2]
        harness.loop.advance(2_000)
        assert len(attempts) <= 6
