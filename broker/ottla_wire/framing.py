"""Frames and headers: what lies between a byte stream and a message. Sans-I/O.

A frame is an int32 size and so many bytes: a request header and a request, or a response header and a response.
Request headers have version 1, or 2 (with a tagged section) before flexible requests; response headers 0 or 1. The
client id in a request header never has a compact length, so it can be read before the header's version is known.
"""

from __future__ import annotations

import struct
from typing import Final, TypeVar

from ottla_wire.errors import DecodeError, EncodeError, FrameError
from ottla_wire.messages import flexible_versions
from ottla_wire.records.kernel import new_buffer
from ottla_wire.schema import Buffer, Request, Response
from ottla_wire.schema.runtime import skip_tagged

RECEIVE_BYTES: Final = 32 * 1024
"""Frames up to this size arrive in a buffer that is shared by all of a connection, larger ones in one of their own."""
TRUSTED_BYTES: Final = 2 * 1024 * 1024
"""A frame of this size is believed when it is announced, a larger one as it arrives."""

_SIZE = struct.Struct(">i")
_REQUEST = struct.Struct(">ihhi")
_REQUEST_HEADER = struct.Struct(">hhih")
_RESPONSE = struct.Struct(">ii")

ResponseT = TypeVar("ResponseT", bound=Response)


class RequestHeader:
    """Who asks what: the fields of a request's header, and where in the frame its body begins."""

    __slots__ = ("api_key", "api_version", "body_offset", "client_id", "correlation_id")

    def __init__(
        self, api_key: int, api_version: int, correlation_id: int, client_id: str | None, body_offset: int
    ) -> None:
        self.api_key = api_key
        self.api_version = api_version
        self.correlation_id = correlation_id
        self.client_id = client_id
        self.body_offset = body_offset

    def __repr__(self) -> str:
        return (
            f"RequestHeader(api_key={self.api_key}, api_version={self.api_version}, "
            f"correlation_id={self.correlation_id}, client_id={self.client_id!r}, body_offset={self.body_offset})"
        )


def encode_request(
    request: Request, version: int, correlation_id: int, client_id: str | None
) -> list[bytes | memoryview]:
    """The frame of a request, in pieces: large records fields are not copied. `EncodeError` as `Message.encode`."""
    start = bytearray(_REQUEST.pack(0, request.api_key, version, correlation_id))
    if client_id is None:
        start += b"\xff\xff"
    else:
        name = client_id.encode()
        if len(name) > 0x7FFF:
            raise EncodeError(f"a client id can have 32767 bytes, not {len(name)}")
        start += len(name).to_bytes(2, "big")
        start += name
    if request.is_flexible(version):
        start.append(0)
    return _frame(request, version, start)


def encode_response(response: Response, version: int, correlation_id: int) -> list[bytes | memoryview]:
    """The frame of a response, in pieces: large records fields are not copied. `EncodeError` as `Message.encode`."""
    start = bytearray(_RESPONSE.pack(0, correlation_id))
    if response.header_version(version):
        start.append(0)
    return _frame(response, version, start)


def _frame(message: Request | Response, version: int, start: bytearray) -> list[bytes | memoryview]:
    parts: list[bytes | memoryview] = []
    last = message.encode_into(start, parts, version)
    if not parts:
        _SIZE.pack_into(last, 0, len(last) - 4)
        return [bytes(last)]
    if last:
        parts.append(bytes(last))
    first = parts[0]
    parts[0] = _SIZE.pack(sum(map(len, parts)) - 4) + first[4:]
    return parts


def decode_request_header(frame: Buffer) -> RequestHeader:
    """Read the header of a request (a frame without its size); `DecodeError` if the frame is too short to hold one.

    For an API key that is not known the tagged section, if there is one, counts as part of the body.
    """
    try:
        api_key, version, correlation_id, length = _REQUEST_HEADER.unpack_from(frame)
        offset = 10
        client_id = None
        if length >= 0:
            offset += length
            client_id = str(frame[10:offset], "utf-8")
        flexible = flexible_versions(api_key)
        if flexible is not None and version in flexible:
            view = memoryview(frame)
            offset = skip_tagged(view, offset + 1, view[offset])
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise DecodeError("the request's header cannot be read") from error
    if offset > len(frame):
        raise DecodeError("the request's header cannot be read: it ends early")
    return RequestHeader(api_key, version, correlation_id, client_id, offset)


