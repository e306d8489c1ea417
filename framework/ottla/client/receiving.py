"""How a consumer receives large answers while its application computes.

Theory of operation. The I/O loop receives answers, the application's thread decodes them, and only one of the two may
have the interpreter lock. A thread that wants it while another one computes waits for a switch interval, 5 ms: longer
than either needs for an answer of 4 MB. Left alone they take turns, one core idle, and the loop wants the lock twice
for each piece of some 100 KB. So here they meet twice in an answer:

- `Receiving.give_way`: before it decodes, the application's thread asks the kernel (a microsecond) whether an answer is
  there that the loop has not begun to read. Then it sleeps, for as long as another thread needs to wake up.
- `LargeAnswers.receive`: once a large answer has begun, one system call takes the rest of it, and holds no lock.

The loop does nothing else during that call, so it is limited, and not tried for a while where the answer was too slow.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

LARGE_FROM_BYTES: Final = 256 * 1024
"""Where less than this is missing, the loop has it in a piece or two."""
RECEIVE_SECONDS: Final = 0.01
"""How long a call waits for the rest, give or take a tick of the system's clock. 4 MB take 2 to 5 ms on one machine."""
SLOW_PAUSE_SECONDS: Final = 0.25
"""How long a connection is left to the loop after a call that came to its end without the rest."""
GIVE_WAY_SECONDS: Final = 0.00002
"""Enough to be put to sleep, which takes about 70 µs."""

_IS_SUPPORTED: Final = hasattr(select, "poll") and hasattr(socket, "MSG_WAITALL")


class Receiving:
    """The fetch connections of one consumer, seen from both threads."""

    def __init__(self, sleep: Callable[[float], object] = time.sleep) -> None:
        self._sleep = sleep
        self._awaited: set[int] = set()
        self._poll = select.poll() if _IS_SUPPORTED else None

    def open(self, sock: socket.socket) -> LargeAnswers | None:
        """The way past the loop into a connection's socket; None where the platform does not have it."""
        return LargeAnswers(sock, self) if _IS_SUPPORTED else None

    def awaits(self, number: int) -> None:
        """An answer is to come on this file descriptor."""
        if self._poll is not None and number not in self._awaited:
            self._awaited.add(number)
            self._poll.register(number, select.POLLIN)

    def has_begun(self, number: int) -> None:
        """The loop reads from this file descriptor, or never will again."""
        if self._poll is not None and number in self._awaited:
            self._awaited.remove(number)
            self._poll.unregister(number)

    def give_way(self) -> None:
        """Let the loop have the interpreter lock if there is something for it to read. For the application's thread."""
        if self._awaited and self._poll is not None and self._poll.poll(0):
            self._sleep(GIVE_WAY_SECONDS)


class LargeAnswers:
    """A connection's own handle on its socket. Everything here runs on the I/O loop.

    The handle is a duplicate: the transport may close its own when it likes. Both are one connection, which is closed
    for the broker when both are.
    """

    def __init__(self, sock: socket.socket, receiving: Receiving) -> None:
        self._socket = socket.fromfd(sock.fileno(), sock.family, sock.type)
        microseconds = int(RECEIVE_SECONDS * 1_000_000)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, microseconds))
        self._number = self._socket.fileno()
        self._receiving = receiving
        self._not_before = 0.0

    def await_answer(self) -> None:
        """A request was sent."""
        self._receiving.awaits(self._number)

    def begin(self) -> None:
        """Something has come."""
        self._receiving.has_begun(self._number)

    def receive(self, buffer: memoryview) -> int:
        """Fill a buffer as far as that goes without a long wait; how many bytes came.

        Fewer than there is room for say nothing of why: the loop will find out.
        """
        if time.monotonic() < self._not_before:
            return 0
        count = 0
        self._socket.setblocking(True)  # of both handles: only the time-out limits the call
        try:
            with contextlib.suppress(OSError):
                count = self._socket.recv_into(buffer, 0, socket.MSG_WAITALL)
        finally:
            self._socket.setblocking(False)
        if count < len(buffer):
            self._not_before = time.monotonic() + SLOW_PAUSE_SECONDS
        return count

    def close(self) -> None:
        """Give the handle up; nothing is called any more."""
        self._receiving.has_begun(self._number)
        self._socket.close()
