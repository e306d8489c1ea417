"""A produce request whose transaction is being verified: nothing behind it on its connection may overtake it."""

from __future__ import annotations

from typing import Any

from ottla_broker.api import UnanswerableError
from ottla_broker.pending import Pending, Unapplied
from ottla_wire.messages.metadata import MetadataRequest, MetadataResponse
from ottla_wire.messages.produce import ProduceRequest, ProduceResponse

PRODUCE, METADATA = 0, 3


def produce(number: int, acks: int = -1) -> tuple[Any, int, int]:
    return ProduceRequest(acks=acks, timeout_ms=1000), 9, number


def metadata(number: int) -> tuple[Any, int, int]:
    return MetadataRequest(), 9, number


def asked_keys(harness: Any) -> list[int]:
    return [key for _, key, _ in harness.broker.asked]


def test_the_next_produce_is_not_handled_before_the_answer_is_out(harness: Any) -> None:
    held: Unapplied[Any] = Unapplied()
    harness.broker.will_answer(PRODUCE, held, ProduceResponse())
    peer = harness.connects()
    peer.sends(produce(1), produce(2))
    assert asked_keys(harness) == [PRODUCE]
    assert not peer.transport.reading
    harness.completes(held, ProduceResponse())
    assert asked_keys(harness) == [PRODUCE, PRODUCE]
    assert peer.answered == [1, 2]
    assert peer.transport.reading


def test_it_is_handled_while_earlier_produces_wait_for_replicas_but_holds_up_later_ones(harness: Any) -> None:
    earlier: Pending[Any] = Pending()
    held: Unapplied[Any] = Unapplied()
    harness.broker.will_answer(PRODUCE, earlier, held, ProduceResponse())
    peer = harness.connects()
    peer.sends(produce(1), produce(2), produce(3))
    assert len(harness.broker.asked) == 2
    harness.completes(earlier, ProduceResponse())
    assert len(harness.broker.asked) == 2  # an answer before it does not let the next one by
    assert peer.answered == [1]
    harness.completes(held, ProduceResponse())
    assert peer.answered == [1, 2, 3]


def test_with_acks_0_it_holds_up_what_follows_and_is_answered_by_nothing(harness: Any) -> None:
    held: Unapplied[Any] = Unapplied()
    harness.broker.will_answer(PRODUCE, held)
    harness.broker.will_answer(METADATA, MetadataResponse())
    peer = harness.connects()
    peer.sends(produce(1, acks=0), metadata(2))
    assert asked_keys(harness) == [PRODUCE]
    harness.completes(held, None)
    assert peer.answered == [2]


def test_with_acks_0_a_refusal_closes_the_connection(harness: Any) -> None:
    held: Unapplied[Any] = Unapplied()
    harness.broker.will_answer(PRODUCE, held)
    peer = harness.connects()
    peer.sends(produce(1, acks=0), metadata(2))
    held.fail(UnanswerableError("refused"))
    harness.loop.turn()
    assert asked_keys(harness) == [PRODUCE]
    assert peer.transport.closed


def test_other_connections_go_on(harness: Any) -> None:
    harness.broker.will_answer(PRODUCE, Unapplied(), ProduceResponse())
    harness.connects().sends(produce(1))
    other = harness.connects()
    other.sends(produce(2))
    assert other.answered == [2]


def test_a_client_that_leaves_meanwhile_is_not_answered(harness: Any) -> None:
    held: Unapplied[Any] = Unapplied()
    harness.broker.will_answer(PRODUCE, held)
    peer = harness.connects()
    peer.sends(produce(1))
    peer.connection.connection_lost(None)
    harness.completes(held, ProduceResponse())
    assert peer.answered == []
