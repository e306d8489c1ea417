from __future__ import annotations

import pytest

from ottla_wire.errors import KafkaStorageError, MessageTooLarge, NotEnoughReplicas
from support.groups import Groups, error


def completing(count: int = 2, **arguments: object) -> tuple[Groups, list[str]]:
    """A group in its sync phase; the leader's id first."""
    groups = Groups(group_initial_rebalance_delay_ms=1_000)
    ids = [groups.enter(**arguments)[0] for _ in range(count)]
    groups.advance(2_000)
    assert groups.state() == "CompletingRebalance"
    return groups, ids


def test_followers_wait_for_the_leader_and_all_get_their_share() -> None:
    groups, (a, b) = completing()
    follower = groups.sync(b, 1)
    assert not follower.done()
    leader = groups.sync(a, 1, {a: b"for a", b: b"for b"})
    assert (leader.result().assignment, follower.result().assignment) == (b"for a", b"for b")
    assert (follower.result().protocol_type, follower.result().protocol_name) == ("consumer", "range")
    assert groups.state() == "Stable"


def test_a_follower_that_syncs_late_gets_its_share_at_once() -> None:
    groups, (a, b) = completing()
    groups.sync(a, 1, {b: b"for b"})
    assert groups.sync(b, 1).result().assignment == b"for b"
    assert groups.sync(b, 1, version=0).result().assignment == b"for b"


def test_a_member_that_the_leader_forgot_gets_an_empty_share_and_a_stranger_none() -> None:
    groups, (a, b) = completing()
    groups.sync(a, 1, {a: b"all", "stranger": b"some"})
    assert groups.sync(b, 1).result().assignment == b""
    assert set(groups.group().members) == {a, b}


def test_nobody_is_answered_before_the_assignment_is_replicated() -> None:
    groups, (a, b) = completing()
    groups.log.replicating = False
    follower, leader = groups.sync(b, 1), groups.sync(a, 1, {b: b"x"})
    assert groups.state() == "CompletingRebalance"
    assert not follower.done()
    assert not leader.done()
    groups.replicate()
    assert follower.result().assignment == b"x"
    assert groups.state() == "Stable"


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (NotEnoughReplicas(), "CoordinatorNotAvailable"),
        (KafkaStorageError(), "NotCoordinator"),
        (MessageTooLarge(), "UnknownServerError"),
    ],
)
def test_an_assignment_that_cannot_be_appended_is_an_error_for_all_and_a_new_rebalance(
    failure: Exception, told: str
) -> None:
    groups, (a, b) = completing()
    follower = groups.sync(b, 1)
    groups.log.failure = failure
    leader = groups.sync(a, 1, {b: b"x"})
    assert (error(leader), error(follower)) == (told, told)
    assert groups.state() == "PreparingRebalance"
    assert groups.group().members[b].assignment == b""
    groups.log.failure = None
    groups.join(b)
    assert groups.join(a).result().generation_id == 2


def test_an_assignment_that_is_not_replicated_in_time_is_an_error_for_all_and_a_new_rebalance() -> None:
    groups, (a, b) = completing()
    groups.log.replicating = False
    follower, leader = groups.sync(b, 1), groups.sync(a, 1, {b: b"x"})
    groups.advance(5_000)
    assert (error(leader), error(follower)) == ("CoordinatorNotAvailable", "CoordinatorNotAvailable")
    assert groups.state() == "PreparingRebalance"
    groups.replicate()
    assert groups.state() == "PreparingRebalance", "too late: the members were told to join again"


def test_a_rebalance_that_begins_before_the_assignment_is_replicated_wins() -> None:
    groups, (a, b) = completing()
    groups.log.replicating = False
    leader = groups.sync(a, 1, {b: b"x"})
    groups.join(b, protocols={"range": b"changed"})
    assert error(leader) == "RebalanceInProgress"
    groups.replicate()
    assert groups.state() == "PreparingRebalance"
    groups.log.replicating = True
    groups.join(a)
    assert groups.state() == "CompletingRebalance"
    assert groups.group().generation == 2
    assert groups.group().members[b].assignment == b""


def test_a_rebalance_in_the_sync_phase_sends_the_waiting_back_to_join() -> None:
    groups, (_, b) = completing()
    follower = groups.sync(b, 1)
    groups.enter()
    assert error(follower) == "RebalanceInProgress"


def test_a_sync_that_is_sent_again_takes_over_the_parked_one() -> None:
    groups, (a, b) = completing()
    first, second = groups.sync(b, 1), groups.sync(b, 1)
    assert error(first) == "RebalanceInProgress"
    groups.sync(a, 1, {b: b"x"})
    assert second.result().assignment == b"x"


def test_members_that_never_sync_are_dropped_after_the_rebalance_timeout() -> None:
    groups, (a, b) = completing(rebalance_ms=20_000, session_ms=60_000)
    leader = groups.sync(a, 1, {a: b"x"})
    assert leader.done()
    assert groups.state() == "Stable"
    groups.advance(19_999)
    assert b in groups.group().members
    groups.advance(1)
    assert b not in groups.group().members
    assert groups.state() == "PreparingRebalance"


def test_a_leader_that_never_syncs_is_dropped_and_the_others_join_again() -> None:
    groups, (_, b) = completing(rebalance_ms=20_000, session_ms=60_000)
    follower = groups.sync(b, 1)
    groups.advance(20_000)
    assert error(follower) == "RebalanceInProgress"
    assert set(groups.group().members) == {b}
    join = groups.join(b)
    assert join.result().leader == b


def test_nobody_is_dropped_when_all_have_synced() -> None:
    groups, (a, b) = completing(rebalance_ms=20_000, session_ms=60_000)
    groups.sync(b, 1)
    groups.sync(a, 1)
    groups.advance(30_000)
    assert groups.state() == "Stable"
    assert len(groups.group().members) == 2


def test_waiting_for_the_leader_needs_no_heartbeat() -> None:
    groups, (a, b) = completing(rebalance_ms=60_000, session_ms=10_000)
    follower = groups.sync(b, 1)
    groups.advance(9_000)
    groups.heartbeat(a, 1)
    groups.advance(9_000)
    groups.sync(a, 1, {b: b"x"})
    assert follower.result().assignment == b"x"
    groups.advance(9_999)
    assert b in groups.group().members, "its session began anew with the answer"
    groups.advance(1)
    assert b not in groups.group().members


def test_syncs_that_do_not_fit_are_refused() -> None:
    groups, (_, b) = completing()
    assert error(groups.sync("stranger", 1)) == "UnknownMemberId"
    assert error(groups.sync(b, 0)) == "IllegalGeneration"
    assert error(groups.sync(b, 1, protocol="other")) == "InconsistentGroupProtocol"
    assert error(groups.sync(b, 1, protocol_type="other")) == "InconsistentGroupProtocol"
    assert error(groups.sync(b, 1, protocol=None)) == "InconsistentGroupProtocol"
    assert error(groups.sync(b, 1, group="elsewhere")) == "UnknownMemberId"
    groups.enter()
    assert error(groups.sync(b, 1)) == "RebalanceInProgress"
