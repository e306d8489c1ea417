"""The client's side of a fetch session with one broker (KIP-227).

Theory of operation. The first request names all partitions and asks for a session; the broker answers with its id.
From then on each request has the next epoch and names only partitions that are new or whose offset moved, and those
to forget; the answer holds only partitions that have something to say. Broker and client must agree on what the
session contains. Whatever casts doubt on that (a lost connection, an error for the whole request, an answer that
names strangers) is answered by starting over: a full request with epoch 0 that names the old id, so that the broker
can drop it.

             build        answered, id != 0         answered
    FULL (0,0) ──> sent ─────────────────> (id, 1) ──────────> (id, 2) ... (id, 2^31-1) ──> (id, 1)
      ^                │ answered, id == 0     │ failed, refused, strange answer
      └────────────────┴── unknown id ─────────┴──> (id, 0): full, closes the old session
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ottla.client.topic_partition import TopicPartition

FULL_EPOCH = 0
FINAL_EPOCH = -1
NO_SESSION = 0
_MAX_EPOCH = 2**31 - 1

_FETCH_SESSION_ID_NOT_FOUND = 70


class FetchTarget(NamedTuple):
    """What is asked of one partition; compared as a whole to see whether the broker knows it already."""

    topic_id: bytes
    offset: int
    max_bytes: int
    leader_epoch: int


class SessionRequest(NamedTuple):
    """What the next fetch request says about the session."""

    session_id: int
    epoch: int
    to_send: Mapping[TopicPartition, FetchTarget]
    forgotten: Mapping[TopicPartition, bytes]
    session: Mapping[TopicPartition, FetchTarget]
    """All partitions of the session after this request: answers may name any of them."""

    @property
    def is_full(self) -> bool:
        """True if the request names every partition."""
        return self.epoch in (FULL_EPOCH, FINAL_EPOCH)


class FetchSession:
    """What this client and one broker have agreed on. One request may be under way at a time."""

    def __init__(self) -> None:
        self.session_id = NO_SESSION
        self.epoch = FULL_EPOCH
        self._partitions: dict[TopicPartition, FetchTarget] = {}

    def build(self, wanted: Mapping[TopicPartition, FetchTarget]) -> SessionRequest:
        """The next request, for exactly the `wanted` partitions.

        Partitions that changed go to the end, as they do in the broker's own order (its fairness).
        """
        if self.epoch == FULL_EPOCH:
            self._partitions = dict(wanted)
            return SessionRequest(self.session_id, self.epoch, self._partitions, {}, self._partitions)
        forgotten = {
            partition: known.topic_id
            for partition, known in self._partitions.items()
            if partition not in wanted or wanted[partition].topic_id != known.topic_id
        }
        for partition in forgotten:
            del self._partitions[partition]
        to_send = {}
        for partition, target in wanted.items():
            if self._partitions.get(partition) != target:
                self._partitions.pop(partition, None)
                self._partitions[partition] = to_send[partition] = target
        return SessionRequest(self.session_id, self.epoch, to_send, forgotten, self._partitions)

    def answered(self, request: SessionRequest, session_id: int, partitions: Iterable[TopicPartition]) -> bool:
        """The broker answered without an error for the whole. False: the answer contradicts the session, drop it."""
        named = set(partitions)
        strange = named - request.session.keys()
        missing = request.session.keys() - named if request.is_full else ()
        if strange or missing:
            self.failed()
            return False
        if session_id == NO_SESSION:
            self._start_over(NO_SESSION)
        elif request.is_full:
            self.session_id = session_id
            self.epoch = 1
        else:
            self.epoch = self.epoch + 1 if self.epoch < _MAX_EPOCH else 1
        return True

    def refused(self, error_code: int) -> None:
        """The broker answered with an error for the whole request."""
        self._start_over(NO_SESSION if error_code == _FETCH_SESSION_ID_NOT_FOUND else self.session_id)

    def failed(self) -> None:
        """No answer, or one that cannot be trusted: the next request closes the session and asks for a new one."""
        self._start_over(self.session_id)

    def close(self) -> SessionRequest | None:
        """The request that gives the session up without asking for another; None if there is none."""
        session_id = self.session_id
        self._start_over(NO_SESSION)
        if session_id == NO_SESSION:
            return None
        return SessionRequest(session_id, FINAL_EPOCH, {}, {}, {})

    def _start_over(self, session_id: int) -> None:
        self.session_id = session_id
        self.epoch = FULL_EPOCH
