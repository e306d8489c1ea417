"""DescribeCluster, DescribeLogDirs, FindCoordinator and InitProducerId."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ottla_broker.controller.image import MetadataDelta
from ottla_broker.controller.records import BrokerRegistrationChangeRecord, PartitionChangeRecord
from ottla_wire.messages.describe_cluster import DescribeClusterRequest
from ottla_wire.messages.describe_log_dirs import DescribableLogDirTopic, DescribeLogDirsRequest
from ottla_wire.messages.find_coordinator import FindCoordinatorRequest
from ottla_wire.messages.init_producer_id import InitProducerIdRequest

COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR, UNSUPPORTED_VERSION, INVALID_REQUEST, STORAGE_ERROR = 15, 16, 35, 42, 56
MISMATCHED_ENDPOINT, UNSUPPORTED_ENDPOINT = 114, 115
GROUP, TRANSACTION, SHARE = range(3)


def fence(admin: Any) -> None:
    record = BrokerRegistrationChangeRecord(broker_id=1, broker_epoch=admin.image.brokers[1].epoch, fenced=1)
    admin.image.replay(record, admin.image.end_offset, MetadataDelta())


# -- the cluster -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(3))
def test_the_cluster_is_described_in_every_version(admin: Any, version: int) -> None:
    response = admin.ask(DescribeClusterRequest(include_cluster_authorized_operations=True), version)
    assert (response.error_code, response.cluster_id, response.controller_id) == (0, "bench", 1)
    (broker,) = response.brokers
    assert (broker.broker_id, broker.host, broker.port, broker.rack) == (1, "bench.example", 9092, None)
    assert response.cluster_authorized_operations == 8096
    assert admin.ask(DescribeClusterRequest(), version).cluster_authorized_operations == -(2**31)


def test_fenced_brokers_are_shown_to_who_asks_for_them(admin: Any) -> None:
    fence(admin)
    assert list(admin.ask(DescribeClusterRequest(), 2).brokers) == []
    (broker,) = admin.ask(DescribeClusterRequest(include_fenced_brokers=True), 2).brokers
    assert broker.is_fenced


@pytest.mark.parametrize(("endpoint_type", "code"), [(2, MISMATCHED_ENDPOINT), (3, UNSUPPORTED_ENDPOINT)])
def test_controllers_are_not_to_be_had_here(admin: Any, endpoint_type: int, code: int) -> None:
    response = admin.ask(DescribeClusterRequest(endpoint_type=endpoint_type), 1)
    assert (response.error_code, list(response.brokers)) == (code, [])
    assert "endpoint" in response.error_message


# -- the log folder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(1, 6))
def test_the_log_folder_is_described_with_the_size_of_each_partition(
    make_admin: Callable[..., Any], tmp_path: Path, make_records: Callable[..., bytes], version: int
) -> None:
    admin = make_admin(log_dirs=str(tmp_path))
    admin.bench.create_topic("orders", 2)
    admin.bench.create_topic("payments")
    batch = make_records(b"value")
    log = admin.bench.partition("orders", 1).log
    log.append(bytearray(batch), leader_epoch=0, now_ms=admin.bench.clock.wall_ms())
    (result,) = admin.ask(DescribeLogDirsRequest(topics=None), version).results
    assert (result.error_code, result.log_dir) == (0, str(tmp_path))
    sizes = {(t.name, p.partition_index): p.partition_size for t in result.topics for p in t.partitions}
    assert sizes == {("orders", 0): 0, ("orders", 1): len(batch), ("payments", 0): 0}
    assert not any(p.is_future_key or p.offset_lag for t in result.topics for p in t.partitions)
    assert (result.total_bytes > result.usable_bytes > 0) if version >= 4 else (result.total_bytes == -1)


def test_only_the_partitions_asked_for_are_described(make_admin: Callable[..., Any], tmp_path: Path) -> None:
    admin = make_admin(log_dirs=str(tmp_path))
    admin.bench.create_topic("orders", 2)
    asked = [
        DescribableLogDirTopic(topic="orders", partitions=[1, 7]),
        DescribableLogDirTopic(topic="x", partitions=[0]),
    ]
    (result,) = admin.ask(DescribeLogDirsRequest(topics=asked)).results
    assert [(t.name, [p.partition_index for p in t.partitions]) for t in result.topics] == [("orders", [1])]
    (result,) = admin.ask(DescribeLogDirsRequest(topics=[])).results
    assert list(result.topics) == []


def test_a_log_folder_that_is_gone_says_so(make_admin: Callable[..., Any], tmp_path: Path) -> None:
    admin = make_admin(log_dirs=str(tmp_path / "gone"))
    (result,) = admin.ask(DescribeLogDirsRequest(topics=None)).results
    assert (result.error_code, result.log_dir) == (STORAGE_ERROR, str(tmp_path / "gone"))


# -- coordinators ------------------------------------------------------------------------------------------------------


def sought(version: int, *keys: str, kind: int = GROUP) -> FindCoordinatorRequest:
    fields: dict[str, Any] = {"key_type": kind} if version >= 1 else {}
    if version >= 4:
        return FindCoordinatorRequest(coordinator_keys=list(keys), **fields)
    return FindCoordinatorRequest(key=keys[0], **fields)


def found(response: Any, version: int) -> list[tuple[int, int, str, int]]:
    places = response.coordinators if version >= 4 else [response]
    return [(place.error_code, place.node_id, place.host, place.port) for place in places]


@pytest.mark.parametrize("version", range(7))
def test_the_coordinator_of_a_group_is_found_at_once_and_its_topic_created(
    make_admin: Callable[..., Any], version: int
) -> None:
    admin = make_admin(auto_create_topics_enable=False, offsets_topic_num_partitions=6)
    response = admin.ask(sought(version, "group"), version)
    assert found(response, version) == [(0, 1, "bench.example", 9092)]
    assert len(admin.image.topics_by_name["__consumer_offsets"].partitions) == 6
    written = admin.image.end_offset
    admin.ask(sought(version, "another"), version)
    assert admin.image.end_offset == written


def test_several_groups_are_found_in_one_request_in_their_order(make_admin: Callable[..., Any]) -> None:
    admin = make_admin(offsets_topic_num_partitions=6)
    response = admin.ask(sought(4, "b", "a", "ccc"), 4)
    assert [place.key for place in response.coordinators] == ["b", "a", "ccc"]


@pytest.mark.parametrize("version", [3, 6])
def test_a_group_whose_partition_has_no_leader_has_no_coordinator(make_admin: Callable[..., Any], version: int) -> None:
    admin = make_admin(offsets_topic_num_partitions=6)
    admin.ask(sought(version, "abc"), version)
    topic_id = admin.image.topics_by_name["__consumer_offsets"].id
    record = PartitionChangeRecord(partition_id=3, topic_id=topic_id, leader=-1)
    admin.image.replay(record, admin.image.end_offset, MetadataDelta())
    assert found(admin.ask(sought(version, "abc"), version), version) == [(COORDINATOR_NOT_AVAILABLE, -1, "", -1)]
    assert found(admin.ask(sought(version, "ab"), version), version)[0][0] == 0


def test_where_the_topic_cannot_be_created_there_is_no_coordinator(make_admin: Callable[..., Any]) -> None:
    admin = make_admin(offsets_topic_replication_factor=3)
    assert found(admin.ask(sought(6, "group"), 6), 6) == [(COORDINATOR_NOT_AVAILABLE, -1, "", -1)]


@pytest.mark.parametrize("version", range(1, 7))
def test_the_coordinator_of_a_transactional_id_is_found_at_once_and_its_topic_created(
    make_admin: Callable[..., Any], version: int
) -> None:
    admin = make_admin(auto_create_topics_enable=False, transaction_state_log_num_partitions=8)
    response = admin.ask(sought(version, "orders-tx", kind=TRANSACTION), version)
    assert found(response, version) == [(0, 1, "bench.example", 9092)]
    assert len(admin.image.topics_by_name["__transaction_state"].partitions) == 8


@pytest.mark.parametrize(
    ("version", "kind", "code"),
    [(5, SHARE, INVALID_REQUEST), (6, SHARE, UNSUPPORTED_VERSION), (1, 5, INVALID_REQUEST), (6, 5, INVALID_REQUEST)],
)
def test_other_kinds_of_coordinators_are_refused(admin: Any, version: int, kind: int, code: int) -> None:
    assert found(admin.ask(sought(version, "key", kind=kind), version), version) == [(code, -1, "", -1)]


# -- producer ids ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(6))
def test_an_idempotent_producer_gets_an_id_of_its_own_in_every_version(admin: Any, version: int) -> None:
    request = InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=0)
    answers = [admin.ask(request, version) for _ in range(3)]
    assert [(a.error_code, a.producer_id, a.producer_epoch) for a in answers] == [(0, 0, 0), (0, 1, 0), (0, 2, 0)]


@pytest.mark.parametrize(("fields", "code"), [({"producer_id": 5}, 42), ({"producer_epoch": 5}, 42)])
def test_an_id_without_its_epoch_is_refused(admin: Any, fields: dict[str, int], code: int) -> None:
    response = admin.ask(InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=1, **fields), 4)
    assert (response.error_code, response.producer_id, response.producer_epoch) == (code, -1, -1)


def test_a_producer_that_names_its_old_id_gets_a_new_one(admin: Any) -> None:
    request = InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=1, producer_id=5, producer_epoch=3)
    response = admin.ask(request, 4)
    assert (response.error_code, response.producer_id, response.producer_epoch) == (0, 0, 0)


def test_a_transactional_id_gets_its_producer_id_from_its_coordinator(admin: Any) -> None:
    request = InitProducerIdRequest(transactional_id="orders-tx", transaction_timeout_ms=1)
    assert admin.ask(request, 5).error_code == NOT_COORDINATOR  # nobody has asked for one, so there is none
    admin.ask(sought(6, "orders-tx", kind=TRANSACTION), 6)
    response = admin.ask(request, 5)
    assert (response.error_code, response.producer_id, response.producer_epoch) == (0, 0, 0)
    response = admin.ask(InitProducerIdRequest(transactional_id="", transaction_timeout_ms=1), 5)
    assert response.error_code == INVALID_REQUEST
