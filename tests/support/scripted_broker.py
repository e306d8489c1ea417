"""A TCP server that speaks Kafka's protocol as far as a test's script tells it to."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

from ottla_wire.framing import decode_request_header, encode_response
from ottla_wire.messages import request_class
from ottla_wire.messages.api_versions import ApiVersion, ApiVersionsResponse
from ottla_wire.messages.metadata import MetadataResponse, MetadataResponseBroker

Answer = Any
Handler = Callable[[Any, int], Answer]


class Silence:
    """Answer: none, ever."""


class HangUp:
    """Answer: the connection is closed."""


class Raw:
    """Answer: these bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data


ALL_VERSIONS = {3: (0, 13), 10: (0, 6), 18: (0, 4), 0: (3, 13), 22: (0, 5)}


class ScriptedBroker:
    """Answers ApiVersions and Metadata by itself, and what `handlers` has a function for (by API key)."""

    def __init__(self, node_id: int = 1) -> None:
        self.node_id = node_id
        self.handlers: dict[int, Handler] = {}
        self.requests: list[tuple[int, int, Any]] = []
        self.client_ids: list[str | None] = []
        self.connections = 0
        self.idle = asyncio.Event()
        """Set while nobody is connected who was."""
        self.versions = dict(ALL_VERSIONS)
        self.highest_api_versions = 4
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> ScriptedBroker:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        self.idle.clear()
        try:
            while True:
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                if not self._answer(await reader.readexactly(size), writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
            if not self._writers:
                self.idle.set()

    def _answer(self, frame: bytes, writer: asyncio.StreamWriter) -> bool:
        header = decode_request_header(frame)
        version = header.api_version
        if header.api_key == 18 and version > self.highest_api_versions:
            body = ApiVersionsResponse(error_code=35, api_keys=[self._range(18)])
            writer.writelines(encode_response(body, 0, header.correlation_id))
            return True
        request = request_class(header.api_key).decode(frame, version, header.body_offset)
        self.requests.append((header.api_key, version, request))
        self.client_ids.append(header.client_id)
        handler = self.handlers.get(header.api_key) or getattr(self, f"_handle_{header.api_key}")
        answer = handler(request, version)
        if isinstance(answer, HangUp):
            return False
        if isinstance(answer, Raw):
            writer.write(answer.data)
        elif not isinstance(answer, Silence):
            writer.writelines(encode_response(answer, version, header.correlation_id))
        return True

    def _range(self, key: int) -> ApiVersion:
        low, high = self.versions[key]
        return ApiVersion(
            api_key=key, min_version=low, max_version=min(high, self.highest_api_versions if key == 18 else high)
        )

    def _handle_18(self, request: Any, version: int) -> Answer:
        return ApiVersionsResponse(api_keys=[self._range(key) for key in self.versions])

    def _handle_3(self, request: Any, version: int) -> Answer:
        me = MetadataResponseBroker(node_id=self.node_id, host="127.0.0.1", port=self.port)
        return MetadataResponse(brokers=[me], cluster_id="scripted", controller_id=self.node_id, topics=[])
