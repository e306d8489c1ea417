"""Large answers past the loop, on real sockets: nothing waits longer than `RECEIVE_SECONDS`."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ottla.client.receiving import GIVE_WAY_SECONDS, LargeAnswers, Receiving

Pair = tuple[socket.socket, socket.socket]


class Bench:
    """A consumer's receiving, and its connection with a broker."""

    def __init__(self, broker: socket.socket, client: socket.socket) -> None:
        self.broker, self.client = broker, client
        self.naps: list[float] = []
        self.receiving = Receiving(self.naps.append)
        opened = self.receiving.open(client)
        assert opened is not None
        self.answers: LargeAnswers = opened


@pytest.fixture
def bench() -> Iterator[Bench]:
    broker, client = socket.socketpair()
    client.setblocking(False)
    with broker, client:
        made = Bench(broker, client)
        yield made
        made.answers.close()


def test_the_rest_of_an_answer_comes_in_one_call(bench: Bench) -> None:
    bench.broker.sendall(b"x" * 1000 + b"next")
    buffer = bytearray(1000)
    assert bench.answers.receive(memoryview(buffer)) == 1000
    assert buffer == b"x" * 1000
    assert bench.client.recv(10) == b"next"


def test_the_loop_s_own_handle_stays_as_it_was(bench: Bench) -> None:
    bench.answers.receive(memoryview(bytearray(10)))
    assert not bench.client.getblocking()
    with pytest.raises(BlockingIOError):
        bench.client.recv(10)


def test_what_comes_too_slowly_is_left_to_the_loop_for_a_while(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("ottla.client.receiving.time.monotonic", lambda: now[0])
    bench.broker.sendall(b"ab")
    buffer = memoryview(bytearray(4))
    assert bench.answers.receive(buffer) == 2
    bench.broker.sendall(b"cdef")
    assert bench.answers.receive(buffer) == 0
    now[0] += 1
    assert bench.answers.receive(buffer) == 4
    assert bytes(buffer) == b"cdef"


def test_nothing_at_all_is_no_error(bench: Bench) -> None:
    assert bench.answers.receive(memoryview(bytearray(4))) == 0


def test_the_end_of_the_connection_is_the_loop_s_to_find(bench: Bench) -> None:
    bench.broker.sendall(b"ab")
    bench.broker.close()
    assert bench.answers.receive(memoryview(bytearray(4))) == 2
    assert bench.client.recv(10) == b""


def test_the_application_gives_way_only_to_an_answer_that_nobody_has_begun_to_read(bench: Bench) -> None:
    bench.broker.sendall(b"x")
    bench.receiving.give_way()
    assert bench.naps == []  # nothing is awaited: it is no answer
    bench.answers.await_answer()
    bench.receiving.give_way()
    assert bench.naps == [GIVE_WAY_SECONDS]
    bench.answers.begin()
    bench.receiving.give_way()
    assert bench.naps == [GIVE_WAY_SECONDS]


def test_while_nothing_has_come_the_application_goes_on(bench: Bench) -> None:
    bench.answers.await_answer()
    bench.answers.await_answer()
    bench.receiving.give_way()
    assert bench.naps == []


def test_a_connection_that_was_closed_is_waited_for_no_more(bench: Bench) -> None:
    bench.answers.await_answer()
    bench.answers.close()
    bench.broker.sendall(b"x")
    bench.receiving.give_way()
    assert bench.naps == []


def test_closing_both_handles_ends_the_connection(bench: Bench) -> None:
    bench.client.close()
    bench.answers.close()
    assert bench.broker.recv(10) == b""
