"""What a container is told, and what it says of itself."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from ottla.error_handling import ErrorHandler
from ottla.errors import ConfigError
from ottla.listeners.ack import AckMode
from ottla.listeners.group_positions import AssignmentCommit
from ottla.listeners.interceptors import Interceptor
from ottla.listeners.replies import ReplyTo
from ottla.listeners.transactional import Transactional
from ottla_wire.records import ConsumerRecord

if TYPE_CHECKING:
    from ottla.template import KafkaTemplate


class ContainerState(Enum):
    """What a container is doing."""

    STOPPED = "stopped"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"
    """Stopped by an error that a restart cannot mend; `reason` has it."""


@dataclass(frozen=True, slots=True)
class ContainerProperties:
    """How a container treats its listener (Spring: ContainerProperties). Times in seconds."""

    group: str | None = None
    pattern: str | None = None
    partitions: Mapping[str, Any] | None = None
    ack: AckMode = AckMode.BATCH
    ack_count: int = 1
    ack_time: float = 5.0
    async_acks: bool = False
    """In a manual mode: records may be acknowledged in any order, from wherever; what is committed has no gap."""
    max_pending_acks: int = 1_000
    """With `async_acks`: when so many acknowledgments are missing, a consumer takes no more records."""
    batch: bool | None = None
    filter: Callable[[ConsumerRecord], bool] | None = None
    on_error: ErrorHandler = field(default_factory=ErrorHandler)
    poll_timeout: float = 1.0
    sync_commits: bool = False
    """Wait for each commit before the next records. Off: the commit is under way while they are handled; what has not
    been confirmed is committed again, and waited for, before a partition or the consumer is given up."""
    transactional: Transactional | None = None
    """Make the offsets, and what the listener sends, parts of transactions. Built by hand, it needs a `manager`."""
    sub_batch_per_partition: bool = False
    """Give a batch listener the records of one partition at a time; each is a transaction of its own."""
    assignment_commit: AssignmentCommit = AssignmentCommit.LATEST_ONLY_NO_TX
    """When the start of a partition is committed that the group has committed nothing for."""
    reply_to: ReplyTo | None = None
    """Where to send what the listener returns: a topic; True, for the one that the request names; or a function."""
    reply_template: KafkaTemplate | None = None
    """What replies are sent with; an application gives its own."""
    interceptors: Sequence[Interceptor] = ()
    """RecordInterceptors, or BatchInterceptors for a listener that takes lists."""
    idle_event_interval: float | None = None
    """Publish a ListenerContainerIdleEvent when a consumer has had no record for so long."""
    idle_partition_event_interval: float | None = None
    """The same for each partition."""
    idle_before_data_multiplier: float = 5.0
    """Before the first record these intervals are so many times as long."""
    shutdown_timeout: float = 10.0
    consumer: Mapping[str, Any] = field(default_factory=dict)
    """Client settings that win over the factory's."""


OF_A_LISTENER = frozenset(
    {
        "ack_count",
        "ack_time",
        "assignment_commit",
        "async_acks",
        "idle_before_data_multiplier",
        "idle_event_interval",
        "idle_partition_event_interval",
        "max_pending_acks",
        "poll_timeout",
        "shutdown_timeout",
        "sub_batch_per_partition",
        "sync_commits",
    }
)
"""The properties that `@listener` has no argument for, but `container=`."""


def check_names(listener: str, given: Mapping[str, Any]) -> None:
    """Refuse what is no container setting.

    Raises:
        ConfigError: with the nearest name that is one.
    """
    for name in given:
        if name not in OF_A_LISTENER:
            close = difflib.get_close_matches(name, OF_A_LISTENER, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(OF_A_LISTENER))}"
            raise ConfigError(f"{listener}: the container setting {name!r} is not known; {hint}")


def check_async_acks(container: str, properties: ContainerProperties, *, takes_acknowledgment: bool) -> None:
    """Refuse what does not go together with acknowledgments in any order.

    Raises:
        ConfigError: what is missing, or too much.
    """
    if not properties.ack.is_manual:
        raise ConfigError(f"{container}: async_acks needs ack=AckMode.MANUAL or MANUAL_IMMEDIATE, not {properties.ack}")
    if properties.transactional is not None:
        raise ConfigError(f"{container}: async_acks and transactional= exclude each other; a transaction ends in order")
    if not takes_acknowledgment:
        raise ConfigError(
            f"{container}: async_acks needs a listener with an Acknowledgment, or nothing is ever committed"
        )
    if properties.max_pending_acks < 1:
        raise ConfigError(
            f"{container}: max_pending_acks is {properties.max_pending_acks}; it counts records, 1 or more"
        )
