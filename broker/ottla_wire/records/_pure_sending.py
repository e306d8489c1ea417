"""`SendFuture` in plain Python; `_native` has the same class for where a C compiler was at hand.

What is one step that no thread can divide (see `waiting`) is here a block under one lock for all futures. It is held
for a few instructions, in which nothing is made that the garbage collector knows: the collector could start there, and
a finalizer that touches a future would wait for its own thread.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final

from ottla_wire.records import waiting
from ottla_wire.records.model import ProducerRecord, RecordMetadata, SendError

_guard = allocate_lock()

_PENDING, _STORED, _FAILED = range(3)


class SendResult:
    """Where a record was stored."""

    __slots__ = ("_future", "offset", "partition", "timestamp_ms", "topic")

    def __init__(self, future: SendFuture) -> None:
        self._future = future
        self.topic: Final = future.topic
        self.partition: Final = future._partition
        self.offset: Final = future._offset
        self.timestamp_ms: Final = future._timestamp_ms

    @property
    def record(self) -> ProducerRecord:
        """The record as its sender gave it."""
        return self._future.record

    @property
    def metadata(self) -> RecordMetadata:
        """The same facts, and the serialized sizes, as a value of their own."""
        return self._future._metadata()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SendResult):
            return NotImplemented
        return self.metadata == other.metadata and self.record == other.record

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"SendResult(topic={self.topic!r}, partition={self.partition}, offset={self.offset}, "
            f"timestamp_ms={self.timestamp_ms})"
        )


class SendFuture:
    """A record under way: awaited from any loop, waited for on any thread, or given callbacks."""

    __slots__ = (
        "_asked_partition",
        "_asked_timestamp_ms",
        "_error",
        "_key_size",
        "_offset",
        "_partition",
        "_state",
        "_timestamp_ms",
        "_value_size",
        "_watchers",
        "headers",
        "key",
        "topic",
        "value",
    )

    forbid_waiting_on_this_thread = staticmethod(waiting.forbid_waiting_on_this_thread)

    def __init__(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Any = None,
    ) -> None:
        self.topic: Final = topic
        self.value: Final = value
        self.key: Final = key
        self.headers: Final = headers
        self._asked_partition = partition
        self._asked_timestamp_ms = timestamp_ms
        self._partition = -1
        self._offset = -1
        self._timestamp_ms = -1 if timestamp_ms is None else timestamp_ms
        self._key_size = -1
        self._value_size = -1
        self._state = _PENDING
        self._error: BaseException | None = None
        self._watchers: list[Any] | None = None

    # What the sender asked for, and what came of it

    @property
    def record(self) -> ProducerRecord:
        """The record as its sender gave it."""
        return ProducerRecord(
            self.topic, self.value, self.key, self._asked_partition, self._asked_timestamp_ms, self.headers
        )

    def done(self) -> bool:
        """Whether the record is stored, or failed for good."""
        return self._state != _PENDING

    def result(self, timeout: float | None = None) -> SendResult:
        """Wait for the answer, `timeout` seconds at most.

        Raises:
            SendError: the record was not stored; `__cause__` says why.
            TimeoutError: no answer yet; the record may still be stored.
            RuntimeError: this thread runs an event loop (`await` the future), or it is the one that receives answers.
        """
        if self._state == _PENDING:
            waiting.wait_in_thread(self, timeout)
        return self._outcome()

    def exception(self, timeout: float | None = None) -> SendError | None:
        """Wait as `result` does, and return the error in place of raising it; None if the record is stored."""
        if self._state == _PENDING:
            waiting.wait_in_thread(self, timeout)
        return self._failure() if self._state == _FAILED else None

    def add_callback(
        self,
        on_success: Callable[[SendResult], object] | None,
        on_failure: Callable[[SendError], object] | None = None,
    ) -> SendFuture:
        """Call one of the two when the record is done: on the client's I/O thread, or at once if it is done already."""
        for name, callback in (("on_success", on_success), ("on_failure", on_failure)):
            if callback is not None and not callable(callback):
                raise TypeError(f"{name} is called when the record is done; {callback!r} cannot be called")
        callbacks = (on_success, on_failure)
        if not self._push(callbacks):
            self._run(callbacks)
        return self

    def __await__(self) -> Generator[Any, None, SendResult]:
        if self._state == _PENDING:
            yield from waiting.wait_in_loop(self)
        return self._outcome()

    def __repr__(self) -> str:
        pending = "pending, watched" if self._watchers else "pending"
        state = (pending, f"stored at {self._partition}:{self._offset}", f"failed: {self._error!r}")[self._state]
        return f"<SendFuture {self.topic} {state}>"

    # For the engine

    def _push(self, watcher: object) -> bool:
        first = [watcher]
        with _guard:
            if self._state != _PENDING:
                return False
            if self._watchers is None:
                self._watchers = first
            else:
                self._watchers.append(watcher)
            return True

    def _drop(self, watcher: object) -> None:
        with _guard:
            if self._watchers is not None and watcher in self._watchers:
                self._watchers.remove(watcher)

    def _written(self, timestamp_ms: int, key_size: int, value_size: int) -> None:
        self._timestamp_ms = timestamp_ms
        self._key_size = key_size
        self._value_size = value_size

    def _outcome(self) -> SendResult:
        if self._state == _FAILED:
            raise self._failure()
        return SendResult(self)

    def _failure(self) -> SendError:
        # A new one each time: many tasks may raise it, and each would add its traceback to a shared one.
        assert self._error is not None
        return SendError.of(self.record, self._error, None if self._partition < 0 else self._partition)

    def _metadata(self) -> RecordMetadata:
        return RecordMetadata(
            self.topic, self._partition, self._offset, self._timestamp_ms, self._key_size, self._value_size
        )

    def _run(self, callbacks: tuple[Callable[[Any], object] | None, Callable[[Any], object] | None]) -> None:
        callback = callbacks[0] if self._state == _STORED else callbacks[1]
        if callback is None:
            return
        try:
            callback(SendResult(self) if self._state == _STORED else self._failure())
        except BaseException:  # noqa: BLE001 - even a CancelledError must not keep the other callbacks from running
            waiting.log_failure(callback)


