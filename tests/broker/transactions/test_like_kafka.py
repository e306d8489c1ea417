"""The same conversations as with Apache Kafka 4.3.1, answer by answer and record by record.

`kafka-4.3.1.json` holds what a real one said and wrote. `test_apache_kafka_still_says_so` asks one again (it needs
Java); to write the file anew after a scenario has changed, run it with OTTLA_RECORD=1.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ottla_broker.coordinator.transaction_records import TransactionLogKey, TransactionLogValue
from ottla_wire.messages.create_topics import CreatableTopic, CreateTopicsRequest
from ottla_wire.messages.find_coordinator import FindCoordinatorRequest
from ottla_wire.messages.init_producer_id import InitProducerIdRequest
from ottla_wire.messages.metadata import MetadataRequest, MetadataRequestTopic
from ottla_wire.schema import Request
from support.apache_kafka import ApacheKafka
from support.broker_process import BrokerProcess
from support.clusters import eventually
from support.transaction_scenarios import SCENARIOS, SETTINGS, STATE_PARTITIONS, TOPIC, Play
from support.wire_client import WireClient

RECORDED = Path(__file__).with_name("kafka-4.3.1.json")

Ask = Callable[[Request, int], Any]


def prepared(address: str) -> WireClient:
    """A client of a broker that has the topic and a coordinator for every transactional id."""
    client = WireClient(address, timeout=30)
    create = CreateTopicsRequest(
        topics=[CreatableTopic(name=TOPIC, num_partitions=3, replication_factor=1)], timeout_ms=10_000
    )
    assert client.ask(create, 7).topics[0].error_code == 0
    described = MetadataRequest(topics=[MetadataRequestTopic(name=TOPIC)])
    eventually(lambda: len(client.ask(described, 12).topics[0].partitions) == 3)
    for key_type in (0, 1):
        find = FindCoordinatorRequest(key_type=key_type, coordinator_keys=["g"])
        eventually(lambda find=find: client.ask(find, 4).coordinators[0].error_code == 0)
    for number in range(4 * STATE_PARTITIONS):  # so many that every partition is asked whether it is loaded
        request = InitProducerIdRequest(transactional_id=f"warm-{number}", transaction_timeout_ms=1)
        eventually(lambda request=request: client.ask(request, 4).error_code == 0)
    return client


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    with BrokerProcess(tmp_path_factory.mktemp("broker") / "data", SETTINGS) as broker:
        client = prepared(broker.bootstrap_servers)
        yield client.ask
        client.close()


@pytest.fixture(scope="module")
def kafkas() -> Iterator[Ask]:
    with ApacheKafka(config=SETTINGS, quick=True) as broker:
        client = prepared(broker.bootstrap_servers)
        yield client.ask
        client.close()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_answer_and_every_record_is_the_one_that_kafka_gives(scenario: str, ours: Ask) -> None:
    play = Play(ours, f"{scenario}-{uuid.uuid4()}")
    SCENARIOS[scenario](play)
    assert play.lines == json.loads(RECORDED.read_text())[scenario]["lines"]


@pytest.mark.slow
@pytest.mark.peer("java", "apache-4.3")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_apache_kafka_still_says_so(scenario: str, kafkas: Ask) -> None:
    play = Play(kafkas, f"{scenario}-{uuid.uuid4()}")
    SCENARIOS[scenario](play)
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if "OTTLA_RECORD" in os.environ:
        records = [(record.key.hex(), record.value and record.value.hex()) for record in play.raw]
        recorded[scenario] = {"lines": play.lines, "records": records}
        RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
    assert play.lines == recorded[scenario]["lines"]


def test_a_record_of_kafka_is_written_again_to_the_byte() -> None:
    records = [tuple(each) for scenario in json.loads(RECORDED.read_text()).values() for each in scenario["records"]]
    assert len(records) > 50
    for key, value in records:
        key_bytes, value_bytes = bytes.fromhex(key), bytes.fromhex(value)
        assert TransactionLogKey.decode_with_version(key_bytes).encode_with_version(0) == key_bytes
        assert TransactionLogValue.decode_with_version(value_bytes).encode_with_version(1) == value_bytes
