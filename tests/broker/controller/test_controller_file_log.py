"""The metadata log on disk: what was answered is there after any crash, and Kafka's tools can read it."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from log_simulated_files import Crash, SimulatedFiles

from ottla_broker.controller.file_log import FileMetadataLog
from ottla_broker.controller.quorum_state import QuorumState, read_quorum_state, write_quorum_state
from ottla_broker.controller.records import NoOpRecord
from ottla_broker.log.files import Files, OsFiles
from ottla_wire.errors import KafkaStorageError
from ottla_wire.records import iter_batches
from ottla_wire.schema import Uuid
from support import apache_kafka

DATA = Path("/data")
DIRECTORY_ID = Uuid(bytes(range(16)))
NOW_MS = 1_700_000_000_000


def open_log(files: Files, data: Path = DATA) -> FileMetadataLog:
    return FileMetadataLog.open(files, data, node_id=1, directory_id=DIRECTORY_ID, wall_ms=lambda: NOW_MS)


def log_file(data: Path = DATA) -> Path:
    return data / "__cluster_metadata-0" / "00000000000000000000.log"


def test_every_run_leads_a_new_epoch_and_says_so_in_the_log_and_beside_it() -> None:
    files = SimulatedFiles()
    for epoch in (1, 2, 3):
        log = open_log(files)
        assert log.leader_epoch == epoch
        log.append([NoOpRecord()])
        log.close()
        state = json.loads(files.read(DATA / "__cluster_metadata-0" / "quorum-state"))
        assert state == {
            "leaderId": 1,
            "leaderEpoch": epoch,
            "votedId": 1,
            "votedDirectoryId": "AAECAwQFBgcICQoLDA0ODw",
            "data_version": 1,
        }
    batches = list(iter_batches(files.read(log_file())))
    assert [(b.leader_epoch, b.is_control) for b in batches] == [
        (1, True), (1, False), (2, True), (2, False), (3, True), (3, False)
    ]  # fmt: skip
    assert b"topic_id: AAAAAAAAAAAAAAAAAAAAAQ" in files.read(DATA / "__cluster_metadata-0" / "partition.metadata")


def test_control_records_are_not_given_to_the_controller_and_take_their_offsets() -> None:
    files = SimulatedFiles()
    log = open_log(files)
    assert log.append([NoOpRecord(), NoOpRecord()]) == 1
    log.close()
    log = open_log(files)
    assert log.append([NoOpRecord()]) == 4
    assert [offset for offset, _ in log.read()] == [1, 2, 4]
    assert log.end_offset == log.committed_offset == 5


def test_without_its_quorum_state_a_log_is_led_in_an_epoch_above_all_that_it_holds() -> None:
    files = SimulatedFiles()
    for _ in range(3):
        open_log(files).close()
    files.remove(DATA / "__cluster_metadata-0" / "quorum-state")
    assert open_log(files).leader_epoch == 4


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"not json", b'{"leaderId":1,"leaderEpoch":1,"votedId":-1,"data_version":9}', b"[1]"]
)
def test_a_quorum_state_that_cannot_be_read_stops_the_node_before_it_leads_an_epoch_twice(content: bytes) -> None:
    files = SimulatedFiles()
    open_log(files).close()
    files.replace(DATA / "__cluster_metadata-0" / "quorum-state", content)
    with pytest.raises(KafkaStorageError, match="quorum-state cannot be read"):
        open_log(files)


def test_a_quorum_state_is_read_as_it_was_written() -> None:
    files = SimulatedFiles()
    assert read_quorum_state(files, DATA) == QuorumState()
    state = QuorumState(leader_epoch=7, leader_id=3, voted_id=-1, voted_directory_id=DIRECTORY_ID)
    write_quorum_state(files, DATA, state)
    assert read_quorum_state(files, DATA) == state


def test_the_file_of_a_real_kafka_node_is_understood() -> None:
    files = SimulatedFiles()
    written = (
        b'{"leaderId":1,"leaderEpoch":2,"votedId":-1,"votedDirectoryId":"AAAAAAAAAAAAAAAAAAAAAA","data_version":1}'
    )
    files.write(DATA / "quorum-state", written)
    assert read_quorum_state(files, DATA) == QuorumState(leader_epoch=2, leader_id=1)
    write_quorum_state(files, DATA, QuorumState(leader_epoch=2, leader_id=1))
    assert files.read(DATA / "quorum-state") == written


def test_a_batch_that_a_crash_left_unfinished_is_not_there(make_cluster: Callable[..., Any]) -> None:
    files = SimulatedFiles()
    cluster = make_cluster(open_log(files)).start()
    cluster.create_one("orders")
    size = files.size(log_file())
    cluster.create_one("payments")
    files.names[log_file()].data[size + 70 :] = b""
    again = make_cluster(open_log(files)).start(clean_shutdown=False)
    assert set(again.image.topics_by_name) == {"orders"}


@pytest.mark.parametrize("seed", range(40))
def test_whatever_was_answered_before_a_loss_of_power_is_there_after_it(
    make_cluster: Callable[..., Any], seed: int
) -> None:
    """Topics answered are there, epochs and producer ids are never used twice; whatever step the power fails in."""
    files = SimulatedFiles(seed)
    answered: set[str] = set()
    producer_ids: list[int] = []
    epochs: list[int] = []
    for run in range(4):
        files.crash_after(files.rng.randint(1, 60))
        try:
            log = open_log(files)
            epochs.append(log.leader_epoch)
            cluster = make_cluster(log).start(clean_shutdown=False)
            assert answered <= set(cluster.image.topics_by_name)
            for number in range(5):
                producer_ids.append(cluster.controller.producer_ids.next().result())
                cluster.create_one(f"topic-{run}-{number}")
                answered.add(f"topic-{run}-{number}")
            log.close()
        except Crash:
            pass
        files.power_loss()
    last = make_cluster(open_log(files))
    last.controller.load()
    assert answered <= set(last.image.topics_by_name)
    assert len(set(producer_ids)) == len(producer_ids)
    assert len(set(epochs)) == len(epochs)


def test_a_log_that_could_not_be_written_answers_nothing_and_takes_nothing_any_more(
    make_cluster: Callable[..., Any],
) -> None:
    files = SimulatedFiles()
    cluster = make_cluster(open_log(files)).start()
    files.room_bytes = 10
    with pytest.raises(KafkaStorageError):
        cluster.create_one("orders")
    files.room_bytes = None
    with pytest.raises(KafkaStorageError):
        cluster.create_one("payments")
    again = make_cluster(open_log(files)).start(clean_shutdown=False)
    assert not again.image.topics_by_name
    again.create_one("orders")


def test_a_vote_that_cannot_be_written_stops_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    files = SimulatedFiles()
    open_log(files).close()

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(files, "replace", refuse)
    with pytest.raises(KafkaStorageError, match="the vote for epoch 2 cannot be written"):
        open_log(files)


def test_a_log_larger_than_one_read_is_replayed_whole(
    make_cluster: Callable[..., Any], snapshot_of: Callable[..., Any], tmp_path: Path
) -> None:
    files = OsFiles()
    log = open_log(files, tmp_path)
    cluster = make_cluster(log).start()
    for number in range(3):
        cluster.create_one(f"orders-{number}", 9_000)
    assert log_file(tmp_path).stat().st_size > 1024 * 1024  # more than is read at once
    before = snapshot_of(cluster.image)
    log.close()
    log = open_log(files, tmp_path)
    again = make_cluster(log)
    again.controller.load()
    assert snapshot_of(again.image) == before
    log.close()


@pytest.mark.slow
@pytest.mark.peer("apache-4.3", "java")
def test_apache_kafkas_own_tool_reads_the_log(make_cluster: Callable[..., Any], tmp_path: Path) -> None:
    log = open_log(OsFiles(), tmp_path)
    cluster = make_cluster(log).start()
    topic_id = cluster.create_one("orders", 2, retention_ms="7")
    cluster.grow("orders", 3)
    cluster.controller.producer_ids.next()
    log.close()
    log = open_log(OsFiles(), tmp_path)
    cluster = make_cluster(log).start(clean_shutdown=False)
    cluster.delete("orders")
    log.close()
    kafka = apache_kafka.ApacheKafka()
    tool = "org.apache.kafka.tools.DumpLogSegments"
    dump = kafka.run_tool(tool, "--cluster-metadata-decoder", "--files", str(log_file(tmp_path)))
    assert "isvalid: false" not in dump
    assert dump.count('LeaderChange: {"version":0,"leaderId":1,"voters":[{"voterId":1}]') == 2
    payloads = [json.loads(line.split("payload: ")[1]) for line in dump.splitlines() if "payload: " in line]
    assert [payload["type"] for payload in payloads] == [
        "FEATURE_LEVEL_RECORD",
        "FEATURE_LEVEL_RECORD",
        "FEATURE_LEVEL_RECORD",
        "REGISTER_BROKER_RECORD",
        "TOPIC_RECORD",
        "CONFIG_RECORD",
        "PARTITION_RECORD",
        "PARTITION_RECORD",
        "PARTITION_RECORD",
        "PRODUCER_IDS_RECORD",
        "REGISTER_BROKER_RECORD",
        "PARTITION_CHANGE_RECORD",
        "PARTITION_CHANGE_RECORD",
        "PARTITION_CHANGE_RECORD",
        "REMOVE_TOPIC_RECORD",
    ]
    assert payloads[4]["data"] == {"name": "orders", "topicId": str(topic_id)}
    assert payloads[5]["data"] == {
        "resourceType": 2, "resourceName": "orders", "name": "retention.ms", "value": "7"
    }  # fmt: skip
    assert payloads[11]["data"] == {"partitionId": 0, "topicId": str(topic_id), "leader": 1}
