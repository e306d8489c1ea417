"""Carries out what the membership machine wants: sends, answers, timers, the leader's work. On the I/O loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from ottla.client.cluster import Cluster
from ottla.client.consumer.assignors import Assignor, MemberSubscription
from ottla.client.consumer.coordinator_client import JOIN_ALLOWANCE_MS, CoordinatorClient
from ottla.client.consumer.membership import (
    Effect,
    ForgetCoordinator,
    Generation,
    GroupMember,
    SendHeartbeat,
    SendJoin,
    SendLeave,
    SendSync,
)
from ottla.client.consumer.shared import Shared
from ottla.client.consumer.subscription_protocol import (
    PROTOCOL_TYPE,
    decode_subscription,
    encode_assignment,
    encode_subscription,
)
from ottla.client.metadata import Metadata
from ottla.errors import DecodeError, InconsistentGroupProtocol, KafkaError, MemberIdRequired, NetworkError, error_for
from ottla_wire.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol, JoinGroupResponse
from ottla_wire.messages.sync_group import SyncGroupRequest, SyncGroupRequestAssignment

logger = logging.getLogger("ottla.client.consumer")

_THINK_ELSEWHERE = 2_000
"""From so many partitions on the leader's assignor runs in a thread of its own, so that the I/O loop goes on."""


