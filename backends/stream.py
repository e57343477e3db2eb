"""A connected socket with time limits: send requests, and read exactly the replies to them.

A stream on which anything goes wrong is closed: what a late reply would answer is never read.
"""

from __future__ import annotations

import abc
import math
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from cellcache.foreign import printable

_CHUNK = 1 << 16

ReplyT = TypeVar("ReplyT")


class Garbled(OSError):
    """The reply is not one that the server gives to what was asked."""


class TooLong(Garbled):
    """A value is longer than any of ours, so somebody else's: it is not read, and the server is not to blame."""


class Stream(abc.ABC, Generic[ReplyT]):
    """One connection to one server, used by one request at a time.

    Raises OSError, of which a time-out and Garbled are kinds; ConnectionError where the server hung up.
    """

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self.generation: object = None
        self.made_at = math.inf
        self.timeout_s = timeout_s
        self._sock = sock
        self._owed: list[tuple[int, Callable[[Sequence[ReplyT]], None]]] = []
        # The kernel can time the socket out; Python's own way costs a poll() before each send and each recv.
        # Not for TLS, nor where a library such as gevent or eventlet has put its own sockets in place of Python's.
        self._kernel_waits = sys.platform == "linux" and _is_plain(sock)
        if self._kernel_waits:
            sock.settimeout(None)
        self._limit_waits(timeout_s)
        self.send = sock.sendall

    @abc.abstractmethod
    def close(self) -> None: ...

    @abc.abstractmethod
    def _parse(self, buffer: bytes, start: int, replies: list[ReplyT], expected: int) -> int:
        """Append the complete replies that begin at `start`, `expected` in all; return where the rest begins."""

    def is_idle(self, deadline: float | None = None) -> bool:
        """Return False where there is something to read though nothing was asked: the end, or somebody's answer.

        Reads what is owed first, and so may block until the deadline.
        """
        if self._owed:
            self.replies(0, deadline=deadline)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not poll.poll(0)

    def limit_next(self, seconds: float) -> None:
        """Let a new connection's first request wait no longer than this: its caller has waited for the connection."""
        self._limit_waits(seconds)

    def recv(self, size: int) -> bytes:
        """Return what has arrived: the first time by this method, from then on by the socket's own, which is faster."""
        try:
            return self._sock.recv(size)
        finally:
            self._limit_waits(self.timeout_s)
            self.recv = self._sock.recv  # type: ignore[assignment, method-assign]

    def owe(self, expected: int, read: Callable[[Sequence[ReplyT]], None]) -> None:
        """Say that nobody waits for so many replies to what was just sent: `read` gets them with the next request's."""
        self._owed.append((expected, read))

    def ask(self, request: bytes, expected: int = 1, deadline: float | None = None) -> list[ReplyT]:
        """Send requests and return as many replies as they have; see `replies`."""
        self._sock.sendall(request)
        return self.replies(expected, deadline=deadline)

    def replies(self, expected: int, received: bytes = b"", deadline: float | None = None) -> list[ReplyT]:
        """Read on until `expected` replies are complete; `received` is what was read of them already.

        Blocks until the deadline (on the monotonic clock), or for the time limit. For a tenth of the limit more, what
        has arrived is read all the same: the deadline may have passed while another server kept its readers waiting.
        """
        if deadline is None:
            deadline = time.monotonic() + self.timeout_s
        owed, self._owed = self._owed, []
        try:
            replies = self._replies(sum(number for number, _ in owed) + expected, received, deadline)
        finally:
            if self._waits_s != self.timeout_s:
                self._limit_waits(self.timeout_s)
        for number, read in owed:  # the server answers in the order of the requests
            read(replies[:number])
            del replies[:number]
        return replies

    def _replies(self, expected: int, buffer: bytes, deadline: float) -> list[ReplyT]:
        replies: list[ReplyT] = []
        start = 0
        while True:
            if buffer:
                start = self._parse(buffer, start, replies, expected)
            if len(replies) >= expected:
                if len(replies) > expected or start != len(buffer):
                    raise Garbled("more was answered than asked")
                return replies
            left_s = deadline - time.monotonic()
            if left_s < -self.timeout_s / 10:
                raise TimeoutError("the reply was not complete in time")
            if left_s < self.timeout_s * 0.9:  # most replies are there at once, and never come here
                self._limit_waits(left_s)
            chunk = self._sock.recv(_CHUNK)
            if not chunk:
                raise ConnectionResetError("closed by the server")
            buffer, start = buffer[start:] + chunk, 0

    def _limit_waits(self, seconds: float) -> None:
        """Let no send and no recv wait longer than this; a limit that has passed still lets through what is there."""
        self._waits_s = seconds = max(seconds, 0.001)
        if self._kernel_waits:
            limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        else:
            self._sock.settimeout(seconds)


def reason(error: Exception) -> str:
    """Return an error in words: a time limit that the kernel keeps is "Resource temporarily unavailable" otherwise."""
    return "no reply in time" if isinstance(error, BlockingIOError) else printable(error)


def _is_plain(sock: socket.socket) -> bool:
    return type(sock) is socket.socket and socket.socket.__module__ == "socket"
