"""Another broker becomes the coordinator: what it finds in the log, and what the old one's clients are told."""

from __future__ import annotations

from ottla_broker.coordinator.records import GroupMetadataKey, GroupMetadataValue, MemberMetadata
from ottla_broker.coordinator.runtime import LOAD_STEP_RECORDS
from ottla_wire.messages.heartbeat import HeartbeatRequest
from ottla_wire.records import build_batch
from support.groups import Groups, error


def test_a_stable_group_goes_on_as_if_nothing_had_happened() -> None:
    groups = Groups()
    a, b = groups.form(2)
    generation = groups.group().generation
    groups.restart()
    assert groups.state() == "Stable"
    assert error(groups.heartbeat(a, generation)) == ""
    assert groups.sync(b, generation).result().assignment == b.encode()
    assert error(groups.commit(7, b, generation)) == ""
    groups.restart()
    assert groups.committed() == 7


def test_every_member_has_a_fresh_session_after_a_takeover() -> None:
    groups = Groups()
    (a,) = groups.form(session_ms=10_000)
    groups.advance(9_000)
    groups.restart()
    groups.advance(9_000)
    assert error(groups.heartbeat(a, 1)) == ""
    groups.advance(10_000)
    assert groups.state() == "Empty"


def test_members_that_do_not_find_the_new_coordinator_are_given_up() -> None:
    groups = Groups()
    groups.form(2, session_ms=10_000)
    groups.restart()
    groups.advance(9_999)
    assert groups.state() == "Stable"
    groups.advance(1)
    assert groups.state() == "Empty"


def test_a_rebalance_in_progress_is_lost_and_the_former_generation_is_back() -> None:
    groups = Groups()
    a, _ = groups.form(2)
    generation = groups.group().generation
    newcomer, _ = groups.enter()
    groups.restart()
    assert (groups.state(), groups.group().generation) == ("Stable", generation)
    assert error(groups.heartbeat(a, generation)) == ""
    assert error(groups.join(newcomer)) == "UnknownMemberId"


def test_who_waits_at_the_old_coordinator_is_told_to_look_for_the_new_one() -> None:
    groups = Groups()
    groups.form(2)
    _, join = groups.enter()
    groups.coordinator.unload(groups.partition())
    assert error(join) == "NotCoordinator"

    groups = Groups(group_initial_rebalance_delay_ms=1_000)
    (_, _), (b, _) = groups.enter(), groups.enter()
    groups.advance(2_000)
    sync = groups.sync(b, 1)
    groups.coordinator.unload(groups.partition())
    assert error(sync) == "NotCoordinator"
    assert error(groups.heartbeat(b, 1)) == "NotCoordinator"


def test_an_assignment_that_was_appended_but_not_told_is_there_after_the_takeover() -> None:
    groups = Groups()
    a, _ = groups.enter()
    groups.advance(0)
    groups.log.replicating = False
    assert not groups.sync(a, 1, {a: b"x"}).done()
    groups.restart()
    assert (groups.state(), groups.group().generation) == ("Stable", 1)
    assert groups.group().members[a].assignment == b"x"


def test_after_a_takeover_only_the_chosen_protocol_is_known_so_a_longer_list_is_a_change() -> None:
    groups = Groups(group_initial_rebalance_delay_ms=1_000)
    offer = {"range": b"r", "sticky": b"s"}
    (a, join_a), (b, join_b) = groups.enter(protocols=offer), groups.enter(protocols=offer)
    groups.advance(2_000)
    groups.complete([a, b], [join_a, join_b])
    groups.restart()
    assert not groups.join(b, protocols=offer).done()
    assert groups.state() == "PreparingRebalance"


def test_a_group_that_is_too_large_now_rebalances_after_the_takeover() -> None:
    groups = Groups()
    ids = groups.form(3, rebalance_ms=20_000)
    groups.config = type(groups.config)(**{**groups.config.__dict__, "group_max_size": 2})
    groups.restart()
    assert groups.state() == "PreparingRebalance"
    joins = [groups.join(member_id, rebalance_ms=20_000) for member_id in ids]
    assert error(joins[2]) == "GroupMaxSizeReached"
    assert [error(join) for join in joins[:2]] == ["", ""]


def test_a_heartbeat_while_the_group_is_loading_is_fine() -> None:
    groups = Groups()
    (a,) = groups.form()
    for _ in range(2):  # two steps of loading
        many = build_batch([(0, b"\x00\x63", b"", ())] * LOAD_STEP_RECORDS)
        groups.log.add_batch(groups.partition(), many, LOAD_STEP_RECORDS)
    groups.restart()
    request = HeartbeatRequest(group_id="g", generation_id=1, member_id=a)
    assert error(groups.ask(request, 4)) == ""
    assert error(groups.sync(a, 1)) == "CoordinatorLoadInProgress"
    assert error(groups.commit(1, a, 1)) == "CoordinatorLoadInProgress"
    assert error(groups.fetch()) == "CoordinatorLoadInProgress"
    groups.advance(0)
    assert error(groups.sync(a, 1)) == "", "records of unknown types were skipped"


def test_the_last_record_of_a_group_counts() -> None:
    groups = Groups()
    groups.form(2)
    groups.form(1, group="h")
    for group in ("g", "h"):
        live = groups.group(group)
        expected = (live.generation, live.leader, set(live.members), live.protocol_name, live.protocol_type)
        groups.restart()
        loaded = groups.group(group)
        assert (
            loaded.generation, loaded.leader, set(loaded.members), loaded.protocol_name, loaded.protocol_type,
        ) == expected  # fmt: skip


def test_groups_from_older_brokers_are_read() -> None:
    groups = Groups()
    member = MemberMetadata(
        member_id="m", client_id="c", client_host="/h", session_timeout=9_000, subscription=b"s", assignment=b"a"
    )
    value = GroupMetadataValue(protocol_type="consumer", generation=4, protocol="range", leader="m", members=[member])
    key = GroupMetadataKey(group="g").encode_with_version(2)
    groups.log.add_batch(groups.partition(), build_batch([(0, key, value.encode_with_version(0), ())]), 1)
    groups.restart()
    group = groups.group()
    assert (group.state.value, group.generation, group.state_since_ms) == ("Stable", 4, None)
    assert group.members["m"].rebalance_timeout_ms == 9_000, "version 0 has none, so the session's counts"
    assert error(groups.heartbeat("m", 4)) == ""
