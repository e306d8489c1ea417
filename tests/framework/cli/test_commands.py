"""The command line against a broker, as a script would use it."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import pytest
from typer.testing import CliRunner

from ottla.cli.commands import app
from ottla.cli.records import parse_lines
from ottla.embedded import EmbeddedKafka
from ottla.errors import OttlaError
from support.apache_kafka import free_port


@pytest.fixture
def ottla(kafka: Any) -> Any:
    def run(*arguments: str, input: str | None = None, exit_code: int = 0) -> str:
        runner = CliRunner(env={"OTTLA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers, "COLUMNS": "200"})
        result = runner.invoke(app, list(arguments), input=input)
        assert result.exit_code == exit_code, result.output + repr(result.exception)
        return result.stdout

    return run


def test_what_produce_sends_consume_prints(ottla: Any, kafka_topic: str) -> None:
    ottla("topics", "create", kafka_topic)
    ottla("produce", kafka_topic, "--key-separator", "=", "-H", "source=cli", input="a=1\nb=2\n")
    assert ottla("consume", kafka_topic, "--from-beginning", "--keys") == "a\t1\nb\t2\n"
    first = json.loads(ottla("consume", kafka_topic, "--from-beginning", "--json").splitlines()[0])
    assert (first["key"], first["value"], first["headers"], first["offset"]) == ("a", "1", {"source": "cli"}, 0)


def test_json_lines_round_trip_through_produce_and_consume(ottla: Any, kafka_topic: str) -> None:
    ottla("topics", "create", kafka_topic, "--partitions", "2")
    ottla("produce", kafka_topic, "--json", input='{"key": "k", "value": {"id": 1}, "partition": 1}\n')
    found = json.loads(ottla("consume", kafka_topic, "--from-beginning", "--json"))
    assert (found["partition"], json.loads(found["value"])) == (1, {"id": 1})


def test_topics_are_listed_described_altered_and_deleted(ottla: Any, kafka_topic: str) -> None:
    ottla("topics", "create", kafka_topic, "-p", "2", "-c", "retention.ms=1000")
    assert kafka_topic in {topic["name"] for topic in json.loads(ottla("topics", "list", "--json"))}
    ottla("topics", "alter", kafka_topic, "-p", "3", "--unset", "retention.ms", "-c", "max.message.bytes=2000")
    described = json.loads(ottla("topics", "describe", kafka_topic, "--json"))
    assert [partition["partition"] for partition in described] == [0, 1, 2]
    assert described[0]["config"] == "max.message.bytes=2000"
    ottla("topics", "delete", kafka_topic)
    assert kafka_topic not in ottla("topics", "list")


def test_a_group_is_described_reset_and_deleted(ottla: Any, kafka_topic: str) -> None:
    ottla("topics", "create", kafka_topic)
    ottla("produce", kafka_topic, input="1\n2\n3\n")
    printed = ottla("consume", kafka_topic, "--from-beginning", "--group", kafka_topic)
    assert printed == "1\n2\n3\n"
    [row] = json.loads(ottla("groups", "describe", kafka_topic, "--json"))
    assert (row["committed"], row["end"], row["lag"]) == (3, 3, 0)
    ottla("groups", "reset", kafka_topic, "--topic", kafka_topic, "--to", "1")
    assert ottla("consume", kafka_topic, "--group", kafka_topic) == "2\n3\n"
    ottla("groups", "delete", kafka_topic)
    assert kafka_topic not in ottla("groups", "list")


def test_doctor_reports_the_kernel_and_whether_the_server_is_there(ottla: Any) -> None:
    findings = {finding["what"]: finding for finding in json.loads(ottla("doctor", "--json"))}
    assert findings["record kernel"]["value"] in ("native", "pure Python")
    named, advertised = (finding for what, finding in findings.items() if what.startswith("server "))
    assert named["value"].startswith("reachable")
    assert "1 broker, transactions version 2" in named["value"]
    assert advertised["what"].endswith("broker 1")
    assert advertised["value"].startswith("reachable")


def test_doctor_fails_where_the_server_is_not_there(ottla: Any) -> None:
    assert "not reachable" in ottla("doctor", "-b", "127.0.0.1:1", "--json", exit_code=1)
    assert "HOST:PORT" in ottla("doctor", "-b", "nonsense", "--json", exit_code=1)


def test_doctor_tells_a_broker_from_what_only_listens(ottla: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def speak_http() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=speak_http, daemon=True)
        thread.start()
        [found] = [
            finding
            for finding in json.loads(ottla("doctor", "-b", f"127.0.0.1:{port}", "--json", exit_code=1))
            if finding["what"].startswith("server ")
        ]
        thread.join(10)
    assert found["value"] == "not reachable"
    assert "is no Kafka broker" in found["advice"]


def test_doctor_finds_an_advertised_address_where_nobody_listens(ottla: Any) -> None:
    port = free_port()
    with EmbeddedKafka(port=port, config={"advertised.listeners": "PLAINTEXT://127.0.0.1:1"}):
        found = json.loads(ottla("doctor", "-b", f"127.0.0.1:{port}", "--json", exit_code=1))
    assert "advertised.listeners" in found[-1]["advice"]


def test_a_line_without_its_separator_is_named_by_its_number() -> None:
    with pytest.raises(OttlaError, match="line 2 has no '='"):
        list(parse_lines(["a=1\n", "b\n"], as_json=False, separator="="))


def test_a_line_that_is_not_json_is_named_by_its_number() -> None:
    with pytest.raises(OttlaError, match="line 1 is not JSON"):
        list(parse_lines(["{"], as_json=True, separator=None))
    with pytest.raises(OttlaError, match='at least "value"'):
        list(parse_lines(["{}"], as_json=True, separator=None))
