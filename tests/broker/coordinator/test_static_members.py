from __future__ import annotations

from ottla_wire.errors import NotEnoughReplicas
from support.groups import Groups, error


def stable(groups: Groups, *instances: str, rebalance_ms: int = 60_000) -> dict[str, str]:
    """A Stable group of static members; ids by instance, the leader is the first."""
    joins = {
        instance: groups.join(instance=instance, session_ms=30_000, rebalance_ms=rebalance_ms) for instance in instances
    }
    groups.advance(2 * groups.config.group_initial_rebalance_delay_ms)
    ids = {instance: join.result().member_id for instance, join in joins.items()}
    groups.complete(list(ids.values()), list(joins.values()))
    return ids


def world() -> Groups:
    return Groups(group_initial_rebalance_delay_ms=1_000)


def test_a_static_member_joins_at_once_with_an_id_of_its_name() -> None:
    groups = world()
    ids = stable(groups, "one")
    assert ids["one"].startswith("one-")
    assert groups.describe().members[0].group_instance_id == "one"


def test_a_static_member_that_comes_back_takes_its_place_without_a_rebalance() -> None:
    groups = world()
    ids = stable(groups, "one", "two")
    back = groups.join(instance="two").result()
    assert (back.error_code, back.generation_id, back.members, back.skip_assignment) == (0, 1, [], False)
    assert back.member_id not in ids.values()
    assert back.leader == ids["one"]
    assert groups.state() == "Stable"
    assert groups.sync(back.member_id, 1, instance="two").result().assignment == ids["two"].encode()
    assert error(groups.heartbeat(ids["one"], 1, instance="one")) == ""


def test_a_static_leader_that_comes_back_skips_the_assignment() -> None:
    groups = world()
    ids = stable(groups, "one", "two")
    back = groups.join(instance="one").result()
    assert back.skip_assignment
    assert back.leader == back.member_id
    assert {member.member_id for member in back.members} == {back.member_id, ids["two"]}


def test_an_older_static_leader_is_told_that_its_former_self_leads() -> None:
    groups = world()
    ids = stable(groups, "one", "two")
    back = groups.join(instance="one", version=8).result()
    assert (back.leader, back.members) == (ids["one"], [])
    assert back.member_id != ids["one"]
    assert groups.group().leader == back.member_id


def test_whoever_has_the_old_id_is_fenced() -> None:
    groups = world()
    old = stable(groups, "one")["one"]
    groups.join(instance="one")
    assert error(groups.heartbeat(old, 1, instance="one")) == "FencedInstanceId"
    assert error(groups.sync(old, 1, instance="one")) == "FencedInstanceId"
    assert error(groups.commit(1, old, 1, instance="one")) == "FencedInstanceId"
    assert error(groups.join(old, instance="one")) == "FencedInstanceId"
    assert groups.leave(old, instance="one").result().members[0].error_code == 82
    assert error(groups.heartbeat(old, 1)) == "UnknownMemberId"


def test_the_new_id_is_recorded_before_it_is_told() -> None:
    groups = world()
    ids = stable(groups, "one", "two")
    groups.log.replicating = False
    back = groups.join(instance="two")
    assert not back.done()
    groups.replicate()
    groups.restart()
    members = groups.group().members
    assert set(members) == {ids["one"], back.result().member_id}
    assert members[back.result().member_id].assignment == ids["two"].encode()
    assert groups.group().static_members["two"] == back.result().member_id


def test_a_replacement_that_cannot_be_recorded_changes_nothing() -> None:
    groups = world()
    ids = stable(groups, "one", "two")
    groups.log.failure = NotEnoughReplicas()
    assert error(groups.join(instance="two")) == "CoordinatorNotAvailable"
    groups.log.failure = None
    assert error(groups.heartbeat(ids["two"], 1, instance="two")) == ""
    assert error(groups.sync(ids["two"], 1, instance="two")) == ""


def test_the_sessions_of_old_and_new_id_are_not_mixed_up() -> None:
    groups = world()
    stable(groups, "one")
    groups.advance(20_000)
    back = groups.join(instance="one", session_ms=30_000).result().member_id
    groups.advance(29_999)
    assert back in groups.group().members, "the old id's session is over, the new one's is not"
    groups.advance(1)
    assert groups.state() == "Empty"


def test_new_metadata_is_taken_over_with_the_place() -> None:
    groups = world()
    stable(groups, "one")
    back = groups.join(instance="one", protocols={"range": b"new"}, session_ms=40_000, rebalance_ms=50_000).result()
    assert groups.state() == "Stable", "the protocol stays the same"
    member = groups.group().members[back.member_id]
    assert (member.protocols, member.session_timeout_ms, member.rebalance_timeout_ms) == (
        {"range": b"new"}, 40_000, 50_000,
    )  # fmt: skip
    assert groups.describe().members[0].member_metadata == b"new"


