from __future__ import annotations

import pytest

from ottla_wire.errors import NotEnoughReplicas
from support.groups import Groups, error


def test_the_first_member_is_told_to_come_again_with_an_id() -> None:
    groups = Groups()
    answer = groups.join(client_id="shop").result()
    assert error(groups.join()) == "MemberIdRequired"
    assert answer.member_id.startswith("shop-")
    assert len(answer.member_id) == len("shop-") + 36
    assert groups.state() == "Empty"
    assert groups.describe().members == []


def test_a_version_before_four_joins_without_an_id() -> None:
    groups = Groups()
    join = groups.join(version=3)
    groups.advance(0)
    assert join.result().generation_id == 1
    assert join.result().member_id.startswith("c-")


def test_version_zero_has_the_session_timeout_as_rebalance_timeout() -> None:
    groups = Groups()
    groups.join(version=0, session_ms=7_000, rebalance_ms=-1)
    (member,) = groups.group().members.values()
    assert (member.session_timeout_ms, member.rebalance_timeout_ms) == (7_000, 7_000)


def test_the_first_rebalance_waits_for_others_and_each_newcomer_prolongs_it() -> None:
    groups = Groups(group_initial_rebalance_delay_ms=3_000)
    _, first = groups.enter(rebalance_ms=10_000)
    groups.advance(2_900)
    _, second = groups.enter(rebalance_ms=10_000)
    groups.advance(2_900)
    _, third = groups.enter(rebalance_ms=10_000)
    groups.advance(100 + 3_000)
    assert not first.done(), "the third came in the second round, so there is another"
    groups.advance(100)
    assert [join.result().generation_id for join in (first, second, third)] == [1, 1, 1]
    assert len({join.result().leader for join in (first, second, third)}) == 1


def test_the_first_rebalance_is_over_after_the_rebalance_timeout_although_members_keep_coming() -> None:
    groups = Groups(group_initial_rebalance_delay_ms=3_000)
    joins = [groups.enter(rebalance_ms=7_000)[1]]
    while not joins[0].done():
        groups.advance(1_000)
        joins.append(groups.enter(rebalance_ms=7_000)[1])
        assert groups.now_ms < 1_000 + 7_100
    assert groups.now_ms >= 1_000 + 6_000


def test_a_quiet_first_round_is_the_only_one() -> None:
    groups = Groups(group_initial_rebalance_delay_ms=3_000)
    _, join = groups.enter()
    groups.advance(2_999)
    assert not join.done()
    groups.advance(1)
    assert join.result().generation_id == 1


def test_only_the_leader_is_told_the_members() -> None:
    groups = Groups(group_initial_rebalance_delay_ms=1_000)
    (a, join_a), (b, join_b) = groups.enter(), groups.enter()
    groups.advance(1_000)
    groups.advance(1_000)
    assert join_a.result().leader == join_b.result().leader == a
    assert [member.member_id for member in join_a.result().members] == [a, b]
    assert join_b.result().members == []


def test_a_new_member_starts_a_rebalance_that_ends_when_all_have_joined() -> None:
    groups = Groups()
    a, b = groups.form(2)
    newcomer, join = groups.enter()
    assert groups.state() == "PreparingRebalance"
    join_a = groups.join(a)
    assert not join.done()
    join_b = groups.join(b)
    answers = [pending.result() for pending in (join, join_a, join_b)]
    assert {answer.generation_id for answer in answers} == {groups.group().generation}
    assert {answer.leader for answer in answers} == {a}
    assert {member.member_id for member in answers[1].members} == {a, b, newcomer}


def test_the_generation_grows_at_the_end_of_the_join_phase_and_not_before() -> None:
    groups = Groups()
    (a,) = groups.form()
    groups.enter()
    assert groups.group().generation == 1
    assert error(groups.heartbeat(a, 1)) == "RebalanceInProgress"
    groups.join(a)
    assert groups.group().generation == 2


def test_members_that_do_not_join_again_are_dropped_at_the_rebalance_timeout() -> None:
    groups = Groups()
    a, b = groups.form(2, rebalance_ms=20_000)
    _, join = groups.enter(rebalance_ms=20_000)
    join_a = groups.join(a, rebalance_ms=20_000)
    for _ in range(4):  # b lives but does not join
        groups.advance(5_000 - 1)
        assert error(groups.heartbeat(b, groups.group().generation)) == "RebalanceInProgress"
    groups.advance(4)
    assert join.result().error_code == join_a.result().error_code == 0
    assert b not in groups.group().members
    assert error(groups.heartbeat(b, groups.group().generation)) == "UnknownMemberId"


