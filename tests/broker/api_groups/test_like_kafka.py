"""The same conversations as with Apache Kafka 4.3.1, answer by answer.

`kafka-4.3.1.json` holds what a real one said. `test_apache_kafka_still_says_so` asks one again (it needs Java); to
write the file anew after a scenario has changed, run it with OTTLA_RECORD=1.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ottla_wire.framing import decode_response, encode_request
from ottla_wire.messages import response_class
from ottla_wire.messages.create_topics import CreatableTopic, CreateTopicsRequest
from ottla_wire.messages.find_coordinator import FindCoordinatorRequest
from ottla_wire.messages.metadata import MetadataRequest, MetadataRequestTopic
from ottla_wire.messages.offset_fetch import OffsetFetchRequest, OffsetFetchRequestGroup
from ottla_wire.schema import Request
from support.apache_kafka import ApacheKafka
from support.group_scenarios import SCENARIOS, Play
from support.groups import TOPIC, TOPIC_ID, Groups

RECORDED = Path(__file__).with_name("kafka-4.3.1.json")
SETTINGS = {"group_max_size": 3, "group_initial_rebalance_delay_ms": 0, "offsets_topic_num_partitions": 4}


class OttlaStage:
    """Our coordinator, in virtual time."""

    topic = TOPIC
    topic_id = TOPIC_ID

    def __init__(self) -> None:
        self.groups = Groups(**SETTINGS)

    def ask(self, request: Request, version: int) -> Callable[[], Any | None]:
        answer = self.groups.ask(request, version)

        def poll() -> Any | None:
            self.groups.advance(1)
            return answer.result() if answer.done() else None

        return poll

    def wait(self, milliseconds: int) -> None:
        self.groups.advance(milliseconds)


class KafkaStage:
    """A real broker, a connection for each request."""

    topic = TOPIC

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: list[socket.socket] = []
        self._create_topic()

    def ask(self, request: Request, version: int) -> Callable[[], Any | None]:
        connection = socket.create_connection(("127.0.0.1", self._port))
        self._open.append(connection)
        connection.sendall(b"".join(bytes(part) for part in encode_request(request, version, 1, "c")))
        answers: list[Any] = []

        def poll() -> Any | None:
            if not answers:
                frame = self._receive(connection)
                if frame is None:
                    return None
                answers.append(decode_response(response_class(request.api_key), version, frame)[1])
            return answers[0]

        return poll

    def wait(self, milliseconds: int) -> None:
        time.sleep(milliseconds / 1000)

    def close(self) -> None:
        for connection in self._open:
            connection.close()

    def _receive(self, connection: socket.socket) -> bytearray | None:
        connection.settimeout(0.3)  # what takes longer is parked
        try:
            (size,) = struct.unpack(">i", connection.recv(4))
        except TimeoutError:
            return None
        connection.settimeout(10)
        frame = bytearray()
        while len(frame) < size:
            frame += connection.recv(size - len(frame))
        return frame

    def _create_topic(self) -> None:
        self._ask_until(
            CreateTopicsRequest(
                topics=[CreatableTopic(name=TOPIC, num_partitions=2, replication_factor=1, assignments=[], configs=[])],
                timeout_ms=10_000,
            ),
            7,
            lambda created: created.topics[0].error_code in (0, 36),
        )
        metadata = self._ask_until(
            MetadataRequest(topics=[MetadataRequestTopic(name=TOPIC)]), 12, lambda found: found.topics[0].partitions
        )
        self.topic_id = metadata.topics[0].topic_id
        self._ask_until(
            FindCoordinatorRequest(key_type=0, coordinator_keys=["g"], key=""),
            4,
            lambda found: not found.coordinators[0].error_code,
        )
        # With enough names every partition of the offsets topic is asked whether it is loaded.
        asked = [OffsetFetchRequestGroup(group_id=f"g{number}", topics=None) for number in range(40)]
        self._ask_until(
            OffsetFetchRequest(groups=asked, topics=[]),
            9,
            lambda found: not any(group.error_code for group in found.groups),
        )

    def _ask_until(self, request: Request, version: int, satisfied: Callable[[Any], Any]) -> Any:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            poll = self.ask(request, version)
            while (answer := poll()) is None and time.monotonic() < deadline:
                pass
            if answer is not None and satisfied(answer):
                return answer
            time.sleep(0.2)
        raise TimeoutError(f"{type(request).__name__} did not come to what was waited for")


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaStage]:
    config = {name.replace("_", "."): str(value) for name, value in SETTINGS.items()}
    with ApacheKafka(config=config) as broker:
        stage = KafkaStage(broker.port)
        yield stage
        stage.close()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_answer_is_the_one_that_kafka_gives(scenario: str) -> None:
    play = Play(OttlaStage(), "group-of-the-scenario")
    SCENARIOS[scenario](play)
    assert play.lines == json.loads(RECORDED.read_text())[scenario]


@pytest.mark.slow
@pytest.mark.peer("java", "apache-4.3")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_apache_kafka_still_says_so(scenario: str, kafka: KafkaStage) -> None:
    play = Play(kafka, f"{scenario}-{uuid.uuid4()}")
    SCENARIOS[scenario](play)
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if "OTTLA_RECORD" in os.environ:
        recorded[scenario] = play.lines
        RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
    assert play.lines == recorded[scenario]
