"""The polling side of rebalancing: commit and revoke before a join, take the assignment after it. Runs inside poll.

A rebalance listener is any object with some of the methods `on_partitions_assigned`, `on_partitions_revoked` and
`on_partitions_lost` (without the last, lost partitions count as revoked ones, as in Java). They run in the thread or
task that polls, and may use the consumer: commit, seek, pause. Whatever one raises comes out of poll when the
rebalance step is done.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from ottla.client.consumer.assignors import Assignor, RebalanceProtocol, protocol_of
from ottla.client.consumer.membership import Effect, Generation, Joined
from ottla.client.consumer.shared import Shared
from ottla.client.consumer.subscription_protocol import decode_assignment
from ottla.client.topic_partition import TopicPartition
from ottla.errors import OttlaError, RebalanceListenerFailed

logger = logging.getLogger("ottla.client.consumer")


class RebalanceListener:
    """A base for rebalance listeners: override what you need. With an async consumer the methods may be coroutines."""

    def on_partitions_assigned(self, partitions: Sequence[TopicPartition]) -> Any:
        """These partitions have come; their positions may be set with `seek`. The first record comes after this."""

    def on_partitions_revoked(self, partitions: Sequence[TopicPartition]) -> Any:
        """These partitions are about to go; their offsets can still be committed."""

    def on_partitions_lost(self, partitions: Sequence[TopicPartition]) -> Any:
        """These partitions are gone already, others may be reading them: their offsets cannot be committed."""
        return self.on_partitions_revoked(partitions)


class Host(Protocol):
    """What the rebalancer needs of the consumer around it."""

    async def invoke(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call the application; await what it returns if the consumer is an async one."""

    def execute(self, effects: list[Effect]) -> None:
        """Hand effects of the membership to the I/O loop."""

    def begin_commit_of_consumed(self) -> Future[None] | None:
        """Begin to commit all positions; None if there is nothing to commit, or auto-commit is off."""

    def assignment_changed(self) -> None:
        """Wake the fetcher, and begin the auto-commit interval anew."""

    def now_ms(self) -> int:
        """The monotonic clock."""


class _Completion:
    """A new assignment on its way in. Kept until it is done: poll may be cancelled inside a listener."""

    def __init__(self, joined: Joined, assigned: list[TopicPartition], owned: Iterable[TopicPartition]) -> None:
        before = set(owned)
        self.joined = joined
        self.assigned = assigned
        self.added = [partition for partition in assigned if partition not in before]
        self.revoked = sorted(before.difference(assigned))
        self.revoked_told = not self.revoked


