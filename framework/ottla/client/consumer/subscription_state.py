"""What a consumer reads, and how far it has come: subscription, assignment, positions.

Theory of operation. A partition that was just assigned has no position. It gets one from the group's committed
offset, or from the reset policy (a ListOffsets request), or from the application (`seek`). Only in FETCHING may it be
fetched and may fetched records be handed out:

    INITIALIZING ──committed offset──> FETCHING <──validated── AWAIT_VALIDATION
         │                              │  ^  └──newer leader──────────^
         └──no offset, policy──> AWAIT_RESET┘
                                     ^──out of range, seek_to_*

`position` is what the application has been given; `fetch_offset` is how far records have been fetched ahead of it.
`version` is renewed by whatever makes fetched data worthless (a seek, a reset, a truncation check); an answer or a
buffer that carries an older version is dropped. The versions come from one counter, so that a partition that was
revoked and assigned again does not accept what was under way for its earlier life.

No I/O, no clock, no lock: the consumer's core holds one lock around all of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum, auto
from typing import NamedTuple

from ottla.client.consumer.reset_policy import ResetPolicy
from ottla.client.topic_partition import OffsetAndMetadata, TopicPartition


class SubscriptionKind(Enum):
    """How the assignment comes about."""

    NONE = auto()
    TOPICS = auto()
    PATTERN = auto()
    ASSIGNED = auto()


class FetchState(Enum):
    """What a partition's position is waiting for."""

    INITIALIZING = auto()
    AWAIT_RESET = auto()
    AWAIT_VALIDATION = auto()
    FETCHING = auto()


class Position(NamedTuple):
    """The next offset to read, the epoch of the record before it (KIP-320), the leader epoch it was checked with."""

    offset: int
    offset_epoch: int | None = None
    leader_epoch: int = -1


class PartitionState:
    """One assigned partition."""

    __slots__ = (
        "fetch_offset",
        "high_watermark",
        "last_stable_offset",
        "leader_epoch",
        "log_start_offset",
        "offset",
        "offset_epoch",
        "partition",
        "paused",
        "pending_revocation",
        "reset_policy",
        "retry_at_ms",
        "sought",
        "state",
        "version",
    )

    def __init__(self, partition: TopicPartition, version: int) -> None:
        self.partition = partition
        self.version = version
        self.state = FetchState.INITIALIZING
        self.offset = -1
        self.offset_epoch: int | None = None
        self.leader_epoch = -1
        self.fetch_offset = -1
        self.reset_policy: ResetPolicy | None = None
        self.paused = False
        self.pending_revocation = False
        self.retry_at_ms = 0
        self.sought = False
        """Whether the application chose the position, and has been given nothing since."""
        self.high_watermark: int | None = None
        self.last_stable_offset: int | None = None
        self.log_start_offset: int | None = None

    @property
    def position(self) -> Position | None:
        """The position, if there is one: also while it awaits validation."""
        if self.state in (FetchState.FETCHING, FetchState.AWAIT_VALIDATION):
            return Position(self.offset, self.offset_epoch, self.leader_epoch)
        return None

    @property
    def is_fetchable(self) -> bool:
        """True if records may be fetched and handed out."""
        return self.state is FetchState.FETCHING and not self.paused and not self.pending_revocation

    def advance(self, offset: int, offset_epoch: int | None) -> None:
        """The application has been given everything below `offset`."""
        self.offset = offset
        self.offset_epoch = offset_epoch


