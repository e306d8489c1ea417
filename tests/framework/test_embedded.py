"""EmbeddedKafka: a broker that starts in a line, serves on a real port, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ottla.embedded import EmbeddedKafka, EmbeddedKafkaError
from ottla_wire.errors import KafkaStorageError
from ottla_wire.framing import decode_response, encode_request
from ottla_wire.messages.fetch import FetchPartition, FetchRequest, FetchResponse, FetchTopic
from ottla_wire.messages.metadata import MetadataRequest, MetadataResponse
from ottla_wire.messages.produce import (
    PartitionProduceData,
    ProduceRequest,
    ProduceResponse,
    TopicProduceData,
)
from ottla_wire.records import build_batch, iter_batches

MODES = [pytest.param(False, id="thread"), pytest.param(True, id="process", marks=pytest.mark.slow)]


def ask(address: str, request: Any, response_class: Any, version: int) -> Any:
    """One request on a connection of its own."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"".join(bytes(part) for part in encode_request(request, version, 1, "test")))
        stream = connection.makefile("rb")
        size = int.from_bytes(stream.read(4), "big")
        return decode_response(response_class, version, bytearray(stream.read(size)))[1]


def topics_of(address: str) -> dict[str, int]:
    response = ask(address, MetadataRequest(topics=None), MetadataResponse, 9)
    return {topic.name: len(topic.partitions) for topic in response.topics}


def produce(address: str, topic: str, value: bytes) -> int:
    records = build_batch([(1_700_000_000_000, None, value, ())])
    data = TopicProduceData(name=topic, partition_data=[PartitionProduceData(index=0, records=records)])
    request = ProduceRequest(acks=-1, timeout_ms=5000, topic_data=[data])
    result = ask(address, request, ProduceResponse, 9).responses[0].partition_responses[0]
    assert result.error_code == 0
    return int(result.base_offset)


def fetch(address: str, topic: str) -> list[bytes]:
    partition = FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=1 << 20)
    request = FetchRequest(max_bytes=1 << 20, topics=[FetchTopic(topic=topic, partitions=[partition])])
    records = ask(address, request, FetchResponse, 12).responses[0].partitions[0].records
    return [record.value for batch in iter_batches(records) for record in batch.records()]


