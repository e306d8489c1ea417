from __future__ import annotations

import re

import pytest

from ottla.client.consumer.reset_policy import ResetPolicy
from ottla.client.consumer.subscription_state import FetchState, Position, SubscriptionKind, SubscriptionState
from ottla.client.topic_partition import OffsetAndMetadata, TopicPartition

A0, A1, B0 = TopicPartition("a", 0), TopicPartition("a", 1), TopicPartition("b", 0)


def assigned(*partitions: TopicPartition, policy: ResetPolicy = ResetPolicy.LATEST) -> SubscriptionState:
    subscription = SubscriptionState(policy)
    subscription.assign_by_user(partitions)
    return subscription


def test_a_new_partition_waits_for_a_position_and_is_not_fetched() -> None:
    state = assigned(A0).require(A0)
    assert state.state is FetchState.INITIALIZING
    assert not state.is_fetchable
    assert state.position is None


def test_a_committed_offset_becomes_the_position() -> None:
    subscription = assigned(A0)
    assert subscription.found(A0, subscription.require(A0).version, Position(7, 2))
    state = subscription.require(A0)
    assert (state.offset, state.fetch_offset, state.offset_epoch, state.is_fetchable) == (7, 7, 2, True)


def test_a_lookup_that_ends_after_a_seek_changes_nothing() -> None:
    subscription = assigned(A0)
    version = subscription.require(A0).version
    subscription.seek(A0, 99)
    assert not subscription.found(A0, version, Position(7))
    assert subscription.require(A0).offset == 99


def test_a_lookup_for_a_partition_that_was_revoked_and_came_back_changes_nothing() -> None:
    subscription = SubscriptionState(ResetPolicy.LATEST)
    subscription.subscribe_topics(["a"])
    subscription.assign_by_group([A0])
    version = subscription.require(A0).version
    subscription.assign_by_group([])
    subscription.assign_by_group([A0])
    assert not subscription.found(A0, version, Position(7))
    assert subscription.require(A0).state is FetchState.INITIALIZING


def test_partitions_that_stay_assigned_keep_position_and_pause() -> None:
    subscription = SubscriptionState(ResetPolicy.LATEST)
    subscription.subscribe_topics(["a"])
    subscription.assign_by_group([A0])
    subscription.seek(A0, 5)
    subscription.pause([A0], paused=True)
    before = subscription.require(A0).version
    subscription.assign_by_group([A0, A1])
    state = subscription.require(A0)
    assert (state.offset, state.paused, state.version) == (5, True, before)


def test_whatever_moves_a_position_makes_fetched_data_void() -> None:
    subscription = assigned(A0)
    versions = [subscription.require(A0).version]
    subscription.seek(A0, 5)
    versions.append(subscription.require(A0).version)
    subscription.seek(A0, 5)
    versions.append(subscription.require(A0).version)
    subscription.request_reset(A0)
    versions.append(subscription.require(A0).version)
    assert len(set(versions)) == 4
    assert subscription.current(A0, versions[0]) is None


def test_advancing_keeps_what_was_fetched_ahead() -> None:
    subscription = assigned(A0)
    subscription.seek(A0, 5)
    state = subscription.require(A0)
    state.fetch_offset = 50
    state.advance(20, 3)
    assert subscription.current(A0, state.version) is state
    assert (state.position, state.fetch_offset) == (Position(20, 3, -1), 50)


def test_a_newer_leader_asks_for_validation_of_positions_with_an_epoch() -> None:
    subscription = assigned(A0)
    subscription.seek(A0, 5, offset_epoch=1)
    state = subscription.require(A0)
    before = state.version
    subscription.leader_seen(state, 2)
    assert state.state is FetchState.AWAIT_VALIDATION
    assert not state.is_fetchable
    assert state.version != before
    assert state.position == Position(5, 1, 2)
    subscription.validated(A0, state.version)
    assert state.is_fetchable


def test_what_was_fetched_ahead_from_the_old_leader_is_fetched_again() -> None:
    subscription = assigned(A0)
    subscription.seek(A0, 5, offset_epoch=1)
    state = subscription.require(A0)
    state.fetch_offset = 50
    subscription.leader_seen(state, 2)
    assert state.fetch_offset == 5


def test_a_newer_leader_needs_no_validation_without_an_epoch_to_compare() -> None:
    subscription = assigned(A0)
    subscription.seek(A0, 5)
    state = subscription.require(A0)
    subscription.leader_seen(state, 2)
    assert state.is_fetchable
    assert state.leader_epoch == 2


def test_the_same_or_an_older_leader_changes_nothing() -> None:
    subscription = assigned(A0)
    subscription.seek(A0, 5, offset_epoch=1)
    state = subscription.require(A0)
    subscription.leader_seen(state, 2)
    subscription.validated(A0, state.version)
    subscription.leader_seen(state, 2)
    subscription.leader_seen(state, 1)
    assert state.is_fetchable