def test_the_most_patient_member_sets_the_rebalance_timeout() -> None:
    groups = Groups()
    (a,) = groups.form(1, rebalance_ms=30_000, session_ms=60_000)
    _, join = groups.enter(rebalance_ms=5_000)
    groups.advance(29_999)
    assert not join.done()
    groups.advance(1)
    assert join.result().error_code == 0
    assert a not in groups.group().members


def test_the_join_phase_waits_for_an_id_that_was_given_out() -> None:
    groups = Groups()
    (a,) = groups.form()
    pending = groups.join().result().member_id
    _, join = groups.enter()
    join_a = groups.join(a)
    assert not join_a.done(), "one id is given out and not used yet"
    late = groups.join(pending)
    assert [answer.result().generation_id for answer in (join, join_a, late)] == [2, 2, 2]


def test_an_id_that_is_not_used_within_the_session_timeout_is_forgotten() -> None:
    groups = Groups()
    (a,) = groups.form(session_ms=60_000)
    groups.join(session_ms=10_000)
    _, join = groups.enter()
    join_a = groups.join(a)
    groups.advance(9_999)
    assert not join_a.done()
    groups.advance(1)
    assert join.done()
    assert join_a.done()
    assert not groups.group().pending_joins


def test_an_id_that_is_forgotten_in_a_stable_group_starts_no_rebalance() -> None:
    groups = Groups()
    (a,) = groups.form(session_ms=60_000)
    groups.join(session_ms=10_000)
    groups.advance(20_000)
    assert groups.state() == "Stable"
    assert error(groups.heartbeat(a, 1)) == ""


def test_the_leader_stays_the_leader_if_it_joins_again_and_else_one_who_did_leads() -> None:
    groups = Groups()
    a, b = groups.form(2, rebalance_ms=10_000, session_ms=60_000)
    joins = [groups.enter(rebalance_ms=10_000)[1], groups.join(b, rebalance_ms=10_000)]
    groups.advance(10_000)
    assert {join.result().leader for join in joins} == {b}
    assert a not in groups.group().members


def test_a_join_that_is_sent_again_takes_over_the_parked_one() -> None:
    groups = Groups()
    (a,) = groups.form()
    newcomer, first = groups.enter()
    second = groups.join(newcomer)
    assert error(first) == "RebalanceInProgress", "nobody waits there any more, but it must be answered"
    groups.join(a)
    assert second.result().generation_id == 2


def test_a_new_member_that_waits_for_longer_than_five_minutes_is_given_up() -> None:
    groups = Groups()
    (a,) = groups.form(1, rebalance_ms=900_000, session_ms=900_000)
    newcomer, join = groups.enter(rebalance_ms=900_000)
    groups.advance(299_999)
    assert not join.done()
    groups.advance(1)
    assert error(join) == "UnknownMemberId"
    assert newcomer not in groups.group().members
    assert a in groups.group().members


def test_a_known_member_may_wait_in_a_join_for_longer_than_its_session() -> None:
    groups = Groups()
    (a, b) = groups.form(2, rebalance_ms=100_000, session_ms=10_000)
    join_a = groups.join(a, rebalance_ms=100_000, session_ms=10_000)
    groups.advance(9_000)
    assert error(groups.heartbeat(b, groups.group().generation)) == "RebalanceInProgress"
    groups.advance(9_000)
    assert not join_a.done()
    assert a in groups.group().members, "its join is parked, so it needs no heartbeat"
    groups.advance(1_000)
    assert join_a.done(), "the session of b was over, and nobody else is missing"


@pytest.mark.parametrize("generation_kept", [True, False])
def test_a_follower_with_the_same_metadata_gets_the_generation_again(generation_kept: bool) -> None:
    groups = Groups()
    _, b = groups.form(2)
    generation = groups.group().generation
    answer = groups.join(b, protocols={"range": b"" if generation_kept else b"changed"})
    assert answer.done() == generation_kept
    assert (groups.state() == "Stable") == generation_kept
    if generation_kept:
        assert (answer.result().generation_id, answer.result().members) == (generation, [])


