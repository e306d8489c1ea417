"""A client that knows frames and messages and nothing else: for what no decent client would send."""

from __future__ import annotations

import socket
from typing import Any

from ottla_wire.framing import decode_response, encode_request
from ottla_wire.messages import response_class


class WireClient:
    """One connection. `ask` sends a request and waits; `send` and `receive` apart are for answers that come late."""

    def __init__(self, address: str, timeout: float = 10) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=timeout)
        self._next = 0

    def send(self, request: Any, version: int) -> int:
        """Send one request; returns its correlation id."""
        self._next += 1
        self.socket.sendall(b"".join(bytes(p) for p in encode_request(request, version, self._next, "wire-client")))
        return self._next

    def receive(self, request: Any, version: int) -> tuple[int, Any]:
        """The next answer, read as one to `request`."""
        size = int.from_bytes(self._read(4), "big")
        return decode_response(response_class(request.api_key), version, bytearray(self._read(size)))

    def ask(self, request: Any, version: int) -> Any:
        """Send a request and wait for its answer."""
        number = self.send(request, version)
        correlation_id, response = self.receive(request, version)
        assert correlation_id == number
        return response

    def is_silent(self, seconds: float = 0.2) -> bool:
        """Whether no byte of an answer comes in this time."""
        before = self.socket.gettimeout()
        self.socket.settimeout(seconds)
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(before)
        return False

    def is_closed_by_peer(self) -> bool:
        """Wait for the end of the stream."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            assert piece, "the broker closed the connection"
            data += piece
        return data

    def close(self) -> None:
        self.socket.close()
