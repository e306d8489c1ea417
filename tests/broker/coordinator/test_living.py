"""Heartbeats, sessions and leaving."""

from __future__ import annotations

from ottla_wire.errors import NotEnoughReplicas
from support.groups import Groups, error


def test_a_heartbeat_keeps_the_session() -> None:
    groups = Groups()
    (a,) = groups.form(session_ms=10_000)
    for _ in range(5):
        groups.advance(9_999)
        assert error(groups.heartbeat(a, 1)) == ""
    groups.advance(10_000)
    assert error(groups.heartbeat(a, 1)) == "UnknownMemberId"


def test_a_session_that_ends_is_a_rebalance_for_the_others() -> None:
    groups = Groups()
    a, _ = groups.form(2, session_ms=10_000)
    generation = groups.group().generation
    groups.advance(6_000)
    groups.heartbeat(a, generation)
    groups.advance(4_000)
    assert set(groups.group().members) == {a}
    assert error(groups.heartbeat(a, generation)) == "RebalanceInProgress"


def test_a_group_whose_last_session_ends_is_empty_and_says_so_in_the_log() -> None:
    groups = Groups()
    groups.form(session_ms=10_000)
    groups.advance(10_000)
    assert groups.state() == "Empty"
    assert groups.group().generation == 2
    groups.restart()
    assert groups.state() == "Empty"
    assert groups.group().generation == 2


def test_a_heartbeat_in_the_sync_phase_is_fine() -> None:
    groups = Groups()
    a, _ = groups.enter()
    groups.advance(0)
    assert groups.state() == "CompletingRebalance"
    assert error(groups.heartbeat(a, 1)) == ""
    assert groups.state() == "CompletingRebalance"


def test_a_heartbeat_in_the_join_phase_asks_to_join_and_keeps_the_session_all_the_same() -> None:
    groups = Groups()
    a, b = groups.form(2, session_ms=10_000)
    generation = groups.group().generation
    groups.join(a)
    for _ in range(3):
        groups.advance(9_000)
        assert error(groups.heartbeat(b, generation)) == "RebalanceInProgress"
    assert b in groups.group().members


def test_heartbeats_that_do_not_fit_are_refused() -> None:
    groups = Groups()
    (a,) = groups.form()
    assert error(groups.heartbeat(a, 0)) == "IllegalGeneration"
    assert error(groups.heartbeat("stranger", 1)) == "UnknownMemberId"
    assert error(groups.heartbeat(a, 1, group="elsewhere")) == "UnknownMemberId"
    assert error(groups.heartbeat(a, 1, instance="i")) == "UnknownMemberId"
    assert error(groups.heartbeat(a, 1, group="")) == "InvalidGroupId"


def test_a_member_that_leaves_is_a_rebalance_for_the_others() -> None:
    groups = Groups()
    a, b = groups.form(2)
    generation = groups.group().generation
    assert error(groups.leave(b)) == ""
    assert error(groups.heartbeat(a, generation)) == "RebalanceInProgress"
    assert groups.join(a).result().generation_id == generation + 1


def test_a_member_that_leaves_in_the_join_phase_is_not_waited_for() -> None:
    groups = Groups()
    a, b = groups.form(2)
    join = groups.join(a)
    groups.leave(b)
    assert join.result().error_code == 0


def test_a_member_that_leaves_while_it_joins_is_told_in_both_places() -> None:
    groups = Groups()
    groups.form()
    newcomer, join = groups.enter()
    assert error(groups.leave(newcomer)) == ""
    assert error(join) == "UnknownMemberId"


def test_a_member_that_leaves_while_it_syncs_is_told_in_both_places() -> None:
    groups = Groups(group_initial_rebalance_delay_ms=1_000)
    (a, _), (b, _) = groups.enter(), groups.enter()
    groups.advance(2_000)
    sync = groups.sync(b, 1)
    groups.leave(b)
    assert error(sync) == "UnknownMemberId"
    assert set(groups.group().members) == {a}


def test_an_id_that_was_given_out_can_be_given_back() -> None:
    groups = Groups()
    (a,) = groups.form()
    unused = groups.join().result().member_id
    assert error(groups.leave(unused)) == ""
    assert groups.state() == "Stable", "nobody else notices"
    assert error(groups.join(unused)) == "UnknownMemberId"
    _, join = groups.enter()
    groups.join(a)
    assert join.done()


def test_several_leave_at_once_each_with_its_own_answer() -> None:
    groups = Groups()
    a, b = groups.form(2)
    answer = groups.leave(a, "stranger", b).result()
    assert answer.error_code == 0
    assert [(member.member_id, member.error_code) for member in answer.members] == [(a, 0), ("stranger", 25), (b, 0)]
    assert groups.state() == "Empty"


def test_before_version_three_one_member_leaves_and_the_answer_is_its() -> None:
    groups = Groups()
    (a,) = groups.form()
    assert groups.leave(a, version=2).result().error_code == 0
    assert groups.leave(a, version=0).result().error_code == 25


def test_leaving_a_group_that_is_not_there_is_an_unknown_member() -> None:
    groups = Groups()
    answer = groups.leave("a", "b").result()
    assert answer.error_code == 0
    assert [member.error_code for member in answer.members] == [25, 25]


def test_leaving_answers_when_the_empty_group_is_replicated() -> None:
    groups = Groups()
    (a,) = groups.form()
    groups.log.replicating = False
    left = groups.leave(a)
    assert groups.state() == "Empty"
    assert not left.done()
    groups.replicate()
    assert error(left) == ""


def test_a_group_is_empty_even_if_that_cannot_be_recorded() -> None:
    groups = Groups()
    (a,) = groups.form()
    groups.log.failure = NotEnoughReplicas()
    assert error(groups.leave(a)) == "CoordinatorNotAvailable"
    assert (groups.state(), groups.group().generation) == ("Empty", 2)
    groups.log.failure = None
    assert groups.form()
    assert groups.group().generation == 3


def test_the_first_rebalance_of_a_group_that_all_have_left_ends_empty() -> None:
    groups = Groups(group_initial_rebalance_delay_ms=3_000)
    a, join = groups.enter()
    groups.leave(a)
    assert error(join) == "UnknownMemberId"
    groups.advance(3_000)
    assert (groups.state(), groups.group().generation) == ("Empty", 1)
