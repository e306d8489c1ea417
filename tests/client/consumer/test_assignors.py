from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottla.client.consumer.assignors import (
    Assignor,
    CooperativeStickyAssignor,
    MemberSubscription,
    RangeAssignor,
    RebalanceProtocol,
    RoundRobinAssignor,
    StickyAssignor,
    assignors_for,
    protocol_of,
)
from ottla.client.consumer.assignors.balancing import Claim, assign_sticky
from ottla.client.consumer.assignors.sticky import decode_previous, encode_previous
from ottla.client.topic_partition import TopicPartition
from ottla.errors import ConfigError

# What the assignors of the Java client 4.3.1 answered for these groups.
GOLDEN = [
    json.loads(line)
    for line in (Path(__file__).parent / "java_assignments.jsonl").read_text(encoding="utf-8").splitlines()
]
JAVA_STICKY_USER_DATA = bytes.fromhex(
    "000000020003706179000000010000000100066f726465727300000002000000000000000200000007"
)
JAVA_COOPERATIVE_USER_DATA = bytes.fromhex("00000007")
JAVA_PREVIOUS = [TopicPartition("pay", 1), TopicPartition("orders", 0), TopicPartition("orders", 2)]

Members = dict[str, MemberSubscription]
Assignment = dict[str, list[TopicPartition]]

TOPICS = ["a", "b", "c", "d"]


@st.composite
def groups(draw: st.DrawFn, *, same_topics: bool = False) -> tuple[dict[str, int], Members]:
    counts = draw(st.dictionaries(st.sampled_from(TOPICS), st.integers(1, 7), min_size=1))
    subscriptions = st.sets(st.sampled_from(TOPICS), min_size=1)
    size = draw(st.integers(1, 7))
    shared = draw(subscriptions)
    members = {
        f"m{number}": MemberSubscription(
            topics=frozenset(shared if same_topics else draw(subscriptions)),
            group_instance_id=draw(st.none() | st.just(f"i{size - number}")),
        )
        for number in range(size)
    }
    return counts, members


def wanted_partitions(counts: dict[str, int], members: Members) -> set[TopicPartition]:
    subscribed = {topic for member in members.values() for topic in member.topics}
    return {TopicPartition(topic, n) for topic, count in counts.items() if topic in subscribed for n in range(count)}


def assert_valid(counts: dict[str, int], members: Members, assignment: Assignment, *, complete: bool = True) -> None:
    assert assignment.keys() == members.keys()
    given_out = [partition for mine in assignment.values() for partition in mine]
    assert len(given_out) == len(set(given_out)), "a partition has two owners"
    for member_id, mine in assignment.items():
        assert all(partition.topic in members[member_id].topics for partition in mine)
    if complete:
        assert set(given_out) == wanted_partitions(counts, members)


def improving_path(members: Members, assignment: Assignment) -> bool:
    """Whether some chain of hand-overs would make two members' loads more equal: brute force over simple paths."""
    loads = {member_id: len(mine) for member_id, mine in assignment.items()}
    edges = {
        (taker, giver)
        for taker, giver in itertools.permutations(members, 2)
        if any(partition.topic in members[taker].topics for partition in assignment[giver])
    }
    reachable = {(a, b) for a, b in edges}
    for middle, start, end in itertools.product(members, repeat=3):  # Floyd and Warshall, middle outermost
        if (start, middle) in reachable and (middle, end) in reachable and start != end:
            reachable.add((start, end))
    return any(loads[giver] >= loads[taker] + 2 for taker, giver in reachable)


def owning(members: Members, owned: Assignment, generation: int) -> Members:
    return {
        member_id: MemberSubscription(
            topics=member.topics,
            owned=tuple(owned.get(member_id, ())),
            generation=generation,
            group_instance_id=member.group_instance_id,
        )
        for member_id, member in members.items()
    }


