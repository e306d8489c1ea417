"""`for record in consumer`: a whole poll is taken at a time, but positions move with each record that the body gets.

So a loop that is left, commits, or closes the consumer in its body has read exactly what it was given. Whatever else
polls meanwhile (the body itself, another loop) begins with what this loop has not handed out yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ottla.client.consumer.shared import Shared
from ottla.client.consumer.subscription_state import PartitionState, Position
from ottla.client.topic_partition import TopicPartition
from ottla_wire.records import ConsumerRecord


@dataclass(slots=True)
class _Unread:
    """What was taken of one partition, and the position after the last of it."""

    state: PartitionState
    version: int
    end: Position
    last_offset: int


class Iteration:
    """The records of one poll that are being handed out one by one."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._unread: dict[tuple[str, int], _Unread] = {}

    def begin(self, records: Iterable[ConsumerRecord]) -> None:
        """Set the positions back to before these records, which a poll has just returned."""
        with self._shared.lock:
            for record in records:
                partition = TopicPartition(record.topic, record.partition)
                unread = self._unread.get(partition)
                if unread is not None:
                    unread.last_offset = record.offset
                    continue
                state = self._shared.subscription.get(partition)
                if state is not None and (end := state.position) is not None:
                    self._unread[partition] = _Unread(state, state.version, end, record.offset)
                    state.advance(record.offset, record.leader_epoch)

    def take(self, record: ConsumerRecord) -> bool:
        """Move the position past this record; False if it is void: sought elsewhere, revoked, polled by others."""
        unread = self._unread.get((record.topic, record.partition))
        if unread is None:
            return False
        state = unread.state
        with self._shared.lock:
            if self._shared.subscription.current(state.partition, unread.version) is not state:
                return False
            if record.offset == unread.last_offset:
                # what follows it is never handed out: markers, aborted transactions
                state.advance(unread.end.offset, unread.end.offset_epoch)
            else:
                state.advance(record.offset + 1, record.leader_epoch)
        return True

    def give_back(self) -> bool:
        """Have fetched again what was not handed out; True if there was any."""
        if not self._unread:
            return False
        gave_back = False
        with self._shared.lock:
            for unread in self._unread.values():
                state = unread.state
                is_current = self._shared.subscription.current(state.partition, unread.version) is state
                if is_current and state.offset != unread.end.offset:
                    self._shared.subscription.rewind(state)
                    gave_back = True
        self._unread.clear()
        return gave_back
