"""Which versions of the protocol our client speaks, with brokers that are older, as old, and newer than it is."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from ottla.client import AdminClient, OffsetAndMetadata, TopicPartition, connection
from ottla.client.admin import ConfigResource, NewTopic, OffsetSpec
from ottla.errors import TopicAlreadyExists
from ottla_wire.messages import ApiKey, request_class
from ottla_wire.schema import Request
from support.clusters import eventually

pytestmark = pytest.mark.every_version

# The newest versions that each release has, from its message definitions.
RELEASES = {
    "3.9": {"PRODUCE": 11, "FETCH": 17, "LIST_OFFSETS": 9, "METADATA": 12, "DESCRIBE_GROUPS": 5, "API_VERSIONS": 4},
    "4.0": {"PRODUCE": 12, "FETCH": 17, "LIST_OFFSETS": 10, "METADATA": 13, "DESCRIBE_GROUPS": 6, "API_VERSIONS": 4},
    "4.3": {"PRODUCE": 13, "FETCH": 18, "LIST_OFFSETS": 11, "METADATA": 13, "DESCRIBE_GROUPS": 6, "API_VERSIONS": 4},
    "4.4": {"PRODUCE": 13, "FETCH": 18, "LIST_OFFSETS": 11, "METADATA": 13, "DESCRIBE_GROUPS": 6, "API_VERSIONS": 5},
}
BY_NAME = {"OFFSET_COMMIT": 9, "OFFSET_FETCH": 9}  # their next versions name topics by id, and a deleted topic has none
OFFSETS = ("OFFSET_COMMIT", "OFFSET_FETCH", "OFFSET_DELETE", "OFFSET_FOR_LEADER_EPOCH", "LIST_OFFSETS")
RECORDS = ("PRODUCE", "FETCH", "INIT_PRODUCER_ID", "DELETE_RECORDS")
GROUPS = ("JOIN_GROUP", "SYNC_GROUP", "HEARTBEAT", "LEAVE_GROUP", "DESCRIBE_GROUPS", "LIST_GROUPS", "DELETE_GROUPS")
TOPICS = ("CREATE_TOPICS", "CREATE_PARTITIONS", "DELETE_TOPICS", "DESCRIBE_CONFIGS", "INCREMENTAL_ALTER_CONFIGS")
CLUSTER = ("METADATA", "FIND_COORDINATOR")


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """The versions in which our clients send each kind of request, by API, as they send them."""
    seen: dict[str, list[int]] = defaultdict(list)
    encode = connection.encode_request

    def listen(request: Request, version: int, *others: Any) -> Any:
        seen[ApiKey(request.api_key).name].append(version)
        return encode(request, version, *others)

    monkeypatch.setattr(connection, "encode_request", listen)
    return seen


def newest(api: str) -> int:
    """The newest version that our client speaks."""
    request = request_class(ApiKey[api])
    ours = request.versions.max - 1 if request.latest_version_unstable else request.versions.max
    return BY_NAME.get(api, ours)


def read(consumer: Any, until: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not until():
        assert time.monotonic() < deadline, "not so within 20 s"
        consumer.poll(0.05)


def use_topics(admin: AdminClient, name: str) -> None:
    admin.create_topics([NewTopic(name, partitions=1, replication_factor=1)])
    eventually(lambda: name in admin.list_topics())
    admin.create_partitions({name: 2})
    eventually(lambda: len(admin.describe_topics([name])[name].partitions) == 2)
    owner = ConfigResource.topic(name)
    admin.alter_configs({owner: {"retention.ms": 86_400_000}})
    eventually(lambda: admin.describe_configs([owner])[owner]["retention.ms"].value == "86400000")
    assert admin.describe_cluster().nodes


def use_records(admin: AdminClient, producer: Any, consumer: Any, name: str, spoken: dict[str, list[int]]) -> None:
    here = TopicPartition(name, 0)
    assert producer.send(name, b"v", partition=0).result(20).offset == 0
    consumer.subscribe([name])
    read(consumer, lambda: here in consumer.assignment() and consumer.position(here) == 1)
    read(consumer, lambda: spoken["HEARTBEAT"])
    consumer.commit()
    committed = consumer.committed([here])[here]
    assert committed.offset == 1
    consumer.seek(here, OffsetAndMetadata(1, 0))  # an epoch to compare with the leader's
    read(consumer, lambda: spoken["OFFSET_FOR_LEADER_EPOCH"])
    assert consumer.end_offsets([here]) == {here: 1}
    assert admin.list_offsets({here: OffsetSpec.MAX_TIMESTAMP})[here].offset == 0
    assert admin.delete_records({here: 1}) == {here: 1}


def use_groups(admin: AdminClient, consumer: Any, group: str, name: str) -> None:
    here = TopicPartition(name, 0)
    assert admin.describe_groups([group])[group].state == "Stable"
    assert group in {listed.group_id for listed in admin.list_groups()}
    consumer.close()
    admin.alter_group_offsets(group, {here: 0})
    assert admin.list_group_offsets(group)[here].offset == 0
    admin.delete_group_offsets(group, [here])
    admin.delete_groups([group])
    admin.delete_topics([name])


def test_every_request_goes_out_in_the_newest_version_that_both_sides_have(
    cluster: Any, spoken: dict[str, list[int]], make_producer: Any, make_consumer: Any
) -> None:
    name, group = cluster.fresh("t"), cluster.fresh("g")
    with AdminClient(bootstrap_servers=cluster.bootstrap_servers, retry_backoff_ms=20) as admin:
        use_topics(admin, name)
        consumer = make_consumer(group_id=group, heartbeat_interval_ms=100)
        use_records(admin, make_producer(), consumer, name, spoken)
        use_groups(admin, consumer, group, name)
    agreed = {
        api: {min(newest(api), cluster.versions[ApiKey[api]][1])}
        for api in (*OFFSETS, *RECORDS, *GROUPS, *TOPICS, *CLUSTER)
    }
    tried = spoken.pop("API_VERSIONS")
    assert {api: set(versions) for api, versions in spoken.items()} == agreed
    # A connection begins with our newest; an older broker names its own, in which the question is asked again.
    ours, theirs = newest("API_VERSIONS"), cluster.versions[ApiKey.API_VERSIONS][1]
    assert set(tried) == ({ours} if theirs >= ours else {ours, theirs})


def test_the_broker_is_of_the_release_that_it_stands_for(cluster: Any) -> None:
    if cluster.release is None:
        pytest.skip("a cluster at an address or from an image may be of any release")
    expected = RELEASES[cluster.release]
    assert {api: cluster.versions[ApiKey[api]][1] for api in expected} == expected


def test_a_topic_that_is_made_again_is_found_by_those_who_used_it(
    cluster: Any, make_topic: Any, make_producer: Any, make_consumer: Any
) -> None:
    """Clients know the old one's id, and have to see that it is another: with topic ids in requests and without."""
    name = make_topic().name
    here = TopicPartition(name, 0)
    producer, consumer = make_producer(), make_consumer()
    consumer.assign([here])
    found: list[bytes | None] = []

    def sent_and_read(value: bytes) -> None:
        producer.send(name, value).result(20)
        deadline = time.monotonic() + 20
        while value not in found:
            assert time.monotonic() < deadline, f"{value!r} was not read within 20 s"
            found.extend(record.value for record in consumer.poll(0.1))

    for value in (b"0", b"1", b"2"):
        sent_and_read(value)
    cluster.admin.delete_topics([name])
    with contextlib.suppress(TopicAlreadyExists):  # a question of the producer may have made it
        cluster.admin.create_topics([NewTopic(name, partitions=1, replication_factor=1)])
    sent_and_read(b"again")
    assert found == [b"0", b"1", b"2", b"again"]
