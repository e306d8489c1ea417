"""CoordinatedPartitions: tells a coordinator which partitions of its topic this broker leads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ottla_broker.broker import Clock


class Coordinator(Protocol):
    """A coordinator that keeps its state in the partitions of a topic."""

    def load(self, partition: int, epoch: int, now_ms: int) -> None:
        """This broker leads the partition, since leader epoch `epoch`."""
        ...

    def unload(self, partition: int, epoch: int | None = None) -> None:
        """This broker leads it no more."""
        ...

    def high_watermark_moved(self, partition: int, offset: int, now_ms: int) -> None:
        """Records below `offset` are committed."""
        ...


class CoordinatedPartitions:
    """Implements `PartitionListener` for a coordinator."""

    def __init__(self, coordinator: Coordinator, clock: Clock) -> None:
        self._coordinator = coordinator
        self._clock = clock

    def became_leader(self, index: int, leader_epoch: int) -> None:
        """This broker leads the partition now."""
        self._coordinator.load(index, leader_epoch, self._clock.now_ms())

    def resigned(self, index: int, leader_epoch: int) -> None:
        """This broker does not lead the partition any more, or it was deleted."""
        self._coordinator.unload(index)

    def high_watermark_moved(self, index: int, offset: int) -> None:
        """Records below `offset` are committed."""
        self._coordinator.high_watermark_moved(index, offset, self._clock.now_ms())
