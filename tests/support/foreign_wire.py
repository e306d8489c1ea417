"""Which requests, in which versions, other people's clients send: a tap between them and our broker."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import Any

from support.proxy import read_frame
from support.slow_answers import SlowAnswers

_SIZE, _HEADER = 4, 10  # bytes: the size of a frame; API key, version, correlation id and the client id's length


class WireTap(SlowAnswers):
    """A proxy that holds nothing back and notes the head of each request that passes.

    Attributes:
        seen: how many requests passed, by client id, API key and version.
    """

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, int, int]] = Counter()
        super().__init__(random.Random(0), least_ms=0, most_ms=0)

    def versions(self, client_id: str) -> dict[int, set[int]]:
        """The versions of each API key that a client has used."""
        found: dict[int, set[int]] = {}
        for client, api_key, version in list(self.seen):
            if client == client_id:
                found.setdefault(api_key, set()).add(version)
        return found

    def count(self, client_id: str, api_key: int) -> int:
        """How many requests of one kind a client has sent."""
        return sum(n for (client, key, _), n in list(self.seen.items()) if (client, key) == (client_id, api_key))

    async def requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Any) -> None:
        """See Proxy."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await read_frame(reader)
                self._note(frame[_SIZE:])
                writer.write(frame)
                await writer.drain()

    def _note(self, frame: bytes) -> None:
        def number(at: int) -> int:
            return int.from_bytes(frame[at : at + 2], "big", signed=True)

        client_id = frame[_HEADER : _HEADER + max(number(8), 0)].decode()
        self.seen[client_id, number(0), number(2)] += 1


def advertising(tap: WireTap) -> dict[str, str]:
    """The setting by which a broker sends all its clients through the tap."""
    return {"advertised.listeners": f"PLAINTEXT://127.0.0.1:{tap.port}"}


def tapped(broker: Any, tap: WireTap) -> str:
    """Have the tap lead to a broker that runs; returns the address for clients."""
    tap.target_port = broker.port
    return f"127.0.0.1:{tap.port}"
