"""Cache servers that say what a test has written down: whatever they are asked, in whatever pieces."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any, cast

from pymemcache.client.base import Client

from cellcache.backends import resp, wire
from cellcache.backends.memcached import MemcachedBackend
from cellcache.backends.redis import RedisBackend
from cellcache.backends.stream import Stream
from cellcache.codec import MAPPED_SIZE

Pieces = Sequence[bytes]
"""What a server sends in answer to everything that it is asked over one connection; then it hangs up."""


class ScriptedSocket:
    """Takes whatever is sent, and then has the pieces to receive, each by itself, and in the end the hang-up."""

    def __init__(self, pieces: Pieces) -> None:
        self.sent: list[bytes] = []
        self._pieces = deque(piece for piece in pieces if piece)

    def sendall(self, data: bytes) -> None:
        self.sent.append(data)

    def recv(self, size: int) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        if len(piece) > size:
            self._pieces.appendleft(piece[size:])
        return piece[:size]

    def settimeout(self, seconds: float | None) -> None:
        """Nothing here ever waits."""

    def close(self) -> None:
        self._pieces.clear()


class MemcachedConnection(wire.Connection):  # type: ignore[misc, unused-ignore]
    """A connection to memcached over a socket of the test's own, past the handshake."""

    def __init__(
        self, sock: Any, timeout_s: float = 5.0, value_size: int = MAPPED_SIZE, longest_value: int = 1 << 29
    ) -> None:
        self.over_tls = False
        self._server = "scripted"
        self._hits, self._each_hit = wire._patterns(value_size)
        self._longest_value = longest_value
        self.opaque = count(1).__next__
        self._client = Client("scripted:1")
        self._client.sock = sock
        self.version = "1.6.18"
        Stream.__init__(self, sock, timeout_s)

    def is_idle(self, deadline: float | None = None) -> bool:
        if self._owed:
            self.replies(0, deadline=deadline)
        return not self.closed


class RedisConnection(resp.Connection):  # type: ignore[misc, unused-ignore]
    """A connection to Redis over a socket of the test's own, past the handshake."""

    def __init__(self, sock: Any, timeout_s: float = 5.0) -> None:
        self._connection = cast("Any", _Disconnectable(sock))
        self._longest = 1 << 29
        self.version = "7.0.15"
        self.prefix = b"prefix"
        self.fill = self.settle = b"0" * 40
        Stream.__init__(self, sock, timeout_s)

    def is_idle(self, deadline: float | None = None) -> bool:
        return True

    @property
    def closed(self) -> bool:
        return bool(self._connection.closed)


class _Disconnectable:
    def __init__(self, sock: socket.socket) -> None:
        self.closed = False
        self.username, self.password, self.db = "nova", "secret", 0
        self._sock = sock

    def disconnect(self) -> None:
        self.closed = True
        self._sock.close()


def memcached(*scripts: Pieces) -> tuple[MemcachedBackend, list[MemcachedConnection]]:
    """Return a backend whose connections are scripted, one after the other, and those that it has made so far."""
    backend = MemcachedBackend({"servers": ["scripted:1"], "timeout_s": 5.0, "retry_s": 0.0})
    made: list[MemcachedConnection] = []
    sockets = iter([ScriptedSocket(pieces) for pieces in scripts])

    def dial(_within_s: float) -> MemcachedConnection:
        made.append(MemcachedConnection(_next(sockets)))
        return made[-1]

    backend._nodes[0]._dial = dial
    return backend, made


def redis(*scripts: Pieces) -> tuple[RedisBackend, list[RedisConnection]]:
    """The same for Redis."""
    backend = RedisBackend({"url": "redis://scripted:1/0", "timeout_s": 5.0, "retry_s": 0.0})
    made: list[RedisConnection] = []
    sockets = iter([ScriptedSocket(pieces) for pieces in scripts])

    def dial(_within_s: float) -> RedisConnection:
        made.append(RedisConnection(_next(sockets)))
        return made[-1]

    backend._node._dial = dial
    return backend, made


def _next(sockets: Iterable[ScriptedSocket]) -> ScriptedSocket:
    for sock in sockets:
        return sock
    raise ConnectionRefusedError("the script ends here")


def in_pieces(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Cut data into pieces of these sizes, over and over."""
    pieces, at, turn = [], 0, 0
    while at < len(data):
        size = max(1, sizes[turn % len(sizes)])
        pieces.append(data[at : at + size])
        at += size
        turn += 1
    return pieces