def decode_response(response_class: type[ResponseT], version: int, frame: Buffer) -> tuple[int, ResponseT]:
    """Read a response (a frame without its size) to a request of this version; returns its correlation id and itself.

    `DecodeError` if it is something else.
    """
    if len(frame) < 4:
        raise DecodeError("the response ends before its header does")
    correlation_id = _SIZE.unpack_from(frame)[0]
    offset = 4
    if response_class.header_version(version):
        try:
            view = memoryview(frame)
            offset = skip_tagged(view, 5, view[4])
        except IndexError as error:
            raise DecodeError("the response ends before its header does") from error
    return correlation_id, response_class.decode(frame, version, offset)


class FrameReader:
    """Cuts a byte stream into frames. Made for `asyncio.BufferedProtocol`: `get_buffer` and `received` are its calls.

    Small frames are copied out of a shared buffer, many per read; the rest of a large frame is received straight into
    the buffer that becomes the frame. A frame belongs to whoever gets it: nobody writes to it any more.

    A frame that is only announced takes no memory: beyond `trusted_bytes` its buffer is at most four times what has
    arrived. Otherwise whoever sends 4 bytes would have the limit's 100 MB, on each connection.
    """

    def __init__(
        self, max_frame_bytes: int, receive_bytes: int = RECEIVE_BYTES, trusted_bytes: int = TRUSTED_BYTES
    ) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._trusted_bytes = trusted_bytes
        self._shared = bytearray(receive_bytes)
        self._shared_view = memoryview(self._shared)
        self._filled = 0
        self._large: bytearray | None = None  # the frame that is being received on its own
        self._large_size = 0  # what it will have; its buffer may be shorter still
        self._large_filled = 0

    @property
    def is_between_frames(self) -> bool:
        """True if the stream may end here without a frame being cut off."""
        return self._filled == 0 and self._large is None

    @property
    def missing_bytes(self) -> int:
        """What has not come yet of a large frame that has begun; 0 without one."""
        return 0 if self._large is None else self._large_size - self._large_filled

    def get_buffer(self, size_hint: int = -1) -> memoryview:
        """Where the next bytes are to be put; never empty."""
        if self._large is not None:
            return memoryview(self._large)[self._large_filled :]
        return self._shared_view[self._filled :]

    def received(self, count: int) -> list[bytearray]:
        """Take note of `count` new bytes in that buffer; returns the frames that are complete, without their sizes.

        `FrameError` if a size is negative or above the limit: frames before it in the same read are lost with the
        connection, which is of no more use.
        """
        if self._large is not None:
            self._large_filled += count
            if self._large_filled < len(self._large):
                return []
            if self._large_filled < self._large_size:
                # A new one, because the transport still holds a view of the old one: that cannot be resized.
                grown = new_buffer(min(self._large_size, 4 * self._large_filled))
                grown[: self._large_filled] = self._large
                self._large = grown
                return []
            frame, self._large = self._large, None
            return [frame]
        self._filled += count
        return self._cut()

    def _cut(self) -> list[bytearray]:
        frames = []
        shared, view, filled = self._shared, self._shared_view, self._filled
        position = 0
        while filled - position >= 4:
            size: int = _SIZE.unpack_from(shared, position)[0]
            if not 0 <= size <= self.max_frame_bytes:
                raise FrameError(f"a frame announces {size} bytes; between 0 and {self.max_frame_bytes} are allowed")
            start, stop = position + 4, position + 4 + size
            if stop > filled:
                if size + 4 > len(shared):
                    self._begin_large(size, view[start:filled])
                    position = filled
                break
            frames.append(bytearray(view[start:stop]))
            position = stop
        if position:
            rest = filled - position
            shared[:rest] = shared[position:filled]
            self._filled = rest
        return frames

    def _begin_large(self, size: int, beginning: memoryview) -> None:
        self._large = new_buffer(min(size, max(self._trusted_bytes, 4 * len(beginning))))
        self._large_size = size
        self._large_filled = len(beginning)
        self._large[: self._large_filled] = beginning
