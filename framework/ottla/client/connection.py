"""One TCP connection to one broker: frames in and out, answers matched to requests, versions agreed on.

A connection is strictly ordered: the broker works on one request after the other and answers in that order. So when a
request is not answered in time, nothing behind it can be either, and the whole connection is given up: the request that
was late fails with `NoAnswer`, all others with `Disconnected`. Their callers cannot know whether they were carried out.

Everything here runs on the engine's I/O loop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ottla.client.in_flight_requests import InFlightRequest, InFlightRequests
from ottla.client.metadata import Node
from ottla.client.receiving import LARGE_FROM_BYTES, LargeAnswers, Receiving
from ottla.errors import DecodeError, Disconnected, FrameError, KafkaError, NoAnswer, UnsupportedVersion, error_for
from ottla_wire.framing import FrameReader, decode_response, encode_request
from ottla_wire.messages import ApiKey, response_class
from ottla_wire.messages.api_versions import ApiVersionsRequest, ApiVersionsResponse
from ottla_wire.schema import Request

logger = logging.getLogger("ottla.client")

MAX_ANSWER_BYTES: Final = 1 << 30
"""The largest answer that is accepted. What speaks another protocol (HTTP, TLS) announces more, and is found out."""
TRUSTED_ANSWER_BYTES: Final = 64 << 20
"""More than a fetch answer has (`fetch_max_bytes`): it is received into one buffer, and not into growing ones."""

_SOFTWARE_NAME: Final = "ottla"
_UNSUPPORTED_VERSION: Final = 35

Answer = Any
"""A response message, of the class that belongs to the request."""

AnswerCallback = Callable[[Any, Any], None]
"""Called with an answer and None, or with None and the `Disconnected` or `NoAnswer` that took its place."""


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """What a connection needs to know of the settings. Buffer sizes of -1: the operating system's."""

    client_id: str
    request_timeout_ms: int
    setup_timeout_ms: int
    send_buffer_bytes: int = -1
    receive_buffer_bytes: int = -1
    software_version: str = "0"
    receiving: Receiving | None = None
    """Of the consumer whose fetches go this way."""


class _CalledBack:
    """An answer that somebody is called with, in place of a future; see `Connection.send_then`."""

    __slots__ = ("_callback", "_done", "_loop")

    def __init__(self, callback: AnswerCallback, loop: asyncio.AbstractEventLoop) -> None:
        self._callback = callback
        self._loop = loop
        self._done = False

    def done(self) -> bool:
        return self._done

    def set_result(self, answer: Answer, /) -> None:
        self._done = True
        try:
            self._callback(answer, None)
        except Exception:  # what reads the connection must not suffer from it
            logger.exception("taking an answer failed")

    def set_exception(self, error: BaseException, /) -> None:
        self._done = True
        self._loop.call_soon(self._callback, None, error)

    def exception(self) -> None:
        """Nothing warns of an error that nobody has looked at."""


