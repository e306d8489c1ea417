"""DescribeGroups, ListGroups, and where a group lives."""

from __future__ import annotations

import pytest

from ottla_broker.coordinator.group_coordinator import java_abs, java_hash
from ottla_broker.coordinator.runtime import LOAD_STEP_RECORDS
from ottla_wire.messages.list_groups import ListGroupsRequest
from ottla_wire.records import build_batch
from support.groups import Groups, error_name


def test_a_stable_group_is_described_with_protocol_metadata_and_shares() -> None:
    groups = Groups()
    a, b = groups.form(2, protocols={"range": b"meta"}, client_id="shop")
    described = groups.describe()
    assert (described.group_state, described.protocol_type, described.protocol_data) == ("Stable", "consumer", "range")
    assert {member.member_id: member.member_assignment for member in described.members} == {
        a: a.encode(),
        b: b.encode(),
    }
    assert {member.member_metadata for member in described.members} == {b"meta"}
    assert {(member.client_id, member.client_host) for member in described.members} == {("shop", "/127.0.0.1")}


def test_in_a_rebalance_metadata_is_not_shown() -> None:
    groups = Groups()
    groups.form(2, protocols={"range": b"meta"})
    groups.enter(protocols={"range": b"meta"})
    described = groups.describe()
    assert (described.group_state, described.protocol_data) == ("PreparingRebalance", "")
    assert {member.member_metadata for member in described.members} == {b""}


@pytest.mark.parametrize(("version", "told"), [(5, ""), (6, "GroupIdNotFound")])
def test_a_group_that_is_not_there_is_dead_and_from_version_six_an_error(version: int, told: str) -> None:
    described = Groups().describe(version=version)
    assert (described.group_state, error_name(described.error_code)) == ("Dead", told)
    assert bool(described.error_message) == (version == 6)


def test_groups_are_listed_by_state_and_type() -> None:
    groups = Groups()
    groups.form(group="stable")
    groups.commit(1, group="simple")
    groups.join(group="empty")
    everything = [("empty", "Empty"), ("simple", "Empty"), ("stable", "Stable")]
    assert groups.list() == everything
    assert groups.list(states=["stable"]) == [("stable", "Stable")]
    assert groups.list(states=["Empty", " STABLE "]) == everything
    assert groups.list(states=["nonsense"]) == []
    assert groups.list(types=["Classic"]) == everything
    assert groups.list(types=["consumer"]) == []


def test_a_list_is_refused_while_it_would_not_be_complete() -> None:
    groups = Groups()
    groups.form()
    for _ in range(2):  # two steps of loading
        groups.log.add_batch(3, build_batch([(0, b"\x00\x63", b"", ())] * LOAD_STEP_RECORDS), LOAD_STEP_RECORDS)
    groups.restart()
    answer = groups.ask(ListGroupsRequest(states_filter=[], types_filter=[]), 5).result()
    assert error_name(answer.error_code) == "CoordinatorLoadInProgress"
    groups.advance(0)
    assert groups.list() == [("g", "Stable")]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0),
        ("a", 97),
        ("orders-service", 23_943_117),
        ("polygenelubricants", -(2**31)),
        ("Größe 🐘", 240_247_818),
    ],
)
def test_the_hash_is_that_of_a_java_string(text: str, value: int) -> None:
    assert java_hash(text) == value


def test_the_partition_of_the_smallest_hash_is_zero() -> None:
    assert java_abs(-(2**31)) == 0
    assert java_abs(-5) == 5
    assert Groups(offsets_topic_num_partitions=50).coordinator.partition_for("polygenelubricants") == 0
