"""Fetch sessions (KIP-227): a consumer names its partitions once, then only what changes.

A session holds the partitions in the order in which they are served, and for each what the client was told last.
An incremental answer carries only partitions with something new; one that returned records moves to the end, so that
a small response limit does not starve the others.

`FetchSessions.begin` reads the session part of a request and returns a context; the handler asks the context for the
partitions, and hands it all results to choose from. Session ids come from the `random.Random` that is passed in.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ottla_wire.schema import Uuid

NO_SESSION = 0
INITIAL_EPOCH = 0
FINAL_EPOCH = -1
_LAST_EPOCH = 2**31 - 1

# A session that nobody used for this long may be evicted by anybody; one younger than this only by a follower.
EVICTION_MS = 120_000

TargetKey = tuple[object, int]


class FetchTarget:
    """One partition of a fetch: where to read, and (in a session) what the client knows already."""

    __slots__ = (
        "current_leader_epoch",
        "fetch_offset",
        "index",
        "key",
        "known_high_watermark",
        "known_log_start_offset",
        "last_fetched_epoch",
        "log_start_offset",
        "max_bytes",
        "topic",
        "topic_id",
    )

    def __init__(
        self,
        topic: str | None,
        topic_id: Uuid,
        index: int,
        *,
        fetch_offset: int,
        max_bytes: int,
        current_leader_epoch: int = -1,
        last_fetched_epoch: int = -1,
        log_start_offset: int = -1,
    ) -> None:
        self.topic = topic
        self.topic_id = topic_id
        self.index = index
        # What a session knows the partition by: its topic's id where the client uses ids, else the name.
        self.key: TargetKey = (topic if topic_id == Uuid.ZERO else topic_id, index)
        self.fetch_offset = fetch_offset
        self.max_bytes = max_bytes
        self.current_leader_epoch = current_leader_epoch
        self.last_fetched_epoch = last_fetched_epoch
        self.log_start_offset = log_start_offset
        self.known_high_watermark = -1
        self.known_log_start_offset = -1

    def update(self, request: FetchTarget) -> None:
        """Take over what a later request says about the same partition."""
        self.topic = request.topic or self.topic
        self.fetch_offset = request.fetch_offset
        self.max_bytes = request.max_bytes
        self.current_leader_epoch = request.current_leader_epoch
        self.last_fetched_epoch = request.last_fetched_epoch
        self.log_start_offset = request.log_start_offset


class FetchResult(NamedTuple):
    """What decides whether a session's client has to be told: one partition's result in short."""

    records_bytes: int
    high_watermark: int
    log_start_offset: int
    error_code: int
    has_extra: bool = False  # preferred replica or diverging epoch

    def learn(self, target: FetchTarget) -> bool:
        """Whether the client of a session must be told; remembers in `target` that it will be."""
        tell = self.records_bytes > 0 or self.has_extra
        if target.known_high_watermark != self.high_watermark:
            target.known_high_watermark = self.high_watermark
            tell = True
        if target.known_log_start_offset != self.log_start_offset:
            target.known_log_start_offset = self.log_start_offset
            tell = True
        if self.error_code:
            # No high watermark is -1 later on: the recovery of the partition will be told, too.
            target.known_high_watermark = -1
            tell = True
        return tell


class FetchSession:
    """The partitions of one client, in the order in which they are served."""

    __slots__ = (
        "created_ms",
        "epoch",
        "evictable_size",
        "id",
        "last_used_ms",
        "privileged",
        "targets",
        "uses_topic_ids",
    )

    def __init__(
        self,
        session_id: int,
        targets: dict[TargetKey, FetchTarget],
        *,
        privileged: bool,
        uses_topic_ids: bool,
        now_ms: int,
    ) -> None:
        self.id = session_id
        self.targets = targets
        self.privileged = privileged
        self.uses_topic_ids = uses_topic_ids
        self.created_ms = now_ms
        self.last_used_ms = now_ms
        self.epoch = 1
        self.evictable_size = len(targets)

    def update(self, changed: Iterable[FetchTarget], forgotten: Iterable[TargetKey]) -> None:
        """Add or change partitions, then drop the forgotten ones."""
        for target in changed:
            known = self.targets.get(target.key)
            if known is None:
                self.targets[target.key] = target
            else:
                known.update(target)
        for key in forgotten:
            self.targets.pop(key, None)


class FetchContext:
    """A request without session: every partition is answered, nothing is remembered."""

    error_code = 0

    def __init__(self, targets: Iterable[FetchTarget]) -> None:
        self._targets = list(targets)

    @property
    def targets(self) -> Iterable[FetchTarget]:
        """The partitions to read, in their order."""
        return self._targets

    def finish(self, results: Mapping[FetchTarget, FetchResult], now_ms: int) -> tuple[int, int, list[FetchTarget]]:
        """Update the session: (error code, session id, the partitions that go into the answer)."""
        return 0, NO_SESSION, list(results)


class SessionErrorContext(FetchContext):
    """The session part of the request was wrong: nothing is read."""

    def __init__(self, error_code: int) -> None:
        super().__init__(())
        self.error_code = error_code

    def finish(self, results: Mapping[FetchTarget, FetchResult], now_ms: int) -> tuple[int, int, list[FetchTarget]]:
        """The error, without session."""
        return self.error_code, NO_SESSION, []


class FullFetchContext(FetchContext):
    """A full request that asks for a session: it is made when the results are there."""

    def __init__(
        self, sessions: FetchSessions, targets: Iterable[FetchTarget], *, privileged: bool, uses_topic_ids: bool
    ) -> None:
        super().__init__(targets)
        self._sessions = sessions
        self._privileged = privileged
        self._uses_topic_ids = uses_topic_ids

    def finish(self, results: Mapping[FetchTarget, FetchResult], now_ms: int) -> tuple[int, int, list[FetchTarget]]:
        """All partitions, and the new session's id (0 if there is no room)."""
        for target, result in results.items():
            result.learn(target)
        session = self._sessions.create(
            {target.key: target for target in results},
            privileged=self._privileged,
            uses_topic_ids=self._uses_topic_ids,
            now_ms=now_ms,
        )
        return 0, session.id if session else NO_SESSION, list(results)