def complete_batch(
    futures: Sequence[SendFuture], topic: str, partition: int, base_offset: int, log_append_time_ms: int = -1
) -> None:
    """Finish the futures of a stored batch, in order: the first has `base_offset`, each further one the next offset.

    `base_offset` is -1 if the broker did not tell it (acks=0), `log_append_time_ms` if the producer's timestamps stand.
    Waiters wake first, each loop once; then the callbacks run, in order, on this thread. Futures that are done stay.
    """
    taken: list[tuple[SendFuture, list[Any]]] = []
    for index, future in enumerate(futures):
        with _guard:
            if future._state != _PENDING:
                continue
            future._partition = partition
            future._offset = base_offset + index if base_offset >= 0 else -1
            if log_append_time_ms >= 0:
                future._timestamp_ms = log_append_time_ms
            future._state = _STORED
            watchers = future._watchers
            future._watchers = None
        if watchers is not None:
            taken.append((future, watchers))
    _notify(taken)


def fail_futures(futures: Sequence[SendFuture], error: BaseException, partition: int = -1) -> None:
    """Finish futures with an error: each raises a `SendError` of its own whose `__cause__` is `error`."""
    if not isinstance(error, BaseException):
        raise TypeError(f"a send fails with an exception, not with {error!r}")
    taken: list[tuple[SendFuture, list[Any]]] = []
    for future in futures:
        with _guard:
            if future._state != _PENDING:
                continue
            future._partition = partition
            future._error = error
            future._state = _FAILED
            watchers = future._watchers
            future._watchers = None
        if watchers is not None:
            taken.append((future, watchers))
    _notify(taken)


def first_pending(futures: Sequence[SendFuture]) -> SendFuture | None:
    """The first of the futures that is not done; None if all are."""
    return next((future for future in futures if future._state == _PENDING), None)


def _notify(taken: list[tuple[SendFuture, list[Any]]]) -> None:
    waiters = [watcher for _, watchers in taken for watcher in watchers if not isinstance(watcher, tuple)]
    if waiters:
        waiting.wake(waiters)
    for future, watchers in taken:
        for watcher in watchers:
            if isinstance(watcher, tuple):
                future._run(watcher)
