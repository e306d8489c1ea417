"""The files of `__transaction_state`, read by Apache Kafka's own tool; and the same fields as in its definitions."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ottla_broker.coordinator.transaction_records import (
    EpochEndSchema,
    PartitionsSchema,
    TransactionLogKey,
    TransactionLogValue,
    transaction_record,
    transaction_tombstone,
)
from ottla_wire.records import build_batch
from support import apache_kafka
from support.apache_kafka import VERSIONS
from support.kafka_schemas import jar, kafka_fields, kafka_layout, our_layout

KAFKA = VERSIONS["4.3"]


def a_value(rng: random.Random) -> TransactionLogValue:
    partitions = [
        PartitionsSchema(topic=f"topic-{number}", partition_ids=rng.sample(range(100), rng.randrange(4)))
        for number in range(rng.randrange(3))
    ]
    return TransactionLogValue(
        producer_id=rng.randrange(2**63),
        previous_producer_id=rng.choice([-1, rng.randrange(2**40)]),
        next_producer_id=rng.choice([-1, rng.randrange(2**40)]),
        producer_epoch=rng.randrange(2**15),
        transaction_timeout_ms=rng.randrange(2**31),
        transaction_status=rng.randrange(6),
        transaction_partitions=rng.choice([None, partitions]),
        transaction_last_update_timestamp_ms=rng.randrange(2**42),
        transaction_start_timestamp_ms=rng.choice([-1, rng.randrange(2**42)]),
        client_transaction_version=rng.choice([0, 2]),
        epoch_end=rng.choice(
            [EpochEndSchema(), EpochEndSchema(reason=2, producer_epoch=7, client_id="é", client_host="h", at_ms=1)]
        ),
    )


def as_json(value: TransactionLogValue, version: int) -> dict[str, Any]:
    """As Kafka's tool prints it: tagged fields only where they are not the default."""
    shown: dict[str, Any] = {
        "producerId": value.producer_id,
        "producerEpoch": value.producer_epoch,
        "transactionTimeoutMs": value.transaction_timeout_ms,
        "transactionStatus": value.transaction_status,
        "transactionPartitions": value.transaction_partitions
        and [{"topic": each.topic, "partitionIds": each.partition_ids} for each in value.transaction_partitions],
        "transactionLastUpdateTimestampMs": value.transaction_last_update_timestamp_ms,
        "transactionStartTimestampMs": value.transaction_start_timestamp_ms,
    }
    if version == 1:
        tagged = {
            "previousProducerId": (value.previous_producer_id, -1),
            "nextProducerId": (value.next_producer_id, -1),
            "clientTransactionVersion": (value.client_transaction_version, 0),
        }
        shown |= {name: found for name, (found, default) in tagged.items() if found != default}
    return shown


@pytest.mark.slow
@pytest.mark.peer("apache-4.3", "java")
def test_apache_kafkas_own_tool_reads_every_record(tmp_path: Path) -> None:
    rng = random.Random(20_261_125)
    expected: list[tuple[str, int | None, Any]] = []
    batches = []
    for number in range(200):
        name, version = f"id-{number}", number % 2
        value = a_value(rng)
        record = transaction_record(name, value, version)
        told: tuple[str, int | None, Any] = (name, version, as_json(value, version))
        if number % 10 == 9:
            record, told = transaction_tombstone(name), (name, None, None)
        expected.append(told)
        batches.append(build_batch([(1_700_000_000_000, record.key, record.value, ())], base_offset=number))
    file = tmp_path / "00000000000000000000.log"
    file.write_bytes(b"".join(batches))
    tool = "org.apache.kafka.tools.DumpLogSegments"
    dump = apache_kafka.ApacheKafka(KAFKA).run_tool(tool, "--transaction-log-decoder", "--files", str(file))
    found = []
    for line in dump.splitlines():
        if "payload: " not in line:
            continue
        key, _, payload = line.partition("key: ")[2].partition(" payload: ")
        read_key = json.loads(key)
        assert read_key["type"] == "0"
        value = None if payload in ("null", "<DELETE>") else json.loads(payload)
        version = None if value is None else int(value["version"])
        found.append((read_key["data"]["transactionalId"], version, value and value["data"]))
    assert found == expected


@pytest.mark.parametrize("kind", [TransactionLogKey, TransactionLogValue])
@pytest.mark.peer("kafka-jars")
def test_the_fields_are_those_of_kafkas_definition(kind: type[TransactionLogKey] | type[TransactionLogValue]) -> None:
    found = list(jar(KAFKA).parent.glob(f"kafka-transaction-coordinator-{KAFKA}.jar"))
    if not found:
        pytest.skip(f"beside kafka-clients-{KAFKA}.jar there is no kafka-transaction-coordinator")
    with zipfile.ZipFile(found[0]) as archive:
        text = archive.read(f"common/message/{kind.__name__}.json").decode()
    definition = json.loads("\n".join(line for line in text.splitlines() if not line.strip().startswith("//")))
    for version in kind.versions:
        assert our_layout(kind, version) == kafka_layout(kafka_fields(definition), version)