@pytest.mark.parametrize("case", GOLDEN)
@pytest.mark.parametrize("assignor", [RangeAssignor(), RoundRobinAssignor()], ids=lambda it: it.name)
def test_range_and_roundrobin_distribute_exactly_as_java_does(case: dict, assignor: Assignor) -> None:
    members = {
        member_id: MemberSubscription(topics=member["topics"], group_instance_id=member["instance"])
        for member_id, member in case["members"].items()
    }
    assignment = assignor.assign(case["counts"], members)
    found = {member_id: [f"{it.topic}:{it.partition}" for it in mine] for member_id, mine in assignment.items()}
    expected = case["expected"][assignor.name]
    assert {m: sorted(mine) for m, mine in found.items()} == {m: sorted(mine) for m, mine in expected.items()}


@given(groups())
def test_every_assignor_gives_each_partition_to_one_subscriber(group: tuple[dict[str, int], Members]) -> None:
    counts, members = group
    for assignor in (RangeAssignor(), RoundRobinAssignor(), StickyAssignor(), CooperativeStickyAssignor()):
        assert_valid(counts, members, assignor.assign(counts, members))


@given(groups())
def test_range_puts_equal_numbers_of_topics_with_as_many_partitions_together(
    group: tuple[dict[str, int], Members],
) -> None:
    _, members = group
    topics = sorted({topic for member in members.values() for topic in member.topics})
    members = {member_id: MemberSubscription(topics=topics) for member_id in members}
    assignment = RangeAssignor().assign(dict.fromkeys(topics, 5), members)
    for mine in assignment.values():
        numbers = {topic: {p.partition for p in mine if p.topic == topic} for topic in topics}
        assert all(found == numbers[topics[0]] for found in numbers.values())


@given(groups(same_topics=True))
def test_sticky_loads_differ_by_one_at_most_where_all_want_the_same(group: tuple[dict[str, int], Members]) -> None:
    counts, members = group
    loads = [len(mine) for mine in StickyAssignor().assign(counts, members).values()]
    assert max(loads) - min(loads) <= 1


@given(groups(), st.randoms(use_true_random=False))
def test_sticky_loads_are_as_even_as_subscriptions_allow_whatever_was_owned_before(
    group: tuple[dict[str, int], Members], random: object
) -> None:
    counts, members = group
    owned: Assignment = {member_id: [] for member_id in members}
    for partition in wanted_partitions(counts, members):
        owned[random.choice(sorted(members))].append(partition)  # type: ignore[attr-defined]
    claims = {member_id: Claim(mine, 1) for member_id, mine in owned.items()}
    assignment = assign_sticky(counts, members, claims)
    assert_valid(counts, members, assignment)
    assert not improving_path(members, assignment)


@given(groups())
def test_nothing_moves_when_nothing_has_changed(group: tuple[dict[str, int], Members]) -> None:
    counts, members = group
    first = CooperativeStickyAssignor().assign(counts, members)
    again = CooperativeStickyAssignor().assign(counts, owning(members, first, 1))
    assert {m: set(mine) for m, mine in again.items()} == {m: set(mine) for m, mine in first.items()}


@given(groups(same_topics=True), st.data())
def test_who_stays_keeps_all_it_had_when_a_member_leaves(
    group: tuple[dict[str, int], Members], data: st.DataObject
) -> None:
    counts, members = group
    first = StickyAssignor().assign(counts, members)
    gone = data.draw(st.sampled_from(sorted(members)))
    left = {member_id: member for member_id, member in members.items() if member_id != gone}
    claims = {member_id: Claim(first[member_id], 1) for member_id in left}
    second = assign_sticky(counts, left, claims)
    for member_id, mine in second.items():
        assert set(first[member_id]) <= set(mine)


