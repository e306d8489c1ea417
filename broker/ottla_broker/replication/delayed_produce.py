"""DelayedProduce: a produce answer that waits until its writes may be acknowledged (acks=all, or fsync before ack)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

from ottla_broker.pending import Pending
from ottla_wire import errors

if TYPE_CHECKING:
    from ottla_broker.replication.partition import Partition


class AwaitedWrite(NamedTuple):
    """A write that is in the log and not acknowledged yet."""

    partition: Partition
    end_offset: int
    result: Any  # the partition's entry in the answer; only its error_code is touched


class DelayedProduce:
    """Waits for all writes of one request.

    A write never rolls back: NOT_LEADER_OR_FOLLOWER, NOT_ENOUGH_REPLICAS_AFTER_APPEND and REQUEST_TIMED_OUT say that
    the outcome is not known, not that the data is gone.
    """

    def __init__(self, writes: list[AwaitedWrite], acks: int, response: Any) -> None:
        self._writes = writes
        self._acks = acks
        self._response = response
        self.pending: Pending[Any] = Pending()

    def try_complete(self, key: Hashable) -> bool:
        """Answer if no write waits any more."""
        self._writes = [write for write in self._writes if not self._finished(write)]
        if self._writes:
            return False
        self.pending.complete(self._response)
        return True

    def expire(self) -> None:
        """Answer REQUEST_TIMED_OUT for the writes that still wait."""
        for write in self._writes:
            write.result.error_code = errors.RequestTimedOut.code
        self.pending.complete(self._response)

    def _finished(self, write: AwaitedWrite) -> bool:
        partition = write.partition
        try:
            partition.check_leader()
        except errors.KafkaError as error:
            write.result.error_code = error.code
            return True
        if not partition.acknowledged(write.end_offset, self._acks):
            return False
        if self._acks == -1 and not partition.has_enough_in_sync:
            write.result.error_code = errors.NotEnoughReplicasAfterAppend.code
        return True
