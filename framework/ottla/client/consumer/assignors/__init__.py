"""How a group's leader distributes partitions: the four assignors of Java's client, under their names.

`partition_assignment_strategy` takes these names, Java's class names, and objects that are assignors.
"""

from __future__ import annotations

from collections.abc import Iterable

from ottla.client.consumer.assignors.assignor import Assignor, MemberSubscription, RebalanceProtocol
from ottla.client.consumer.assignors.cooperative import CooperativeStickyAssignor
from ottla.client.consumer.assignors.range import RangeAssignor
from ottla.client.consumer.assignors.round_robin import RoundRobinAssignor
from ottla.client.consumer.assignors.sticky import StickyAssignor
from ottla.errors import ConfigError

BUILT_IN = (RangeAssignor, RoundRobinAssignor, StickyAssignor, CooperativeStickyAssignor)
_BY_NAME = {kind.name: kind for kind in BUILT_IN} | {
    f"org.apache.kafka.clients.consumer.{kind.__name__}": kind for kind in BUILT_IN
}


def assignors_for(strategy: str | Assignor | Iterable[str | Assignor]) -> list[Assignor]:
    """The assignors that a setting names, most preferred first.

    Raises:
        ConfigError: a name is unknown, two are the same, or none is given.
    """
    if isinstance(strategy, str):
        named: list[str | Assignor] = [name.strip() for name in strategy.split(",")]
    elif isinstance(strategy, Assignor):
        named = [strategy]
    else:
        named = list(strategy)
    assignors = [_made(entry) for entry in named]
    names = [assignor.name for assignor in assignors]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"partition_assignment_strategy must name each assignor once, and at least one; got {names}")
    return assignors


def protocol_of(assignors: Iterable[Assignor]) -> RebalanceProtocol:
    """The protocol a member follows: cooperative only where each of its assignors can.

    So a group is moved to cooperative rebalancing in two rolling restarts: first add the cooperative assignor behind
    the old one, then take the old one away (KIP-429).
    """
    if all(RebalanceProtocol.COOPERATIVE in assignor.protocols for assignor in assignors):
        return RebalanceProtocol.COOPERATIVE
    return RebalanceProtocol.EAGER


def _made(entry: str | Assignor) -> Assignor:
    if isinstance(entry, str):
        kind = _BY_NAME.get(entry)
        if kind is None:
            known = ", ".join(kind.name for kind in BUILT_IN)
            raise ConfigError(f"partition_assignment_strategy names {entry!r}; there are {known}, or give an Assignor")
        return kind()
    if isinstance(entry, Assignor):
        return entry
    raise ConfigError(f"partition_assignment_strategy holds {entry!r}, which is neither a name nor an Assignor")


__all__ = [
    "Assignor",
    "CooperativeStickyAssignor",
    "MemberSubscription",
    "RangeAssignor",
    "RebalanceProtocol",
    "RoundRobinAssignor",
    "StickyAssignor",
    "assignors_for",
    "protocol_of",
]