class IncrementalFetchContext(FetchContext):
    """A request within a session."""

    def __init__(self, session: FetchSession, *, invalid_epoch_code: int) -> None:
        super().__init__(())
        self._session = session
        self._epoch = session.epoch
        self._invalid_epoch_code = invalid_epoch_code

    @property
    def targets(self) -> Iterable[FetchTarget]:
        """All partitions of the session, in its order."""
        return self._session.targets.values()

    def finish(self, results: Mapping[FetchTarget, FetchResult], now_ms: int) -> tuple[int, int, list[FetchTarget]]:
        """What is new; partitions with records move to the end."""
        session = self._session
        if session.epoch != self._epoch:
            # While this fetch was parked, somebody used the session on another connection.
            return self._invalid_epoch_code, session.id, []
        told: list[FetchTarget] = []
        for target, result in results.items():
            if not result.learn(target):
                continue
            told.append(target)
            key = target.key
            if result.records_bytes > 0 and key in session.targets:
                session.targets[key] = session.targets.pop(key)
        return 0, session.id, told


class FetchSessions:
    """All sessions of a broker, at most `max_sessions`."""

    def __init__(self, max_sessions: int, rng: random.Random) -> None:
        self._max_sessions = max_sessions
        self._rng = rng
        self._sessions: dict[int, FetchSession] = {}  # least recently used first

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[FetchSession]:
        return iter(self._sessions.values())

    def begin(
        self,
        *,
        session_id: int,
        epoch: int,
        targets: Iterable[FetchTarget],
        forgotten: Iterable[TargetKey],
        uses_topic_ids: bool,
        privileged: bool,
        now_ms: int,
    ) -> FetchContext:
        """The context of a request with this session id, epoch and partitions."""
        from ottla_wire.errors import FetchSessionIdNotFound, FetchSessionTopicIdError, InvalidFetchSessionEpoch

        if epoch in (INITIAL_EPOCH, FINAL_EPOCH):
            self._sessions.pop(session_id, None)  # a full request closes the session that it names
            if epoch == FINAL_EPOCH:
                return FetchContext(targets)
            return FullFetchContext(self, targets, privileged=privileged, uses_topic_ids=uses_topic_ids)
        session = self._sessions.get(session_id)
        if session is None:
            return SessionErrorContext(FetchSessionIdNotFound.code)
        if session.epoch != epoch:
            return SessionErrorContext(InvalidFetchSessionEpoch.code)
        if session.uses_topic_ids != uses_topic_ids:
            return SessionErrorContext(FetchSessionTopicIdError.code)
        targets = list(targets)
        session.update(targets, forgotten)
        if not session.targets:
            del self._sessions[session_id]
            return FetchContext(targets)
        self._touch(session, now_ms)
        session.epoch = session.epoch + 1 if session.epoch < _LAST_EPOCH else 1
        return IncrementalFetchContext(session, invalid_epoch_code=InvalidFetchSessionEpoch.code)

    def create(
        self, targets: dict[TargetKey, FetchTarget], *, privileged: bool, uses_topic_ids: bool, now_ms: int
    ) -> FetchSession | None:
        """A new session, or None if there is no room for it."""
        if len(self._sessions) >= self._max_sessions and not self._evict(privileged, len(targets), now_ms):
            return None
        session = FetchSession(
            self._new_id(), targets, privileged=privileged, uses_topic_ids=uses_topic_ids, now_ms=now_ms
        )
        self._sessions[session.id] = session
        return session

    def _touch(self, session: FetchSession, now_ms: int) -> None:
        session.last_used_ms = now_ms
        session.evictable_size = len(session.targets)
        self._sessions[session.id] = self._sessions.pop(session.id)

    def _evict(self, privileged: bool, size: int, now_ms: int) -> bool:
        if not self._sessions:
            return False
        oldest = next(iter(self._sessions.values()))
        if now_ms - oldest.last_used_ms > EVICTION_MS:
            del self._sessions[oldest.id]
            return True
        # Nobody is idle: the least valuable one goes, if the newcomer is worth at least as much.
        # Age counts as of the last use, as in Kafka's cache, whose tables are kept at `touch`.
        candidates = [
            session
            for session in self._sessions.values()
            if session.last_used_ms - session.created_ms > EVICTION_MS or (privileged and not session.privileged)
        ]
        if not candidates:
            return False
        least = min(candidates, key=_value)
        if (privileged, size, 0) < _value(least):
            return False
        del self._sessions[least.id]
        return True

    def _new_id(self) -> int:
        while True:
            session_id = self._rng.randrange(1, 2**31)
            if session_id not in self._sessions:
                return session_id


def _value(session: FetchSession) -> tuple[bool, int, int]:
    return session.privileged, session.evictable_size, session.id
