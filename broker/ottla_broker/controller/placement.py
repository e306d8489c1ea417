"""Which brokers hold the replicas of new partitions."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ottla_broker.controller.image import BrokerImage
from ottla_wire.errors import InvalidReplicationFactor


def place_replicas(
    brokers: Sequence[BrokerImage], count: int, replication_factor: int, rng: random.Random
) -> list[list[int]]:
    """Replicas of `count` new partitions, the preferred leader first.

    The first partition starts at a random broker, each further one at the next, and the other replicas of a partition
    follow in order: leaders and replicas are spread evenly within a topic and, by chance, over topics. Racks are not
    looked at yet.

    Raises:
        InvalidReplicationFactor: there are fewer active brokers than replicas.
    """
    if replication_factor <= 0:
        raise InvalidReplicationFactor(
            f"Invalid replication factor {replication_factor}: the replication factor must be positive."
        )
    if not brokers:
        raise InvalidReplicationFactor("All brokers are currently fenced.")
    if replication_factor > len(brokers):
        raise InvalidReplicationFactor(
            f"The target replication factor of {replication_factor} cannot be reached because only {len(brokers)} "
            "broker(s) are registered."
        )
    ids = [broker.id for broker in brokers]
    start = rng.randrange(len(ids))
    return [
        [ids[(partition + replica) % len(ids)] for replica in range(replication_factor)]
        for partition in range(start, start + count)
    ]
