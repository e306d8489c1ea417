"""A whole broker behind a real socket: what only the event loop, the disk thread and the kernel can get wrong."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ottla.embedded import EmbeddedKafka
from ottla_wire.framing import encode_request
from ottla_wire.messages.api_versions import ApiVersionsRequest
from ottla_wire.messages.create_topics import CreatableTopic, CreateTopicsRequest
from ottla_wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from ottla_wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from ottla_wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from ottla_wire.messages.metadata import MetadataRequest, MetadataRequestTopic
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.records import build_batch, iter_batches


@pytest.fixture(scope="module")
def kafka() -> Iterator[EmbeddedKafka]:
    topics = dict.fromkeys(("pipelined", "parked", "acks0", "large", "slow", "random"), 1) | {"many": 3}
    with EmbeddedKafka(topics=topics) as running:
        yield running


def produce_request(topic: str, *values: bytes, acks: int = -1, index: int = 0, **fields: Any) -> ProduceRequest:
    records = build_batch([(1_700_000_000_000, None, value, ()) for value in values], **fields)
    data = TopicProduceData(name=topic, partition_data=[PartitionProduceData(index=index, records=records)])
    return ProduceRequest(acks=acks, timeout_ms=5000, topic_data=[data])


def fetch_request(topic: str, offset: int = 0, *, max_bytes: int = 1 << 24, **options: Any) -> FetchRequest:
    partition = FetchPartition(partition=0, fetch_offset=offset, partition_max_bytes=max_bytes)
    return FetchRequest(max_bytes=1 << 26, topics=[FetchTopic(topic=topic, partitions=[partition])], **options)


def values_of(response: Any) -> list[bytes]:
    records = response.responses[0].partitions[0].records
    return [record.value for batch in iter_batches(records) for record in batch.records()]


def offset_of(response: Any) -> int:
    result = response.responses[0].partition_responses[0]
    assert result.error_code == 0, result
    return int(result.base_offset)


def end_of(client: Any, topic: str) -> int:
    asked = [ListOffsetsPartition(partition_index=0, timestamp=-1)]
    request = ListOffsetsRequest(replica_id=-1, topics=[ListOffsetsTopic(name=topic, partitions=asked)])
    return int(client.ask(request, 6).topics[0].partitions[0].offset)


def test_five_idempotent_batches_in_flight_keep_their_order(kafka: Any, connect: Any) -> None:
    client = connect(kafka.bootstrap_servers)
    for round_ in range(40):
        requests = [
            produce_request("pipelined", b"%d" % n, producer_id=77, producer_epoch=0, base_sequence=round_ * 5 + n)
            for n in range(5)
        ]
        numbers = [client.send(request, 9) for request in requests]
        answers = [client.receive(request, 9) for request in requests]
        assert [number for number, _ in answers] == numbers
        assert [offset_of(answer) for _, answer in answers] == [round_ * 5 + n for n in range(5)]


def test_what_is_asked_behind_a_parked_fetch_is_answered_behind_it(kafka: Any, connect: Any) -> None:
    consumer, producer = connect(kafka.bootstrap_servers), connect(kafka.bootstrap_servers)
    fetch, metadata = fetch_request("parked", max_wait_ms=30_000, min_bytes=1), MetadataRequest(topics=[])
    first, second = consumer.send(fetch, 12), consumer.send(metadata, 9)
    producer.ask(produce_request("parked", b"hello"), 9)
    number, answer = consumer.receive(fetch, 12)
    assert (number, values_of(answer)) == (first, [b"hello"])
    assert consumer.receive(metadata, 9)[0] == second


def test_acks_0_is_silent_until_something_fails(kafka: Any, connect: Any) -> None:
    client = connect(kafka.bootstrap_servers)
    client.send(produce_request("acks0", b"a", acks=0), 9)
    assert end_of(client, "acks0") == 1
    client.send(produce_request("no-such-topic", b"a", acks=0), 9)
    assert client.is_closed_by_peer()


def test_an_answer_of_many_megabytes_reaches_a_slow_reader_whole(kafka: Any, connect: Any) -> None:
    client, other = connect(kafka.bootstrap_servers), connect(kafka.bootstrap_servers)
    payloads = [os.urandom(1_000_000) for _ in range(12)]
    for payload in payloads:
        other.ask(produce_request("large", payload), 9)
    fetch = fetch_request("large")
    for _ in range(3):
        client.send(fetch, 12)
    # Nothing was read so far: the broker serves the others all the same.
    assert other.ask(ApiVersionsRequest(), 2).error_code == 0
    for _ in range(3):
        assert values_of(client.receive(fetch, 12)[1]) == payloads


def test_a_request_in_single_bytes(kafka: Any, connect: Any) -> None:
    client = connect(kafka.bootstrap_servers)
    request = produce_request("slow", b"drip")
    for byte in b"".join(bytes(part) for part in encode_request(request, 9, 5, None)):
        client.socket.sendall(bytes([byte]))
    assert offset_of(client.receive(request, 9)[1]) == 0


def test_random_bytes_never_harm_anybody_else(kafka: Any, connect: Any, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(11)
    quiet = connect(kafka.bootstrap_servers)
    whole = b"".join(bytes(part) for part in encode_request(produce_request("random", b"x" * 50), 9, 5, "c"))
    for _ in range(150):
        noisy = connect(kafka.bootstrap_servers)
        frame = bytearray(whole[4:])
        for _ in range(rng.randrange(1, 4)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        noisy.socket.sendall(len(frame).to_bytes(4, "big") + frame)
        noisy.socket.shutdown(1)
        while noisy.socket.recv(65536):
            pass
        noisy.close()
    assert quiet.ask(MetadataRequest(topics=[]), 9).brokers
    assert "Traceback" not in caplog.text


def test_a_topic_that_is_deleted_answers_a_parked_fetch(kafka: Any, connect: Any) -> None:
    consumer, admin = connect(kafka.bootstrap_servers), connect(kafka.bootstrap_servers)
    fetch = fetch_request("many", max_wait_ms=30_000, min_bytes=1)
    consumer.send(fetch, 12)
    admin.ask(DeleteTopicsRequest(topics=[DeleteTopicState(name="many")], timeout_ms=5000), 6)
    _, answer = consumer.receive(fetch, 12)
    assert answer.responses[0].partitions[0].error_code == 3


def test_others_are_answered_while_a_topic_of_a_thousand_partitions_is_made(kafka: Any, connect: Any) -> None:
    maker, other = connect(kafka.bootstrap_servers), connect(kafka.bootstrap_servers)
    topic = CreatableTopic(name="thousand", num_partitions=1000, replication_factor=1)
    request = CreateTopicsRequest(topics=[topic], timeout_ms=30_000)
    maker.send(request, 7)
    answered = 0
    while maker.is_silent(0.0001):
        other.ask(ApiVersionsRequest(), 2)
        answered += 1
    assert maker.receive(request, 7)[1].topics[0].error_code == 0
    assert answered > 5  # one before it began, one behind it, and those in between
    metadata = other.ask(MetadataRequest(topics=[MetadataRequestTopic(name="thousand")]), 9).topics[0]
    assert len(metadata.partitions) == 1000
    assert offset_of(other.ask(produce_request("thousand", b"x", index=999), 9)) == 0


def test_a_broker_that_stops_while_new_folders_are_fsynced_stops_quietly(
    connect: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddedKafka(data=tmp_path / "data", topics={"t": 100}) as kafka:
        client = connect(kafka.bootstrap_servers)
        for index in range(100):
            offset_of(client.ask(produce_request("t", b"x", index=index, acks=1), 9))
    assert caplog.text == ""
    assert (tmp_path / "data" / ".kafka_cleanshutdown").exists()


def test_fsync_before_ack_goes_through_the_disk_thread(
    connect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    synced_by: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced_by.append(threading.current_thread().name)
        fsync(descriptor)

    config = {"log.flush.interval.messages": 1}
    with EmbeddedKafka(data=tmp_path / "data", topics={"t": 2}, config=config) as kafka:
        client = connect(kafka.bootstrap_servers)
        monkeypatch.setattr(os, "fsync", noted)
        requests = [produce_request("t", b"%d" % n, index=n % 2, acks=1 - 2 * (n % 2)) for n in range(20)]
        for request in requests:
            client.send(request, 9)
        offsets = [offset_of(client.receive(request, 9)[1]) for request in requests]
        monkeypatch.undo()
    assert offsets == [n // 2 for n in range(20)]
    assert synced_by
    assert all(name.startswith("ottla-disk") for name in synced_by)
    # One group for what was waiting, not one fsync for each request (a group is a file and its folder per partition).
    assert len(synced_by) < 20 * 2
