"""Which partition a record goes to (KIP-794). Sans-I/O.

A record with a key goes where murmur2 of the key says, as with Java's default partitioner: the same key, the same
partition, whichever program wrote it (librdkafka's default is another). A record without a key sticks to a partition
until that has got a batch's worth of bytes: full batches cost less than spread records. The next partition is chosen at
random; with adaptive partitioning, one whose queue is shorter is chosen more often, so that a slow broker gets less.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final

from ottla_wire.records import partition_for_key

Partitioner = Callable[[str, bytes | None, bytes | None, int], int]
"""A user's own: `(topic, key, value, number of partitions) -> partition`, on serialized keys and values."""

NO_PARTITION: Final = -1

__all__ = ["NO_PARTITION", "Partitioner", "StickyPartition", "choose", "partition_for_key"]


def choose(candidates: Sequence[int], lengths: Sequence[int] | None, rng: random.Random) -> int:
    """One of the candidates at random.

    Args:
        candidates: partitions to choose from; at least one.
        lengths: how many batches wait for each of them, for adaptive choice; None gives all the same chance.
        rng: the chance.
    """
    if lengths is None or len(candidates) == 1:
        return candidates[rng.randrange(len(candidates))]
    # The chance of each is the longest queue's length plus one, less its own length.
    most = max(lengths) + 1
    weights = list(accumulate(most - length for length in lengths))
    return candidates[bisect_right(weights, rng.randrange(weights[-1]))]


class StickyPartition:
    """The partition that records without a key go to at the moment, and how much it has got.

    Java switches at an append that finds enough bytes written and no batch half full. Here it is looked at where a new
    batch is begun, which is the same moment seen from the other side, and costs an append nothing.
    """

    __slots__ = ("bytes_taken", "partition")

    def __init__(self) -> None:
        self.partition = NO_PARTITION
        self.bytes_taken = 0

    def batch_ended(self, size_bytes: int, *, was_full: bool, batch_size: int) -> None:
        """A batch of the sticky partition takes no more records: because it was full, or because it was sent."""
        self.bytes_taken += max(size_bytes, batch_size) if was_full else size_bytes

    def is_due(self, batch_size: int) -> bool:
        """Whether the next batch should be another partition's."""
        return self.partition == NO_PARTITION or self.bytes_taken >= max(batch_size, 1)

    def stick_to(self, partition: int) -> None:
        """Begin with another partition."""
        self.partition = partition
        self.bytes_taken = 0
