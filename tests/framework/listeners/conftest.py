"""A listener loop driven by hand: a script of polls, a listener that fails where told, a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from ottla.client import TopicPartition
from ottla.error_handling import BatchListenerFailed, ErrorHandler
from ottla.listeners.ack import AckMode, AckTracker
from ottla.listeners.conversion import UnfitRecord
from ottla.listeners.effects import (
    Commit,
    CommitSoon,
    Deliver,
    DeliverBatch,
    Delivered,
    Pause,
    PauseAll,
    Poll,
    Recover,
    Request,
    Resume,
    ResumeAll,
)
from ottla.listeners.listener_loop import ListenerLoop, LoopControl
from ottla.listeners.unit_of_work import AcknowledgedWork, UnitOfWork
from ottla_wire.records import ConsumerRecord, TimestampType


def record(
    offset: int, partition: int = 0, topic: str = "orders", value: bytes | None = b"{}", **more: Any
) -> ConsumerRecord:
    arguments = {"key": None, "headers": (), "leader_epoch": None, "delivery_attempt": 1, **more}
    return ConsumerRecord(
        topic=topic,
        partition=partition,
        offset=offset,
        timestamp_ms=1000,
        timestamp_type=TimestampType.CREATE_TIME,
        value=value,
        **arguments,
    )


class LoopRig:
    """Plays driver, client and listener for a ListenerLoop, and writes down what happened."""

    def __init__(
        self,
        *,
        ack: AckMode = AckMode.BATCH,
        errors: ErrorHandler | None = None,
        batch: bool = False,
        work: UnitOfWork | None = None,
        **more: Any,
    ) -> None:
        self.now_ms = 0
        self.control = LoopControl()
        counts = {name: more.pop(name) for name in ("ack_count", "ack_time_ms") if name in more}
        self.acks = more.pop("acks", None) or AckTracker(ack, **counts)
        self.errors = errors or ErrorHandler()
        self.loop = ListenerLoop(
            is_batch=batch,
            work=work
            or AcknowledgedWork(self.acks, lambda: self.now_ms, commits_apart_ms=more.pop("commits_apart_ms", 0)),
            errors=self.errors,
            control=self.control,
            now_ms=lambda: self.now_ms,
            **more,
        )
        self.polls: list[list[ConsumerRecord]] = []
        self.listener: Callable[[Any], Delivered | None] = lambda _: None
        self.delivered: list[tuple[int, int, int]] = []
        self.batches: list[list[int]] = []
        self.events: list[Any] = []
        self.paused: set[TopicPartition] = set()
        self.all_paused = False
        self.commit_failures: list[BaseException] = []
        self.confirms = True
        """Whether a commit that is not waited for is confirmed at once."""

    def run(self, *polls: Iterable[ConsumerRecord]) -> LoopRig:
        """Drive the loop through these polls, then through idle ones until nothing is held, then stop it."""
        self.polls += [list(poll) for poll in polls]
        effects = self.loop.run()
        outcome: Any = None
        while True:
            try:
                effect = effects.send(outcome)
            except StopIteration:
                return self
            outcome = self._perform(effect)

    def _perform(self, effect: Any) -> Any:
        match effect:
            case Poll():
                return self._poll(effect)
            case Deliver():
                return self._deliver(effect.records)
            case DeliverBatch():
                self.batches.append([r.offset for r in effect.records])
                return self._deliver_batch(effect.records)
            case Commit():
                if self.commit_failures:
                    return self.commit_failures.pop(0)
                self.events.append(("commit", {(p.topic, p.partition): o.offset for p, o in effect.offsets.items()}))
            case CommitSoon():
                self._commit_soon(effect)
            case Recover():
                self.events.append(("recover", effect.record.offset))
                try:
                    self.errors.recover(effect.record, effect.error)
                except Exception as failure:  # noqa: BLE001 - as the drivers do
                    return failure
            case Request():
                effect.call(self)
            case _:
                self._pause_or_resume(effect)
        return None

    def _pause_or_resume(self, effect: Any) -> None:
        match effect:
            case Pause():
                self.paused |= set(effect.partitions)
                self.events.append(("pause", [p.partition for p in effect.partitions]))
            case Resume():
                self.paused -= set(effect.partitions)
                self.events.append(("resume", [p.partition for p in effect.partitions]))
            case PauseAll():
                self.all_paused = True
                self.events.append("PauseAll")
            case ResumeAll():
                self.all_paused = False
                self.paused &= set(effect.still_paused)
                self.events.append("ResumeAll")
            case _:
                self.events.append(type(effect).__name__)

    def _commit_soon(self, effect: CommitSoon) -> None:
        if self.commit_failures:
            failure = self.commit_failures.pop(0)
            (self.loop.work.committed if isinstance(failure, TimeoutError) else self.loop.work.commit_failed)(failure)
            return
        self.events.append(("commit", {(p.topic, p.partition): o.offset for p, o in effect.offsets.items()}))
        if self.confirms:
            self.loop.work.committed(None)

    def _poll(self, effect: Poll) -> list[ConsumerRecord]:
        if self.polls:
            records = self.polls.pop(0)
            assert not {TopicPartition(r.topic, r.partition) for r in records} & self.paused
            assert not (records and self.all_paused)
            return records
        if self.paused and effect.timeout < 1000:
            self.now_ms += max(1, int(effect.timeout * 1000))
            return []
        self.control.stopping = True
        return []

    def _deliver_batch(self, records: Any) -> Delivered:
        outcome = self.listener(records)
        if outcome is None:
            return Delivered(len(records))
        error = outcome.error
        if isinstance(error, BatchListenerFailed) and not isinstance(error, UnfitRecord):
            return Delivered(error.index, error)
        return outcome

    def _deliver(self, records: Any) -> Delivered:
        for count, one in enumerate(records):
            self.delivered.append((one.partition, one.offset, one.delivery_attempt))
            try:
                outcome = self.listener(one)
            except Exception as error:  # noqa: BLE001 - as the drivers do
                return Delivered(count, error)
            if isinstance(outcome, Delivered):
                return Delivered(count, outcome.error, outcome.nack_delay, outcome.stopped)
        return Delivered(len(records))

    @property
    def commits(self) -> list[Any]:
        return [event[1] for event in self.events if event[0] == "commit"]


@pytest.fixture
def make_record() -> Callable[..., ConsumerRecord]:
    return record


@pytest.fixture
def rig() -> type[LoopRig]:
    return LoopRig
