"""Reading for one fetch request: many partitions under one size limit, now or when there is enough.

Size rules (KIP-74): partitions are read in order, each up to its own limit and to what is left of the response's. Until
something was read both limits are ignored for the first batch, so that a batch larger than any limit cannot stop a
consumer; after that a partition whose first batch does not fit returns nothing. Batches are never cut.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ottla_broker.replication.fetch_sessions import FetchTarget
from ottla_broker.replication.partition import Partition, PartitionRead
from ottla_wire.errors import InconsistentTopicId, KafkaError
from ottla_wire.schema import Uuid

if TYPE_CHECKING:
    from ottla_broker.replication.replica_manager import ReplicaManager


class FetchLimits(NamedTuple):
    """Who reads, how much, and what."""

    replica_id: int
    isolation_level: int
    min_bytes: int
    max_bytes: int


class FetchOutcome:
    """The result of reading all partitions once."""

    __slots__ = ("answer_now", "bytes_read", "results")

    def __init__(self) -> None:
        self.results: dict[FetchTarget, PartitionRead | KafkaError] = {}
        self.bytes_read = 0
        self.answer_now = False  # an error or a diverging epoch: the reader has to know at once


def read_partitions(
    replicas: ReplicaManager,
    targets: Sequence[FetchTarget],
    limits: FetchLimits,
    known: Mapping[FetchTarget, PartitionRead] | None = None,
) -> FetchOutcome:
    """Read every target once, in order; those in `known` have nothing, and have not moved since that was found."""
    outcome = FetchOutcome()
    results = outcome.results
    left = limits.max_bytes
    for target in targets:
        if known is not None and target in known:
            results[target] = known[target]
            continue
        try:
            read = _read(replicas, target, limits, left, at_least_one=outcome.bytes_read == 0)
        except KafkaError as error:
            results[target] = error
            outcome.answer_now = True
            continue
        results[target] = read
        size = len(read.records)
        if size:
            outcome.bytes_read += size
            left = max(left - size, 0)
        elif read.diverging_epoch is not None:
            outcome.answer_now = True
    return outcome


def _read(
    replicas: ReplicaManager, target: FetchTarget, limits: FetchLimits, left: int, *, at_least_one: bool
) -> PartitionRead:
    assert target.topic is not None
    partition = replicas.partition(target.topic, target.index)
    if target.topic_id != partition.topic_id and target.topic_id != Uuid.ZERO:
        raise InconsistentTopicId(f"{partition.name} has the id {partition.topic_id}, not {target.topic_id}")
    return partition.read(
        target.fetch_offset,
        min(target.max_bytes, left),
        replica_id=limits.replica_id,
        isolation_level=limits.isolation_level,
        current_leader_epoch=target.current_leader_epoch,
        last_fetched_epoch=target.last_fetched_epoch,
        at_least_one=at_least_one,
    )


class _Growth:
    """What one partition of a parked fetch has gained since it was read."""

    __slots__ = ("appended_before", "cap", "gained", "hides_records", "leader_epoch", "limit_before", "target")

    def __init__(self, partition: Partition, limits: FetchLimits, target: FetchTarget) -> None:
        self.target = target
        self.limit_before = partition.limit(limits.replica_id, limits.isolation_level)
        # Behind the limit (an open transaction, a lagging replica). What is appended does not say then how much becomes
        # readable.
        self.hides_records = partition.log.log_end_offset > self.limit_before
        self.appended_before = partition.appended_bytes
        self.leader_epoch = partition.leader_epoch
        self.cap = target.max_bytes
        self.gained = 0


class DelayedFetch:
    """A fetch that waits for `min_bytes`.

    When a partition moves, the bytes appended to it since are a cheap upper bound of what could be read now; only when
    the sum of these reaches what is missing are they read again (those that had nothing and did not move are not), and
    only if that yields enough (or an error) is the fetch answered. So many small appends do not read the same data
    again and again, and a fetch is never answered early with less than it asked for.
    """

    def __init__(
        self,
        replicas: ReplicaManager,
        targets: Sequence[FetchTarget],
        limits: FetchLimits,
        outcome: FetchOutcome,
        answer: Callable[[FetchOutcome], None],
    ) -> None:
        self._replicas = replicas
        self._targets = targets
        self._limits = limits
        self._answer = answer
        self._growth: dict[Partition, _Growth] = {}
        self._unmoved: dict[FetchTarget, PartitionRead] = {}
        self._bytes_needed = 0
        self._remember(outcome)

    @property
    def partitions(self) -> list[Partition]:
        """The partitions whose moves matter."""
        return list(self._growth)

    def try_complete(self, key: Hashable) -> bool:
        """`key` (a partition) moved: answer if there is enough now."""
        partition = key
        assert isinstance(partition, Partition)
        growth = self._growth.get(partition)
        if growth is None:
            return False
        self._unmoved.pop(growth.target, None)
        if partition.is_leader and partition.log.offline is None and partition.leader_epoch == growth.leader_epoch:
            limit = partition.limit(self._limits.replica_id, self._limits.isolation_level)
            if growth.limit_before <= limit and not self._has_enough(partition, growth, limit):
                return False
        outcome = self._read()
        if outcome.bytes_read < self._limits.min_bytes and not outcome.answer_now:
            self._remember(outcome)
            return False
        self._answer(outcome)
        return True

    def expire(self) -> None:
        """The client's max wait is over: answer with what there is."""
        self._answer(self._read())

    def _read(self) -> FetchOutcome:
        return read_partitions(self._replicas, self._targets, self._limits, self._unmoved)

    def _has_enough(self, partition: Partition, growth: _Growth, limit: int) -> bool:
        if limit == growth.limit_before:
            return False
        gained = min(partition.appended_bytes - growth.appended_before, growth.cap)
        if gained <= 0 or growth.hides_records:
            return True  # read and see
        self._bytes_needed -= gained - growth.gained
        growth.gained = gained
        return self._bytes_needed <= 0

    def _remember(self, outcome: FetchOutcome) -> None:
        self._growth.clear()
        self._unmoved.clear()
        for target in self._targets:
            assert target.topic is not None
            partition = self._replicas.find(target.topic, target.index)
            if partition is None:
                continue
            known = self._growth.get(partition)
            if known is not None:
                # A partition that is named twice is read each time.
                self._unmoved.pop(known.target, None)
                continue
            self._growth[partition] = _Growth(partition, self._limits, target)
            result = outcome.results[target]
            if isinstance(result, PartitionRead) and not result.records:
                self._unmoved[target] = result
        self._bytes_needed = self._limits.min_bytes - outcome.bytes_read