class Connection(asyncio.BufferedProtocol):
    """An open connection. Made by `Connection.open`, which returns when versions are agreed on."""

    def __init__(self, node: Node, options: ConnectionOptions, on_lost: Callable[[Connection], None]) -> None:
        self.node = node
        self.versions: dict[int, tuple[int, int]] = {}
        self.finalized_features: dict[str, int] = {}
        self.finalized_features_epoch = -1
        self.throttled_until_ms = 0
        self.last_used_ms = 0
        self.in_flight = InFlightRequests()
        self._loop = asyncio.get_running_loop()
        self._options = options
        self._on_lost = on_lost
        self._transport: Any = None
        self._reader = FrameReader(MAX_ANSWER_BYTES, trusted_bytes=TRUSTED_ANSWER_BYTES)
        self._large_answers: LargeAnswers | None = None
        self._next_correlation_id = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_ms = 0
        self._closed = False

    # --- opening and closing

    @classmethod
    async def open(cls, node: Node, options: ConnectionOptions, on_lost: Callable[[Connection], None]) -> Connection:
        """Connect, and agree on versions.

        Raises:
            Disconnected: the address cannot be resolved or reached, or what answers is no Kafka broker.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(options.setup_timeout_ms / 1000):
                _, connection = await loop.create_connection(lambda: cls(node, options, on_lost), node.host, node.port)
        except TimeoutError as error:
            raise Disconnected(f"{node} did not accept a connection within {options.setup_timeout_ms} ms") from error
        except OSError as error:
            raise Disconnected(f"{node} cannot be reached: {error}") from error
        try:
            await connection._agree_on_versions()
        except BaseException as error:
            connection.fail(error if isinstance(error, KafkaError) else Disconnected(f"{node}: {error!r}"))
            if isinstance(error, Exception) and not isinstance(error, Disconnected):
                raise Disconnected(f"{node} did not agree on versions: {error}") from error
            raise
        return connection

    @property
    def is_usable(self) -> bool:
        """Whether requests can be sent."""
        return not self._closed

    def is_ready(self, now_ms: int) -> bool:
        """Whether a request may be sent now: it is open, and the broker has not asked for a rest (KIP-219)."""
        return not self._closed and now_ms >= self.throttled_until_ms

    def close(self) -> None:
        """Close it; requests in flight fail."""
        self.fail(Disconnected(f"the connection to {self.node} was closed"))

    def fail(self, error: KafkaError, timed_out: InFlightRequest | None = None) -> None:
        """Give the connection up: everything in flight fails. `timed_out` is the request that took too long, if any."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        if self._large_answers is not None:
            self._large_answers.close()
            self._large_answers = None
        for request in self.in_flight.take_all():
            if request.answer.done():
                continue
            if request is timed_out:
                request.answer.set_exception(NoAnswer(str(error)))
            else:
                request.answer.set_exception(Disconnected(f"{request.name}: {error}"))
            # Not everybody waits to the end: one who was cancelled must not leave a warning behind.
            request.answer.exception()
        self._on_lost(self)

    # --- requests

    def version_for(self, request: type[Request], max_version: int | None = None) -> int:
        """The highest version of a kind of request that both sides have.

        Raises:
            UnsupportedVersion: there is none.
        """
        ours = request.versions
        highest = ours.max - 1 if request.latest_version_unstable else ours.max
        if max_version is not None:
            highest = min(highest, max_version)
        theirs = self.versions.get(request.api_key)
        name = request.__name__.removesuffix("Request")
        if theirs is None:
            raise UnsupportedVersion(f"{self.node} does not have {name}: it is too old, or does not offer it here")
        version: int = min(highest, theirs[1])
        if version < max(ours.min, theirs[0]):
            raise UnsupportedVersion(
                f"{self.node} has {name} in versions {theirs[0]} to {theirs[1]}, needed is {ours.min} to {highest}"
            )
        return version

    def send(self, request: Request, version: int, timeout_ms: int | None = None) -> asyncio.Future[Answer]:
        """Write a request; the future brings its answer, `Disconnected` or `NoAnswer`.

        Raises:
            Disconnected: the connection is closed.
            EncodeError: the request cannot be expressed in this version.
        """
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._send(request, version, timeout_ms, answer)
        return answer

    def send_then(
        self, request: Request, version: int, callback: AnswerCallback, timeout_ms: int | None = None
    ) -> None:
        """The same, without a turn of the loop between answer and `callback(answer, error)`.

        With an answer it is called while the connection reads, with an error in a later turn; never before this
        returns. Raises as `send`.
        """
        self._send(request, version, timeout_ms, _CalledBack(callback, self._loop))

    def _send(self, request: Request, version: int, timeout_ms: int | None, answer: Any) -> None:
        if self._closed:
            raise Disconnected(f"the connection to {self.node} is closed")
        now_ms = self._now_ms()
        deadline_ms = now_ms + (self._options.request_timeout_ms if timeout_ms is None else timeout_ms)
        correlation_id = self._next_correlation_id
        parts = encode_request(request, version, correlation_id, self._options.client_id)
        self._next_correlation_id = (correlation_id + 1) & 0x7FFFFFFF
        name = type(request).__name__
        self.in_flight.add(
            InFlightRequest(correlation_id, response_class(request.api_key), version, deadline_ms, answer, name, now_ms)
        )
        self.last_used_ms = now_ms
        self._write(parts)
        if self._large_answers is not None:
            self._large_answers.await_answer()
        if self._timer is None or deadline_ms < self._timer_at_ms:
            self._set_timer(deadline_ms, now_ms)

    def send_without_answer(self, request: Request, version: int) -> None:
        """Write a request that is never answered: a Produce with acks=0.

        Raises:
            Disconnected: the connection is closed.
        """
        if self._closed:
            raise Disconnected(f"the connection to {self.node} is closed")
        parts = encode_request(request, version, self._next_correlation_id, self._options.client_id)
        self._next_correlation_id = (self._next_correlation_id + 1) & 0x7FFFFFFF
        self.last_used_ms = self._now_ms()
        self._write(parts)

    def _write(self, parts: list[bytes | memoryview]) -> None:
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)

    async def _agree_on_versions(self) -> None:
        version = ApiVersionsRequest.versions.max
        request = ApiVersionsRequest(
            client_software_name=_SOFTWARE_NAME, client_software_version=self._options.software_version
        )
        answer = await self.send(request, version)
        if answer.error_code == _UNSUPPORTED_VERSION:
            # The broker is older than our highest version and has answered in version 0, naming its own highest.
            theirs = next((key.max_version for key in answer.api_keys if key.api_key == ApiKey.API_VERSIONS), 0)
            answer = await self.send(request, min(version, theirs))
        error = error_for(answer.error_code)
        if error is not None:
            raise error
        self.versions = {key.api_key: (key.min_version, key.max_version) for key in answer.api_keys}
        self.finalized_features_epoch = answer.finalized_features_epoch
        self.finalized_features = {feature.name: feature.max_version_level for feature in answer.finalized_features}

    # --- timeouts

    def _now_ms(self) -> int:
        return int(self._loop.time() * 1000)

    def _set_timer(self, deadline_ms: int, now_ms: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_ms = deadline_ms
        self._timer = self._loop.call_later(max(0, deadline_ms - now_ms) / 1000, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        deadline_ms = self.in_flight.deadline_ms()
        if deadline_ms is None:
            return
        now_ms = self._now_ms()
        if now_ms < deadline_ms:
            self._set_timer(deadline_ms, now_ms)
            return
        late = self.in_flight.first_with_deadline(deadline_ms)
        waited_ms = now_ms - late.sent_ms
        self.fail(NoAnswer(f"{late.name}: {self.node} did not answer within {waited_ms} ms"), timed_out=late)

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102 - asyncio's protocol
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._options.send_buffer_bytes >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._options.send_buffer_bytes)
            if self._options.receive_buffer_bytes >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._options.receive_buffer_bytes)
            if self._options.receiving is not None and transport.get_extra_info("ssl_object") is None:
                self._large_answers = self._options.receiving.open(sock)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: D102
        return self._reader.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:  # noqa: D102
        if self._large_answers is not None:
            self._large_answers.begin()
        try:
            self._received(nbytes)
            while self._large_answers is not None and self._reader.missing_bytes >= LARGE_FROM_BYTES:
                buffer = self._reader.get_buffer()
                count = self._large_answers.receive(buffer)
                if count:
                    self._received(count)
                if count < len(buffer):
                    break
        except (DecodeError, FrameError, struct.error) as error:
            logger.warning("%s sends what cannot be read, the connection is given up: %s", self.node, error)
            who = f"{self.node} sent what cannot be read"
            if not self.versions:  # its first answer
                who = f"what answers as {self.node} is no Kafka broker, or wants another protocol (TLS)"
            self.fail(Disconnected(f"{who}: {error}"))

    def _received(self, count: int) -> None:
        for frame in self._reader.received(count):
            if self._closed:
                return
            self._answered(frame)

    def _answered(self, frame: bytearray) -> None:
        if len(frame) < 4:
            raise DecodeError("the answer ends before its header does")
        request = self.in_flight.complete_oldest(struct.unpack_from(">i", frame)[0])
        version = request.version
        if request.response_class is ApiVersionsResponse and frame[4:6] == b"\x00\x23":
            version = 0  # an older broker: it names its versions in the form that every client can read
        try:
            _, answer = decode_response(request.response_class, version, frame)
        except DecodeError as error:
            if not request.answer.done():
                request.answer.set_exception(Disconnected(f"{request.name}: {self.node}: {error}"))
                request.answer.exception()
            raise
        throttle_ms: int = getattr(answer, "throttle_time_ms", 0)
        if throttle_ms > 0:
            self.throttled_until_ms = max(self.throttled_until_ms, self._now_ms() + throttle_ms)
        if not request.answer.done():  # who asked may have gone away
            request.answer.set_result(answer)

    def eof_received(self) -> None:  # noqa: D102 - returning None closes the transport, then connection_lost is called
        return None

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        reason = f": {exc}" if exc is not None else ""
        self.fail(Disconnected(f"{self.node} closed the connection{reason}"))
