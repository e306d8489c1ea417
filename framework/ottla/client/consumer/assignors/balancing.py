"""The heart of both sticky assignors: balance first, then as few moves as that allows.

Theory of operation. A partition's *previous owner* is the member that claims it with the latest generation; where two
claim it with the same one, nobody is believed. Members with equal subscriptions get `total // members` partitions
each, some one more; each keeps of its own what fits, the rest is dealt out. With different subscriptions, a partition
without owner goes to the least loaded subscriber, and then loads are evened out along paths: if A may take a partition
from B, and B one from C, and C has at least two more than A, then both move. When no such path is left the loads are
as even as the subscriptions allow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from ottla.client.consumer.assignors.assignor import Assignment, MemberSubscription, in_member_order
from ottla.client.topic_partition import TopicPartition


class Claim(NamedTuple):
    """What a member says it owns, and since which generation."""

    partitions: Collection[TopicPartition]
    generation: int


def assign_sticky(
    partition_counts: Mapping[str, int], members: Mapping[str, MemberSubscription], claims: Mapping[str, Claim]
) -> Assignment:
    """Distribute all partitions: as evenly as the subscriptions allow, and where that is met, as they were."""
    ordered = in_member_order(members)
    topics = {member_id: frozenset(members[member_id].topics).intersection(partition_counts) for member_id in ordered}
    if not ordered:
        return {}
    owners = _previous_owners(partition_counts, topics, claims)
    if len(set(topics.values())) == 1:
        wanted = sorted(topics[ordered[0]])
        partitions = [TopicPartition(topic, number) for topic in wanted for number in range(partition_counts[topic])]
        return _deal_equally(ordered, partitions, owners)
    return _Loads(ordered, topics, partition_counts, owners).balanced()


def _previous_owners(
    partition_counts: Mapping[str, int], topics: Mapping[str, Collection[str]], claims: Mapping[str, Claim]
) -> dict[TopicPartition, str]:
    best: dict[TopicPartition, tuple[int, str | None]] = {}
    for member_id in topics:
        claimed, generation = claims[member_id]
        for partition in claimed:
            if partition.topic not in topics[member_id] or partition.partition >= partition_counts[partition.topic]:
                continue
            known_generation, known = best.get(partition, (generation - 1, None))
            if generation > known_generation:
                best[partition] = (generation, member_id)
            elif generation == known_generation and known != member_id:
                best[partition] = (generation, None)
    return {partition: owner for partition, (_, owner) in best.items() if owner is not None}


def _deal_equally(
    ordered: list[str], partitions: list[TopicPartition], owners: Mapping[TopicPartition, str]
) -> Assignment:
    """All members want the same topics: everybody gets the same number, or one more."""
    each, one_more = divmod(len(partitions), len(ordered))
    owned: Assignment = {member_id: [] for member_id in ordered}
    for partition in partitions:
        if partition in owners:
            owned[owners[partition]].append(partition)
    quota = dict.fromkeys(ordered, each)
    # those who have more already are the cheapest to leave with more; the sort is stable, so the order decides ties
    for member_id in sorted(ordered, key=lambda member_id: -len(owned[member_id]))[:one_more]:
        quota[member_id] += 1
    assignment = {member_id: owned[member_id][: quota[member_id]] for member_id in ordered}
    kept = {partition for mine in assignment.values() for partition in mine}
    turn = deque(member_id for member_id in ordered if len(assignment[member_id]) < quota[member_id])
    for partition in partitions:
        if partition in kept:
            continue
        member_id = turn.popleft()
        assignment[member_id].append(partition)
        if len(assignment[member_id]) < quota[member_id]:
            turn.append(member_id)
    return assignment


class _Loads:
    """Members with different subscriptions: who has how much of which topic."""

    def __init__(
        self,
        ordered: list[str],
        topics: Mapping[str, Collection[str]],
        partition_counts: Mapping[str, int],
        owners: Mapping[TopicPartition, str],
    ) -> None:
        self._ordered = ordered
        self._topics = {member_id: sorted(wanted) for member_id, wanted in topics.items()}
        self._owners = owners
        self._load = dict.fromkeys(ordered, 0)
        self._held: dict[str, dict[str, set[TopicPartition]]] = {topic: {} for topic in partition_counts}
        subscribers: dict[str, list[str]] = {}
        for member_id in ordered:
            for topic in self._topics[member_id]:
                subscribers.setdefault(topic, []).append(member_id)
        self._hand_out(subscribers, partition_counts)

    def balanced(self) -> Assignment:
        """Even the loads out, then say who has what."""
        moved = True
        while moved:
            moved = False
            for member_id in sorted(self._ordered, key=self._load.__getitem__):
                while path := self._path_to_overloaded(member_id):
                    self._shift(path)
                    moved = True
        assignment: Assignment = {member_id: [] for member_id in self._ordered}
        for topic in sorted(self._held):
            for member_id, partitions in self._held[topic].items():
                assignment[member_id] += sorted(partitions)
        return assignment

    def _hand_out(self, subscribers: Mapping[str, list[str]], partition_counts: Mapping[str, int]) -> None:
        for partition, owner in self._owners.items():
            self._give(partition, owner)
        # topics with few takers first: they have the least choice
        for topic in sorted(subscribers, key=lambda topic: (len(subscribers[topic]), topic)):
            for number in range(partition_counts[topic]):
                partition = TopicPartition(topic, number)
                if partition not in self._owners:
                    self._give(partition, min(subscribers[topic], key=self._load.__getitem__))

    def _give(self, partition: TopicPartition, member_id: str) -> None:
        self._held[partition.topic].setdefault(member_id, set()).add(partition)
        self._load[member_id] += 1

    def _path_to_overloaded(self, start: str) -> list[tuple[str, str, str]]:
        """The shortest chain of (taker, topic, giver) from `start` to a member with at least two partitions more."""
        enough = self._load[start] + 2
        came_by: dict[str, tuple[str, str]] = {}
        seen_topics: set[str] = set()
        queue = deque([start])
        while queue:
            taker = queue.popleft()
            for topic in self._topics[taker]:
                if topic in seen_topics:
                    continue
                seen_topics.add(topic)
                for giver, partitions in self._held[topic].items():
                    if not partitions or giver == start or giver in came_by:
                        continue
                    came_by[giver] = (taker, topic)
                    if self._load[giver] >= enough:
                        return self._chain(came_by, start, giver)
                    queue.append(giver)
        return []

    @staticmethod
    def _chain(came_by: Mapping[str, tuple[str, str]], start: str, giver: str) -> list[tuple[str, str, str]]:
        chain = []
        while giver != start:
            taker, topic = came_by[giver]
            chain.append((taker, topic, giver))
            giver = taker
        return chain

    def _shift(self, path: Iterable[tuple[str, str, str]]) -> None:
        for taker, topic, giver in path:
            partition = min(self._held[topic][giver], key=self._cost_of_moving(taker, giver))
            self._held[topic][giver].remove(partition)
            self._load[giver] -= 1
            self._give(partition, taker)

    def _cost_of_moving(self, taker: str, giver: str) -> Callable[[TopicPartition], tuple[int, TopicPartition]]:
        """Best goes home a partition of the taker's, then one that is new to the giver too, last one of its own."""

        def cost(partition: TopicPartition) -> tuple[int, TopicPartition]:
            owner = self._owners.get(partition)
            return (0 if owner == taker else 2 if owner == giver else 1, partition)

        return cost