@given(groups(same_topics=True))
def test_a_newcomer_gets_its_share_and_nobody_else_moves(group: tuple[dict[str, int], Members]) -> None:
    counts, members = group
    first = StickyAssignor().assign(counts, members)
    topics = next(iter(members.values())).topics
    more = {**members, "newcomer": MemberSubscription(topics=topics)}
    claims = {member_id: Claim(first.get(member_id, ()), 1) for member_id in more}
    second = assign_sticky(counts, more, claims)
    moved = sum(len(set(mine) - set(first.get(m, ()))) for m, mine in second.items())
    assert moved == len(second["newcomer"])
    assert max(map(len, second.values())) - min(map(len, second.values())) <= 1


@given(groups(), groups())
def test_cooperative_members_reach_the_full_assignment_and_no_partition_is_ever_read_twice(
    before: tuple[dict[str, int], Members], after: tuple[dict[str, int], Members]
) -> None:
    """Two rounds: in each a member first gives up what is missing from its assignment, then takes what is new."""
    counts, old = before
    assignor = CooperativeStickyAssignor()
    holds = assignor.assign(counts, old)
    counts, members = after
    holds = {member_id: holds.get(member_id, []) for member_id in members}
    for generation in (2, 3):
        # what a member is not subscribed to any more it gives up as it joins
        holds = {m: [p for p in mine if p.topic in members[m].topics] for m, mine in holds.items()}
        given_out = assignor.assign(counts, owning(members, holds, generation - 1))
        assert_valid(counts, members, given_out, complete=False)
        for member_id, mine in given_out.items():
            others = {p for other, theirs in holds.items() if other != member_id for p in theirs}
            assert not others & set(mine), "given to one while another still reads it"
        holds = given_out
    assert_valid(counts, members, holds)
    assert not improving_path(members, holds)


def test_the_claim_of_the_later_generation_counts() -> None:
    claims = {"old": Claim([TopicPartition("a", 0)], 3), "new": Claim([TopicPartition("a", 0)], 4)}
    members = {member_id: MemberSubscription(topics=["a"]) for member_id in claims}
    assert assign_sticky({"a": 1}, members, claims) == {"old": [], "new": [TopicPartition("a", 0)]}


def test_two_claims_of_one_generation_are_both_void_and_withheld_until_one_lets_go() -> None:
    both = (TopicPartition("a", 0),)
    members = {m: MemberSubscription(topics=["a"], owned=both, generation=5) for m in ("x", "y")}
    assert CooperativeStickyAssignor().assign({"a": 1}, members) == {"x": [], "y": []}


def test_a_partition_that_two_claim_belongs_to_neither_and_is_dealt_out_anew() -> None:
    a0, a1 = TopicPartition("a", 0), TopicPartition("a", 1)
    members = {member_id: MemberSubscription(topics=["a"]) for member_id in ("x", "y")}
    claims = {"x": Claim([a0, a1], 5), "y": Claim([a0], 5)}
    assert assign_sticky({"a": 2}, members, claims) == {"x": [a1], "y": [a0]}


def test_static_members_come_before_dynamic_ones() -> None:
    members = {
        "a-dynamic": MemberSubscription(topics=["a"]),
        "b-static": MemberSubscription(topics=["a"], group_instance_id="z"),
    }
    assert RangeAssignor().assign({"a": 1}, members)["b-static"] == [TopicPartition("a", 0)]


def test_an_outdated_owner_still_reads_its_partition_so_it_is_withheld_from_the_new_one() -> None:
    members = {
        "zombie": MemberSubscription(topics=["a"], owned=(TopicPartition("a", 0),), generation=1),
        "owner": MemberSubscription(topics=["a"], owned=(TopicPartition("a", 0),), generation=2),
    }
    assert CooperativeStickyAssignor().assign({"a": 1}, members) == {"zombie": [], "owner": []}


def test_partitions_of_deleted_topics_and_shrunk_claims_are_ignored() -> None:
    claims = {"m": Claim([TopicPartition("gone", 0), TopicPartition("a", 9)], 1)}
    assert assign_sticky({"a": 1}, {"m": MemberSubscription(topics=["a", "gone"])}, claims) == {
        "m": [TopicPartition("a", 0)]
    }