def test_a_validation_answer_after_a_seek_is_ignored() -> None:
    subscription = assigned(A0)
    subscription.seek(A0, 5, offset_epoch=1)
    state = subscription.require(A0)
    subscription.leader_seen(state, 2)
    asked = state.version
    subscription.seek(A0, 100, offset_epoch=1)
    subscription.leader_seen(state, 2)
    subscription.truncated(A0, asked, Position(3, 1, 2))
    subscription.validated(A0, asked)
    assert state.state is FetchState.AWAIT_VALIDATION
    assert state.offset == 100


def test_truncation_moves_the_position_to_the_first_offset_that_diverges() -> None:
    subscription = assigned(A0)
    subscription.seek(A0, 50, offset_epoch=1)
    state = subscription.require(A0)
    subscription.leader_seen(state, 2)
    subscription.truncated(A0, state.version, Position(30, 1, 2))
    assert state.is_fetchable
    assert state.position == Position(30, 1, 2)


def test_only_positions_that_may_be_read_from_are_worth_committing() -> None:
    subscription = assigned(A0, A1, B0)
    subscription.seek(A0, 5)
    subscription.require(A0).advance(9, 3)
    subscription.seek(A1, 5, offset_epoch=1)
    subscription.leader_seen(subscription.require(A1), 2)
    assert subscription.all_consumed() == {A0: OffsetAndMetadata(9, 3)}


def test_paused_partitions_and_those_about_to_be_revoked_are_not_handed_out() -> None:
    subscription = SubscriptionState(ResetPolicy.LATEST)
    subscription.subscribe_topics(["a"])
    subscription.assign_by_group([A0, A1])
    subscription.seek(A0, 1)
    subscription.seek(A1, 1)
    subscription.pause([A0], paused=True)
    assert [state.partition for state in subscription if state.is_fetchable] == [A1]
    subscription.mark_pending_revocation()
    assert not any(state.is_fetchable for state in subscription)
    subscription.assign_by_group([A0, A1])
    subscription.pause([A0], paused=False)
    assert all(state.is_fetchable for state in subscription)


def test_pausing_an_unassigned_partition_pauses_none() -> None:
    subscription = assigned(A0)
    with pytest.raises(ValueError, match="b-0 is not assigned"):
        subscription.pause([A0, B0], paused=True)
    assert not subscription.require(A0).paused


def test_the_ways_to_subscribe_exclude_each_other_until_unsubscribe() -> None:
    subscription = SubscriptionState(ResetPolicy.LATEST)
    subscription.subscribe_topics(["a"])
    with pytest.raises(ValueError, match="unsubscribe"):
        subscription.assign_by_user([A0])
    with pytest.raises(ValueError, match="unsubscribe"):
        subscription.subscribe_pattern(re.compile("a.*"))
    subscription.unsubscribe()
    subscription.assign_by_user([A0])
    assert subscription.kind is SubscriptionKind.ASSIGNED


def test_subscribing_tells_whether_anything_changed() -> None:
    subscription = SubscriptionState(ResetPolicy.LATEST)
    assert subscription.subscribe_topics(["a", "b"])
    assert not subscription.subscribe_topics(["b", "a"])
    assert subscription.subscribe_topics(["a"])


def test_a_pattern_matches_whole_names() -> None:
    subscription = SubscriptionState(ResetPolicy.LATEST)
    subscription.subscribe_pattern(re.compile("a"))
    assert subscription.matches_subscription([A0])
    assert not subscription.matches_subscription([TopicPartition("ab", 0)])


def test_an_assignment_of_topics_no_longer_subscribed_to_does_not_match() -> None:
    subscription = SubscriptionState(ResetPolicy.LATEST)
    subscription.subscribe_topics(["a"])
    assert subscription.matches_subscription([A0, A1])
    assert not subscription.matches_subscription([A0, B0])


def test_partitions_in_back_off_are_not_waiting_yet() -> None:
    subscription = assigned(A0, A1)
    subscription.require(A0).retry_at_ms = 100
    assert [s.partition for s in subscription.waiting_for(FetchState.INITIALIZING, 99)] == [A1]
    assert [s.partition for s in subscription.waiting_for(FetchState.INITIALIZING, 100)] == [A0, A1]


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("earliest", ResetPolicy.EARLIEST),
        ("Latest", ResetPolicy.LATEST),
        ("none", ResetPolicy.NONE),
        ("by_duration:P1DT2H", ResetPolicy("by_duration", 93_600_000)),
        ("by_duration:PT0.5S", ResetPolicy("by_duration", 500)),
        ("by_duration:PT90M", ResetPolicy("by_duration", 5_400_000)),
    ],
)
def test_reset_policies_are_read_as_java_reads_them(text: str, policy: ResetPolicy) -> None:
    assert ResetPolicy.parse(text) == policy


@pytest.mark.parametrize("text", ["", "newest", "by_duration", "by_duration:", "by_duration:P", "by_duration:-PT1S"])
def test_other_reset_policies_are_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="earliest"):
        ResetPolicy.parse(text)


def test_a_duration_counts_back_from_now() -> None:
    assert ResetPolicy.parse("by_duration:PT1S").timestamp(10_000) == 9_000
    assert (ResetPolicy.EARLIEST.timestamp(1), ResetPolicy.LATEST.timestamp(1)) == (-2, -1)