class SubscriptionState:
    """The subscription, the assignment that came of it, and each partition's position."""

    def __init__(self, default_policy: ResetPolicy) -> None:
        self.default_policy = default_policy
        self.kind = SubscriptionKind.NONE
        self.topics: frozenset[str] = frozenset()
        self.pattern: re.Pattern[str] | None = None
        self._partitions: dict[TopicPartition, PartitionState] = {}
        self._versions = 0
        self.changes = 0
        """Counts the changes of the assignment, so that a reader can see whether his picture of it is old."""

    # --- subscription

    def subscribe_topics(self, topics: Iterable[str]) -> bool:
        """Subscribe by name; True if that differs from the subscription before."""
        self._require_kind(SubscriptionKind.TOPICS)
        return self._set_topics(frozenset(topics))

    def subscribe_pattern(self, pattern: re.Pattern[str]) -> None:
        """Subscribe to whatever `pattern` matches; `matched_topics` says what that is."""
        self._require_kind(SubscriptionKind.PATTERN)
        self.pattern = pattern

    def matched_topics(self, topics: Iterable[str]) -> bool:
        """The topics that the pattern matches now; True if they differ from those before."""
        assert self.kind is SubscriptionKind.PATTERN
        return self._set_topics(frozenset(topics))

    def assign_by_user(self, partitions: Iterable[TopicPartition]) -> bool:
        """Take exactly these partitions, without a group; True if they differ from those before."""
        self._require_kind(SubscriptionKind.ASSIGNED)
        wanted = list(partitions)
        if set(wanted) == self._partitions.keys():
            return False
        self._replace(wanted)
        self.topics = frozenset(partition.topic for partition in wanted)
        return True

    def assign_by_group(self, partitions: Iterable[TopicPartition]) -> None:
        """Take what the group gave; partitions that stay keep their position."""
        assert self.is_group_managed
        self._replace(partitions)

    def matches_subscription(self, partitions: Iterable[TopicPartition]) -> bool:
        """True if each of the partitions is one this consumer asked for (the subscription may have changed since)."""
        if self.pattern is not None:
            return all(self.pattern.fullmatch(partition.topic) for partition in partitions)
        return all(partition.topic in self.topics for partition in partitions)

    def unsubscribe(self) -> None:
        """Forget the subscription and the assignment."""
        self.kind = SubscriptionKind.NONE
        self.topics = frozenset()
        self.pattern = None
        self._replace(())

    @property
    def is_group_managed(self) -> bool:
        """True if the group decides which partitions this consumer reads."""
        return self.kind in (SubscriptionKind.TOPICS, SubscriptionKind.PATTERN)

    def _require_kind(self, kind: SubscriptionKind) -> None:
        if self.kind not in (SubscriptionKind.NONE, kind):
            raise ValueError(
                "a consumer subscribes to topics, or to a pattern, or is assigned partitions; "
                f"this one has {self.kind.name.lower()}: call unsubscribe() before changing to {kind.name.lower()}"
            )
        self.kind = kind

    def _set_topics(self, topics: frozenset[str]) -> bool:
        if topics == self.topics:
            return False
        self.topics = topics
        return True

    def _replace(self, partitions: Iterable[TopicPartition]) -> None:
        before = self._partitions
        self._partitions = {
            partition: before.get(partition) or PartitionState(partition, self._new_version())
            for partition in partitions
        }
        for state in self._partitions.values():
            state.pending_revocation = False
        self.changes += 1

    def _new_version(self) -> int:
        self._versions += 1
        return self._versions

    # --- partitions

    def __iter__(self) -> Iterator[PartitionState]:
        return iter(self._partitions.values())

    def __len__(self) -> int:
        return len(self._partitions)

    def __contains__(self, partition: TopicPartition) -> bool:
        return partition in self._partitions

    @property
    def partitions(self) -> Collection[TopicPartition]:
        """The assigned partitions, in the order in which they were assigned."""
        return self._partitions.keys()

    def get(self, partition: TopicPartition) -> PartitionState | None:
        """The partition's state, or None if it is not assigned."""
        return self._partitions.get(partition)

    def require(self, partition: TopicPartition) -> PartitionState:
        """The partition's state; ValueError if it is not assigned to this consumer."""
        state = self._partitions.get(partition)
        if state is None:
            raise ValueError(f"{partition} is not assigned to this consumer")
        return state

    def current(self, partition: TopicPartition, version: int) -> PartitionState | None:
        """The partition's state if it is still assigned and nothing has invalidated what was read at `version`."""
        state = self._partitions.get(partition)
        return state if state is not None and state.version == version else None

    # --- positions

    def seek(self, partition: TopicPartition, offset: int, offset_epoch: int | None = None) -> None:
        """Go on reading at `offset`. What was fetched before is void.

        With an epoch the position has to be validated against the leader before records are fetched.
        """
        state = self.require(partition)
        state.sought = True
        self._move(state, Position(offset, offset_epoch))

    def rewind(self, state: PartitionState) -> None:
        """Records behind the position were handed out, but not taken: fetch them again."""
        self._move(state, Position(state.offset, state.offset_epoch, state.leader_epoch))

    def found(self, partition: TopicPartition, version: int, position: Position) -> bool:
        """A lookup (committed offset or ListOffsets) has its answer; False if nobody waits for it any more."""
        state = self.current(partition, version)
        if state is None or state.state not in (FetchState.INITIALIZING, FetchState.AWAIT_RESET):
            return False
        self._move(state, position)
        return True

    def request_reset(self, partition: TopicPartition, policy: ResetPolicy | None = None) -> None:
        """Let the reset policy find a new position. Without `policy` it is the configured one."""
        state = self.require(partition)
        state.state = FetchState.AWAIT_RESET
        state.reset_policy = policy or self.default_policy
        state.sought = state.sought or policy is not None
        assert state.reset_policy.kind != "none"
        state.version = self._new_version()
        state.retry_at_ms = 0

    def leader_seen(self, state: PartitionState, leader_epoch: int) -> None:
        """Metadata names a leader epoch: a newer one than the position was checked with asks for validation."""
        if state.state is not FetchState.FETCHING or leader_epoch <= state.leader_epoch:
            return
        state.leader_epoch = leader_epoch
        if state.offset_epoch is not None:
            state.state = FetchState.AWAIT_VALIDATION
            state.version = self._new_version()
            state.fetch_offset = state.offset
            state.retry_at_ms = 0

    def validated(self, partition: TopicPartition, version: int) -> None:
        """The leader has the record before the position, with its epoch: go on."""
        state = self.current(partition, version)
        if state is not None and state.state is FetchState.AWAIT_VALIDATION:
            state.state = FetchState.FETCHING

    def truncated(self, partition: TopicPartition, version: int, position: Position) -> None:
        """The log was truncated below the position: go on at the first offset that diverges."""
        state = self.current(partition, version)
        if state is not None and state.state is FetchState.AWAIT_VALIDATION:
            self._move(state, position)
            state.state = FetchState.FETCHING

    def _move(self, state: PartitionState, position: Position) -> None:
        state.offset = state.fetch_offset = position.offset
        state.offset_epoch = position.offset_epoch
        state.leader_epoch = position.leader_epoch
        state.state = FetchState.FETCHING
        state.reset_policy = None
        state.retry_at_ms = 0
        state.version = self._new_version()

    def waiting_for(self, kind: FetchState, now_ms: int) -> list[PartitionState]:
        """The partitions in one state whose back-off is over."""
        return [state for state in self._partitions.values() if state.state is kind and state.retry_at_ms <= now_ms]

    def all_consumed(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """The positions worth committing: what the application has been given so far."""
        return {
            state.partition: OffsetAndMetadata(state.offset, state.offset_epoch)
            for state in self._partitions.values()
            if state.state is FetchState.FETCHING
        }

    def read_past(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """The positions that reading has led to: past what was given out, and past what is never given out."""
        sought = {state.partition for state in self._partitions.values() if state.sought}
        return {partition: place for partition, place in self.all_consumed().items() if partition not in sought}

    def pause(self, partitions: Iterable[TopicPartition], *, paused: bool) -> None:
        """Stop or resume handing out a partition's records, without giving it up. All or none."""
        for state in [self.require(partition) for partition in partitions]:
            state.paused = paused

    def mark_pending_revocation(self) -> None:
        """Hand out nothing more: the positions are being committed before the partitions are given up."""
        for state in self._partitions.values():
            state.pending_revocation = True


def by_topic(partitions: Iterable[TopicPartition]) -> Mapping[str, list[int]]:
    """Partition numbers by topic, in the given order: how most requests want them."""
    topics: dict[str, list[int]] = {}
    for topic, partition in partitions:
        topics.setdefault(topic, []).append(partition)
    return topics
