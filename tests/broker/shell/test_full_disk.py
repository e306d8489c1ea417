"""Data folders that fail under a running broker: a disk that is really full, a folder that may not be written.

A broker that cannot keep what it is sent says so and ends, as Kafka does when its only log directory fails. What it
has acknowledged is there when it is started again, and nothing that it has not written as a whole.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ottla_wire.errors import KafkaStorageError
from ottla_wire.messages.create_topics import CreatableTopic, CreatableTopicConfig, CreateTopicsRequest
from ottla_wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.records import build_batch, iter_batches
from support.broker_process import BrokerProcess
from support.small_disk import NoSmallDisk, SmallDisk

pytestmark = pytest.mark.slow

DISK_BYTES = 4 << 20
BALLAST_BYTES = 1 << 20
VALUE_BYTES = 30_000
TOPIC_SETTINGS = [
    pytest.param({}, id="append"),
    pytest.param({"flush.messages": "1"}, id="fsync before ack"),
    pytest.param({"internal.segment.bytes": "100000"}, id="many segments"),
]


@pytest.fixture
def make_broker() -> Iterator[Callable[..., BrokerProcess]]:
    made: list[BrokerProcess] = []

    def make(data: Path, prefix: Sequence[str] = ()) -> BrokerProcess:
        made.append(BrokerProcess(data, prefix=prefix))
        return made[-1]

    yield make
    for broker in made:
        broker.forget()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        disk = SmallDisk(tmp_path / "disk", DISK_BYTES)
    except NoSmallDisk as error:
        pytest.skip(f"no small disk here: {error}")
    yield disk
    disk.close()


def create(client: Any, topic: str, settings: dict[str, str], partitions: int = 1) -> None:
    configs = [CreatableTopicConfig(name=name, value=value) for name, value in settings.items()]
    request = CreateTopicsRequest(
        topics=[CreatableTopic(name=topic, num_partitions=partitions, replication_factor=1, configs=configs)],
        timeout_ms=10_000,
    )
    assert client.ask(request, 7).topics[0].error_code == 0


def produce(client: Any, value: bytes, index: int = 0) -> int:
    """Produce to `orders` with acks=all; returns the error code."""
    records = build_batch([(1_700_000_000_000, None, value, ())])
    data = TopicProduceData(name="orders", partition_data=[PartitionProduceData(index=index, records=records)])
    answer = client.ask(ProduceRequest(acks=-1, timeout_ms=10_000, topic_data=[data]), 9)
    return int(answer.responses[0].partition_responses[0].error_code)


def produce_until_refused(client: Any) -> list[bytes]:
    """Produce until the broker refuses, which it must do with KAFKA_STORAGE_ERROR; the values it has acknowledged."""
    acknowledged: list[bytes] = []
    while (code := produce(client, value := b"%05d" % len(acknowledged) + os.urandom(VALUE_BYTES))) == 0:
        acknowledged.append(value)
    assert code == KafkaStorageError.code
    return acknowledged


def read(client: Any) -> list[bytes]:
    values: list[bytes] = []
    while True:
        partition = FetchPartition(partition=0, fetch_offset=len(values), partition_max_bytes=1 << 24)
        request = FetchRequest(max_bytes=1 << 24, topics=[FetchTopic(topic="orders", partitions=[partition])])
        records = client.ask(request, 12).responses[0].partitions[0].records
        if not records:
            return values
        values += [record.value for batch in iter_batches(records, strict=True) for record in batch.records()]


def last_line(broker: BrokerProcess) -> str:
    return broker.errors().strip().splitlines()[-1]


def assert_every_batch_is_whole(folder: Path) -> None:
    segments = sorted(folder.glob("*.log"))
    assert segments
    for segment in segments:
        content = segment.read_bytes()
        for batch in iter_batches(content, strict=True):
            batch.verify()


@pytest.mark.parametrize("settings", TOPIC_SETTINGS)
def test_a_full_disk_stops_the_broker_and_nothing_acknowledged_is_lost(
    disk: SmallDisk, make_broker: Any, connect: Any, settings: dict[str, str]
) -> None:
    disk.fill("ballast", BALLAST_BYTES)
    data = disk.path / "data"
    broker = make_broker(data, disk.prefix)
    broker.start()
    client = connect(broker.bootstrap_servers)
    create(client, "orders", settings)
    acknowledged = produce_until_refused(client)
    assert len(acknowledged) > 50
    assert broker.ends() == 1
    found = re.fullmatch(
        rf"ottla broker: data directory {data} cannot be used \(([\d,]+) bytes are free\): orders-0: {data}/orders-0/"
        r"\S+: No space left on device \(errno 28\); make room there, or move the folder to a larger disk, and start "
        r"the broker again",
        last_line(broker),
    )
    assert found, broker.errors()
    assert int(found[1].replace(",", "")) < VALUE_BYTES
    assert_every_batch_is_whole(disk.outside / "data" / "orders-0")

    disk.fill("more ballast")
    broker.launch()
    assert broker.ends() == 1
    assert re.match(rf"ottla broker: data directory {data} cannot be used \(0 bytes are free\): ", last_line(broker))

    (disk.outside / "ballast").unlink()
    broker.start()
    client = connect(broker.bootstrap_servers)
    assert read(client) == acknowledged
    assert produce(client, b"goes on") == 0
    assert read(client) == [*acknowledged, b"goes on"]
    assert broker.stop() == 0


def test_the_limit_of_a_file_stops_the_broker_in_the_middle_of_a_batch(
    tmp_path: Path, make_broker: Any, connect: Any
) -> None:
    """The kernel writes what fits and refuses the rest; on a full disk that happens too, but only by chance."""
    limit_bytes = 400_001
    prefix = ["prlimit", f"--fsize={limit_bytes}:{resource.getrlimit(resource.RLIMIT_FSIZE)[1]}", "--"]
    broker = make_broker(tmp_path / "data", prefix)
    broker.start()
    client = connect(broker.bootstrap_servers)
    create(client, "orders", {})
    acknowledged = produce_until_refused(client)
    assert broker.ends() == 1
    assert "orders-0/00000000000000000000.log: File too large (errno 27); let the process write larger files" in (
        last_line(broker)
    )
    assert_every_batch_is_whole(tmp_path / "data" / "orders-0")
    broker = make_broker(tmp_path / "data")
    broker.start()
    assert read(connect(broker.bootstrap_servers)) == acknowledged


# ---- folders that may not be used


@pytest.fixture
def obeys_permissions() -> list[str]:
    """Runs a program as somebody who may not do everything: root may, unless that is taken away."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere, and there is no setpriv to take that away")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.mark.parametrize("locked", ["data", "data/orders-0"])
