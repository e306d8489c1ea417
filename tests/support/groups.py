"""A group coordinator under the tests' control: a log whose high watermark and failures they decide, virtual time.

Requests go the whole way: encoded and decoded in the version asked for, through the handler, and the answer back the
same way. So a test sees what a client would.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ottla_broker import api
from ottla_broker.broker import AllowAll
from ottla_broker.context import ANONYMOUS, RequestContext
from ottla_broker.coordinator.decision import CoordinatorRecord, TransactionalProducer, TransactionEnd
from ottla_broker.coordinator.group_config import GroupConfig
from ottla_broker.coordinator.group_coordinator import GroupCoordinator
from ottla_broker.pending import Pending
from ottla_broker.replication.transaction_verification import Verified
from ottla_wire.errors import KafkaError, error_class
from ottla_wire.messages import request_class
from ottla_wire.messages.delete_groups import DeleteGroupsRequest
from ottla_wire.messages.describe_groups import DescribedGroup, DescribeGroupsRequest
from ottla_wire.messages.heartbeat import HeartbeatRequest
from ottla_wire.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from ottla_wire.messages.leave_group import LeaveGroupRequest, MemberIdentity
from ottla_wire.messages.list_groups import ListGroupsRequest
from ottla_wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from ottla_wire.messages.offset_fetch import OffsetFetchRequest, OffsetFetchRequestGroup, OffsetFetchRequestTopics
from ottla_wire.messages.sync_group import SyncGroupRequest, SyncGroupRequestAssignment
from ottla_wire.messages.txn_offset_commit import (
    TxnOffsetCommitRequest,
    TxnOffsetCommitRequestPartition,
    TxnOffsetCommitRequestTopic,
)
from ottla_wire.records import (
    ControlType,
    RecordBatch,
    build_batch,
    control_type,
    end_transaction_marker,
    iter_batches,
)
from ottla_wire.schema import Request, Uuid

TOPIC = "t1"
TOPIC_ID = Uuid(b"topic-id-of-t1..")


class FakeCoordinatorLog:
    """Partitions of an internal topic in memory.

    Attributes:
        replicating: whether the high watermark follows each append at once.
        failure: what the next appends raise.
        appends: how many batches were appended.
    """

    def __init__(self) -> None:
        self.replicating = True
        self.failure: Exception | None = None
        self.appends = 0
        self._batches: dict[int, list[bytes]] = {}
        self._ends: dict[int, int] = {}
        self._high_watermarks: dict[int, int] = {}

    def append(
        self,
        partition: int,
        records: Sequence[CoordinatorRecord],
        now_ms: int,
        producer: TransactionalProducer | None = None,
    ) -> int:
        assert records, "an empty batch"
        rows = [(now_ms, record.key, record.value, ()) for record in records]
        base = self._ends.get(partition, 0)
        fields: dict[str, Any] = {}
        if producer is not None:
            fields = {"producer_id": producer.producer_id, "producer_epoch": producer.producer_epoch}
            fields["transactional"] = True
        return self._append(partition, build_batch(rows, base_offset=base, **fields), len(records))

    def append_marker(self, partition: int, end: TransactionEnd, now_ms: int) -> int:
        marker = end_transaction_marker(
            commit=end.committed,
            producer_id=end.producer_id,
            producer_epoch=end.producer_epoch,
            coordinator_epoch=end.coordinator_epoch,
            timestamp_ms=now_ms,
            base_offset=self._ends.get(partition, 0),
        )
        return self._append(partition, marker, 1)

    def _append(self, partition: int, batch: bytes, count: int) -> int:
        if self.failure is not None:
            raise self.failure
        self._batches.setdefault(partition, []).append(batch)
        self._ends[partition] = self._ends.get(partition, 0) + count
        self.appends += 1
        if self.replicating:
            self._high_watermarks[partition] = self._ends[partition]
        return self._ends[partition]

    def high_watermark(self, partition: int) -> int:
        return self._high_watermarks.get(partition, 0)

    def read(self, partition: int) -> Iterator[RecordBatch]:
        for batch in list(self._batches.get(partition, [])):
            yield from iter_batches(bytearray(batch))

    def add_batch(self, partition: int, batch: bytes, records: int) -> None:
        """A batch that somebody else wrote."""
        self._batches.setdefault(partition, []).append(batch)
        self._ends[partition] = self._ends.get(partition, 0) + records
        self._high_watermarks[partition] = self._ends[partition]

    def end_offset(self, partition: int) -> int:
        return self._ends.get(partition, 0)

    def replicate(self, partition: int, up_to: int | None = None) -> int:
        """Move the high watermark; returns it."""
        self._high_watermarks[partition] = self._ends.get(partition, 0) if up_to is None else up_to
        return self._high_watermarks[partition]

    def compacted(self, partition: int) -> FakeCoordinatorLog:
        """A log that has only what Kafka's cleaner leaves: the last record of each key, nothing aborted.

        It does not touch what stands behind the beginning of an open transaction. Batches have one record each.
        """
        batches = list(self.read(partition))
        open_since: dict[int, int] = {}
        aborted: set[int] = set()
        in_transaction: dict[int, list[int]] = {}
        for batch in batches:
            if not batch.is_transactional:
                continue
            if not batch.is_control:
                open_since.setdefault(batch.producer_id, batch.base_offset)
                in_transaction.setdefault(batch.producer_id, []).append(batch.base_offset)
                continue
            offsets = in_transaction.pop(batch.producer_id, [])
            open_since.pop(batch.producer_id, None)
            if control_type(batch) is ControlType.ABORT:
                aborted.update(offsets)
        end = min(open_since.values(), default=self.end_offset(partition))
        data = [batch for batch in batches if not batch.is_control and batch.base_offset not in aborted]
        last = {batch.records()[0].key: batch.base_offset for batch in data if batch.base_offset < end}
        kept = FakeCoordinatorLog()
        for batch in batches:
            is_last = not batch.is_control and last.get(batch.records()[0].key) == batch.base_offset
            if batch.is_control or is_last or batch.base_offset >= end:
                kept._batches.setdefault(partition, []).append(bytes(batch.data))
        kept._ends[partition] = kept._high_watermarks[partition] = self.end_offset(partition)
        return kept

    def records(self, partition: int) -> list[CoordinatorRecord]:
        """Everything that was appended."""
        found = [record for batch in self.read(partition) for record in batch.records()]
        return [CoordinatorRecord(record.key or b"", record.value) for record in found]


class Groups:
    """A coordinator of all partitions of `__consumer_offsets`, and clients that talk to it.

    Attributes:
        verified: what the transaction coordinator says of every transaction.
    """

    def __init__(self, *, log: FakeCoordinatorLog | None = None, seed: int = 1, **settings: int) -> None:
        settings = {"offsets_topic_num_partitions": 4, "group_initial_rebalance_delay_ms": 0} | settings
        self.config = GroupConfig(**settings)
        self.log = log or FakeCoordinatorLog()
        self.now_ms = 1_000
        topic = SimpleNamespace(name=TOPIC, id=TOPIC_ID, partitions={0: None, 1: None})
        self.topics_by_name = {TOPIC: topic}
        self.topics_by_id = {TOPIC_ID: topic}
        self.verified: Verified | Pending[Verified] = Verified({}, {})
        self._rng = random.Random(seed)
        self._epoch = 0
        self.restart()

    # the world

    def restart(self) -> None:
        """Another process takes over: everything but the log is gone."""
        self.coordinator = GroupCoordinator(self.log, self.config, wall_ms=self.wall_ms, rng=self._rng)
        image = SimpleNamespace(topics_by_name=self.topics_by_name, topics_by_id=self.topics_by_id)
        controller = SimpleNamespace(image=image)
        self._broker: Any = SimpleNamespace(
            groups=self.coordinator,
            controller=controller,
            authorizer=AllowAll(),
            verification=SimpleNamespace(verify=lambda *_, **__: self.verified),
        )
        self._epoch += 1
        for partition in range(self.config.offsets_topic_num_partitions):
            self.coordinator.load(partition, self._epoch, self.now_ms)

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + self.now_ms

    def advance(self, by_ms: int) -> None:
        """Let time go by; what becomes due runs at its time."""
        until = self.now_ms + by_ms
        while (deadline := self.coordinator.deadline_ms()) is not None and deadline <= until:
            self.now_ms = max(self.now_ms, deadline)
            self.coordinator.tick(self.now_ms)
        self.now_ms = until

    def replicate(self, group: str = "g", up_to: int | None = None) -> None:
        """The followers have fetched what the group's partition holds."""
        partition = self.partition(group)
        self.coordinator.high_watermark_moved(partition, self.log.replicate(partition, up_to), self.now_ms)

    def partition(self, group: str = "g") -> int:
        return self.coordinator.partition_for(group)

    def group(self, name: str = "g") -> Any:
        """The group's state inside; None if there is none."""
        return self.coordinator.runtime.read(self.partition(name), lambda shard: shard.groups.get(name))

    def state(self, name: str = "g") -> str:
        group = self.group(name)
        return "none" if group is None else group.state.value

    # requests

    def ask(self, request: Request, version: int, *, client_id: str = "c", settle: bool = True) -> Pending[Any]:
        """Send a request; the answer as the client decodes it, perhaps later."""
        received = request_class(request.api_key).decode(bytearray(request.encode(version)), version)
        context = RequestContext(1, request.api_key, version, client_id, "127.0.0.1", ANONYMOUS, self.now_ms)
        answer = api.dispatch(self._broker, context, received)
        if settle:
            self.coordinator.settle(self.now_ms)
        pending = answer if isinstance(answer, Pending) else Pending.completed(answer)
        return pending.then(lambda response: type(response).decode(response.encode(version), version))

    def join(
        self,
        member_id: str = "",
        *,
        group: str = "g",
        version: int = 9,
        instance: str | None = None,
        protocols: Mapping[str, bytes] | None = None,
        protocol_type: str = "consumer",
        session_ms: int = 10_000,
        rebalance_ms: int = 60_000,
        client_id: str = "c",
    ) -> Pending[Any]:
        request = join_request(
            member_id,
            group=group,
            instance=instance,
            protocols=protocols,
            protocol_type=protocol_type,
            session_ms=session_ms,
            rebalance_ms=rebalance_ms,
        )
        return self.ask(request, version, client_id=client_id)

    def enter(self, **arguments: Any) -> tuple[str, Pending[Any]]:
        """Join as a new dynamic member does: ask for an id, join with it. The id, and the parked join."""
        first = self.join(**arguments)
        assert error(first) == "MemberIdRequired"
        member_id = first.result().member_id
        return member_id, self.join(member_id, **arguments)

    def sync(
        self,
        member_id: str,
        generation: int,
        assignments: Mapping[str, bytes] | None = None,
        *,
        group: str = "g",
        version: int = 5,
        instance: str | None = None,
        protocol: str | None = "range",
        protocol_type: str | None = "consumer",
    ) -> Pending[Any]:
        shares = [
            SyncGroupRequestAssignment(member_id=who, assignment=what) for who, what in (assignments or {}).items()
        ]
        request = SyncGroupRequest(
            group_id=group,
            generation_id=generation,
            member_id=member_id,
            group_instance_id=instance,
            protocol_type=protocol_type if version >= 5 else None,
            protocol_name=protocol if version >= 5 else None,
            assignments=shares,
        )
        return self.ask(request, version)

    def heartbeat(
        self, member_id: str, generation: int, *, group: str = "g", instance: str | None = None
    ) -> Pending[Any]:
        request = HeartbeatRequest(
            group_id=group, generation_id=generation, member_id=member_id, group_instance_id=instance
        )
        return self.ask(request, 4)

    def leave(self, *member_ids: str, group: str = "g", instance: str | None = None, version: int = 5) -> Pending[Any]:
        if version < 3:
            return self.ask(LeaveGroupRequest(group_id=group, member_id=member_ids[0], members=[]), version)
        members = [MemberIdentity(member_id=member_id, group_instance_id=instance) for member_id in member_ids]
        return self.ask(LeaveGroupRequest(group_id=group, members=members), version)

    def commit(
        self,
        offset: int,
        member_id: str = "",
        generation: int = -1,
        *,
        group: str = "g",
        partition: int = 0,
        version: int = 9,
        settle: bool = True,
        **fields: Any,
    ) -> Pending[Any]:
        request = commit_request(offset, member_id, generation, group=group, partition=partition, **fields)
        return self.ask(request, version, settle=settle)

    def commit_in_transaction(
        self,
        offset: int,
        producer_id: int = 9,
        *,
        epoch: int = 0,
        member_id: str = "",
        generation: int = -1,
        instance: str | None = None,
        group: str = "g",
        topic: str = TOPIC,
        partition: int = 0,
        metadata: str = "",
        version: int = 5,
    ) -> Pending[Any]:
        committed = TxnOffsetCommitRequestPartition(
            partition_index=partition, committed_offset=offset, committed_metadata=metadata
        )
        request = TxnOffsetCommitRequest(
            transactional_id="tx",
            group_id=group,
            producer_id=producer_id,
            producer_epoch=epoch,
            generation_id_or_member_epoch=generation,
            member_id=member_id,
            group_instance_id=instance,
            topics=[TxnOffsetCommitRequestTopic(name=topic, partitions=[committed])],
        )
        return self.ask(request, version)

    def end_transaction(self, producer_id: int = 9, *, commit: bool, epoch: int = 0, group: str = "g") -> Pending[None]:
        """The marker of a producer's transaction, in the partition of a group."""
        return self.coordinator.complete_transaction(
            self.partition(group),
            producer_id,
            epoch,
            0,
            committed=commit,
            transaction_version=1,
            now_ms=self.now_ms,
        )

    def fetch(self, *, group: str = "g", partition: int = 0, stable: bool = False) -> Pending[Any]:
        """The answer for one partition."""
        topic = OffsetFetchRequestTopics(name=TOPIC, partition_indexes=[partition])
        request = OffsetFetchRequest(
            topics=[], groups=[OffsetFetchRequestGroup(group_id=group, topics=[topic])], require_stable=stable
        )
        return self.ask(request, 9).then(_only_partition)

    def committed(self, **arguments: Any) -> int:
        """The committed offset as a plain fetch tells it."""
        offset = self.fetch(**arguments).result().committed_offset
        assert isinstance(offset, int)
        return offset

    def describe(self, group: str = "g", version: int = 6) -> DescribedGroup:
        response = self.ask(DescribeGroupsRequest(groups=[group]), version).result()
        (described,) = response.groups
        assert isinstance(described, DescribedGroup)
        return described

    def list(self, states: Sequence[str] = (), types: Sequence[str] = ()) -> list[tuple[str, str]]:
        """Names and states of the groups, sorted."""
        response = self.ask(ListGroupsRequest(states_filter=[*states], types_filter=[*types]), 5).result()
        assert response.error_code == 0, error_name(response.error_code)
        return sorted((listed.group_id, listed.group_state) for listed in response.groups)

    def delete(self, group: str = "g") -> str:
        """The error of deleting a group."""
        (result,) = self.ask(DeleteGroupsRequest(groups_names=[group]), 2).result().results
        return error_name(result.error_code)

    # whole rebalances

    def form(self, count: int = 1, **arguments: Any) -> list[str]:
        """A Stable group of new dynamic members; their ids, the leader's first. Everybody's share is its own id."""
        entered = [self.enter(**arguments) for _ in range(count)]
        if self.state(arguments.get("group", "g")) == "PreparingRebalance":
            self.advance(self.config.group_initial_rebalance_delay_ms)
        joins = [self.join(member_id, **arguments) if join.done() else join for member_id, join in entered]
        ids = [member_id for member_id, _ in entered]
        return self.complete(ids, joins, arguments.get("group", "g"))

    def complete(self, ids: list[str], joins: list[Pending[Any]], group: str = "g") -> list[str]:
        """Bring a finished join phase to Stable; the ids, the leader's first."""
        answers = [join.result() for join in joins]
        assert {answer.error_code for answer in answers} == {0}
        leader = answers[0].leader
        ordered = [leader, *(member_id for member_id in ids if member_id != leader)]
        shares = {member_id: member_id.encode() for member_id in ids}
        generation = answers[0].generation_id
        followers = [self.sync(member_id, generation, group=group) for member_id in ordered[1:]]
        lead = self.sync(leader, generation, shares, group=group)
        assert lead.result().error_code == 0
        assert all(sync.result().error_code == 0 for sync in followers)
        return ordered