def test_a_place_taken_with_another_protocol_is_a_rebalance() -> None:
    groups = world()
    joins = [groups.join(instance="one", protocols={"range": b"", "sticky": b""})]
    groups.advance(1_000)
    groups.complete([joins[0].result().member_id], joins)
    back = groups.join(instance="one", protocols={"sticky": b"", "range": b""})
    assert back.result().generation_id == 2
    assert back.result().protocol_name == "sticky"


def test_a_place_taken_in_the_sync_phase_is_a_rebalance() -> None:
    groups = world()
    one, two = groups.join(instance="one"), groups.join(instance="two")
    groups.advance(2_000)
    sync = groups.sync(two.result().member_id, 1, instance="two")
    back = groups.join(instance="two")
    assert error(sync) == "FencedInstanceId"
    assert groups.state() == "PreparingRebalance"
    groups.join(one.result().member_id, instance="one")
    assert back.result().generation_id == 2


def test_a_place_taken_in_the_join_phase_fences_the_parked_join() -> None:
    groups = world()
    stable(groups, "one")
    first = groups.join(instance="two")
    second = groups.join(instance="two")
    assert error(first) == "FencedInstanceId"
    assert not second.done()
    assert len(groups.group().members) == 2


def test_a_static_member_that_is_away_in_a_rebalance_keeps_its_place() -> None:
    groups = world()
    ids = stable(groups, "one", "two", rebalance_ms=5_000)
    leader = groups.join(ids["one"], instance="one", rebalance_ms=5_000, session_ms=30_000)
    assert not leader.done()
    groups.advance(5_000)
    assert {member.group_instance_id for member in leader.result().members} == {"one", "two"}
    back = groups.join(instance="two")
    assert groups.state() == "PreparingRebalance", "it missed the sync phase with its old id"
    groups.join(leader.result().member_id, instance="one")
    assert back.result().generation_id == 3


def test_a_rebalance_in_which_only_static_members_are_left_waits_for_one_of_them() -> None:
    groups = world()
    ids = stable(groups, "one", "two", rebalance_ms=5_000)
    newcomer, _ = groups.enter(rebalance_ms=5_000)
    groups.leave(newcomer)
    groups.advance(12_000)
    assert groups.state() == "PreparingRebalance", "two rebalance time-outs later"
    assert set(groups.group().members) == set(ids.values())
    back = groups.join(ids["two"], instance="two", rebalance_ms=5_000)
    groups.advance(5_000)
    assert back.result().leader == ids["two"]


def test_a_rebalance_in_which_only_static_members_are_left_ends_empty_with_their_sessions() -> None:
    groups = world()
    stable(groups, "one", "two", rebalance_ms=5_000)
    newcomer, _ = groups.enter(rebalance_ms=5_000)
    groups.leave(newcomer)
    groups.advance(30_000)
    assert (groups.state(), groups.group().generation) == ("Empty", 2)


def test_a_successor_is_not_taken_for_one_that_never_synced() -> None:
    groups = world()
    one, two = groups.join(instance="one", session_ms=90_000), groups.join(instance="two", session_ms=90_000)
    groups.advance(2_000)
    leader = one.result().member_id
    groups.sync(leader, 1, {two.result().member_id: b"x"}, instance="one")
    assert groups.state() == "Stable"
    back = groups.join(instance="two", session_ms=90_000).result()
    groups.advance(60_000)
    assert groups.state() == "Stable", "the time for syncing is over, but the one that is missing has gone"
    assert groups.sync(back.member_id, 1, instance="two").result().assignment == b"x"


def test_an_administrator_removes_a_static_member_by_its_name() -> None:
    groups = world()
    stable(groups, "one")
    answer = groups.leave("", instance="one").result()
    assert [(member.member_id, member.group_instance_id, member.error_code) for member in answer.members] == [
        ("", "one", 0)
    ]
    assert groups.state() == "Empty"
    assert groups.leave("", instance="one").result().members[0].error_code == 25


def test_an_instance_that_nobody_has_is_unknown() -> None:
    groups = world()
    ids = stable(groups, "one")
    assert error(groups.heartbeat(ids["one"], 1, instance="two")) == "UnknownMemberId"
    assert error(groups.join(ids["one"], instance="two")) == "UnknownMemberId"
    assert error(groups.heartbeat(ids["one"], 1)) == "", "a request need not name the instance"
