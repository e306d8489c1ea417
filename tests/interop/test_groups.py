"""Three members of a group, of one kind and of several, and a rebalance."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ottla.client import KafkaProducer
from support.foreign_clients import Member
from support.peers import missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # theirs, not ours
]
PARTITIONS = 6
SECONDS = 60


def wait_until(satisfied: Callable[[], bool], describe: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not satisfied():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.05)


def await_shares(members: list[Member], each: int) -> None:
    """Wait until everybody has so many partitions, and together they have all."""

    def is_so() -> bool:
        shares = [set(member.assigned) for member in members]
        return all(len(share) == each for share in shares) and set().union(*shares) == set(range(PARTITIONS))

    wait_until(is_so, lambda: [sorted(member.assigned) for member in members])


def produce(servers: str, topic: str, prefix: str) -> list[str]:
    values = [f"{prefix}-{number}" for number in range(60)]
    with KafkaProducer(bootstrap_servers=servers) as producer:
        for number, value in enumerate(values):
            producer.send(topic, value, partition=number % PARTITIONS)
        producer.flush(20)
    return values


def await_values(members: list[Member], expected: list[str], gone: list[str]) -> None:
    """Wait until all was read, by whomever; nothing twice."""

    def read() -> Counter[str]:
        return Counter([value for member in members for value in list(member.values)] + gone)

    wait_until(lambda: len(read()) == len(expected), lambda: f"{len(read())} of {len(expected)}")
    assert read() == Counter(expected)


@pytest.fixture
def join(servers: str) -> Iterator[Callable[[Any, str, str], Member]]:
    members: list[Member] = []

    def add(peer: Any, topic: str, group: str) -> Member:
        members.append(peer.member(servers, topic, group))
        return members[-1]

    yield add
    for member in members:
        if not getattr(member, "left", False):
            member.close()


def play(cluster: Any, servers: str, join: Any, kinds: list[Any]) -> None:
    topic, group = cluster.create_topic(PARTITIONS), cluster.fresh("group")
    members = [join(kinds[0], topic, group)]
    await_shares(members, 6)
    sent = produce(servers, topic, "first")
    await_values(members, sent, [])

    members += [join(kind, topic, group) for kind in kinds[1:]]
    await_shares(members, 2)
    described = cluster.admin.describe_groups([group])[group]
    assert (described.state, len(described.members)) == ("Stable", 3)
    sent += produce(servers, topic, "second")
    await_values(members, sent, [])

    leaver = members.pop(0)
    leaver.close()
    leaver.left = True  # type: ignore[attr-defined]
    await_shares(members, 3)
    sent += produce(servers, topic, "third")
    await_values(members, sent, leaver.values)

    for member in members:
        member.close()
        member.left = True  # type: ignore[attr-defined]
    offsets = cluster.admin.list_group_offsets(group)
    assert sum(offset.offset for offset in offsets.values()) == len(sent)


def test_three_of_a_kind(cluster: Any, servers: str, join: Any, anybody: Any) -> None:
    play(cluster, servers, join, [anybody] * 3)


@pytest.mark.peer("confluent", "aiokafka")
def test_three_of_different_kinds(cluster: Any, servers: str, join: Any, peers: dict[str, Any]) -> None:
    names = ["ottla", "confluent", "java" if missing("apache-4.3") is None else "aiokafka"]
    play(cluster, servers, join, [peers[name] for name in names])