def join_request(
    member_id: str = "",
    *,
    group: str = "g",
    instance: str | None = None,
    protocols: Mapping[str, bytes] | None = None,
    protocol_type: str = "consumer",
    session_ms: int = 10_000,
    rebalance_ms: int = 60_000,
) -> JoinGroupRequest:
    offered = {"range": b""} if protocols is None else protocols
    return JoinGroupRequest(
        group_id=group,
        session_timeout_ms=session_ms,
        rebalance_timeout_ms=rebalance_ms,
        member_id=member_id,
        group_instance_id=instance,
        protocol_type=protocol_type,
        protocols=[JoinGroupRequestProtocol(name=name, metadata=metadata) for name, metadata in offered.items()],
    )


def commit_request(
    offset: int,
    member_id: str = "",
    generation: int = -1,
    *,
    group: str = "g",
    topic: str = TOPIC,
    topic_id: Uuid = Uuid.ZERO,
    partition: int = 0,
    metadata: str | None = "",
    instance: str | None = None,
    leader_epoch: int = -1,
    retention_ms: int = -1,
) -> OffsetCommitRequest:
    committed = OffsetCommitRequestPartition(
        partition_index=partition,
        committed_offset=offset,
        committed_leader_epoch=leader_epoch,
        committed_metadata=metadata,
    )
    return OffsetCommitRequest(
        group_id=group,
        generation_id_or_member_epoch=generation,
        member_id=member_id,
        group_instance_id=instance,
        retention_time_ms=retention_ms,
        topics=[OffsetCommitRequestTopic(name=topic, topic_id=topic_id, partitions=[committed])],
    )


def error(pending: Pending[Any]) -> str:
    """The name of the error in an answer, "" if there is none; the answer must be there."""
    assert pending.done(), "not answered yet"
    return error_name(code_of(pending.result()))


def code_of(response: Any) -> int:
    """The one error code of a response, wherever it is."""
    if getattr(response, "error_code", 0):
        return int(response.error_code)
    codes = {
        partition.error_code
        for topic in getattr(response, "topics", ())
        for partition in topic.partitions
        if partition.error_code
    }
    codes |= {group.error_code for group in getattr(response, "groups", ()) if getattr(group, "error_code", 0)}
    codes |= {member.error_code for member in getattr(response, "members", ()) if getattr(member, "error_code", 0)}
    assert len(codes) <= 1, codes
    return int(codes.pop()) if codes else 0


def error_name(code: int) -> str:
    if code == 0:
        return ""
    known: type[KafkaError] | None = error_class(code)
    assert known is not None
    return known.__name__


def _only_partition(response: Any) -> Any:
    (group,) = response.groups
    if group.error_code:
        return group
    return group.topics[0].partitions[0]
