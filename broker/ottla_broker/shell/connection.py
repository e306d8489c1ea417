"""One client connection: frames in, handled in order, answered in order.

What has to hold (Kafka mutes a socket after each request; pitfalls 16 to 18 of every reimplementation):

* Requests are handled in the order of their frames, in the data callback. There is no task per request.
* Answers leave in the order of the requests, however long an early one takes.
* Behind an unfinished answer nothing is handled and nothing is read, with one exception: consecutive Produce requests
  are appended as they come, up to `MAX_PIPELINED`, while earlier ones still wait for replicas or an fsync. (Not behind
  one that is not appended itself yet, because its transaction is being verified.) That reading stops is decided at the
  end of the turn: most answers are there by then.
* A client that does not read its answers is not read from either: what is held in memory per connection is the
  frames of the reads of one turn, and the transport's write buffer up to its high-water mark.

A frame that cannot be answered (garbage, an unknown API, acks=0 with an error) closes the connection, after the answers
of the requests before it have left, with one line in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Any, cast

from ottla_broker import api
from ottla_broker.context import ANONYMOUS, RequestContext
from ottla_broker.pending import Pending, Unapplied
from ottla_wire.errors import DecodeError, FrameError
from ottla_wire.framing import FrameReader, decode_request_header, encode_response
from ottla_wire.messages import request_class

if TYPE_CHECKING:
    from ottla_broker.shell.server import Server

logger = logging.getLogger(__name__)

PRODUCE = 0
API_VERSIONS = 18
MAX_PIPELINED = 64

_read_key_and_version = Struct(">hh").unpack_from
_read_correlation_id = Struct(">i").unpack_from


class _Answer:
    """The place of one answer in the order of answers."""

    __slots__ = ("correlation_id", "mutes", "response", "version")

    def __init__(self, response: Any, version: int, correlation_id: int, *, mutes: bool = False) -> None:
        self.response = response  # a response, a Pending of one, or _CLOSE
        self.version = version
        self.correlation_id = correlation_id
        self.mutes = mutes  # nothing behind it is handled


_CLOSE = object()


class Connection(asyncio.BufferedProtocol):
    """The protocol of one accepted socket."""

    def __init__(self, server: Server, connection_id: int) -> None:
        self.id = connection_id
        self.host = ""
        self.principal = ANONYMOUS
        self.last_active_ms = 0
        self._server = server
        self._peer = "?"
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader(server.config.socket_request_max_bytes)
        self._requests: deque[Any] = deque()
        self._answers: deque[_Answer] = deque()
        self._output: list[Any] = []
        self._muted = False  # the last of the answers is unfinished, and mutes
        self._writing_paused = False
        self._reading_paused = False
        self._closing = False

    # -- what the transport calls ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register with the server, which may refuse the connection."""
        self._transport = cast(asyncio.Transport, transport)
        address = transport.get_extra_info("peername")
        if isinstance(address, tuple):
            self.host, self._peer = str(address[0]), f"{address[0]}:{address[1]}"
        refusal = self._server.admit(self)
        if refusal is not None:
            self._closing = True
            logger.warning("closing connection from %s: %s", self._peer, refusal)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything; answers that still come have nowhere to go."""
        self._closing = True
        self._transport = None
        self._requests.clear()
        self._answers.clear()
        self._output.clear()
        self._server.forget(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the transport reads to."""
        return self._reader.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come: handle the requests that are complete."""
        if self._closing:
            return
        try:
            frames = self._reader.received(nbytes)
        except FrameError as error:
            self._close_in_order(str(error))
            self._server.request_turn()
            return
        if frames:
            self._requests.extend(frames)
            self._handle_requests(self._server.now_ms())
            if self._wants_no_more != self._reading_paused:
                self._server.has_output(self)  # most answers are there when the turn is over: decided then
            self._server.request_turn()

    def pause_writing(self) -> None:
        """The client does not read fast enough: handle no more of its requests."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._writing_paused = False
        self._server.touched(self)

    # -- what the server calls ---------------------------------------------------------------------------------------

    def progress(self, now_ms: int) -> None:
        """Collect the answers that are ready, handle the requests whose turn it is."""
        self._collect_answers()
        self._handle_requests(now_ms)
        self._adjust_reading()

    def _handle_requests(self, now_ms: int) -> None:
        while self._requests and self._may_handle_next():
            self._server.follow_up(now_ms)
            frame = self._requests.popleft()
            self.last_active_ms = now_ms
            try:
                self._handle(frame, now_ms)
            except Exception as error:  # noqa: BLE001 - one connection's bad luck is not another's
                self._close_in_order(_reason(error))

    def flush(self) -> None:
        """Write what was collected in this turn."""
        output, self._output = self._output, []
        transport = self._transport
        if transport is None:
            return
        if output:
            transport.writelines(output)
        if self._answers and self._answers[0].response is _CLOSE:
            self._answers.clear()
            transport.close()
        else:
            self._adjust_reading()

    def is_idle(self, before_ms: int) -> bool:
        """Whether nothing has happened since `before_ms`, and nothing is owed."""
        return self.last_active_ms < before_ms and not self._answers and not self._requests

    def close(self) -> None:
        """Close after what was written has left."""
        self._closing = True
        self._requests.clear()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def stop_reading(self) -> None:
        """Take no more requests; those that wait for an answer still get it."""
        self._requests.clear()
        self._closing = True
        self._pause_reading()

    @property
    def owes_answers(self) -> bool:
        """Whether a handled request has no answer yet."""
        return bool(self._answers)

    # -- order -------------------------------------------------------------------------------------------------------

    def _may_handle_next(self) -> bool:
        if self._muted or self._writing_paused or self._closing:
            return False
        if not self._answers:
            return True
        # Only Produce requests are unfinished. Another Produce may join them; anything else waits for them.
        return len(self._answers) < MAX_PIPELINED and _read_key_and_version(self._requests[0])[0] == PRODUCE

    def _handle(self, frame: Any, now_ms: int) -> None:
        if len(frame) < 8:
            raise DecodeError(f"a request of {len(frame)} bytes")
        key, version = _read_key_and_version(frame)
        served = api.APIS.get(key)
        if served is None:
            raise DecodeError(f"unknown API key {key}")
        if not served.min_version <= version <= served.max_version:
            if key == API_VERSIONS:
                self._answer(self._server.unsupported_api_versions(), 0, _read_correlation_id(frame, 4)[0])
                return
            raise DecodeError(f"{served.name} version {version} is not supported")
        header = decode_request_header(frame)
        request = request_class(key).decode(frame, version, header.body_offset)
        context = RequestContext(self.id, key, version, header.client_id, self.host, self.principal, now_ms)
        answer = self._server.broker.handle(context, request)
        if answer is not None:
            self._answer(answer, version, header.correlation_id, pipelines=key == PRODUCE)

    def _answer(self, response: Any, version: int, correlation_id: int, *, pipelines: bool = False) -> None:
        if isinstance(response, Pending):
            if not response.done():
                self._muted = not pipelines or isinstance(response, Unapplied)
                self._answers.append(_Answer(response, version, correlation_id, mutes=self._muted))
                response.on_done(self._answer_is_ready)
                return
            response = response.result()
            if response is None:
                return
        if self._answers:
            self._answers.append(_Answer(response, version, correlation_id))
        else:
            self._write(response, version, correlation_id)

    def _answer_is_ready(self, _pending: Pending[Any]) -> None:
        self._server.touched(self)

    def _collect_answers(self) -> None:
        answers = self._answers
        while answers:
            answer = answers[0]
            response = answer.response
            if response is _CLOSE:
                self._server.has_output(self)
                return
            if isinstance(response, Pending):
                if not response.done():
                    return
                if answer.mutes:
                    self._muted = False
                try:
                    response = response.result()
                except Exception as error:  # noqa: BLE001 - an answer that failed has no other way out
                    answers.clear()
                    self._closing = False
                    self._close_in_order(_reason(error))
                    return
            answers.popleft()
            if response is not None:  # acks=0
                self._write(response, answer.version, answer.correlation_id)

    def _write(self, response: Any, version: int, correlation_id: int) -> None:
        self._output.extend(encode_response(response, version, correlation_id))
        self._server.has_output(self)

    def _close_in_order(self, reason: str) -> None:
        if self._closing:
            return
        logger.warning("closing connection from %s: %s", self._peer, reason)
        self._closing = True
        self._requests.clear()
        self._answers.append(_Answer(_CLOSE, 0, 0))
        self._pause_reading()
        self._server.has_output(self)

    # -- back-pressure -----------------------------------------------------------------------------------------------

    @property
    def _wants_no_more(self) -> bool:
        return self._muted or self._writing_paused or len(self._requests) > 0 or len(self._answers) >= MAX_PIPELINED

    def _adjust_reading(self) -> None:
        if self._closing or self._transport is None:
            return
        if self._wants_no_more:
            self._pause_reading()
        elif self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused and self._transport is not None and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()


def _reason(error: Exception) -> str:
    if isinstance(error, (DecodeError, FrameError, api.UnanswerableError)):
        return str(error)
    logger.error("a request failed", exc_info=error)
    return f"internal error: {error!r}"
