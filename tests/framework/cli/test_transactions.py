"""`ottla transactions` on a broker with transactions that are well, fenced, and hanging."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from ottla.cli.commands import app
from ottla.client import KafkaProducer, TopicPartition
from ottla.embedded import EmbeddedKafka
from ottla.errors import BrokerNotAvailable, ProducerFenced, TransactionalIdNotFound
from ottla_wire.messages.init_producer_id import InitProducerIdRequest
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.records import build_batch
from support.wire_client import WireClient

TOPICS = {"orders": 2, "hanging": 1}


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedKafka]:
    """One that takes writes of transactions that its coordinator does not know, as brokers before KIP-890 do."""
    config = {"transaction.partition.verification.enable": "false"}
    with EmbeddedKafka(topics=TOPICS, config=config) as kafka:
        yield kafka


@pytest.fixture
def ottla(broker: EmbeddedKafka) -> Callable[..., Any]:
    def run(*arguments: str, fails_with: str | type[Exception] | None = None) -> Any:
        runner = CliRunner(env={"OTTLA_BOOTSTRAP_SERVERS": broker.bootstrap_servers, "COLUMNS": "200"})
        result = runner.invoke(app, ["transactions", *arguments])
        if isinstance(fails_with, type):
            assert isinstance(result.exception, fails_with)
        elif fails_with is not None:
            assert result.exit_code == 2
            assert fails_with in " ".join(result.output.replace("│", " ").split())
        else:
            assert result.exit_code == 0, result.output + repr(result.exception)
        return json.loads(result.stdout) if "--json" in arguments else result.stdout

    return run


@pytest.fixture
def producer(broker: EmbeddedKafka, request: pytest.FixtureRequest) -> Iterator[KafkaProducer]:
    """A producer with an open transaction."""
    with KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, transactional_id=request.node.name, client_id="the owner"
    ) as made:
        made.init_transactions()
        made.begin_transaction()
        made.send("orders", b"1", partition=1).result(10)
        yield made


def test_transactions_are_listed_and_filtered(ottla: Any, producer: KafkaProducer) -> None:
    own = {"transactional_id": producer.transactional_id, "coordinator": 1, "state": "Ongoing"}
    (listed,) = ottla("list", "--state", "Ongoing", "--json")
    assert {name: listed[name] for name in own} == own
    assert ottla("list", "--pattern", "test_transactions_are.*", "--json") == [listed]
    assert ottla("list", "--pattern", "test_transactions_are", "--json") == [], "the whole id has to match"
    assert ottla("list", "--running-longer-than", "60", "--json") == []
    assert "Ongoing" in ottla("list")


def test_a_transaction_is_described_with_what_it_holds(ottla: Any, producer: KafkaProducer) -> None:
    (found,) = ottla("describe", producer.transactional_id, "--json")
    assert (found["state"], found["partitions"], found["timeout_ms"]) == ("Ongoing", "orders-1", 60_000)
    assert found["open_for_ms"] >= 0
    assert found["epoch_ended"] is None
    producer.commit_transaction()
    (found,) = ottla("describe", producer.transactional_id, "--json")
    assert found["partitions"] is None
    assert found["open_for_ms"] is None, "it is over"
    ottla("describe", "nobody", fails_with=TransactionalIdNotFound)


def test_producers_of_a_partition_are_described(ottla: Any, producer: KafkaProducer) -> None:
    found = ottla("describe-producers", "orders", "1", "--json")
    assert [row["transaction_start"] for row in found if row["transaction_start"] is not None]
    assert ottla("describe-producers", "orders", "1", "--broker-id", "1", "--json") == found
    ottla("describe-producers", "orders", "1", "--broker-id", "7", fails_with=BrokerNotAvailable)


def test_abort_by_id_fences_the_producer_and_describe_says_who_it_was(ottla: Any, producer: KafkaProducer) -> None:
    ottla("abort", str(producer.transactional_id))
    with pytest.raises(ProducerFenced, match="administrator"):
        producer.commit_transaction()
    (found,) = ottla("describe", producer.transactional_id, "--json")
    assert found["state"] == "Empty"
    assert "an administrator's client, 'ottla-admin-" in found["epoch_ended"]
    assert found["epoch_ended"].endswith("on 127.0.0.1, fenced it")


def test_a_mistyped_id_is_not_made_into_one(ottla: Any) -> None:
    ottla("abort", "nobody", fails_with=TransactionalIdNotFound)
    assert ottla("list", "--pattern", "nobody", "--json") == []


def test_a_hanging_transaction_is_found_and_aborted(ottla: Any, broker: EmbeddedKafka) -> None:
    start = hang(broker)
    rows = ottla("find-hanging", "--max-transaction-timeout", "0", "--topic", "hanging", "--json")
    assert [(row["topic"], row["partition"], row["transaction_start"]) for row in rows] == [("hanging", 0, start)]
    assert ottla("find-hanging", "--json") == [], "it may be a young one: 15 minutes are waited for"
    everywhere = ottla("find-hanging", "--max-transaction-timeout", "0", "--broker-id", "1", "--json")
    assert everywhere == rows
    ottla("abort", "--topic", "hanging", "--partition", "0", "--start-offset", str(start))
    assert ottla("find-hanging", "--max-transaction-timeout", "0", "--json") == []


def test_what_abort_needs_is_said(ottla: Any) -> None:
    ottla("abort", fails_with="give TRANSACTIONAL_ID, or --topic, --partition and --start-offset")
    ottla("abort", "id", "--topic", "orders", fails_with="give TRANSACTIONAL_ID")
    ottla("abort", "-t", "orders", "-p", "0", "--start-offset", "7", fails_with="begins at offset 7")
    ottla("find-hanging", "--partition", "0", fails_with="--partition needs --topic")


def hang(broker: EmbeddedKafka) -> int:
    """A write of a transaction that no coordinator knows; returns its offset."""
    client = WireClient(broker.bootstrap_servers)
    try:
        found = client.ask(InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=1_000), 4)
        long_ago_ms = int(time.time() * 1000) - 1_000
        batch = build_batch(
            [(long_ago_ms, b"k", b"hangs", ())],
            producer_id=found.producer_id,
            producer_epoch=found.producer_epoch,
            base_sequence=0,
            transactional=True,
        )
        data = TopicProduceData(name="hanging", partition_data=[PartitionProduceData(index=0, records=batch)])
        request = ProduceRequest(transactional_id="lost", acks=-1, timeout_ms=5_000, topic_data=[data])
        (result,) = client.ask(request, 11).responses[0].partition_responses
        assert result.error_code == 0
        return int(result.base_offset)
    finally:
        client.close()


def test_the_place_of_a_hanging_transaction_is_printed(ottla: Any, broker: EmbeddedKafka) -> None:
    start = hang(broker)
    assert str(TopicPartition("hanging", 0)).split("-")[0] in ottla(
        "find-hanging", "--max-transaction-timeout", "0", "-t", "hanging", "-p", "0"
    )
    ottla("abort", "-t", "hanging", "-p", "0", "--start-offset", str(start))