def test_sticky_tells_its_previous_assignment_as_java_does() -> None:
    assignor = StickyAssignor()
    assert assignor.user_data(["orders"]) is None
    assignor.on_assignment(JAVA_PREVIOUS, 7)
    assert assignor.user_data(["orders"]) == JAVA_STICKY_USER_DATA
    assert decode_previous(JAVA_STICKY_USER_DATA) == Claim(JAVA_PREVIOUS, 7)


def test_cooperative_sticky_tells_its_generation_as_java_does() -> None:
    assignor = CooperativeStickyAssignor()
    assignor.on_assignment(JAVA_PREVIOUS, 7)
    assert assignor.user_data(["orders"]) == JAVA_COOPERATIVE_USER_DATA


def test_the_generation_is_taken_from_user_data_where_the_subscription_has_none() -> None:
    members = {
        "a": MemberSubscription(topics=["a"], owned=(TopicPartition("a", 0),), user_data=(3).to_bytes(4, "big")),
        "b": MemberSubscription(topics=["a"], owned=(TopicPartition("a", 0),), user_data=(4).to_bytes(4, "big")),
    }
    counts = {"a": 1}
    owners = assign_sticky(counts, members, {"a": Claim(members["a"].owned, 3), "b": Claim(members["b"].owned, 4)})
    assert owners["b"] == [TopicPartition("a", 0)]
    # both still read it, so nobody gets it in this round: that is the same with both sources of the generation
    assert CooperativeStickyAssignor().assign(counts, members) == {"a": [], "b": []}


@given(st.binary(max_size=60))
def test_user_data_that_cannot_be_read_counts_as_nothing(data: bytes) -> None:
    claim = decode_previous(data)
    assert all(isinstance(partition, TopicPartition) for partition in claim.partitions)


@given(st.lists(st.tuples(st.sampled_from(TOPICS), st.integers(0, 50)), unique=True), st.integers(-1, 2**31 - 1))
def test_what_sticky_remembers_survives_the_wire(partitions: list[tuple[str, int]], generation: int) -> None:
    named = sorted(TopicPartition(*partition) for partition in partitions)
    assert decode_previous(encode_previous(named, generation)) == Claim(named, generation)


def test_version_0_of_the_user_data_has_no_generation() -> None:
    assert decode_previous(JAVA_STICKY_USER_DATA[:-4]) == Claim(JAVA_PREVIOUS, -1)


def test_a_thousand_members_are_distributed_without_losing_any() -> None:
    members = {f"m{number:04}": MemberSubscription(topics=["a"]) for number in range(1000)}
    loads = Counter(len(mine) for mine in StickyAssignor().assign({"a": 3500}, members).values())
    assert loads == {3: 500, 4: 500}


def test_strategies_are_named_as_in_java_by_class_or_given_as_objects() -> None:
    mine = RoundRobinAssignor()
    names = [
        it.name
        for it in assignors_for(
            ["range", "org.apache.kafka.clients.consumer.CooperativeStickyAssignor", mine, "sticky"]
        )
    ]
    assert names == ["range", "cooperative-sticky", "roundrobin", "sticky"]
    assert [it.name for it in assignors_for("range, sticky")] == ["range", "sticky"]
    assert assignors_for(mine) == [mine]


@pytest.mark.parametrize("strategy", ["rnage", [], ["range", "range"], [7]])
def test_unknown_double_or_missing_strategies_are_refused(strategy: object) -> None:
    with pytest.raises(ConfigError):
        assignors_for(strategy)  # type: ignore[arg-type]


def test_a_member_is_cooperative_only_if_all_its_assignors_are() -> None:
    assert protocol_of(assignors_for(["range", "cooperative-sticky"])) is RebalanceProtocol.EAGER
    assert protocol_of(assignors_for(["cooperative-sticky"])) is RebalanceProtocol.COOPERATIVE
