"""`range`: each topic's partitions in consecutive runs, so that equal numbers of two topics meet in one member."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ottla.client.consumer.assignors.assignor import Assignment, Assignor, MemberSubscription, in_member_order
from ottla.client.topic_partition import TopicPartition


class RangeAssignor(Assignor):
    """Per topic: partitions in order, members in order, the first ones get one more where it does not divide.

    Co-partitioning is the point: with the same number of partitions, partition n of each topic goes to the same
    member. Racks are not considered.
    """

    name: ClassVar[str] = "range"

    def assign(self, partition_counts: Mapping[str, int], members: Mapping[str, MemberSubscription]) -> Assignment:
        """Distribute topic by topic."""
        assignment: Assignment = {member_id: [] for member_id in members}
        ordered = in_member_order(members)
        for topic in sorted(partition_counts):
            subscribed = [member_id for member_id in ordered if topic in members[member_id].topics]
            if not subscribed:
                continue
            each, one_more = divmod(partition_counts[topic], len(subscribed))
            start = 0
            for place, member_id in enumerate(subscribed):
                end = start + each + (place < one_more)
                assignment[member_id] += [TopicPartition(topic, partition) for partition in range(start, end)]
                start = end
        return assignment