class GroupDriver:
    """One consumer's membership, driven."""

    def __init__(
        self,
        shared: Shared,
        cluster: Cluster,
        coordinator: CoordinatorClient,
        assignors: Sequence[Assignor],
        on_interest: Callable[[], None],
    ) -> None:
        config = shared.config
        assert config.group_id is not None
        self._shared = shared
        self._cluster = cluster
        self._coordinator = coordinator
        self._assignors = {assignor.name: assignor for assignor in assignors}
        self._group_id: str = config.group_id
        self._on_interest = on_interest
        self._machine = shared.membership
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.group_topics: frozenset[str] = frozenset()
        """What the whole group reads, if this member leads it: it watches them for new partitions."""
        self._partition_counts: dict[str, int] | None = None
        self._closed = False

    def close(self) -> None:
        """Stop: no timers, no answers."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()

    def execute(self, effects: Iterable[Effect]) -> None:
        """Do what the machine wants, then wait for its next deadline."""
        if self._closed:
            return
        for effect in effects:
            match effect:
                case SendJoin():
                    self._spawn(self._join(effect))
                case SendSync():
                    self._spawn(self._sync(effect))
                case SendHeartbeat():
                    self._spawn(self._heartbeat(effect))
                case SendLeave():
                    self._spawn(self._leave(effect))
                case ForgetCoordinator():
                    logger.warning("group %s: no heartbeat was answered for a whole session", self._group_id)
                    self._coordinator.forget()
        self._arm()
        self._shared.notify()

    # --- time

    def _arm(self) -> None:
        with self._shared.lock:
            deadline_ms = self._machine.deadline_ms(self._shared.last_poll_ms)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline_ms is not None:
            delay_ms = max(0, deadline_ms - self._cluster.now_ms())
            self._timer = asyncio.get_running_loop().call_later((delay_ms + 1) / 1000, self._tick)

    def _tick(self) -> None:
        self._timer = None
        with self._shared.lock:
            was_member = self._machine.generation.is_member
            effects = self._machine.tick(self._cluster.now_ms(), self._shared.last_poll_ms)
            lost = was_member and not self._machine.generation.is_member
        if lost:
            logger.warning(
                "group %s: poll() was not called for max_poll_interval_ms (%d), this consumer leaves the group",
                self._group_id,
                self._shared.config.max_poll_interval_ms,
            )
        self.execute(effects)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name=f"ottla group {self._group_id}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("group %s: unexpected failure", self._group_id, exc_info=task.exception())

    # --- effects

    async def _join(self, effect: SendJoin) -> None:
        config = self._shared.config
        try:
            request = self._join_request(effect)
            answer = await self._coordinator.join(request, config.max_poll_interval_ms + JOIN_ALLOWANCE_MS)
            error = error_for(answer.error_code)
            if isinstance(error, MemberIdRequired):
                with self._shared.lock:
                    effects = self._machine.member_id_given(effect.attempt, answer.member_id)
                self.execute(effects)
                return
            self._coordinator.check(answer.error_code)
            self._check_protocol(answer)
        except Exception as error:  # noqa: BLE001 - whatever it was, the machine must know that this attempt is over
            with self._shared.lock:
                effects = self._machine.join_failed(effect.attempt, _as_kafka_error(error), self._cluster.now_ms())
            logger.debug("group %s: the join failed: %s", self._group_id, error)
        else:
            generation = Generation(answer.generation_id, answer.member_id, answer.protocol_name or "")
            members = [
                GroupMember(member.member_id, member.group_instance_id, member.metadata) for member in answer.members
            ]
            with self._shared.lock:
                effects = self._machine.join_answered(
                    effect.attempt,
                    generation,
                    answer.leader,
                    None if answer.skip_assignment else members,
                    self._cluster.now_ms(),
                )
            if answer.leader == answer.member_id and answer.skip_assignment:
                topics = self._watch([decode_subscription(member) for member in members])
                self._partition_counts = partition_counts(self._cluster.metadata, topics)
            logger.debug("group %s: joined as %s", self._group_id, generation)
        self.execute(effects)

    def _join_request(self, effect: SendJoin) -> JoinGroupRequest:
        config = self._shared.config
        with self._shared.lock:
            topics = sorted(self._shared.subscription.topics)
            owned = list(self._shared.subscription.partitions)
            generation = self._shared.last_generation
        return JoinGroupRequest(
            group_id=self._group_id,
            session_timeout_ms=config.session_timeout_ms,
            rebalance_timeout_ms=config.max_poll_interval_ms,
            member_id=effect.member_id,
            group_instance_id=config.group_instance_id,
            protocol_type=PROTOCOL_TYPE,
            protocols=[
                JoinGroupRequestProtocol(
                    name=name,
                    metadata=encode_subscription(
                        topics, owned, generation, assignor.user_data(topics), config.client_rack or None
                    ),
                )
                for name, assignor in self._assignors.items()
            ],
            reason=effect.reason[:255],
        )

    def _check_protocol(self, answer: JoinGroupResponse) -> None:
        if answer.protocol_type not in (None, PROTOCOL_TYPE) or answer.protocol_name not in self._assignors:
            raise InconsistentGroupProtocol(
                f"group {self._group_id} uses the protocol {answer.protocol_type}/{answer.protocol_name}; "
                f"this consumer has {', '.join(self._assignors)}"
            )

    async def _sync(self, effect: SendSync) -> None:
        try:
            assignments = await self._assign(effect.generation, effect.members) if effect.members is not None else {}
            if effect.members is None:
                self._watch(None)
            request = SyncGroupRequest(
                group_id=self._group_id,
                generation_id=effect.generation.id,
                member_id=effect.generation.member_id,
                group_instance_id=self._shared.config.group_instance_id,
                protocol_type=PROTOCOL_TYPE,
                protocol_name=effect.generation.protocol,
                assignments=[
                    SyncGroupRequestAssignment(member_id=member_id, assignment=assignment)
                    for member_id, assignment in assignments.items()
                ],
            )
            timeout_ms = self._shared.config.max_poll_interval_ms + JOIN_ALLOWANCE_MS
            answer = await self._coordinator.sync(request, timeout_ms)
        except Exception as error:  # noqa: BLE001 - an assignor may be the application's own, and raise anything
            with self._shared.lock:
                effects = self._machine.sync_failed(effect.attempt, _as_kafka_error(error), self._cluster.now_ms())
            logger.debug("group %s: the sync failed: %s", self._group_id, error)
        else:
            with self._shared.lock:
                effects = self._machine.sync_answered(effect.attempt, answer.assignment, self._cluster.now_ms())
        self.execute(effects)

    async def _heartbeat(self, effect: SendHeartbeat) -> None:
        try:
            await self._coordinator.heartbeat(effect.generation)
        except Exception as error:  # noqa: BLE001 - see _join
            logger.debug("group %s: heartbeat: %s", self._group_id, error)
            with self._shared.lock:
                self._machine.heartbeat_failed(effect.generation, _as_kafka_error(error), self._cluster.now_ms())
        else:
            with self._shared.lock:
                self._machine.heartbeat_answered(effect.generation, self._cluster.now_ms())
        self.execute(())

    async def _leave(self, effect: SendLeave) -> None:
        try:
            await self._coordinator.leave(effect.member_id, effect.reason)
        except KafkaError as error:
            logger.debug("group %s: leaving: %s", self._group_id, error)

    # --- the leader's work

    async def _assign(self, generation: Generation, encoded: Sequence[GroupMember]) -> dict[str, bytes]:
        members = {member.member_id: decode_subscription(member) for member in encoded}
        assignor = self._assignors[generation.protocol]
        counts = await self._counts(members.values())
        if sum(counts.values()) >= _THINK_ELSEWHERE:
            assignment = await asyncio.to_thread(assignor.assign, counts, members)
        else:
            assignment = assignor.assign(counts, members)
        logger.debug("group %s, generation %d: %s", self._group_id, generation.id, assignment)
        return {member_id: encode_assignment(partitions) for member_id, partitions in assignment.items()}

    async def _counts(self, members: Iterable[MemberSubscription]) -> dict[str, int]:
        """How many partitions each of the group's topics has; topics that do not exist are left out."""
        subscriptions = list(members)
        topics = self._watch(subscriptions)
        unknown = {topic for topic in topics if self._cluster.metadata.topic(topic) is None}
        if unknown:
            await self._cluster.refresh()
        # set only now: what metadata is compared with later must be what the assignment was made of
        self._partition_counts = partition_counts(self._cluster.metadata, topics)
        missing = topics - self._partition_counts.keys()
        if missing:
            logger.warning("group %s reads topics that do not exist: %s", self._group_id, ", ".join(sorted(missing)))
        return self._partition_counts

    def _watch(self, members: list[MemberSubscription] | None) -> frozenset[str]:
        """Lead (members given) or follow (None): only the leader looks for new partitions of the group's topics."""
        topics = frozenset() if members is None else frozenset(topic for member in members for topic in member.topics)
        self._partition_counts = None
        if topics != self.group_topics:
            self.group_topics = topics
            self._on_interest()
        return topics

    def metadata_changed(self) -> None:
        """The leader has the group rejoin when a topic appears, disappears, or gets more partitions."""
        before = self._partition_counts
        if before is None:
            return
        now = partition_counts(self._cluster.metadata, self.group_topics)
        if now != before:
            self._partition_counts = now
            self.request_rejoin(f"partitions of the group's topics changed from {before} to {now}")

    def request_rejoin(self, reason: str) -> None:
        """Rejoin as soon as the application polls."""
        logger.debug("group %s: rejoin: %s", self._group_id, reason)
        with self._shared.lock:
            self._machine.request_rejoin(reason)
        self._shared.notify()


def partition_counts(metadata: Metadata, topics: Iterable[str]) -> dict[str, int]:
    """How many partitions each topic has; topics that are not known are left out."""
    known = ((name, metadata.topic(name)) for name in topics)
    return {name: topic.partition_count for name, topic in known if topic is not None}


def _as_kafka_error(error: Exception) -> KafkaError:
    """An answer that cannot be read, or an assignor that raises, ends the attempt too."""
    if isinstance(error, KafkaError):
        return error
    wrapped = KafkaError(f"{type(error).__name__}: {error}")
    if isinstance(error, DecodeError | OSError):
        wrapped = NetworkError(str(error))
    wrapped.__cause__ = error
    return wrapped
