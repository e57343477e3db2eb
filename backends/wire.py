"""One connection to one memcached: send requests, read exactly their replies, within a time limit.

pymemcache makes the connection (addresses, TLS, time limits); it has no meta commands, so the talking is ours.
A connection on which anything goes wrong is closed: what a late reply would answer is never read.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time
from itertools import count
from ssl import SSLContext
from typing import NamedTuple

from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheClientError, MemcacheError

from cellcache.errors import BackendUnsupported

OLDEST_VERSION = (1, 6, 10)  # the first whose meta commands are stable
_LONGEST_HEADER = 2048
_CHUNK = 1 << 16


class Garbled(OSError):
    """The reply is not one that memcached gives to what was asked."""


class Reply(NamedTuple):
    """A reply's first line in words, and the data block that follows a `VA`."""

    words: list[bytes]
    body: bytes


class Connection:
    """A connected, authenticated socket to a memcached that is new enough. Used by one thread at a time.

    Raises OSError (of which a time-out and Garbled are kinds) or BackendUnsupported.
    """

    def __init__(
        self,
        server: str | tuple[str, int],
        timeout_s: float,
        *,
        tls_context: SSLContext | None = None,
        credentials: str | None = None,
    ) -> None:
        self._server = server
        self.timeout_s = timeout_s
        self.generation = -1
        self.opaque = count(1).__next__
        self._client = Client(
            server,
            connect_timeout=timeout_s,
            timeout=timeout_s,
            no_delay=True,
            tls_context=tls_context,
            default_noreply=False,
        )
        try:
            self.version = self._handshake(credentials)
        except BaseException:
            self.close()
            raise
        self._sock: socket.socket = self._client.sock
        # The kernel can time the socket out; Python's own way costs a poll() before each send and each recv.
        # Not for TLS, nor where a library such as gevent or eventlet has put its own sockets in place of Python's.
        self._kernel_waits = sys.platform == "linux" and _is_plain(self._sock)
        if self._kernel_waits:
            self._sock.settimeout(None)
        self._limit_waits(timeout_s)
        self.send = self._sock.sendall
        self.recv = self._sock.recv

    def __del__(self) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._client.sock is None

    def close(self) -> None:
        self._client.close()

    def is_idle(self) -> bool:
        """Return False where there is something to read though nothing was asked: the end, or somebody's answer."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not poll.poll(0)

    def ask(self, request: bytes, replies: int = 1) -> list[Reply]:
        """Send requests and return as many replies as they have."""
        self._sock.sendall(request)
        return self.replies(replies)

    def replies(self, expected: int, received: bytes = b"", deadline: float | None = None) -> list[Reply]:
        """Read on until `expected` replies are complete; `received` is what was read of them already.

        Blocks until the deadline, or for the time limit.
        """
        if deadline is not None:
            self._limit_waits(deadline - time.monotonic())
            try:
                return self._replies(expected, received, deadline)
            finally:
                self._limit_waits(self.timeout_s)
        return self._replies(expected, received, time.monotonic() + self.timeout_s)

    def _replies(self, expected: int, received: bytes, deadline: float) -> list[Reply]:
        replies: list[Reply] = []
        buffer, start = received, 0
        while True:
            while len(replies) < expected:
                parsed = _parse(buffer, start)
                if parsed is None:
                    break
                reply, start = parsed
                replies.append(reply)
            if len(replies) == expected:
                if start != len(buffer):
                    raise Garbled("more was answered than asked")
                return replies
            if time.monotonic() > deadline:
                raise TimeoutError("the reply was not complete in time")
            chunk = self._sock.recv(_CHUNK)
            if not chunk:
                raise ConnectionResetError("closed by the server")
            buffer, start = buffer[start:] + chunk, 0

    def _limit_waits(self, seconds: float) -> None:
        """Let no send and no recv wait longer than this; a limit that has passed still lets through what is there."""
        seconds = max(seconds, 0.001)
        if self._kernel_waits:
            limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        else:
            self._sock.settimeout(seconds)

    def _handshake(self, credentials: str | None) -> str:
        """Connect; memcached's text authentication (-Y) is a `set` before anything else. Return the version."""
        try:
            if credentials is not None:
                self._client.set("auth", credentials)
            version: str = self._client.version().decode("ascii", "replace")
        except MemcacheClientError as error:
            raise BackendUnsupported(
                f"memcached at {self._shown()} refuses us ({error}); are cache.username and cache.password right?"
            ) from error
        except MemcacheError as error:
            raise Garbled(f"no memcached answers at {self._shown()}: {error}") from error
        if _numbers(version) < OLDEST_VERSION:
            needed = ".".join(map(str, OLDEST_VERSION))
            raise BackendUnsupported(
                f"memcached at {self._shown()} is version {version}; leases need the meta commands of {needed} or newer"
            )
        return version

    def _shown(self) -> str:
        return self._server if isinstance(self._server, str) else "{}:{}".format(*self._server)


def _parse(buffer: bytes, start: int) -> tuple[Reply, int] | None:
    """Return the reply that begins at `start` and where the next one does, or None while it is incomplete."""
    end = buffer.find(b"\r\n", start)
    if end < 0:
        if len(buffer) - start > _LONGEST_HEADER:
            raise Garbled("no end of line")
        return None
    words = buffer[start:end].split(b" ")
    if words[0] != b"VA":
        return Reply(words, b""), end + 2
    if len(words) < 2 or not words[1].isdigit():
        raise Garbled("a value without a size")
    after = end + 2 + int(words[1])
    if len(buffer) < after + 2:
        return None
    if buffer[after : after + 2] != b"\r\n":
        raise Garbled("a value that does not end where it should")
    return Reply(words, buffer[end + 2 : after]), after + 2


def _numbers(version: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version.split(".")[:3])
    except ValueError:
        return ()


def _is_plain(sock: socket.socket) -> bool:
    return type(sock) is socket.socket and socket.socket.__module__ == "socket"