@pytest.fixture(autouse=True)
def temporary_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary data goes; empty again after each test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("process", MODES)
class TestBoth:
    def test_it_serves_and_has_the_topics_asked_for(self, process: bool) -> None:
        with EmbeddedKafka(process=process, topics={"orders": 4, "bills": 1}) as kafka:
            assert topics_of(kafka.bootstrap_servers) == {"orders": 4, "bills": 1}
            assert produce(kafka.bootstrap_servers, "bills", b"hello") == 0
            assert fetch(kafka.bootstrap_servers, "bills") == [b"hello"]

    def test_data_that_is_given_a_folder_is_there_the_next_time(self, process: bool, tmp_path: Path) -> None:
        data = tmp_path / "data"
        with EmbeddedKafka(data=data, process=process, topics={"t": 1}) as kafka:
            produce(kafka.bootstrap_servers, "t", b"kept")
        assert (data / ".kafka_cleanshutdown").exists()
        with EmbeddedKafka(data=data, process=process, topics={"t": 1}) as kafka:
            assert fetch(kafka.bootstrap_servers, "t") == [b"kept"]

    def test_a_setting_that_does_not_exist_is_named(self, process: bool) -> None:
        with pytest.raises(EmbeddedKafkaError, match=r"." if process else "num.partitons.*did you mean num.partitions"):
            EmbeddedKafka(process=process, config={"num.partitons": 3}).start()

    def test_settings_are_kafkas(self, process: bool) -> None:
        with EmbeddedKafka(process=process, config={"num.partitions": 3}) as kafka:
            request = MetadataRequest(topics=[_topic("automatic")], allow_auto_topic_creation=True)
            ask(kafka.bootstrap_servers, request, MetadataResponse, 9)
            assert topics_of(kafka.bootstrap_servers) == {"automatic": 3}

    def test_a_port_that_is_taken_is_one_sentence(self, process: bool, capfd: pytest.CaptureFixture[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(EmbeddedKafkaError) as caught:
                EmbeddedKafka(port=port, process=process).start()
        said = capfd.readouterr().err if process else str(caught.value)
        assert f"cannot listen on 127.0.0.1:{port}" in said

    def test_async(self, process: bool) -> None:
        async def use() -> dict[str, int]:
            async with EmbeddedKafka(process=process, topics={"t": 2}) as kafka:
                return await asyncio.to_thread(topics_of, kafka.bootstrap_servers)

        assert asyncio.run(use()) == {"t": 2}


def lose_the_folder(kafka: EmbeddedKafka, data: Path) -> None:
    """Remove the data folder under a running broker, and let it find out."""
    shutil.rmtree(data)
    records = build_batch([(1_700_000_000_000, None, b"x", ())])
    partition = TopicProduceData(name="t", partition_data=[PartitionProduceData(index=0, records=records)])
    request = ProduceRequest(acks=-1, timeout_ms=5000, topic_data=[partition])
    answer = ask(kafka.bootstrap_servers, request, ProduceResponse, 9).responses[0].partition_responses[0]
    assert answer.error_code == KafkaStorageError.code


@pytest.mark.parametrize("process", MODES)
class TestFailure:
    """A broker that ends by itself because of its data folder."""

    def sentence(self, process: bool, data: Path) -> str:
        if process:
            return "the broker process has ended with exit code 1; its standard error says why"
        return rf"data directory {data} cannot be used: t-0: .* something has removed it: restore it"

    def test_the_end_of_the_block_raises_it(
        self, process: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        data = tmp_path / "data"
        kafka = EmbeddedKafka(data=data, process=process, topics={"t": 1})
        with pytest.raises(EmbeddedKafkaError, match=self.sentence(process, data)), kafka:
            lose_the_folder(kafka, data)
        if process:
            assert f"ottla broker: data directory {data} cannot be used: t-0: " in capfd.readouterr().err

    def test_what_the_block_raised_gets_it_as_a_note(self, process: bool, tmp_path: Path) -> None:
        data = tmp_path / "data"
        kafka = EmbeddedKafka(data=data, process=process, topics={"t": 1})
        with pytest.raises(ZeroDivisionError) as caught, kafka:  # noqa: PT012
            lose_the_folder(kafka, data)
            raise ZeroDivisionError
        (note,) = caught.value.__notes__
        assert re.search(self.sentence(process, data), note)


def _topic(name: str) -> Any:
    from ottla_wire.messages.metadata import MetadataRequestTopic

    return MetadataRequestTopic(name=name)


class TestThread:
    def test_whoever_asks_a_failed_broker_for_its_address_is_told(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = tmp_path / "data"
        kafka = EmbeddedKafka(data=data, topics={"t": 1}).start()
        lose_the_folder(kafka, data)
        assert not kafka.is_running
        for use in (lambda: kafka.bootstrap_servers, kafka.start, kafka.stop):
            with pytest.raises(EmbeddedKafkaError, match="t-0: "):
                use()
        assert "the embedded broker stops: data directory" in caplog.text
        kafka.stop()
        with kafka:  # a new one, in a new folder
            assert topics_of(kafka.bootstrap_servers) == {"t": 1}

    def test_several_run_side_by_side(self) -> None:
        with EmbeddedKafka(topics={"a": 1}) as one, EmbeddedKafka(topics={"b": 1}) as other:
            assert one.bootstrap_servers != other.bootstrap_servers
            assert topics_of(one.bootstrap_servers) == {"a": 1}
            assert topics_of(other.bootstrap_servers) == {"b": 1}

    def test_stop_ends_the_thread_and_can_be_called_again(self) -> None:
        before = set(threading.enumerate())
        kafka = EmbeddedKafka().start()
        assert kafka.is_running
        kafka.stop()
        kafka.stop()
        assert not kafka.is_running
        assert not [t for t in set(threading.enumerate()) - before if t.name == "ottla-embedded-broker"]

    def test_it_can_be_started_again(self) -> None:
        kafka = EmbeddedKafka(topics={"t": 1})
        for _ in range(2):
            with kafka:
                assert topics_of(kafka.bootstrap_servers) == {"t": 1}

    def test_the_address_of_a_broker_that_does_not_run(self) -> None:
        with pytest.raises(EmbeddedKafkaError, match="not running"):
            _ = EmbeddedKafka().bootstrap_servers

    def test_two_in_one_folder(self, tmp_path: Path) -> None:
        with EmbeddedKafka(data=tmp_path / "data") as first:
            with pytest.raises(EmbeddedKafkaError, match="is in use by pid") as caught:
                EmbeddedKafka(data=tmp_path / "data").start()
            assert str(os.getpid()) in str(caught.value)
            assert topics_of(first.bootstrap_servers) == {}

    def test_more_nodes_do_not_exist_yet(self) -> None:
        with pytest.raises(ValueError, match="only one node"):
            EmbeddedKafka(nodes=3)

    def test_a_stop_answers_a_parked_fetch(self) -> None:
        kafka = EmbeddedKafka(topics={"t": 1}).start()
        answers: list[Any] = []
        partition = FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=1 << 20)
        request = FetchRequest(
            max_bytes=1 << 20,
            max_wait_ms=60_000,
            min_bytes=1,
            topics=[FetchTopic(topic="t", partitions=[partition])],
        )
        host, _, port = kafka.bootstrap_servers.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"".join(bytes(p) for p in encode_request(request, 12, 1, "test")))
            # The next answer on another connection proves that the fetch is parked.
            topics_of(kafka.bootstrap_servers)
            kafka.stop()
            answers.append(connection.makefile("rb").read())
        size = int.from_bytes(answers[0][:4], "big")
        _, response = decode_response(FetchResponse, 12, bytearray(answers[0][4 : 4 + size]))
        assert response.responses[0].partitions[0].error_code == 0


PARENT = """
import sys
from ottla.embedded import EmbeddedKafka
kafka = EmbeddedKafka(process=True, data=sys.argv[1] or None).start()
print(kafka.bootstrap_servers, kafka._running._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
class TestProcess:
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_it_ends_with_its_parent_and_its_folder_too(self, number: int, temporary_folders: Path) -> None:
        environment = os.environ | {"TMPDIR": str(temporary_folders)}
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert parent.stdout is not None
        assert parent.stdin is not None
        address, pid = parent.stdout.readline().decode().split()
        assert topics_of(address) == {}
        parent.send_signal(number)
        parent.wait(10)
        parent.stdin.close()
        parent.stdout.close()
        _wait_for_the_end_of(int(pid))
        assert list(temporary_folders.iterdir()) == []

    def test_a_program_that_ends_without_stopping_it_leaves_nothing(self, temporary_folders: Path) -> None:
        program = (
            "from ottla.embedded import EmbeddedKafka\nprint(EmbeddedKafka(process=True).start().bootstrap_servers)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            timeout=60,
            check=True,
            env=os.environ | {"TMPDIR": str(temporary_folders)},
        )
        assert done.stdout.startswith(b"127.0.0.1:")
        assert done.stderr == b""

    def test_the_same_of_a_thread(self, temporary_folders: Path) -> None:
        program = "from ottla.embedded import EmbeddedKafka\nprint(EmbeddedKafka().start().bootstrap_servers)"
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            timeout=60,
            check=True,
            env=os.environ | {"TMPDIR": str(temporary_folders)},
        )
        assert done.stdout.startswith(b"127.0.0.1:")
        assert done.stderr == b""


def _wait_for_the_end_of(pid: int, seconds: float = 20) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([process], [], [], seconds)[0], f"process {pid} still runs"
    finally:
        os.close(process)
