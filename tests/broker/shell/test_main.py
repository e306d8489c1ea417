"""`python -m ottla_broker`: the ready line, signals, exit codes, and what survives them."""

from __future__ import annotations

import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from ottla_wire.messages.api_versions import ApiVersionsRequest
from ottla_wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from ottla_wire.messages.find_coordinator import FindCoordinatorRequest
from ottla_wire.messages.metadata import MetadataRequest, MetadataRequestTopic
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.records import build_batch, iter_batches

pytestmark = pytest.mark.slow


class Running:
    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ottla_broker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    @cached_property
    def address(self) -> str:
        """Wait for the ready line."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 30)[0]
        line = self.process.stdout.readline().decode()
        match = re.fullmatch(r"ready (\S+:\d+)\n", line)
        assert match, f"{line!r} {self.end()}"
        return match[1]

    def end(self, number: int | None = None) -> tuple[int, str, str]:
        """Signal it if asked to, and wait: exit code, rest of standard output, standard error."""
        if number is not None:
            self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=30)
        return self.process.returncode, output.decode(), errors.decode()


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*arguments: str) -> Running:
        started.append(Running(*arguments))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.end(signal.SIGKILL)


def produce(client: Any, topic: str, values: list[bytes]) -> int:
    """Produce with acks=all; returns the base offset."""
    records = build_batch([(1_700_000_000_000, None, value, ()) for value in values])
    data = TopicProduceData(name=topic, partition_data=[PartitionProduceData(index=0, records=records)])
    result = client.ask(ProduceRequest(acks=-1, timeout_ms=5000, topic_data=[data]), 9)
    result = result.responses[0].partition_responses[0]
    assert result.error_code == 0
    return int(result.base_offset)


def fetch_all(client: Any, topic: str) -> list[bytes]:
    partition = FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=1 << 24)
    request = FetchRequest(max_bytes=1 << 24, topics=[FetchTopic(topic=topic, partitions=[partition])])
    records = client.ask(request, 12).responses[0].partitions[0].records
    return [record.value for batch in iter_batches(records) for record in batch.records()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_that_it_is_ready_and_stops_cleanly_on_a_signal(
    run: Any, connect: Any, tmp_path: Path, number: int
) -> None:
    broker = run("--port", "0", "--data", str(tmp_path / "data"))
    assert connect(broker.address).ask(ApiVersionsRequest(), 2).error_code == 0
    code, output, errors = broker.end(number)
    assert (code, output) == (0, "")
    assert "Traceback" not in errors
    assert (tmp_path / "data" / ".kafka_cleanshutdown").exists()


def test_topics_offsets_and_data_are_there_after_a_restart(run: Any, connect: Any, tmp_path: Path) -> None:
    arguments = ("--port", "0", "--data", str(tmp_path / "data"), "--topic", "t:2")
    broker = run(*arguments)
    client = connect(broker.address)
    produce(client, "t", [b"a", b"b"])
    before = client.ask(MetadataRequest(topics=[MetadataRequestTopic(name="t")]), 12)
    broker.end(signal.SIGTERM)
    broker = run(*arguments)
    client = connect(broker.address)
    after = client.ask(MetadataRequest(topics=[MetadataRequestTopic(name="t")]), 12)
    assert after.topics == before.topics
    assert after.cluster_id == before.cluster_id
    assert fetch_all(client, "t") == [b"a", b"b"]
    assert produce(client, "t", [b"c"]) == 2


def test_kill_9_loses_nothing_that_was_acknowledged(run: Any, connect: Any, tmp_path: Path) -> None:
    arguments = ("--port", "0", "--data", str(tmp_path / "data"), "--topic", "t:1")
    expected: list[bytes] = []
    epochs = []
    for number in range(3):
        broker = run(*arguments)
        client = connect(broker.address)
        response = client.ask(MetadataRequest(topics=[MetadataRequestTopic(name="t")]), 12)
        epochs.append(response.topics[0].partitions[0].leader_epoch)
        assert fetch_all(client, "t") == expected
        for batch in range(20):
            values = [b"%d-%d" % (number, batch)] * 10
            assert produce(client, "t", values) == len(expected)
            expected += values
        broker.end(signal.SIGKILL)
    assert epochs == [0, 1, 2]


def test_an_embedded_broker_leaves_ctrl_c_to_the_program_it_belongs_to(connect: Any, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ottla_broker",
        "--port",
        "0",
        "--data",
        str(tmp_path / "data"),
        "--stop-with-stdin",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        address = process.stdout.readline().decode().split()[1]
        process.send_signal(signal.SIGINT)
        assert connect(address).ask(ApiVersionsRequest(), 2).error_code == 0
        process.stdin.close()
        assert process.wait(30) == 0


def test_a_port_in_use_is_one_sentence(run: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, output, errors = run("--host", "127.0.0.1", "--port", str(port), "--data", str(tmp_path / "data")).end()
    assert (code, output) == (1, "")
    assert errors == f"ottla broker: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_a_folder_in_use_is_one_sentence_with_the_owner(run: Any, tmp_path: Path) -> None:
    broker = run("--port", "0", "--data", str(tmp_path / "data"))
    address = broker.address
    code, _, errors = run("--port", "0", "--data", str(tmp_path / "data")).end()
    assert code == 1
    assert errors.count("\n") == 1
    assert f"pid {broker.process.pid} ({address})" in errors


def test_a_folder_that_cannot_be_made_is_one_sentence(run: Any, tmp_path: Path) -> None:
    code, _, errors = run("--port", "0", "--data", str(tmp_path / "missing" / "data")).end()
    assert code == 1
    assert errors.startswith("ottla broker: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--config", "num.partitons=3"), "unknown broker setting num.partitons; did you mean num.partitions?"),
        (("--config", "num.partitions"), "--config num.partitions: write NAME=VALUE"),
        (("--topic", "t:x"), "--topic t:x: write NAME or NAME:PARTITIONS"),
        (("--port", "70000"), "a port from 0 to 65535"),
        (("missing.properties",), "missing.properties"),
    ],
)
def test_wrong_usage_ends_with_2(run: Any, arguments: tuple[str, ...], sentence: str) -> None:
    code, _, errors = run(*arguments).end()
    assert code == 2
    assert sentence in errors
    assert errors.count("\n") == 1


def test_settings_come_from_a_file_and_options_win(run: Any, connect: Any, tmp_path: Path) -> None:
    properties = tmp_path / "server.properties"
    properties.write_text(
        f"node.id=7\nnum.partitions=3\nlisteners=PLAINTEXT://127.0.0.1:1\nlog.dirs={tmp_path / 'data'}\n"
    )
    broker = run(str(properties), "--port", "0", "--config", "num.partitions=5", "--topic", "t")
    response = connect(broker.address).ask(MetadataRequest(topics=[MetadataRequestTopic(name="t")]), 9)
    assert [node.node_id for node in response.brokers] == [7]
    assert len(response.topics[0].partitions) == 5


def test_coordinators_are_found_after_a_restart(run: Any, connect: Any, tmp_path: Path) -> None:
    arguments = ("--port", "0", "--data", str(tmp_path / "data"))
    for _ in range(2):
        broker = run(*arguments)
        response = connect(broker.address).ask(FindCoordinatorRequest(key_type=0, coordinator_keys=["g"]), 4)
        assert response.coordinators[0].error_code == 0
        assert f"{response.coordinators[0].host}:{response.coordinators[0].port}" == broker.address
        broker.end(signal.SIGTERM)


def test_a_broker_imports_nothing_of_the_framework(run: Any) -> None:
    program = (
        "import sys, ottla_broker.__main__\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('ottla', 'pydantic', 'opentelemetry', 'typer', 'rich')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, check=True)
    assert done.stdout == b"[]\n"


def test_the_client_sees_the_end_of_a_connection_that_sent_garbage(run: Any, connect: Any, tmp_path: Path) -> None:
    broker = run("--port", "0", "--data", str(tmp_path / "data"))
    address = broker.address
    noisy, quiet = connect(address), connect(address)
    noisy.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert noisy.is_closed_by_peer()
    assert quiet.ask(ApiVersionsRequest(), 2).error_code == 0
    _, _, errors = broker.end(signal.SIGTERM)
    assert len([line for line in errors.splitlines() if "closing connection from 127.0.0.1:" in line]) == 1