def test_a_folder_that_becomes_read_only_stops_the_broker(
    tmp_path: Path, make_broker: Any, connect: Any, obeys_permissions: list[str], locked: str
) -> None:
    broker = make_broker(tmp_path / "data", obeys_permissions)
    broker.start()
    client = connect(broker.bootstrap_servers)
    create(client, "orders", {"internal.segment.bytes": "100000"}, partitions=2)
    acknowledged = [b"first"]
    assert produce(client, b"first") == 0
    (tmp_path / locked).chmod(0o555)
    if locked == "data":
        assert produce(client, b"x", index=1) == KafkaStorageError.code  # its folder cannot be made
    else:
        acknowledged += produce_until_refused(client)  # up to the next segment
    assert broker.ends() == 1
    sentence = last_line(broker)
    assert re.match(
        rf"ottla broker: data directory {tmp_path}/data cannot be used \([\d,]+ bytes are free\): ", sentence
    )
    assert sentence.endswith(
        f"Permission denied (errno 13); let user {os.geteuid()} read and write it, and start the broker again"
    )
    (tmp_path / locked).chmod(0o755)
    broker.start()
    assert read(connect(broker.bootstrap_servers)) == acknowledged


def test_a_partition_folder_that_cannot_be_read_is_named_at_the_start(
    tmp_path: Path, make_broker: Any, connect: Any, obeys_permissions: list[str]
) -> None:
    broker = make_broker(tmp_path / "data", obeys_permissions)
    broker.start()
    client = connect(broker.bootstrap_servers)
    create(client, "orders", {})
    assert produce(client, b"first") == 0
    broker.stop()
    folder = tmp_path / "data" / "orders-0"
    folder.chmod(0)
    broker.launch()
    assert broker.ends() == 1
    assert re.fullmatch(
        rf"ottla broker: data directory {tmp_path}/data cannot be used \([\d,]+ bytes are free\): the log of orders-0 "
        rf"cannot be opened: {folder}\S*: Permission denied; let user {os.geteuid()} read and write it, and start the "
        "broker again",
        last_line(broker),
    )
    folder.chmod(0o755)
    broker.start()
    assert read(connect(broker.bootstrap_servers)) == [b"first"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("partition.metadata", "version: 7\ntopic_id: ???"), ("notes.log", "this is no segment")],
)
def test_a_partition_folder_with_what_does_not_belong_there_is_named_at_the_start(
    tmp_path: Path, make_broker: Any, connect: Any, name: str, content: str
) -> None:
    broker = make_broker(tmp_path / "data")
    broker.start()
    client = connect(broker.bootstrap_servers)
    create(client, "orders", {})
    assert produce(client, b"first") == 0
    broker.stop()
    folder = tmp_path / "data" / "orders-0"
    (folder / name).write_text(content)
    broker.launch()
    assert broker.ends() == 1
    sentence = last_line(broker)
    assert sentence.startswith(
        f"ottla broker: data directory {tmp_path}/data cannot be used: the log of orders-0 cannot be opened: "
    )
    assert f"{folder}/{name}" in sentence
    assert sentence.endswith(f"restore {folder} from a copy, or move it away to go on without its records")
    folder.rename(tmp_path / "moved away")
    broker.start()
    assert read(connect(broker.bootstrap_servers)) == []
