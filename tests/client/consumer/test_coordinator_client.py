"""Commits and committed offsets, error by error, against a scripted coordinator."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from ottla.client.backoff import Backoff
from ottla.client.config import ConsumerConfig
from ottla.client.consumer.coordinator_client import CoordinatorClient
from ottla.client.consumer.membership import Generation
from ottla.client.topic_partition import OffsetAndMetadata, TopicPartition
from ottla.errors import (
    CommitFailed,
    CoordinatorLoadInProgress,
    Disconnected,
    FencedInstanceId,
    GroupAuthorizationFailed,
    IllegalGeneration,
    KafkaError,
    NotCoordinator,
    OffsetMetadataTooLarge,
    RebalanceInProgress,
    UnknownMemberId,
    UnstableOffsetCommit,
)
from ottla_wire.messages.offset_commit import (
    OffsetCommitResponse,
    OffsetCommitResponsePartition,
    OffsetCommitResponseTopic,
)
from ottla_wire.messages.offset_fetch import (
    OffsetFetchResponse,
    OffsetFetchResponseGroup,
    OffsetFetchResponsePartitions,
    OffsetFetchResponseTopics,
)

A0 = TopicPartition("a", 0)
ME = Generation(3, "me", "range")


class Coordinator:
    """The cluster as the client sees it: one coordinator that answers by script."""

    def __init__(self, *answers: Any) -> None:
        self.config = ConsumerConfig()
        self.answers = list(answers)
        self.requests: list[Any] = []
        self.lookups = 0
        self.forgotten = 0

    def now_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000)

    async def find_coordinator(self, key: str, kind: Any, **options: Any) -> int:
        self.lookups += 1
        return 1

    def forget_coordinator(self, key: str, kind: Any) -> None:
        self.forgotten += 1

    async def send(self, node_id: int, request: Any, **options: Any) -> Any:
        self.requests.append(request)
        await asyncio.sleep(0)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self) -> CoordinatorClient:
        return CoordinatorClient(self, "group", None, "client", Backoff(1, 2, random.Random(1)))  # type: ignore[arg-type]

    def committed_offsets(self) -> list[int]:
        return [request.topics[0].partitions[0].committed_offset for request in self.requests]


def committed(error: type[KafkaError] | None = None) -> OffsetCommitResponse:
    partition = OffsetCommitResponsePartition(partition_index=0, error_code=0 if error is None else error.code)
    return OffsetCommitResponse(topics=[OffsetCommitResponseTopic(name="a", partitions=[partition])])


def fetched(offset: int = -1, *, group_error: type[KafkaError] | None = None, error: Any = None) -> OffsetFetchResponse:
    partition = OffsetFetchResponsePartitions(
        partition_index=0, committed_offset=offset, metadata=None, error_code=0 if error is None else error.code
    )
    group = OffsetFetchResponseGroup(
        group_id="group",
        error_code=0 if group_error is None else group_error.code,
        topics=[OffsetFetchResponseTopics(name="a", partitions=[partition])],
    )
    return OffsetFetchResponse(groups=[group])


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


async def commit(coordinator: Coordinator, offset: int = 7, *, patient: bool = True) -> None:
    deadline_ms = coordinator.now_ms() + 5_000 if patient else None
    await coordinator.client().commit({A0: OffsetAndMetadata(offset, 2, "m")}, ME, deadline_ms=deadline_ms)


def test_a_commit_names_the_membership_and_the_epoch() -> None:
    coordinator = Coordinator(committed())
    run(commit(coordinator))
    (request,) = coordinator.requests
    (partition,) = request.topics[0].partitions
    assert (request.generation_id_or_member_epoch, request.member_id) == (3, "me")
    assert (partition.committed_offset, partition.committed_leader_epoch, partition.committed_metadata) == (7, 2, "m")


@pytest.mark.parametrize("error", [CoordinatorLoadInProgress, NotCoordinator, UnstableOffsetCommit])
def test_what_may_be_repeated_is_repeated_while_there_is_time(error: type[KafkaError]) -> None:
    coordinator = Coordinator(committed(error), committed(error), committed())
    run(commit(coordinator))
    assert len(coordinator.requests) == 3
    assert coordinator.forgotten == (2 if error is NotCoordinator else 0)


def test_a_lost_connection_has_the_coordinator_looked_up_again() -> None:
    coordinator = Coordinator(Disconnected("gone"), committed())
    run(commit(coordinator))
    assert (coordinator.forgotten, coordinator.lookups) == (1, 2)


def test_an_asynchronous_commit_is_tried_once() -> None:
    coordinator = Coordinator(committed(CoordinatorLoadInProgress))
    with pytest.raises(CoordinatorLoadInProgress):
        run(commit(coordinator, patient=False))


@pytest.mark.parametrize("error", [UnknownMemberId, IllegalGeneration])
def test_a_lost_membership_is_a_failed_commit(error: type[KafkaError]) -> None:
    with pytest.raises(CommitFailed) as caught:
        run(commit(Coordinator(committed(error))))
    assert isinstance(caught.value.__cause__, error)


def test_a_rebalance_says_to_poll_and_commit_again() -> None:
    with pytest.raises(RebalanceInProgress, match=r"poll\(\) finishes that"):
        run(commit(Coordinator(committed(RebalanceInProgress))))


@pytest.mark.parametrize("error", [FencedInstanceId, OffsetMetadataTooLarge, GroupAuthorizationFailed])
def test_a_refused_commit_names_the_partition(error: type[KafkaError]) -> None:
    with pytest.raises(error, match="a-0"):
        run(commit(Coordinator(committed(error))))


def test_a_commit_that_is_repeated_is_not_overtaken_by_the_next_one() -> None:
    """Otherwise the older offset would be committed last."""
    coordinator = Coordinator(committed(CoordinatorLoadInProgress), committed(), committed())

    async def both() -> None:
        client = coordinator.client()
        deadline_ms = coordinator.now_ms() + 5_000
        await asyncio.gather(
            client.commit({A0: OffsetAndMetadata(1)}, ME, deadline_ms=deadline_ms),
            client.commit({A0: OffsetAndMetadata(2)}, ME, deadline_ms=deadline_ms),
        )

    run(both())
    assert coordinator.committed_offsets() == [1, 1, 2]


def test_nothing_to_commit_asks_nobody() -> None:
    coordinator = Coordinator()
    run(coordinator.client().commit({}, ME, deadline_ms=None))
    assert not coordinator.requests


async def committed_of(coordinator: Coordinator) -> Any:
    return await coordinator.client().committed([A0], deadline_ms=coordinator.now_ms() + 5_000)


def test_no_committed_offset_is_none_and_never_zero() -> None:
    assert run(committed_of(Coordinator(fetched(-1)))) == {A0: None}
    assert run(committed_of(Coordinator(fetched(0)))) == {A0: OffsetAndMetadata(0)}
    assert run(committed_of(Coordinator(OffsetFetchResponse(groups=[OffsetFetchResponseGroup(group_id="group")])))) == {
        A0: None
    }


def test_a_coordinator_that_loads_or_waits_for_a_transaction_is_asked_again() -> None:
    coordinator = Coordinator(
        fetched(0, group_error=CoordinatorLoadInProgress), fetched(0, error=UnstableOffsetCommit), fetched(5)
    )
    assert run(committed_of(coordinator)) == {A0: OffsetAndMetadata(5)}
    assert all(request.require_stable for request in coordinator.requests)


def test_a_refusal_is_raised() -> None:
    with pytest.raises(GroupAuthorizationFailed):
        run(committed_of(Coordinator(fetched(0, group_error=GroupAuthorizationFailed))))
