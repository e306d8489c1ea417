"""MetadataRefresher: decides when the cluster is asked for metadata, and for which topics. On the I/O loop.

One request is under way at a time. Callers who ask meanwhile share the next one; callers who wait are answered by a
request that was begun after they asked, because an older one may carry the state from before the event that made them
ask. A failed round is repeated with backoff for as long as somebody waits; what is only wanted soon (after an error
that metadata may explain) keeps a pause of `retry_backoff_ms` from the round before.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ottla.client.backoff import Backoff
from ottla.client.metadata import Metadata
from ottla.errors import ClientClosed, KafkaError, NoAnswer, OttlaError, RebootstrapRequired, Retriable, error_for
from ottla_wire.messages.metadata import MetadataRequest, MetadataRequestTopic

if TYPE_CHECKING:
    from ottla.client.cluster import Cluster

logger = logging.getLogger("ottla.client")


@dataclass(slots=True, eq=False)
class TopicInterest:
    """The topics that one client wants to be kept up to date about.

    `all_topics` is for subscriptions by pattern; `allow_auto_create` lets the broker make a topic that is asked for.
    """

    topics: set[str] = field(default_factory=set)
    all_topics: bool = False
    allow_auto_create: bool = True


class MetadataRefresher:
    """The background task that keeps a cluster's metadata fresh."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self.interests: list[TopicInterest] = []
        self._cluster = cluster
        self._config = cluster.config
        self._backoff = Backoff(self._config.retry_backoff_ms, self._config.retry_backoff_max_ms, rng)
        self._once: set[str] = set()
        self._create: set[str] = set()  # those of them that asking may create
        self._waiters: list[asyncio.Future[None]] = []
        self._wanted = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failures = 0
        self._asked: set[str] = set()
        self._unsatisfied = 0  # rounds in a row that did not bring what somebody waits for
        self._last_attempt_ms: int | None = None
        self._failing_since_ms: int | None = None

    def request(self, topics: Iterable[str] = ()) -> None:
        """Ask soon."""
        self._once.update(topics)
        self._wanted = True
        self._start()

    async def refresh(self, topics: Iterable[str] | None, *, timeout_ms: int | None, create: bool) -> Metadata:
        """Ask now, and wait."""
        timeout_ms = self._config.default_api_timeout_ms if timeout_ms is None else timeout_ms
        self._once.update(topics or ())
        if create:
            self._create.update(topics or ())
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._start()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await waiter
        except TimeoutError:
            servers = self._config.bootstrap_servers
            metadata = self._cluster.metadata
            message = f"no metadata from {servers} within {timeout_ms} ms{metadata.trouble}"
            raise NoAnswer(message) from metadata.last_failure
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        return self._cluster.metadata

    async def close(self) -> None:
        """Stop; whoever waits is told."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1.0)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(ClientClosed("the client was closed"))

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="ottla metadata")
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._due()
            waiters, self._waiters = self._waiters, []
            self._wanted = False
            self._last_attempt_ms = self._cluster.now_ms()
            try:
                await self._ask()
            except (OttlaError, OSError) as error:
                self._failed(error, waiters)
            except Exception as error:
                logger.exception("metadata could not be merged")
                self._failed(error, waiters)
            else:
                self._succeeded(waiters)
            self._cluster.changed()

    async def _due(self) -> None:
        """Wait until it is time to ask."""
        while True:
            wait_ms = self._wait_ms()
            if wait_ms is not None and wait_ms <= 0:
                return
            self._wake.clear()
            try:
                async with asyncio.timeout(None if wait_ms is None else wait_ms / 1000):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _wait_ms(self) -> int | None:
        now_ms = self._cluster.now_ms()
        backoff_ms = self._backoff.pause_ms(self._failures)
        since_ms = now_ms - (self._last_attempt_ms if self._last_attempt_ms is not None else now_ms - 10**9)
        if self._waiters:
            return backoff_ms - since_ms
        if self._once - self._asked:
            return backoff_ms - since_ms  # topics that nobody has asked for yet
        if self._wanted or self._failures:
            return max(backoff_ms, self._backoff.pause_ms(max(1, self._unsatisfied))) - since_ms
        return self._config.metadata_max_age_ms - since_ms

    def _succeeded(self, waiters: list[asyncio.Future[None]]) -> None:
        self._failures = 0
        self._failing_since_ms = None
        self._cluster.metadata.last_failure = None
        missing = any(isinstance(self._cluster.metadata.topic_error(name), Retriable) for name in self._asked)
        self._unsatisfied = self._unsatisfied + 1 if missing else 0
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _failed(self, error: Exception, waiters: list[asyncio.Future[None]]) -> None:
        self._failures += 1
        self._cluster.metadata.last_failure = error
        now_ms = self._cluster.now_ms()
        if self._failing_since_ms is None:
            self._failing_since_ms = now_ms
        hopeless = isinstance(error, KafkaError) and not isinstance(error, Retriable | RebootstrapRequired)
        for waiter in waiters:
            if waiter.done():
                continue
            if hopeless:
                waiter.set_exception(error)
            else:
                self._waiters.append(waiter)  # the next round is theirs too, until their own time is up
        trigger_ms = self._config.metadata_recovery_rebootstrap_trigger_ms
        too_long = now_ms - self._failing_since_ms >= trigger_ms > 0
        if isinstance(error, RebootstrapRequired) or too_long:
            self._cluster.maybe_rebootstrap(even_if_reachable=True)
            self._failing_since_ms = now_ms
        else:
            self._cluster.maybe_rebootstrap()
        logger.log(
            logging.WARNING if self._failures in (3, 30, 300) else logging.DEBUG,
            "metadata: attempt %d failed: %s", self._failures, error,
        )  # fmt: skip

    async def _ask(self) -> None:
        once, self._once = self._once, set()
        self._asked = once
        try:
            for request, whole in self._requests(once):
                answer = await self._answer(request)
                error = error_for(answer.error_code)
                if error is not None:
                    raise error
                self._cluster.metadata.update(answer, whole=whole)
        except BaseException:
            self._once |= once
            raise
        self._create -= once

    def _requests(self, once: set[str]) -> list[tuple[MetadataRequest, bool]]:
        """What to ask: mostly one request, two if some topics may be created by asking and others may not."""
        may_create = once & self._create
        must_not = once - may_create
        for interest in self.interests:
            (may_create if interest.allow_auto_create else must_not).update(interest.topics)
        if any(interest.all_topics for interest in self.interests):
            missing = {name for name in may_create if self._cluster.metadata.topic(name) is None}
            return [(MetadataRequest(topics=None, allow_auto_topic_creation=False), True), *self._named(missing, True)]
        named = self._named(may_create, True) + self._named(must_not - may_create, False)
        return named or self._named(set(), False, even_if_none=True)

    @staticmethod
    def _named(topics: set[str], allow: bool, even_if_none: bool = False) -> list[tuple[MetadataRequest, bool]]:
        if not topics and not even_if_none:
            return []
        wanted = [MetadataRequestTopic(name=name) for name in sorted(topics)]
        return [(MetadataRequest(topics=wanted, allow_auto_topic_creation=allow), False)]

    async def _answer(self, request: MetadataRequest) -> Any:
        last: KafkaError = NoAnswer("there is no broker to ask")
        for node in self._cluster.candidates():
            try:
                return await self._cluster.send(node.id, request)
            except Retriable as error:
                last = error
        raise last
