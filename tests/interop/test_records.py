"""What other people's clients write to our broker, and what they read from it."""

from __future__ import annotations

from typing import Any

import pytest

from ottla.client import KafkaConsumer, TopicPartition
from ottla_wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from ottla_wire.records import iter_batches
from support.foreign_clients import CODECS, Ottla, Rec
from support.peers import missing

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # theirs, not ours


def sample(tag: str) -> list[Rec]:
    """Every form that a record takes, and some bulk for the codecs."""
    forms = [
        Rec(f"{tag}-key", f"{tag} plain"),
        Rec(f"{tag}-headers", f"{tag} with headers", (("a", "1"), ("b", "two"), ("a", "3"))),
        Rec(None, f"{tag} without a key"),
        Rec(f"{tag}-tombstone", None),
        Rec(f"{tag}-grüße", f"{tag} ünïcödé ✓"),
        Rec(f"{tag}-long", f"{tag} " + "long " * 2_000),
    ]
    return forms + [Rec(f"{tag}-{number % 7}", f"{tag} value {number} " + "y" * 40) for number in range(100)]


def stored_codecs(cluster: Any, topic: str) -> set[str]:
    """The codecs of the batches in a topic's only partition."""
    client = cluster.connect()
    try:
        partition = FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=1 << 25)
        request = FetchRequest(max_bytes=1 << 25, topics=[FetchTopic(topic=topic, partitions=[partition])])
        records = client.ask(request, 12).responses[0].partitions[0].records
    finally:
        client.close()
    return {batch.compression.name.lower() for batch in iter_batches(records, strict=True)}


def in_any_order(records: list[Rec]) -> list[Rec]:
    return sorted(records, key=repr)


def test_what_they_write_we_read(cluster: Any, servers: str, foreign: Any, codec: str) -> None:
    if codec not in foreign.codecs():
        pytest.skip(f"{foreign.name} has no {codec} as it is installed here")
    topic = cluster.create_topic()
    sent = sample(f"{foreign.name}-{codec}")
    foreign.produce(servers, topic, sent, codec)
    assert Ottla().consume(servers, topic, len(sent)) == sent
    assert codec in stored_codecs(cluster, topic)


@pytest.fixture(scope="module")
def mixed(cluster: Any, peers: dict[str, Any]) -> Any:
    """A topic into which everybody here wrote, in codecs that a reader knows; with what is in it."""
    made: dict[tuple[str, ...], tuple[str, list[Rec]]] = {}
    favourites = {"confluent": "lz4", "aiokafka": "snappy", "kafka-python": "gzip", "kcat": "zstd", "java": "zstd"}
    requirements = {"java": ("java", "apache-4.3"), "ottla": ()}

    def make(codecs: Any) -> tuple[str, list[Rec]]:
        known = tuple(codecs)
        if known not in made:
            topic = cluster.create_topic(3)
            everything: list[Rec] = []
            jobs = [("ottla", codec) for codec in known]
            jobs += [(name, codec if codec in known else "none") for name, codec in favourites.items()]
            for name, codec in jobs:
                if any(missing(need) for need in requirements.get(name, (name,))):
                    continue
                records = sample(f"{name}-{codec}")
                peers[name].produce(cluster.bootstrap_servers, topic, records, codec)
                everything += records
            made[known] = topic, everything
        return made[known]

    return make


def test_they_read_what_everybody_wrote(servers: str, mixed: Any, anybody: Any) -> None:
    topic, everything = mixed(anybody.codecs())
    assert in_any_order(anybody.consume(servers, topic, len(everything))) == in_any_order(everything)


def test_every_codec_is_among_those_somebody_reads(peers: dict[str, Any]) -> None:
    assert {codec for name in ("ottla", "aiokafka") for codec in peers[name].codecs()} == set(CODECS)


@pytest.mark.peer("java", "apache-4.3")
def test_the_verifiable_producer_is_told_the_truth(cluster: Any, servers: str, peers: dict[str, Any]) -> None:
    topic = cluster.create_topic(3)
    events = peers["java"].verifiable_producer(servers, topic, 500)
    acknowledged = {
        (event["partition"], event["offset"]): event["value"]
        for event in events
        if event["name"] == "producer_send_success"
    }
    assert sorted(map(int, acknowledged.values())) == list(range(500))
    with KafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, index) for index in range(3)])
        found: dict[tuple[int, int], str] = {}
        for _ in range(100):
            found |= {(r.partition, r.offset): r.value.decode() for r in consumer.poll(0.3)}
            if len(found) >= 500:
                break
    assert found == acknowledged