def test_the_leader_of_a_stable_group_that_joins_again_wants_a_rebalance() -> None:
    groups = Groups()
    a, _ = groups.form(2)
    assert not groups.join(a).done()
    assert groups.state() == "PreparingRebalance"


def test_in_the_sync_phase_the_answer_of_the_join_phase_can_be_had_again() -> None:
    groups = Groups(group_initial_rebalance_delay_ms=1_000)
    (a, join_a), (b, join_b) = groups.enter(), groups.enter()
    groups.advance(2_000)
    assert groups.state() == "CompletingRebalance"
    assert groups.join(a).result() == join_a.result()
    assert groups.join(b).result() == join_b.result()
    assert not groups.join(b, protocols={"range": b"changed"}).done()
    assert groups.state() == "PreparingRebalance"


def test_members_vote_among_the_protocols_that_all_support() -> None:
    groups = Groups(group_initial_rebalance_delay_ms=1_000)
    offers = [
        {"one": b"1", "two": b"2", "three": b"3"},
        {"three": b"33", "two": b"22"},
        {"three": b"333", "two": b"222"},
    ]
    joins = [groups.enter(protocols=offer)[1] for offer in offers]
    groups.advance(3_000)
    leader = next(join.result() for join in joins if join.result().members)
    assert leader.protocol_name == "three", "two of three like it best; one is not supported by all"
    assert [member.metadata for member in leader.members] == [b"3", b"33", b"333"]


def test_the_first_member_decides_a_tie() -> None:
    groups = Groups(group_initial_rebalance_delay_ms=1_000)
    joins = [groups.enter(protocols=offer)[1] for offer in ({"two": b"", "one": b""}, {"one": b"", "two": b""})]
    groups.advance(2_000)
    assert joins[0].result().protocol_name == "two"


def test_a_protocol_that_nobody_shares_is_refused() -> None:
    groups = Groups()
    groups.form()
    assert error(groups.join(protocols={"other": b""})) == "InconsistentGroupProtocol"
    assert error(groups.join(protocol_type="connect")) == "InconsistentGroupProtocol"
    assert groups.state() == "Stable"


@pytest.mark.parametrize("offer", [{"protocols": {}}, {"protocol_type": ""}])
def test_a_refused_first_join_leaves_no_group_behind(offer: dict) -> None:
    groups = Groups()
    assert error(groups.join(**offer)) == "InconsistentGroupProtocol"
    assert groups.list() == []


@pytest.mark.parametrize(
    ("session_ms", "problem"), [(5_999, True), (6_000, False), (1_800_000, False), (1_800_001, True)]
)
def test_session_timeouts_have_bounds(session_ms: int, problem: bool) -> None:
    groups = Groups()
    assert error(groups.join(session_ms=session_ms)) == ("InvalidSessionTimeout" if problem else "MemberIdRequired")


def test_a_full_group_takes_nobody_in_but_keeps_its_members() -> None:
    groups = Groups(group_max_size=2)
    _, b = groups.form(2)
    refused = groups.join()
    assert error(refused) == "GroupMaxSizeReached"
    assert refused.result().member_id == ""
    assert error(groups.join(b)) == ""
    assert groups.state() == "Stable"


def test_in_the_join_phase_those_who_have_joined_count_and_the_rest_is_let_go() -> None:
    groups = Groups(group_max_size=2)
    a, b = groups.form(2)
    groups.join(a)  # a rebalance; b is missing
    newcomer = groups.join(version=3)
    assert not newcomer.done()
    assert error(groups.join(b)) == "GroupMaxSizeReached"
    assert b not in groups.group().members
    assert newcomer.result().generation_id == groups.group().generation, "nobody is missing any more"


def test_a_join_of_a_group_that_cannot_be_recorded_fails_and_leaves_no_group() -> None:
    groups = Groups()
    groups.log.failure = NotEnoughReplicas()
    assert error(groups.join()) == "CoordinatorNotAvailable"
    assert error(groups.join(version=3)) == "CoordinatorNotAvailable"
    assert groups.state() == "none"
    groups.log.failure = None
    assert error(groups.join()) == "MemberIdRequired"


def test_an_unknown_member_id_is_refused_with_or_without_a_group() -> None:
    groups = Groups()
    assert error(groups.join("stranger")) == "UnknownMemberId"
    assert groups.list() == []
    groups.form()
    assert error(groups.join("stranger")) == "UnknownMemberId"
