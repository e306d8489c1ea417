from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ottla.client.consumer.fetch_session import FINAL_EPOCH, FetchSession, FetchTarget, SessionRequest
from ottla.client.topic_partition import TopicPartition

A, B, C = (TopicPartition("t", number) for number in range(3))
SESSION_ID_NOT_FOUND, INVALID_EPOCH = 70, 71


def target(offset: int, topic_id: bytes = b"t" * 16) -> FetchTarget:
    return FetchTarget(topic_id, offset, 1024, 5)


def established(session: FetchSession, wanted: dict[TopicPartition, FetchTarget]) -> None:
    assert session.answered(session.build(wanted), 77, wanted)


def test_the_first_request_is_full_and_asks_for_a_session() -> None:
    request = FetchSession().build({A: target(1), B: target(2)})
    assert (request.session_id, request.epoch, request.is_full) == (0, 0, True)
    assert dict(request.to_send) == {A: target(1), B: target(2)}
    assert not request.forgotten


def test_later_requests_name_only_what_changed() -> None:
    session = FetchSession()
    established(session, {A: target(1), B: target(2)})
    request = session.build({A: target(1), B: target(20), C: target(3)})
    assert (request.session_id, request.epoch, request.is_full) == (77, 1, False)
    assert dict(request.to_send) == {B: target(20), C: target(3)}


def test_partitions_that_are_not_wanted_any_more_are_forgotten() -> None:
    session = FetchSession()
    established(session, {A: target(1), B: target(2)})
    request = session.build({A: target(1)})
    assert (dict(request.to_send), dict(request.forgotten)) == ({}, {B: b"t" * 16})


def test_a_topic_made_anew_is_forgotten_under_its_old_id_and_added_under_the_new_one() -> None:
    session = FetchSession()
    established(session, {A: target(1, b"o" * 16)})
    request = session.build({A: target(0, b"n" * 16)})
    assert dict(request.forgotten) == {A: b"o" * 16}
    assert dict(request.to_send) == {A: target(0, b"n" * 16)}


def test_the_epoch_counts_requests_and_wraps_to_one() -> None:
    session = FetchSession()
    established(session, {A: target(1)})
    assert session.answered(session.build({A: target(2)}), 77, [])
    assert session.epoch == 2
    session.epoch = 2**31 - 1
    assert session.answered(session.build({A: target(3)}), 77, [])
    assert session.epoch == 1


def test_a_broker_without_room_for_sessions_is_asked_in_full_each_time() -> None:
    session = FetchSession()
    assert session.answered(session.build({A: target(1)}), 0, [A])
    request = session.build({A: target(2)})
    assert (request.session_id, request.epoch) == (0, 0)


def test_an_unknown_session_starts_over_from_nothing() -> None:
    session = FetchSession()
    established(session, {A: target(1)})
    session.build({A: target(1)})
    session.refused(SESSION_ID_NOT_FOUND)
    request = session.build({A: target(1)})
    assert (request.session_id, request.epoch, dict(request.to_send)) == (0, 0, {A: target(1)})


def test_a_wrong_epoch_closes_the_session_and_asks_for_a_new_one() -> None:
    session = FetchSession()
    established(session, {A: target(1)})
    session.build({A: target(1)})
    session.refused(INVALID_EPOCH)
    request = session.build({A: target(1)})
    assert (request.session_id, request.epoch, dict(request.to_send)) == (77, 0, {A: target(1)})


def test_a_lost_connection_closes_the_session_and_asks_for_a_new_one() -> None:
    session = FetchSession()
    established(session, {A: target(1)})
    session.build({A: target(1)})
    session.failed()
    request = session.build({A: target(1)})
    assert (request.session_id, request.epoch, dict(request.to_send)) == (77, 0, {A: target(1)})


def test_a_full_answer_that_misses_a_partition_is_not_believed() -> None:
    session = FetchSession()
    assert not session.answered(session.build({A: target(1), B: target(2)}), 77, [A])
    assert session.epoch == 0


def test_an_answer_that_names_a_stranger_is_not_believed() -> None:
    session = FetchSession()
    established(session, {A: target(1)})
    assert not session.answered(session.build({A: target(1)}), 77, [C])
    assert (session.session_id, session.epoch) == (77, 0)


def test_closing_tells_the_broker_only_if_there_is_a_session() -> None:
    session = FetchSession()
    assert session.close() is None
    established(session, {A: target(1)})
    request = session.close()
    assert request is not None
    assert (request.session_id, request.epoch, dict(request.to_send)) == (77, FINAL_EPOCH, {})
    assert session.close() is None


class Broker:
    """The broker's side of a session, as far as the client can see it."""

    def __init__(self) -> None:
        self.sessions: dict[int, tuple[int, dict[TopicPartition, FetchTarget]]] = {}
        self.ids = 0

    def handle(self, request: SessionRequest) -> tuple[int, int, dict[TopicPartition, FetchTarget]]:
        """(error, session id, partitions that would be served)"""
        if request.epoch == 0:
            self.sessions.pop(request.session_id, None)
            self.ids += 1
            self.sessions[self.ids] = (1, dict(request.to_send))
            return 0, self.ids, dict(request.to_send)
        known = self.sessions.get(request.session_id)
        if known is None:
            return SESSION_ID_NOT_FOUND, 0, {}
        epoch, partitions = known
        if request.epoch != epoch:
            return INVALID_EPOCH, 0, {}
        for partition, topic_id in request.forgotten.items():
            assert partitions[partition].topic_id == topic_id
            del partitions[partition]
        for partition, wanted in request.to_send.items():
            partitions.pop(partition, None)
            partitions[partition] = wanted
        self.sessions[request.session_id] = (epoch + 1, partitions)
        return 0, request.session_id, partitions


targets = st.dictionaries(
    st.sampled_from([A, B, C]),
    st.builds(target, st.integers(0, 3), st.sampled_from([b"t" * 16, b"u" * 16])),
    min_size=1,
)
events = st.lists(st.tuples(targets, st.sampled_from(["ok", "ok", "ok", "lost", "lost late", "evicted"])), max_size=30)


@given(events)
def test_the_broker_serves_exactly_what_the_client_wants_whatever_gets_lost(
    schedule: list[tuple[dict[TopicPartition, FetchTarget], str]],
) -> None:
    session, broker = FetchSession(), Broker()
    for wanted, event in schedule:
        request = session.build(wanted)
        if event == "lost":
            session.failed()
            continue
        if event == "evicted":
            broker.sessions.clear()
        error, session_id, serving = broker.handle(request)
        if event == "lost late":
            session.failed()
        elif error:
            session.refused(error)
        else:
            assert serving == wanted
            assert list(serving) == list(request.session), "both sides keep the same order"
            assert session.answered(request, session_id, serving if request.is_full else [])