class Rebalancer:
    """Takes the steps that only the polling side may take."""

    def __init__(self, shared: Shared, host: Host, assignors: Sequence[Assignor]) -> None:
        self._shared = shared
        self._host = host
        self._assignors = {assignor.name: assignor for assignor in assignors}
        self._protocol = protocol_of(assignors)
        self._completion: _Completion | None = None
        self._commit: Future[None] | None = None
        self._commit_until_ms = 0
        self._preparing = False
        self.listener: Any = None

    async def step(self) -> None:
        """Whatever is due now; returns without waiting for the group.

        Raises:
            KafkaError: the membership failed.
            RebalanceListenerFailed: a listener raised.
        """
        shared = self._shared
        with shared.lock:
            failure = shared.membership.take_failure()
            if self._completion is None and failure is None:
                joined = shared.membership.take_joined()
                if joined is not None:
                    self._completion = self._begin_completion(joined)
        if failure is not None:
            raise failure
        if self._completion is not None:
            await self._complete(self._completion)
        with shared.lock:
            wants_join = shared.membership.wants_join
        if wants_join:
            await self._prepare()

    # --- before a join

    async def _prepare(self) -> None:
        if not self._committed():
            return
        errors: list[Exception] = []
        while True:
            with self._shared.lock:
                generation = self._shared.membership.generation
                owned = sorted(self._shared.subscription.partitions)
            await self._give_up(generation, owned, errors)
            with self._shared.lock:
                membership, subscription = self._shared.membership, self._shared.subscription
                if not membership.wants_join:
                    return
                if membership.generation.is_member or not generation.is_member or not len(subscription):
                    effects = membership.begin_join(self._host.now_ms())
                    break
                # the membership was lost while the listener ran: what is left is lost too, tell it so
        self._preparing = False
        self._host.execute(effects)
        self._raise(errors)

    def _committed(self) -> bool:
        """Commit before partitions go (with auto-commit). False: it is under way, come back when it is done."""
        if not self._preparing:
            self._preparing = True
            with self._shared.lock:
                is_member = self._shared.membership.stable_generation is not None
                if is_member and self._protocol is RebalanceProtocol.EAGER:
                    self._shared.subscription.mark_pending_revocation()
            self._commit = self._host.begin_commit_of_consumed() if is_member else None
            self._commit_until_ms = self._host.now_ms() + self._shared.config.max_poll_interval_ms
        if self._commit is None:
            return True
        if not self._commit.done():
            if self._host.now_ms() < self._commit_until_ms:
                return False
            self._commit.cancel()
            logger.error("offsets were not committed before the rebalance: no answer in time")
        elif not self._commit.cancelled() and self._commit.exception() is not None:
            logger.error("offsets were not committed before the rebalance: %s", self._commit.exception())
        self._commit = None
        return True

    async def _give_up(self, generation: Generation, owned: list[TopicPartition], errors: list[Exception]) -> None:
        if not generation.is_member:
            if owned:
                logger.info("lost, because the membership was: %s", _listed(owned))
                await self._tell("on_partitions_lost", owned, errors)
                self._assign([])
            return
        if self._protocol is RebalanceProtocol.EAGER:
            await self._tell("on_partitions_revoked", owned, errors)
            self._assign([])
            return
        with self._shared.lock:
            topics = self._shared.subscription.topics
        unwanted = [partition for partition in owned if partition.topic not in topics]
        if unwanted:
            await self._tell("on_partitions_revoked", unwanted, errors)
            self._assign([partition for partition in owned if partition.topic in topics])

    # --- after a join

    def _begin_completion(self, joined: Joined) -> _Completion | None:
        """What the new assignment changes (with the lock held); None if it is not for the present subscription."""
        subscription, membership = self._shared.subscription, self._shared.membership
        assigned = decode_assignment(joined.assignment)
        if not subscription.matches_subscription(assigned):
            membership.request_rejoin("the subscription changed while joining")
            return None
        return _Completion(joined, assigned, subscription.partitions)

    async def _complete(self, completion: _Completion) -> None:
        errors: list[Exception] = []
        if not completion.revoked_told:
            # cooperative: they are still ours while the listener commits, and rejoining tells the group that they went
            await self._tell("on_partitions_revoked", completion.revoked, errors)
            completion.revoked_told = True
            with self._shared.lock:
                self._shared.membership.request_rejoin("gave up the partitions that move to another member")
        generation = completion.joined.generation
        self._assignors[generation.protocol].on_assignment(completion.assigned, generation.id)
        with self._shared.lock:
            self._shared.last_generation = generation.id
        self._assign(completion.assigned)
        logger.info("generation %d: assigned %s", generation.id, _listed(completion.assigned))
        await self._tell("on_partitions_assigned", completion.added, errors)
        self._completion = None
        self._host.assignment_changed()
        self._raise(errors)

    # --- leaving

    async def leave(self, reason: str, execute: Callable[[list[Effect]], Awaitable[None]]) -> None:
        """Tell the listener that all partitions go, and leave the group."""
        errors: list[Exception] = []
        with self._shared.lock:
            membership, subscription = self._shared.membership, self._shared.subscription
            owned = sorted(subscription.partitions) if subscription.is_group_managed else []
            is_member = membership.generation.is_member and not membership.is_rebalancing
        if owned:
            await self._tell("on_partitions_revoked" if is_member else "on_partitions_lost", owned, errors)
            self._assign([])
        self._completion = None
        self._preparing = False
        with self._shared.lock:
            effects = self._shared.membership.leave(reason)
        await execute(effects)
        self._raise(errors)

    # --- the listener

    async def _tell(self, event: str, partitions: list[TopicPartition], errors: list[Exception]) -> None:
        method = getattr(self.listener, event, None)
        if method is None and event == "on_partitions_lost":
            method = getattr(self.listener, "on_partitions_revoked", None)
        if method is None:
            return
        try:
            await self._host.invoke(method, partitions)
        except Exception as error:
            logger.exception("the rebalance listener's %s failed", event)
            errors.append(error)

    @staticmethod
    def _raise(errors: list[Exception]) -> None:
        if not errors:
            return
        if isinstance(errors[0], OttlaError):
            raise errors[0]
        raise RebalanceListenerFailed(f"a rebalance listener raised {errors[0]!r}") from errors[0]

    def _assign(self, partitions: list[TopicPartition]) -> None:
        with self._shared.lock:
            self._shared.subscription.assign_by_group(partitions)
            self._shared.buffer.drop_void(self._shared.subscription)


def _listed(partitions: Iterable[TopicPartition]) -> str:
    return ", ".join(map(str, partitions)) or "nothing"
