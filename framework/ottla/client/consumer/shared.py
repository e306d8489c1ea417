"""What the polling side and the I/O loop of one consumer share, under one lock.

The lock is held for short looks and changes only: never across an await, a callback of the application, or decoding.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ottla.client.config import ConsumerConfig
from ottla.client.consumer.collector import FetchBuffer
from ottla.client.consumer.membership import Membership
from ottla.client.consumer.reset_policy import ResetPolicy
from ottla.client.consumer.subscription_state import FetchState, SubscriptionState
from ottla.client.receiving import Receiving
from ottla.client.topic_partition import OffsetAndMetadata, TopicPartition
from ottla.errors import ConfigError, NoOffsetForPartition

CommitCallback = Callable[[Mapping[TopicPartition, OffsetAndMetadata], BaseException | None], object]


@dataclass(frozen=True, slots=True)
class CommitOutcome:
    """An asynchronous commit that ended; its callback runs where the application polls."""

    callback: CommitCallback
    offsets: Mapping[TopicPartition, OffsetAndMetadata]
    error: BaseException | None


class Shared:
    """The state of one consumer."""

    def __init__(self, config: ConsumerConfig, rng: random.Random) -> None:
        self.config = config
        self.lock = threading.Lock()
        try:
            policy = ResetPolicy.parse(config.auto_offset_reset)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self.subscription = SubscriptionState(policy)
        self.buffer = FetchBuffer(config.max_partition_fetch_bytes)
        self.receiving = Receiving()
        self.membership = Membership(
            group_instance_id=config.group_instance_id,
            session_timeout_ms=config.session_timeout_ms,
            heartbeat_interval_ms=config.heartbeat_interval_ms,
            max_poll_interval_ms=config.max_poll_interval_ms,
            retry_backoff_ms=config.retry_backoff_ms,
            retry_backoff_max_ms=config.retry_backoff_max_ms,
            rng=rng,
        )
        self.last_generation = -1
        """The generation of the last assignment: what claims of owned partitions are dated with."""
        self.last_poll_ms: int | None = None
        """When the application left poll; None while it is inside, and before it was there."""
        self.partition_errors: dict[TopicPartition, BaseException] = {}
        """Why a partition has no position. Raised by whoever needs it, then forgotten, so that it is tried again."""
        self.topic_errors: dict[str, BaseException] = {}
        """What a broker has against a topic that is read; raised by poll."""
        self.commit_outcomes: deque[CommitOutcome] = deque()
        self.notify: Callable[[], None] = _nobody_waits
        """Wakes whoever waits on the polling side; may be called from any thread, with or without the lock."""

    def take_partition_error(self, partition: TopicPartition | None = None) -> BaseException | None:
        """The error to raise now (with the lock held): of one partition, or of all that still wait for a position."""
        subscription = self.subscription
        relevant = {
            name: error
            for name, error in self.partition_errors.items()
            if (partition is None or name == partition)
            and (state := subscription.get(name)) is not None
            and state.state is not FetchState.FETCHING
        }
        if partition is None:
            self.partition_errors.clear()
        else:
            self.partition_errors.pop(partition, None)
        if not relevant:
            return None
        missing = [name for name, error in relevant.items() if isinstance(error, NoOffsetForPartition)]
        return NoOffsetForPartition(missing) if len(missing) > 1 else next(iter(relevant.values()))


def _nobody_waits() -> None:
    pass
