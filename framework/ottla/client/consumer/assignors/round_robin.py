"""`roundrobin`: all partitions of all topics dealt out like cards."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import ClassVar

from ottla.client.consumer.assignors.assignor import Assignment, Assignor, MemberSubscription, in_member_order
from ottla.client.topic_partition import TopicPartition


class RoundRobinAssignor(Assignor):
    """Partition after partition to member after member; members not subscribed to the topic are passed over."""

    name: ClassVar[str] = "roundrobin"

    def assign(self, partition_counts: Mapping[str, int], members: Mapping[str, MemberSubscription]) -> Assignment:
        """Deal all partitions out."""
        assignment: Assignment = {member_id: [] for member_id in members}
        wanted = {topic for member in members.values() for topic in member.topics}
        turn = cycle(in_member_order(members))
        for topic in sorted(wanted & partition_counts.keys()):
            for partition in range(partition_counts[topic]):
                member_id = next(turn)
                while topic not in members[member_id].topics:
                    member_id = next(turn)
                assignment[member_id].append(TopicPartition(topic, partition))
        return assignment
