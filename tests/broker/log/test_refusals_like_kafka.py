"""Bits of a produced batch's header are flipped: our log answers what a real broker answers (pitfall 19)."""

from __future__ import annotations

import itertools
import socket
import struct
import time

import pytest
from log_batches import append, batch, open_log
from log_simulated_files import SimulatedFiles

from ottla_wire.errors import KafkaError
from ottla_wire.framing import decode_response, encode_request
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, ProduceResponse, TopicProduceData
from ottla_wire.records import Compression, crc32c
from support import apache_kafka

pytestmark = [pytest.mark.slow, pytest.mark.peer("java", "apache-4.3"), pytest.mark.timeout(300)]

TOPIC = "flips"
PRODUCE_VERSION = 9
UNKNOWN_SERVER_ERROR = -1


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Producer:
    """Sends single batches over one connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)

    def send(self, records: bytes) -> int:
        """The error code of the answer."""
        partition = PartitionProduceData(index=0, records=records)
        topic = TopicProduceData(name=TOPIC, partition_data=[partition])
        request = ProduceRequest(transactional_id=None, acks=1, timeout_ms=20_000, topic_data=[topic])
        self._socket.sendall(b"".join(encode_request(request, PRODUCE_VERSION, 1, "flips")))
        (size,) = struct.unpack(">i", self._receive(4))
        _, response = decode_response(ProduceResponse, PRODUCE_VERSION, self._receive(size))
        return response.responses[0].partition_responses[0].error_code

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            assert more, "the broker closed the connection"
            data += more
        return data

    def close(self) -> None:
        self._socket.close()


def answer(records: bytearray) -> int:
    try:
        append(open_log(SimulatedFiles()), records, now_ms=wall_ms())
    except KafkaError as error:
        return error.code
    return 0


def test_a_flipped_bit_gets_kafkas_answer() -> None:
    differences = []
    with apache_kafka.ApacheKafka(config={"num.partitions": "1"}) as kafka:
        create = ["--bootstrap-server", kafka.bootstrap_servers, "--create", "--topic", TOPIC]
        kafka.run_tool("org.apache.kafka.tools.TopicCommand", *create)
        producer = Producer(kafka.port)
        for has_right_crc in (False, True):
            for position in range(61):
                for bit in (0, 1, 3, 6, 7):
                    producer_id = position * 1000 + bit * 10 + has_right_crc
                    # A second ago: a flipped sign bit must not land on the very millisecond where the rule changes.
                    records = batch(3, timestamp_ms=wall_ms() - 1000, producer=(producer_id, 0, 0))
                    records[position] ^= 1 << bit
                    if has_right_crc:
                        struct.pack_into(">I", records, 17, crc32c(memoryview(records)[21:]))
                    theirs, mine = producer.send(bytes(records)), answer(records)
                    # where Kafka itself is surprised (-1), any refusal will do
                    if theirs == mine or (theirs == UNKNOWN_SERVER_ERROR and mine != 0):
                        continue
                    differences.append((has_right_crc, position, bit, theirs, mine))
        producer.close()
    assert differences == []


def test_a_codec_that_is_not_that_of_the_payload_gets_kafkas_answer() -> None:
    differences = []
    with apache_kafka.ApacheKafka(config={"num.partitions": "1"}) as kafka:
        create = ["--bootstrap-server", kafka.bootstrap_servers, "--create", "--topic", TOPIC]
        kafka.run_tool("org.apache.kafka.tools.TopicCommand", *create)
        producer = Producer(kafka.port)
        for real, claimed, count in itertools.product(Compression, Compression, (1, 3, 200)):
            records = batch(count, value=bytes(100), timestamp_ms=wall_ms(), compression=real)
            records[22] = records[22] & ~0x07 | claimed
            struct.pack_into(">I", records, 17, crc32c(memoryview(records)[21:]))
            theirs, mine = producer.send(bytes(records)), answer(records)
            if theirs != mine:
                differences.append((real, claimed, count, theirs, mine))
        producer.close()
    assert differences == []
